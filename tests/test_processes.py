"""Two processes: the same weights in both, every image encoded once, the results of one process, and no waiting for
ever where the images do not divide."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType
from helpers import assert_near, files_of, main
from launching import Launch, launched
from safetensors.torch import load_file

from vqstack.codes import CodeDataset
from vqstack.config import RunConfig
from vqstack.disk import sealed, unsealed
from vqstack.errors import InputError, LostError
from vqstack.evaluation import evaluate_split
from vqstack.images import load_splits
from vqstack.model import HierarchicalModel
from vqstack.phases import Run, data_of_run
from vqstack.run_folder import IMAGES

ROOT = Path(__file__).parents[1]
# 47 images in batches of 6 over two processes, one image to validate on: the second process has none of them.
RECIPE = """
data: {source: digits, limit: 47, validation: 1, test: 3}
augment: {shift: 1, views: 2}
levels:
  - {map: [4, 4], width: 8, encoder_blocks: 1, decoder_blocks: 1, dropout: 0.1,
     decoder: {family: window, radius: 1, width: 8, features: 4}, quantizer: {codebook_size: 8, dim: 4, revival: 0.9}}
  - {map: [2, 2], width: 8, encoder_blocks: 1, decoder_blocks: 1, quantizer: {kind: cosine, codebook_size: 4, dim: 4}}
