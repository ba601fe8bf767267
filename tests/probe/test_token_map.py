"""Token weights as a figure and on the page: what is alike shares a line, what is hidden shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from grpolab.probe.page import write_page
from grpolab.probe.records import Counts, Probe
from grpolab.probe.token_map import alike, drawable, token_map
from grpolab.results import style
from grpolab.results.visible import visible

WEIGHTS = {
    "clip=ppo": [1.0, -2.0, 0.0],
    "advantage=rloo": [0.5, -1.0, 0.0],
    "clip=reinforce": [2.0, 2.0, 1.0],
    "kl=none": [0.0, 0.0, 0.0],
}
TEXTS = ["$a_{$", "<b>\x1b[2J\u202e", "\n"]


def tokens() -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"arm": arm, "row": 0, "position": t, "text": TEXTS[t], "weight": w}
            for arm, weights in WEIGHTS.items()
            for t, w in enumerate(weights)
        ]
    )


def test_arms_that_do_the_same_up_to_a_factor_are_together() -> None:
    found = alike(tokens())
    assert [arms for arms, _ in found] == [
        ["clip=ppo", "advantage=rloo"], ["clip=reinforce"], ["kl=none"],
    ]  # fmt: skip
    assert found[0][1]["relative"].tolist() == [0.5, -1.0, 0.0]
    assert found[2][1]["relative"].tolist() == [0.0, 0.0, 0.0]


def test_labels_show_what_is_there() -> None:
    assert visible("a\x1b[0m\u202e\ud800b\tc\n") == "a\\x1b[0m\\u202e\\ud800b\tc\n"
    assert drawable(" x\n\t") == "␣x⏎⇥"
    assert drawable("漢\x07") == "\\u6f22\\x07"


@pytest.mark.filterwarnings("error")  # such as that a glyph is missing
def test_the_figure_has_the_weights_and_the_text(tmp_path: Path) -> None:
    figure = token_map(tokens())
    assert figure is not None
    axes = figure.axes[0]
    drawn = np.asarray(axes.images[0].get_array())
    assert drawn.tolist() == [[0.5, -1.0, 0.0], [1.0, 1.0, 0.5], [0, 0, 0]]
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        "clip=ppo and 1 more", "clip=reinforce", "kl=none",
    ]  # fmt: skip
    written = [t.get_text() for t in axes.get_xticklabels()]
    assert written == ["$a_{$", "<b>\\x1b[2J\\u202e", "⏎"]
    style.save(figure, tmp_path, "tokens", "caption")
    assert token_map(tokens().iloc[:0]) is None
    assert token_map(tokens(), "share") is None


def test_shares_have_a_map_of_their_own() -> None:
    """Those of a token are its own, though its weight is that of its whole completion."""
    given = tokens().assign(share=[0.4, -0.1, 0.2] * len(WEIGHTS))
    figure = token_map(given, "share")
    assert figure is not None
    drawn = np.asarray(figure.axes[0].images[0].get_array())
    np.testing.assert_allclose(drawn, [[1.0, -0.25, 0.5]])


def test_the_page_shows_control_characters_as_text(tmp_path: Path) -> None:
    columns = [
        "arm", "norm", "loss", "clip_share", "contributing_tokens", "contributing_groups", "snr",
        "repeat_cosine", "half_cosine", "cosine_to_first", "cosine_error",
    ]  # fmt: skip
    row = dict.fromkeys(columns, 0.5) | {"arm": "clip=ppo\x1b[31m"}
    nothing = pd.DataFrame()
    found = Probe(
        cosine=nothing, cosine_error=nothing, gradients=pd.DataFrame([row]), tokens=tokens(),
        parts=nothing, scaling=nothing, sizes=nothing, staleness=nothing, step=0,
        passes=Counts(1, 1),
    )  # fmt: skip
    page = write_page(found, tmp_path, []).read_text(encoding="utf-8")
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "<b>" not in page
    assert "&lt;b&gt;\\x1b[2J\\u202e" in page
    assert "clip=ppo\\x1b[31m" in page
    assert "clip=ppo · advantage=rloo" in page
