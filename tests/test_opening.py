"""What a run says before its first step and after its last, and what it is told in short."""

import random
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers import TINY, refused
from PIL import Image

import vqstack
from vqstack.commands.train import recipe_of, shortened
from vqstack.config import RunConfig, changed, to_yaml
from vqstack.config.unused import without_unused
from vqstack.images import ImageSettings, first_look, load_splits
from vqstack.model import HierarchicalModel
from vqstack.nets import StagedPath
from vqstack.nets.blocks import Attention
from vqstack.phases import data_of_run, forecast
from vqstack.phases.opening import remarks
from vqstack.report import attention_without_blocks, scarce_sites, unplayed_games

TRAIN = Path(__file__).parents[1] / "recipes" / "train_stack.py"


def photos(size=(64, 64), count=12, alpha=None):
    """A folder of two classes, and settings that read it."""
    for kind in ("big cats", "dogs"):
        folder = Path("my photos") / kind
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = np.random.randint(0, 256, (*size, 4), dtype=np.uint8)
            pixels[..., 3] = 255 if alpha is None else alpha
            Image.fromarray(pixels if alpha is not None else pixels[..., :3]).save(folder / f"{number}.png")
    return ImageSettings(source="imagefolder", files={"train": "my photos"}, size=(8, 8), channels=3)


def test_a_run_says_what_it_trains_on_and_what_comes_next(call):
    data = {"source": "imagefolder", "files": {"train": "elsewhere"}, "size": (8, 8), "channels": 3, "values": 256}
    small = vqstack.recipe(**TINY).model_copy(update={"data": ImageSettings(**data)})
    Path("small.yaml").write_text(to_yaml(without_unused(small)))
    photos(size=(8, 8))
    arguments = ("--config", "small.yaml", "--images", "my photos", "--steps", 1, "--out", "run")
    code, out, err = call(TRAIN, *arguments)
    assert code == 0
    counts = {name: len(split) for name, split in load_splits(data_of_run(Path("run"))).items()}
    assert ", ".join(f"{name} {count}" for name, count in counts.items()) in out
    assert "big cats" in out and "dogs" in out and "run/samples" in out and "cpu" in out
    assert "levels.0: " in err and "each code" in err  # of 24 images
    assert out.splitlines()[-1] == "next: vqstack generate run --num 16 --label 'big cats' --out samples"
    again = call(TRAIN, *arguments)
    assert "images  " not in again[1]  # nothing is left to train


def test_images_and_steps_in_short():
    path, config = recipe_of(["--images", "photos", "--steps=30"])
    assert path.stem == "folder" and config.data.files == {"train": "photos"}
    plain = vqstack.recipe("folder")
    assert {
        fit.steps for name, fit in config.every_training.items() if name.partition(".")[0] not in config.unused()
    } == {30}
    for short, long in zip(config.train_levels, plain.train_levels, strict=True):
        assert short.warmup == round(long.warmup * 30 / long.steps) and 1 <= short.evaluate_every <= 30
    assert shortened(plain, plain.train_prior.steps).train_prior == plain.train_prior
    refused(lambda: recipe_of(["--images", "photos", "--config", "digits"]), "--images", "digits")


