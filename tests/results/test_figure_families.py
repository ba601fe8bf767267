"""Each figure draws what its frame says; a run that failed or diverged is seen, not dropped."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from grpolab.results import figures, style, theme
from grpolab.results.analyze import analyze, summary
from grpolab.results.figures import kl, scores
from grpolab.results.frames import (
    Results,
    ResultsError,
    RunRecord,
    history_frame,
    ordered,
    runs_frame,
)
from grpolab.results.points import Points
from grpolab.results.points import points as as_points
from grpolab.results.summary import arm_table
from grpolab.results.verdicts import VERDICT_COLUMNS, verdicts

STEPS = (0, 10, 20)
ROWS = ("forest", "final_comparison", "step_time", "threshold")
# {(clip, kl): final accuracies of seeds 0, 1, 2}; None: failed halfway
FINALS: dict[tuple[str, str], tuple[float | None, ...]] = {
    ("ppo", "none"): (0.60, 0.62, 0.64),
    ("ppo", "k3"): (0.80, 0.82, 0.85),
    ("none", "none"): (0.50, 0.54, 0.52),
    ("none", "k3"): (0.70, 0.60, None),
}
DISTANCES = {"ppo": 0.04, "none": 0.25}


def build(records: Iterable[RunRecord]) -> Results:
    rows = ordered(records)
    return Results(runs_frame(rows), history_frame(rows, [row.read() for row in rows]))


def logged(metrics: Mapping[str, Mapping[int, float]]) -> Points:
    flat = [
        (code, step, value)
        for code, line in enumerate(metrics.values())
        for step, value in line.items()
    ]
    codes, steps, values = zip(*flat, strict=True)
    return as_points(list(metrics), codes, steps, values)


def arm_name(clip: str, penalty: str) -> str:
    parts = [f"clip={clip}"] * (clip != "ppo") + [f"kl={penalty}"] * (penalty != "none")
    return ",".join(parts) or "baseline"


def record(clip: str, penalty: str, seed: int, final: float | None, lr: str = "1") -> RunRecord:
    steps = STEPS if final is not None else STEPS[:2]
    end = final if final is not None else 0.4
    line = {step: 0.2 + (end - 0.2) * step / 20 for step in steps}
    trained = [step for step in steps if step]
    points = {
        "eval/accuracy": line,
        **{f"eval/pass@{k}": {s: 1 - (1 - v) ** k for s, v in line.items()} for k in (1, 2, 4)},
        "reward/mean": {s: line[s] for s in trained},
        "policy/entropy": {s: 1.0 - s / 40 for s in trained},
        "policy/ess": dict.fromkeys(trained, 0.9),
        "policy/ratio_max": dict.fromkeys(trained, 3.0),
        "clip/share": dict.fromkeys(trained, 0.1),
        "length/mean": dict.fromkeys(trained, 7.0),
        "time/step": {10: 9.0, 20: 2.0},
        "time/sample": {10: 4.0, 20: 0.5},
        "time/update": {10: 4.0, 20: 1.0},
        "tokens/generated": {s: 100.0 * s for s in trained},
        "time/wall": {s: 2.0 * s for s in trained},
    }
    if penalty != "none":
        points |= {
            f"kl/ref_{k}": dict.fromkeys(trained, DISTANCES[clip]) for k in ("k1", "k2", "k3")
        }
    return RunRecord(
        study="grid",
        sweep="s",
        job_id=f"{arm_name(clip, penalty)}-{lr}-{seed}",
        arm=arm_name(clip, penalty),
        baseline=(clip, penalty) == ("ppo", "none"),
        seed=seed,
        status="done" if final is not None else "failed",
        factors={"clip": clip, "kl": penalty},
        read=lambda: logged(points),
    )


@pytest.fixture(scope="module")
def grid() -> Results:
    return build(
        record(clip, penalty, seed, final)
        for (clip, penalty), finals in FINALS.items()
        for seed, final in enumerate(finals)
    )


def drawn(name: str, results: Results, **rules: Any) -> figures.Drawn:
    judged = verdicts(results, "eval/accuracy", **rules)
    made, _ = figures.draw(figures.Source(results, "eval/accuracy", judged), [name])
    return made[name]


def data(line: Line2D) -> tuple[Any, Any]:
    x, y = (np.asarray(values, dtype=float) for values in line.get_data())
    return x.tolist(), y.tolist()


def by_label(axes: Axes) -> dict[str, tuple[Any, Any]]:
    lines = {str(line.get_label()): data(line) for line in axes.lines}
    return {label: found for label, found in lines.items() if not label.startswith("_child")}


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def frame(*rows: tuple[str, float, float, float, str]) -> pd.DataFrame:
    """A verdict frame of (arm, delta, low, high, verdict), n = 5."""
    table = pd.DataFrame(rows, columns=["arm", "delta", "low", "high", "verdict"])
    return table.assign(
        study="s", metric="eval/accuracy", baseline="baseline", n=5, mean=0.5, baseline_mean=0.5,
        interval="student-t 97.5%", test="paired t", p=0.01, p_corrected=0.02, correction="holm",
    )[list(VERDICT_COLUMNS)]  # fmt: skip


FOREST = frame(
    ("clip=a", -0.2, -0.3, -0.1, "worse"),
    ("clip=b", 0.3, 0.2, 0.4, "better"),
    ("clip=c", 0.01, -0.02, 0.04, "equivalent"),
    ("clip=d", np.nan, np.nan, np.nan, "undecided"),
    ("clip=e", 0.1, np.nan, np.nan, "undecided"),
)


def test_forest_draws_the_frame_best_first() -> None:
    figure, caption = figures.forest(FOREST, margin=0.05)
    axes = figure.axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["clip=b", "clip=e", "clip=c", "clip=a", "clip=d"]
    bars = [data(line) for line in axes.lines if line.get_marker() == "None"]
    assert bars[1:] == [
        ([0.2, 0.4], [0, 0]),
        ([-0.02, 0.04], [2, 2]),
        ([-0.3, -0.1], [3, 3]),
    ]
    points = {line.get_marker(): data(line) for line in axes.lines if line.get_marker() != "None"}
    assert points == {"^": ([0.3], [0]), "o": ([0.1], [1]), "s": ([0.01], [2]), "v": ([-0.2], [3])}
    assert texts(axes) == [
        "n = 5  +0.300 [+0.200, +0.400]",
        "n = 5  +0.100 no interval",
        "n = 5  +0.010 [−0.020, +0.040]",
        "n = 5  −0.200 [−0.300, −0.100]",
        "n = 5  nothing to compare",
    ]
    band = axes.patches[0].get_window_extent().transformed(axes.transData.inverted())
    assert (band.x0, band.x1) == pytest.approx((-0.05, 0.05))
    for said in ("student-t 97.5%", "n = 5", "holm", "±0.05", "to the right"):
        assert said in caption


def test_forest_of_a_metric_that_is_better_lower_turns_the_order() -> None:
    seconds = FOREST.assign(metric="time/step")
    figure, caption = figures.forest(seconds)
    assert figure.axes[0].get_yticklabels()[0].get_text() == "clip=a"
    assert "to the left" in caption
    assert not figure.axes[0].patches


def test_forest_without_arms_and_of_several_metrics_is_a_sentence() -> None:
    with pytest.raises(figures.NothingToDrawError, match=r"^figures=forest: no verdicts"):
        figures.forest(FOREST.iloc[:0])
    two = pd.concat([FOREST, FOREST.assign(metric="reward/mean")])
    with pytest.raises(ResultsError, match=r"^metric=null: .*choose one metric"):
        figures.forest(two)


def test_forest_of_real_verdicts_says_what_failed(grid: Results) -> None:
    figure, caption = drawn("forest", grid, equivalence=0.05)
    judged = verdicts(grid, "eval/accuracy", equivalence=0.05).set_index("arm")
    rows = [text for text in texts(figure.axes[0]) if "failed 1 of 3" in text]
    assert len(rows) == 1
    assert rows[0].startswith(f"n = {judged['n']['clip=none,kl=k3']}")
    assert str(judged["interval"].iloc[0]) in caption
    assert "±0.05" in caption


def test_panels_draw_means_and_end_failed_runs_in_a_cross(grid: Results) -> None:
    for name, metric in (("clip_shares", "clip/share"), ("lengths", "length/mean")):
        axes = drawn(name, grid).figure.axes[0]
        value = grid.history.loc[grid.history["metric"] == metric, "value"].iloc[0]
        assert by_label(axes)["kl=k3"] == ([10, 20], pytest.approx([value, value]))
        crosses = [data(line) for line in axes.lines if line.get_marker() == "x"]
        assert crosses == [([10], [value])]
    assert "clip/low" not in drawn("clip_shares", grid).caption


def test_entropy_beside_reward_against_entropy(grid: Results) -> None:
    left, right = drawn("entropy", grid).figure.axes
    assert by_label(left)["baseline"] == ([10, 20], [0.75, 0.5])
    x, y = by_label(right)["baseline"]
    assert x == [0.75, 0.5]
    assert y == pytest.approx([0.41, 0.62])


def test_a_run_whose_metric_is_nan_ends_on_the_axis(grid: Results) -> None:
    history = grid.history.copy()
    failed = (history["job_id"] == "clip=none,kl=k3-1-2") & (history["metric"] == "clip/share")
    history.loc[failed, "value"] = np.nan
    axes = drawn("clip_shares", Results(grid.runs, history)).figure.axes[0]
    (cross,) = [line for line in axes.lines if line.get_marker() == "x"]
    assert data(cross) == ([10], [0])
    assert cross.get_transform() == axes.get_xaxis_transform()


def test_estimators_have_a_panel_an_arm_that_logged_them(grid: Results) -> None:
    figure, caption = drawn("kl_estimators", grid)
    assert [texts(axes) for axes in figure.axes] == [["clip=none, kl=k3"], ["kl=k3"]]
    lines = by_label(figure.axes[1])
    assert [lines[label][1] for label in ("k1", "k2", "k3")] == [[0.04, 0.04]] * 3
    assert "was not logged by baseline; clip=none" in caption


def test_frontier_on_the_root_of_the_distance(grid: Results) -> None:
    figure, caption = drawn("kl_frontier", grid)
    points = by_label(figure.axes[0])
    x, y = points["kl=k3"]
    assert (x, y) == ([pytest.approx(0.2)], [pytest.approx(0.82333, abs=1e-4)])
    assert points["clip=none, kl=k3"][0] == [pytest.approx(0.5)]
    assert points["_hull"] == (x, y)  # nearer and better than the other
    assert "baseline: n = 0" in caption
    assert "clip=none,kl=k3: n = 2" in caption


def test_pareto_hull() -> None:
    x = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 1.0])
    y = np.array([0.0, 3.0, 3.5, 5.0, 4.0, 1.0])
    assert kl.pareto_hull(x, y).tolist() == [0, 1, 3]
    assert kl.pareto_hull(np.array([1.0]), np.array([2.0])).tolist() == [0]


def test_step_time_leaves_out_the_first_step(grid: Results) -> None:
    axes = drawn("step_time", grid).figure.axes[0]
    bars: list[Any] = list(axes.patches)[:4]
    assert [bar.get_width() for bar in bars] == [0.5, 0.0, 1.0, 0.5]  # sample, score, update, other
    assert [bar.get_x() for bar in bars] == [0.0, 0.5, 0.5, 1.5]
    assert texts(axes)[0] == "2 s, n = 3"


def test_threshold_shows_runs_that_never_got_there(grid: Results) -> None:
    figure, caption = drawn("threshold", grid)  # the baseline's mean: .62
    assert texts(figure.axes[1]) == ["2 of 3", "0 of 3", "1 of 3", "3 of 3"]
    arrows = [data(line) for line in figure.axes[0].lines if line.get_marker() == ">"]
    assert arrows[0] == ([2000.0], [0])
    assert arrows[2] == ([2000.0, 1000.0], [2, 2])  # the failed one ended early
    assert "0.620" in caption


def test_cells_hold_mean_and_n(grid: Results) -> None:
    figure, _ = drawn("factorial", grid)
    axes = figure.axes[0]
    grid_drawn = np.asarray(axes.images[0].get_array())
    assert [t.get_text() for t in axes.get_yticklabels()] == ["ppo", "none"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["none", "k3"]
    assert grid_drawn == pytest.approx(np.array([[0.62, 0.82333], [0.52, 0.65]]), abs=1e-4)
    assert [text.split("\n")[1] for text in texts(axes)].count("n = 2") == 1


def test_profile_counts_failed_runs_as_above_nothing(grid: Results) -> None:
    x, y = scores.above(np.array([0.7, np.nan, 0.6]), 0.5, 1.0)
    assert x.tolist() == [0.5, 0.6, 0.7, 1.0]
    assert y == pytest.approx([2 / 3, 1 / 3, 0, 0])
    line = by_label(drawn("performance_profile", grid).figure.axes[0])["clip=none, kl=k3"]
    assert line[0][1:3] == [0.6, 0.7]
    assert line[1] == pytest.approx([2 / 3, 1 / 3, 0, 0])


def test_pass_at_k_and_where_it_started(grid: Results) -> None:
    lines = by_label(drawn("pass_at_k", grid).figure.axes[0])
    table = [arm_table(grid, f"eval/pass@{k}").set_index("arm")["final"] for k in (1, 2, 4)]
    assert lines["kl=k3"][1] == pytest.approx([column["kl=k3"] for column in table])
    assert lines["_start"] == ([1, 2, 4], pytest.approx([1 - 0.8**k for k in (1, 2, 4)]))


def lr_sweep() -> Results:
    runs = []
    for lr, final in (("1e-4", 0.6), ("1e-3", 0.7), ("1e-2", 0.1)):
        for seed in (0, 1):
            made = record("ppo", "none", seed, final + 0.02 * seed, lr)
            change: dict[str, Any] = {"arm": f"optimizer.lr={lr}", "baseline": False}
            if lr == "1e-4":
                change = {}
            factors = {"optimizer.lr": lr}
            runs.append(RunRecord(**{**made.__dict__, **change, "factors": factors}))
    return build(runs)


def test_sensitivity_on_a_logarithmic_axis() -> None:
    figure, caption = drawn("sensitivity", lr_sweep())
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert by_label(axes)["_mean"] == ([1e-4, 1e-3, 1e-2], pytest.approx([0.61, 0.71, 0.11]))
    assert "n = 2" in caption
    assert "cut at 0 and 1" in caption


def test_ladder_goes_up_by_what_is_added(grid: Results) -> None:
    arms = ("baseline", "kl=k3", "clip=none,kl=k3")
    chosen = Results(
        grid.runs[grid.runs["arm"].isin(arms)], grid.history[grid.history["arm"].isin(arms)]
    )
    axes = drawn("ladder", chosen).figure.axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["baseline", "+ kl=k3", "+ clip=none"]
    assert by_label(axes)["_path"][0] == pytest.approx([0.62, 0.82333, 0.65], abs=1e-4)
    assert texts(axes) == ["n = 3", "n = 3  +0.203", "n = 2  −0.173"]
    assert len(drawn("ladder", chosen).figure.axes) == 1
    pair = Results(grid.runs[grid.runs["arm"] != "clip=none,kl=k3"], grid.history)
    with pytest.raises(figures.NothingToDrawError, match="no ladder"):
        drawn("ladder", pair)


def one_run() -> Results:
    return build([record("ppo", "none", 0, 0.6)])


def tried(name: str, results: Results) -> figures.Drawn | str:
    """The figure, or the sentence that says why there is none; any other error is one."""
    judged = verdicts(results, "eval/accuracy") if len(results.runs) else FOREST.iloc[:0]
    try:
        return figures.draw(figures.Source(results, "eval/accuracy", judged), [name])[0][name]
    except ResultsError as error:
        return str(error)


@pytest.mark.parametrize("name", list(figures.FIGURES))
def test_every_figure_says_n_and_its_interval_or_why_there_is_none(
    name: str, grid: Results
) -> None:
    found = [tried(name, results) for results in (grid, one_run(), build([]))]
    for made in found:
        if isinstance(made, str):
            assert made.startswith((f"figures={name}: ", "metric=eval/accuracy: no run logged it"))
            assert "\n" not in made
            continue
        assert "n = " in made.caption
        assert "interval" in made.caption
        assert made.figure.axes
        assert not [axes for axes in made.figure.axes if axes.get_title()]
    assert isinstance(found[2], str)  # nothing is drawn of no runs
    assert isinstance(found[0], str) == (name in ("sensitivity", "advantage_by_difficulty"))


def many_arms() -> Results:
    """12 arms with names as long as they come, one run of them failed."""
    runs = []
    for i in range(12):
        long = f"advantage=leave_one_out_{i},aggregation=seq_mean_token_sum_norm,clip=two_sided"
        for seed in (0, 1):
            final = None if (i, seed) == (3, 1) else 0.3 + 0.02 * i + 0.01 * seed**2
            made = record("ppo", "k3", seed, final)
            arm = long if i else "baseline"
            change = {"arm": arm, "baseline": not i, "job_id": f"{arm}-{seed}"}
            runs.append(RunRecord(**{**made.__dict__, **change, "factors": {"clip": f"v{i}"}}))
    return build(runs)


def test_nothing_is_cut_or_covered_with_many_long_names() -> None:
    results = many_arms()
    judged = verdicts(results, "eval/accuracy", equivalence=0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a layout that cannot be made
        made, left_out = figures.draw(figures.Source(results, "eval/accuracy", judged))
        for name, (figure, _) in made.items():
            figure.canvas.draw()
            page = figure.bbox.padded(1)
            axes = [axes for axes in figure.axes if axes.get_visible()]
            shown = [t for a in axes for t in (a.xaxis.label, a.yaxis.label, *a.texts)]
            shown += [label for a in axes for label in a.get_yticklabels() if name in ROWS]
            for text in (t for t in shown if t.get_text()):
                box = text.get_window_extent()
                assert page.count_contains(box.corners()) == 4, (name, text.get_text())
            for legend in figure.legends:
                box = legend.get_window_extent()
                assert page.count_contains(box.corners()) == 4, name
                assert not any(box.overlaps(a.get_window_extent()) for a in axes), name
    assert set(left_out) == {"advantage_by_difficulty", "factorial", "ladder", "sensitivity"}


def test_arms_look_the_same_in_every_figure(grid: Results) -> None:
    looks = style.arm_styles(grid.runs)
    for name in ("learning_curves", "clip_shares", "pass_at_k", "performance_profile"):
        for line in drawn(name, grid).figure.axes[0].lines:
            for look in looks.values():
                if line.get_label() == look.label:
                    assert line.get_color() == look.colour


def test_dark_variant_gives_the_figure_back(grid: Results) -> None:
    figure, _ = drawn("factorial", grid)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    figure.canvas.draw()
    before = np.asarray(figure.canvas.buffer_rgba()).copy()  # type: ignore[attr-defined]
    with theme.dark(figure):
        figure.canvas.draw()
        dark = np.asarray(figure.canvas.buffer_rgba()).copy()  # type: ignore[attr-defined]
    figure.canvas.draw()
    assert (np.asarray(figure.canvas.buffer_rgba()) == before).all()  # type: ignore[attr-defined]
    assert before[2, 2, 0] == 255
    assert dark[2, 2, 0] < 30


def test_same_frames_same_bytes_with_their_dark_variants(grid: Results, tmp_path: Path) -> None:
    written = [
        figures.save({"kl_frontier": drawn("kl_frontier", grid)}, tmp_path / name, dark=True)
        for name in ("one", "two")
    ]
    assert [path.name.partition(".")[2] for path in written[0]] == [
        "png", "pdf", "svg", "dark.svg", "dark.png", "caption.txt",
    ]  # fmt: skip
    for one, two in zip(*written, strict=True):
        assert one.read_bytes() == two.read_bytes()
    svg = written[0][2].read_text()
    assert "@font-face" in svg
    assert "√KL to the reference" in svg
    assert b"/FontFile2" in written[0][1].read_bytes()


def test_names_of_figures(first: Results, output_dir: Path, tmp_path: Path) -> None:
    assert figures.chosen("[forest, entropy]") == (["forest", "entropy"], True)
    assert figures.chosen("['forest', \"entropy\", forest]") == (["forest", "entropy"], True)
    assert figures.chosen("all") == (list(figures.FIGURES), False)
    ask: dict[str, Any] = {"output_dir": output_dir, "sweep": "first", "out": tmp_path / "out"}
    with pytest.raises(ResultsError, match=r"^figures=forst: no such figure; .*nearest: forest$"):
        analyze(**ask, figures="forst")
    with pytest.raises(ResultsError, match=r"^figures=entropy: no run logged policy/entropy"):
        analyze(**ask, figures=["forest", "entropy"])
    with pytest.raises(ResultsError, match=r"^figures=\[\]: no name given; there is: "):
        analyze(**ask, figures="[]")
    with pytest.raises(ResultsError, match=r"^metric=\[\]: no name given; allowed: "):
        analyze(**ask, metric="[]")
    with pytest.raises(ResultsError, match=r"^dark=perhaps: neither true nor false"):
        analyze(**ask, dark="perhaps")
    assert not (tmp_path / "out").exists()
    judged = verdicts(first, "eval/accuracy")
    made, left_out = figures.draw(figures.Source(first, "eval/accuracy", judged))
    assert set(made) | set(left_out) == set(figures.FIGURES)
    assert left_out["entropy"].startswith("figures=entropy: no run logged policy/entropy")


def test_summary_names_what_was_left_out(output_dir: Path, tmp_path: Path) -> None:
    made = analyze(output_dir=output_dir, sweep="first", out=tmp_path, figures="final_comparison")
    assert "nothing to draw" not in summary(made)
    object.__setattr__(made, "left_out", {"entropy": "figures=entropy: no run logged it"})
    assert "nothing to draw for entropy" in summary(made)


def test_the_gallery_shows_every_figure_in_small_files() -> None:
    folder = Path(__file__).parents[2] / "experiments" / "gallery"
    page = (folder / "README.md").read_text(encoding="utf-8")
    pictures = {path.name for path in folder.glob("*.png")}
    assert {f"{name}.png" for name in figures.FIGURES} == pictures - {"forest.dark.png"}
    assert all(f"]({name}.png)" in page for name in figures.FIGURES)
    assert sum(path.stat().st_size for path in folder.glob("*.png")) < 1.5e6


def test_every_figure_has_its_script() -> None:
    folder = Path(__file__).parents[2] / "analysis"
    for name in figures.FIGURES:
        assert f'draw_script("{name}", sys.argv[1:])' in (folder / f"{name}.py").read_text("utf-8")
