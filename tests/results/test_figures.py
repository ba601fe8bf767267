"""The figures hold what they claim to show, and the same frames give the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from grpolab.results import figures, style
from grpolab.results.load import Results, ResultsError, load
from grpolab.results.summary import arm_table

if TYPE_CHECKING:  # the same file under the name the type checker knows it by
    from tests.results.synthetic_sweep import Job, write_files
else:
    from synthetic_sweep import Job, write_files

LABELS = ["baseline", "clip=cispo, kl=k3", "clip=none"]


def labelled(axes: Axes) -> dict[str, Line2D]:
    return {
        str(line.get_label()): line
        for line in axes.lines
        if not str(line.get_label()).startswith("_")
    }


def xs(line: Line2D) -> npt.NDArray[np.float64]:
    return np.asarray(line.get_xdata(), dtype=float)


def ys(line: Line2D) -> npt.NDArray[np.float64]:
    return np.asarray(line.get_ydata(), dtype=float)


def legend_labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_grid_of_curves(first: Results) -> None:
    figure = figures.learning_curves(first)
    assert len(figure.axes) == 6
    assert [axes.get_xlabel() for axes in figure.axes[3:]] == [
        "Step",
        "Generated tokens",
        "Wall time (s)",
    ]
    assert [figure.axes[i].get_ylabel() for i in (0, 3)] == ["Mean reward", "Eval accuracy"]
    assert legend_labels(figure) == LABELS
    assert figure.get_figwidth() == style.DOUBLE_COLUMN


def test_mean_curve_is_the_mean_of_x_and_of_y_at_equal_steps(first: Results) -> None:
    axes = figures.learning_curves(first).axes
    drawn = labelled(axes[5])["baseline"]  # accuracy against wall time: 2 s and 3 s a step
    history = first.history
    picked = history[(history["arm"] == "baseline") & (history["metric"] == "eval/accuracy")]
    mean = picked.groupby("step")[["wall", "value"]].mean()
    assert xs(drawn) == pytest.approx(2.5 * mean.index.to_numpy(dtype=float))
    assert ys(drawn) == pytest.approx(mean["value"].to_numpy(dtype=float))


def test_failed_run_ends_in_a_cross_and_stays_out_of_the_mean(first: Results) -> None:
    axes = figures.learning_curves(first, ["eval/accuracy"], ["step"]).axes[0]
    crosses = [line for line in axes.lines if line.get_marker() == "x"]
    assert [list(xs(line)) for line in crosses] == [[25.0]]
    assert xs(labelled(axes)["clip=none"])[-1] == 50


def test_only_training_metrics_are_smoothed(first: Results) -> None:
    assert figures.smoothing(first, "eval/accuracy") == 1
    assert figures.smoothing(first, "reward/mean") == 3  # 50 steps
    axes = figures.learning_curves(first, ["reward/mean"], ["step"]).axes[0]
    history = first.history
    rewards = history[(history["metric"] == "reward/mean") & (history["arm"] == "baseline")]
    by_step = rewards.groupby("step")["value"].mean()
    drawn = ys(labelled(axes)["baseline"])
    assert drawn[9] == pytest.approx(by_step.loc[9:11].mean())
    assert "rolling mean over 3 steps" in figures.learning_curves_caption(first)


def test_not_finite_values_break_the_line(first: Results) -> None:
    history = first.history.copy()
    chosen = (history["metric"] == "eval/accuracy") & (history["step"] == 10)
    history.loc[chosen & (history["job_id"] == "baseline-0"), "value"] = np.inf
    axes = figures.learning_curves(Results(first.runs, history), ["eval/accuracy"], ["step"]).axes[
        0
    ]
    drawn = ys(labelled(axes)["baseline"])
    assert np.isnan(drawn[2])
    assert np.isfinite(np.delete(drawn, 2)).all()


def test_final_comparison_shows_means_intervals_seeds_and_n(first: Results) -> None:
    figure = figures.final_comparison(first)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == LABELS
    assert [text.get_text() for text in axes.texts] == ["n = 2", "n = 2", "n = 1 of 2"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the baseline on top
    row = arm_table(first, "eval/accuracy").iloc[0]
    bars = [list(xs(line)) for line in axes.lines]
    assert [max(0.0, row["low"]), min(1.0, row["high"])] in bars
    assert [row["final"]] in bars
    assert [row["start"]] in bars
    assert legend_labels(figure) == ["mean, 95 % interval", "seed", "before training"]


def test_captions_say_n_interval_definitions_and_what_did_not_finish(first: Results) -> None:
    curves, final = figures.learning_curves_caption(first), figures.final_comparison_caption(first)
    for text in (curves, final):
        assert "baseline: n = 2" in text
        assert "clip=none: n = 1" in text
        assert "held-out evaluation prompts" in text
        assert "1 failed of 6 runs" in text
    assert "Student-t 95 %" in final
    assert "without an interval" in curves


def test_one_style_an_arm() -> None:
    names = [f"clip={letter}" for letter in "kjihgfedcba"]
    runs = pd.DataFrame({"arm": [*names, "baseline"], "baseline": [False] * 11 + [True]})
    styles = style.arm_styles(runs)
    assert list(styles) == ["baseline", *sorted(names)]
    assert styles["baseline"].colour == "black"
    looks = {(look.colour, str(look.line)) for look in styles.values()}
    assert len(looks) == 12
    assert len({look.marker for look in styles.values()}) == 12
    assert style.arm_styles(runs.iloc[::-1]) == styles


def test_styles_and_labels_agree_across_figures(first: Results) -> None:
    curve = labelled(figures.learning_curves(first).axes[3])["clip=none"]
    final = figures.final_comparison(first).axes[0]
    colours = {line.get_color() for line in final.lines if line.get_marker() == curve.get_marker()}
    assert colours == {curve.get_color()}


def test_files_are_the_same_bytes_twice_and_fonts_are_text(first: Results, tmp_path: Path) -> None:
    written = [
        style.save(figures.final_comparison(first), tmp_path / name, "final", "A caption.")
        for name in ("one", "two")
    ]
    names = ["final.png", "final.pdf", "final.svg", "final.caption.txt"]
    assert [path.name for path in written[0]] == names
    for one, two in zip(*written, strict=True):
        assert one.read_bytes() == two.read_bytes()
    assert b"/Type3" not in written[0][1].read_bytes()
    assert "clip=cispo, kl=k3</text>" in written[0][2].read_text()
    assert written[0][3].read_text() == "A caption.\n"


def test_matplotlib_is_left_as_it_was(first: Results) -> None:
    before = dict(matplotlib.rcParams)
    figures.final_comparison(first)
    assert dict(matplotlib.rcParams) == before


def test_nothing_covers_the_curves_with_twelve_arms(tmp_path: Path) -> None:
    arms = ["baseline", *(f"clip=variant_{i},kl=k3" for i in range(11))]
    jobs = [Job(arm, 0, 0.4 + 0.02 * i) for i, arm in enumerate(arms)]
    write_files(tmp_path, jobs, "s", "2026-01-01")
    figure = figures.learning_curves(load(output_dir=tmp_path, sweep="s"))
    figure.canvas.draw()
    legend = figure.legends[0].get_window_extent()
    assert legend.x0 >= 0
    assert legend.x1 <= figure.bbox.width
    assert legend.y0 >= 0
    for axes in figure.axes:
        assert not legend.overlaps(axes.get_window_extent())
        assert axes.get_window_extent().height > 0.3 * figure.bbox.height


def test_unknown_metric_and_several_studies_are_refused(first: Results, output_dir: Path) -> None:
    with pytest.raises(ResultsError, match=r"^metric=reward/men: .*nearest: reward/mean$"):
        figures.learning_curves(first, ["reward/men"])
    with pytest.raises(ResultsError, match=r"^study=null: .*there is: clipping, kl$"):
        figures.learning_curves(load(output_dir=output_dir))
