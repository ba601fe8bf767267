"""`grpolab lab`: bias and variance of every variant against a gradient that is known exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SHOWN = 200
"""Lines of bias.csv that are printed, the least error first."""


def lab(arguments: Sequence[str]) -> int:
    """Measures what was asked for; prints a summary, and writes tables and figures to `out`."""
    if not arguments or any(a in ("-h", "--help") for a in arguments):
        print(usage())
        return 0
    from grpolab.probe.exact.settings import parse

    settings = parse(arguments)
    from grpolab.probe.exact.run import check_before, run, write

    check_before(settings)
    if settings.out is not None:
        from grpolab.sweep.preflight import check_writable

        check_writable(settings.out, "out")
    with Progress() as show:
        found = run(settings, show)
    summary(found)
    if settings.out is not None:
        for path in write(found, Path(settings.out), compact=settings.compact):
            if path.suffix in (".csv", ".parquet", ".png"):
                print(f"written: {path}")
    return 0


def summary(found: dict[str, Any]) -> None:
    """The heads of the tables, on stdout."""
    if "bias" in found:
        shown = "arm staleness group_size beta scale direction_bias noise_to_signal rescaled_mse"
        best = found["bias"].sort_values(["group_size", "staleness", "rescaled_mse"])
        if len(best) > SHOWN:
            print(f"the first {SHOWN} of {len(best)} rows:")
        print(
            best.head(SHOWN)[shown.split()].to_string(
                index=False, float_format=lambda x: f"{x:.4g}"
            )
        )
        if len(found["left_out"]):
            lines = found["left_out"]["arm"]
            print(f"left out, {len(lines)} that cannot be, such as {lines.iloc[0]}")
    if "identities" in found:
        table = found["identities"]
        print(f"identities: {table['holds'].sum()} of {len(table)} hold")
    if "identity_curves" in found:
        points = found["identity_curves"].dropna(subset="measured")
        print(f"identity curves: {points['holds'].sum()} of {len(points)} points hold")
    if "kl_table" in found:
        columns = ["mu", "estimator", "quantity", "theory", "measured", "low", "high", "holds"]
        print(found["kl_table"][columns].to_string(index=False, float_format=lambda x: f"{x:.4f}"))
    if "fixed_points" in found:
        points = found["fixed_points"].groupby("course", sort=False)["error"].max()
        print(
            "fixed points, largest error: " + ", ".join(f"{c} {e:.1e}" for c, e in points.items())
        )


class Progress:
    """A bar on a terminal's stderr; nothing elsewhere."""

    def __enter__(self) -> Callable[[int, int, str], None] | None:
        from rich.console import Console
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
        self.bar = Bar(console=console, transient=True) if console.is_terminal else None
        if self.bar is None:
            return None
        self.bar.start()
        task = self.bar.add_task("arms")

        def show(done: int, total: int, what: str) -> None:
            assert self.bar is not None
            self.bar.update(task, completed=done, total=total, description=what)

        return show

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()


def usage() -> str:
    """The help text."""
    from grpolab.probe.exact.settings import FACTORS, KEYS

    return "\n".join(
        [
            "usage: grpolab lab lab=bandit|token_tree [key=value …] [out=DIR]",
            "",
            "Policies so small that all their completions can be written down: the true gradient",
            "of E[R] − β·KL is a sum, and so are bias, variance and error of what training would",
            "use in its place, by the components themselves. Where there are too many batches to",
            "sum over, batches are sampled, and every number has a 95 % interval.",
            "",
            "keys:",
            *(f"  {n:<14}{f.metadata['help']}" for n, f in KEYS.items()),
            "",
            f"what is compared: {', '.join(FACTORS)}, each a list or all",
            "(without any of them: all of all); clip.high=0.28 sets what the chosen ones have.",
            "",
            "bias.csv, a row an arm: scale (of E[g] along ∇J), bias, relative_bias, cosine,",
            "direction_bias (sine of the angle to ∇J), variance, noise_to_signal, mse,",
            "rescaled_mse (what the best learning rate leaves, as a share of ‖∇J‖²), intervals,",
            "exact, batches. An arm with kl=none is measured against ∇E[R], any other against",
            "∇(E[R] − β·KL). compact=true writes bias.parquet instead: four digits, no intervals.",
            "identities.csv, kl_table.csv: theory, measured, low, high, holds.",
            "identity_curves.csv: the identities along an axis, theory and measured.",
            "fixed_points.csv: where each KL leads a five-armed bandit. Figures beside them.",
            "",
            "  grpolab lab lab=bandit out=lab",
            "  grpolab lab lab=bandit parts=bias advantage=all group_size=2,4,8 out=lab",
            "  grpolab lab lab=token_tree ends=true aggregation=all design=product kl=none,k2,k3",
        ]
    )
