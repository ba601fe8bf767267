"""What each arm does to single tokens, as a heat map over the text of a few completions."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grpolab.results import style
from grpolab.results.visible import visible

TOKENS = 40
"""Of a completion that are drawn, from its beginning."""
ARMS = 14
"""Patterns that are drawn, from the first arm's on."""
SHARES_CAPTION = (
    "What each token adds to the arm's squared gradient norm, over the arm's largest here: the "
    "inner product of the token's own term with the whole gradient. Blue: the whole does what the "
    "token asks for; red: it does the opposite. Arms with the same pattern share a line."
)
CAPTION = (
    "What each arm reinforces (blue) and suppresses (red), token by token, in completions of one "
    "prompt: −∂loss/∂log p over the arm's largest here. Arms whose patterns are the same, up to a "
    "factor, share a line."
)


def alike(
    tokens: pd.DataFrame, column: str = "weight", tolerance: float = 1e-3
) -> list[tuple[list[str], pd.DataFrame]]:
    """[(arms, their tokens)]: arms together whose weights, over their largest, differ by no more
    than the tolerance. In the order of the first arm of each.

    Args:
        tokens: of `Probe`.
        column: weight, or share.

    Returns:
        the tokens are those of the first arm, with a column relative, weight over the largest.
    """
    found: list[tuple[list[str], pd.DataFrame]] = []
    for arm, own in tokens.groupby("arm", sort=False):
        own = own.sort_values(["row", "position"])
        largest = own[column].abs().max()
        own = own.assign(relative=own[column] / largest if largest > 0 else 0.0)
        here = own["relative"].to_numpy()
        for names, known in found:
            other = known["relative"].to_numpy()
            if len(other) == len(here) and np.abs(other - here).max() <= tolerance:
                names.append(str(arm))
                break
        else:
            found.append(([str(arm)], own))
    return found


def token_map(tokens: pd.DataFrame, column: str = "weight") -> Figure | None:
    """A panel for each completion: patterns × tokens, by weight or by share; None where there is
    no such column, or nothing in it."""
    if column not in tokens or not tokens[column].any():
        return None
    patterns = alike(tokens, column)[:ARMS]
    rows = sorted(tokens["row"].unique())
    labels = [_label(names) for names, _ in patterns]
    height = 0.55 + 0.13 * len(patterns)
    figure = style.new_figure(style.DOUBLE_COLUMN, height * len(rows) + 0.5)
    figure.set_layout_engine("constrained", w_pad=0.1)  # labels stay inside
    panels = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axes, row in zip(panels, rows, strict=True):
        image = _panel(axes, [own[own["row"] == row] for _, own in patterns])
        axes.set_yticks(range(len(labels)), labels, fontsize=5, parse_math=False)
        axes.set_title(f"completion {row}", fontsize=6, loc="left")
    figure.colorbar(image, ax=list(panels), label=f"{column} / largest", shrink=0.7, aspect=25)
    return figure


def _label(names: list[str], longest: int = 34) -> str:
    """The first arm, and how many others have its pattern."""
    text = style.readable(names[0])
    text = text if len(text) <= longest else f"{text[: longest - 1]}…"
    return text if len(names) == 1 else f"{text} and {len(names) - 1} more"


def _panel(axes: Axes, lines: list[pd.DataFrame]) -> Any:
    width = min(TOKENS, max(len(own) for own in lines))
    values = np.full((len(lines), width), np.nan)
    for i, own in enumerate(lines):
        values[i, : min(width, len(own))] = own["relative"].to_numpy()[:width]
    image = axes.imshow(values, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    texts = [drawable(text) for text in lines[0]["text"].tolist()[:width]]
    axes.set_xticks(range(width), texts, rotation=60, ha="right", fontsize=5, parse_math=False)
    axes.tick_params(length=1)
    axes.grid(visible=False)
    return image


def drawable(text: str) -> str:
    """A token as a label: spaces and line ends as signs, and what the font lacks, or a page would
    hide, as its escape."""
    text = visible(text).replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")
    return "".join(c if ord(c) in _glyphs() else ascii(c)[1:-1] for c in text)


@lru_cache(maxsize=1)
def _glyphs() -> frozenset[int]:
    """Code points of the figures' font."""
    import matplotlib
    from matplotlib.ft2font import FT2Font

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return frozenset(FT2Font(str(path)).get_charmap())
