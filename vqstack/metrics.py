"""How near one set of images is to another: Fréchet distance, precision and recall, PSNR and SSIM.

None of these is a likelihood, and none enters the ledger. Distances are taken between features, one row an image;
where the features come from is not known here.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from vqstack.errors import extra
from vqstack.shapes import Pixels

Features = Float[Tensor, "_ d"]
"""One row an image."""


@dataclass(frozen=True)
class Gaussian:
    """Mean and covariance of features, float64."""

    mean: Float64[Tensor, "d"]
    covariance: Float64[Tensor, "d d"]

    @classmethod
    def fitted(cls, features: Features) -> "Gaussian":
        """Mean and unbiased covariance of at least two rows."""
        rows = features.cpu().double()
        mean = rows.mean(0)
        centred = rows - mean
        return cls(mean, centred.T @ centred / (len(rows) - 1))

    @classmethod
    def of_moments(cls, moments: Float64[Tensor, "e e"]) -> "Gaussian":
        """The same from ``sum x̃ x̃ᵀ`` with ``x̃ = (1, x)``, which can be added up over batches and processes."""
        sums = moments.cpu().double()
        count, mean = sums[0, 0], sums[0, 1:] / sums[0, 0]
        return cls(mean, (sums[1:, 1:] - count * mean.outer(mean)) / (count - 1))


def gaussian_distance(a: Gaussian, b: Gaussian) -> float:
    """``|m_a - m_b|² + tr(C_a + C_b - 2 (C_a C_b)^(1/2))`` (Dowson and Landau 1982), squared units of the features.

    The trace of the root is the sum of the roots of the eigenvalues of ``C_a^(1/2) C_b C_a^(1/2)``, which is symmetric
    and has those of ``C_a C_b``: covariances of few images are singular, and the root of the product itself is then
    not stable.
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    shared = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * shared
    return max(distance.item(), 0.0)  # rounding may lead below zero


def frechet_distance(a: Features, b: Features) -> float:
    """Fréchet distance (Heusel et al. 2017) of two sets of features, each taken for a Gaussian.

    It shrinks with the number of images: compare only distances of equal counts, and with that of two sets of real
    images.
    """
    return gaussian_distance(Gaussian.fitted(a), Gaussian.fitted(b))


def _covered(points: Features, by: Features, k: int) -> float:
    """Share of ``points`` inside the union of balls around each of ``by`` that reach its k-th nearest neighbour."""
    # The shortcut by matrix products would round: a point on the edge of a ball must find itself there.
    exact = "donot_use_mm_for_euclid_dist"
    radii = torch.cdist(by, by, compute_mode=exact).kthvalue(k + 1).values  # the nearest is the point itself
    return (torch.cdist(points, by, compute_mode=exact) <= radii).any(1).double().mean().item()


def precision_recall(real: Features, drawn: Features, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019), shares in [0, 1].

    Precision: how many of the drawn images lie inside the manifold of the real ones; recall: the reverse. A manifold
    is the union of balls around its images, each as wide as the distance to the k-th nearest of the others.

    Args:
        real, drawn: features; more than k rows each.
        k: neighbours.
    """
    real, drawn = real.cpu().double(), drawn.cpu().double()
    return _covered(drawn, real, k), _covered(real, drawn, k)


@dataclass(frozen=True)
class Fidelity:
    """How near reconstructions are: PSNR, decibels, and SSIM, at most 1; None where it is not finite or undefined."""

    psnr: float | None
    ssim: float | None


class FidelityMeter:
    """PSNR of the mean squared error, and mean SSIM (11x11 Gaussian window), over batches of images.

    Args:
        values: V; the range of a pixel is V-1.
    """

    def __init__(self, values: int) -> None:
        missing = "evaluate: torchmetrics is not installed: install it with pip install 'vqstack[evaluate]'"
        library = extra("torchmetrics.image", missing)  # seconds to import
        self._psnr = library.PeakSignalNoiseRatio(data_range=values - 1.0)
        self._ssim = library.StructuralSimilarityIndexMeasure(data_range=values - 1.0)
        self._windowed = True

    def add(self, pixels: Pixels, originals: Pixels, inside: Bool[Tensor, "b c *map"] | None = None) -> None:
        """Count one batch, for PSNR those numbers alone that are ``inside``."""
        a, b = pixels.cpu().float(), originals.cpu().float()
        self._psnr.update(*((a, b) if inside is None or inside.all() else (a[inside], b[inside])))
        self._windowed = min(a.shape[-2:]) > 5  # the window's half, which is reflected at the edges
        if self._windowed:
            self._ssim.update(a, b)

    def read(self) -> Fidelity:
        """Over everything that was added."""
        psnr = float(self._psnr.compute())
        ssim = float(self._ssim.compute()) if self._windowed else None  # type: ignore[arg-type]  # no full image asked
        return Fidelity(psnr if math.isfinite(psnr) else None, ssim)
