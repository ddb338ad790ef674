"""``import vqstack``: its names, training in one call, results that are short to read."""

import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest
import torch
from helpers import TINY, files_of, refused

import vqstack


def images(count=60, shape=(8, 8), seed=0):
    """Images of two values, and of what class they are by their first pixel."""
    pixels = np.random.default_rng(seed).integers(0, 2, (count, *shape), dtype=np.uint8)
    return pixels, pixels.reshape(count, -1)[:, 0]


def test_names_are_those_of_their_modules_and_come_when_used():
    code = "import vqstack, sys; dir(vqstack); print('torch' in sys.modules); vqstack.HierarchicalModel"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True).stdout
    assert out == "False\n"
    listed = [name for names in vqstack._PLACES.values() for name in names]
    assert sorted(listed) == vqstack.__all__ and set(listed) <= set(dir(vqstack))
    for module, names in vqstack._PLACES.items():
        for name in names:
            assert getattr(vqstack, name) is getattr(import_module(f"vqstack.{module}"), name)
    with pytest.raises(AttributeError, match="nonsense"):
        vqstack.nonsense  # noqa: B018


def test_a_recipe_with_changes():
    plain, changed = vqstack.recipe(), vqstack.recipe("digits", seed=3, train_levels={"steps": 7}, prior={"depth": 1})
    assert changed.seed == 3 and changed.prior == plain.prior.model_copy(update={"depth": 1})
    assert [fit.steps for fit in changed.train_levels] == [7] * len(plain.train_levels)
    assert changed.train_levels[0] == plain.train_levels[0].model_copy(update={"steps": 7})
    assert changed.levels == plain.levels
    refused(lambda: vqstack.recipe("digits", sed=3), "sed")
    refused(lambda: vqstack.recipe("digits", train_levels={"steps": -1}), "steps")
    refused(lambda: vqstack.recipe("digits", data={"files": {"train": "x"}}), "files")
    refused(lambda: vqstack.recipe("digit"), "digits")
    assert vqstack.recipe("digits", refiners=()).train_refiners == vqstack.RunConfig().train_refiners  # of no use now
    refused(lambda: vqstack.recipe("digits", refiners=(), train_refiners={"steps": 7}), "train_refiners")


def test_training_from_arrays_keeps_nothing_but_the_model(tmp_path):
    pixels, labels = images()
    threads = torch.get_num_threads()
    model = vqstack.train(vqstack.recipe(**TINY), torch.from_numpy(pixels), labels.tolist(), values=2)
    assert isinstance(model, vqstack.HierarchicalModel) and not model.training
    assert (model.settings.image_shape, model.settings.values, model.classes) == ((1, 8, 8), 2, 2)
    assert model.ledger(torch.from_numpy(pixels)[:, None], torch.from_numpy(labels).long()).bits > 0
    assert torch.get_num_threads() == threads
    assert not list(tmp_path.iterdir())


def test_a_run_from_arrays_goes_on_and_refuses_other_images(tmp_path, capsys):
    pixels, labels = images(shape=(8, 8, 3))
    settings, names = vqstack.recipe(**TINY), np.array(["no", "yes"])[labels]
    model = vqstack.train(settings, pixels, names, out=tmp_path / "run", values=2)
    assert model.settings.image_shape == (3, 8, 8) and model.settings.class_names == ("no", "yes")
    before = files_of(tmp_path)
    capsys.readouterr()
    again = vqstack.train(settings, pixels, names, out=tmp_path / "run", values=2)
    assert "level-1: done before" in capsys.readouterr().out
    loaded = vqstack.load(tmp_path / "run")
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]) and torch.equal(value, loaded.state_dict()[name])
    assert files_of(tmp_path) == before
    others, _ = images(shape=(8, 8, 3), seed=1)
    refused(lambda: vqstack.train(settings, others, names, out=tmp_path / "run", values=2), "other settings")
    assert files_of(tmp_path) == before


def test_wrong_arrays_are_refused_and_leave_nothing(tmp_path):
    pixels, labels = images()
    settings = vqstack.recipe(**TINY)
    for words, given in (
        (("labels", "59", "60"), {"images": pixels, "labels": labels[:59]}),
        (("uint8",), {"images": pixels.astype(float)}),
        (("labels", "images"), {"labels": labels}),
        (("levels", "map"), {"images": images(shape=(7, 7))[0]}),
    ):
        refused(lambda given=given: vqstack.train(settings, out=tmp_path / "run", **given), *words)
        assert not list(tmp_path.iterdir())


def test_results_are_shown_in_a_line():
    """As are the tensors that they hold, however many: a notebook shows the last value of a cell."""
    splits = vqstack.load_splits(vqstack.ImageSettings())
    model = vqstack.HierarchicalModel(vqstack.recipe().model_settings((1, 8, 8), 10))
    pixels, labels = splits["test"].pixels[:3], splits["test"].labels[:3]
    ledger = model.ledger(pixels, labels)
    assert repr(ledger).startswith(f"Ledger({ledger.bits:.2f} bits per image, 3 images: label ")
    assert repr(splits["test"]) == "ImageSplit(test: 297 images [1, 8, 8], 10 classes)"
    assert repr(model.sample(2, seed=1)).startswith("Sample(2 images [1, 8, 8], z_1 [")
