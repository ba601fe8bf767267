"""Designs: the points of each by hand, and what holds of every one whatever the factors."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from grpolab.component import ConfigError, component, names
from grpolab.config import job_id
from grpolab.sweep.compose import Command, Sweep, expand
from grpolab.sweep.factors import Interval, Point, as_override, matching
from grpolab.sweep.fraction import Fraction, smallest
from grpolab.sweep.manifest import members

TWO = {"clip": ["ppo", "cispo"], "kl": ["none", "k3"]}
THREE: dict[str, list[str]] = TWO | {"x": ["0", "1"]}


def points(name: str, factors: Any, baseline: Any = None, **own: Any) -> list[str]:
    """A design's points, the values of each in the order of the factors."""
    found: list[Point] = component("design", name, **own)(factors, baseline)
    assert all(list(p) == list(found[0]) for p in found)
    return [" ".join(p.values()) for p in found]


def refused(name: str, factors: Any, baseline: Any = None, **own: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        component("design", name, **own)(factors, baseline)
    return str(caught.value)


# -- by hand ---------------------------------------------------------------------------------------


def test_product() -> None:
    found = points("product", {"clip": ["ppo", "cispo"], "seed": ["0", "1"], "kl": ["a", "b"]})
    assert found == [
        "ppo 0 a", "ppo 0 b", "ppo 1 a", "ppo 1 b",
        "cispo 0 a", "cispo 0 b", "cispo 1 a", "cispo 1 b",
    ]  # fmt: skip


def test_one_factor() -> None:
    factors = {"clip": ["ppo", "cispo", "gspo"], "kl": ["none", "k3"]}
    assert points("one_factor", factors) == ["ppo none", "cispo none", "gspo none", "ppo k3"]
    moved = points("one_factor", factors, {"clip": "gspo", "kl": "k3"})
    assert moved == ["gspo k3", "ppo k3", "cispo k3", "gspo none"]
    beside = points("one_factor", {"clip": ["cispo", "gspo"], "kl": ["k3"]}, {"clip": "ppo"})
    assert beside == ["ppo k3", "cispo k3", "gspo k3"]


def test_leave_one_out() -> None:
    assert points("leave_one_out", THREE) == [
        "ppo none 0", "cispo k3 1", "ppo k3 1", "cispo none 1", "cispo k3 0",
    ]  # fmt: skip
    # of two factors, the whole without one is the other alone
    assert points("leave_one_out", TWO) == ["ppo none", "cispo k3", "ppo k3", "cispo none"]
    assert points("leave_one_out", {"clip": ["ppo", "cispo"]}) == ["ppo", "cispo"]
    moved = points("leave_one_out", TWO, {"clip": "cispo"})
    assert moved == ["cispo none", "ppo k3", "cispo k3", "ppo none"]


def test_ladder() -> None:
    assert points("ladder", THREE) == ["ppo none 0", "cispo none 0", "cispo k3 0", "cispo k3 1"]
    assert points("ladder", THREE, reverse=True) == [
        "ppo none 0", "ppo none 1", "ppo k3 1", "cispo k3 1",
    ]  # fmt: skip
    assert points("ladder", TWO, {"kl": "k3"}) == ["ppo k3", "cispo k3", "cispo none"]


def test_zip() -> None:
    factors = {"clip": ["ppo", "cispo", "ppo"], "x": ["1", "2", "3"]}
    assert points("zip", factors) == ["ppo 1", "cispo 2", "ppo 3"]
    assert points("zip", factors, {"x": 3}) == ["ppo 3", "ppo 1", "cispo 2"]
    assert points("zip", factors, {"clip": "gspo"}) == ["gspo 1", "ppo 1", "cispo 2", "ppo 3"]


def test_fractional_factorial_of_three_at_resolution_three() -> None:
    # I = ABC with + for the baseline: an even number of factors is at the other choice
    found = points("fractional_factorial", THREE, resolution=3)
    assert found == ["ppo none 0", "ppo k3 1", "cispo none 1", "cispo k3 0"]


def test_seeds_are_crossed_with_every_point() -> None:
    seeds = {"seed": ["0", "1"]}
    after = points("ladder", TWO | seeds)
    assert after == [
        "ppo none 0", "ppo none 1", "cispo none 0", "cispo none 1", "cispo k3 0", "cispo k3 1",
    ]  # fmt: skip
    before = points("ladder", seeds | TWO)
    assert before == [
        "0 ppo none", "0 cispo none", "0 cispo k3", "1 ppo none", "1 cispo none", "1 cispo k3",
    ]  # fmt: skip
    assert points("zip", {"clip": ["a", "b", "c"]} | seeds)[:2] == ["a 0", "a 1"]
    assert points("one_factor", seeds) == ["0", "1"]


# -- draws -----------------------------------------------------------------------------------------


def test_random_draws_without_repetition() -> None:
    factors = {"a": ["0", "1", "2"], "b": ["0", "1", "2", "3"]}
    every = points("product", factors)
    for seed in range(5):
        found = points("random", factors, n=12, seed=seed)
        assert sorted(found) == sorted(every)
        assert len(set(points("random", factors, n=7, seed=seed))) == 7
    assert points("random", factors, n=5) == points("random", factors, n=5)
    assert points("random", factors, n=5) != points("random", factors, n=5, seed=1)
    assert "design.n: 13 given; allowed: at most 12" in refused("random", factors, n=13)


def test_random_puts_a_baseline_first_that_is_asked_for() -> None:
    factors = {"a": ["0", "1", "2"], "b": ["0", "1", "2", "3"]}
    for seed in range(10):
        found = points("random", factors, {"b": 2}, n=11, seed=seed)
        assert found[0] == "0 2"
        assert len(found) == len(set(found)) == 12
    assert "at most 11" in refused("random", factors, {"b": 2}, n=12)


def test_random_draws_from_intervals() -> None:
    factors = {
        "plain": Interval(0.0, 2.0), "log": Interval(1e-6, 1e-2, log=True),
        "whole": Interval(1, 4, whole=True),
    }  # fmt: skip
    rows = [p.split() for p in points("random", factors, n=2000)]
    plain, log = ([float(row[i]) for row in rows] for i in (0, 1))
    assert {row[2] for row in rows} == {"1", "2", "3"}
    assert all(0 <= x < 2 for x in plain)
    assert all(1e-6 <= x < 1e-2 for x in log)
    # a quarter of the draws in each quarter (of the logarithm); 5 standard deviations are 97
    assert abs(sum(x < 0.5 for x in plain) - 500) < 97
    assert abs(sum(x < 1e-5 for x in log) - 500) < 97
    digits = [len(t.partition("e")[0].replace(".", "").lstrip("0")) for r in rows for t in r]
    assert sum(d > 4 for d in digits) <= 3  # beside the ends of an interval


def test_random_says_when_an_interval_has_too_few_numbers() -> None:
    factors = {"whole": Interval(0, 3, whole=True)}
    assert sorted(points("random", factors, n=3)) == ["0", "1", "2"]
    assert "at most 3" in refused("random", factors, n=4)


def test_latin_hypercube_has_one_point_in_each_part() -> None:
    factors = {"a": Interval(0.0, 1.0), "b": Interval(1e-4, 1e0, log=True), "c": ["x", "y"]}
    rows = [p.split() for p in points("latin_hypercube", factors, n=8, seed=3)]
    assert sorted(int(float(a) * 8) for a, _, _ in rows) == list(range(8))
    # the decades of b, two points in each
    assert sorted(sum(float(b) >= 10.0**-k for k in (3, 2, 1)) for _, b, _ in rows) == [
        0, 0, 1, 1, 2, 2, 3, 3,
    ]  # fmt: skip
    assert sorted(c for _, _, c in rows) == ["x"] * 4 + ["y"] * 4


def test_latin_hypercube_runs_coinciding_points_once() -> None:
    found = points("latin_hypercube", TWO, n=30)
    assert sorted(found) == sorted(points("product", TWO))


def test_an_interval_s_baseline_is_given_or_missing() -> None:
    factors = {"lr": Interval(0.1, 1.0), "clip": ["ppo", "cispo"]}
    assert points("random", factors, {"lr": 0.05}, n=2)[0] == "0.05 ppo"
    assert len(points("random", factors, n=2)) == 2
    message = refused("random", factors, {"clip": "ppo"}, n=2)
    assert message.startswith("tracking.baseline.lr: missing")


# -- refused ---------------------------------------------------------------------------------------


def test_what_does_not_fit_the_design() -> None:
    three = {"clip": ["ppo", "cispo", "gspo"]}
    for name in ("ladder", "leave_one_out", "fractional_factorial"):
        message = refused(name, three)
        assert message.startswith(f"clip: ppo, cispo, gspo given with design={name}")
        assert "two choices" in message
    assert "2 of clip, 3 of x" in refused("zip", {"clip": ["a", "b"], "x": ["1", "2", "3"]})
    many = {f"f{i}": ["0", "1"] for i in range(13)}
    assert "at most 12" in refused("fractional_factorial", many)
    for name in set(names("design")) - {"random", "latin_hypercube"}:
        assert "lr: an interval given" in refused(name, {"lr": Interval(0.0, 1.0)})
    assert "seed: an interval" in refused("random", {"seed": Interval(0.0, 9.0)})
    assert "goes up" in refused("random", {"lr": Interval(1.0, 0.1)})
    assert "above 0" in refused("random", {"lr": Interval(0.0, 0.1, log=True)})


# -- whatever the factors --------------------------------------------------------------------------

KEYS = st.sampled_from(["clip", "kl", "steps", "x", "y"])
FACTORS = st.dictionaries(KEYS, st.lists(st.sampled_from("abcd"), min_size=1, max_size=4))
TWO_LEVELS = st.integers(0, 9).map(lambda k: {f"f{i}": ["low", "high"] for i in range(k)})


def baseline_of(factors: dict[str, list[str]], data: st.DataObject) -> dict[str, str]:
    """A baseline of some of the factors."""
    keys = [k for k in factors if data.draw(st.booleans())]
    return {k: data.draw(st.sampled_from(factors[k])) for k in keys}


@given(
    st.sampled_from(["one_factor", "random", "latin_hypercube", "product"]), FACTORS, st.data(),
    st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_no_point_twice_and_the_baseline_inside(
    name: str, factors: dict[str, list[str]], data: st.DataObject, seeds: list[int]
) -> None:
    asked = baseline_of(factors, data)
    if name == "product":  # which takes what it is given, also twice
        factors = {k: list(dict.fromkeys(v)) for k, v in factors.items()}
    own = {"n": 1} if name in ("random", "latin_hypercube") else {}
    combinations = len(set(itertools.product(*factors.values())))
    assume(name != "random" or combinations > 1)
    every = factors | {"seed": [str(s) for s in seeds]}
    found = component("design", name, **own)(every, asked)
    rows = [tuple(p.values()) for p in found]
    assert len(set(rows)) == len(rows)
    assert all(p[k] in every[k] for p in found for k in p)
    start = {k: asked.get(k, v[0]) for k, v in factors.items()}
    arms = [{k: v for k, v in p.items() if k != "seed"} for p in found]
    if own and not asked:
        return  # nobody asked for the baseline
    assert start in arms
    assert sorted(int(p["seed"]) for p, a in zip(found, arms, strict=True) if a == start) == sorted(
        seeds
    )


@given(TWO_LEVELS, st.data(), st.integers(3, 5))
@settings(deadline=None, max_examples=40)
def test_a_fractional_factorial_is_balanced_and_orthogonal(
    factors: dict[str, list[str]], data: st.DataObject, resolution: int
) -> None:
    asked = baseline_of(factors, data)
    found = component("design", "fractional_factorial", resolution=resolution)(factors, asked)
    start = {k: asked.get(k, "low") for k in factors}
    assert found[0] == start
    signs = [[1 if p[k] == start[k] else -1 for k in factors] for p in found]
    assert len({tuple(s) for s in signs}) == len(signs)
    columns = list(zip(*signs, strict=True))
    # any resolution − 1 columns hold every combination equally often: no effect of fewer factors
    # than a word has is the same in all runs
    for size in range(1, min(resolution, len(columns) + 1)):
        for chosen in itertools.combinations(columns, size):
            product = [1] * len(found)
            for column in chosen:
                product = [a * b for a, b in zip(product, column, strict=True)]
            assert sum(product) == 0


@given(TWO_LEVELS, st.booleans())
@settings(deadline=None, max_examples=20)
def test_ladders_and_leave_one_out_change_one_factor_at_a_time(
    factors: dict[str, list[str]], reverse: bool
) -> None:
    rungs = component("design", "ladder", reverse=reverse)(factors)
    assert len(rungs) == len(factors) + 1
    for before, after in itertools.pairwise(rungs):
        assert sum(before[k] != after[k] for k in factors) == 1
    around = component("design", "leave_one_out")(factors)
    whole = dict.fromkeys(factors, "high")
    assert whole in around
    assert dict.fromkeys(factors, "low") in around
    assert all({**whole, k: "low"} in around for k in factors)
    assert len(around) <= len(factors) + 2


# -- fractions -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factors", "asked", "runs", "resolution"),
    [  # Box, Hunter and Hunter's table of the fewest runs
        (3, 3, 4, 3), (4, 4, 8, 4), (5, 3, 8, 3), (5, 4, 16, 5), (5, 5, 16, 5), (6, 3, 8, 3),
        (6, 4, 16, 4), (6, 5, 32, 6), (7, 3, 8, 3), (7, 4, 16, 4), (7, 5, 64, 7), (8, 4, 16, 4),
        (8, 5, 64, 5), (9, 5, 128, 6), (10, 5, 128, 5), (11, 3, 16, 3), (11, 5, 128, 5),
        (12, 5, 256, 6), (3, 4, 8, None), (1, 3, 2, None), (0, 3, 1, None),
    ],
)  # fmt: skip
def test_the_fewest_runs(factors: int, asked: int, runs: int, resolution: int | None) -> None:
    found = smallest(factors, asked)
    assert (len(found.runs()), found.resolution, found.factors) == (runs, resolution, factors)


def test_aliases_of_the_half_fraction_of_four() -> None:
    a, b, c, d = (1 << i for i in range(4))
    found = Fraction(3, (a | b | c,))  # I = ABCD
    assert found.aliases() == {
        a | b: [c | d], a | c: [b | d], a | d: [b | c],
        b | c: [a | d], b | d: [a | c], c | d: [a | b],
    }  # fmt: skip


def test_aliases_are_columns_that_are_equal() -> None:
    for k, resolution in ((5, 3), (6, 4), (7, 3)):
        found = smallest(k, resolution)
        signs = [[-1 if on else 1 for on in run] for run in found.runs()]

        def column(effect: int, signs: list[list[int]] = signs) -> tuple[int, ...]:
            rows = []
            for run in signs:
                product = 1
                for i, sign in enumerate(run):
                    product *= sign if effect >> i & 1 else 1
                rows.append(product)
            return tuple(rows)

        effects = [1 << i for i in range(k)]
        effects += [a | b for a, b in itertools.combinations(effects, 2)]
        equal = {e: [o for o in effects if o != e and column(o) == column(e)] for e in effects}
        assert found.aliases() == {e: others for e, others in equal.items() if others}


def test_the_defining_relation_in_words() -> None:
    design = component("design", "fractional_factorial", resolution=3)
    told = design.about(THREE | {"seed": ["0", "1"]})
    assert told[0] == "4 of 8 combinations of 3 factors: 2^(3-1), resolution III."
    assert told[1].startswith("Defining relation: I = clip·kl·x (")
    assert [t.rpartition(": ")[2] for t in told[2:]] == [
        "clip = kl·x.",
        "kl = clip·x.",
        "x = clip·kl.",
    ]
    (all_of_them,) = component("design", "fractional_factorial").about(THREE)
    assert all_of_them.startswith("All 8 combinations")


@pytest.mark.parametrize("name", names("design"))
def test_every_design_says_what_it_is(name: str) -> None:
    own = {"n": 2} if name == "random" else {}
    told = component("design", name, **own).about(TWO | {"seed": ["0", "1"]})
    assert all(t.endswith((".", ")")) for t in told)
    assert told


# -- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "null"), (False, "False"), (0.2, "0.2"), (1e-5, "1e-05"), ("k3", "k3"),
     ("a b", "'a b'"), ("true", "'true'"), ("it's", "'it\\'s'"), (["a", 1], "[a,1]"),
     ({"r": 16}, "{r:16}")],
)  # fmt: skip
def test_yaml_values_as_overrides(value: Any, text: str) -> None:
    assert as_override(value) == text


