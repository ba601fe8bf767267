"""The figures: each one function from tidy frames to a Figure and its caption, by name in FIGURES.

One module a family. None touches pyplot's global state, and the same frames give the same bytes.
"""

from grpolab.results.figures.common import Drawn, NothingToDrawError
from grpolab.results.figures.curves import learning_curves, learning_curves_caption, smoothing
from grpolab.results.figures.final import final_comparison, final_comparison_caption
from grpolab.results.figures.forest import forest
from grpolab.results.figures.registry import (
    FIGURES,
    USUAL,
    Source,
    chosen,
    curve_metrics,
    draw,
    save,
    truth,
)

__all__ = [
    "FIGURES",
    "USUAL",
    "Drawn",
    "NothingToDrawError",
    "Source",
    "chosen",
    "curve_metrics",
    "draw",
    "final_comparison",
    "final_comparison_caption",
    "forest",
    "learning_curves",
    "learning_curves_caption",
    "save",
    "smoothing",
    "truth",
]
