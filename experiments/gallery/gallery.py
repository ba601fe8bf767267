"""Draws this folder's figures and its README from the sweeps that the README names.

python experiments/gallery/gallery.py [outputs]
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

from grpolab.results import figures, style, theme
from grpolab.results.load import load
from grpolab.results.verdicts import verdicts

HERE = Path(__file__).parent
METRIC = "eval/accuracy"
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
    "ladder": ["ladder"],
    "difficulty": ["advantage_by_difficulty"],
}  # fmt: skip


def main(output_dir: Path) -> None:
    """One PNG a figure, and the README with their captions."""
    page = [(HERE / "head.md").read_text(encoding="utf-8").strip()]
    for study, names in SHOWN.items():
        results = load(output_dir=output_dir, study=study)
        judged = verdicts(results, METRIC, equivalence=MARGIN)
        drawn, _ = figures.draw(figures.Source(results, METRIC, judged), names)
        for name, (figure, caption) in drawn.items():
            write(figure, HERE / f"{name}.png")
            if name == "forest":  # the one on the project's first page
                with theme.dark(figure):
                    write(figure, HERE / f"{name}.dark.png")
            page.append(
                f"## {name}\n\n![{figures.FIGURES[name].about}]({name}.png)\n\n"
                f"Sweep `{study}`, `figures={name}`. {caption}"
            )
    (HERE / "README.md").write_text("\n\n".join(page) + "\n", encoding="utf-8")


def write(figure: Figure, path: Path) -> None:
    """A PNG of 256 colours, rare ones kept: a small file, and nothing to be seen of it."""
    file = io.BytesIO()
    with matplotlib.rc_context(style.PAPER):
        figure.savefig(file, dpi=DPI)
    image = Image.open(file).convert("RGB")
    few = image.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("outputs"))
