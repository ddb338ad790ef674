"""A model and a data set of codes know classes by their names: whatever brings labels to them is matched by these."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import randomised, refused
from pydantic import ValidationError
from test_images import png

from vqstack.codes import CodeDataset
from vqstack.config import RunConfig
from vqstack.images import ImageSettings, load_splits
from vqstack.model import HierarchicalModel
from vqstack.model_settings import ModelSettings
from vqstack.phases import in_classes_of

ROOT = Path(__file__).parents[1]
ENCODE, EVALUATE, GENERATE, COMPRESS = (
    ROOT / "tools" / f"{name}.py" for name in ("encode_dataset", "evaluate", "generate", "compress")
)
NAMES = ("cat", "dog", "owl")
GEOMETRY = ("--data.size", "4", "4", "--data.values", "256")


def built(names=NAMES, labels=True) -> HierarchicalModel:
    config = RunConfig.model_validate(
        {
            "data": {"source": "parquet", "files": {"train": "x"}},
            "levels": [{"map": [2, 2], "width": 8, "quantizer": {"codebook_size": 4, "dim": 4}}],
            "prior": {"depth": 1, "dim": 8, "heads": 2, "labels": labels},
        }
    )
    torch.manual_seed(0)
    model = HierarchicalModel(config.model_settings((1, 4, 4), 3, names)).eval()
    randomised(model.prior, 0.5)  # its last layer starts at zero: then no class would matter
    if model.classes:
        model.count_labels(torch.tensor([0, 0, 0, 0, 1, 2, 2]))
    return model


@pytest.fixture
def model(tmp_path):
    built().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def folder(path, names, count=6) -> list[str]:
    """Options that name a test folder of these classes; images of one class are the same whatever the folder holds."""
    for name in names:
        (path / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.random.default_rng([number, len(name), ord(name[0])]).integers(0, 256, (1, 4, 4), np.uint8)
            (path / name / f"{number}.png").write_bytes(png(pixels))
    return ["--data.source", "imagefolder", "--data.files", "test", str(path), *GEOMETRY]


def settings(path) -> ImageSettings:
    return ImageSettings(source="imagefolder", files={"test": str(path)}, size=(4, 4))


@pytest.mark.parametrize("names", [("dog", "owl"), ("owl",), NAMES])
def test_a_test_folder_of_some_classes_is_scored_by_their_names(tmp_path, model, call, names):
    given = folder(tmp_path / "test", names)
    code, _, err = call(EVALUATE, model, "--out", tmp_path / "out", "--no-samples", "--cpu", *given)
    assert (code, err) == (0, "")
    found = json.loads((tmp_path / "out" / "evaluate.json").read_text())["ledger"]["feed-forward"]["rows"]
    split = load_splits(settings(tmp_path / "test"), ["test"])["test"]
    labels = torch.tensor([NAMES.index(name) for name in sorted(names) for _ in range(6)])
    expected = HierarchicalModel.from_pretrained(model).ledger(split.pixels, labels).to_json()["rows"]
    assert [row["nats"] for row in found] == pytest.approx([row["nats"] for row in expected], rel=1e-5)


def test_other_classes_are_refused_with_both_lists(tmp_path, model, call):
    given = folder(tmp_path / "test", ("ant", "bee", "cow"))
    for tool in (EVALUATE, ENCODE):
        code, _, err = call(
            tool, model, "--out", tmp_path / "out", "--cpu", *given, *(["--no-samples"] * (tool == EVALUATE))
        )
        assert code == 2 and "ant, bee, cow" in err and "cat, dog, owl" in err and err.count("\n") == 1
        assert not (tmp_path / "out").exists()


def test_numbers_are_matched_by_the_names_that_are_given(tmp_path, model, call):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 4, 4), np.uint8)
    np.savez(tmp_path / "a.npz", images=pixels, labels=np.arange(9) % 2)
    given = ["--data.source", "array", "--data.files", "test", tmp_path / "a.npz", "--no-samples", "--cpu", *GEOMETRY]
    code, _, err = call(EVALUATE, model, "--out", tmp_path / "out", *given)
    assert code == 2 and "class_names" in err
    code, _, err = call(EVALUATE, model, "--out", tmp_path / "out", *given, "--data.class-names", "owl", "dog")
    assert (code, err) == (0, "")
    found = json.loads((tmp_path / "out" / "evaluate.json").read_text())["ledger"]["feed-forward"]["rows"][0]
    labels = torch.tensor([2, 1] * 4 + [2])
    expected = -HierarchicalModel.from_pretrained(model).label_probs[labels].log().double().mean().item()
    assert found["row"] == "label" and found["nats"] == pytest.approx(expected, rel=1e-5)


def test_stored_codes_have_the_names_and_numbers_of_the_model(tmp_path, model, call):
    given = folder(tmp_path / "test", ("dog", "owl"))
    code, _, err = call(ENCODE, model, "--out", tmp_path / "codes", "--cpu", *given)
    assert (code, err) == (0, "")
    stored = CodeDataset(tmp_path / "codes")
    assert stored.class_names == list(NAMES)
    assert stored.read("test").labels.tolist() == [1] * 6 + [2] * 6
    manifest = tmp_path / "codes" / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["class_names"]  # as older ones are
    manifest.write_text(json.dumps(content))
    assert CodeDataset(tmp_path / "codes").class_names == []


def test_a_model_without_labels_keeps_the_names_of_the_data(tmp_path, call):
    built(labels=False).save_pretrained(tmp_path / "model")
    given = folder(tmp_path / "test", ("ant", "bee"))
    assert call(ENCODE, tmp_path / "model", "--out", tmp_path / "codes", "--cpu", *given)[0] == 0
    stored = CodeDataset(tmp_path / "codes")
    assert stored.class_names == ["ant", "bee"] and stored.read("test").labels.tolist() == [0] * 6 + [1] * 6


def test_labels_of_generate_are_names_or_numbers(tmp_path, model, call):
    given = ["--num", 4, "--device", "cpu"]
    assert call(GENERATE, model, *given, "--out", tmp_path / "a", "--label", "owl", "cat")[0] == 0
    assert call(GENERATE, model, *given, "--out", tmp_path / "b", "--label", 2, 0)[0] == 0
    images = [json.loads((tmp_path / name / "manifest.json").read_text())["images"] for name in "ab"]
    assert images[0] == images[1]
    assert [(image["label"], image["class"]) for image in images[0]] == [(2, "owl"), (0, "cat")] * 2
    assert (tmp_path / "a" / "000003.png").read_bytes() == (tmp_path / "b" / "000003.png").read_bytes()
    code, _, err = call(GENERATE, model, *given, "--out", tmp_path / "c", "--label", "cow")
    assert code == 2 and "cow" in err and "cat, dog, owl" in err and not (tmp_path / "c").exists()


def test_the_label_of_compress_is_a_name_or_a_number(tmp_path, model, call):
    folder(tmp_path / "images", ("dog",))
    given = [model, tmp_path / "images" / "dog", "--out"]
    assert call(COMPRESS, *given, tmp_path / "a", "--label", "dog")[0] == 0
    assert call(COMPRESS, *given, tmp_path / "b", "--label", 1)[0] == 0
    one, other = (next((tmp_path / name).glob("images.*")).read_bytes() for name in "ab")
    assert one == other
    code, _, err = call(COMPRESS, *given, tmp_path / "c", "--label", "cow")
    assert code == 2 and "cat, dog, owl" in err and not (tmp_path / "c").exists()


def test_a_name_comes_before_a_number():
    found = built(names=("2", "1", "0")).settings
    assert [found.class_number(name) for name in ("2", "1", "0")] == [0, 1, 2]


def test_an_older_model_knows_numbers(tmp_path, caplog):
    old = built(names=())
    folder(tmp_path / "three", NAMES)
    splits = load_splits(settings(tmp_path / "three"), ["test"])
    assert in_classes_of(old, splits)["test"] is splits["test"]
    assert "cat, dog, owl" in caplog.text
    folder(tmp_path / "two", NAMES[1:])
    refused(lambda: in_classes_of(old, load_splits(settings(tmp_path / "two"), ["test"])), "dog, owl", "3")
    content = built().settings.model_dump(mode="json")
    del content["class_names"]
    assert ModelSettings.model_validate(content) == old.settings


@pytest.mark.parametrize("names", [("cat", "dog"), ("cat", "dog", "dog"), (*NAMES, "dog")])
def test_every_class_has_a_name_of_its_own(names):
    with pytest.raises(ValidationError, match="class_names"):
        built(names=names)


def test_a_class_is_found_in_either_form_of_its_name():
    model = built(("caf\u00e9", "cafe", "tea"))
    assert [model.settings.class_number(name) for name in ("cafe\u0301", "caf\u00e9", "cafe")] == [0, 0, 1]
