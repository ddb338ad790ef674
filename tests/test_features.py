"""The classifier that compares images: trained once, the same each time, another one for other images."""

import math
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers import refused

from vqstack import features
from vqstack.errors import InputError
from vqstack.features import Classifier, TurnedSource, inception, trained_judge, turn, ways_to_turn
from vqstack.fit import Fit, FitSettings
from vqstack.images import ImageSettings, load_splits
from vqstack.sources import PixelSource

QUICK = FitSettings(steps=60, batch_size=32, learning_rate=5e-3, warmup=3, evaluate_every=60, ema=0.9)
ONE_STEP = FitSettings(steps=1, batch_size=8, evaluate_every=1)


@pytest.fixture(scope="module")
def digits():
    return load_splits(ImageSettings(source="digits"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def judge(digits, cache):
    return train(digits, cache, QUICK)


def train(splits, cache, settings=ONE_STEP):
    return trained_judge(splits["train"], splits["validation"], cache, Accelerator(cpu=True), settings)


def test_it_learns_the_classes(judge, digits):
    found = judge.classes(digits["validation"].pixels)
    right = (found == digits["validation"].labels).double().mean().item()
    assert right == pytest.approx(judge.accuracy)
    assert judge.accuracy > 0.5  # a guess is right once in ten times


def test_features_are_few_and_of_each_image_alone(judge, digits):
    pixels = digits["test"].pixels
    found = judge.features(pixels)
    assert found.shape == (len(pixels), 64)
    assert not judge.network.training
    torch.testing.assert_close(judge.features(pixels[5:7]), found[5:7])
    logits = judge.network.last(found)
    assert torch.equal(logits.argmax(1), judge.classes(pixels))


def test_it_is_read_from_the_cache(judge, digits, cache, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("trained again")

    monkeypatch.setattr(features, "_train", refuse)
    again = train(digits, cache, QUICK)
    assert again.accuracy == judge.accuracy
    pixels = digits["test"].pixels[:20]
    assert torch.equal(again.features(pixels), judge.features(pixels))


def test_of_two_commands_at_once_the_second_reads_what_the_first_trains(digits, tmp_path, monkeypatch):
    seconds, second_trains = [], Event()

    class Watched(Fit):
        def run(self):
            if seconds:
                second_trains.set()
            else:
                seconds.append(pool.submit(train, digits, tmp_path))
                assert not second_trains.wait(1)  # it would have begun within that second
            return super().run()

    monkeypatch.setattr(features, "Fit", Watched)
    with ThreadPoolExecutor() as pool:
        first = train(digits, tmp_path)
        second = seconds[0].result()
    assert not second_trains.is_set()
    for ours, theirs in zip(first.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_same_wherever_it_is_trained(digits, tmp_path):
    one = train(digits, tmp_path / "a")
    torch.manual_seed(99)
    before = torch.get_rng_state()
    other = train(digits, tmp_path / "b")
    assert torch.equal(torch.get_rng_state(), before)
    for ours, theirs in zip(one.network.parameters(), other.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_other_images_have_another_classifier(digits, tmp_path):
    training = digits["train"]
    pixels = training.pixels.clone()
    pixels[3, 0, 0, 0] += 1
    changed = [{}, {}, {"stored": pixels}, {"labels": training.labels.flip(0)}]
    for changes in changed:
        train({**digits, "train": replace(training, **changes)}, tmp_path)
    train(digits, tmp_path, ONE_STEP.model_copy(update={"batch_size": 4}))
    folders = list(tmp_path.iterdir())
    assert len(folders) == 4  # the second was the first
    assert all(
        {p.name for p in folder.iterdir()} == {".lock", "DONE", "best.pt", "metrics.jsonl"} for folder in folders
    )


def test_images_without_labels_are_refused(digits, tmp_path):
    with pytest.raises(InputError, match="no labels"):
        trained_judge(replace(digits["train"], labels=None), digits["validation"], tmp_path, Accelerator(cpu=True))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 28, 28), (1, 100), (1, 4, 6, 6)], ids=str)
def test_inputs_of_any_size_and_number_of_axes_have_64_features(shape):
    assert Classifier(shape, 256, 5).features(torch.zeros(2, *shape, dtype=torch.uint8)).shape == (2, 64)


def test_inception_that_cannot_be_had_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    refused(lambda: inception(256, torch.device("cpu")), "vqstack[fid]")


@pytest.mark.parametrize("shape", [(1, 6, 6), (2, 4, 6), (1, 12), (1, 2, 4, 3)])
def test_ways_to_turn_are_different_and_lead_back(shape):
    pixels = torch.arange(math.prod(shape), dtype=torch.uint8).view(1, *shape)
    ways = ways_to_turn(shape[1:])
    found = [turn(pixels, way) for way in range(ways)]
    assert torch.equal(found[0], pixels)
    assert len({tuple(image.flatten().tolist()) for image in found}) == ways
    assert all(image.shape == pixels.shape for image in found)
    source = TurnedSource(PixelSource(pixels.expand(5, *shape)))
    for epoch in (None, 0, 3):
        epochs = None if epoch is None else torch.full((5,), epoch)
        images, labels = source.batch(torch.arange(5), epochs)
        assert labels.tolist() == [(i + (epoch or 0)) % ways for i in range(5)]
        assert all(torch.equal(image, found[way][0]) for image, way in zip(images, labels.tolist(), strict=True))


def test_without_labels_it_learns_which_way_images_are_turned(tmp_path):
    """Bright above, dark below: no image looks like another way of it."""
    shades = torch.linspace(16, 0, 8).round().to(torch.uint8).view(1, 1, 8, 1).expand(60, 1, 8, 8)
    pixels = (shades + torch.randint(0, 2, (60, 1, 8, 8), dtype=torch.uint8)).clamp(max=16).numpy()[:, 0]
    np.save(tmp_path / "images.npy", pixels)
    data = ImageSettings(
        source="array", files={"train": str(tmp_path / "images.npy")}, values=17, validation=20, test=2
    )
    splits = load_splits(data)
    few = FitSettings(steps=60, batch_size=16, warmup=5, evaluate_every=30, learning_rate=3e-3)
    given = splits["train"], splits["validation"], tmp_path / "cache", Accelerator(cpu=True), few
    with pytest.raises(InputError, match="no labels"):
        trained_judge(*given)
    judge = trained_judge(*given, turned=True)
    assert judge.accuracy > 0.9
    assert trained_judge(*given, turned=True).accuracy == judge.accuracy  # from the cache
