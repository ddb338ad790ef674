"""The recipe and the tools as a user runs them: a tiny run on the digits, what it leaves, what it refuses."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import command_refused as refused
from helpers import files_of, main
from PIL import Image

from vqstack.checkpoint import Checkpoints
from vqstack.code_model import RefinerSettings
from vqstack.codes import CodeDataset, CodeDatasetWriter, StoredCodes
from vqstack.disk import digest
from vqstack.images import load_splits
from vqstack.model import HierarchicalModel
from vqstack.model_settings import SamplingSettings
from vqstack.output import UNFINISHED, Output
from vqstack.phases import data_of_run

ROOT = Path(__file__).parents[1]
TRAIN, ENCODE, GENERATE = (
    ROOT / path for path in ("recipes/train_stack.py", "tools/encode_dataset.py", "tools/generate.py")
)
RECIPE = """
data: {source: digits, limit: 48}
levels:
  - {map: [4, 4], width: 8, encoder_blocks: 1, decoder_blocks: 1, dropout: 0.1, quantizer: {codebook_size: 8, dim: 4}}
  - {map: [2, 2], width: 8, encoder_blocks: 1, decoder_blocks: 1, quantizer: {codebook_size: 4, dim: 4}}
train_levels: [{steps: 6, batch_size: 16, warmup: 2, evaluate_every: 3}]
prior: {depth: 1, dim: 8, heads: 2}
train_prior: {steps: 6, batch_size: 16, warmup: 2, evaluate_every: 3}
sample_grid: 4
"""
SPLITS = {"train": 48, "validation": 48, "test": 48}


def start(*command):
    """A command in a process of its own."""
    return subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        encoding="utf-8",
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"},
    )


@pytest.fixture(scope="session")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def run_folder(recipe):
    """A run that was trained as the README says; tests only read it."""
    folder = recipe.parent / "run"
    out = start("-m", "accelerate.commands.launch", "--num_processes", "1", TRAIN, "--config", recipe, "--out", folder)
    assert out.returncode == 0, out.stderr
    (recipe.parent / "stdout.txt").write_text(out.stdout, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def code_folder(run_folder):
    folder = run_folder.parent / "codes"
    main(ENCODE, run_folder, "--out", folder, "--cpu")
    return folder


@pytest.fixture(scope="session")
def image_folder(run_folder):
    folder = run_folder.parent / "images"
    main(GENERATE, run_folder, "--num", 9, "--out", folder, "--label", 3, 7, "--seed", 5, "--device", "cpu")
    return folder


@pytest.fixture(scope="session")
def other_run(run_folder):
    """A released model of the same shape with other weights."""
    folder = run_folder.parent / "other"
    torch.manual_seed(1)
    HierarchicalModel(HierarchicalModel.from_pretrained(run_folder / "model").settings).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def guided(run_folder):
    """A released model whose prior, and refiner of level 2, are masked and can be guided."""
    model = HierarchicalModel.from_pretrained(run_folder / "model")
    changes = {"family": "masked", "label_dropout": 0.1, "labels": True}
    refiner = RefinerSettings(level=2, depth=1, dim=8, heads=2, **changes)
    prior = model.settings.prior.model_copy(update=changes)
    folder = run_folder.parent / "guided"
    HierarchicalModel(model.settings.model_copy(update={"prior": prior, "refiners": (refiner,)})).save_pretrained(
        folder
    )
    return folder


def weights(folder):
    return (folder / "model" / "model.safetensors").read_bytes()


def greys(path):
    """Values 0 … 16 of a stored PNG of digits."""
    pixels = np.asarray(Image.open(path)).astype(int)
    values = (pixels * 16 + 127) // 255
    assert (np.round(255 * values / 16) == pixels).all()
    return torch.from_numpy(values)[None].to(torch.uint8)


def test_files_of_a_run(run_folder, recipe):
    assert {p.name for p in run_folder.iterdir()} == {
        ".lock",
        "codes",
        "config.yaml",
        "images.json",
        "ledger.json",
        "model",
        "phases",
        "report.html",
        "samples",
    }
    resolved = yaml.safe_load((run_folder / "config.yaml").read_text(encoding="utf-8"))
    assert resolved["levels"][0]["quantizer"]["codebook_size"] == 8
    assert resolved["data"]["values"] == 17  # every field, resolved
    assert resolved["seed"] == 0
    for phase in ("level-1", "level-2", "prior"):
        folder = run_folder / "phases" / phase
        assert {p.name for p in folder.iterdir()} == {"DONE", "best.pt", "metrics.jsonl"}
        done = json.loads((folder / "DONE").read_text().splitlines()[0])
        metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in metrics] == [3, 6]
        assert done["steps"] == 6
        assert done["validation_nats"] == min(row["validation/nats"] for row in metrics)
        assert done["sha256"] == digest(folder / "best.pt")
        for step in (3, 6):
            with Image.open(run_folder / "samples" / f"{phase}-{step:07d}.png") as picture:
                picture.load()
    assert {p.name for p in (run_folder / "codes").iterdir()} == {"level-1", "level-2"}
    assert {p.name for p in (run_folder / "model").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    out = (recipe.parent / "stdout.txt").read_text(encoding="utf-8")
    card = (run_folder / "model" / "README.md").read_text(encoding="utf-8")
    assert "images of `scikit-learn digits`, held out of its train split with seed 0" in card
    for words in ("level-1: best validation", "prior: best validation", "Bits per image", "bits/dim", "codes used"):
        assert words in out


def test_the_ledger_of_a_run(run_folder):
    ledgers = json.loads((run_folder / "ledger.json").read_text())
    assert set(ledgers) == {"train", "test"}
    model = HierarchicalModel.from_pretrained(run_folder)
    splits = load_splits(data_of_run(run_folder))
    for name, ledger in ledgers.items():
        assert [row["row"] for row in ledger["rows"]] == ["label", "prior", "level-2", "level-1"]
        assert [row["dims"] for row in ledger["rows"]] == [1, 4, 16, 64]
        assert ledger["bits"] == pytest.approx(sum(row["bits"] for row in ledger["rows"]))
        assert ledger["bits_per_dim"] == pytest.approx(ledger["bits"] / 64)
        again = model.ledger(splits[name].pixels, splits[name].labels).to_json()
        for row, found in zip(ledger["rows"], again["rows"], strict=True):
            assert row["bits"] == pytest.approx(row["nats"] / np.log(2))
            assert row["nats"] == pytest.approx(found["nats"], rel=1e-4)


def test_running_again_repeats_nothing(run_folder, recipe, call):
    torch.set_num_threads(2)
    before, written = files_of(run_folder), (run_folder / "model/config.json").stat().st_ino
    code, out, err = call(TRAIN, "--config", recipe, "--out", run_folder)
    assert (code, err) == (0, "")
    assert (run_folder / "model/config.json").stat().st_ino == written  # not even written again
    for phase in ("level-1", "level-2", "prior"):
        assert f"{phase}: done before" in out
    after = files_of(run_folder)
    assert after.keys() == before.keys()
    same = {path for path in before if after[path] == before[path]}
    assert {"model/model.safetensors", "config.yaml"} <= same
    assert not [p for p in before.keys() - same if Path(p).parts[0] in ("phases", "codes", "samples")]


@pytest.mark.parametrize("lost", ["phases/prior/DONE", "phases/prior", "phases/level-2"])
def test_a_run_goes_on_where_it_stopped(run_folder, recipe, call, tmp_path, lost):
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    for path in (lost, "model", "ledger.json"):
        if (folder / path).is_dir():
            shutil.rmtree(folder / path)
        else:
            (folder / path).unlink()
    code, out, err = call(TRAIN, "--config", recipe, "--out", folder)
    assert code == 0
    assert "level-1 began with 2 threads, and the run goes on with as many, not with 1" in err
    assert "level-1: done before" in out
    assert f"{Path(lost).parts[1]}: best validation" in out
    assert len((folder / "phases/prior/metrics.jsonl").read_text().splitlines()) == 2
    ours = HierarchicalModel.from_pretrained(folder / "model").state_dict()
    theirs = HierarchicalModel.from_pretrained(run_folder / "model").state_dict()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def test_a_code_data_set(run_folder, code_folder, tmp_path):
    from datasets import load_dataset

    assert {p.name for p in code_folder.iterdir()} == {"README.md", "SHA256SUMS", "data", "manifest.json"}
    manifest = json.loads((code_folder / "manifest.json").read_text())
    assert manifest["map_shapes"] == [[4, 4], [2, 2]]
    assert manifest["vocabularies"] == [8, 4]
    held_out = {name for name, split in manifest["source"]["splits"].items() if split["held_out"]}
    assert held_out == {"test", "validation"}
    dataset = load_dataset(str(code_folder), cache_dir=str(tmp_path))
    assert {name: len(split) for name, split in dataset.items()} == SPLITS
    assert dataset["test"].column_names == ["index", "label", "codes_1", "codes_2"]
    split = load_splits(data_of_run(run_folder))["test"]
    model = HierarchicalModel.from_pretrained(run_folder / "model")
    rows = dataset["test"][:]
    assert torch.equal(torch.tensor(rows["index"]), split.index)
    assert torch.equal(torch.tensor(rows["label"]), split.labels)
    for number, codes in enumerate(model.encode(split.pixels), start=1):
        assert torch.equal(torch.tensor(rows[f"codes_{number}"]), codes)


def test_codes_beyond_those_asked_for_are_not_read(run_folder, call, tmp_path):
    folder = tmp_path / "codes"
    assert call(ENCODE, run_folder, "--shard-size", 20, "--cpu", "--out", folder)[0] == 0
    shard = sorted((folder / "data").glob("train-*"))[1]
    content = bytearray(shard.read_bytes())
    content[10] ^= 1  # still looks like one from outside
    shard.write_bytes(content)
    given = [run_folder, "--codes", folder, "--split", "train", "--device", "cpu"]
    assert call(GENERATE, *given, "--num", 20, "--out", tmp_path / "twenty")[0] == 0
    refused(*call(GENERATE, *given, "--num", 21, "--out", tmp_path / "more"), shard.name)


def test_encoding_goes_on_where_it_stopped(run_folder, code_folder, call, tmp_path, monkeypatch):
    """In shards of 20 images, killed after every second one: the bytes of a command that was not."""
    given = [run_folder, "--shard-size", 20, "--cpu", "--batch-size", 7]
    assert call(ENCODE, *given, "--out", tmp_path / "whole")[0] == 0
    out = tmp_path / "parts"
    write, count = CodeDatasetWriter.write, 0

    def killed(self, shard, batches):
        nonlocal count
        write(self, shard, batches)
        count += 1
        if count % 2 == 0:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(CodeDatasetWriter, "write", killed)
    codes = []
    while not codes or codes[-1]:
        codes.append(call(ENCODE, *given, "--out", out)[0])
        if len(codes) == 1:
            before = files_of(out)
            refused(*call(ENCODE, *given[:-1], 8, "--out", out), "other settings")
            refused(*call(ENCODE, *given, "--mixed-precision", "bf16", "--out", out), "other settings")
            assert files_of(out) == before
    assert codes == [75, 75, 75, 75, 0]
    assert count == 9  # no shard was written twice
    assert files_of(out) == files_of(tmp_path / "whole")
    for split in SPLITS:
        found, expected = (CodeDataset(folder).read(split) for folder in (out, code_folder))
        assert torch.equal(found.index, expected.index)
        assert all(map(torch.equal, found.codes, expected.codes))


def test_any_subset_of_the_splits_is_encoded(run_folder, call, tmp_path):
    pixels = load_splits(data_of_run(run_folder))["test"].pixels[:5]
    np.save(tmp_path / "test.npy", pixels[:, 0].numpy())
    given = ["--data.source", "array", "--data.files", "test", tmp_path / "test.npy", "--cpu"]
    code, _, err = call(ENCODE, run_folder, "--out", tmp_path / "out", *given)
    assert (code, err) == (0, "")
    data = CodeDataset(tmp_path / "out")
    assert data.splits == {"test": 5}
    model = HierarchicalModel.from_pretrained(run_folder / "model")
    assert all(map(torch.equal, data.read("test").codes, model.encode(pixels)))


def test_networks_in_half_precision_give_the_codes_of_autocast(run_folder, call, tmp_path):
    model = HierarchicalModel.from_pretrained(run_folder / "model")
    pixels = load_splits(data_of_run(run_folder))["test"].pixels
    given = [run_folder, "--batch-size", 16, "--mixed-precision", "bf16", "--cpu"]
    assert call(ENCODE, *given, "--out", tmp_path / "half")[0] == 0
    with torch.autocast("cpu", torch.bfloat16):
        expected = [torch.cat(maps) for maps in zip(*map(model.encode, pixels.split(16)), strict=True)]
    found = CodeDataset(tmp_path / "half").read("test").codes
    assert all(map(torch.equal, found, expected))
    assert not all(map(torch.equal, found, model.encode(pixels)))  # else nothing was tested


def test_images_drawn_in_half_precision_are_those_of_autocast(run_folder, call, tmp_path):
    given = [run_folder, "--num", 5, "--seed", 2, "--mixed-precision", "bf16", "--device", "cpu", "--format", "npy"]
    assert call(GENERATE, *given, "--out", tmp_path / "half")[0] == 0
    model = HierarchicalModel.from_pretrained(run_folder / "model")
    with torch.autocast("cpu", torch.bfloat16):
        expected = model.sample(5, seed=2).pixels
    found = np.stack([np.load(tmp_path / "half" / f"{i:06d}.npy") for i in range(5)])
    assert np.array_equal(found.reshape(expected.shape), expected)


def test_a_model_without_its_run_needs_images(other_run, call, tmp_path):
    refused(*call(ENCODE, other_run, "--out", tmp_path / "out"), "--data.source")
    assert not list(tmp_path.iterdir())
    given = ["--data.source", "digits", "--data.limit", 3, "--cpu"]
    assert call(ENCODE, other_run, "--out", tmp_path / "out", *given)[0] == 0
    assert CodeDataset(tmp_path / "out").splits == {"train": 3, "validation": 3, "test": 3}


def test_generated_images(run_folder, image_folder):
    names = [f"{i:06d}.png" for i in range(9)]
    assert {p.name for p in image_folder.iterdir()} == {*names, "grid.png", "manifest.json"}
    manifest = json.loads((image_folder / "manifest.json").read_text())
    labels = [3, 7, 3, 7, 3, 7, 3, 7, 3]
    wanted = [
        {"file": n, "index": i, "seed": 5, "label": y, "class": str(y)}
        for i, (n, y) in enumerate(zip(names, labels, strict=True))
    ]
    assert manifest["images"] == wanted
    assert manifest["settings"]["num"] == 9
    assert manifest["settings"]["temperature"] == [1.0]
    for name in names:
        with Image.open(image_folder / name) as image:
            assert (image.size, image.mode, image.format) == ((8, 8), "L", "PNG")  # native size
    model = HierarchicalModel.from_pretrained(run_folder / "model")
    sample = model.sample(9, torch.tensor(labels), seed=5)
    assert torch.equal(torch.stack([greys(image_folder / name) for name in names]), sample.pixels)


def test_stored_codes_wait_on_the_disk(run_folder, programs, monkeypatch):
    """Memory does not grow with the number of code maps, and after the last one comes the first."""
    generate, model = programs[GENERATE], HierarchicalModel.from_pretrained(run_folder / "model")

    class Many(CodeDataset):
        splits = {"test": 100}

        def __init__(self):
            pass

        def check(self, *_):
            pass

        def blocks(self, _):
            for i in range(100):
                yield StoredCodes(torch.tensor([i]), None, [torch.from_numpy(np.full((1, 256, 256), i))])

    monkeypatch.setattr(generate, "CodeDataset", lambda _: Many())
    tracemalloc.start()
    try:
        count, maps = generate.starting_codes(generate.Command(run=run_folder, out=Path("x"), codes=Path("y")), model)
        found = [int(next(maps)[0, 0]) for _ in range(250)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (count, found) == (100, [*range(100), *range(100), *range(50)])
    assert peak < 5 * 2**20  # of 50 MiB


@pytest.mark.parametrize("given", [["--label", 3, 7], []], ids=["labels", "no labels"])
def test_the_batch_size_does_not_matter(run_folder, call, tmp_path, given):
    for size in (1, 8):
        folder = tmp_path / str(size)
        code, _, err = call(
            GENERATE, run_folder, "--num", 9, "--out", folder, "--batch-size", size, "--device", "cpu", *given
        )
        assert (code, err) == (0, "")
    one, eight = (files_of(tmp_path / name) for name in ("1", "8"))
    assert one.keys() == eight.keys()
    assert [p for p in one if one[p] != eight[p]] == ["manifest.json"]  # it names the batch size
    images = [json.loads(files["manifest.json"])["images"] for files in (one, eight)]
    assert images[0] == images[1]
    assert len({one[f"{i:06d}.png"] for i in range(9)}) > 1


@pytest.mark.parametrize("place", ["last", "first"])
def test_mode_alone_means_true_for_all_rows(run_folder, call, tmp_path, place):
    given = ["--num", 6, "--label", 3, "--out", tmp_path / "out", "--device", "cpu"]
    given = [*given, "--mode"] if place == "last" else ["--mode", *given]
    code, _, err = call(GENERATE, run_folder, *given)
    assert (code, err) == (0, "")
    model = HierarchicalModel.from_pretrained(run_folder / "model")
    likeliest = model.sample(6, torch.full((6,), 3), sampling=SamplingSettings(mode=(True,))).pixels
    assert torch.equal(torch.stack([greys(tmp_path / "out" / f"{i:06d}.png") for i in range(6)]), likeliest)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["settings"]["mode"] == [True]


@pytest.mark.parametrize("level", [1, 2])
def test_stored_codes_become_images_again(run_folder, code_folder, call, tmp_path, level):
    given = [] if level == 1 else ["--from-level", level]
    out = tmp_path / "out"
    code, _, err = call(GENERATE, run_folder, "--codes", code_folder, "--out", out, "--device", "cpu", *given)
    assert (code, err) == (0, "")
    model = HierarchicalModel.from_pretrained(run_folder / "model")
    pixels = load_splits(data_of_run(run_folder))["test"].pixels
    expected = model.decode(model.encode(pixels)[level - 1], level)
    found = torch.stack([greys(out / f"{i:06d}.png") for i in range(48)])
    assert torch.equal(found, expected)
    assert not (out / "000048.png").exists()


def test_variations_of_an_image(run_folder, image_folder, call, tmp_path):
    out = tmp_path / "out"
    files = [image_folder / f"{i:06d}.png" for i in range(2)]
    given = ["--images", *files, "--from-level", 2, "--num", 6, "--device", "cpu"]
    code, _, err = call(GENERATE, run_folder, *given, "--out", out)
    assert (code, err) == (0, "")
    model = HierarchicalModel.from_pretrained(run_folder / "model")
    top = model.encode(torch.stack([greys(file) for file in files]))[1]
    sample = model.vary(top.repeat(3, 1, 1), 2)
    assert torch.equal(torch.stack([greys(out / f"{i:06d}.png") for i in range(6)]), sample.pixels)
    images = json.loads((out / "manifest.json").read_text())["images"]
    assert [image["label"] for image in images] == [None] * 6


@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        ("colour: 3\n" + RECIPE, [], "colour: unknown field"),
        (RECIPE + "levels: [", [], "is not YAML"),
        (RECIPE, ["--levels.0.map", 3, 3], "levels.0.map: 3x3 does not divide what lies below it (8x8)"),
        (RECIPE, ["--levels.1.map", 3, 4], "levels.1.map: 3x4 does not divide what lies below it (4x4)"),
        (RECIPE, ["--pad-to", 4, 4], "pad_to"),
        (RECIPE, ["--augment.shift", 8], "augment.shift: 8 moves images of 8x8 pixels out of sight: choose at most 7"),
        (RECIPE, ["--pixels.kind", "bernoulli"], "pixels.kind"),
        (RECIPE, ["--levels.0.quantizer.codebook-size", "many"], "many"),
        (RECIPE, ["--no-such-thing", 1], "no-such-thing"),
        (RECIPE, ["--sampling.temperature", 1, 1], "temperature: 2 values: give one, or 3"),
        (RECIPE, ["--sampling.temperature", -1], "temperature"),
        (RECIPE, ["--data.source", "parquet", "--data.files", "train", "missing.parquet"], "missing.parquet"),
        (RECIPE, ["--trackers", "nonsense"], "nonsense"),
        (RECIPE.replace("digits", "moon"), [], "data.source"),
    ],
    ids=lambda value: "" if isinstance(value, str) and "\n" in value else str(value)[:40],
)
def test_training_refuses(call, tmp_path, monkeypatch, text, given, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    refused(*call(TRAIN, "--config", path, "--out", tmp_path / "out", *given), message)
    assert [p.name for p in tmp_path.iterdir()] == ["wrong.yaml"]


def test_guidance_is_refused_before_training_where_images_have_no_classes(call, tmp_path):
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 17, (60, 8, 8), dtype=np.uint8))
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    files = ["--data.source", "array", "--data.files", "train", tmp_path / "images.npy", "--data.validation", 10]
    guided = ["--data.test", 10, "--prior.label-dropout", 0.1, "--sampling.guidance", 2]
    out = tmp_path / "out"
    refused(*call(TRAIN, "--config", tmp_path / "recipe.yaml", "--out", out, *files, *guided), "guidance")
    assert not out.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_the_exit_code_holds_where_nothing_can_be_said(tmp_path):
    command = [sys.executable, TRAIN, "--config", tmp_path / "missing.yaml"]
    with open("/dev/full", "w") as full:
        assert subprocess.run(list(map(str, command)), stderr=full, cwd=tmp_path, check=False).returncode == 2


def test_nobody_reads_what_is_printed(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        command = list(map(str, [sys.executable, TRAIN, "--dry-run", "--out", tmp_path / "run"]))
        found = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False)
    assert (found.returncode, found.stderr) == (141, "")


def test_an_override_says_that_done_phases_stay(run_folder, recipe, call):
    given = ("--config", recipe, "--out", run_folder, "--dry-run", "--override-config")
    code, _, err = call(TRAIN, *given, "--train-prior.steps", 400)
    assert code == 0
    assert err == "warning: phases that are done stay as they are, whatever the settings: level-1, level-2, prior\n"


@pytest.mark.parametrize("finished", [True, False])
def test_an_override_whose_sizes_do_not_fit_writes_nothing(run_folder, recipe, call, tmp_path, finished):
    """Nor does one beside damaged weights. A damaged checkpoint is passed over; settings that fit go through."""
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    prior = folder / "phases/prior"
    if not finished:
        (prior / "DONE").unlink()
        module = torch.load(prior / "best.pt", weights_only=True)
        for step in (3, 6):
            Checkpoints(prior / "checkpoints", 2).write(step, {"module": module if step == 3 else {}}, 1.0)
        (prior / "checkpoints/step-0000006/state.pt").write_bytes(b"damaged")  # the one before it counts
        (prior / "best.pt").unlink()
    before = files_of(folder)
    given = ["--config", recipe, "--out", folder, "--override-config"]
    refused(*call(TRAIN, *given, "--prior.dim", 16, "--prior.heads", 1), "changed: prior.dim: 8 → 16; prior.heads")
    refused(*call(TRAIN, *given, "--levels.1.quantizer.codebook-size", 16), "phases/level-2 holds weights of other")
    refused(*call(TRAIN, *given, "--levels.2.map", 1, 1), "phases/prior holds weights of other")
    (folder / "phases/level-1/best.pt").write_bytes(b"damaged")
    refused(*call(TRAIN, *given, "--train-prior.steps", 7), "level-1/best.pt cannot be used")
    (folder / "phases/level-1/best.pt").write_bytes(before["phases/level-1/best.pt"])
    assert files_of(folder) == before
    if finished:
        assert call(TRAIN, *given, "--train-prior.steps", 7)[0] == 0


def test_training_refuses_folders_that_are_taken(call, recipe, run_folder, tmp_path):
    (tmp_path / "thesis.txt").write_text("all of it")
    for out in (tmp_path, tmp_path / "thesis.txt"):
        refused(*call(TRAIN, "--config", recipe, "--out", out), str(out))
    assert files_of(tmp_path) == {"thesis.txt": b"all of it"}
    before = files_of(run_folder)
    refused(*call(TRAIN, "--config", recipe, "--out", run_folder, "--seed", 1), "other settings (seed: 0 → 1)")
    assert files_of(run_folder) == before


def test_wrong_input_as_a_process(tmp_path):
    missing = start(TRAIN, "--config", tmp_path / "missing.yaml", "--out", tmp_path / "out")
    refused(missing.returncode, missing.stdout, missing.stderr, "missing.yaml")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--num", 2, "--label", 10], "label 10 is no class of this model: choose among 0, 1"),
        (["--num", 2, "--label", -1], "label"),
        (["--num", 2, "--label", "seven"], "seven"),
        (["--num", -1], "num"),
        (["--num", 0], "num"),
        (["--num", 2, "--temperature", -1], "temperature"),
        (["--num", 2, "--temperature", 0], "temperature: 0.0 is below 0.001"),
        (["--num", 2, "--temperature", 1, 1], "temperature: 2 values: give one, or 3"),
        (["--num", 2, "--top-k", -3], "top_k"),
        (["--num", 2, "--top-p", 1.5], "top_p: 1.5"),
        (["--num", 2, "--batch-size", 0], "--batch-size: '0' does not fit: it should be greater than or equal to 1"),
        (["--num", 2, "--from-level", 1], "--from-level: needs real images"),
        (["--images", "missing.png", "--from-level", 1], "missing.png"),
        (["--images", "missing.png", "--from-level", 3], "--from-level: 3 does not exist"),
        (["--codes", "missing"], "missing"),
        (["--num", 2, "--device", "abacus"], "--device: abacus cannot be used here"),
        (["--num", 2, "--device", "meta"], "--device: meta cannot be used here"),
        (["--num", 2, "--split", "test"], "--split: names a split of --codes"),
        (["--images", "a.png", "--codes", "codes", "--from-level", 1], "--images and --codes: only one of them"),
        (["--images", "a.png", "--from-level", 1, "--label", 3], "--label: nothing that draws below level 1 reads"),
        (["--codes", "codes", "--label", 3], "--label: nothing that draws below level 1 reads"),
        (["--images", "a.png"], "--images: needs the level whose codes are kept"),
        (["--num", 2, "--mode", "True", "--temperature", 0.5], "--temperature: nothing is drawn with --mode"),
        (["--num", 2, "--temperature", "nan"], "--temperature"),
        (["--num", 2, "--mean", "--mode", "--top-k", 3], "--top-k: nothing is drawn with --mode"),
        (["--label", "--num", 2], "--label: has no value"),
        (["--num", 2, "--temperature"], "--temperature: has no value"),
        (["--top_k", "--num", 2], "--top_k: has no value"),
        (["--num", 2, "--seed", 2**63], "--seed"),
        (["--nun", 2], "nun"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_generating_refuses(call, run_folder, tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    refused(*call(GENERATE, run_folder, "--out", tmp_path / "out", *given), message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("level", "given", "message"),
    [
        (1, ["--guidance", 9], "--guidance: nothing that draws below level 1 reads it"),
        (1, ["--guidance", 9, 1, 1], "--guidance: nothing that draws below level 1 reads it"),
        (1, ["--confidence"], "--confidence: nothing that draws below level 1 reads it"),
        (1, ["--mean", "--temperature", 0.5], "--temperature: nothing is drawn with --mode or --mean"),
        (1, ["--mean", "--seed", 5], "--seed: nothing is drawn with --mode or --mean"),
        (2, ["--mean", "--temperature", 0.5, "--seed", 5], None),
        (2, ["--guidance", 3], "--guidance: leads towards a class or a condition, and none is given"),
        (2, ["--guidance", 3, "--label", 4], None),
        (2, ["--confidence"], None),
        (1, ["--guidance", 1, "--confidence", "False"], None),
    ],
    ids=str,
)
def test_flags_that_nothing_below_the_kept_codes_reads(call, guided, image_folder, tmp_path, level, given, message):
    start = ["--images", image_folder / "000000.png", "--from-level", level]
    answer = call(GENERATE, guided, *start, *given, "--device", "cpu", "--out", tmp_path / "out")
    if message is None:
        assert (answer[0], answer[2]) == (0, "")
    else:
        refused(*answer, message)
        assert not list(tmp_path.iterdir())


def test_generating_refuses_images_that_cannot_be_read(call, run_folder, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    refused(*call(GENERATE, run_folder, "--out", tmp_path / "out", "--images", broken, "--from-level", 1), "broken.png")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("program", [GENERATE, ENCODE], ids=lambda path: path.name)
def test_tools_refuse_what_is_no_run(call, tmp_path, program):
    refused(*call(program, tmp_path / "missing", "--out", tmp_path / "out"), "missing: no such folder")
    refused(*call(program, tmp_path, "--out", tmp_path / "out"), "holds no trained model")
    refused(*call(program, "--out", tmp_path / "out"), "run")
    refused(*call(program, tmp_path), "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("program", [GENERATE, ENCODE], ids=lambda path: path.name)
def test_tools_refuse_folders_that_are_taken(call, run_folder, image_folder, tmp_path, program):
    (tmp_path / "thesis.txt").write_text("all of it")
    for out in (tmp_path, tmp_path / "thesis.txt"):
        refused(*call(program, run_folder, "--out", out), str(out))
    assert files_of(tmp_path) == {"thesis.txt": b"all of it"}
    before = files_of(image_folder)
    refused(*call(program, run_folder, "--out", image_folder), str(image_folder))  # finished output is kept, too
    assert files_of(image_folder) == before


@pytest.mark.parametrize("program", [GENERATE, ENCODE], ids=lambda path: path.name)
def test_tools_refuse_a_folder_that_another_process_writes(call, run_folder, tmp_path, program):
    out = tmp_path / "out"
    output = Output(out, "generate")
    before = files_of(out)
    refused(*call(program, run_folder, "--out", out), "another process is writing")
    assert files_of(out) == before
    output.lock.release()  # as the end of that process does, however it ends
    (out / UNFINISHED).unlink()
    assert call(program, run_folder, "--out", out)[0] == 0
    assert not (out / ".lock").exists()


def test_a_failure_leaves_output_that_a_rerun_replaces(call, programs, run_folder, tmp_path, monkeypatch):
    out, saver, count = tmp_path / "out", programs[GENERATE].saver, iter(range(70))

    def full(*arguments, **about):
        ending, save = saver(*arguments, **about)

        def saving(image, stream):
            if next(count) == 66:
                raise OSError("no space left on the disk")
            save(image, stream)

        return ending, saving

    monkeypatch.setattr(programs[GENERATE], "saver", full)
    with pytest.raises(OSError, match="no space left"):
        call(GENERATE, run_folder, "--num", 70, "--out", out, "--device", "cpu")
    assert {p.name for p in out.iterdir()} == {".lock", UNFINISHED, *(f"{i:06d}.png" for i in range(64))}
    monkeypatch.undo()
    (out / "000070.png").write_bytes(b"the user's")
    refused(*call(GENERATE, run_folder, "--num", 1, "--out", out), "000070.png: lies in")
    (out / "000070.png").unlink()
    assert call(GENERATE, run_folder, "--num", 1, "--out", out, "--device", "cpu", "--seed", 4)[0] == 0
    assert {p.name for p in out.iterdir()} == {"000000.png", "grid.png", "manifest.json"}


@pytest.mark.parametrize(("program", "word"), [(GENERATE, "to start over"), (ENCODE, "to go on")])
def test_a_stopped_command_says_what_running_it_again_does(programs, monkeypatch, capsys, tmp_path, program, word):
    def stop(folder):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(HierarchicalModel, "from_pretrained", stop)
    monkeypatch.setattr(sys, "argv", [str(program), str(tmp_path), "--out", str(tmp_path / "out")])
    if program == ENCODE:
        sys.argv += ["--data.source", "digits"]
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(program), run_name="__main__")
    assert caught.value.code == 75
    assert capsys.readouterr().err == f"stopped by SIGTERM; run the same command again {word}\n"


def test_codes_of_another_model_are_refused(call, other_run, code_folder, tmp_path):
    refused(*call(GENERATE, other_run, "--codes", code_folder, "--out", tmp_path / "out"), "codes of encoder")
    refused(*call(GENERATE, other_run, "--codes", tmp_path, "--out", tmp_path / "out"), "no code data set")
    assert not list(tmp_path.iterdir())


def test_a_split_that_does_not_exist(call, run_folder, code_folder, tmp_path):
    given = ["--codes", code_folder, "--split", "holdout", "--out", tmp_path / "out"]
    refused(*call(GENERATE, run_folder, *given), "holdout")
    assert not list(tmp_path.iterdir())


def test_images_that_do_not_fit_the_model(call, run_folder, tmp_path):
    np.save(tmp_path / "train.npy", np.zeros((40, 6, 6), np.uint8))
    given = ["--data.source", "array", "--data.files", "train", tmp_path / "train.npy", "--data.size", 6, 6]
    given += ["--data.validation", 5, "--data.test", 5]
    refused(*call(ENCODE, run_folder, "--out", tmp_path / "out", *given), "do not fit the model")
    assert [p.name for p in tmp_path.iterdir()] == ["train.npy"]


@pytest.mark.parametrize("program", [TRAIN, GENERATE, ENCODE], ids=lambda path: path.name)
def test_help(call, programs, program, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    code, out, err = call(program, "--help")
    assert (code, err) == (0, "")
    for name, field in programs[program].Command.model_fields.items():
        if name not in ("run", "refiners"):  # one has no name there, and of an empty list nothing can be set
            assert f"--{name.replace('_', '-')}" in out
        if not hasattr(field.annotation, "model_fields") and "Settings" not in str(field.annotation):
            assert " ".join(field.description.split()[:3]) in out


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["real", "dry"])
def test_a_dry_run_refuses_what_a_real_one_does(call, recipe, run_folder, tmp_path, dry):
    run = [TRAIN, "--config", recipe, *dry]
    batch = ("--train-prior.batch-size", 3, "--train-prior.accumulate", 2)
    refused(*call(*run, "--out", tmp_path / "run", *batch), "train_prior.batch_size: 3 is not a multiple of")
    refused(*call(*run, "--out", tmp_path / "run", "--trackers", "nonsense"), "nonsense is not installed")
    refused(*call(*run, "--out", recipe / "run"), "is a file")
    refused(*call(*run, "--out", run_folder, "--seed", 1), "other settings (seed: 0 → 1)")
    assert not list(tmp_path.iterdir())
