"""Levels and encoders of another run: the same codes, nothing trained again, nothing taken that does not fit."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers import assert_same_run, equal, killed, refused
from helpers import trained as train
from pydantic import ValidationError

from vqstack.config import RunConfig, read_yaml
from vqstack.config.unused import unused
from vqstack.errors import InputError
from vqstack.fit import Fit, FitSettings
from vqstack.images import load_splits
from vqstack.model import HierarchicalModel
from vqstack.phases import Run
from vqstack.report import describe
from vqstack.reuse import Reused, check_sources

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


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("reuse") / "source"
    train(config(), folder)
    return folder


def same_level(ours, theirs):
    return equal(ours.state_dict(), theirs.state_dict())


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
    assert json.loads((folder / "DONE").read_text().splitlines()[0])["taken_from"] == str(source)


def test_a_run_with_more_levels_trains_the_others(source, tmp_path, capsys):
    third = {**LEVELS[1], "map": (1, 1)}
    deep = train(config(levels=[*LEVELS, third], levels_from=source / "model", seed=7), tmp_path / "deep")
    stacked = HierarchicalModel.from_pretrained(source / "model")
    assert same_level(deep.stack.level(1), stacked.stack.level(1))
    assert same_level(deep.stack.level(2), stacked.stack.level(2))
    out = capsys.readouterr().out
    assert [f"level-{n}: best validation" in out for n in (1, 2, 3)] == [False, False, True]


def test_a_run_keeps_fewer_levels_and_trains_its_own_above(source, tmp_path, capsys):
    other = {**LEVELS[1], "quantizer": {**LEVELS[1]["quantizer"], "codebook_size": 3}}
    with pytest.raises(InputError, match="set levels_kept to 1"):
        train(config(levels=[LEVELS[0], other], levels_from=source), tmp_path / "refused")
    with pytest.raises(InputError, match="levels_kept: 3 levels of .*, and 2 can be taken"):
        train(config(levels_from=source, levels_kept=3), tmp_path / "refused")
    with pytest.raises(ValidationError, match="levels_kept counts levels of levels_from"):
        config(levels_kept=1)
    model = train(config(levels=[LEVELS[0], other], levels_from=source, levels_kept=1), tmp_path / "kept")
    assert same_level(model.stack.level(1), HierarchicalModel.from_pretrained(source / "model").stack.level(1))
    assert model.stack.codebook_sizes[1] == 3
    out = capsys.readouterr().out
    assert [f"level-{n}: best validation" in out for n in (1, 2)] == [False, True]


def test_the_source_is_not_needed_again(source, tmp_path, capsys):
    copy = shutil.copytree(source, tmp_path / "copy")
    settings = config(levels_from=copy, seed=7)
    Run(settings, tmp_path / "run", Accelerator(cpu=True)).close()  # killed before its first phase
    shutil.rmtree(copy)
    resumed = train(settings, tmp_path / "run")
    assert f"level-2: taken from {copy}" in capsys.readouterr().out
    stacked = HierarchicalModel.from_pretrained(source / "model")
    assert all(same_level(resumed.stack.level(n), stacked.stack.level(n)) for n in (1, 2))


WINDOW = {"family": "window", "radius": 1, "features": 4, "width": 8}
WINDOWS = [{**level, "decoder": WINDOW, "decoder_blocks": 2} for level in LEVELS]


def decoders(source, **changes):
    """New decoders, of another family and with another likelihood, for the encoders of ``source``."""
    return config(
        **{"levels": WINDOWS, "pixels": {"components": 3}, "train_decoders": QUICK, "encoders_from": source, "seed": 7},
        **changes,
    )


def test_new_decoders_are_trained_on_the_codes_of_encoders_that_exist(source, tmp_path, capsys):
    copy = shutil.copytree(source, tmp_path / "copy")
    train(decoders(copy), tmp_path / "run")
    shutil.rmtree(copy)
    out = capsys.readouterr().out
    assert f"encoders: taken from {copy}" in out
    assert "decoders: best validation" in out
    assert {path.name for path in (tmp_path / "run/phases").iterdir()} == {"encoders", "decoders", "prior"}
    model = HierarchicalModel.from_pretrained(tmp_path / "run/model")  # needs nothing else
    theirs = HierarchicalModel.from_pretrained(source / "model")
    for name, value in theirs.stack.encoder_state().items():
        assert torch.equal(model.stack.encoder_state()[name], value), name
    started = torch.load(tmp_path / "run/phases/encoders/best.pt", weights_only=True)
    moved = {n for n, value in model.stack.state_dict().items() if not torch.equal(value, started[f"stack.{n}"])}
    assert moved
    assert all(".decoder." in name for name in moved)
    test = load_splits(config().data, ["test"])["test"]
    codes = model.encode(test.pixels)
    assert all(torch.equal(a, b) for a, b in zip(codes, theirs.encode(test.pixels), strict=True))
    rows = {r["row"]: r["nats"] for r in json.loads((tmp_path / "run/ledger.json").read_text())["test"]["rows"]}
    for number, below in ((1, test.pixels), (2, codes[0])):
        nats = -model.stack.level(number).decode(codes[number - 1]).log_prob(below).mean()
        assert rows[f"level-{number}"] == pytest.approx(nats.item(), rel=1e-5)


def test_killed_and_resumed_new_decoders_equal_uninterrupted_ones(source, tmp_path):
    settings = decoders(source).model_copy(update={"train_decoders": FitSettings(**QUICK, checkpoint_every=2)})
    train(settings, tmp_path / "whole")
    for step in (0, 3):
        with killed("decoders", step):
            train(settings, tmp_path / "parts")
    train(settings, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": [{**WINDOWS[0], "width": 16}, WINDOWS[1]]}, "levels.0.width is 8 there and 16 here"),
        ({"levels": [WINDOWS[0], {**WINDOWS[1], "map": (1, 1)}]}, "levels.1.map is [2, 2] there and [1, 1] here"),
        ({"levels": [*WINDOWS, {**WINDOWS[1], "map": (1, 1)}]}, "it has 2 levels, and 3 are asked for"),
        ({"pad_to": (12, 12)}, "pad_to is None there and [12, 12] here"),
    ],
)
def test_encoders_that_do_not_fit_are_refused(source, tmp_path, changes, message):
    with pytest.raises(InputError) as caught:
        Run(config(encoders_from=source, **changes), tmp_path / "run", Accelerator(cpu=True))
    assert str(caught.value).startswith(f"encoders_from {source}: ")
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"joint": True}, "joint and encoders_from both say"),
        ({"levels_from": "somewhere"}, "levels_from and encoders_from both say"),
        (
            {"levels": [LEVELS[0], {**LEVELS[0], "quantizer": {"kind": "cluster", "codebook_size": 4, "dim": 4}}]},
            "encoders_from trains all decoders at once, and clusters",
        ),
    ],
)
def test_what_excludes_new_decoders_for_encoders_that_exist(changes, message):
    with pytest.raises(ValidationError, match=message):
        config(encoders_from="elsewhere", **changes)


def test_a_plan_for_new_decoders_names_what_nothing_would_train(source):
    settings = decoders(source)
    assert set(unused(settings)) >= {"train_levels", "train_joint"}
    assert "train_decoders" not in unused(settings)
    assert "memory" in describe(settings, settings.model_settings((1, 8, 8), 10))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": [{**LEVELS[0], "width": 16}]}, "levels.0.width is 8 there and 16 here"),
        (
            {"levels": [LEVELS[0], {**LEVELS[1], "quantizer": {"codebook_size": 16, "dim": 4}}]},
            "levels.1.quantizer.codebook_size is 4 there and 16 here",
        ),
        ({"pixels": {"kind": "logistic_mixture"}}, "pixels.kind is auto there and logistic_mixture here"),
        ({"pad_to": (12, 12)}, "pad_to is None there and [12, 12] here"),
    ],
)
def test_what_does_not_fit_is_refused(source, tmp_path, changes, message):
    refused(lambda: Run(config(levels_from=source, **changes), tmp_path / "run", Accelerator(cpu=True)), message)
    assert not list(tmp_path.iterdir())


def test_what_nothing_reads_may_differ(source):
    """A mixture's components beside categorical pixels, as runs of earlier versions have them."""
    assert Reused(source, config(pixels={"components": 3}).model_settings((1, 8, 8), 10)).count == 2


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="missing: no such folder"):
        Run(config(levels_from=tmp_path / "missing"), tmp_path / "run", Accelerator(cpu=True))
    assert not list(tmp_path.iterdir())


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
    count = min(len(ours.levels), len(theirs.levels))
    assert ours.levels[:count] == theirs.levels[:count]
    assert all(getattr(ours, name) == getattr(theirs, name) for name in ("data", "augment", "pixels", "pad_to"))


