"""From an arm's gradient on each batch to bias, variance and error against the true one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from grpolab.probe.exact.batches import Batches

Z95 = 1.959963984540054
QUANTITIES = (
    "bias",
    "relative_bias",
    "cosine",
    "direction_bias",
    "variance",
    "mse",
    "rescaled_mse",
)
"""What has an interval: `<name>_low`, `<name>_high`, 95 %; of no width where exact."""


@dataclass(frozen=True)
class Moments:
    """Of an estimate g of the gradient τ: everything that bias.csv says of an arm."""

    truth: Tensor
    """[D] τ"""
    mean: Tensor
    """[D] E[g]"""
    square: float
    """E‖g‖²"""
    square_error: float
    """standard error of `square`; 0 where exact."""
    error_variance: float
    """standard error of the mean squared error; 0 where exact."""
    radius: float
    """‖E[g] − the mean found‖ stays below it with 95 %; 0 where exact."""
    noise: float
    """E of the squared distance of the mean found from E[g]: its own share in ‖mean‖²."""
    noise_across: float
    """The part of `noise` that is orthogonal to τ."""

    def row(self) -> dict[str, float]:
        """The numbers, by their names in bias.csv."""
        size, truth = float(self.mean.norm()), float(self.truth.norm())
        along = float(self.mean @ self.truth)
        bias = float((self.mean - self.truth).norm())
        variance = max(self.square - size**2 + self.noise, 0.0)
        mse = self.square - 2 * along + truth**2
        cosine = along / (size * truth) if size and truth else math.nan
        across = self.mean - along / truth**2 * self.truth if truth else self.mean
        found = {
            "truth_norm": truth,
            "mean_norm": size,
            "scale": along / truth**2 if truth else math.nan,
            "bias": bias,
            "relative_bias": bias / truth if truth else math.nan,
            "cosine": cosine,
            "direction_bias": math.sqrt(max(float(across @ across) - self.noise_across, 0.0)) / size
            if size
            else math.nan,
            "variance": variance,
            "noise_to_signal": math.sqrt(variance) / size if size else math.inf,
            "mse": mse,
            "rescaled_mse": self.rescaled(along, self.square),
        }
        for name, (low, high) in self.bounds(found, along).items():
            found |= {f"{name}_low": low, f"{name}_high": high}
        return found

    def rescaled(self, along: float, square: float) -> float:
        """min_c E‖c·g − τ‖² / ‖τ‖² = 1 − ⟨E g, τ⟩² / (‖τ‖²·E‖g‖²), with c ≥ 0: the error that is
        left when the learning rate makes the best of the arm. In [0, 1]; 1 is no information."""
        truth = float(self.truth @ self.truth)
        if not truth or not square:
            return 1.0
        return min(max(1 - max(along, 0.0) ** 2 / (truth * square), 0.0), 1.0)

    def bounds(self, found: dict[str, float], along: float) -> dict[str, tuple[float, float]]:
        """95 % intervals. That of the mean is a ball, so that norms and angles have theirs whatever
        the number of dimensions; what depends on E‖g‖² has a normal one."""
        r, truth, size = self.radius, found["truth_norm"], found["mean_norm"]
        bias = (max(found["bias"] - r, 0.0), found["bias"] + r)
        half = Z95 * self.error_variance
        spread = Z95 * self.square_error
        squares = (max(self.square - spread, 0.0), self.square + spread)
        inner, outer = max(size - r, 0.0) ** 2, (size + r) ** 2
        reach = r * truth
        cosines = angles(found["cosine"], r, size)
        sines = tuple(math.sqrt(max(1 - max(c, 0.0) ** 2, 0.0)) for c in cosines[::-1])
        return {
            "bias": bias,
            "relative_bias": tuple(b / truth if truth else math.nan for b in bias),  # type: ignore[dict-item]
            "cosine": cosines,
            "direction_bias": (sines[0], sines[1]) if r else (found["direction_bias"],) * 2,
            "variance": (max(squares[0] - outer, 0.0), max(squares[1] - inner, 0.0))
            if r
            else (found["variance"],) * 2,
            "mse": (max(found["mse"] - half, 0.0), found["mse"] + half),
            "rescaled_mse": (
                self.rescaled(along + reach, squares[0]),
                self.rescaled(along - reach, squares[1]),
            ),
        }


def angles(cosine: float, radius: float, size: float) -> tuple[float, float]:
    """The cosines that the vectors in a ball around one of length `size` can have."""
    if math.isnan(cosine) or radius >= size:
        return (cosine, cosine) if radius == 0 else (-1.0, 1.0)
    centre, wide = math.acos(min(max(cosine, -1.0), 1.0)), math.asin(radius / size)
    if wide == 0:
        return cosine, cosine
    return math.cos(min(centre + wide, math.pi)), math.cos(max(centre - wide, 0.0))


def moments(gradients: Tensor, batches: Batches, truth: Tensor) -> Moments:
    """Moments of gradients [B, D] against the truth [D]; with errors where batches are a sample."""
    weights = batches.weights
    mean = weights @ gradients
    squares = gradients.square().sum(dim=1)
    square = float(weights @ squares)
    if batches.exact:
        return Moments(truth, mean, square, 0.0, 0.0, 0.0, 0.0, 0.0)
    count = len(gradients)
    off = (gradients - truth).square().sum(dim=1)
    covariance = torch.cov(gradients.T).reshape(len(mean), len(mean)) / count
    return Moments(
        truth,
        mean,
        square,
        square_error=float(squares.std() / count**0.5),
        error_variance=float(off.std() / count**0.5),
        radius=ball(covariance),
        noise=float(covariance.trace()),
        noise_across=float(covariance.trace() - truth @ covariance @ truth / (truth @ truth)),
    )


def ball(covariance: Tensor) -> float:
    """The radius that a normal vector of this covariance [D, D] stays within with 95 %: its squared
    norm is Σ λ_i χ²_1, taken to be a scaled χ² of the same mean and variance (Satterthwaite)."""
    from scipy.stats import chi2

    first = float(covariance.trace())
    second = float(covariance.square().sum())
    if second <= 0:
        return 0.0
    return math.sqrt(second / first * float(chi2.ppf(0.95, first**2 / second)))