train_levels: [{steps: 9, batch_size: 6, warmup: 2, evaluate_every: 3}]
prior: {depth: 1, dim: 8, heads: 2}
train_prior: {steps: 4, batch_size: 12, accumulate: 2, warmup: 2, evaluate_every: 2}
renderer: {width: 8, perceptual: none, adversary: {weight: 0.5, start: 2, width: 4, layers: 2}}
train_renderer: {steps: 6, batch_size: 12, accumulate: 2, warmup: 2, evaluate_every: 3}
encode_batch: 10
sample_grid: 2
"""
COUNTS = {"train": 47, "validation": 1, "test": 3}


def together(folder, *command, processes=2, stop_after="") -> None:
    """A command that must end well; with ``stop_after`` it must leave by a signal."""
    out = launched(folder, *command, processes=processes, STOP_AFTER=stop_after)
    assert out.codes == [75 if stop_after else 0] * processes, out.printed
    if stop_after:
        phase, step = stop_after.split()
        assert f"stopped after step {step} of {phase};" in out.printed[0], out.printed


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run of two processes, started by torchrun, and what each of them reports."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    arguments = ["--config", folder / "tiny.yaml", "--out", folder / "run"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    out = subprocess.run(
        list(map(str, [*launcher, ROOT / "tests" / "rank_report.py", folder / "rank", *arguments])),
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=240,  # far beyond what it takes: only where one process waits for the other for ever
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)},
    )
    assert out.returncode == 0, out.stderr[-4000:]
    reports = [json.loads((folder / f"rank-{rank}.json").read_text("utf-8")) for rank in (0, 1)]
    return folder / "run", reports


@pytest.fixture(scope="session")
def model(trained):
    return HierarchicalModel.from_pretrained(trained[0] / "model")


def test_codebooks_and_weights_are_equal_before_and_after_every_step(trained):
    _, (one, two) = trained
    phases = {"level-1": 9, "level-2": 9, "prior": 4, "renderer": 6}
    assert [step[:2] for step in one["steps"]] == [
        [name, n] for name, steps in phases.items() for n in range(steps + 1)
    ]
    assert one["steps"] == two["steps"]
    assert len({print_ for *_, print_ in one["steps"]}) == len(one["steps"])  # every step moves something
    assert one["model"] == two["model"]


def test_every_view_of_every_image_is_encoded_once(trained):
    folder, reports = trained
    found = Counter()
    for report in reports:
        for path, view, start, count in report["maps"]:
            found.update((path, view, image) for image in range(start, start + count))
    views = {"train": 2, "validation": 1}
    wanted = {
        (str(folder / "codes" / f"level-{level}" / f"{split}.npy"), view, image)
        for level in (1, 2)
        for split in views
        for view in range(views[split])
        for image in range(COUNTS[split])
    }
    assert found == Counter(wanted)
    assert all(report["maps"] for report in reports)  # and both do some of it


def test_stored_maps_are_those_of_the_model(trained, model):
    folder, _ = trained
    pixels = load_splits(data_of_run(folder))["validation"].pixels
    for level, codes in enumerate(model.encode(pixels), start=1):
        stored = np.load(folder / "codes" / f"level-{level}" / "validation.npy")
        assert np.array_equal(stored[0], codes.numpy())


def test_the_ledger_is_that_of_one_process(trained, model):
    folder, _ = trained
    splits = load_splits(data_of_run(folder))
    for name, ledger in json.loads((folder / "ledger.json").read_text()).items():
        alone = evaluate_split(model, splits[name], Accelerator(cpu=True), 256).to_json()
        assert alone["images"] == ledger["images"] == COUNTS[name]
        for row, expected in zip(ledger["rows"], alone["rows"], strict=True):
            assert row["row"] == expected["row"]
            assert row["nats"] == pytest.approx(expected["nats"], rel=1e-5)
        for level, use in ledger["usage"].items():
            assert use == pytest.approx(alone["usage"][level])


CLUSTERS = "  - {map: [4, 4], width: 8, decoder_blocks: 1, quantizer: {kind: cluster, codebook_size: 4, dim: 4}}\n"


@pytest.fixture(scope="session", params=["encoded", "clusters"])
def without_dropout(tmp_path_factory, request):
    """A command that draws nothing process by process, and the run that one process has made of it."""
    folder = tmp_path_factory.mktemp("one")
    recipe = RECIPE.replace("dropout: 0.1", "dropout: 0").replace("heads: 2}", "heads: 2, dropout: 0}")
    recipe = recipe.replace("{kind: cosine,", "{kind: cosine, revival: 0.9,")
    recipe = recipe.replace("blocks: 1, quantizer", "blocks: 1, dropout: 0, quantizer")
    if request.param == "clusters":
        second = recipe.index("  - {map: [2, 2]")
        recipe = recipe[:second] + CLUSTERS + recipe[recipe.index("train_levels") :]
    (folder / "same.yaml").write_text(recipe, "utf-8")
    given = [folder, "rank_report", folder / "rank", "--config", folder / "same.yaml", "--out"]
    together(*given, folder / "run", processes=1)
    return given, folder / "run"


def assert_same_training(one, other, phases=("level-1", "level-2", "prior", "renderer")):
    """Up to rounding: weights, ledger, and what the metrics say, usage of the codes included."""
    weights, others = (load_file(folder / "model" / "model.safetensors") for folder in (one, other))
    assert_near(weights, others)
    rows = [json.loads((folder / "ledger.json").read_text())["test"]["rows"] for folder in (one, other)]
    for alone, shared in zip(*rows, strict=True):
        assert shared["nats"] == pytest.approx(alone["nats"], rel=1e-5)
    for phase in phases:
        logs = [(folder / "phases" / phase / "metrics.jsonl").read_text().splitlines() for folder in (one, other)]
        for alone, shared in zip(*(map(json.loads, lines) for lines in logs), strict=True):
            assert shared == pytest.approx(alone, rel=1e-4, abs=1e-5)


def test_training_is_that_of_one_process_whatever_the_number_amid_an_epoch(without_dropout, tmp_path):
    """Where nothing is drawn process by process, as dropout is, several processes differ from one by rounding alone.

    An epoch has 47 images, eight steps of a level; the number grows and shrinks inside of epochs.
    """
    given, one = without_dropout
    for processes, stop_after in ((1, "level-1 4"), (3, "prior 1"), (2, "renderer 3"), (3, "")):
        together(*given, tmp_path / "run", processes=processes, stop_after=stop_after)
    assert_same_training(one, tmp_path / "run")


PADDED = """
data: {source: parquet, files: {train: SERIES}, size: [16], values: 300, padding: true, validation: 0.3, test: 0.3}
augment: {shift: 3, flip: true, flip_axes: [time]}
levels:
  - {map: [4], width: 8, encoder_blocks: 1, decoder_blocks: 1, dropout: 0, decoder: {family: product},
     quantizer: {codebook_size: 4, dim: 4}}
