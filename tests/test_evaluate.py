"""tools/evaluate.py as a user runs it: what it writes agrees with the package, what it refuses."""

import json
import math
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from helpers import command_refused, randomised
from PIL import Image

from vqstack import features
from vqstack.code_model import parent_of
from vqstack.config import RunConfig
from vqstack.evaluation import evaluate_split, leaks
from vqstack.fit import FitSettings
from vqstack.images import load_splits
from vqstack.metrics import FidelityMeter
from vqstack.model import HierarchicalModel
from vqstack.phases import data_of_run
from vqstack.quality import likenesses

TOOL = Path(__file__).parents[1] / "tools" / "evaluate.py"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run that was not trained: what is written does not depend on that."""
    config = RunConfig.model_validate(
        {
            "data": {"source": "digits", "limit": 40},
            "levels": [
                {"map": [4, 4], "width": 8, "quantizer": {"codebook_size": 8, "dim": 4}},
                {"map": [2, 2], "width": 8, "quantizer": {"codebook_size": 4, "dim": 4}},
            ],
            "prior": {"depth": 1, "dim": 8, "heads": 2},
            "refiners": [{"level": 2, "family": "masked", "groups": 2, "depth": 1, "dim": 8, "heads": 2}],
            "sampling": {"temperature": [0.5]},
        }
    )
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    torch.manual_seed(3)
    model = HierarchicalModel(config.model_settings((1, 8, 8), 10))
    randomised(model.refiners, 0.3)  # its last layer starts at zero, where it corrects nothing
    model.save_pretrained(folder / "model")
    return folder


@pytest.fixture
def call(call, monkeypatch):
    """The command in this process, its classifier trained for a moment only."""
    monkeypatch.setattr(features, "TRAINING", FitSettings(steps=4, batch_size=8, warmup=1, evaluate_every=4))
    return partial(call, TOOL)


def test_what_it_writes(call, run_folder, tmp_path):
    out = tmp_path / "out"
    given = ("--cpu", "--num", 8, "--seeds", 4, 5, "--batch-size", 16, "--cache", tmp_path / "cache")
    code, printed, _ = call(run_folder, "--out", out, *given)
    assert code == 0
    pictures = {"ledger.png", "usage.png", "reconstructions.png", "samples.png"}
    assert {p.name for p in out.iterdir()} == {"evaluate.json", "table.txt", *pictures}
    for name in pictures:
        with Image.open(out / name) as picture:
            picture.load()
    assert (out / "table.txt").read_text(encoding="utf-8") in printed
    found = json.loads((out / "evaluate.json").read_text(encoding="utf-8"))

    model = HierarchicalModel.from_pretrained(run_folder / "model")
    split = load_splits(data_of_run(run_folder))["test"]
    expected = model.ledger(split.pixels, split.labels)
    for column in ("refined", "feed-forward"):
        rows = {row["row"]: row["nats"] for row in found["ledger"][column]["rows"]}
        nats = {name: row.nats / expected.count for name, row in expected.rows.items()}
        if column == "feed-forward":
            z = model.encode(split.pixels)
            nats["level-2"] = -model.stack.level(2).decode(z[1]).log_prob(z[0]).mean().item()
        assert rows == pytest.approx(nats, rel=1e-5)
    bits = {column: ledger["bits"] for column, ledger in found["ledger"].items()}
    assert bits["refined"] != pytest.approx(bits["feed-forward"], rel=1e-3)
    leaked = {n: leak.to_json() for n, leak in leaks(model, split.pixels, split.labels, batch_size=7).items()}
    assert found["leaks"] == {f"level-{number}": leak for number, leak in leaked.items()}
    for number, codes in enumerate(model.encode(split.pixels), start=1):
        used = np.bincount(codes.flatten().numpy(), minlength=model.stack.codebook_sizes[number - 1])
        use = found["ledger"]["feed-forward"]["usage"][f"level-{number}"]
        assert use["share"] == pytest.approx((used > 0).mean())
        p = used[used > 0] / used.sum()
        assert use["perplexity"] == pytest.approx(np.exp(-(p * np.log(p)).sum()))
        error = (model.decode(codes, number).double() - split.pixels.double()).square().mean().item()
        assert found["reconstruction"]["ways"][f"level-{number}"]["psnr"] == pytest.approx(10 * math.log10(256 / error))

    torch.manual_seed(0)
    z = model.encode(split.pixels)
    estimates = torch.cat(
        [
            model.refiner(2).random_order_nats(below, {}, parent_of(model.stack.level(2), above))
            for below, above in zip(z[0].split(16), z[1].split(16), strict=True)
        ]
    ).double()
    assert list(found["random_orders"]) == ["level-2"]
    assert found["random_orders"]["level-2"]["nats"] == pytest.approx(estimates.mean().item(), rel=1e-5)
    error = math.sqrt(((estimates - estimates.mean()) ** 2).sum() / 39 / 40)
    assert found["random_orders"]["level-2"]["error"] == pytest.approx(error, rel=1e-4)

    samples = found["samples"]
    assert samples["images"] == 8
    assert [row["seed"] for row in samples["seeds"]] == [4, 5]
    assert all(0 <= row["accuracy"] <= 1 and row["floor"] > 0 for row in samples["seeds"])
    assert found["settings"]["sampling"]["temperature"] == [0.5]  # the model's own, as nothing else was said
    assert len(list((tmp_path / "cache").glob("classifier-*"))) == 1


def test_another_split_without_samples(call, run_folder, tmp_path):
    out = tmp_path / "out"
    code, printed, err = call(run_folder, "--out", out, "--cpu", "--no-samples", "--split", "validation")
    assert (code, err) == (0, "")
    found = json.loads((out / "evaluate.json").read_text(encoding="utf-8"))
    assert found["samples"] is None
    assert found["split"] == "validation"
    assert not (out / "samples.png").exists()
    assert "Fréchet" not in printed
    model = HierarchicalModel.from_pretrained(run_folder / "model")
    split = load_splits(data_of_run(run_folder))["validation"]
    assert found["ledger"]["refined"]["bits"] == pytest.approx(model.ledger(split.pixels, split.labels).bits)
    assert not list((tmp_path / "cache").glob("classifier-*"))


def test_the_batch_size_does_not_matter(run_folder):
    model = HierarchicalModel.from_pretrained(run_folder / "model")
    split = load_splits(data_of_run(run_folder))["test"]
    one, all_at_once = likenesses(model, split, batch_size=7).ways["level-2"], FidelityMeter(17)
    all_at_once.add(model.decode(model.encode(split.pixels)[1], 2), split.pixels)
    assert one.psnr == pytest.approx(all_at_once.read().psnr, rel=1e-5)
    assert one.ssim == pytest.approx(all_at_once.read().ssim, rel=1e-4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--split", "holdout"], "split"),
        (["--num", 21], "20 at most"),
        (["--num", 2], "too few"),
        (["--temperature", -1], "temperature"),
        (["--temperature", 1, 1], "temperature"),
        (["--mode", "--temperature", 0.7], "--temperature: nothing is drawn"),
        (["--features", "eyes"], "features"),
        (["--features", "inception"], "vqstack[fid]"),
        (["--data.files", "train", "missing.npy", "--data.source", "array"], "missing.npy"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_what_it_refuses(call, run_folder, tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)  # as without the extra
    command_refused(*call(run_folder, "--out", tmp_path / "out", "--cpu", *given), message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("classes", "message"), [(0, "the images have no labels"), (10, "conditional on the class")])
def test_it_refuses_images_without_the_labels_it_needs(call, run_folder, tmp_path, classes, message):
    model = HierarchicalModel.from_pretrained(run_folder / "model")
    HierarchicalModel(model.settings.model_copy(update={"classes": classes})).save_pretrained(tmp_path / "model")
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 17, (60, 8, 8), dtype=np.uint8))
    data = ["--data.source", "array", "--data.files", "train", tmp_path / "images.npy", "--data.values", 17]
    data += ["--data.validation", 20, "--data.test", 20]
    code, out, err = call(tmp_path / "model", "--out", tmp_path / "out", "--cpu", *data)
    assert (code, err.count("\n")) == (2, 1), (out, err)
    assert message in err
    assert {p.name for p in tmp_path.iterdir()} == {"model", "images.npy"}


def test_it_refuses_folders(call, run_folder, tmp_path):
    (tmp_path / "thesis.txt").write_text("all of it")
    for arguments in ((run_folder, "--out", tmp_path), (tmp_path / "nothing", "--out", tmp_path / "out")):
        code, _, err = call(*arguments, "--cpu", "--no-samples")
        assert (code, err.count("\n")) == (2, 1)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


@torch.no_grad()
def test_a_part_of_a_split_is_scored_evenly_spread(run_folder):
    model = HierarchicalModel.from_pretrained(run_folder / "model")
    split = load_splits(data_of_run(run_folder))["train"]
    part = evaluate_split(model, split, Accelerator(cpu=True), 3, most=7).ledger
    places = [i * len(split) // 7 for i in range(7)]
    rows = model.code_lengths(split.pixels[places], model.encode(split.pixels[places]), split.labels[places])
    assert part.count == 7
    assert {name: row.nats for name, row in part.rows.items()} == pytest.approx(
        {name: nats.sum().item() for name, nats in rows.items()}, rel=1e-5
    )
    assert evaluate_split(model, split, Accelerator(cpu=True), most=10**6).ledger.count == len(split)
