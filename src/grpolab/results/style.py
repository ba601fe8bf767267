"""The look of every figure: paper widths, fonts, and one fixed style an arm.

A figure is one or two columns wide (3.3 or 6.9 inches) with 7–8 pt text, so that it needs no
scaling on the page. Text stays text in PDF and SVG.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from grpolab.results import fonts, theme

SINGLE_COLUMN, DOUBLE_COLUMN = 3.3, 6.9  # inches
PAPER: Any = {  # Any: matplotlib types the keys one by one
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib: the same bytes on every machine
    "font.size": 7,
    "axes.labelsize": 7.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.limits": (-3, 4),
    "grid.color": "0.9",
    "grid.linewidth": 0.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "grpolab",  # without it every SVG has new random ids
    "savefig.dpi": 200,
}
# Okabe and Ito (2008) without black, the baseline's, and yellow, too faint for a line on white. In
# this order neighbours differ by at least 8 in lightness (CIELAB) and by 22 in colour, also as
# deuteranopes and protanopes see them (tests/results/test_palette.py).
COLOURS = ("#0072B2", "#D55E00", "#56B4E9", "#009E73", "#E69F00", "#CC79A7")
LINES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1.2, 1, 1.2)))
# Filled shapes only: a plus or a cross falls apart at 3 pt with a white edge.
MARKERS = ("s", "^", "D", "v", "<", ">", "p", "d", "h", "8", "H")


@dataclass(frozen=True)
class ArmStyle:
    """How one arm looks in every figure."""

    label: str
    colour: str
    line: Any
    marker: str
    width: float = 1.3


def arm_styles(runs: pd.DataFrame) -> dict[str, ArmStyle]:
    """{arm: style}, baseline first and black, then the arms in sorted order.

    Styles depend on the names of the arms alone, so that an arm keeps its style across figures.
    24 arms are told apart by colour and line; neighbours differ in colour, line and marker, so
    that a print without colour tells them apart too.
    """
    baselines = sorted(set(runs.loc[runs["baseline"], "arm"]))
    styles = {arm: ArmStyle(readable(arm), "black", "-", "o", 1.6) for arm in baselines}
    for i, arm in enumerate(sorted(set(runs["arm"]) - set(baselines))):
        styles[arm] = nth_style(i, readable(arm))
    return styles


def nth_style(i: int, label: str) -> ArmStyle:
    """The i-th style: colour, line and marker move on together, 24 colours and lines in all."""
    # 6 colours and 4 lines meet in 12 pairs; one line further on they meet in the other 12
    line = LINES[(i + i // 12) % len(LINES)]
    return ArmStyle(label, COLOURS[i % len(COLOURS)], line, MARKERS[i % len(MARKERS)])


def readable(arm: str) -> str:
    """An arm's overrides as a label that can break and breathe: `clip=cispo, kl=k3`."""
    return ", ".join(part.strip() for part in arm.split(","))


def new_figure(width: float, height: float) -> Figure:
    """An empty figure (inches) with constrained layout, outside pyplot's global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(
    figure: Figure,
    folder: Path,
    name: str,
    caption: str,
    dark: bool = False,
    kinds: Sequence[str] = ("png", "pdf", "svg"),
) -> list[Path]:
    """Write `name`.png (200 dpi), .pdf, .svg and .caption.txt; the same input, the same bytes.

    With `dark` also `name`.dark.svg and .dark.png, for pages of light text. `kinds`: only these of
    the files. Fonts are embedded in
    PDF and SVG, and text stays text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(PAPER):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once: the same in every file, in half the time
        paths = [_write(figure, folder / f"{name}.{kind}") for kind in kinds]
        if dark:
            with theme.dark(figure):
                on_pages = [kind for kind in ("svg", "png") if kind in kinds]
                paths += [_write(figure, folder / f"{name}.dark.{kind}") for kind in on_pages]
    text = folder / f"{name}.caption.txt"
    text.write_text(caption.strip() + "\n", encoding="utf-8")
    return [*paths, text]


def _write(figure: Figure, path: Path) -> Path:
    """One file without its date."""
    dates: dict[str, dict[str, Any]] = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
    if path.suffix == ".png":
        return write_png(figure, path)
    if path.suffix != ".svg":
        figure.savefig(path, metadata=dates.get(path.suffix, {}))
        return path
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata=dates[".svg"])
    path.write_text(fonts.embed(text.getvalue()), encoding="utf-8")
    return path


def write_png(figure: Figure, path: Path, dpi: int | None = None) -> Path:
    """A PNG of 256 colours, rare ones kept: a third of the bytes, and nothing to be seen of it."""
    from PIL import Image

    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi or PAPER["savefig.dpi"])
    image = Image.open(file)
    few = image.convert("RGB").quantize(
        256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
    )
    few.save(path, optimize=True, dpi=image.info["dpi"])
    return path


def join(parts: Iterable[str]) -> str:
    """Sentences of a caption, empty ones left out."""
    return " ".join(part for part in parts if part)
