"""The recipe in its variants, each trained by the command at toy size: quantizers, precision, compiler, trackers."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from vqstack.images import load_splits
from vqstack.model import HierarchicalModel
from vqstack.phases import data_of_run

TRAIN = Path(__file__).parents[1] / "recipes" / "train_stack.py"
KINDS = {"vq": 8, "cosine": 8, "fsq": 9, "lfq": 8, "simvq": 8}
FIT = {"steps": 6, "batch_size": 16, "warmup": 1, "learning_rate": 3e-3, "evaluate_every": 3}


def recipe(kind="vq", **fields):
    """A recipe of two tiny levels as YAML (JSON is YAML)."""
    quantizer = {"kind": kind, "codebook_size": KINDS[kind], "dim": 4}
    level = {"width": 8, "encoder_blocks": 1, "decoder_blocks": 1, "quantizer": quantizer}
    values = {
        "data": {"limit": 32},
        "levels": [{**level, "map": [4, 4]}, {**level, "map": [2, 2]}],
        "train_levels": [FIT | {"collapse": 0}],  # in so few steps fsq uses one code, and is rightly warned about
        "prior": {"depth": 1, "dim": 8, "heads": 2},
        "train_prior": FIT,
        "sample_grid": 2,
    }
    return json.dumps({**values, **fields})


@pytest.fixture(scope="module")
def trained():
    """Folders of the runs so far, by what was asked for: tests only read them."""
    return {}


@pytest.fixture
def train(call, trained, tmp_path_factory):
    """Train a recipe with flags, unless that was done before; gives the run's folder."""

    def run(text, *flags):
        if (text, flags) not in trained:
            path = tmp_path_factory.mktemp("variant") / "recipe.yaml"
            path.write_text(text, encoding="utf-8")
            AcceleratorState._reset_state()  # one process, one precision; here there are several
            code, _, err = call(TRAIN, "--config", path, "--out", path.parent / "run", *flags)
            said = [line for line in err.splitlines() if not line.startswith("warning: levels.")]  # too few images
            assert (code, said) == (0, [])
            trained[text, flags] = path.parent / "run"
        return trained[text, flags]

    return run


def metrics(folder, phase):
    return [json.loads(row) for row in (folder / "phases" / phase / "metrics.jsonl").read_text().splitlines()]


def bits(folder, split="test"):
    return json.loads((folder / "ledger.json").read_text())[split]["bits"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_quantizer_trains_by_the_command(train, kind):
    folder = train(recipe(kind))
    model = HierarchicalModel.from_pretrained(folder / "model")
    assert model.stack.level(1).settings.quantizer.kind == kind
    test = load_splits(data_of_run(folder), ["test"])["test"]
    assert model.ledger(test.pixels, test.labels).bits == pytest.approx(bits(folder), rel=1e-4)
    first, last = metrics(folder, "level-1")
    assert last["validation/nats"] < first["validation/nats"]
    for phase in ("level-1", "level-2"):
        row = metrics(folder, phase)[-1]
        assert 0 < row["train/codes_used"] <= 1 and 1 <= row["train/codes_perplexity"] <= KINDS[kind] + 1e-6


def test_bfloat16_trains_networks_and_keeps_the_rest_in_float32(train):
    plain, half = train(recipe()), train(recipe(), "--mixed-precision", "bf16")
    weights = [HierarchicalModel.from_pretrained(folder / "model").state_dict() for folder in (plain, half)]
    assert all(a.dtype == b.dtype for a, b in zip(*(w.values() for w in weights), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(*(w.values() for w in weights), strict=True))  # it did something
    assert bits(half) == pytest.approx(bits(plain), rel=0.05)


def test_the_compiler_changes_nothing(train, tmp_path):
    """Captured, differentiated and guarded as always, but run by torch's own kernels: to write new ones takes a minute.

    In a process of its own, since the shape checks of the tests cannot be compiled.
    """
    fit = {"steps": 2, "batch_size": 16, "evaluate_every": 2}
    level = {"map": [1, 1], "width": 8, "encoder_blocks": 0, "decoder_blocks": 0, "quantizer": {"dim": 4}}
    text = recipe(data={"limit": 16}, levels=[level], train_levels=[fit], train_prior=fit, sample_grid=16)
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    program = (
        "import functools, runpy, sys, torch\n"
        "torch.compile = functools.partial(torch.compile, backend='aot_eager')\n"
        "runpy.run_path(sys.argv.pop(1), run_name='__main__')\n"
        "print('graphs', torch._dynamo.utils.counters['stats']['unique_graphs'])"
    )
    given = [TRAIN, "--config", tmp_path / "recipe.yaml", "--out", tmp_path / "run", "--compile"]
    out = subprocess.run([sys.executable, "-c", program, *given], capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    assert int(out.stdout.split()[-1]) >= 3  # encoder, decoder, transformer
    assert bits(tmp_path / "run") == pytest.approx(bits(train(text)), rel=1e-3)


def test_trackers_hear_what_metrics_say(train):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train(recipe(), "--trackers", "tensorboard")
    events = EventAccumulator(str(folder / folder.name))
    events.Reload()
    for phase in ("level-1", "level-2", "prior"):
        heard = [(event.step, event.value) for event in events.Scalars(f"{phase}/validation/nats")]
        rows = metrics(folder, phase)
        assert heard == [(row["step"], pytest.approx(row["validation/nats"], rel=1e-5)) for row in rows]


def test_labels_of_test_alone_are_ignored(train, tmp_path):
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 17, (40, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "train.npy", pixels)
    np.savez(tmp_path / "test.npz", images=pixels[:8], labels=np.arange(8))
    files = {"train": str(tmp_path / "train.npy"), "test": str(tmp_path / "test.npz")}
    folder = train(recipe(data={"source": "array", "files": files, "values": 17, "validation": 8}))
    rows = json.loads((folder / "ledger.json").read_text())["test"]["rows"]
    assert [row["row"] for row in rows] == ["prior", "level-2", "level-1"]
