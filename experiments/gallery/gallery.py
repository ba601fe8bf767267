"""Draws this folder's figures and its README from the sweeps that the README names.

python experiments/gallery/gallery.py [outputs] [study …]

With studies only their figures and sections are made anew.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from grpolab.results import figures, style, theme
from grpolab.results.load import load
from grpolab.results.verdicts import verdicts

HERE = Path(__file__).parent
METRICS = {"dapo_ladder": "eval/pass@1"}  # others: eval/accuracy
KEPT = {"dapo_ladder": HERE.parent / "dapo_ladder"}  # whose numbers are in this repository
MARGIN = 0.05
DPI = 150
# the figures of each sweep, in the order of the page
SHOWN = {
    "lr": ["forest", "sensitivity"],
    "grid": [
        "learning_curves", "final_comparison", "factorial", "clip_shares", "ratios", "entropy",
        "kl_estimators", "kl_frontier", "lengths", "step_time", "performance_profile", "threshold",
        "pass_at_k",
    ],
    "dapo_ladder": ["ladder"],
    "difficulty": ["advantage_by_difficulty"],
}  # fmt: skip


def main(output_dir: Path, chosen: Sequence[str] = ()) -> None:
    """One PNG a figure, and the README with their captions."""
    before = (HERE / "README.md").read_text(encoding="utf-8").strip().split("\n\n## ")[1:]
    known = {section.partition("\n")[0]: f"## {section}" for section in before}
    page = [(HERE / "head.md").read_text(encoding="utf-8").strip()]
    for study, names in SHOWN.items():
        if not chosen or study in chosen:
            known |= sections(output_dir, study, names)
        page += [known[name] for name in names]
    (HERE / "README.md").write_text("\n\n".join(page) + "\n", encoding="utf-8")


def sections(output_dir: Path, study: str, names: Sequence[str]) -> dict[str, str]:
    """A study's figures as files, and {figure: its part of the page}."""
    kept, metric = KEPT.get(study), METRICS.get(study, "eval/accuracy")
    results = load(output_dir=output_dir, study=study, kept=kept)
    judged = verdicts(results, metric, equivalence=MARGIN)
    drawn, _ = figures.draw(figures.Source(results, metric, judged), names)
    made = {}
    for name, (figure, caption) in drawn.items():
        write(figure, HERE / f"{name}.png")
        if name == "forest":  # the one on the project's first page
            with theme.dark(figure):
                write(figure, HERE / f"{name}.dark.png")
        source = f"Sweep `{study}`" if kept is None else f"Study [`{study}`](../{study})"
        made[name] = (
            f"## {name}\n\n![{figures.FIGURES[name].about}]({name}.png)\n\n"
            f"{source}, `figures={name}`. {caption}"
        )
    return made


def write(figure: Figure, path: Path) -> None:
    """A small PNG, for a page."""
    with matplotlib.rc_context(style.PAPER):
        style.write_png(figure, path, DPI)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("outputs"), sys.argv[2:])