train_levels: [{steps: 4, batch_size: 6, warmup: 1, evaluate_every: 2}]
prior: {depth: 1, dim: 8, heads: 2, dropout: 0}
train_prior: {steps: 2, batch_size: 6, warmup: 1, evaluate_every: 2}
refiners: [{level: 1, family: autoregressive, groups: 2, depth: 1, dim: 8, heads: 2, dropout: 0}]
train_refiners: [{steps: 3, batch_size: 6, warmup: 1, evaluate_every: 3}]
sample_grid: 2
"""


def test_two_processes_score_and_train_on_padding_as_one_does(tmp_path):
    """Each has pieces of other lengths: sums over what is there are those of one process, dims of the ledger, too."""
    generator = np.random.default_rng(0)
    rows = [generator.integers(0, 300, 3 + 5 * number).tolist() for number in range(14)]
    pq.write_table(pa.table({"values": rows}), tmp_path / "rows.parquet")
    (tmp_path / "padded.yaml").write_text(PADDED.replace("SERIES", str(tmp_path / "rows.parquet")), "utf-8")
    for processes in (1, 2):
        given = "--config", tmp_path / "padded.yaml", "--out", tmp_path / str(processes)
        together(tmp_path, "vqstack.commands.train", *given, processes=processes)
    assert_same_training(tmp_path / "1", tmp_path / "2", ("level-1", "refiner-1", "prior"))
    one, two = (json.loads((tmp_path / name / "ledger.json").read_text()) for name in "12")
    for split, told in one.items():
        dims = {row["row"]: row["dims"] for row in told["rows"]}
        assert dims == {row["row"]: row["dims"] for row in two[split]["rows"]} and 1 < dims["level-1"] < 16


def test_two_processes_refuse_other_images(trained, tmp_path):
    """Both of them, so that none waits for the other."""
    shutil.copytree(trained[0], tmp_path / "run")
    images = json.loads(unsealed((tmp_path / "run" / IMAGES).read_text("utf-8")))
    images["train"]["count"] += 1
    (tmp_path / "run" / IMAGES).write_text(sealed(images), "utf-8")
    before = files_of(tmp_path / "run")
    recipe = trained[0].parent / "tiny.yaml"
    out = launched(tmp_path, "vqstack.commands.train", "--config", recipe, "--out", tmp_path / "run")
    assert out.codes == [2, 2]
    for printed in out.printed:
        assert "images.train.count: 48 → 47" in next(line for line in printed.splitlines() if "error: " in line)
    assert files_of(tmp_path / "run") == before


def test_two_processes_write_the_bytes_of_one(trained, tmp_path):
    folder, _ = trained
    given = [folder, "--shard-size", 9, "--batch-size", 4]
    together(tmp_path, "vqstack.commands.encode", *given, "--out", tmp_path / "two")
    main(ROOT / "tools" / "encode_dataset.py", *given, "--out", tmp_path / "one", "--cpu")
    one = files_of(tmp_path / "one")
    assert one == files_of(tmp_path / "two")
    assert len(one) == 1 + 6 + 1 + 1 + 3  # a folder with shards of 47, 1 and 3 images; manifest, card, checksums
    data = CodeDataset(tmp_path / "two")
    data.verify()
    assert data.splits == COUNTS


def test_a_process_whose_partner_is_killed_ends_in_one_line(tmp_path):
    (tmp_path / "long.yaml").write_text(RECIPE.replace("steps: 9,", "steps: 100000, checkpoint_every: 2,"))
    given = ["--config", tmp_path / "long.yaml", "--out", tmp_path / "run"]
    with Launch(tmp_path, "vqstack.commands.train", *given) as pair:
        while not list(tmp_path.glob("run/phases/level-1/checkpoints/step-*")):
            assert [process.exitcode for process in pair.ranks] == [None, None]
            time.sleep(0.05)
        pair.ranks[1].kill()
        out = pair.ended(120)
    assert out.codes[0] == 69, out.printed
    err = out.printed[0][out.printed[0].rindex("error: ") :]
    (line,) = err.splitlines()
    assert line.startswith("error: the connection to another process of this launch broke (")
    assert "onnection" in line.partition("broke (")[2]  # reset, or closed, by peer


def test_other_errors_of_torch_keep_their_traceback():
    assert LostError.of(RuntimeError("The size of tensor a (2) must match the size of tensor b (3)")) is None
    assert LostError.of(torch.distributed.DistNetworkError("failed to recv, got 0 bytes")) is not None


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_the_configurations(path):
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    assert config.num_processes % config.num_machines == 0
    multiple = config.distributed_type is not DistributedType.NO
    assert multiple == (config.num_processes > 1)
    known = set(vars(launch_command_parser().parse_args(["script"])))
    assert set(config.fsdp_config) <= known
    assert bool(config.fsdp_config) == (config.distributed_type is DistributedType.FSDP)


def test_training_refuses_ways_to_shard_that_it_does_not_know(tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, "distributed_type", property(lambda self: DistributedType.DEEPSPEED))
    with pytest.raises(InputError, match="one_host.yaml"):
        Run(RunConfig(), tmp_path / "run", Accelerator(cpu=True))
    assert not list(tmp_path.iterdir())