def test_a_yaml_value_finds_its_override() -> None:
    assert matching(0.2, ["0.1", "0.20"]) == "0.20"
    assert matching("a: b", ["x", "a\\: b"]) == "a\\: b"
    assert matching("a b", ["'a b'"]) == "'a b'"
    assert matching(None, ["1", "null"]) == "null"
    assert matching("ppo", ["cispo"]) is None


# -- through the command line ----------------------------------------------------------------------


def jobs_of(*overrides: str) -> Sweep:
    return expand(Command(list(overrides), multirun=True))


def arms_of(sweep: Sweep) -> list[tuple[str, int]]:
    """(arm, seed) of each job."""
    found = members(sweep, sweep.jobs[0].raw["tracking"]["baseline"])
    assert len({m.job_id for m in found}) == len(found)
    return [(m.arm, m.seed) for m in found]


def test_a_design_chooses_the_jobs() -> None:
    sweep = jobs_of("design=one_factor", "clip=ppo,cispo,gspo", "steps=3", "kl=none,k3", "seed=0,1")
    arms = ["baseline", "clip=cispo", "clip=gspo", "kl=k3"]
    assert arms_of(sweep) == [(arm, seed) for arm in arms for seed in (0, 1)]
    assert all(job.raw["steps"] == 3 for job in sweep.jobs)
    assert sweep.factors == ["clip", "kl", "seed"]
    assert sweep.jobs[2].overrides == (
        "design=one_factor", "clip=cispo", "steps=3", "kl=none", "seed=0",
    )  # fmt: skip


