"""The examples of docs/extending.md, run as they are written there."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from helpers import randomised, refused, trained
from pydantic import ValidationError

from vqstack.config import RunConfig
from vqstack.errors import InputError
from vqstack.images import load_splits
from vqstack.images.settings import SOURCES
from vqstack.level import LevelSettings
from vqstack.likelihood import PixelSettings, pixel_head, walked_log_prob
from vqstack.likelihood.heads import PIXELS
from vqstack.model import HierarchicalModel
from vqstack.nets import NETWORKS, Down, Up, register_networks
from vqstack.quantizer import QuantizerSettings, build_quantizer
from vqstack.quantizer.settings import QUANTIZERS
from vqstack.registry import PLUGINS
from vqstack.stack import Stack, StackSettings
from vqstack.window import FAMILIES

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
PROGRAM = PROGRAMS[0]
SETTINGS = {
    "quantizer": yaml.safe_load(re.search(r"    (quantizer: \{kind.*)\n", PAGE)[1])["quantizer"],
    "pixels": yaml.safe_load(re.search(r"    (pixels: .*)\n", PAGE)[1])["pixels"],
    "decoder": yaml.safe_load(re.search(r"    (decoder: .*)\n", PAGE)[1])["decoder"],
    "data": yaml.safe_load(re.search(r"    (data: .*)\n", PAGE)[1])["data"],
}
FIT = {"steps": 4, "batch_size": 16, "warmup": 1, "evaluate_every": 2}


@pytest.fixture
def plugin(unregistered, monkeypatch, tmp_path):
    (tmp_path / "plain_networks.py").write_text(PROGRAM, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(PLUGINS, "plain_networks")


def test_networks_of_ones_own_are_trained_released_and_drawn_from(plugin, call, monkeypatch, tmp_path):
    levels = yaml.safe_load(re.search(r"```yaml\n(levels:.*?)```", PAGE, re.DOTALL)[1])["levels"]
    config = {"data": {"limit": 32}, "levels": levels, "train_levels": [FIT | {"collapse": 0}], "train_prior": FIT}
    # Refiners read the features of the decoder.
    config["refiners"] = [{"level": 1, "depth": 1, "dim": 8, "heads": 2, "groups": 2}]
    config |= {"train_refiners": [FIT], "prior": {"depth": 1, "dim": 8, "heads": 2}, "sample_grid": 2}
    (tmp_path / "plain.yaml").write_text(json.dumps(config), encoding="utf-8")
    AcceleratorState._reset_state()
    assert call(ROOT / "recipes/train_stack.py", "--config", "plain.yaml", "--out", "run")[0] == 0
    model = HierarchicalModel.from_pretrained(tmp_path / "run" / "model")
    assert model.stack.level(1).encoder.enter.out_channels == model.stack.level(1).up.features == 16
    assert call(ROOT / "tools/generate.py", "run", "--num", 2, "--out", "drawn")[0] == 0
    NETWORKS.pop("plain")
    monkeypatch.delenv(PLUGINS)
    code, out, err = call(ROOT / "tools/generate.py", "run", "--num", 2, "--out", "more")
    assert (code, out, len(err.splitlines())) == (2, "", 1) and "plain is not registered" in err
    monkeypatch.setenv(PLUGINS, "no_such_module")
    code, out, err = call(ROOT / "tools/generate.py", "run", "--num", 2, "--out", "more")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "No module named 'no_such_module'" in err and "again" not in err  # the model is as it should be


def test_an_encoder_of_ones_own_has_the_decoder_of_the_package(unregistered):
    exec(PROGRAMS[1], {})
    networks = yaml.safe_load("{" + re.search(r"`(networks: \{kind: own_encoder.*?\}\})`", PAGE)[1] + "}")["networks"]
    settings = LevelSettings(map=(2, 2), networks=networks, quantizer={"codebook_size": 4, "dim": 8})
    level = Stack(StackSettings(levels=(settings,)), (1, 4, 4), 2).level(1)
    level(torch.randint(0, 2, (8, 1, 4, 4), dtype=torch.uint8)).loss.backward()
    assert isinstance(level.up, Up) and level.encoder[0].out_channels == networks["options"]["hidden"] == 16
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in level.encoder.parameters())


def test_levels_with_other_networks_sum_to_one_together(unregistered):
    """A level of the project's own above one of these: all images given a code, and all maps given a code above."""
    exec(PROGRAM, {})
    torch.manual_seed(0)
    levels = tuple(
        LevelSettings(map=m, width=8, networks={"kind": kind}, quantizer={"codebook_size": 3, "dim": 2})
        for m, kind in (((2, 1), "plain"), ((1, 1), "residual"))
    )
    stack = Stack(StackSettings(levels=levels), (1, 4, 2), 2).eval()
    randomised(stack, 1.0)
    pixels = torch.cartesian_prod(*[torch.arange(2)] * 8).to(torch.uint8).view(-1, 1, 4, 2)
    maps = torch.cartesian_prod(*[torch.arange(3)] * 2).view(-1, 2, 1)
    for level, below in ((1, pixels), (2, maps)):
        codes = torch.full((1, *stack.level(level).map_shape), 1).expand(len(below), -1, -1)
        total = stack.level(level).decode(codes).log_prob(below).double().exp().sum()
        assert total.item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("networks", "plugins", "message"),
    [
        ({"kind": "none_such"}, "", "none_such is not registered here, only residual"),
        ({"kind": "none_such"}, "no_such_module", "VQSTACK_PLUGINS: No module named 'no_such_module'"),
        ({"options": {"hidden": 3}}, "", "networks.options: Down: got an unexpected keyword argument 'hidden'"),
    ],
)
def test_what_cannot_be_built_is_refused(monkeypatch, networks, plugins, message):
    monkeypatch.setenv(PLUGINS, plugins)
    with pytest.raises(InputError, match=re.escape(message)):
        Stack(StackSettings(levels=(LevelSettings(map=(2, 2), networks=networks),)), (1, 4, 4), 2)


