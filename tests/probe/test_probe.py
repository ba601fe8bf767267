"""The probe's gradients are training's, and what is known to be equal comes out equal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from grpolab.cli import main
from grpolab.component import ConfigError
from grpolab.config import Run, job_id
from grpolab.policy.locate import TINY
from grpolab.probe import measures
from grpolab.probe.arms import parse_variants
from grpolab.probe.gradients import span
from grpolab.probe.page import write_page
from grpolab.probe.records import Probe
from grpolab.probe.session import probe
from grpolab.sweep.preflight import check
from grpolab.tracking.folder import RunFolder
from grpolab.training.loop import Trainer

if TYPE_CHECKING:
    from tests.probe.first_gradients import BASE, Stopped, assert_same_gradients, composed
else:
    from first_gradients import BASE, Stopped, assert_same_gradients, composed

SHORT = ("sampler.max_new_tokens=1", "reward=format", "reward.pattern='[0-4].*'")
"""Completions of one token, half of which are rewarded."""
EXACT = [
    ["clip=gspo", "aggregation=seq_mean_token_mean"],
    ["clip=vespo", "advantage=opo"],
    ["clip.masks=[{name: top_entropy, share: 0.3}]"],
    ["advantage=reinforce_pp", "aggregation=prompt_mean"],
    ["advantage=optimal_token_baseline"],
    ["selection=drop_zero_variance", "aggregation=token_mean_micro"],
]
KL = [
    ["kl=k3", "kl.beta=0.3"],
    ["kl=full", "kl.beta=0.3"],
    ["kl=k1", "kl.placement=reward_to_go", "kl.beta=0.3", "advantage=reinforce_pp"],
    ["kl=full", "kl.placement=reward", "kl.beta=0.3"],
    ["clip=sapo", "correction=truncate", "aggregation=seq_mean_token_sum_norm"],
]


def test_training_s_first_gradient(tmp_path: Path) -> None:
    found = probe(EXACT, overrides=BASE, keep_gradients=True)
    assert_same_gradients(found, EXACT, tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    """A run that stopped at a checkpoint of step 2, with weights away from the reference."""
    home = tmp_path_factory.mktemp("run")
    run = composed("optimizer.lr=1e-3", f"output_dir={home}")
    folder = home / "default" / job_id(run.raw)
    folder.mkdir(parents=True)
    ready = check(run)
    trainer = Trainer(run, ready.encoder, ready.examples, RunFolder(folder))

    def log(step: int, metrics: dict[str, float]) -> None:
        if step == 2:
            trainer._checkpoint()
            raise Stopped

    with pytest.raises(Stopped):
        trainer.fit(log)
    from omegaconf import OmegaConf

    OmegaConf.save(OmegaConf.create(run.raw), folder / "config.yaml")
    return folder, run


def test_training_s_gradient_after_a_checkpoint(trained: tuple[Path, Run], tmp_path: Path) -> None:
    folder, _ = trained
    home = folder.parents[1]
    found = probe(KL, run=folder.name, overrides=[f"output_dir={home}"], keep_gradients=True)
    assert found.step == 2
    base = ("optimizer.lr=1e-3", f"output_dir={tmp_path}")
    assert_same_gradients(found, KL, tmp_path, folder, *base)


def test_a_checkpoint_is_its_run(trained: tuple[Path, Run]) -> None:
    folder, _ = trained
    by_run = probe(KL[:1], run=folder.name, overrides=[f"output_dir={folder.parents[1]}"])
    by_path = probe(KL[:1], checkpoint=folder / "checkpoint")
    assert by_path.step == 2
    assert by_path.gradients["norm"][0] == by_run.gradients["norm"][0]


def test_a_saved_model_as_a_checkpoint() -> None:
    found = [probe(["clip=ppo"], overrides=BASE, checkpoint=path) for path in (None, TINY)]
    assert found[0].gradients["norm"][0] == found[1].gradients["norm"][0]


def test_k3_as_a_loss_is_not_the_reverse_kl(trained: tuple[Path, Run]) -> None:
    """Where no answer is rewarded only the KL has a gradient. k2's slope is β·log(π/π_ref), whose
    mean is the reverse KL's gradient; k3's is β·(1 − π_ref/π), whose mean is the forward one's."""
    folder, _ = trained
    arms = [["kl=k2", "kl.beta=0.5"], ["kl=k3", "kl.beta=0.5"]]
    words = [
        f"output_dir={folder.parents[1]}", "reward=format", "reward.pattern=zzz",
        "aggregation=seq_mean_token_sum",
    ]  # fmt: skip
    found = probe(arms, run=folder.name, overrides=words, parts=["tokens"])
    k2, k3 = (own["weight"].to_numpy() for _, own in found.tokens.groupby("arm"))
    beta = 0.5 / 32  # over the 32 completions
    assert np.abs(k2).max() > 1e-5
    np.testing.assert_allclose(k3, -beta * (1 - np.exp(k2 / beta)), rtol=1e-3, atol=1e-9)
    assert found.cosine.to_numpy()[0, 1] < 1 - 1e-6


