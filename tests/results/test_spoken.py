"""What has no better side is higher or lower, wherever a verdict is read by people."""

from __future__ import annotations

import pandas as pd
import pytest

from grpolab.results.figures.forest import forest
from grpolab.results.metrics import spoken
from grpolab.results.tables import verdicts_latex, verdicts_markdown
from grpolab.results.words import in_words

ROW = {
    "study": "s", "arm": "kl=k3", "baseline": "kl=none", "n": 6, "mean": 1.5, "baseline_mean": 1.0,
    "delta": 0.5, "low": 0.4, "high": 0.6, "interval": "t 95%", "test": "paired t", "p": 0.001,
    "p_corrected": 0.001, "correction": "holm", "verdict": "better",
}  # fmt: skip


def judged(metric: str) -> pd.DataFrame:
    lower = {**ROW, "arm": "kl=k1", "delta": -0.5, "low": -0.6, "high": -0.4, "verdict": "worse"}
    return pd.DataFrame([{"metric": metric, **row} for row in (ROW, lower)])


@pytest.mark.parametrize(
    ("metric", "up", "down"),
    [
        ("eval/accuracy", "better", "worse"),
        ("policy/entropy", "higher", "lower"),
        ("length/wrong", "higher", "lower"),
        ("kl/ref_k1", "higher", "lower"),
    ],
)
def test_a_verdict_as_people_read_it(metric: str, up: str, down: str) -> None:
    table = judged(metric)
    assert (spoken("better", metric), spoken("worse", metric)) == (up, down)
    assert spoken("undecided", metric) == "undecided"
    first, second = in_words(table)
    assert f"on {metric}: {up} holds" in first
    assert f"on {metric}: {down} holds" in second
    assert f"| {up} |" in verdicts_markdown(table)
    assert f"& {down} " in verdicts_latex(table)
    drawn = forest(table)
    (legend,) = drawn.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [up, down]
    assert ("better is to the" in drawn.caption) == (up == "better")
