"""The product's summary: shares against a hand-worked table, and a compact file that keeps them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from grpolab.cli import main
from grpolab.probe.exact.arms import Arm
from grpolab.probe.exact.bias import bias_table
from grpolab.probe.exact.product import crossed, ranges, shares, significant
from grpolab.probe.exact.world import bandit, token_tree


def by_hand() -> pd.DataFrame:
    """y = 3·[advantage is b] + 1·[clip is d] + 2·[both]: cells 0, 1, 3, 6."""
    rows = [("a", "c", 0.0), ("a", "d", 1.0), ("b", "c", 3.0), ("b", "d", 6.0)]
    frame = pd.DataFrame(rows, columns=["advantage", "clip", "rescaled_mse"])
    return frame.assign(kl="none", placement="loss", aggregation="x", correction="none")


def test_shares_of_a_two_by_two_table() -> None:
    """Mean 2.5, variance 21/4; half effects 2, 1 and .5, whose squares are 4, 1 and 1/4."""
    found = shares(by_hand())
    whole = 21 / 4
    assert found["first"].tolist() == ["advantage", "clip", "advantage", "more"]
    assert found["second"].tolist() == ["advantage", "clip", "clip", "more"]
    assert found["share"].tolist() == pytest.approx([4 / whole, 1 / whole, 0.25 / whole, 0.0])
    with pytest.raises(ValueError, match="no full product"):
        shares(by_hand().iloc[:3])
    with pytest.raises(ValueError, match="no full product"):
        shares(by_hand().iloc[[0, 1, 2, 2]])


def test_a_kl_and_its_placement_are_one_factor() -> None:
    frame = pd.DataFrame({"kl": ["none", "k1", "k3"], "placement": ["loss", "reward", "loss"]})
    assert crossed(frame)["kl"].tolist() == ["none", "k1 in the reward", "k3 in the loss"]


def test_ranges_are_percentiles() -> None:
    found = ranges(by_hand(), ["advantage"])
    (best,) = found[found["choice"] == "b"][["low", "median", "high"]].to_numpy().tolist()
    assert best == pytest.approx([3.15, 4.5, 5.85])


def test_significant_digits() -> None:
    given = np.array([0.123456, -98765.0, 3e-16, np.inf, 0.0])
    found = significant(given, 3)
    assert found.tolist() == pytest.approx([0.123, -98800, 0.0, np.inf, 0.0], rel=1e-6)
    assert found[2] == 0


def test_a_product_is_written_in_full_and_small(tmp_path: Path) -> None:
    words = ["lab=bandit", "arms=3", "parts=bias", "design=product", "group_size=3", "compact=true"]
    words += ["advantage=rloo,group_zscore", "clip=none,ppo", "kl=none,k2,k3", "placement=all"]
    assert main(["lab", *words, "staleness=0,0.5", f"out={tmp_path}"]) == 0
    kept = pd.read_parquet(tmp_path / "bias.parquet")
    assert not (tmp_path / "bias.csv").exists()
    arms = [Arm(a, c, k, p) for a in ("rloo", "group_zscore") for c in ("none", "ppo")
            for k, p in (("none", "loss"), ("k2", "reward"), ("k3", "reward_to_go"))]  # fmt: skip
    wanted = bias_table(bandit(3), arms, group_sizes=[3], staleness=[0.5])
    keys = ["advantage", "clip", "kl", "placement"]
    here = kept[kept["staleness"] == 0.5].astype(dict.fromkeys(keys, str))
    both = wanted.merge(here, on=keys, suffixes=("", "_kept"), validate="one_to_one")
    assert len(kept) == 2 * 2 * 2 * (1 + 2 * 3)
    assert len(both) == 12
    for name in ("scale", "direction_bias", "noise_to_signal", "rescaled_mse"):
        away = (both[name] - both[f"{name}_kept"]).abs()
        assert (away <= 6e-4 * both[name].abs() + 1e-9).all(), name
    for name in ("choice_ranges", "variance_shares"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    assert not (tmp_path / "bias_variance.png").exists()


def test_whole_weights_undo_a_mismatch() -> None:
    """The only correction without a bias is the whole sequence's weight without a bound."""
    world = token_tree(2, 2, ends=True, seed=4)

    def bias(level: str, cap: float) -> float:
        given = {"correction": {"level": level, "cap": cap}}
        arm = Arm(correction="truncate", settings=given)
        found = bias_table(world, [arm], group_sizes=[3], mismatch=[0.7])
        return float(found["relative_bias"].iloc[0])

    assert bias("sequence_sum", 1e6) < 1e-12
    assert bias("token", 1e6) > 1e-3
    assert bias("sequence_sum", 1.0) > 1e-3
    plain = bias_table(world, [Arm()], group_sizes=[3], mismatch=[0.0, 0.7])
    assert plain["relative_bias"].iloc[0] < 1e-12
    assert plain["relative_bias"].iloc[1] > 0.05