class Silent(Down):
    """Takes no blocks."""

    def __init__(self, channels, width, out, *, map_shape, scale, dropout):
        super().__init__(channels, width, out, blocks=0, map_shape=map_shape, scale=scale, dropout=dropout)


class Narrow(Down):
    def forward(self, x):
        return super().forward(x)[:, 1:]


class Coarse(Up):
    def forward(self, x):
        features, numbers = super().forward(x)
        return features, numbers[..., ::2]


class Single(Up):
    def forward(self, x):
        return super().forward(x)[1]


@pytest.mark.parametrize(
    ("encoder", "decoder", "message"),
    [
        (Silent, Up, "networks: Silent: got an unexpected keyword argument 'blocks': its class must take 3 arguments "),
        (Narrow, Up, "networks: Narrow gives vectors (7, 2, 2) of each image: they must be (8, 2, 2)"),
        (Down, Coarse, "networks: Coarse gives numbers (1, 4, 2) of each image: they must be (1, 4, 4)"),
        (Down, Single, "networks: Single must give two tensors: features, and numbers"),
    ],
)
def test_networks_that_do_not_fit_are_named(unregistered, encoder, decoder, message):
    register_networks("unfit", encoder, decoder)
    settings = LevelSettings(map=(2, 2), networks={"kind": "unfit"}, quantizer={"codebook_size": 4, "dim": 8})
    pixels = torch.randint(0, 2, (2, 1, 4, 4), dtype=torch.uint8)
    with pytest.raises(InputError, match=re.escape(message)):
        Stack(StackSettings(levels=(settings,)), (1, 4, 4), 2).level(1)(pixels)


def test_a_name_is_not_taken_twice(unregistered):
    register_networks("residual", Down, Up)
    with pytest.raises(ValueError, match="residual is registered for something else"):
        register_networks("residual", Up, Down)


def test_the_table_counts_the_lines_of_the_examples():
    told = [int(count) for count in re.findall(r"\| none: a file of yours \| (\d+) lines", PAGE)]
    counts = [len([line for line in program.splitlines() if line.strip()]) for program in PROGRAMS]
    assert told == counts