def starting(source, **changes):
    return config(start_from={"all": source}, **{"seed": 7, **changes})


def begun(settings, folder):
    run = Run(settings, folder, Accelerator(cpu=True))
    run.close()
    return run.model


def test_a_run_starts_where_another_model_ended(source, tmp_path):
    model = begun(starting(source / "model"), tmp_path / "run")
    other = HierarchicalModel.from_pretrained(source)
    test = load_splits(config().data, ["test"])["test"]
    codes = other.encode(test.pixels)
    assert torch.equal(
        model.joint_log_prob(test.pixels, codes, test.labels), other.joint_log_prob(test.pixels, codes, test.labels)
    )
    ours, theirs = model.state_dict(), other.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert model.stack.level(1).quantizer.state_dict()["initialised"].all()  # no k-means over what was learned


def test_codebooks_are_trained_on_and_not_begun_anew(source, tmp_path):
    """At a learning rate near 0, with averages that stand still, training changes nothing."""
    still = {**QUICK, "learning_rate": 1e-12}
    levels = [{**level, "quantizer": {**level["quantizer"], "decay": 1 - 1e-9, "revival": 0}} for level in LEVELS]
    changes = {"levels": levels, "train_levels": [still], "train_prior": still}
    model = train(starting(source, **changes), tmp_path / "still")
    other = HierarchicalModel.from_pretrained(source)
    test = load_splits(config().data, ["test"])["test"]
    assert [row.nats for row in model.ledger(test.pixels, test.labels).rows.values()] == pytest.approx(
        [row.nats for row in other.ledger(test.pixels, test.labels).rows.values()], rel=1e-4
    )


