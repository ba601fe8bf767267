"""Which comparisons are one family: what `plan` counts beforehand is what `verdicts` tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

METRIC = "eval/accuracy"
"""What arms are compared in, unless told."""


def names_of(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """Names from `[forest,'kl']`, `forest,kl` or a list, each once and without quotes; none of
    null or `[]`."""
    if given is None or given == "null":
        return ()
    names = given.strip("[] ").split(",") if isinstance(given, str) else given
    bare = (name.strip().strip("'\"").strip() for name in names)
    return tuple(dict.fromkeys(name for name in bare if name))


def opponents(
    arms: Mapping[str, Mapping[str, str]], base: str, by: Sequence[str]
) -> dict[str, str]:
    """{arm: the arm it is compared with}, of all arms that are compared with another one.

    That is the baseline, or with `by` the arm that has its values of those factors and the
    baseline's of all others.

    Args:
        arms: {arm: {factor: its value as text}}, the baseline among them.
        base: the baseline's name.
        by: factors within whose levels arms are compared.

    Raises:
        ResultsError: `by` names no swept factor, or an arm has no such arm to be compared with.
    """
    from grpolab.results.frames import refuse

    usual = arms[base]
    for name in by:
        if name not in usual:
            raise refuse("by", name, "no such swept factor", list(usual))
    named = {tuple(values[f] for f in usual): arm for arm, values in arms.items()}
    found = {}
    for arm, values in arms.items():
        wanted = tuple(values[f] if f in by else usual[f] for f in usual)
        if by and wanted not in named:
            problem = f"arm {arm} has none of its levels to be compared with"
            raise refuse("by", ",".join(by), problem, list(arms))
        found[arm] = named[wanted] if by else base
    return {arm: other for arm, other in found.items() if arm != other}
