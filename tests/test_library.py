"""``import vqstack``: its names, training in one call, results that are short to read."""

import math
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from helpers import TINY, files_of, refused
from PIL import Image

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


class Pairs(torch.utils.data.Dataset):
    """Images and labels one by one, as torch has them."""

    def __init__(self, pixels, labels):
        self.pixels, self.labels = pixels, labels

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, number):
        return torch.from_numpy(self.pixels[number]), int(self.labels[number])


def rows(pixels, labels, **more):
    """The same as a data set of ``datasets``."""
    pictures = [Image.fromarray(image) for image in pixels]
    kinds = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["no", "yes"]))
    return datasets.Dataset.from_dict({"image": pictures, "label": labels.tolist()}, features=kinds)


def test_data_sets_of_torch_train_as_their_arrays_do():
    """They give the same model, to the bit."""
    pixels, labels = images()
    settings = vqstack.recipe(**TINY)
    first = vqstack.train(settings, pixels, labels, values=2).state_dict()
    second = vqstack.train(settings, Pairs(pixels, labels), values=2).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    refused(lambda: vqstack.train(settings, Pairs(pixels, labels), labels, values=2), "pairs")
    refused(lambda: vqstack.train(settings, Pairs([], []), values=2), "empty")


def test_data_sets_of_datasets_bring_classes_and_splits(tmp_path):
    """Of files that lie elsewhere, too: what is written beside the run holds them."""
    pixels, labels = images(shape=(8, 8, 3))
    files = [tmp_path / f"{number}.png" for number in range(len(pixels))]
    for path, image in zip(files, pixels, strict=True):
        Image.fromarray(image * 255).save(path)
    train = rows(pixels, labels).remove_columns("image").add_column("image", list(map(str, files)))
    train = train.cast_column("image", datasets.Image())
    settings = vqstack.recipe(**TINY)
    model = vqstack.train(settings, {"train": train, "test": rows(pixels[:7] * 255, labels[:7])}, out="run", values=2)
    assert model.settings.class_names == ("no", "yes") and model.settings.image_shape == (3, 8, 8)
    for path in files:
        path.unlink()
    config = vqstack.RunConfig.model_validate(yaml.safe_load(Path("run/config.yaml").read_text()))
    splits = vqstack.load_splits(config.data)
    assert len(splits["test"]) == 7 and len(splits["train"]) + len(splits["validation"]) == len(pixels)
    assert torch.equal(splits["test"].pixels, torch.from_numpy(pixels[:7]).movedim(-1, 1))
    refused(lambda: vqstack.train(settings, train, labels, values=2), "labels")
    refused(lambda: vqstack.train(settings, {"test": train}, values=2), "train")


class Witness(vqstack.Callback):
    def __init__(self):
        self.steps, self.evaluations, self.ends = [], [], []

    def on_step(self, phase, step, loss):
        self.steps.append((phase, step))
        assert math.isfinite(loss)

    def on_evaluation(self, phase, step, values):
        self.evaluations.append((phase, step, values["validation/nats"]))

    def on_phase_end(self, phase, nats):
        self.ends.append((phase, nats))


def test_callbacks_are_told_of_everything_and_change_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("VQSTACK_CACHE", str(tmp_path / "cache"))
    pixels, labels = images()
    witness, settings = Witness(), vqstack.recipe(**TINY)
    seen = vqstack.train(settings, pixels, labels, values=2, callbacks=[witness]).state_dict()
    alone = vqstack.train(settings, pixels, labels, values=2).state_dict()
    assert all(torch.equal(seen[name], alone[name]) for name in seen)
    phases = ["level-1", "level-2", "prior"]
    assert witness.steps == [(phase, step) for phase in phases for step in (1, 2, 3)]
    assert [(phase, step) for phase, step, _ in witness.evaluations] == [(phase, 3) for phase in phases]
    assert witness.ends == [(phase, nats) for phase, _, nats in witness.evaluations]
    assert not list(tmp_path.iterdir())  # no file, in the cache neither


def test_one_value_stands_for_all_parts():
    assert vqstack.SamplingSettings(temperature=0.5, mode=True).temperature == (0.5,)
    assert vqstack.SamplingSettings(temperature=0.5) == vqstack.SamplingSettings(temperature=(0.5,))
