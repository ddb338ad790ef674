"""Levels of another run: the same codes and code lengths, nothing trained again, nothing taken that does not fit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from vqstack.config import RunConfig, read_yaml
from vqstack.errors import InputError
from vqstack.images import load_splits
from vqstack.model import HierarchicalModel
from vqstack.phases import Run
from vqstack.reuse import first_difference

QUICK = {"steps": 4, "batch_size": 8, "warmup": 1, "evaluate_every": 4}
LEVELS = [
    {"map": (4, 4), "width": 8, "encoder_blocks": 1, "decoder_blocks": 1, "quantizer": {"codebook_size": 8, "dim": 4}},
    {"map": (2, 2), "width": 8, "encoder_blocks": 1, "decoder_blocks": 1, "quantizer": {"codebook_size": 4, "dim": 4}},
]


def config(**changes):
    values = {
        "data": {"source": "digits", "limit": 24},
        "levels": LEVELS,
        "prior": {"depth": 1, "dim": 8, "heads": 2},
        "train_levels": [QUICK],
        "train_prior": QUICK,
        "sample_grid": 2,
    }
    return RunConfig.model_validate({**values, **changes})


def train(settings, folder):
    run = Run(settings, folder, Accelerator(cpu=True))
    for level in run.levels:
        run.train_level(level)
    run.train_prior()
    run.release()
    return HierarchicalModel.from_pretrained(folder / "model")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("reuse") / "source"
    train(config(), folder)
    return folder


def same_level(ours, theirs):
    ours, theirs = ours.state_dict(), theirs.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_run_with_fewer_levels_takes_the_first(source, tmp_path, capsys):
    flat = train(config(levels=LEVELS[:1], levels_from=source, seed=7), tmp_path / "flat")
    assert f"level-1: taken from {source}" in capsys.readouterr().out
    stacked = HierarchicalModel.from_pretrained(source / "model")
    test = load_splits(config().data, ["test"])["test"]
    assert torch.equal(flat.encode(test.pixels)[0], stacked.encode(test.pixels)[0])
    ours, theirs = (model.ledger(test.pixels, test.labels) for model in (flat, stacked))
    assert ours.rows["level-1"] == theirs.rows["level-1"]
    assert list(ours.rows) == ["label", "prior", "level-1"]
    folder = tmp_path / "flat" / "phases" / "level-1"
    assert {path.name for path in folder.iterdir()} == {"best.pt", "DONE"}
    assert json.loads((folder / "DONE").read_text())["taken_from"] == str(source)


def test_a_run_with_more_levels_trains_the_others(source, tmp_path, capsys):
    third = {**LEVELS[1], "map": (1, 1)}
    deep = train(config(levels=[*LEVELS, third], levels_from=source / "model", seed=7), tmp_path / "deep")
    stacked = HierarchicalModel.from_pretrained(source / "model")
    assert same_level(deep.stack.level(1), stacked.stack.level(1))
    assert same_level(deep.stack.level(2), stacked.stack.level(2))
    out = capsys.readouterr().out
    assert [f"level-{n}: best validation" in out for n in (1, 2, 3)] == [False, False, True]


def test_the_source_is_not_needed_again(source, tmp_path, capsys):
    copy = shutil.copytree(source, tmp_path / "copy")
    settings = config(levels_from=copy, seed=7)
    Run(settings, tmp_path / "run", Accelerator(cpu=True))  # killed before its first phase
    shutil.rmtree(copy)
    resumed = train(settings, tmp_path / "run")
    assert f"level-2: taken from {copy}" in capsys.readouterr().out
    stacked = HierarchicalModel.from_pretrained(source / "model")
    assert all(same_level(resumed.stack.level(n), stacked.stack.level(n)) for n in (1, 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": [{**LEVELS[0], "width": 16}]}, "levels.0.width is 8 there and 16 here"),
        (
            {"levels": [LEVELS[0], {**LEVELS[1], "quantizer": {"codebook_size": 16, "dim": 4}}]},
            "levels.1.quantizer.codebook_size is 4 there and 16 here",
        ),
        ({"pixels": {"components": 3}}, "pixels.components is 10 there and 3 here"),
        ({"pad_to": (12, 12)}, "pad_to is None there and (12, 12) here"),
    ],
)
def test_what_does_not_fit_is_refused(source, tmp_path, changes, message):
    with pytest.raises(InputError) as caught:
        Run(config(levels_from=source, **changes), tmp_path / "run", Accelerator(cpu=True))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no trained model"):
        Run(config(levels_from=tmp_path / "missing"), tmp_path / "run", Accelerator(cpu=True))
    assert not list(tmp_path.iterdir())


def test_the_first_difference_is_named():
    ours = config()
    assert first_difference(ours, config()) is None
    assert first_difference(ours, config(seed=3)) == ("seed", 0, 3)
    changed = config(levels=[LEVELS[0], {**LEVELS[1], "width": 9}], seed=3)
    assert first_difference(ours, changed) == ("levels.1.width", 8, 9)


@pytest.mark.parametrize(
    ("above", "stacked"),
    [
        ("cifar10_flat", "cifar10_product"),
        ("cifar10_refined", "cifar10_flat"),
        ("mnist_flat", "mnist_product"),
        ("mnist_masked", "mnist_flat"),
        ("mnist_refined", "mnist_product"),
    ],
)
def test_recipes_on_frozen_levels_fit_the_runs_they_name(above, stacked):
    recipes = Path(__file__).parents[1] / "benchmarks" / "recipes"
    ours, theirs = (read_yaml(recipes / f"{name}.yaml", RunConfig) for name in (above, stacked))
    assert ours.levels_from == Path("runs") / stacked  # where the recipe trains without --out
    for name in ("data", "augment", "levels", "pixels", "pad_to"):
        assert first_difference(getattr(ours, name), getattr(theirs, name)) is None