def names(found: Probe) -> list[str]:
    return list(found.cosine.columns)


def cosine(found: Probe, a: str, b: str) -> float:
    return float(found.cosine.to_numpy()[names(found).index(a), names(found).index(b)])


def test_known_pairs() -> None:
    pairs = [
        "clip=ppo", "clip=none", "advantage=rloo", "advantage=group_center", "clip=gspo",
        "clip=gspo_token", "aggregation=seq_mean_token_mean", "clip=cispo", "clip=reinforce",
        "clip=sapo", "kl=k3",
    ]  # fmt: skip
    found = probe(pairs, overrides=BASE)
    for a, b in (
        ("clip=ppo", "clip=none"), ("advantage=rloo", "advantage=group_center"),
        ("clip=gspo", "clip=gspo_token"), ("clip=ppo", "clip=cispo"), ("clip=ppo", "clip=sapo"),
        ("clip=ppo", "clip=reinforce"), ("clip=ppo", "kl=k3"),  # at the reference k3 is flat
    ):  # fmt: skip
        assert cosine(found, a, b) == pytest.approx(1, abs=1e-9), (a, b)
    norms = found.gradients.set_index("arm")["norm"]
    assert norms["advantage=rloo"] == pytest.approx(8 / 7 * norms["advantage=group_center"])
    for a, b in (("clip=ppo", "advantage=rloo"), ("clip=ppo", "aggregation=seq_mean_token_mean")):
        assert cosine(found, a, b) < 1 - 1e-5  # the lengths differ, and so do the groups' spreads


def test_aggregations_agree_at_equal_lengths() -> None:
    kinds = ["aggregation=token_mean", "aggregation=seq_mean_token_mean", "aggregation=prompt_mean"]
    found = probe(kinds, overrides=[*BASE, *SHORT])
    assert np.abs(found.cosine.to_numpy() - 1).max() < 1e-9


def test_same_command_same_bytes(tmp_path: Path) -> None:
    words = ["probe", *BASE, "clip=ppo,gspo", "variants=[[kl=k2,kl.beta=0.1]]"]
    for name in ("a", "b"):
        assert main([*words, f"out={tmp_path / name}"]) == 0
    written = sorted(p.name for p in (tmp_path / "a").iterdir() if p.suffix == ".csv")
    assert {"cosine.csv", "gradients.csv"} <= set(written)
    for name in written:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    header = (tmp_path / "a" / "cosine.csv").read_text().splitlines()
    assert header[0] == 'arm,clip=ppo,clip=gspo,"kl.beta=0.1,kl=k2"'
    assert len(header) == 4


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, sentence in (
        (["variants=[clip=pppo]"], "did you mean ppo?"),
        (["variants=[sampler.temperature=2,clip=ppo]"], "share their rollouts"),
        (["variants=[clip]"], "overrides such as"),
        (["run=nothing", "variants=[clip=ppo]"], "no run 'nothing'"),
        (["parts=[signals]", "variants=[clip=ppo]"], "did you mean signal?"),
        (["group_sizes=[3]", "variants=[clip=ppo]"], "allowed: 2, 4."),
        (["hardware.dtype=float16", "variants=[clip=ppo]"], "float32, bfloat16"),
        (["variants=[selection=replay]", "staleness=[1]"], "groups of earlier steps"),
        ([], "none given"),
    ):
        assert main(["probe", *BASE, *words, f"out={tmp_path / 'x'}"]) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_variants_as_text() -> None:
    given = "[clip=cispo,[kl=k3,kl.beta=0.01],advantage=rloo clip=none,clip.masks=[truncated]]"
    assert parse_variants(given) == [
        ["clip=cispo"], ["kl=k3", "kl.beta=0.01"], ["advantage=rloo", "clip=none"],
        ["clip.masks=[truncated]"],
    ]  # fmt: skip
    with pytest.raises(ConfigError):
        parse_variants("[]")


def test_span_explains_every_row() -> None:
    source = torch.Generator().manual_seed(0)
    factors = torch.randn(3, 12, generator=source, dtype=torch.float64)
    rows = torch.randn(20, 3, generator=source, dtype=torch.float64) @ factors
    rows[5] *= 1e-9  # a small row counts as much as any other
    vectors, coefficients = span(rows)
    assert vectors.shape == (3, 12)
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(3, dtype=torch.float64))
    away = (coefficients @ vectors - rows).norm(dim=1) / rows.norm(dim=1)
    assert float(away.max()) < 1e-6


