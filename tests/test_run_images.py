"""The images of a run are part of it: others are refused, and what was released stays whatever becomes of them."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator
from helpers import files_of, refused
from PIL import ImageColor
from test_images import png, random_pixels, write_parquet
from test_reuse import config, train

from vqstack.codes import CodeDataset
from vqstack.errors import InputError
from vqstack.images import survey, whole_splits
from vqstack.model import HierarchicalModel
from vqstack.phases import Run, data_of_run, warn_of_changes

ROOT = Path(__file__).parents[1]


def write(folder, counts, seed=0):
    """Arrays of 8x8 images: split -> how many."""
    folder.mkdir(exist_ok=True)
    for name, count in counts.items():
        values = np.random.default_rng([seed, *name.encode()])
        pixels = values.integers(0, 17, (count, 8, 8), dtype=np.uint8)
        np.savez(folder / f"{name}.npz", images=pixels, labels=np.arange(count) % 3)
    return folder


COUNTS = {"train": 24, "validation": 8, "test": 8}


def settings(**changes):
    files = {name: f"data/{name}.npz" for name in COUNTS}
    return config(data={"source": "array", "files": files, "values": 17, "size": (8, 8)}, **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run beside its images, and the same run stopped after its first level; tests take copies."""
    folder = tmp_path_factory.mktemp("whole")
    write(folder / "data", COUNTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run = Run(settings(), folder / "stopped", Accelerator(cpu=True))
        run.train(run.phases["level-1"])
        run.close()
        train(settings(), folder / "finished")
    return folder


@pytest.fixture
def images(whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


@pytest.fixture
def stopped(images):
    return images.parent / "stopped"


@pytest.fixture
def finished(images):
    return images.parent / "finished"


def rewrite(path, **changes):
    with np.load(path) as content:
        np.savez(path, **{**content, **changes})


def turned(folder):
    with np.load(folder / "train.npz") as content:
        rewrite(folder / "train.npz", images=content["images"][::-1])


CHANGES = {
    "more": (lambda folder: write(folder, {"train": 26}), "images.train.count: 24 → 26"),
    "others": (lambda folder: write(folder, {"train": 24}, seed=1), "images.train.pixels"),
    "test": (lambda folder: write(folder, {"test": 8}, seed=1), "images.test.pixels"),
    "labels": (lambda folder: rewrite(folder / "train.npz", labels=np.arange(24)[::-1] % 3), "images.train.labels"),
    "class": (lambda folder: rewrite(folder / "train.npz", labels=np.arange(24) % 4), "train.classes.3: None → 6"),
    "order": (turned, "images.train.pixels"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_stopped_run_is_not_gone_on_with_on_other_images(stopped, images, change):
    before = files_of(stopped)
    CHANGES[change][0](images)
    refused(lambda: Run(settings(), stopped, Accelerator(cpu=True)), CHANGES[change][1], "--override-config")
    assert files_of(stopped) == before


def test_images_that_only_look_new_are_the_same(stopped, images, tmp_path):
    for name in COUNTS:
        os.utime(images / f"{name}.npz", (1, 1))
    Run(settings(), stopped, Accelerator(cpu=True)).close()
    kept = (stopped / "images.json").read_bytes()
    assert json.loads(kept.splitlines()[0])["train"]["classes"] == {"0": 8, "1": 8, "2": 8}


def test_an_override_goes_on_with_the_images_of_today(stopped, images):
    write(images, {"train": 26})
    Run(settings(), stopped, Accelerator(cpu=True), override=True).close()
    (row,) = map(json.loads, (stopped / "config-history.jsonl").read_text().splitlines())
    assert row["override"] and row["changes"]["images.train.count"] == [24, 26]
    Run(settings(), stopped, Accelerator(cpu=True)).close()  # they are its images now


@pytest.mark.parametrize("change", ["more", "test", "labels"])
def test_what_a_run_released_stays(finished, images, change, capsys):
    """Another P(label) would be another model, which refuses what the released one has compressed."""
    before = files_of(finished)
    CHANGES[change][0](images)
    with pytest.raises(InputError, match="other images"):
        Run(settings(), finished, Accelerator(cpu=True))
    assert files_of(finished) == before
    run = Run(settings(), finished, Accelerator(cpu=True), override=True)
    for phase in run.phases.values():
        run.train(phase)
    run.release()
    run.close()
    after = files_of(finished)
    assert {name for name in after if before.get(name) != after[name]} == {p for p in after if p.startswith("config-")}
    assert "released before" in capsys.readouterr().out


def test_what_an_older_run_released_stays(finished, images):
    """It kept nothing of its images."""
    (finished / "images.json").unlink()
    before = files_of(finished / "model"), (finished / "ledger.json").read_bytes()
    write(images, {"train": 26})
    train(settings(), finished)
    assert (files_of(finished / "model"), (finished / "ledger.json").read_bytes()) == before


@pytest.mark.parametrize("lost", ["ledger.json", "model/config.json", "model/README.md", "model/model.safetensors"])
def test_a_release_that_was_lost_is_made_again(finished, images, lost):
    before = files_of(finished)
    (finished / lost).unlink()
    train(settings(), finished)
    assert files_of(finished) == before
    if not lost.endswith("README.md"):  # which has no checksum
        shutil.copy(finished / "config.yaml", finished / lost)  # damaged
        train(settings(), finished)
        assert files_of(finished) == before


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_a_ledger_that_is_not_finite_is_made_again(finished, images, number):
    before = files_of(finished)
    (finished / "ledger.json").write_text(f'{{"train": {{"bits": {number}}}}}', encoding="utf-8")
    train(settings(), finished)
    assert files_of(finished) == before


def test_other_defaults_of_sampling_are_released_without_scoring_again(finished, images):
    before = files_of(finished)
    model = train(settings(sampling={"temperature": (0.5,)}), finished)
    assert model.settings.sampling.temperature == (0.5,)
    after = files_of(finished)
    changed = {str(name) for name in after if before.get(name) != after[name]}
    assert changed == {"config.yaml", "config-history.jsonl", "model/config.json"}


def test_classes_in_another_order_are_refused_even_with_an_override(images, tmp_path):
    """The prior would take one class for another."""
    folders = tmp_path / "folders"
    for number, name in enumerate("bcd"):
        (folders / name).mkdir(parents=True)
        for i in range(8):
            (folders / name / f"{i}.png").write_bytes(png(np.full((1, 8, 8), number * 5 + i % 3, dtype=np.uint8)))
    data = {"source": "imagefolder", "files": {"train": str(folders)}, "values": 17, "size": (8, 8)}
    whole = config(data=data)
    train(whole, tmp_path / "run")
    (folders / "d").rename(folders / "a")
    before = files_of(tmp_path / "run")
    with pytest.raises(InputError, match="b, c, d.*a, b, c"):
        Run(whole, tmp_path / "run", Accelerator(cpu=True), override=True)
    assert files_of(tmp_path / "run") == before


def test_a_damaged_record_of_the_images_is_refused(stopped, images):
    (stopped / "images.json").write_bytes((stopped / "images.json").read_bytes().replace(b"24", b"25"))
    with pytest.raises(InputError, match="images.json is not what the run wrote"):
        Run(settings(), stopped, Accelerator(cpu=True))
    Run(settings(), stopped, Accelerator(cpu=True), override=True).close()
    Run(settings(), stopped, Accelerator(cpu=True)).close()


@pytest.mark.parametrize("change", ["lost", "more", "touched"])
def test_a_stream_is_known_by_the_state_of_its_files(tmp_path, change, caplog):
    """What is kept of a stream for scoring tells little of the rest."""
    for number in range(3):
        write_parquet(tmp_path / f"{number}.parquet", random_pixels(12 + number, size=(8, 8)))
    data = {"source": "parquet", "files": {"train": str(tmp_path / "*.parquet")}, "streaming": True, "limit": 4}
    streamed = config(data={**data, "values": 17, "size": (8, 8), "workers": 0, "validation": 0.2, "test": 0.2})
    Run(streamed, tmp_path / "run", Accelerator(cpu=True)).close()
    Run(streamed, tmp_path / "run", Accelerator(cpu=True)).close()
    if change == "lost":
        (tmp_path / "2.parquet").unlink()
    elif change == "more":
        shutil.copy(tmp_path / "2.parquet", tmp_path / "3.parquet")
    else:
        os.utime(tmp_path / "2.parquet", (1, 1))
    with pytest.raises(InputError, match=r"images\.files"):
        Run(streamed, tmp_path / "run", Accelerator(cpu=True))
    whole = streamed.data.model_copy(update={"limit": None})  # as it is encoded
    warn_of_changes(tmp_path / "run", whole, whole_splits(whole, survey(whole)))
    (said,) = [message for message in caplog.messages if "began with" in message]
    assert "images.files." in said and "images.train" not in said


EVALUATE, ENCODE, COMPRESS = (ROOT / "tools" / f"{name}.py" for name in ("evaluate", "encode_dataset", "compress"))


def test_tools_say_that_the_images_of_a_run_are_others(finished, images, call, caplog):
    named = "finished/model"
    tools = {
        "encode": [ENCODE],
        "compress": [COMPRESS, "--split", "test"],
        "evaluate": [EVALUATE, "--no-samples", "--leaks", 0],
    }
    for name, (tool, *options) in tools.items():
        assert call(tool, named, "--out", f"{name}-1", *options)[0] == 0 and not caplog.messages
    write(images, {"test": 9}, seed=1)
    for name, (tool, *options) in tools.items():
        code = call(tool, named, "--out", f"{name}-2", *options)[0]
        (said,) = caplog.messages
        assert code == 0 and "finished began with: images.test.count: 8 → 9; images.test.pixels" in said
        assert "train" not in said.split("began with")[1]
        caplog.clear()
    # a split that the command does not use, and other images that were asked for
    assert call(EVALUATE, named, "--out", "train", "--no-samples", "--split", "train")[0] == 0 and not caplog.messages
    given = ["--data.files", "test", "data/test.npz"]
    assert call(EVALUATE, named, "--out", "other", "--no-samples", *given)[0] == 0 and not caplog.messages


@pytest.mark.parametrize(
    "data",
    [
        {"size": (8, 8), "resize": (9, 12), "background": "white", "channels": 3},
        {"size": (8, 8), "values": 17},
        {"background": "#ff0080"},
    ],
)
def test_a_released_model_knows_how_its_images_were_prepared(data, tmp_path):
    of_run = config(data={"source": "imagefolder", "files": {"train": "x"}, **data})
    model = HierarchicalModel(of_run.model_settings((of_run.data.channels, 8, 8), 2, ["cat", "owl"]))
    model.save_pretrained(tmp_path / "model")
    found = data_of_run(tmp_path / "model")
    for name in ("size", "resize", "channels", "values"):
        assert getattr(found, name) == getattr(of_run.data, name), name
    assert ImageColor.getrgb(found.background) == ImageColor.getrgb(of_run.data.background)
    older = model.settings.model_copy(update={"geometry": None})
    HierarchicalModel(older).save_pretrained(tmp_path / "older")
    assert (data_of_run(tmp_path / "older").size, data_of_run(tmp_path / "older").resize) == ((8, 8), None)


def test_an_older_release_learns_its_geometry_and_nothing_else(finished, images):
    weights, ledger = (finished / "model/model.safetensors").read_bytes(), (finished / "ledger.json").read_bytes()
    model = HierarchicalModel.from_pretrained(finished)
    model.settings = model.settings.model_copy(update={"geometry": None})
    model.save_files(finished / "model")
    write(images, {"test": 9}, seed=1)  # a ledger made anew would be another
    run = Run(settings(), finished, Accelerator(cpu=True), override=True)
    for phase in run.phases.values():
        run.train(phase)
    run.release()
    assert HierarchicalModel.from_pretrained(finished).settings.geometry.size == (8, 8)
    assert (finished / "model/model.safetensors").read_bytes() == weights
    assert (finished / "ledger.json").read_bytes() == ledger


def test_what_a_released_model_knows_is_taken_from_it(finished, images, call):
    """Values, size and classes; the held-out share is that of every data set, not the counts of the digits."""
    os.rename(finished / "model", "alone")
    write(images, {"train": 600})
    given = ["--data.source", "array", "--data.files", "train", "data/train.npz"]
    assert call(ENCODE, "alone", "--out", "codes", *given)[:1] == (0,)
    assert CodeDataset("codes").splits == {"train": 600 - 2 * 60, "validation": 60, "test": 60}
    code, _, _ = call(EVALUATE, "alone", "--out", "scores", "--no-samples", *given, "--leaks", 0)
    assert code == 0
    settings = json.loads(Path("scores/evaluate.json").read_text())["settings"]["data"]
    assert (settings["values"], settings["size"], settings["validation"], settings["test"]) == (17, [8, 8], 0.1, 0.1)
    assert call(COMPRESS, "alone", "--out", "small", "--split", "test", *given)[0] == 0
    for option in (["--data.values", 256], ["--data.size", 4, 4], ["--data.channels", 3]):
        code, _, err = call(ENCODE, "alone", "--out", "no", *given, *option)
        assert code == 2 and err.count("\n") == 1 and not Path("no").exists(), err
    code, _, err = call(ENCODE, "alone", "--out", "no", *given[2:])
    assert code == 2 and "--data.source" in err
