"""The off-policy view: its estimate of the truth, the ratios, and who makes the updates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from grpolab.cli import main
from grpolab.config import Run, bind_run
from grpolab.policy.policy import Policy
from grpolab.probe.arms import Arm
from grpolab.probe.offpolicy import Truth, cosine_error
from grpolab.probe.records import Probe
from grpolab.probe.session import probe
from grpolab.probe.stale import FreshLearner, ratio_histogram
from grpolab.sweep.compose import expand, parse_command
from grpolab.sweep.preflight import check
from grpolab.tracking.folder import RunFolder
from grpolab.training.loop import Trainer

BASE = (
    "hardware.device=cpu", "hardware.threads=1", "tracking=jsonl", "prompts_per_step=4",
    "sampler.group_size=8", "sampler.max_new_tokens=6", "eval.every=0", "eval.prompts=2",
    "eval.samples=0", "steps=4", "optimizer.lr=1e-3",
)  # fmt: skip
ARMS = ["clip=ppo", "clip=none", "clip=reinforce"]


def test_the_truth_of_two_batches_by_hand() -> None:
    """T = (1, 0) and (1, 2): ⟨T₁, T₂⟩ = 1, mean square 3; g = (2, 0) points along (1, 0)."""
    batches = np.array([[1.0, 0.0], [1.0, 2.0]])
    truth = Truth.of(batches @ batches.T)
    assert (truth.square, truth.single) == (1.0, 3.0)
    seen = truth.seen_from(2.0, 2.0)
    assert seen["cosine_to_true"] == pytest.approx(1.0)
    assert seen["length_along_true"] == pytest.approx(2.0)
    assert seen["fresh_cosine"] == pytest.approx(3**-0.5)
    assert Truth.of(np.array([[1.0, -0.5], [-0.5, 1.0]])).seen_from(1.0, 1.0) == {}


def test_the_truth_is_unbiased_and_its_error_is_its_spread() -> None:
    source = np.random.default_rng(0)
    mean, g = np.array([2.0, -1.0, 0.5]), np.array([1.0, 1.0, 0.0])
    wanted = g @ mean / np.linalg.norm(g) / np.linalg.norm(mean)
    squares, cosines, errors = [], [], []
    for _ in range(3000):
        batches = mean + source.normal(size=(6, 3))
        inner = batches @ batches.T
        truth = Truth.of(inner)
        squares.append(truth.square)
        seen = truth.seen_from(float(np.linalg.norm(g)), float((batches @ g).mean()))
        if seen:
            cosines.append(seen["cosine_to_true"])
            errors.append(cosine_error(float(np.linalg.norm(g)), batches @ g, inner))
    assert np.mean(squares) == pytest.approx(mean @ mean, rel=0.02)
    assert np.mean(cosines) == pytest.approx(wanted, abs=0.03)
    assert np.nanmedian(errors) == pytest.approx(np.std(cosines), rel=0.3)


def test_a_histogram_by_hand() -> None:
    d = torch.tensor([[0.0, 0.4], [-0.2, 9.0], [0.1, -0.1]])
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    found = ratio_histogram({0: (torch.zeros_like(d), mask), 3: (d, mask)})
    sums = found.groupby(["updates", "level"])["share"].sum()
    assert sums.tolist() == pytest.approx([1.0] * 4)

    def at(level: str, value: float) -> float:
        own = found[(found["updates"] == 3) & (found["level"] == level)]
        value = min(value, own["low"].max())  # what lies beyond the last bin is in it
        return float(own.loc[(own["low"] <= value) & (value < own["high"]), "share"].iloc[0])

    assert at("token", 0.4) == pytest.approx(1 / 5)  # 9.0 is masked
    assert at("token", -0.2) == pytest.approx(1 / 5)
    assert at("token", 0.25) == 0
    assert at("sequence", 0.4) == pytest.approx(1 / 3)
    assert at("sequence", 0.0) == pytest.approx(1 / 3)  # 0.1 − 0.1


def composed(*overrides: str) -> Run:
    return bind_run(expand(parse_command([*BASE, *overrides])).jobs[0].raw)


def test_fresh_updates_are_training_steps(tmp_path: Path) -> None:
    """One update by=fresh from step 0 on leaves the weights that training's step 1 would."""
    run = composed("clip=ppo")
    ready = check(run)
    trainer = Trainer(run, ready.encoder, ready.examples, RunFolder(tmp_path))
    trainer.step = 1
    trainer._train_step()
    policy = Policy(ready.encoder, run.hardware, seed=run.seed)
    before = {n: p.detach().clone() for n, p in policy.trainable().items()}
    learner = FreshLearner(Arm("ppo", run), policy, None, ready.examples, None)
    learner.to(1, None, 0, 0.0)  # type: ignore[arg-type]  # the batch itself is not learnt from
    wanted = trainer.policy.trainable()
    for name, parameter in policy.trainable().items():
        assert torch.equal(parameter, wanted[name]), name
    assert any(not torch.equal(p, before[n]) for n, p in policy.trainable().items())


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Probe, Path]]:
    found = {}
    for by in ("batch", "fresh"):
        out = tmp_path_factory.mktemp(by)
        asked: dict[str, Any] = {"staleness": [0, 2], "stale_by": by, "fresh": 3}
        # figures of one of them
        found[by] = (probe(ARMS, overrides=BASE, **asked, out=out if by == "fresh" else None), out)
    return found