def test_a_killed_run_that_started_elsewhere_ends_as_one_that_was_not(source, tmp_path, monkeypatch):
    """Also where the model that it started from is another one by then, or gone."""
    copy = shutil.copytree(source, tmp_path / "copy")
    settings = starting(copy)
    wanted = train(settings, tmp_path / "whole").state_dict()
    save = Fit._save

    def killed(fit, *arguments):
        save(fit, *arguments)
        raise KeyboardInterrupt

    for kill in ("before", "level-1", "level-2", "prior"):
        run = Run(settings, tmp_path / "run", Accelerator(cpu=True))
        if kill != "before":
            monkeypatch.setattr(Fit, "_save", killed)
            with pytest.raises(KeyboardInterrupt):
                [run.train(phase) for phase in run.phases.values()]
            monkeypatch.setattr(Fit, "_save", save)
        run.close()
        if kill == "before":  # another model there
            shutil.rmtree(copy / "model")
            shutil.copytree(tmp_path / "whole" / "model", copy / "model")
        elif copy.exists():
            shutil.rmtree(copy)
    ended = train(settings, tmp_path / "run").state_dict()
    assert all(torch.equal(ended[name], value) for name, value in wanted.items())


def test_parts_start_by_themselves(source, tmp_path):
    other = HierarchicalModel.from_pretrained(source)
    deep = [*LEVELS, {**LEVELS[1], "map": (1, 1)}]
    fresh = begun(config(levels=deep, seed=7), tmp_path / "fresh")
    model = begun(config(levels=deep, start_from={"levels": source}, seed=7), tmp_path / "levels")
    assert all(same_level(model.stack.level(n), other.stack.level(n)) for n in (1, 2))
    assert same_level(model.stack.level(3), fresh.stack.level(3))
    assert same_level(model.prior, fresh.prior)
    model = begun(config(start_from={"prior": source}, seed=7), tmp_path / "prior")
    assert same_level(model.prior, other.prior)
    assert not same_level(model.stack.level(1), other.stack.level(1))


RENDERER = {"width": 8, "least_width": 4, "perceptual": "none"}


def test_a_renderer_comes_along(source, tmp_path, capsys):
    other = begun(config(renderer=RENDERER), tmp_path / "other")
    other.save_pretrained(tmp_path / "model")
    for part in ("all", "renderer"):
        model = begun(config(renderer=RENDERER, seed=7, start_from={part: tmp_path / "model"}), tmp_path / part)
        assert same_level(model.renderer, other.renderer)
        assert same_level(model.prior, other.prior) == (part == "all")
    capsys.readouterr()
    fresh = begun(config(renderer=RENDERER, seed=7), tmp_path / "fresh")
    model = begun(starting(source, renderer=RENDERER), tmp_path / "without")
    assert same_level(model.renderer, fresh.renderer) and "renderer begins anew" in capsys.readouterr().out
    with pytest.raises(InputError, match="settings of renderer"):
        begun(starting(tmp_path / "model", renderer={**RENDERER, "width": 16}), tmp_path / "wider")


