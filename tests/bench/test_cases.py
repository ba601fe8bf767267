"""What `grpolab bench` accepts, and that a case is the work it says it is."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from grpolab.bench.cases import CASES, PEERS, WORK_KEYS, parse
from grpolab.bench.recipe import bind, filler, load_examples, step_examples, synthetic
from grpolab.cli import main
from grpolab.cli.bench import usage
from grpolab.component import ConfigError
from grpolab.config import bind_run
from grpolab.policy.policy import Encoder
from grpolab.sweep.compose import expand, parse_command


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["case=tinny"], r"^case: 'tinny' given; allowed: tiny, .*; did you mean tiny\?"),
        (["steps=3"], r"^case: missing; allowed: tiny, smollm2"),
        (["case=tiny", "peer=tlr"], r"^peer: 'tlr' .* allowed: trl, none; did you mean trl\?"),
        (["case=tiny", "stesp=3"], r"^stesp: unknown key \(given 'stesp=3'\).*mean steps\?"),
        (["case=tiny", "steps"], r"^steps: unknown key \(given 'steps'\)"),
        (["case=tiny", "steps=0"], r"^steps: 0 is out of bounds; allowed: a whole number ≥ 1"),
        (["case=tiny", "dtype=float23"], r"^dtype: .*allowed: float32, .*did you mean float32\?"),
        (["case=tiny", "shrink=2"], r"^shrink: 2 given with case=tiny"),
        (["case=tiny", "out=x.csv"], r"^out: 'x.csv' given; allowed: .*\.json"),
        (["case=tiny", "points=group"], r"^points: given with case=tiny"),
        (["case=tiny", "foo.bar=1"], r"^foo.bar: unknown key"),
    ],
)
def test_a_bad_word_is_named(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["case=tiny", "hardware.thraeds=1"], "hardware.thraeds: unknown setting"),
        (["case=tiny", "clip=pppo"], "clip: unknown clip 'pppo'"),
        (["case=growth", "points=grup", "model.name=tiny"], "points: 'grup' given"),
        (["case=tiny", "peer_rows=3"], "peer_rows: 3 given; allowed: a divisor"),
        (["case=sampling", "peer=vllm", "peer_python=/nowhere/python"], "peer_python: '/nowhere"),
    ],
)
def test_a_bad_setting_is_refused_before_anything_runs(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *words]) == 2
    assert capsys.readouterr().err.startswith(f"grpolab: {message}")


def test_keys_are_read_as_their_types() -> None:
    plan = parse(["case=tiny", "lr=1e-5", "forced=true", "threads=null", "sampler.top_k=5"])
    assert (plan.work.lr, plan.work.forced, plan.work.threads) == (1e-5, True, None)
    assert plan.overrides == {"sampler.top_k": 5}


def test_help_names_cases_peers_and_keys_and_loads_nothing_heavy() -> None:
    text = usage()
    assert all(name in text for name in (*CASES, *PEERS, *WORK_KEYS))
    code = (
        "import sys; from grpolab.cli import main; main(['bench', '--help']);"
        "assert not {'torch', 'transformers', 'trl', 'pydantic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_learn_is_the_experiment(tmp_path: Path) -> None:
    """The recipe written down for the benchmark is what experiment=smollm2_addition composes."""
    raw = expand(parse_command(["experiment=smollm2_addition"])).jobs[0].raw
    experiment, own = bind_run(raw), bind(CASES["learn"].work, {}, tmp_path)
    free = {"tracking", "hardware", "eval", "study", "steps", "raw"}
    for field in (f.name for f in fields(experiment) if f.name not in free):
        mine, theirs = getattr(own, field), getattr(experiment, field)
        assert mine == theirs, field
    assert CASES["learn"].work.steps == experiment.steps


def test_overrides_reach_the_run(tmp_path: Path) -> None:
    plan = parse(["case=tiny", "sampler=hf", "hardware.tokens_per_microbatch=64", "rewards=task"])
    run = bind(plan.work, plan.overrides, tmp_path)
    assert run.sampler.name == "hf"
    assert run.sampler.group_size == 16  # the component changes, the work does not
    assert run.hardware.tokens_per_microbatch == 64
    assert run.reward.name == "task"


def test_synthetic_rewards_never_agree_within_a_group_and_never_change() -> None:
    texts = ["same"] * 8
    scores = synthetic(texts, [])
    assert len(set(scores)) == 8
    assert all(0 <= s < 1 for s in scores)
    assert scores == synthetic(texts, [])


def test_filler_prompts_have_the_length_asked_for(tmp_path: Path) -> None:
    work = parse(["case=tiny", "prompt_tokens=37"]).work
    run = bind(work, {}, tmp_path)
    encoder = Encoder(run.model)
    examples = load_examples(run, work, encoder)
    assert {len(ids) for ids in encoder.encode([e.prompt for e in examples.train])} == {37}
    assert len({e.prompt for e in examples.train}) == len(examples.train)
    assert filler(encoder, 37, 3) == examples.train[3].prompt


def test_both_sides_read_the_prompts_in_the_order_of_the_run(tmp_path: Path) -> None:
    from grpolab.policy.policy import Policy
    from grpolab.training.collect import Collector

    work = parse(["case=tiny", "prompts=3", "task.train_size=7"]).work
    run = bind(work, {"task.train_size": 7}, tmp_path)
    encoder = Encoder(run.model)
    examples = load_examples(run, work, encoder)
    collector = Collector(run, Policy(encoder, run.hardware), examples)
    ours = [examples.train[i] for step in range(4) for i in collector.prompt_indices(step)]
    assert step_examples(run, examples, 4) == ours
