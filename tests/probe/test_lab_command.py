"""`grpolab lab`: files, refusals in one sentence, and nothing written when refused."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from grpolab.cli import BAD_CONFIG, main
from grpolab.probe.exact.arms import FACTORS, Arm
from grpolab.probe.exact.run import FILES, arms_of, run
from grpolab.probe.exact.settings import parse
from grpolab.probe.exact.world import bandit, token_tree

SMALL = ["lab=bandit", "arms=3", "group_size=2,3", "staleness=0,0.3,1", "samples=200"]
MORE = ["beta=0.1,0.3,1", "mismatch=0,0.2,0.5", "correction=none,truncate"]


def test_it_writes_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SMALL, *MORE, "advantage=rloo,group_zscore", "clip=none,ppo", "kl=none,k2"]
    assert main(["lab", *words, f"out={tmp_path / 'a'}"]) == 0
    files = {p.name for p in (tmp_path / "a").iterdir()}
    tables = {"bias.csv", "identities.csv", "kl_table.csv", "fixed_points.csv"}
    tables |= {"identity_curves.csv"}
    figures = {"bias_variance", "error_by_group_size", "bias_by_staleness", "pass_rate"}
    figures |= {"kl_table", "fixed_points", "error_by_beta", "error_by_mismatch", "advantages"}
    figures |= {"kl_gradients", "kl_values", "fixed_point_policies"}
    kinds = ("png", "pdf", "svg", "caption.txt")
    assert files == tables | {f"{f}.{k}" for f in figures for k in kinds}
    bias = pd.read_csv(tmp_path / "a" / "bias.csv")
    arms = {"unbiased", "advantage=group_zscore", "clip=ppo", "kl=k2", "correction=truncate"}
    assert set(bias["arm"]) == arms
    unbiased = bias[(bias["arm"] == "unbiased") & (bias["mismatch"] == 0)]
    assert (unbiased["bias"] < 1e-9).all()
    assert "rescaled_mse" in capsys.readouterr().out
    # the same words, the same tables
    again = run(parse([*words, "parts=bias,identities,kl_table"]))
    for part in ("bias", "identities", "identity_curves", "kl_table"):
        text = again[part].to_csv(index=False, float_format="%.10g")
        assert (tmp_path / "a" / FILES[part]).read_text(encoding="utf-8") == text, part


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("lab=bandid", "lab: 'bandid' is not allowed; allowed: bandit, token_tree"),
        ("grup_size=2", "grup_size: unknown key (given 'grup_size=2'); allowed: lab,"),
        ("group_size=0", "group_size: [0] is out of bounds; allowed: a list of whole number ≥ 1"),
        ("clip=ppoo", "clip: 'ppoo' given; allowed: all,"),
        ("vocabulary=4", "vocabulary: given with lab=bandit; allowed with lab=token_tree."),
        ("parts=bais", "parts: 'bais' given; allowed: bias,"),
        ("rewards=0,1", "rewards: 2 given; allowed: 3, one a completion."),
        ("reference=0.5,0.5", "reference: 2 given; allowed: 3,"),
        ("clip.hihg=0.3", "clip.hihg: 0.3 given, which none of clip="),
        ("kl.beta=0.3", "kl.beta: 0.3 given, which none of kl="),
        ("clip.low=-1", "clip.low: -1.0 is out of bounds"),
    ],
)
def test_refusals(word: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    factors = ["clip=ppo", "kl=k3"] if "." in word else []
    out = tmp_path / "out"
    assert main(["lab", *SMALL, *factors, word, f"out={out}"]) == BAD_CONFIG
    error = capsys.readouterr().err
    assert error.startswith(f"grpolab: {says}"), error
    assert error.count("\n") == 1
    assert not out.exists()


def test_help_names_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "--help"]) == 0
    printed = capsys.readouterr().out
    for key in ("group_size", "staleness", "beta", "seed", "samples", *FACTORS):
        assert key in printed


def test_a_product_has_every_combination_and_settings_reach_components() -> None:
    words = ["design=product", "advantage=rloo,pass_at_k", "clip=ppo,gspo", "kl=none,k1"]
    settings = parse([*words, "placement=all", "advantage.k=2", "clip.high=0.28"])
    arms, refused = arms_of(settings, 4)
    assert len(arms) == 2 * 2 * (1 + 3)
    assert refused == []
    assert {a.make("clip").high for a in arms} == {0.28}
    assert {a.make("advantage").k for a in arms if a.advantage == "pass_at_k"} == {2}
    assert Arm().label == "unbiased"


def test_worlds() -> None:
    assert bandit().reference.exp()[0].tolist() == pytest.approx([0.4, 0.3, 0.15, 0.1, 0.05])
    tree = token_tree(3, 2).tree
    assert len(tree.ids) == 9
    assert tree.mask.all()
    ending = token_tree(3, 2, ends=True).tree
    assert sorted(ending.mask.sum(dim=1).tolist()) == [1] + [2] * 6
    world = token_tree(2, 2, prompts=2, rewards="binary")
    assert set(world.rewards.tolist()) == {0.0, 1.0}
    stale = world.stale(0.5)
    assert float((stale.policy - stale.old).abs().max()) == pytest.approx(0.5)
    assert stale.mean_reward(stale.policy) > stale.mean_reward(stale.old)
