"""Floats that are given with each image: read by transformers, hidden, guided, never counted; a run end to end."""

import json
import re
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from helpers import refused
from test_images import png

from vqstack import conditions
from vqstack.commands import compress, evaluate, generate
from vqstack.config import RunConfig
from vqstack.images import load_splits
from vqstack.likelihood import walked_log_prob
from vqstack.model import HierarchicalModel, ModelSettings, SamplingSettings
from vqstack.phases import Run

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
PROGRAM = next(part for part in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "register_condition(" in part)


def build(shape=(3,), kind="", classes=2, label_dropout=0.5, prior=(), **options):
    """A model with random weights that is given floats."""
    torch.manual_seed(1)
    level = {"map": (2, 2), "width": 8, "encoder_blocks": 0, "decoder_blocks": 0}
    given = {"name": "text", "shape": shape, "kind": kind or ("vector", "sequence")[len(shape) - 1], "options": options}
    part = {"depth": 1, "dim": 8, "heads": 2, "label_dropout": label_dropout}
    settings = {
        "stack": {"levels": [{**level, "quantizer": {"codebook_size": 4, "dim": 4}}]},
        "prior": {**part, **dict(prior)},
        "refiners": [{**part, "level": 1, "groups": 2, "condition": True, "labels": True}],
        "image_shape": (1, 4, 4),
        "values": 3,
        "classes": classes,
        "condition": given,
    }
    model = HierarchicalModel(ModelSettings.model_validate(settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model


def inputs(model, count=4):
    pixels = torch.randint(3, (count, 1, 4, 4), dtype=torch.uint8)
    labels = torch.arange(count) % 2 if model.classes else None
    return pixels, labels, torch.randn(count, *model.condition.shape)


@pytest.mark.parametrize("family", ["autoregressive", "masked"])
@pytest.mark.parametrize("classes", [0, 2])
@pytest.mark.parametrize("shape", [(3,), (2, 3)], ids=str)
@torch.no_grad()
def test_scores_follow_the_floats_and_the_walk(shape, classes, family):
    model = build(shape, classes=classes, prior={"family": family, "groups": 2})
    pixels, labels, given = inputs(model)
    rows = model.code_lengths(pixels, model.encode(pixels), labels, given)
    other = model.code_lengths(pixels, model.encode(pixels), labels, given.flip(0))
    assert list(rows) == ["label"] * (classes > 0) + ["prior", "level-1"]  # what is given has no row
    assert all(not rows[name].allclose(other[name]) for name in ("prior", "level-1"))
    values = model.values(pixels, model.encode(pixels), labels, given)
    for term in model.terms()[1 if classes else 0 :]:
        walked = walked_log_prob(term.distribution(values, 4), values[term.target.name])
        assert rows[term.row].allclose(-walked, atol=1e-4)


@torch.no_grad()
def test_all_images_add_up_to_one_given_the_floats():
    model = build(shape=(2,), classes=0)
    given = torch.randn(1, 2)
    codes = torch.cartesian_prod(*[torch.arange(4)] * 4).view(-1, 2, 2)
    log_probs = model.prior.log_prob(codes, {conditions.GIVEN: given.expand(len(codes), -1)})
    assert float(log_probs.double().exp().sum()) == pytest.approx(1, abs=1e-5)


@torch.no_grad()
def test_what_is_hidden_tells_nothing_and_guidance_mixes_with_it():
    model = build(classes=0)
    _, _, given = inputs(model)
    codes = torch.randint(4, (4, 2, 2))
    hidden = model.prior.conditions.hide({conditions.GIVEN: given}, torch.ones(4, dtype=torch.bool))
    nothing = model.prior.log_prob(codes, hidden)
    assert nothing.equal(model.prior.log_prob(codes, model.prior.conditions.nothing(4, model.device)))

    def scored(scale):
        return model.prior.distribution(4, {conditions.GIVEN: given}, model.device, guidance=scale).log_prob(codes)

    assert scored(1.0).equal(model.prior.log_prob(codes, {conditions.GIVEN: given}))
    assert scored(0.0).allclose(nothing, atol=1e-5) and not scored(2.0).allclose(scored(1.0))


@torch.no_grad()
def test_floats_are_read_in_units_of_their_deviation():
    model, other = build(classes=0), build(classes=0)
    pixels, _, given = inputs(model, 50)
    model.know_condition(given)
    other.know_condition(given * 1000 + 5)
    assert model.ledger(pixels, None, given).bits == pytest.approx(
        other.ledger(pixels, None, given * 1000 + 5).bits, rel=1e-4
    )


def test_sample_i_is_the_same_in_any_batch():
    model = build()
    _, labels, given = inputs(model)
    together = model.sample(4, labels, given, seed=3, sampling=SamplingSettings(guidance=(2.0,)))
    alone = model.sample(1, labels[2:3], given[2:3], seed=3, first=2, sampling=SamplingSettings(guidance=(2.0,)))
    assert together.pixels[2:3].equal(alone.pixels)


def test_wrong_floats_are_refused():
    model = build()
    pixels, labels, given = inputs(model)
    for wrong in (None, given[:, :2], given.masked_fill(given == given[0, 0], torch.nan)):
        refused(lambda wrong=wrong: model.ledger(pixels, labels, wrong))
        refused(lambda wrong=wrong: model.sample(4, labels, wrong))
    without = HierarchicalModel(model.settings.model_copy(update={"condition": None}))
    refused(lambda: without.ledger(pixels, labels, given), "condition")


def table(path, given, count=30):
    rng = np.random.default_rng(count)
    images = [{"bytes": png(rng.integers(0, 256, (1, 8, 8), dtype=np.uint8)), "path": None} for _ in range(count)]
    pq.write_table(pa.table({"img": pa.array(images), "label": [i % 2 for i in range(count)], "text": given}), path)


def config(folder, **changes):
    fit = {"steps": 3, "batch_size": 8, "evaluate_every": 3}
    level = {"map": (2, 2), "width": 8, "encoder_blocks": 0, "decoder_blocks": 0, "quantizer": {"codebook_size": 4}}
    data = {"source": "parquet", "files": {"train": str(folder / "train.parquet")}, "condition": "text", "size": (8, 8)}
    part = {"depth": 1, "dim": 8, "heads": 2}
    return RunConfig.model_validate(
        {
            "data": {**data, "validation": 6, "test": 6},
            "levels": [level],
            "pixels": {"components": 2},
            "train_levels": [fit],
            "prior": {**part, "label_dropout": 0.2},
            "refiners": [{**part, "level": 1, "groups": 2, "condition": True}],
            "train_refiners": [fit],
            "train_prior": fit,
            **changes,
        }
    )


@pytest.mark.parametrize("kind", ["vector", "sequence", "angle"])
def test_a_run_from_a_column_to_images(kind, unregistered, tmp_path, monkeypatch):
    monkeypatch.setenv("VQSTACK_CACHE", str(tmp_path / "cache"))
    own = {}
    if kind == "angle":
        exec(PROGRAM, {})
        own = {"condition": {"kind": "angle", "options": {"turns": 2}}}
    shape = (4, 2) if kind == "sequence" else (2,)
    floats = np.random.default_rng(3).normal(size=(30, *shape))
    table(tmp_path / "train.parquet", floats.tolist())
    settings = config(tmp_path, **own)
    split = load_splits(settings.data, ["test"])["test"]
    assert np.allclose(split.condition, floats[split.index].astype(np.float32))
    with closing(Run(settings, tmp_path / "run", Accelerator(cpu=True))) as run:
        for phase in run.phases.values():
            run.train(phase)
        run.release()
    assert json.loads((tmp_path / "run" / "ledger.json").read_text())["test"]["given"] == "text"
    model = HierarchicalModel.from_pretrained(tmp_path / "run" / "model")
    found = model.ledger(split.pixels, split.labels, split.condition)
    stored = json.loads((tmp_path / "run" / "ledger.json").read_text())["test"]["bits"]
    assert found.bits == pytest.approx(stored, rel=1e-5)

    np.save(tmp_path / "given.npy", floats[:3].astype(np.float32))
    named = [str(tmp_path / "run"), "--label", "1", "--condition", str(tmp_path / "given.npy")]
    generate.main([*named, "--out", str(tmp_path / "drawn"), "--device", "cpu"])
    assert len(list((tmp_path / "drawn").glob("0*.png"))) == 3
    refused(lambda: generate.main([str(tmp_path / "run"), "--out", str(tmp_path / "no")]), "--condition")
    np.save(tmp_path / "given.npy", floats[:3, :1])
    refused(lambda: generate.main([*named, "--out", str(tmp_path / "no")]), "given.npy")
    refused(lambda: compress.main([str(tmp_path / "run"), "--split", "test", "--out", str(tmp_path / "no")]), "text")
    if kind == "vector":
        evaluate.main([str(tmp_path / "run"), "--no-samples", "--leaks", "2", "--out", str(tmp_path / "scores")])
        assert "given text" in (tmp_path / "scores" / "table.txt").read_text()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([[1.0, 2.0]] * 29 + [[1.0]], "has 1 floats where others have 2"),
        ([[1.0, 2.0]] * 29 + [None], "is missing"),
        ([[1.0, 2.0]] * 29 + [[1.0, float("nan")]], "NaN"),
        ([[]] * 30, "no list of floats"),
        (["word"] * 30, "text"),
    ],
    ids=["ragged", "missing", "NaN", "empty", "text"],
)
def test_columns_that_are_no_floats_of_one_length_are_refused(given, words, tmp_path, monkeypatch):
    monkeypatch.setenv("VQSTACK_CACHE", str(tmp_path / "cache"))
    table(tmp_path / "train.parquet", given)
    refused(lambda: load_splits(config(tmp_path).data, ["train", "validation", "test"]), "text", words)
