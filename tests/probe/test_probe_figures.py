"""Figures of a probe: by group size, by right answers, and cosines that are all 1."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer

from grpolab.probe.difficulty_figure import difficulty, patterns, weight_of_rate
from grpolab.probe.exact.identities import weight_of_pass_rate
from grpolab.probe.figures import cosine_map, norms, short
from grpolab.probe.records import Probe
from grpolab.probe.session import probe
from grpolab.probe.size_figure import alike, sizes
from grpolab.results import style
from grpolab.training.metrics import right_answers

if TYPE_CHECKING:
    from tests.probe.first_gradients import BASE
else:
    from first_gradients import BASE

ZSCORE = "advantage.ddof=0"
ARMS = [["clip=ppo"], ["clip=cispo"], ["advantage=raw"], [ZSCORE, "advantage.eps=0"]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Probe:
    out = tmp_path_factory.mktemp("probe")
    result = probe(ARMS, overrides=BASE, group_sizes=[4], out=out)
    page = (out / "probe.html").read_text(encoding="utf-8")
    for name in ("sizes", "difficulty"):
        assert (out / f"{name}.csv").exists()
        assert (out / "figures" / f"{name}.png").stat().st_size > 5000
        assert f"<h2>{name}</h2>" in page
    return result


def test_shares_by_right_answers_are_those_of_the_whole(found: Probe) -> None:
    for _, own in found.difficulty.groupby("arm"):
        assert own["groups"].sum() == 4
        assert own["share"].sum() == pytest.approx(1, abs=1e-8)
        assert own["right"].is_monotonic_increasing


def test_weights_by_right_answers_are_the_advantages(found: Probe) -> None:
    """k right of G: z-score with ddof 0 has Σ|A|/G = 2√(k(G−k))/G; raw has k/G."""
    for arm, own in found.difficulty.groupby("arm"):
        k = own["right"].to_numpy()
        if ZSCORE in str(arm):
            np.testing.assert_allclose(own["weight"], 2 * np.sqrt(k * (8 - k)) / 8, atol=1e-5)
            np.testing.assert_allclose(own["square"], np.where((k > 0) & (k < 8), 8, 0), atol=1e-4)
        if arm == "advantage=raw":
            np.testing.assert_allclose(own["weight"], k / 8)
            np.testing.assert_allclose(own["toward"], k / 8)
            assert not own["away"].any()


def by_right(size: int, toward: list[float], away: list[float]) -> pd.DataFrame:
    right = range(size + 1)
    return pd.DataFrame({
        "arm": "a", "group_size": size, "right": right, "groups": 1, "toward": toward, "away": away,
        "weight": 1.0, "square": 1.0, "share": 1 / (size + 1),
    })  # fmt: skip


def test_the_weight_of_a_pass_rate_is_that_of_theory() -> None:
    size, rates = 5, np.array([0.1, 0.4, 0.8])
    each = [np.sqrt(k * (size - k)) / size for k in range(size + 1)]
    zscore = by_right(size, each, [-e for e in each])
    wanted = [weight_of_pass_rate(size, p) for p in rates]
    np.testing.assert_allclose(weight_of_rate(zscore, rates), wanted, rtol=1e-12)  # type: ignore[arg-type]
    raw = by_right(size, [k / size for k in range(size + 1)], [0.0] * (size + 1))
    np.testing.assert_allclose(weight_of_rate(raw, rates), 1, rtol=1e-12)  # type: ignore[arg-type]
    # groups without a right answer count for nothing under the one; of the other all are needed
    assert weight_of_rate(zscore[zscore["right"] > 0], rates) is not None
    assert weight_of_rate(raw[raw["right"] < size], rates) is None
    assert weight_of_rate(zscore[zscore["right"] != 2], rates) is None


def test_arms_that_agree_share_a_line(found: Probe) -> None:
    assert patterns(found.difficulty)[0][0] == ["clip=ppo", "clip=cispo"]
    assert alike(found.sizes)[0][:2] == ["clip=ppo", "clip=cispo"]


def test_arms_that_differ_beside_a_missing_value_have_their_own_lines() -> None:
    one = by_right(3, [0.1] * 4, [-0.1] * 4)
    one.loc[1, "share"] = math.nan
    same, other, whole = (one.assign(arm=name) for name in "bcd")
    other.loc[2, "weight"] = 0.5
    whole["share"] = 0.25
    found = patterns(pd.concat([one, same, other, whole]))
    assert [names for names, _ in found] == [["a", "b"], ["c"], ["d"]]


def test_nothing_to_draw_is_no_figure() -> None:
    assert difficulty(pd.DataFrame()) is None
    assert sizes(pd.DataFrame()) is None


def test_other_rewards_have_no_number_of_right_answers() -> None:
    assert right_answers(torch.tensor([[0.0, 0.5], [1.0, 0.5]])) is None
    two = torch.tensor([[0.5, 2.0, 2.0], [0.5, math.nan, 2.0], [0.5, 0.5, 0.5]])
    found = right_answers(two)
    assert found is not None
    assert found.tolist() == [2, -1, 0]


def test_no_signal_at_all_is_still_a_figure(tmp_path: Path) -> None:
    row = {"arm": "a", "groups": 4.0, "snr": -0.1, "snr_error": 0.2, "prompt_share": math.nan}
    frame = pd.DataFrame([{**row, "group_size": g, "prompt_share_error": math.nan} for g in (2, 4)])
    figure = sizes(frame)
    assert figure is not None
    style.save(figure, tmp_path, "sizes", "x", kinds=("png",))


def bars(axes: Axes) -> list[float]:
    """Half the length of each error bar that a panel draws."""
    (drawn,) = axes.containers
    assert isinstance(drawn, ErrorbarContainer)
    (lines,) = drawn.lines[2]
    ends = [np.asarray(bar).reshape(-1, 2) for bar in lines.get_segments()]
    return [
        float(np.ptp(both, axis=0).max()) / 2
        for both in ends
        if np.isfinite(both).all() and len(both)
    ]


def test_an_unknown_error_has_no_bar() -> None:
    row = {"arm": "a", "groups": 4.0, "prompt_share": 0.5, "prompt_share_error": math.nan}
    errors = {2: math.nan, 4: 0.25}
    rows = [{**row, "group_size": g, "snr": 1.0, "snr_error": e} for g, e in errors.items()]
    figure = sizes(pd.DataFrame(rows))
    assert figure is not None
    assert [bars(axes) for axes in figure.axes[:3]] == [[0.25], [1.0], []]
    gradients = pd.DataFrame({
        "arm": ["a", "b"], "norm": 1.0, "cosine_to_first": [1.0, 0.5],
        "cosine_error": [math.nan, 0.125],
    })  # fmt: skip
    drawn = norms(gradients)
    assert drawn is not None
    assert bars(drawn.axes[1]) == [0.125]


def test_cosines_that_are_all_1(tmp_path: Path) -> None:
    names = ["clip=ppo", "clip=none", "clip=cispo", "clip=" + "very_long" * 3]
    frame = pd.DataFrame(np.ones((4, 4)), index=names, columns=names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = cosine_map(frame)
        assert figure is not None
        style.save(figure, tmp_path, "cosine", "x", kinds=("png",))
    assert not figure.axes[0].collections  # no tree where nothing is apart
    near = frame.copy()
    near.iloc[0, 1:] = near.iloc[1:, 0] = 0.9
    drawn = cosine_map(near)
    assert drawn is not None
    assert drawn.axes[0].collections


def test_long_labels_stay_within_the_figure() -> None:
    names = [f"clip.masks=[{{name: top_entropy, share: 0.{i}}}]" for i in range(40)]
    frame = pd.DataFrame(0.99 + 0.01 * np.eye(40), index=names, columns=names)
    figure = cosine_map(frame)
    assert figure is not None
    figure.set_dpi(200)
    figure.draw_without_rendering()
    width = figure.bbox.width
    for label in (*figure.axes[1].get_xticklabels(), *figure.axes[1].get_yticklabels()):
        assert "…" not in label.get_text()
        box = label.get_window_extent()
        assert box.x1 <= width
        assert box.y0 >= 0
    assert short("x" * 60).endswith("…")
