"""Samples against held-out images: equal counts, disjoint halves, real images reach the floor."""

import math

import pytest
import torch

from vqstack.errors import InputError
from vqstack.images import ImageSettings, load_splits
from vqstack.metrics import frechet_distance, precision_recall
from vqstack.model import HierarchicalModel
from vqstack.model_settings import ModelSettings, SamplingSettings
from vqstack.quality import compare, draw_samples, drawn_by_default, images_a_side


def by_pixels(pixels):
    return pixels.flatten(1)[:, 18:24].float()


@pytest.fixture(scope="module")
def test_split():
    return load_splits(ImageSettings(source="digits"), ["test"])["test"]


def test_counts(test_split):
    assert images_a_side(None, test_split) == len(test_split) // 2 == 148
    assert images_a_side(20, test_split) == 20
    with pytest.raises(InputError, match=r"--num: 149 .* choose 148 at most"):
        images_a_side(149, test_split)
    with pytest.raises(InputError, match="too few"):
        images_a_side(4, test_split)


def test_halves_are_disjoint_and_as_large_as_the_samples(test_split):
    given = []

    def numbers(pixels):
        """Each image known by its position in the split."""
        given.append(len(pixels))
        return torch.arange(len(pixels), dtype=torch.float32)[:, None].expand(-1, 2)

    order = torch.randperm(len(test_split), generator=torch.Generator().manual_seed(7))
    drawn = torch.arange(50, dtype=torch.float32)[:, None].expand(-1, 2)
    quality = compare(lambda seed: (test_split.pixels[:50], None), test_split, 50, [7], numbers, None)
    (found,) = quality.comparisons
    one, other = (order[part].float()[:, None].expand(-1, 2) for part in (slice(50), slice(50, 100)))
    assert given == [len(test_split), 50]
    assert found.distance == pytest.approx(frechet_distance(drawn, one))
    assert found.floor == pytest.approx(frechet_distance(other, one))
    assert (found.precision, found.recall) == precision_recall(one, drawn)
    assert (found.floor_precision, found.floor_recall) == precision_recall(one, other)
    assert found.accuracy is found.floor_accuracy is None


def test_real_images_are_near_the_floor_and_noise_is_not(test_split):
    def real(seed):
        chosen = torch.randperm(len(test_split), generator=torch.Generator().manual_seed(100 + seed))[:100]
        return test_split.pixels[chosen], None

    def scatter(seed):
        return torch.randint(0, 17, (100, 1, 8, 8), dtype=torch.uint8), None

    near, far = (compare(draw, test_split, 100, [0, 1, 2], by_pixels, None) for draw in (real, scatter))
    assert near.mean("distance") < 2 * near.mean("floor")
    assert far.mean("distance") > 10 * far.mean("floor")
    assert far.mean("floor") == near.mean("floor")
    assert far.mean("precision") < near.mean("precision")


def test_class_accuracy(test_split):
    pixels = test_split.pixels[:10].clone()
    # The classifier of this test names an image by its first pixel; the last image is of another class than asked.
    pixels[:, 0, 0, 0] = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 0])

    def draw(seed):
        return pixels, torch.arange(10)

    quality = compare(draw, test_split, 10, [0, 1], by_pixels, lambda x: x[:, 0, 0, 0].long())
    assert quality.mean("accuracy") == pytest.approx(0.9)
    assert quality.deviation("accuracy") == 0
    summary = quality.to_json()["summary"]
    assert summary["accuracy"] == {"mean": pytest.approx(0.9), "deviation": 0.0}
    assert summary["distance"]["mean"] == pytest.approx(sum(c.distance for c in quality.comparisons) / 2)


def test_samples_in_any_batches():
    settings = ModelSettings.model_validate({"image_shape": (1, 8, 8), "values": 17, "classes": 3})
    model = HierarchicalModel(settings).eval()
    pixels, labels = draw_samples(model, 7, 5, SamplingSettings(), batch_size=3)
    whole = model.sample(7, seed=5)
    assert torch.equal(pixels, whole.pixels)
    assert torch.equal(labels, whole.labels)
    assert len(set(labels.tolist())) > 1


def test_large_images_are_drawn_in_the_time_of_small_ones():
    """By default; below 32x32 pixels as many as ever."""
    assert drawn_by_default((8, 8)) == drawn_by_default((32, 32)) == 1000
    for size in ((64, 64), (48, 80), (96, 96)):
        assert drawn_by_default(size) * math.prod(size) <= 2**20
    assert drawn_by_default((2048, 2048)) == 100
