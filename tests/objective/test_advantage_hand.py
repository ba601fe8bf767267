"""One worked value for every advantage estimator and every setting that changes its formula."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from grpolab.component import component

F64 = torch.float64
NAN = math.nan


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=F64)


def advantages(name: str, rewards: object, settings: dict[str, Any], **given: Any) -> list[float]:
    """Flat, in float64."""
    found: Tensor = component("advantage", name, **settings)(tensor(rewards), **given)
    assert found.dtype == F64
    result: list[float] = found.flatten().tolist()
    return result


def close(found: list[float], expected: list[float]) -> None:
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-14)


def mask_of(*lengths: int, width: int) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths).unsqueeze(1)


# --- From the rewards alone --------------------------------------------------------------------

THIRD = 1 / 3
CASES: list[tuple[str, dict[str, Any], object, list[float]]] = [
    # deviations −1 0 1, squares 2, over 3 − ddof
    ("group_zscore", {"eps": 0.0}, [[1, 2, 3]], [-1, 0, 1]),
    ("group_zscore", {"ddof": 0, "eps": 0.5}, [[1, 2, 3]], [
        -1 / (math.sqrt(2 / 3) + 0.5), 0, 1 / (math.sqrt(2 / 3) + 0.5),
    ]),
    # of the rewards 0 1 2 4: mean 7/4, squares (49 + 9 + 1 + 81)/16 = 35/4, over 3 (ddof 1)
    ("batch_std", {}, [[0, 1], [2, 4]], [
        a / (math.sqrt(35 / 12) + 1e-4) for a in (-0.5, 0.5, -1, 1)
    ]),
    ("batch_std", {"ddof": 0, "eps": 0.0}, [[0, 1], [2, 4]], [
        a / math.sqrt(35 / 16) for a in (-0.5, 0.5, -1, 1)
    ]),
    # of the centred rewards −½ ½ −1 1: squares 5/2, over 3
    ("batch_std", {"std_of": "centered"}, [[0, 1], [2, 4]], [
        a / (math.sqrt(5 / 6) + 1e-4) for a in (-0.5, 0.5, -1, 1)
    ]),
    # the unscored one is in neither: rewards 0 1 2 4 again
    ("batch_std", {"eps": 0.0}, [[0, 1, NAN], [2, NAN, 4]], [
        a / math.sqrt(35 / 12) for a in (-0.5, 0.5, 0, -1, 0, 1)
    ]),
    # 1: others 2 3 6, mean 11/3, squares (25 + 4 + 49)/9 = 26/3, over 2
    # 2: others 1 3 6, mean 10/3, squares (49 + 1 + 64)/9 = 38/3, over 2
    # 3: others 1 2 6, mean 3      6: others 1 2 3, mean 2, std 1
    ("loo_zscore", {}, [[1, 2, 3, 6]], [
        -8 / 3 / (math.sqrt(13 / 3) + 1e-6), -4 / 3 / (math.sqrt(19 / 3) + 1e-6), 0,
        4 / (1 + 1e-6),
    ]),
    # the first one's others agree, so it is not divided; the rest: others 1 0 0, variance ⅔ / 2
    ("loo_zscore", {"eps": 0.0}, [[1, 0, 0, 0]], [1] + 3 * [-THIRD / math.sqrt(THIRD)]),
    # no two others, so nothing is divided
    ("loo_zscore", {}, [[3, 5], [NAN, 7]], [-2, 2, 0, 0]),
    ("loo_zscore", {}, [[3, NAN, 5]], [-2, 0, 2]),
    ("global_center", {}, [[0, 1], [2, 5]], [-2, -1, 0, 3]),
    ("global_center", {}, [[0, NAN], [2, 4]], [-2, 0, 0, 2]),
    ("raw", {}, [[0, NAN], [-2, 4]], [0, 0, -2, 4]),
    ("raw", {}, [[7]], [7]),
    # mean ¼
    ("maxrl", {}, [[1, 0, 0, 0]], [0.75 / 0.250001] + 3 * [-0.25 / 0.250001]),
    ("maxrl", {"eps": 0.0}, [[1, 0, 0, 0]], [3, -1, -1, -1]),
    # means −½ and 0 are not positive
    ("maxrl", {}, [[-1, 0], [-1, 1]], [0, 0, 0, 0]),
    # half of the four are in a group that differs; three of the four rewards are not 0
    ("gpg", {}, [[1, 0], [1, 1]], [1, -1, 0, 0]),
    ("gpg", {"count": "rewards"}, [[1, 0], [1, 1]], [2 / 3, -2 / 3, 0, 0]),
    # N = 3 scored, two of them in a group that differs
    ("gpg", {}, [[1, 0], [1, NAN]], [0.75, -0.75, 0, 0]),
    # the one on the mean counts, whether its advantage is exactly 0 or a rounding error
    ("gpg", {}, [[0, 0.5, 1]], [-0.5, 0, 0.5]),
    ("gpg", {}, [[0.1, 0.2, 0.3]], [-0.1, 0, 0.1]),
    ("gpg", {"count": "rewards"}, [[0, 0], [0, 0]], [0, 0, 0, 0]),
    # b = .95 · 0 + .05 · mean 2
    ("ema_baseline", {}, [[1, 3]], [0.9, 2.9]),
    # b = ¾ · 2 + ¼ · mean 4
    ("ema_baseline", {"decay": 0.75, "start": 2.0}, [[4, NAN, 4]], [1.5, 0, 1.5]),
    # one of four is right: R̄ = 1 − C(3,2)/C(4,2) = ½, σ = ½; wrong: (½ − C(2,1)/C(3,1))/½
    ("pass_at_k", {"k": 2}, [[1, 0, 0, 0]], [1] + 3 * [-THIRD]),
    # maxima of the pairs of 0 1 3 are 1 3 3, mean 7/3; with 0: 2, with 1: 2, with 3: 3
    # variance (16/9 + 4/9 + 4/9)/3 = 8/9
    ("pass_at_k", {"k": 2, "normalise": False}, [[0, 1, 3]], [-THIRD, -THIRD, 2 / 3]),
    ("pass_at_k", {"k": 2}, [[0, 1, 3]], [a / math.sqrt(8) for a in (-1, -1, 2)]),
    # a single one below the best: every pair has the same maximum
    ("pass_at_k", {"k": 2}, [[0, 0.1, 0.1, 0.1]], [0, 0, 0, 0]),
    ("pass_at_k", {"k": 3}, [[0, 1, 3]], [0, 0, 0]),
    ("pass_at_k", {"k": 4}, [[0, 1, 3]], [0, 0, 0]),
    ("pass_at_k", {"mode": "best_only"}, [[1, 4, 2.5]], [0, 1.5, 0]),
    # std: deviations −3/2 3/2 0, squares 9/2, over 2
    ("pass_at_k", {"mode": "best_only", "normalise": True}, [[1, 4, 2.5]], [0, 1.5 / 1.500001, 0]),
    ("pass_at_k", {"mode": "best_only"}, [[1, 4, 4], [NAN, NAN, 4]], [0, 0, 0, 0, 0, 0]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings", "rewards", "expected"), CASES)
def test_by_hand(
    name: str, settings: dict[str, Any], rewards: object, expected: list[float]
) -> None:
    close(advantages(name, rewards, settings), expected)


def test_equal_others_are_no_difference_however_they_round() -> None:
    """In float32 the two terms of E[x²] − E[x]² of many 0.1 differ; the values do not."""
    rewards = torch.full((1, 8), 0.1)
    rewards[0, 0] = 1.0
    found = component("advantage", "loo_zscore")(rewards)
    assert float(found[0, 0]) == pytest.approx(0.9, rel=1e-6)


def test_loo_zscore_has_no_bound() -> None:
    # others of the 1: 0 0 1e-4, mean 1e-4/3, std 1e-4/√3; a z-score stays below √3
    found = advantages("loo_zscore", [[1, 0, 0, 1e-4]], {"eps": 0.0})
    assert found[0] == pytest.approx((1 - 1e-4 / 3) / (1e-4 / math.sqrt(3)))
    assert found[0] > 17_000
    assert "no bound" in component("advantage", "loo_zscore").caution


# --- From lengths, parts, a greedy completion, the batches before ------------------------------


def test_opo_by_hand() -> None:
    # (1·1 + 2·0 + 3·2) / 6 = 7/6; the unscored completion's five tokens do not count
    rewards, lengths = [[1, 0, 2, NAN]], torch.tensor([[1, 2, 3, 5]])
    expected = [-1 / 6, -7 / 6, 5 / 6, 0]
    close(advantages("opo", rewards, {}, lengths=lengths), expected)
    close(advantages("opo", rewards, {}, mask=mask_of(1, 2, 3, 5, width=6)), expected)
    close(advantages("opo", [[1, 0]], {}, lengths=torch.tensor([[0, 0]])), [0, 0])
    # rows are prompt-major: the second prompt's lengths are 3 1, baseline (3·4 + 0)/4
    mask = mask_of(1, 1, 3, 1, width=3)
    close(advantages("opo", [[2, 0], [4, 0]], {}, mask=mask), [1, -1, 1, -3])


def test_remax_by_hand() -> None:
    greedy = tensor([0.5, NAN])
    close(advantages("remax", [[1, 0], [1, 0]], {}, greedy=greedy), [0.5, -0.5, 0, 0])
    close(advantages("remax", [[1], [NAN]], {}, greedy=tensor([3.0, 1.0])), [-2, 0])


def test_the_moving_average_moves() -> None:
    estimator = component("advantage", "ema_baseline", decay=0.9)
    first = estimator.track(None, tensor([[1.0, 3.0], [NAN, NAN]]))
    assert first == pytest.approx(0.2)  # .9 · 0 + .1 · 2
    second = estimator.track(first, tensor([[1.0]]))
    assert second == pytest.approx(0.28)  # .9 · .2 + .1 · 1
    assert estimator.track(second, tensor([[NAN]])) == second
    found = estimator(tensor([[1.0]]), baseline=first)
    assert found.item() == pytest.approx(1 - second)
    assert component("advantage", "rloo").track(None, tensor([[1.0]])) is None


# With ddof 0 and eps 0 a group of two has z-scores −1 and 1.
PARTS = {"a": tensor([[0, 1], [5, 5]]), "b": tensor([[0, 10], [3, 1]])}
BARE = {"ddof": 0, "eps": 0.0}
# Σ w z: −1 − 2, 1 + 2; 0 + 2, 0 − 2
SUMS = [-3, 3, 2, -2]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"batch": "none"}, SUMS),
        # mean 0, squares 9 + 9 + 4 + 4 = 26, over 4 − ddof
        ({}, [a / (math.sqrt(26 / 3) + 1e-4) for a in SUMS]),
        ({"batch_ddof": 0, "batch_eps": 0.0}, [a / math.sqrt(26 / 4) for a in SUMS]),
        ({"batch_eps_at": "variance", "batch_eps": 1.0}, [a / math.sqrt(29 / 3) for a in SUMS]),
        ({"batch_eps_at": "floor", "batch_eps": 0.5}, [a / math.sqrt(26 / 3) for a in SUMS]),
        ({"batch_eps_at": "floor", "batch_eps": 9.0}, [a / 3 for a in SUMS]),
        # five tokens: mean (−3 + 2·3 + 2 − 2)/5 = .6; squares 3.6² + 2·2.4² + 1.4² + 2.6² = 33.2
        (
            {"batch": "tokens", "batch_eps": 1e-8, "batch_eps_at": "variance"},
            [(a - 0.6) / math.sqrt(33.2 / 4 + 1e-8) for a in SUMS],
        ),
    ],
)  # fmt: skip
def test_gdpo_by_hand(settings: dict[str, Any], expected: list[float]) -> None:
    found = advantages(
        "gdpo",
        [[0, 21], [11, 7]],  # a + 2b, which is not read
        {**BARE, **settings},
        parts=PARTS,
        part_weights={"a": 1.0, "b": 2.0},
        lengths=torch.tensor([[1, 2], [1, 1]]),
    )
    close(found, expected)


def test_gdpo_normalises_with_its_own_ddof_and_eps() -> None:
    settings = {"batch": "none", "ddof": 1, "eps": 0.5}
    size = 5 / (math.sqrt(50) + 0.5)  # deviations ∓5, squares 50, over 2 − 1
    close(advantages("gdpo", [[0, 10]], settings, parts={}), [-size, size])


def test_gdpo_sees_what_the_total_hides() -> None:
    # 1·0 + 2·1 = 1·2 + 2·0: the totals coincide, the parts do not; z: −1 + 2, 1 − 2
    parts = {"a": tensor([[0, 2]]), "b": tensor([[1, 0]])}
    weights = {"a": 1.0, "b": 2.0}
    given: dict[str, Any] = {"parts": parts, "part_weights": weights}
    close(advantages("group_zscore", [[2, 2]], {}, **given), [0, 0])
    close(advantages("gdpo", [[2, 2]], {**BARE, "batch": "none"}, **given), [1, -1])
    close(advantages("gdpo", [[2, 2]], {**BARE, "batch_eps": 0.0}, **given), [
        1 / math.sqrt(2), -1 / math.sqrt(2),
    ])  # fmt: skip


def test_gdpo_hears_nothing_from_a_part_without_a_difference() -> None:
    # eight times .1 has a rounding mean, which eps 0 would blow up to ±1
    parts = {"a": tensor([[0, 1] * 4]), "b": tensor([[0.1] * 8])}
    settings = {**BARE, "batch": "none"}
    close(advantages("gdpo", [[0, 1] * 4], settings, parts=parts), [-1, 1] * 4)


def test_gdpo_leaves_out_what_a_part_cannot_score() -> None:
    settings = {**BARE, "batch": "none"}
    # a: the third is unscored and adds 0 for it; b: everybody is scored
    parts = {"a": tensor([[0, 1, NAN]]), "b": tensor([[1, 1, 1]])}
    close(advantages("gdpo", [[1, 2, 3]], settings, parts=parts), [-1, 1, 0])
    # the third is unscorable as a whole, so its part is in no statistics
    parts = {"a": tensor([[0, 1, 100]])}
    close(advantages("gdpo", [[0, 1, NAN]], settings, parts=parts), [-1, 1, 0])
    # a part of weight 0, or of no weight, is not read
    weights = {"a": 1.0, "b": 0.0}
    parts = {"a": tensor([[0, 1]]), "b": tensor([[NAN, 7]]), "a/inner": tensor([[5, 0]])}
    close(advantages("gdpo", [[0, 1]], settings, parts=parts, part_weights=weights), [-1, 1])
    with pytest.raises(ValueError, match=r"^part_weights: 'c' given; allowed: a, b, a/inner\.$"):
        advantages("gdpo", [[0, 1]], {}, parts=parts, part_weights={"c": 1.0})


def test_gdpo_gives_a_silent_group_the_batch_s_mean_only_by_tokens() -> None:
    rewards = [[0, 1], [4, 4]]
    close(advantages("gdpo", rewards, {**BARE, "batch_eps": 0.0})[2:], [0, 0])
    # −1 3·1 0 0 over six tokens: mean ⅓; squares 16/9 + 3·4/9 + 2/9 = 10/3, over 5
    found = advantages(
        "gdpo", rewards, {**BARE, "batch": "tokens", "batch_eps": 0.0},
        lengths=torch.tensor([[1, 3], [1, 1]]),
    )  # fmt: skip
    close(found, [(a - THIRD) / math.sqrt(2 / 3) for a in (-1, 1, 0, 0)])


# --- For each token ----------------------------------------------------------------------------

# tokens 1 1 0: mean ⅔, squares 1/9 + 1/9 + 4/9 = ⅔, over 3 − ddof; the last place is padding
WHITE = [1 / 3, 1 / 3, -2 / 3, 0]


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, math.sqrt(1 / 3 + 1e-8)),
        ({"ddof": 0}, math.sqrt(2 / 9 + 1e-8)),
        ({"eps": 0.5}, math.sqrt(1 / 3 + 0.5)),
        ({"eps": 0.5, "eps_at": "std"}, math.sqrt(1 / 3) + 0.5),
        ({"eps": 0.5, "eps_at": "floor"}, math.sqrt(0.5)),
        ({"eps": 0.1, "eps_at": "floor"}, math.sqrt(1 / 3)),
    ],
)
def test_reinforce_pp_by_hand(settings: dict[str, Any], scale: float) -> None:
    mask = mask_of(2, 1, width=2)
    close(advantages("reinforce_pp", [[1, 0]], settings, mask=mask), [a / scale for a in WHITE])


def test_reinforce_pp_takes_the_kl_from_the_return() -> None:
    # G: 1 − .3, 1 − .1, 0 − .2, and 9 is padding: mean 7/15
    penalty = tensor([[0.3, 0.1], [0.2, 9.0]])
    mask = mask_of(2, 1, width=2)
    found = advantages("reinforce_pp", [[1, 0]], {"eps": 0.0}, mask=mask, penalty=penalty)
    from_mean = [0.7 - 7 / 15, 0.9 - 7 / 15, -0.2 - 7 / 15]
    std = math.sqrt(sum(a * a for a in from_mean) / 2)
    close(found, [a / std for a in from_mean] + [0])


def test_reinforce_pp_with_the_group_s_mean() -> None:
    # tokens ½ ½ −½ 0 0: mean .1, squares 2·.16 + .36 + 2·.01 = .7, over 4
    mask = mask_of(2, 1, 1, 1, width=2)
    settings = {"baseline": "group", "eps": 0.0}
    found = advantages("reinforce_pp", [[1, 0], [3, 3]], settings, mask=mask)
    scale = math.sqrt(0.175)
    close(found, [a / scale for a in (0.4, 0.4, -0.6, 0, -0.1, 0, -0.1, 0)])


def test_reinforce_pp_ignores_the_tokens_of_the_unscored() -> None:
    mask = mask_of(2, 1, 2, width=2)
    found = advantages("reinforce_pp", [[1, 0, NAN]], {"eps": 0.0}, mask=mask)
    close(found, [a / math.sqrt(1 / 3) for a in WHITE] + [0, 0])


# w = 1 − 2·.5 + .5 = .5 twice, W = .5, 1; and w = 1 − 2·.8 + .68 = .08
LOGPS = tensor([[0.5, 0.5], [0.8, 0.3]]).log()
COLLISION = tensor([[0.5, 0.5], [0.68, 0.4]])
OTB: dict[str, Any] = {
    "mask": mask_of(2, 1, width=2), "logps": LOGPS, "collision": COLLISION,
}  # fmt: skip


def test_optimal_token_baseline_by_hand() -> None:
    name, bare = "optimal_token_baseline", {"eps": 0.0}
    # t = 1: (1·.5 + 0·.08)/.58; t = 2: only the first has a token left
    close(advantages(name, [[1, 0]], bare, **OTB), [1 - 50 / 58, 1, -50 / 58, 0])
    own = {"eps": 0.0, "zero_tail": False}
    close(advantages(name, [[1, 0]], own, **OTB), [1 - 50 / 58, 0, -50 / 58, 0])
    eps = {"eps": 0.42}
    close(advantages(name, [[1, 0]], eps, **OTB), [0.5, 1, -0.5, 0])  # .5/(.58 + .42)


def test_optimal_token_baseline_takes_the_kl_from_the_return() -> None:
    penalty = tensor([[0.3, 0.1], [0.2, 9.0]])
    # G: .7, .9; −.2. t = 1: (.7·.5 − .2·.08)/.58 = .334/.58
    found = advantages("optimal_token_baseline", [[1, 0]], {"eps": 0.0}, penalty=penalty, **OTB)
    close(found, [0.7 - 0.334 / 0.58, 0.9, -0.2 - 0.334 / 0.58, 0])
    # equal rewards are no reason for 0 while the KL differs: G .7 .9; .8, (.35 + .064)/.58
    found = advantages("optimal_token_baseline", [[1, 1]], {"eps": 0.0}, penalty=penalty, **OTB)
    close(found, [0.7 - 0.414 / 0.58, 0.9, 0.8 - 0.414 / 0.58, 0])
    assert advantages("optimal_token_baseline", [[1, 1]], {}, **OTB) == [0, 0, 0, 0]


def test_optimal_token_baseline_leaves_out_the_unscored() -> None:
    given = {
        "mask": mask_of(2, 1, 2, width=2),
        "logps": torch.cat([LOGPS, LOGPS[:1]]),
        "collision": torch.cat([COLLISION, COLLISION[:1]]),
    }
    found = advantages("optimal_token_baseline", [[1, 0, NAN]], {"eps": 0.0}, **given)
    close(found, [1 - 50 / 58, 1, -50 / 58, 0, 0, 0])
    penalty = torch.full((3, 2), 0.25, dtype=F64)
    alone = [[1, NAN, NAN]]  # nothing to compare with
    assert not any(advantages("optimal_token_baseline", alone, {}, penalty=penalty, **given))


def test_a_certain_token_weighs_nothing() -> None:
    # π = 1 and Σπ² a rounding error below 1: the weight is 0, not negative; the baseline is the
    # second one's return, 0
    given = {
        "mask": mask_of(1, 1, width=1),
        "logps": tensor([[0.0], [math.log(0.8)]]),
        "collision": tensor([[1 - 1e-3], [0.68]]),
    }
    found = advantages("optimal_token_baseline", [[1, 0]], {"eps": 0.0}, **given)
    close(found, [1, 0])
    given["logps"], given["collision"] = tensor([[0.0], [0.0]]), tensor([[1.0], [1.0]])
    close(advantages("optimal_token_baseline", [[1, 0]], {"eps": 0.0}, **given), [1, 0])


# --- What is missing ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "given", "missing"),
    [
        ("opo", {}, {}, "lengths or mask"),
        ("gdpo", {"batch": "tokens"}, {}, "lengths or mask"),
        ("remax", {}, {}, "greedy"),
        ("reinforce_pp", {}, {}, "mask"),
        ("optimal_token_baseline", {}, {}, "mask"),
        ("optimal_token_baseline", {}, {"mask": OTB["mask"]}, "logps"),
        (
            "optimal_token_baseline",
            {},
            {"mask": OTB["mask"], "logps": LOGPS},
            "collision",
        ),
    ],
)
def test_what_an_estimator_needs(
    name: str, settings: dict[str, Any], given: dict[str, Any], missing: str
) -> None:
    with pytest.raises(ValueError, match=f"^{missing}: none given; advantage={name} needs it"):
        advantages(name, [[1, 0]], settings, **given)
