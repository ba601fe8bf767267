"""The palette holds for colour-blind readers and in grey: neighbours differ in more than hue."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from grpolab.results import style, theme
from grpolab.results.figures.forest import LOOKS

Array = npt.NDArray[np.float64]
# Full deuteranopia and protanopia in linear RGB: Machado, Oliveira and Fernandes (2009), table 1.
SEEN = {
    "normal": np.eye(3),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
}
TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
WHITE = np.array([0.95047, 1.0, 1.08883])


def lab(colour: str, seen: Array) -> Array:
    """CIELAB of an sRGB colour as such eyes see it: L*, a*, b*."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(seen @ linear, 0, 1) / WHITE
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_lab_of_known_colours() -> None:
    assert lab("white", SEEN["normal"]) == pytest.approx([100, 0, 0], abs=0.02)
    assert lab("red", SEEN["normal"]) == pytest.approx([53.24, 80.09, 67.20], abs=0.02)


@pytest.mark.parametrize("eyes", list(SEEN))
def test_neighbouring_arms_differ_in_colour(eyes: str) -> None:
    for one, two in pairwise([*style.COLOURS, style.COLOURS[0]]):
        assert np.linalg.norm(lab(one, SEEN[eyes]) - lab(two, SEEN[eyes])) > 22


def test_neighbouring_arms_differ_in_grey() -> None:
    lightness = [lab(colour, SEEN["normal"])[0] for colour in style.COLOURS]
    for one, two in pairwise([*lightness, lightness[0]]):
        assert abs(one - two) > 8
    assert min(lightness) > 40  # away from the baseline's black


def test_24_arms_are_told_apart_without_colour_from_their_neighbours() -> None:
    arms = [f"clip={i:02d}" for i in range(24)]
    runs = pd.DataFrame({"arm": arms, "baseline": False})
    looks = list(style.arm_styles(runs).values())
    assert len({(look.colour, str(look.line)) for look in looks}) == 24
    for one, two in pairwise(looks):
        assert one.line != two.line
        assert one.marker != two.marker


def test_verdicts_are_told_apart_without_colour() -> None:
    assert len({look.marker for look in LOOKS.values()}) == len(LOOKS)


def test_colours_of_the_dark_variant_have_contrast() -> None:
    """WCAG 2.1: 3 for graphical objects, 4.5 for text."""
    ground = luminance((theme.GROUND,) * 3)
    for colour in (*style.COLOURS, "black"):
        ratio = (luminance(theme.turned(colour)[:3]) + 0.05) / (ground + 0.05)
        assert ratio > (4.5 if colour == "black" else 3)
    assert theme.turned((0.0, 0.0, 0.0, 0.5))[3] == 0.5


def luminance(rgb: tuple[float, ...]) -> float:
    values = np.array(rgb)
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(TO_XYZ[1] @ linear)