def test_the_design_is_no_part_of_a_job() -> None:
    one = jobs_of("design=ladder", "clip=ppo,cispo", "kl=none,k3")
    every = jobs_of("clip=ppo,cispo", "kl=none,k3")
    assert {job_id(j.raw) for j in one.jobs} < {job_id(j.raw) for j in every.jobs}


def test_the_product_is_what_hydra_makes() -> None:
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    words = [
        "clip=ppo,cispo", "seed=range(0,3)", "+tracking.baseline.clip=ppo", "steps=7",
        "task.template='a {a}',\"b, {a}\"", "kl=choice(none,k3)",
        "steps=5,6",
    ]  # fmt: skip
    (batch,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(words), None)
    assert [list(job.overrides) for job in jobs_of(*words).jobs] == batch


def test_a_baseline_beside_the_listed_choices() -> None:
    sweep = jobs_of(
        "design=one_factor", "clip=cispo,gspo", "clip.masks=[],[truncated]",
        "tracking.baseline={clip: ppo}",
    )  # fmt: skip
    arms = [arm for arm, _ in arms_of(sweep)]
    assert arms == ["baseline", "clip=cispo", "clip=gspo", "clip.masks=[truncated]"]


def test_intervals_of_hydra_s_grammar() -> None:
    sweep = jobs_of(
        "design=random", "design.n=6", "optimizer.lr=tag(log,interval(1e-6,1e-3))",
        "sampler.group_size=int(interval(2,9))", "clip=ppo,cispo",
    )  # fmt: skip
    assert len(sweep.jobs) == 6
    assert all(1e-6 <= j.raw["optimizer"]["lr"] < 1e-3 for j in sweep.jobs)
    assert all(j.raw["sampler"]["group_size"] in range(2, 9) for j in sweep.jobs)
    arms = [arm for arm, _ in arms_of(sweep)]
    assert arms[0] == "baseline"
    assert all("optimizer.lr=" in arm for arm in arms[1:])