def test_both_views_begin_alike_and_part(views: dict[str, tuple[Probe, Path]]) -> None:
    starts, ends = {}, {}
    for by, (seen, _) in views.items():
        table = seen.staleness
        now, later = table[table["updates"] == 0], table[table["updates"] == 2]
        assert len(now) == len(later) == len(ARMS)
        assert now["sequence_ess"].eq(1).all()
        assert now["clip_share"].eq(0).all()
        np.testing.assert_allclose(now["cosine_to_unbiased"].to_numpy(), 1, atol=1e-6)
        # one gradient for all at r = 1, so one cosine to the truth
        assert np.ptp(now["cosine_to_true"].to_numpy()) < 1e-6
        assert now["cosine_to_true_error"].gt(0).all()
        assert later["ratio_std"].gt(0).all()
        assert later["sequence_ess"].lt(1).all()
        starts[by], ends[by] = now["cosine_to_true"].tolist()[0], later["norm"].tolist()
    assert starts["batch"] == pytest.approx(starts["fresh"], abs=1e-6)
    assert ends["batch"] != ends["fresh"]


def test_ratios_are_written_and_drawn(views: dict[str, tuple[Probe, Path]]) -> None:
    for by, (seen, out) in views.items():
        table = seen.ratios
        assert table.groupby(["updates", "level"])["share"].sum().round(9).eq(1).all()
        now = table[(table["updates"] == 0) & (table["share"] > 0)]
        assert ((now["low"] <= 0) & (now["high"] > 0)).all()  # nothing has moved
        later = table[(table["updates"] == 2) & (table["share"] > 0)]
        assert len(later) > 10
        if by == "batch":
            continue
        assert (out / "ratios.csv").exists()
        for name in ("ratios", "staleness", "tokens"):
            assert (out / "figures" / f"{name}.png").stat().st_size > 5000


def test_what_a_batch_cannot_tell_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for word, sentence in (
        ("stale_by=frehs", "stale_by: 'frehs' given; allowed: batch, fresh; did you mean fresh?"),
        ("fresh=1", "fresh: 1 given; allowed: 0, or 2 or more."),
        ("fresh=-2", "fresh: '-2' given; allowed: 0, or 2 or more."),
        ("staleness=[0,x]", "staleness: '[0,x]' given; allowed: a list of whole numbers"),
    ):
        words = ["probe", *BASE, "clip=ppo,none", word, f"out={tmp_path / 'x'}"]
        assert main(words) == 2
        assert sentence in capsys.readouterr().err, word
    assert not (tmp_path / "x").exists()
