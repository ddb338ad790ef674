"""The README's Python runs as it stands, on a run of the size of a test."""

import re
from pathlib import Path

import pytest
import yaml
from helpers import TINY

import vqstack
from vqstack.config import RunConfig
from vqstack.model import HierarchicalModel

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture
def run_folder(tmp_path):
    """What the README calls runs/digits: an untrained model of the default shape and its configuration."""
    config = RunConfig.model_validate(
        {
            "levels": [
                {"map": [4, 4], "width": 8, "quantizer": {"codebook_size": 8, "dim": 4}},
                {"map": [2, 2], "width": 8, "quantizer": {"codebook_size": 4, "dim": 4}},
            ],
            "prior": {"depth": 1, "dim": 8, "heads": 2},
        }
    )
    folder = tmp_path / "runs" / "digits"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    HierarchicalModel(config.model_settings((1, 8, 8), 10)).save_pretrained(folder / "model")
    return tmp_path


def blocks():
    """The README's Python."""
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_the_quickstart_runs_as_it_stands(run_folder, monkeypatch, capsys):
    code = blocks()[0]
    assert len([line for line in code.splitlines() if line and not line.startswith(("from", "import"))]) <= 10
    monkeypatch.chdir(run_folder)
    names: dict = {}
    exec(code, names)
    expected = names["model"].ledger(names["test"].pixels, names["test"].labels).bits
    assert float(capsys.readouterr().out) == pytest.approx(expected)
    assert names["samples"].shape == (16, 1, 8, 8)
    assert names["images"].shape == names["test"].pixels.shape
    assert [tuple(z.shape[1:]) for z in names["codes"]] == [(4, 4), (2, 2)]


def test_training_on_images_in_memory_runs_as_it_stands(monkeypatch, tmp_path):
    """With a network of the size of a test in the place of the recipe's."""
    recipe = vqstack.recipe
    monkeypatch.setattr(vqstack, "recipe", lambda name, **changes: recipe(name, **changes | TINY))
    names: dict = {}
    exec(blocks()[1], names)
    assert vqstack.load("digits-model").settings == vqstack.load("runs/mine").settings == names["model"].settings
    assert names["model"].classes == 10
