"""What is worth saying before a sweep or a run starts: dangers, and factors that cannot act."""

from __future__ import annotations

from collections.abc import Sequence

from grpolab.config import Run

ALIKE_ON_POLICY = {
    "reinforce", "none", "ppo", "dual", "two_sided", "cispo", "sapo", "vespo", "dppo", "topr",
    "tis_pg", "quadratic", "bapo", "fipo",
}  # fmt: skip
"""Policy losses whose gradient is A·∇lp wherever the ratio is 1."""


def notes(runs: Sequence[Run], factors: Sequence[str] = ()) -> list[str]:
    """One sentence each, no two the same; empty where nothing stands out."""
    found: dict[str, None] = {}
    for run in runs:
        caution = getattr(run.advantage, "caution", None)
        if caution:
            found[f"advantage={run.advantage.name}: {caution}"] = None
    swept = [f for f in factors if f == "clip" or f.startswith("clip.")]
    if swept and all(run.updates_per_batch == 1 for run in runs):
        alike = sorted({run.clip.name for run in runs} & ALIKE_ON_POLICY)
        if len(alike) > 1 or (alike and swept != ["clip"]):
            found[
                f"{', '.join(swept)}: with one update per batch every ratio is 1 and no clip "
                f"binds, so arms with {', '.join(alike)} have the same gradient; "
                "updates_per_batch=4 lets them differ."
            ] = None
    return list(found)