def test_rows_of_classes_are_matched_by_name(tmp_path, capsys):
    def named(*names):
        data = {"source": "array", "files": {"train": str(tmp_path / "train.npz")}, "values": 17, "size": (8, 8)}
        return {
            "data": {**data, "class_names": names},
            "refiners": [{"level": 1, "labels": True, "depth": 1, "dim": 8, "heads": 2}],
        }

    pixels = np.random.default_rng(0).integers(0, 17, (40, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "train.npz", images=pixels, labels=np.arange(40) % 3)
    old = begun(config(**named("cat", "dog", "owl")), tmp_path / "old")
    old.save_pretrained(tmp_path / "model")
    capsys.readouterr()
    new = begun(starting(tmp_path / "model", **named("owl", "bee", "cat")), tmp_path / "new")
    said = capsys.readouterr().out
    assert "prior: the classes bee begin anew" in said and "prior: the classes dog are not kept" in said
    fresh = begun(config(**named("owl", "bee", "cat"), seed=7), tmp_path / "fresh")
    for part in ("prior", "refiners.1"):
        rows, before, without = (m.get_submodule(part).conditions["label"].embedding.weight for m in (new, old, fresh))
        assert torch.equal(rows, torch.stack([before[2], without[1], before[0]]))
    unlabelled = {**named("owl", "bee", "cat"), "prior": {"depth": 1, "dim": 8, "heads": 2, "labels": False}}
    begun(starting(tmp_path / "model", **unlabelled), tmp_path / "unlabelled")
    assert "prior: its classes are not kept" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prior": {"depth": 1, "dim": 16, "heads": 2}}, "(8,) there and (16,) here"),
        ({"prior": {"depth": 2, "dim": 8, "heads": 2}}, "missing there"),
        ({"levels": LEVELS[:1]}, "make the settings of prior equal"),
        ({"levels": [LEVELS[0], {**LEVELS[1], "quantizer": {"codebook_size": 16, "dim": 4}}]}, "level-2"),
        ({"levels": [{**LEVELS[0], "quantizer": {"kind": "cosine", "codebook_size": 8, "dim": 4}}]}, "cosine here"),
        ({"start_from": {"refiners": "SOURCE"}}, "has none of what there is here"),
    ],
)
def test_what_cannot_start_is_refused_before_anything_is_written(source, tmp_path, changes, message):
    settings = config(**{"start_from": {"all": source}, **changes})
    if "start_from" in changes:
        settings = config(start_from={"refiners": source})
    refused(lambda: Run(settings, tmp_path / "run", Accelerator(cpu=True)), message, str(source))
    with pytest.raises(InputError):  # a dry run too
        check_sources(settings, settings.model_settings((1, 8, 8), 1), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_run_that_has_begun_without_cannot_start_from_another(source, tmp_path):
    run = Run(config(), tmp_path / "run", Accelerator(cpu=True))
    run.train(run.phases["level-1"])
    run.close()
    with pytest.raises(InputError, match="has begun"):
        Run(config(start_from={"all": source}), tmp_path / "run", Accelerator(cpu=True), override=True)
    with pytest.raises(InputError, match="start_from"):
        Run(config(start_from={"all": source}), tmp_path / "run", Accelerator(cpu=True))
    begun(starting(source), tmp_path / "started")
    shutil.rmtree(tmp_path / "started" / "start")  # before any phase it is taken again
    begun(starting(source), tmp_path / "started")


def test_frozen_levels_beside_a_start(source, tmp_path):
    with pytest.raises(ValidationError, match="leave one of them out"):
        config(levels_from=source, start_from={"levels": source})
    model = train(config(levels_from=source, start_from={"prior": source}, seed=7), tmp_path / "run")
    other = HierarchicalModel.from_pretrained(source)
    assert all(same_level(model.stack.level(n), other.stack.level(n)) for n in (1, 2))


def test_a_killed_run_on_frozen_levels_begins_its_prior_alike(source, tmp_path):
    settings = config(levels_from=source, seed=7)
    assert same_level(begun(settings, tmp_path / "a").prior, begun(settings, tmp_path / "a").prior)


def test_a_dry_run_looks_at_the_frozen_levels(source, tmp_path):
    settings = config(levels_from=source, levels=[{**LEVELS[0], "width": 16}])
    with pytest.raises(InputError, match="width"):
        check_sources(settings, settings.model_settings((1, 8, 8), 1), tmp_path / "run")
    later = config(levels_from=tmp_path / "later")
    (line,) = check_sources(later, later.model_settings((1, 8, 8), 1), tmp_path / "run")
    assert "of a trained model now" in line