@pytest.mark.parametrize("pixels", [True, False])
def test_a_decoder_family_of_ones_own_is_walked_as_it_is_scored(unregistered, pixels):
    """After two steps of training all maps below a code sum to one, and one pass says what the walk says."""
    exec(next(program for program in PROGRAMS if "register_family(" in program), {})
    torch.manual_seed(0)
    level = {"width": 8, "encoder_blocks": 0, "decoder_blocks": 0, "quantizer": {"codebook_size": 2, "dim": 4}}
    decoders = ({}, SETTINGS["decoder"]) if not pixels else (SETTINGS["decoder"],)
    maps = ((2, 2), (1, 2))
    levels = tuple(LevelSettings(**level, map=m, decoder=d) for m, d in zip(maps, decoders, strict=False))
    stack = Stack(StackSettings(levels=levels), (1, 2, 4), 2)
    own = stack.levels[-1]
    below = torch.randint(0, 2, (6, *own.lower.shape), dtype=torch.uint8 if pixels else torch.int64)
    optimizer = torch.optim.SGD(own.parameters(), lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        own(below).loss.backward()
        optimizer.step()
    every = torch.cartesian_prod(*[torch.arange(2)] * own.lower.sites).view(-1, *own.lower.shape).to(below.dtype)
    codes = torch.ones(len(every), *own.map_shape, dtype=torch.int64)
    found = own.eval().decode(codes)
    assert found.log_prob(every).double().exp().sum().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(found.log_prob(every), walked_log_prob(found, every))
    assert found.log_prob(every).std() > 1e-3
    draws = found.sample(torch.rand(len(every), found.sites, dtype=torch.float64))
    assert draws.shape == every.shape and len(draws.flatten(1).unique(dim=0)) > 1


def test_transformers_correct_and_clusters_have_the_projects_own_decoders(unregistered):
    exec(next(program for program in PROGRAMS if "register_family(" in program), {})
    levels = [{"map": (2, 2), "decoder": {"family": "chain"}}, {"map": (1, 1), "decoder": {"family": "chain"}}]
    for changes, word in (
        ({"refiners": [{"level": 1}], "train_refiners": [FIT]}, "level 1 has a decoder of family chain"),
        ({"unified": True}, "level 2 has a decoder of family chain"),
        ({"levels": [levels[0], {**levels[1], "map": (2, 2), "quantizer": {"kind": "cluster"}}]}, "levels.1.decoder"),
    ):
        with pytest.raises(ValidationError, match=word):
            RunConfig.model_validate({"levels": levels, **changes})


def test_quantizer_likelihood_family_and_source_of_ones_own_serve_a_run(unregistered, tmp_path, monkeypatch):
    monkeypatch.setenv("VQSTACK_CACHE", str(tmp_path / "cache"))
    own = [program for program in PROGRAMS if re.search("register_(quantizer|pixels|source|family)", program)]
    assert len(own) == 4
    for program in own:
        exec(program, {})
    level = {"width": 8, "encoder_blocks": 0, "decoder_blocks": 0}
    config = RunConfig.model_validate(
        {
            "data": SETTINGS["data"] | {"validation": 20},
            "pixels": SETTINGS["pixels"],
            "levels": [
                {
                    **level,
                    "map": (4, 4),
                    "quantizer": SETTINGS["quantizer"] | {"dim": 4},
                    "decoder": SETTINGS["decoder"],
                }
            ],
            "train_levels": [FIT | {"collapse": 0}],
            "prior": {"depth": 1, "dim": 8, "heads": 2},
            "train_prior": FIT,
        }
    )
    model = trained(config, tmp_path / "run")
    assert model.settings.class_names == ("small", "large") and model.sample(3).pixels.shape == (3, 1, 8, 8)
    test = load_splits(config.data, ["test"])["test"]
    assert model.ledger(test.pixels, test.labels).bits > 0
    table = model.stack.level(1).decode(model.encode(test.pixels[:2])[0])
    factor = next(table.factors(torch.zeros(2, 64, dtype=torch.int64)))
    odds = factor.log_probs[..., 1:] - factor.log_probs[..., :-1]  # ln (V-1-x)/(x+1) + ln p/(1-p)
    x = torch.arange(15)
    logit = odds - ((15.0 - x) / (x + 1)).log()
    assert logit.std(-1).max() < 1e-3 and factor.log_probs.exp().sum(-1).allclose(torch.ones(2, 1))
    for registry, word in ((QUANTIZERS, "frozen"), (PIXELS, "binomial"), (FAMILIES, "chain")):
        with monkeypatch.context() as patch:
            patch.delitem(registry, word)
            refused(lambda: HierarchicalModel.from_pretrained(tmp_path / "run" / "model"), word, "not registered")
    monkeypatch.delitem(SOURCES, "discs")
    refused(lambda: load_splits(config.data.model_copy(update={"seed": 1}), ["test"]), "discs", "not registered")
    with pytest.raises(ValidationError, match="discs is not registered"):
        RunConfig.model_validate({"data": SETTINGS["data"]})


def test_options_of_the_projects_own_kinds_are_refused():
    refused(lambda: build_quantizer(QuantizerSettings(options={"seed": 1})), "options")
    refused(lambda: pixel_head(PixelSettings(options={"seed": 1}), 1, 256), "options")
