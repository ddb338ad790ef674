"""The examples of docs/parts.md, run as they stand, and what a reader relies on."""

import re
from pathlib import Path

import pytest
import torch
from helpers import TINY, refused

import vqstack

PAGE = Path(__file__).parents[1] / "docs" / "parts.md"
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


@pytest.fixture
def run():
    """An example of the page by its number: its names."""

    def found(number):
        names: dict = {}
        exec(PROGRAMS[number], names)
        return names

    return found


def test_examples_are_short():
    assert len(PROGRAMS) == 4
    assert all(len([line for line in program.splitlines() if line.strip()]) < 40 for program in PROGRAMS)


def test_a_quantizer_is_a_layer(run):
    names = run(0)
    assert names["codes"].shape == (32, 4, 4) and names["vectors"].shape == (32, 16, 4, 4)
    assert all(p.grad is not None for p in names["down"].parameters())  # straight through the codes
    before = {name: value.clone() for name, value in names["quantizer"].state_dict().items()}
    names["quantizer"](names["down"](names["images"]))
    assert all(torch.equal(value, names["quantizer"].state_dict()[name]) for name, value in before.items())


def test_a_level_is_a_module(run):
    names = run(1)
    assert names["codes"].shape == (32, 4, 4)
    assert names["nats"].mean().item() < 16 * 16 * torch.tensor(4.0).log()  # less than saying nothing


def test_a_prior_learns_codes_of_anybody(run):
    names = run(2)
    assert names["drawn"].shape == (3, 4, 4) and 0 <= names["drawn"].min() <= names["drawn"].max() < 64
    bits = torch.cat(names["bits"])
    assert bits.shape == (100,) and torch.isfinite(bits).all()
    untrained = 16 * 6.0
    assert abs(bits.mean().item() - untrained) < 16  # random codes: six bits each
    objective = names["objective"]
    assert objective.loss.item() * 16 == pytest.approx(objective.metrics["nats"].item(), rel=1e-5)


@pytest.mark.parametrize("family", ["autoregressive", "masked"])
def test_a_code_that_the_codebook_does_not_hold_is_named(family):
    settings = vqstack.CodeModelSettings(family=family, depth=1, dim=8, heads=2)
    prior = vqstack.build_code_model(settings, (2, 2), codebook_size=64, classes=3)
    codes, labels = torch.full((2, 2, 2), 63), torch.tensor([0, 2])
    for _ in range(2):  # on a processor in every step
        assert torch.isfinite(prior(codes, labels).loss)
        refused(lambda: prior(codes.clone().fill_(64), labels), "64 lies outside 0 … 63")
        refused(lambda: prior(codes, labels + 1), "labels: 3 lies outside")


def test_a_released_model_learns_more_classes(run, monkeypatch):
    """Classes of the same name keep their rows: with no step taken they are those of the model."""
    recipe = vqstack.recipe
    vqstack.train(recipe("digits", **TINY), out="runs/digits")
    few = {"steps": 1, "learning_rate": 1e-12, "batch_size": 16, "warmup": 0, "evaluate_every": 1, "ema": 0.0}
    small = TINY | {"train_levels": few, "train_prior": few}
    monkeypatch.setattr(vqstack, "recipe", lambda name, **changes: recipe(name, **changes | small))
    model = run(3)["model"]
    assert model.settings.class_names == ("3", "7", "cat")
    before = vqstack.load("runs/digits")
    for name, value in before.stack.state_dict().items():
        if "codebook" not in name and "quantizer" not in name:
            assert torch.allclose(value, model.stack.state_dict()[name], atol=1e-6), name
    tables = [(k, v) for k, v in before.prior.state_dict().items() if v.shape[:1] in ((10,), (11,))]
    assert tables
    for name, value in tables:
        new = model.prior.state_dict()[name]
        assert torch.allclose(value[[3, 7]], new[:2], atol=1e-6), name
