"""A run with refiners at both levels through the recipe and the tools, tiny."""

import json
from pathlib import Path

import pytest
import torch
from helpers import main, phases_done
from PIL import Image

from vqstack.errors import InputError
from vqstack.model import HierarchicalModel

ROOT = Path(__file__).parents[1]
RECIPE = """
data: {source: digits, limit: 32}
levels:
  - {map: [4, 4], width: 8, encoder_blocks: 1, decoder_blocks: 1, quantizer: {codebook_size: 8, dim: 4}}
  - {map: [2, 2], width: 8, encoder_blocks: 1, decoder_blocks: 1, quantizer: {codebook_size: 4, dim: 4}}
train_levels: [{steps: 4, batch_size: 16, warmup: 2, evaluate_every: 2}]
refiners:
  - {level: 1, family: masked, groups: 4, depth: 1, dim: 8, heads: 2, labels: true, label_dropout: 0.3,
     corruption: 0.2, corrupt_by: samples}
  - {level: 2, groups: 4, depth: 1, dim: 8, heads: 2, soft_targets: 0.5, corruption: 0.2}
train_refiners: [{steps: 30, batch_size: 16, warmup: 2, evaluate_every: 15, learning_rate: 5.0e-3}]
prior: {depth: 1, dim: 8, heads: 2, label_dropout: 0.2}
train_prior: {steps: 4, batch_size: 16, warmup: 2, evaluate_every: 2}
sample_grid: 4
"""


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("refined")
    (folder / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    main(
        ROOT / "recipes/train_stack.py",
        "--config",
        folder / "tiny.yaml",
        "--out",
        folder / "run",
        "--refiners.1.dim",
        16,
    )
    return folder / "run"


def generate(run_folder, out, *arguments):
    main(ROOT / "tools/generate.py", run_folder, "--out", out, "--device", "cpu", *arguments)
    return json.loads((out / "manifest.json").read_text())


def test_the_phases_and_their_improvement(run_folder):
    phases = phases_done(run_folder)
    assert set(phases) == {"level-1", "level-2", "refiner-1", "refiner-2", "prior"}
    for level in (1, 2):
        assert phases[f"refiner-{level}"]["validation_nats"] < phases[f"level-{level}"]["validation_nats"]
    model = HierarchicalModel.from_pretrained(run_folder / "model")
    assert [part.settings.dim for part in model.parts] == [8, 8, 16]  # prior, refiners; one was set on the command line
    rows = {row["row"]: row["bits"] for row in json.loads((run_folder / "ledger.json").read_text())["test"]["rows"]}
    assert list(rows) == ["label", "prior", "level-2", "level-1"]
    assert len(list((run_folder / "samples").glob("refiner-*.png"))) == 4


def test_running_again_repeats_nothing(run_folder, capsys):
    before = (run_folder / "model/model.safetensors").read_bytes()
    main(ROOT / "recipes/train_stack.py", "--config", run_folder.parent / "tiny.yaml", "--out", run_folder,
         "--refiners.1.dim", 16)  # fmt: skip
    assert "refiner-1: done before" in capsys.readouterr().out
    assert (run_folder / "model/model.safetensors").read_bytes() == before


def test_generating_with_guidance(run_folder, tmp_path):
    manifest = generate(run_folder, tmp_path / "a", "--num", 4, "--label", 3, "--guidance", 25)
    assert manifest["settings"]["guidance"] == [25]
    assert [image["label"] for image in manifest["images"]] == [3] * 4
    generate(run_folder, tmp_path / "b", "--num", 4, "--label", 3, "--guidance", 1)
    generate(run_folder, tmp_path / "c", "--num", 4, "--label", 3)
    grids = [(tmp_path / name / "grid.png").read_bytes() for name in "abc"]
    assert grids[1] == grids[2] != grids[0]
    with pytest.raises(InputError, match="level 2 has none"):
        generate(run_folder, tmp_path / "d", "--num", 1, "--guidance", 1, 2, 2)
    assert not (tmp_path / "d").exists()


def test_generating_by_confidence_and_variations(run_folder, tmp_path):
    generate(run_folder, tmp_path / "a", "--num", 2, "--confidence", "False", "False", "True")
    image = tmp_path / "a" / "000000.png"
    generate(run_folder, tmp_path / "b", "--images", image, "--from-level", 2, "--num", 3)
    drawn = [Image.open(tmp_path / "b" / f"{i:06d}.png").tobytes() for i in range(3)]
    assert len(set(drawn)) == 3


def test_variations_of_a_class(run_folder, tmp_path):
    generate(run_folder, tmp_path / "a", "--num", 1)
    start = ("--images", tmp_path / "a" / "000000.png", "--num", 4, "--from-level")
    labels = [image["label"] for image in generate(run_folder, tmp_path / "b", *start, 2, "--label", 3, 7)["images"]]
    assert labels == [3, 7, 3, 7]
    generate(run_folder, tmp_path / "c", *start, 2)  # the refiner of the pixels has learned to do without
    generate(run_folder, tmp_path / "d", *start, 1, "--label", 3, "--guidance", 1, 1, 30)
    generate(run_folder, tmp_path / "e", *start, 1, "--label", 7, "--guidance", 1, 1, 30)
    grids = [(tmp_path / name / "grid.png").read_bytes() for name in "bcde"]
    assert len(set(grids)) == 4


def test_a_class_that_must_be_told(run_folder, tmp_path):
    model = HierarchicalModel.from_pretrained(run_folder / "model")
    always = model.settings.refiners[0].model_copy(update={"label_dropout": 0.0})
    strict = HierarchicalModel(model.settings.model_copy(update={"refiners": (always, model.settings.refiners[1])}))
    strict.load_state_dict(model.state_dict())
    strict.save_pretrained(tmp_path / "strict")
    start = ("--images", sorted((run_folder / "samples").glob("*.png"))[0], "--from-level", 1)
    with pytest.raises(InputError, match="--label: missing, and the refiner of level 1 needs a class"):
        generate(tmp_path / "strict", tmp_path / "out", *start)
    assert not (tmp_path / "out").exists()


def test_encoding(run_folder, tmp_path):
    main(ROOT / "tools/encode_dataset.py", run_folder, "--out", tmp_path / "codes", "--cpu")
    generate(run_folder, tmp_path / "again", "--codes", tmp_path / "codes", "--num", 2)
    assert len(list((tmp_path / "again").glob("0*.png"))) == 2
