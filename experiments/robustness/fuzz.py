"""Random overrides through the checks of `grpolab plan` and `grpolab train`: never a traceback.

    python experiments/robustness/fuzz.py minutes=60

Each example is a command with one to five overrides over the real key tree: choices, settings and
values that fit, that do not, and that are no values at all; one key in five is swept. It must end
with exit code 0 or 2, and whatever is refused must have been said in lines of `grpolab: …` and have
written nothing. Runs do not start: what `train` does behind its checks is left out.
"""

from __future__ import annotations

import io
import os
import sys
import time
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

ODD = (
    "", "null", "true", "nan", "inf", "-inf", "-1", "0", "1", "2", "3.5", "1e-300", "1e400", "[]",
    "{}", "[1,2]", "[null]", "{a: 1}", "{name: ppo}", "ppo", "frozen", "none",
    "'größe 実験'", "größe", "'a b'",
    "???", "${seed}", "${nope}", "${oc.env:HOME}", "${oc.env:NO_SUCH_NAME}", "'", '"', "\\", "a=b",
    "a:b", "..", "/", ".", "~", "@", "!", "%", "(", "[", "{", "}", "*", "glob(*)",
    "range(1,4)", "choice(1,2)", "choice()",
    "interval(0,1)", "sort(3,1)", "shuffle(1,2)", "int(1.5)", "json_str({})", "extend_list(1)",
    "\x00", "\u202e", "x" * 5000, "1" * 400, "-0", "+1", "01", "1_000", "0x10", "os:getcwd",
    "no.such:thing",
)  # fmt: skip
"""Values that fit somewhere, and nowhere else."""
ODD_KEYS = (
    "", "clip.", ".clip", "clip..low", "clip.lwo", "no_such", "größe", "clip@x", "hydra",
    "hydra.mode",
    "hydra.launcher.workers", "hydra/launcher", "experiment", "debug", "tracking.baseline.clip",
    "clip.name",
    "clip._target_", "task._target_", "hydra.sweeper.params.seed", "_self_", "defaults",
)  # fmt: skip
LOCAL = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
"""Nothing is looked for on a hub."""


def tree() -> dict[str, list[str]]:
    """{key: values that may fit} of the groups' choices and of every setting of every component."""
    from grpolab.component import names, registry, settings_of, type_hints
    from grpolab.config import COMPONENTS, SETTINGS, Run
    from grpolab.sweep.explain import choices

    found: dict[str, list[str]] = {g: choices(g) for g in (*COMPONENTS, "experiment", "hardware")}
    owners = [("", Run), *((f"{k}.", cls) for k, cls in SETTINGS.items())]
    owners += [(f"{g}.", registry(g)[n]) for g in COMPONENTS for n in names(g)]
    for prefix, cls in owners:
        for name in settings_of(cls):
            if prefix or name not in (*COMPONENTS, *SETTINGS, "raw", "output_dir"):
                found.setdefault(f"{prefix}{name}", []).extend(fitting(type_hints(cls)[name]))
    return found


def fitting(hint: Any) -> list[str]:
    """A few values of a type, as they stand on the command line."""
    if typing.get_origin(hint) is typing.Literal:
        return [str(a) for a in typing.get_args(hint)]
    known = {
        int: ["0", "1", "2", "8", "64"], float: ["0.0", "0.1", "1.0", "2", "1e-3"],
        str: ["a", "'b c'"],
        bool: ["true", "false"], type(None): ["null"],
    }  # fmt: skip
    return known.get(hint, []) or [v for a in typing.get_args(hint) for v in fitting(a)]


def commands() -> st.SearchStrategy[list[str]]:
    """Words behind `grpolab plan` or `grpolab train`."""
    known = tree()

    def value(key: str) -> st.SearchStrategy[str]:
        fits = st.sampled_from(known.get(key) or ODD)
        one = st.one_of(fits, fits, st.sampled_from(ODD), st.text(max_size=8))
        several = st.lists(one, min_size=2, max_size=3).map(",".join)
        return st.one_of(one, one, one, one, several)

    keys = st.one_of(st.sampled_from(sorted(known)), st.sampled_from(sorted(known)),
                     st.sampled_from(ODD_KEYS))  # fmt: skip
    start = st.sampled_from(["", "", "", "", "+", "++", "~"])
    override = keys.flatmap(
        lambda key: st.tuples(start, st.just(key), st.just("="), value(key)).map("".join)
    )
    word = st.one_of(*[override] * 9, st.sampled_from(ODD))
    flag = st.sampled_from([[], ["-m"]])
    return st.tuples(flag, st.lists(word, min_size=1, max_size=5)).map(lambda two: two[0] + two[1])


@contextmanager
def nothing_runs() -> Iterator[None]:
    """What `train` does once everything has been checked does not happen."""
    from grpolab.cli import train

    with (
        mock.patch.dict(os.environ, LOCAL),
        mock.patch.object(train, "run_one", return_value=0),
        mock.patch.object(train, "_run_sweep", return_value=0),
    ):
        yield


def check(command: str, words: Sequence[str]) -> int:
    """Runs a command in an empty folder; its exit code.

    Raises:
        AssertionError: it said too little, or wrote something; and whatever it raises itself.
    """
    from grpolab.cli import main

    before, out, err = Path.cwd(), io.StringIO(), io.StringIO()
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            with nothing_runs(), redirect_stdout(out), redirect_stderr(err):
                try:
                    code = main([command, *words])
                except SystemExit as error:
                    raise AssertionError(f"left by SystemExit({error.code})") from error
            left = [str(p) for p in Path(folder).rglob("*")]
        finally:
            os.chdir(before)
    assert code in (0, 2), code
    assert left == [], left
    lines = [line for line in err.getvalue().splitlines() if line]
    assert "Traceback" not in err.getvalue()
    assert code == 0 or any(line.startswith("grpolab: ") for line in lines), lines
    return code


SWEEPS = (",", "glob(", "range(", "choice(", "experiment=")


def is_for_fuzzing(words: Sequence[str]) -> bool:
    """Flags of Hydra's own (help, completion) are another matter, `plan out=` names a file to
    write, and a product of sweeps has hundreds of jobs, whose checks take minutes."""
    swept = sum(any(mark in word for mark in SWEEPS) for word in words)
    others = any((w.startswith("-") and w != "-m") or w.startswith("out=") for w in words)
    return swept <= 1 and not others


def main(minutes: float) -> int:
    """Fuzzes for so long; prints each failure once, and how many examples there were."""
    deadline = time.monotonic() + 60 * minutes
    codes = {0: 0, 2: 0}
    failures: dict[str, list[str]] = {}
    strategy = commands().filter(is_for_fuzzing)

    @settings(max_examples=200, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.sampled_from(["plan", "train"]), strategy)
    def one(command: str, words: list[str]) -> None:
        if time.monotonic() > deadline:
            return
        try:
            codes[check(command, words)] += 1
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            name = f"{type(error).__name__}: {str(error)[:150]!r}"
            if name not in failures:
                failures[name] = [command, *words]
                print(name, [command, *words], flush=True)

    while time.monotonic() < deadline:
        one()
    total = sum(codes.values())
    print(f"{total} examples in {minutes:g} minutes: {codes[0]} accepted, {codes[2]} refused; "
          f"{len(failures)} kinds of failure")  # fmt: skip
    return 1 if failures else 0


if __name__ == "__main__":
    given_minutes = dict(word.partition("=")[::2] for word in sys.argv[1:]).get("minutes", "60")
    sys.exit(main(float(given_minutes)))
