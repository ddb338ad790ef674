"""Distances between sets of images, each computed another way."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from vqstack.metrics import FidelityMeter, Gaussian, frechet_distance, gaussian_distance, precision_recall


def covariance(dimensions, rank=None):
    root = torch.randn(dimensions, rank or dimensions, dtype=torch.float64)
    return root @ root.T


@pytest.mark.parametrize("rank", [None, 3], ids=["full rank", "singular"])
def test_distance_of_any_gaussians(rank):
    """The root of the product by Schur decomposition; for singular ones a multiple of the identity is added there."""
    a, b = (Gaussian(torch.randn(5, dtype=torch.float64), covariance(5, rank)) for _ in range(2))
    shift = 0 if rank is None else 1e-10 * np.eye(5)
    root = scipy.linalg.sqrtm((a.covariance.numpy() + shift) @ (b.covariance.numpy() + shift)).real
    traces = (a.covariance.trace() + b.covariance.trace()).item()
    expected = (a.mean - b.mean).square().sum().item() + traces - 2 * np.trace(root)
    assert gaussian_distance(a, b) == pytest.approx(expected, rel=1e-9 if rank is None else 1e-4)
    assert gaussian_distance(a, b) == pytest.approx(gaussian_distance(b, a), rel=1e-9)


def test_distance_of_features():
    real, drawn = torch.randn(300, 4), 2 * torch.randn(200, 4) + 1
    a, b = (Gaussian(torch.from_numpy(x.mean(0)), torch.from_numpy(np.cov(x.T)))
            for x in (real.double().numpy(), drawn.double().numpy()))  # fmt: skip
    assert frechet_distance(real, drawn) == pytest.approx(gaussian_distance(a, b), rel=1e-9)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(real, real + torch.tensor([3.0, 0, 0, 4])) == pytest.approx(25, rel=1e-5)


def test_distance_with_fewer_images_than_features():
    few = torch.randn(8, 20)
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(few, few + 1) == pytest.approx(20, rel=1e-5)


def brute_precision(real, drawn, k):
    inside = 0
    for x in drawn:
        for i, centre in enumerate(real):
            others = sorted(math.dist(centre, y) for j, y in enumerate(real) if j != i)
            if math.dist(x, centre) <= others[k - 1]:
                inside += 1
                break
    return inside / len(drawn)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_by_brute_force(k):
    real, drawn = torch.randn(30, 2), 1.5 * torch.randn(25, 2) + 2
    rows = real.double().tolist(), drawn.double().tolist()
    expected = brute_precision(*rows, k), brute_precision(*rows[::-1], k)
    assert precision_recall(real, drawn, k) == pytest.approx(expected)
    assert 0 < expected[0] < 1
    assert 0 < expected[1] < 1


def test_precision_and_recall_at_the_ends():
    real = torch.randn(40, 3)
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real, real + 100) == (0, 0)
    one_mode = real[:1] + 0.001 * torch.randn(40, 3)
    precision, recall = precision_recall(real, one_mode)
    assert precision == 1
    assert recall < 0.1


def test_fidelity_over_batches():
    meter, wanted = FidelityMeter(17), torch.randint(0, 17, (10, 1, 8, 8), dtype=torch.uint8)
    found = (wanted.int() + torch.randint(-1, 2, wanted.shape)).clamp(0, 16).to(torch.uint8)
    for part in (slice(0, 7), slice(7, 10)):
        meter.add(found[part], wanted[part])
    error = (found.double() - wanted.double()).square().mean().item()
    assert meter.read().psnr == pytest.approx(10 * math.log10(16**2 / error), rel=1e-5)
    ssim = meter.read().ssim
    assert ssim is not None
    assert 0.8 < ssim < 1
    alone = FidelityMeter(17)
    alone.add(found, wanted)
    assert alone.read().ssim == pytest.approx(ssim, rel=1e-5)


def test_fidelity_of_equal_and_of_tiny_images():
    meter, same = FidelityMeter(256), torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    meter.add(same, same)
    assert meter.read().psnr is None  # infinite
    assert meter.read().ssim == pytest.approx(1)
    tiny = FidelityMeter(256)
    tiny.add(same[..., :4, :4], same.flip(0)[..., :4, :4])
    assert tiny.read().ssim is None  # no room for the window
    assert tiny.read().psnr is not None