def test_a_forecast_is_near_and_changes_nothing(monkeypatch):
    """Twice the steps take twice the time; the random numbers, and so the run, are as without it."""
    config = vqstack.recipe(**TINY)
    splits = load_splits(config.data)
    settings = config.model_settings((1, 8, 8), 10)
    monkeypatch.setattr(import_module("vqstack.phases.forecast"), "SECONDS", 0.0)
    assert forecast(config, settings, splits, Accelerator()) == {}  # six steps are over sooner
    config = shortened(config, 400)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]
    found = forecast(config, settings, splits, Accelerator())
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]
    assert torch.equal(before[0], after[0]) and before[1] == after[1] and (before[2] == after[2]).all()
    assert [*found] == ["level-1", "level-2", "prior", "ledger"] and min(found.values()) > 0
    assert [*forecast(config, settings, splits, Accelerator(), done=["level-1"])] == ["level-2", "prior", "ledger"]
    sizes = []
    module = import_module("vqstack.phases.forecast")  # the function of that name hides it
    step = lambda phase, *_: sizes.append(phase.settings.steps) or 1.0  # noqa: E731
    monkeypatch.setattr(module, "_seconds_of_a_step", step)
    exact = forecast(config, settings, splits, Accelerator())
    assert exact["prior"] == pytest.approx(400 + 200 / 16 / 3 * 2 * -(-400 // config.train_prior.evaluate_every))
    assert sizes == [400] * 3


def test_what_hides_labels_is_remarked_on_where_images_have_none():
    part = {"level": 2, "labels": True, "label_dropout": 0.1}
    config = changed(vqstack.recipe(**TINY), {"prior": {"label_dropout": 0.1}, "refiners": [part]})
    found = {
        n: [*remarks(config, config.model_settings((1, 8, 8), n), load_splits(config.data), Accelerator())]
        for n in (0, 10)
    }
    assert [line.partition(":")[0] for line in found[0] if line not in found[10]] == [
        "label_dropout of the prior",
        "label_dropout of the refiner of level 2",
    ]


@pytest.mark.parametrize(
    ("game", "phases"),
    [
        ({}, []),
        ({"weight": 1, "start": 29}, []),
        ({"weight": 1, "start": 30}, ["train_renderer"]),
        ({"weight": 1, "start": 30, "joint": True}, ["train_renderer"]),
        ({"weight": 1, "start": 40, "joint": True}, ["train_renderer", "train_levels.0"]),
    ],
    ids=str,
)
def test_a_discriminator_that_would_never_take_part_is_told(game, phases):
    renderer = {"renderer": {"adversary": game, "joint_encoder": float(game.get("joint", 0))}}
    config = changed(shortened(vqstack.recipe(**TINY), 40), renderer | {"train_renderer": {"steps": 30}})
    told = [*unplayed_games(config)]
    assert len(told) == len(phases) and all(map(str.__contains__, told, phases))


@pytest.mark.parametrize("attention", [0, 1, 2, 3])
def test_attention_after_more_blocks_than_there_are_is_told(attention):
    """As often as a network is built with less of it than it was asked for; the encoder of clusters is a table."""
    networks = {"kind": "staged", "options": {"attention": attention}}
    level = {"networks": networks, "width": 8, "encoder_blocks": 2, "decoder_blocks": 1}
    cluster = {"map": [4, 4], "quantizer": {"kind": "cluster", "codebook_size": 8}}
    renderer = {"attention": attention, "width": 8, "blocks": 2, "perceptual": "none"}
    config = changed(RunConfig(), {"levels": [level, level | cluster], "renderer": renderer})
    model = HierarchicalModel(config.model_settings((1, 8, 8), 0))
    built = [part for part in model.modules() if isinstance(part, StagedPath)]
    short = [path for path in built if sum(isinstance(part, Attention) for part in path.blocks) < attention]
    told = [*attention_without_blocks(model.settings)]
    assert (len(built), len(told)) == (4, len(short))


def test_a_batch_that_does_not_fit_is_refused_before_the_run(monkeypatch):
    config = shortened(vqstack.recipe(**TINY), 400)

    def full(fit):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("vqstack.fit.Fit.training_step", full)
    run = (config, config.model_settings((1, 8, 8), 10), load_splits(config.data), Accelerator())
    refused(lambda: forecast(*run), "level-1", "batch_size 16", "accumulate to 2")


def test_small_and_transparent_images_are_noticed():
    settings = photos(size=(6, 5))
    look = first_look(settings)
    assert look.sizes == {(6, 5): 24} and look.transparent == 0
    (remark,) = look.remarks(settings)
    assert "24 of 24" in remark and "6x5" in remark
    assert first_look(photos(size=(8, 9))).remarks(settings) == []
    clear = first_look(photos(size=(8, 9), alpha=0))
    assert clear.transparent == 24 and "background" in clear.remarks(settings)[0]
    assert clear.remarks(settings.model_copy(update={"background": "white"})) == []
    assert first_look(ImageSettings()) is None


def test_levels_with_more_codes_than_images_teach_are_named():
    """A hundred sites for each code are enough, one less is not; what is proposed is enough."""
    settings = vqstack.recipe("digits").model_settings((1, 8, 8), 10)
    codes = [level.quantizer.codebook_size for level in settings.stack.levels]
    sites = [np.prod(level.map) for level in settings.stack.levels]
    enough = max(-(-100 * k // n) for k, n in zip(codes, sites, strict=True))
    assert list(scarce_sites(settings, int(enough))) == []
    (line,) = scarce_sites(settings, int(enough) - 1)
    proposed = int(line.split()[-1])
    number = int(line[len("levels.")])
    assert 100 * proposed <= sites[number] * (enough - 1) < 100 * codes[number]
