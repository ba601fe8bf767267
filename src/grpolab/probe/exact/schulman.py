"""Schulman's table of KL estimators, from samples: q = N(0, 1), p = N(μ, 1), KL(q‖p) = μ²/2.

Source: J. Schulman, "Approximating KL divergence" (2020). The estimators are the components k1, k2
and k3 of log q − log p at samples of q.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy.stats import norm

from grpolab.component import component

MEANS = (0.1, 1.0)


def closed_form(estimator: str, mu: float) -> tuple[float, float]:
    """(bias / KL, standard deviation / KL) of k1, k2 or k3."""
    square = mu**2
    return {
        "k1": (0.0, 2 / mu),
        "k2": (square / 4, math.sqrt(2 + square)),
        "k3": (0.0, 2 * math.sqrt(math.expm1(square) - square) / square),
    }[estimator]


def schulman_table(
    source: np.random.Generator, samples: int = 1_000_000, means: Sequence[float] = MEANS
) -> pd.DataFrame:
    """Bias and standard deviation of each estimator over the true KL.

    Returns:
        columns mu, kl, estimator, quantity (bias or std, each over the KL), theory, measured, low,
        high (normal intervals that hold for all rows together with 95 %, by Bonferroni; the
        standard deviation's from the fourth moment), holds, samples.
    """
    z = float(norm.ppf(1 - 0.025 / (6 * len(means))))
    x = source.standard_normal(samples)
    rows = []
    for mu in means:
        log_q = torch.from_numpy(-(x**2) / 2).unsqueeze(1)
        log_p = torch.from_numpy(-((x - mu) ** 2) / 2).unsqueeze(1)
        mask = torch.ones_like(log_q, dtype=torch.bool)
        kl = mu**2 / 2
        for name in ("k1", "k2", "k3"):
            values = component("kl", name)(log_q, log_p, mask).flatten().numpy() / kl
            for row in measured(values, closed_form(name, mu), z):
                rows.append({"mu": mu, "kl": kl, "estimator": name, **row, "samples": samples})
    return pd.DataFrame(rows)


def measured(
    values: npt.NDArray[np.float64], theory: tuple[float, float], z: float
) -> list[dict[str, object]]:
    """The rows bias and std of an estimator's values [n], which are over the true KL, with
    intervals of ±z standard errors."""
    n, mean, std = len(values), float(values.mean()), float(values.std(ddof=1))
    fourth = float(((values - mean) ** 4).mean())
    found = {
        "bias": (mean - 1, std / math.sqrt(n)),
        "std": (std, math.sqrt(max(fourth - std**4, 0.0) / n) / (2 * std)),
    }
    return [
        {
            "quantity": name,
            "theory": expected,
            "measured": value,
            "low": value - z * error,
            "high": value + z * error,
            "holds": abs(value - expected) <= z * error,
        }
        for (name, (value, error)), expected in zip(found.items(), theory, strict=True)
    ]