def test_signal_is_unbiased() -> None:
    source = np.random.default_rng(0)
    groups, mean = 6, np.array([0.5, -0.2, 0.1])
    draws = mean + source.normal(size=(20000, groups, 3))
    totals, own = np.square(draws.sum(axis=1)).sum(axis=1), np.square(draws).sum(axis=2)
    found = np.array([measures.signal(t, o) for t, o in zip(totals, own, strict=True)]).mean(axis=0)
    assert found[0] == pytest.approx(groups**2 * mean @ mean, rel=0.02)
    assert found[1] == pytest.approx(groups * 3, rel=0.02)


def test_cosine_error_of_a_known_case() -> None:
    """Against leaving out each group by hand."""
    source = np.random.default_rng(1)
    terms = source.normal(size=(2, 5, 7))
    inner = np.einsum("ipd,jqd->ipjq", terms, terms)
    left = []
    for p in range(5):
        a, b = np.delete(terms, p, axis=1).sum(axis=1)
        left.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    wanted = np.sqrt(4 / 5 * ((np.array(left) - np.mean(left)) ** 2).sum())
    own = np.einsum("ipjp->ijp", inner)
    assert measures.cosine_errors(inner.sum(axis=3), own)[0, 1] == pytest.approx(wanted)


def test_half_cosine_by_hand() -> None:
    source = np.random.default_rng(2)
    even, odd = source.normal(size=(2, 9))
    wanted = even @ odd / np.linalg.norm(even) / np.linalg.norm(odd)
    whole = even + odd
    assert measures.half_cosine(whole @ whole, even @ even, even @ whole) == pytest.approx(wanted)


def test_parts_sum_to_the_whole() -> None:
    found = probe(["clip=ppo", "advantage=reinforce_pp"], overrides=BASE)
    sums = found.parts.groupby(["arm", "kind"])["share"].sum()
    assert len(sums) == 8
    np.testing.assert_allclose(sums, 1, atol=1e-8)
    learnt = found.tokens[found.tokens["arm"] == "clip=ppo"]
    assert (learnt["weight"] > 0).any()
    assert (learnt["weight"] < 0).any()


def test_staleness(tmp_path: Path) -> None:
    arms = ["clip=ppo", "clip=none", "clip=cispo", "clip=reinforce"]
    out = tmp_path / "out"
    words = [*BASE, "optimizer.lr=1e-3"]
    found = probe(arms, overrides=words, staleness=[0, 2], out=out)
    table = found.staleness
    now, later = table[table["updates"] == 0], table[table["updates"] == 2]
    assert now["sequence_ess"].eq(1).all()
    np.testing.assert_allclose(now["cosine_to_unbiased"].to_numpy(), 1, atol=1e-9)
    assert later["sequence_ess"].lt(1).all()
    assert later["ratio_std"].gt(0).all()
    clipped = later.set_index("arm")["clip_share"].to_dict()
    assert clipped["clip=ppo"] > 0 == clipped["clip=none"]
    page = (out / "probe.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in page
    assert "http://" not in page
    assert "https://" not in page
    for name in ("cosine", "norms", "parts", "staleness"):
        assert (out / "figures" / f"{name}.pdf").exists()


def test_with_one_token_the_plain_ratio_is_unbiased() -> None:
    words = [*BASE, *SHORT, "optimizer.lr=1e-3"]
    found = probe(["clip=none", "clip=reinforce"], overrides=words, staleness=[3])
    near = found.staleness.set_index("arm")["cosine_to_unbiased"].to_dict()
    assert near["clip=none"] == pytest.approx(1, abs=1e-9)
    assert near["clip=reinforce"] < 1 - 1e-6


def test_mlflow_has_it_beside_the_runs(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    words = [w for w in BASE if not w.startswith("tracking")]
    own = [f"output_dir={tmp_path}", "clip=ppo,none", f"out={tmp_path / 'probe'}"]
    assert main(["probe", *words, *own]) == 0
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("default")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params["arm.1"] == "clip=none"
    assert run.info.status == "FINISHED"
    assert len(client.get_metric_history(run.info.run_id, "probe/norm")) == 2
    assert {"cosine.csv", "probe.html"} <= {a.path for a in client.list_artifacts(run.info.run_id)}
    assert "grpolab.job_id" not in run.data.tags


def test_page_escapes_what_a_model_wrote(tmp_path: Path) -> None:
    found = probe(["clip=ppo"], overrides=BASE)
    found.tokens["text"] = "<script>alert(1)</script>"
    page = write_page(found, tmp_path, []).read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
