"""The dark variant of a figure: the same artists in colours for a dark page.

Greys and black are turned over (the baseline's black becomes near white, the grid a dark grey);
colours stay, lightened where they would fall below a contrast of 3 on the dark ground.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.collections import Collection
from matplotlib.colors import to_rgba, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text

GROUND, INK = 0.07, 0.93  # grey levels of a dark page and of its text
_CONTRAST = 3.0  # WCAG 2.1, graphical objects
KEEP = "_keep"  # label of an artist whose colour stays, such as text on a coloured cell
Undo = Callable[[], Any]


@contextmanager
def dark(figure: Figure) -> Iterator[Figure]:
    """The figure in its dark colours, as long as the context lasts."""
    figure.canvas.draw()  # ticks are made by drawing
    undo: list[Undo] = []
    seen: set[int] = set()
    for artist in _artists(figure):
        if id(artist) not in seen:
            seen.add(id(artist))
            undo += _recolour(artist)
    try:
        yield figure
    finally:
        for step in reversed(undo):
            step()


def turned(colour: Any) -> tuple[float, float, float, float]:
    """A colour on the dark ground, alpha kept."""
    red, green, blue, alpha = to_rgba(colour)
    rgb = np.array([red, green, blue])
    if np.ptp(rgb) < 0.02:
        grey = float(INK - (INK - GROUND) * rgb.mean())
        return grey, grey, grey, alpha
    ground = _luminance(np.full(3, GROUND))
    while (_luminance(rgb) + 0.05) / (ground + 0.05) < _CONTRAST:
        rgb = rgb + 0.1 * (1 - rgb)
    return float(rgb[0]), float(rgb[1]), float(rgb[2]), alpha


def _luminance(rgb: npt.NDArray[np.float64]) -> float:
    """Relative luminance of sRGB values (WCAG 2.1)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ np.array([0.2126, 0.7152, 0.0722]))


def _artists(figure: Figure) -> Iterator[Artist]:
    for artist in figure.findobj():
        yield artist
        box = artist.get_bbox_patch() if isinstance(artist, Text) else None
        if box is not None:
            yield box
        arrow = getattr(artist, "arrow_patch", None)
        if arrow is not None:
            yield arrow


def _recolour(artist: Artist) -> list[Undo]:
    """Set an artist's dark colours; what sets them back."""
    if artist.get_label() == KEEP:
        return []
    if isinstance(artist, Text):
        return [_swap(artist, "color", turned)]
    if isinstance(artist, Line2D):
        names = ("color", "markerfacecolor", "markeredgecolor")
        return [_swap(artist, name, _named) for name in names]
    if isinstance(artist, Patch):
        face, edge = artist.get_facecolor(), artist.get_edgecolor()
        artist.set(facecolor=turned(face), edgecolor=turned(edge))
        return [lambda: artist.set(facecolor=face, edgecolor=edge)]
    if isinstance(artist, Collection) and artist.get_array() is None:
        return [_swap(artist, name, _all) for name in ("facecolor", "edgecolor")]
    return []


def _swap(artist: Any, name: str, change: Callable[[Any], Any]) -> Undo:
    """Changes a colour property; what changes it back."""
    before = getattr(artist, f"get_{name}")()
    setter = getattr(artist, f"set_{name}")
    setter(change(before))
    return lambda: setter(before)


def _named(colour: Any) -> Any:
    """`none` and `auto` are no colours."""
    return colour if isinstance(colour, str) and colour in ("none", "auto") else turned(colour)


def _all(colours: Any) -> Any:
    rgba = to_rgba_array(colours)
    return np.array([turned(colour) for colour in rgba]).reshape(-1, 4)