def test_a_baseline_with_intervals_comes_first() -> None:
    sweep = jobs_of(
        "design=latin_hypercube", "design.n=3", "optimizer.lr=interval(1e-6,1e-3)",
        "tracking.baseline={optimizer.lr: 2e-4}", "seed=3,4",
    )  # fmt: skip
    assert [j.raw["optimizer"]["lr"] for j in sweep.jobs[:2]] == [2e-4, 2e-4]
    found = arms_of(sweep)
    assert len(found) == 8
    assert found[:2] == [("baseline", 3), ("baseline", 4)]


STUDY = """
# @package _global_
defaults:
  - override /design: ladder
design:
  reverse: true
tracking:
  baseline: {kl: k3}
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      clip: ppo,cispo
      kl: none,k3
      seed: 0,1
"""


def test_an_experiment_file_carries_its_design(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(STUDY)

    def arms(*more: str) -> list[str]:
        command = Command(["experiment=mine", *more], config_dir=str(tmp_path))
        return [arm for arm, _ in arms_of(expand(command))]

    assert arms("seed=0") == ["baseline", "kl=none", "clip=cispo,kl=none"]
    assert arms("seed=0", "design.reverse=false") == [
        "baseline",
        "clip=cispo",
        "clip=cispo,kl=none",
    ]
    assert arms("seed=0,1", "clip=ppo") == ["baseline", "baseline", "kl=none", "kl=none"]
    assert arms("seed=0", "kl=k3") == ["baseline", "clip=cispo"]


@pytest.mark.parametrize(
    ("words", "start"),
    [
        (["clip=ppo,cispo", "design=laddr"], "design: unknown choice 'laddr'"),
        (["clip=ppo,cispo", "design=ladder,zip"], "design: several values"),
        (["clip=ppo,cispo", "design=random", "design.n=1,2"], "design.n: several values"),
        (["clip=ppo,cispo", "design=random", "design.n=0"], "design.n: 0 is out of bounds"),
        (["clip=ppo,cispo", "design=random", "design.m=0"], "design.m: unknown setting"),
        (["optimizer.lr=interval(0,1)"], "optimizer.lr: an interval given with design=product"),
        (["clip=ppo,cispo", "kl=none,k1,k3", "design=zip"], "design: zip given with 2 of clip"),
        (["clip=glob(ppo"], "command line:"),
    ],
)
def test_refused_on_the_command_line(words: list[str], start: str) -> None:
    with pytest.raises(ConfigError) as caught:
        jobs_of(*words)
    assert str(caught.value).startswith(start)
