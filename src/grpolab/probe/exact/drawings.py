"""Which figures the laboratory's frames have enough for, and what their captions say."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd
from matplotlib.figure import Figure

from grpolab.probe.exact import curves, figures, identity_figures, product_figures

Drawing = tuple[Callable[[pd.DataFrame], Figure], pd.DataFrame, str]


def drawings(found: Mapping[str, pd.DataFrame]) -> dict[str, Drawing]:
    """{file name: (figure, its frame, its caption)} of what was measured."""
    made: dict[str, Drawing] = {}
    if "bias" in found:
        whole = product_figures.is_product(found["bias"])
        made |= product_drawings(found["bias"]) if whole else bias_drawings(found["bias"])
    if "identities" in found:
        made["pass_rate"] = (
            figures.pass_rate_weights,
            found["identities"],
            "Left: what the z-score (ddof 0) makes of a prompt with pass rate p: its expected "
            "gradient is f_G(p)·∇p. Right: the share of groups whose rewards do not differ, "
            "p^G + (1−p)^G. Lines: theory. Points: sampled groups through the real component, with "
            "intervals that hold for all sampled identities together with 95 %.",
        )
    if "identity_curves" in found:
        made |= {
            name: (_curves(name), found["identity_curves"], f"{caption} {LINES_AND_POINTS}")
            for name, caption in IDENTITIES.items()
        }
    if "kl_table" in found:
        made["kl_table"] = (
            figures.schulman,
            found["kl_table"],
            "Schulman's table: bias and standard deviation of k1, k2 and k3 over the true KL, "
            "q = N(0, 1), p = N(μ, 1). Grey ticks: closed form. Points: "
            f"{found['kl_table']['samples'].iloc[0]:,} samples, with intervals that hold for all "
            "twelve together with 95 %.",
        )
    if "fixed_points" in found:
        made["fixed_point_policies"] = (
            identity_figures.fixed_point_policies,
            found["fixed_points"],
            "The policy that the flow of the exact expected gradient ends at, β = 0.5, on a bandit "
            "of five arms. Ticks: theory, q·e^{R/β}/Z for k1 in the reward and k2 as a loss, "
            "βq/(β + λ − R) for k3 as a loss, the best arm for k1 as a loss. Points: the flow.",
        )
    if "trajectories" in found:
        made["fixed_points"] = (
            figures.flow,
            found["trajectories"],
            "The policy of a five-armed bandit on the natural-gradient flow of the exact expected "
            "gradient, β = 0.5, from the reference on. The distance is from q·e^{R/β}/Z, the "
            "optimum of E[R] − β·KL; it is drawn down to 1e-6. 'k2, z-score': groups of four, all "
            "others without a baseline.",
        )
    return made


LINES_AND_POINTS = (
    "Lines: theory in closed form. Points: the components, summed over all outcomes; they agree to "
    "1e-9. Series that are the same lie over one another."
)
IDENTITIES = {
    "kl_gradients": (
        "The expected slope that a KL estimator adds to the loss, by the logit of one of two "
        "tokens. In the loss k2 has the reverse KL's, k3 the forward KL's and k1 none; in the "
        "reward k1 has the reverse KL's and k3 the reverse less the forward KL's, which pushes "
        "away from the reference where it is below 0 on the right; off-policy (the batch's policy "
        "a logit behind) the ratio's weight keeps the reverse KL's; before a second token, k2 as a "
        "loss leaves out what the first does to the KL of the second."
    ),
    "kl_values": (
        "Left: E[k1] = E[k3] = KL and E[k2] = E[d²]/2 against the logit's offset. Middle: each "
        "estimator of one token's log-ratio; k3 is never below 0. Right: E[k2] − KL against its "
        "leading term E[d³]/6, to within the remainder E[d⁴]·e^max|d|/24."
    ),
    "advantages": (
        "z-score: A of the right and the wrong completions of a group of eight. Sums: Σ A and Σ A² "
        "of random rewards. Share of ∇E[R]: of the expected gradient on a bandit. G = 2: the sign "
        "of the difference. R → a·R + 3: A over what it was. Two rewards: the z-score of the sum "
        "does not know in how many rewards a member leads."
    ),
}


def _curves(name: str) -> Callable[[pd.DataFrame], Figure]:
    return lambda frame: identity_figures.curves(frame, name)


def how(frame: pd.DataFrame) -> str:
    """Whether the numbers are sums or samples."""
    exact = "exact sums over all batches"
    return exact if frame["exact"].all() else f"{exact}, or samples where `exact` is false"


def product_drawings(frame: pd.DataFrame) -> dict[str, Drawing]:
    """Of every combination of several factors."""
    made: dict[str, Drawing] = {
        "choice_ranges": (
            product_figures.choice_ranges,
            frame,
            f"Error of {len(frame):,} arms, every combination, at their best learning rate: the "
            "median (mark) and the 5th to 95th percentile (line) over everything that a choice is "
            f"combined with, the best median at the largest staleness first. {how(frame)}.",
        ),
        "variance_shares": (
            product_figures.share_map,
            frame,
            "Share of the variance of that error over all arms that a factor accounts for alone "
            "(diagonal) and a pair of factors beyond what both do alone (below it), by sums of "
            f"squares of the full product. {how(frame)}.",
        ),
    }
    return made


def bias_drawings(frame: pd.DataFrame) -> dict[str, Drawing]:
    """The map of all arms; error against G and β, bias against staleness and mismatch."""
    sizes, stales = sorted(frame["group_size"].unique()), sorted(frame["staleness"].unique())
    offs, betas = sorted(frame["mismatch"].unique()), sorted(set(frame["beta"]) - {0.0})
    factors = frame.apply(figures.factor_of, axis=1)
    matched = frame["mismatch"] == offs[0]
    largest = frame["group_size"] == sizes[-1]
    fresh = frame["staleness"] == stales[0]
    made: dict[str, Drawing] = {}
    if len(set(factors) - {"unbiased"}) > 1:
        shown = frame[
            matched
            & largest
            & frame["beta"].isin([0, *betas[-1:]])
            & frame["staleness"].isin([stales[0], stales[-1]])
        ]
        made["bias_variance"] = (
            figures.bias_variance_map,
            shown,
            f"Each arm's direction bias and noise, G = {sizes[-1]}. {how(frame)}. Points are "
            "coloured by what differs from the unbiased arm (rloo, no clip, no KL, "
            "seq_mean_token_sum); what has a bias below "
            f"{figures.FLOOR:g}, exact zeros included, is drawn at the left edge. Names: arms that "
            "stand alone; others coincide with them or lie close.",
        )
    if len(sizes) > 1 and "advantage" in set(factors):
        own = frame[factors.isin(["unbiased", "advantage"]) & fresh & matched]
        made["error_by_group_size"] = (error_by_group_size, own, f"{ERROR_CAPTION} {how(frame)}.")
    if len(sizes) > 1 and "aggregation" in set(factors):
        own = frame[factors.isin(["unbiased", "aggregation"]) & fresh & matched]
        made["bias_by_group_size"] = (
            bias_by_group_size,
            own,
            "Direction bias of each aggregation against G, completions of different lengths. Below "
            f"{figures.FLOOR:g}, zeros included, it is drawn at the bottom. Arms that coincide "
            f"share a line. {how(frame)}.",
        )
    if len(stales) > 2 and "clip" in set(factors):
        own = frame[factors.isin(["unbiased", "clip"]) & largest & matched]
        made["bias_by_staleness"] = (
            bias_by_staleness,
            own,
            f"Direction bias of each clip against staleness, G = {sizes[-1]}: the largest change "
            f"of a logit since the batch was drawn. Below {figures.FLOOR:g}, zeros included, it "
            f"is drawn at the bottom. Arms that coincide share a line. {how(frame)}.",
        )
    if len(betas) > 2 and "kl" in set(factors):
        own = frame[(factors == "kl") & largest & fresh & matched]
        made["error_by_beta"] = (
            curves.by_beta,
            own,
            f"Squared bias, variance and their sum of each KL against β, G = {sizes[-1]}; the "
            "truth is ∇(E[R] − β·KL) of each β. Below "
            f"{curves.LOWEST:g}, zeros included, a bias is drawn at the bottom. Estimators that "
            f"are the same there lie over one another. {how(frame)}.",
        )
    if len(offs) > 2 and "correction" in set(factors):
        own = frame[factors.isin(["unbiased", "correction"]) & largest & fresh]
        made["error_by_mismatch"] = (
            curves.by_mismatch,
            own,
            "Direction bias, noise and error of each correction against the mismatch: the standard "
            "deviation, in logits, between the sampler and the policy that it was to sample, "
            f"G = {sizes[-1]}. {how(frame)}.",
        )
    return made


ERROR_CAPTION = (
    "What is left of the squared error when each arm is given its best learning rate, as a share "
    "of ‖∇J‖²: min over c of E‖c·g − ∇J‖²/‖∇J‖². Arms that coincide share a line; a line "
    "has the group sizes that the estimator allows."
)


def error_by_group_size(frame: pd.DataFrame) -> Figure:
    """Rescaled error of each advantage against G."""
    return figures.lines(
        frame,
        "group_size",
        "rescaled_mse",
        "advantage",
        "Group size G",
        "Error at the best learning rate / ‖∇J‖²",
        log="x",
    )


def bias_by_staleness(frame: pd.DataFrame) -> Figure:
    """Direction bias of each clip against staleness."""
    return figures.lines(
        frame,
        "staleness",
        "direction_bias",
        "clip",
        "Staleness: largest logit change since the batch was drawn",
        "Direction bias",
        log="y",
    )


def bias_by_group_size(frame: pd.DataFrame) -> Figure:
    """Direction bias of each aggregation against G."""
    return figures.lines(
        frame,
        "group_size",
        "direction_bias",
        "aggregation",
        "Group size G",
        "Direction bias",
        log="xy",
    )
