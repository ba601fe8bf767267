"""Mean |A| by success rate: what is measured, what follows for f_G(p), and theory beside it."""

from __future__ import annotations

import numpy as np
import pytest

from grpolab.results.figures.common import NothingToDrawError
from grpolab.results.figures.difficulty import (
    RATES,
    THEORIES,
    advantage_by_difficulty,
    expected,
    measured,
    theory,
)
from grpolab.results.frames import Results, RunRecord, history_frame, runs_frame
from grpolab.results.points import Points, points

G = 8


def run(weights: dict[int, float], shift: float, size: int = G) -> Points:
    """Each k at two steps, a little above and below its mean."""
    names = [f"advantage/abs_at_{k}_of_{size}" for k in weights]
    codes = np.repeat(np.arange(len(names)), 2)
    values = [w + shift + side for w in weights.values() for side in (0.01, -0.01)]
    return points(names, codes, [3, 5] * len(names), values)


def results(arms: dict[str, dict[int, float]]) -> Results:
    records, logged = [], []
    for arm, weights in arms.items():
        for seed, shift in enumerate((0.0, 0.02)):
            base = arm == "baseline"
            records.append(RunRecord("s", "w", f"{arm}-{seed}", arm, base, seed, "done"))
            logged.append(run(weights, shift))
    return Results(runs_frame(records), history_frame(records, logged))


def test_theory_is_that_of_the_estimators() -> None:
    torch = pytest.importorskip("torch")
    from grpolab.component import component

    rows = torch.tensor([[1.0] * k + [0.0] * (G - k) for k in range(G + 1)]).double()
    for name, own in zip(THEORIES, ("group_zscore", "group_center", "rloo"), strict=True):
        settings = {"eps": 0.0} if own == "group_zscore" else {}
        found = component("advantage", own, **settings)(rows).abs().mean(dim=1).tolist()
        assert list(theory(name, G).values()) == pytest.approx(found, abs=1e-12)


def test_expected_weight_at_known_points() -> None:
    # a z-score with ddof 0, as the literature has it: f_8 of .1, .25 and .5
    weights = {k: w * np.sqrt(G / (G - 1)) for k, w in theory("z-score", G).items()}
    found = expected(weights, G, np.array([0.1, 0.25, 0.5]))
    assert found == pytest.approx([2.3277, 2.0261, 1.8557], abs=5e-5)
    # leave-one-out is unbiased, centring is (G − 1)/G of it, wherever the prompt stands
    assert expected(theory("leave-one-out", G), G) == pytest.approx(np.ones(len(RATES)))
    assert expected(theory("centred", G), G) == pytest.approx(np.full(len(RATES), 7 / 8))
    # one rate that no group ever had
    assert expected({k: 1.0 for k in range(1, G) if k != 3}, G) is None


def test_means_over_steps_and_seeds() -> None:
    found = measured(results({"baseline": theory("centred", G)}))["baseline"]
    assert found.size == G
    assert list(found.mean) == list(range(G + 1))
    assert found.mean[4] == pytest.approx(0.5 + 0.01)
    low, high = found.ends[4]
    assert high - low == pytest.approx(2 * 12.7062 * 0.01, rel=1e-4)  # t of one degree, se .01


def test_figure_and_caption() -> None:
    few = {k: w for k, w in theory("z-score", G).items() if k in (1, 2, 7)}
    figure, caption = advantage_by_difficulty(
        results({"baseline": theory("centred", G), "advantage=group_zscore": few})
    )
    left, right = figure.axes
    lines = {str(line.get_label()): line for line in left.lines}
    few_x = np.asarray(lines["advantage=group_zscore"].get_xdata(), dtype=float)
    assert few_x == pytest.approx([1 / 8, 2 / 8, 7 / 8], abs=0.01)
    curves = {str(line.get_label()): line for line in right.lines}
    assert set(curves) == {"baseline", *(f"_theory {name}" for name in THEORIES)}
    assert "No curve, as some k never occurred: advantage=group_zscore." in caption
    assert "G = 8" in caption
    assert "n = 2 finished runs" in caption
    labels = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert [text for text in labels if text.startswith("theory")] == [
        f"theory: {name}" for name in THEORIES
    ]


def test_nothing_was_logged() -> None:
    records = [RunRecord("s", "w", "a", "baseline", True, 0, "done")]
    frame = history_frame(records, [points(["eval/accuracy"], [0], [1], [0.5])])
    with pytest.raises(NothingToDrawError, match="no run logged advantage/abs_at_<k>_of_<G>"):
        advantage_by_difficulty(Results(runs_frame(records), frame))
