"""Weights in shards: the training of one process, whoever goes on with it, in a part of the memory."""

import copy
import io
import json
import os
import pickle
import shutil
import signal
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from helpers import assert_near, refused, trained
from launching import launched
from safetensors.torch import load_file
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy

from vqstack.checkpoint import Checkpoints
from vqstack.code_model import CodeModelSettings, build_code_model
from vqstack.config import read_recipe
from vqstack.fit import Average, Fit, sharding_of
from vqstack.fit.blocks import blocks, keep_blocks, recompute_blocks
from vqstack.nets import ResidualBlock
from vqstack.phases import Run
from vqstack.shards import METADATA, _Unpickler

# Nothing is drawn process by process, and every batch can be shared by one, two and three processes.
RECIPE = """
data: {source: digits, limit: 47, validation: 5, test: 3}
levels:
  - {map: [4, 4], width: 8, encoder_blocks: 1, decoder_blocks: 1,
     decoder: {family: window, radius: 1, width: 8, features: 4}, quantizer: {codebook_size: 8, dim: 4, revival: 0.9}}
  - {map: [2, 2], width: 8, encoder_blocks: 1, decoder_blocks: 1,
     quantizer: {kind: cosine, codebook_size: 4, dim: 4, revival: 0.9}}
train_levels: [{steps: 6, batch_size: 6, warmup: 2, evaluate_every: 3}]
refiners: [{level: 1, wavefront: 2, window: 1, depth: 1, dim: 8, heads: 2, dropout: 0}]
train_refiners: [{steps: 4, batch_size: 12, accumulate: 2, warmup: 2, evaluate_every: 2}]
prior: {depth: 2, dim: 8, heads: 2, dropout: 0}
train_prior: {steps: 6, batch_size: 12, accumulate: 2, warmup: 2, evaluate_every: 2}
sharded: true
encode_batch: 10
sample_grid: 2
"""
PHASES = ("level-1", "level-2", "refiner-1", "prior")


class Killed(BaseException):
    """As sudden as a signal, but it leaves the process of the tests alone."""


def in_shards(folder, processes, end, *more):
    """The run in several processes that share weights, ended by a signal; what each held, by phase."""
    report = folder.parent / f"held-{processes}"
    given = [report, "--config", folder.parent / "tiny.yaml", "--out", folder, *more]
    out = launched(folder.parent, "shard_report", *given, processes=processes, END=end)
    asked = end.endswith(f" {signal.SIGTERM:d}")  # all of them stop; else the others lose the one that is killed
    assert out.codes == [75 if asked else 69] * (processes - 1) + [75 if asked else -signal.SIGKILL], out.printed
    return [json.loads(Path(f"{report}-{rank}.json").read_text("utf-8")) for rank in range(processes)]


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A run of one process, and the same run by one, two, three and one, each of which ends amid a phase."""
    folder = tmp_path_factory.mktemp("sharded")
    (folder / "tiny.yaml").write_text(RECIPE, "utf-8")
    config = read_recipe(folder / "tiny.yaml")
    trained(config, folder / "alone")
    take_step = Fit.training_step

    def killed(self):
        take_step(self)
        if self.step == 4:
            raise Killed

    with pytest.MonkeyPatch.context() as patch, closing(Run(config, folder / "run", Accelerator(cpu=True))) as run:
        patch.setattr(Fit, "training_step", killed)
        with pytest.raises(Killed):  # it has a checkpoint of step 3, whole
            run.train(run.phases["level-1"])
    held = in_shards(folder / "run", 2, f"refiner-1 3 {signal.SIGKILL:d}")  # of step 2, in two shards
    shutil.copytree(folder / "run" / "phases" / "refiner-1" / "checkpoints", folder / "two")
    more = ["--cpu-offload", "--train-prior.gradient-checkpointing"]
    in_shards(folder / "run", 3, f"prior 3 {signal.SIGTERM:d}", *more)  # of step 3, in three
    shutil.copytree(folder / "run" / "phases" / "prior" / "checkpoints", folder / "three")
    trained(config, folder / "run")
    return folder, held


def test_whatever_the_number_of_processes_the_run_is_that_of_one(chain):
    """Losses, scores and use of the codes of every phase, the ledger, and the artefact: up to rounding."""
    folder, _ = chain
    for phase in PHASES:
        logs = [(folder / name / "phases" / phase / "metrics.jsonl").read_text() for name in ("alone", "run")]
        alone, together = ([json.loads(line) for line in log.splitlines()] for log in logs)
        assert len(alone) == len(together) == {"prior": 3}.get(phase, 2)
        for one, other in zip(alone, together, strict=True):
            assert other == pytest.approx(one, rel=1e-5, abs=1e-6)
            assert not any("failures" in name for name in other)  # pictures were drawn, too
    ledgers = [json.loads((folder / name / "ledger.json").read_text())["test"]["rows"] for name in ("alone", "run")]
    for one, other in zip(*ledgers, strict=True):
        assert other["nats"] == pytest.approx(one["nats"], rel=1e-5)
    one, other = (load_file(folder / name / "model" / "model.safetensors") for name in ("alone", "run"))
    assert_near(one, other)
    pictures = [{path.name for path in (folder / name / "samples").iterdir()} for name in ("alone", "run")]
    assert pictures[0] == pictures[1]


def test_each_of_two_processes_holds_half(chain):
    _, held = chain
    for phase in ("level-1", "level-2", "refiner-1"):
        (one, every), (two, same) = (report[phase] for report in held)
        assert one + two == every == same  # nothing twice, nothing lost
        assert max(one, two) < 0.6 * every  # a tensor of one row is not cut


def test_a_checkpoint_has_a_file_of_each_process(chain):
    folder, _ = chain
    for name, processes in (("two", 2), ("three", 3)):
        newest = Checkpoints(folder / name, 1).newest()
        files = {path.name for path in (newest.folder / "shards").iterdir()}
        assert files == {METADATA, *(f"__{rank}_0.distcp" for rank in range(processes))}
        state = newest.read()
        assert all(value.is_meta for key, value in state["module"].items() if key.endswith("weight"))
        whole = newest.filled(state)
        assert not any(value.is_meta for value in whole["module"].values())


OTHERS = {
    "all levels at once, and a renderer against a discriminator": """
data: {source: digits, limit: 24, validation: 5, test: 3}
sharing: trunk
levels:
  - {map: [4, 4], width: 8, encoder_blocks: 1, decoder_blocks: 1, dropout: 0.1, quantizer: {codebook_size: 8, dim: 4}}
  - {map: [2, 2], width: 8, encoder_blocks: 1, decoder_blocks: 1, dropout: 0.1, quantizer: {codebook_size: 4, dim: 4}}
joint: true
train_joint: {steps: 4, batch_size: 8, accumulate: 2, warmup: 2, evaluate_every: 2}
train_decoders: {steps: 2, batch_size: 8, warmup: 1, evaluate_every: 2}
prior: {depth: 1, dim: 8, heads: 2, family: masked}
train_prior: {steps: 2, batch_size: 8, warmup: 1, evaluate_every: 2}
renderer: {width: 8, least_width: 4, perceptual: none, adversary: {weight: 0.5, start: 1, width: 4, layers: 2, r1: 0.1}}
train_renderer: {steps: 4, batch_size: 8, accumulate: 2, warmup: 1, evaluate_every: 2}
sample_grid: 2
""",
    "encoders with a renderer and with a refiner, and clusters": """
data: {source: digits, limit: 24, validation: 5, test: 3}
levels:
  - {map: [4, 4], width: 8, encoder_blocks: 1, decoder_blocks: 1, quantizer: {codebook_size: 8, dim: 4}}
  - {map: [2, 2], width: 8, encoder_blocks: 1, decoder_blocks: 1, quantizer: {kind: fsq, codebook_size: 8, dim: 4}}
  - {map: [2, 2], width: 8, decoder_blocks: 1, quantizer: {kind: cluster, codebook_size: 4, dim: 4}}
train_levels: [{steps: 4, batch_size: 8, warmup: 2, evaluate_every: 2}]
refiners: [{level: 2, family: masked, groups: 4, depth: 1, dim: 8, heads: 2, joint_encoder: 0.5}]
train_refiners: [{steps: 2, batch_size: 8, warmup: 1, evaluate_every: 2}]
prior: {depth: 1, dim: 8, heads: 2}
train_prior: {steps: 2, batch_size: 8, warmup: 1, evaluate_every: 2}
renderer: {width: 8, least_width: 4, perceptual: none, joint_encoder: 0.5}
train_renderer: {steps: 2, batch_size: 8, warmup: 1, evaluate_every: 2}
sample_grid: 2
""",
}


@pytest.mark.parametrize(("kind", "fails"), list(zip(OTHERS, ("joint 2", "level-1 2"), strict=True)))
def test_whatever_is_trained_two_processes_in_shards_are_two_with_all_weights(kind, fails, tmp_path):
    """Also what is drawn process by process: dropout, masks. An evaluation that one cannot read ends neither."""
    (tmp_path / "tiny.yaml").write_text(OTHERS[kind], "utf-8")
    for name, more in (("whole", []), ("shards", ["--sharded"])):
        given = [tmp_path / name, "--config", tmp_path / "tiny.yaml", "--out", tmp_path / name, *more]
        out = launched(tmp_path, "shard_report", *given, FAILS=fails)
        assert out.codes == [0, 0], out.printed
    held = [json.loads((tmp_path / f"shards-{rank}.json").read_text()) for rank in (0, 1)]
    for phase, (mine, every) in held[0].items():
        theirs = held[1][phase][0]
        assert mine + theirs == every and max(mine, theirs) < 0.75 * every, phase
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "shards"))
    assert_near(one, other)
    logs = [sorted((tmp_path / name).glob("phases/*/metrics.jsonl")) for name in ("whole", "shards")]
    failures = 0
    for paths in zip(*logs, strict=True):
        for whole, shards in zip(*(map(json.loads, path.read_text().splitlines()) for path in paths), strict=True):
            assert shards == pytest.approx(whole, rel=1e-4, abs=1e-5)
            failures += whole.get("train/failures", 0)
    assert failures


@pytest.mark.parametrize("damage", ["changed", "cut", "missing", "metadata", "mark"])
def test_damaged_shards_are_named_and_left_alone(chain, tmp_path, capsys, damage):
    shutil.copytree(chain[0] / "three", tmp_path / "checkpoints")
    newest = Checkpoints(tmp_path / "checkpoints", 1).newest()
    path = newest.folder / "shards" / (METADATA if damage == "metadata" else "__1_0.distcp")
    content = bytearray(path.read_bytes())
    if damage in ("changed", "metadata"):
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[:-1])
    elif damage == "missing":
        path.unlink()
    else:
        (newest.folder / "mark").unlink()
    left = Checkpoints(tmp_path / "checkpoints", 1).intact()
    assert newest.step not in [checkpoint.step for checkpoint in left]
    assert (damage == "mark") == (path.name not in capsys.readouterr().err)


def test_metadata_of_a_stranger_runs_nothing():
    for value in (os.system, eval, Path.unlink):
        with pytest.raises(pickle.UnpicklingError, match="no metadata"):
            _Unpickler(io.BytesIO(pickle.dumps(value))).load()


@pytest.mark.parametrize(
    ("kind", "together", "wanted", "precision", "plugin", "words"),
    [
        ("NO", False, {"cpu_offload": True, "wanted": True}, "no", {}, ["cpu_offload", "launcher"]),
        ("MULTI_GPU", True, {"cpu_offload": True}, "no", {}, ["cpu_offload", "sharded"]),
        ("FSDP", True, {}, "no", {"fsdp_version": 1}, ["fsdp_version"]),
        ("FSDP", True, {}, "no", {"activation_checkpointing": True}, ["gradient_checkpointing"]),
        ("FSDP", True, {}, "fp16", {"cpu_offload": CPUOffloadPolicy()}, ["bf16"]),
        ("MULTI_GPU", True, {"wanted": True}, "fp16", {}, ["bf16"]),
        ("NO", False, {"wanted": True}, "no", {}, None),  # nobody to share with
        ("MULTI_GPU", True, {}, "no", {}, None),
    ],
)
def test_what_cannot_be_sharded_is_refused(monkeypatch, kind, together, wanted, precision, plugin, words):
    plugin = {"fsdp_version": 2, "cpu_offload": None, "activation_checkpointing": False, **plugin}
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(accelerator, "state", SimpleNamespace(fsdp_plugin=SimpleNamespace(**plugin)))
    for name, value in {"distributed_type": DistributedType[kind], "mixed_precision": precision}.items():
        monkeypatch.setattr(Accelerator, name, value)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: together)
    given = {"wanted": False, "cpu_offload": False, **wanted}
    if words is None:
        assert sharding_of(accelerator, **given) is None
    else:
        refused(lambda: sharding_of(accelerator, **given), *words)


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_channels_last_is_refused_in_shards(more, tmp_path):
    given = ["--sharded", "--channels-last", "--out", tmp_path / "run", *more]
    out = launched(tmp_path, "vqstack.commands.train", *given)
    assert out.codes[0] == 2 and out.codes[1] in (2, 69), out.printed  # the other may lose the first
    assert "channels_last is not possible" in out.printed[0] and not (tmp_path / "run").exists()


def networks():
    """A transformer with dropout and a stack of residual blocks, both past their start at zero; inputs of each."""
    torch.manual_seed(0)
    settings = CodeModelSettings(depth=2, dim=16, heads=2, dropout=0.3)
    prior = build_code_model(settings, (4, 4), 8, 0)
    convolutions = nn.Sequential(*(ResidualBlock(8, 0.3) for _ in range(3)))
    with torch.no_grad():
        for parameter in (*prior.parameters(), *convolutions.parameters()):
            parameter.add_(0.1 * torch.randn_like(parameter))
    return [(prior, torch.randint(8, (4, 4, 4))), (convolutions, torch.randn(4, 8, 6, 6))]


def gradients(module, x):
    """Of all parameters, and the bytes that were kept for them."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = module(x)
        loss = out.loss if hasattr(out, "loss") else out.square().mean()
    loss.backward()
    found = [parameter.grad.clone() for parameter in module.parameters()]
    module.zero_grad()
    return found, sum(kept.values())


@pytest.mark.parametrize("which", [0, 1])
def test_gradient_checkpointing_gives_the_same_gradients_for_less_memory(which):
    module, x = networks()[which]
    plain, much = gradients(module, x)
    recompute_blocks(module)
    recompute_blocks(module)  # once is enough
    other = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()  # a copy computes with its own numbers
    again, less = gradients(module, x)
    assert all(map(torch.equal, again, plain))
    assert less < 0.6 * much
    assert not all(map(torch.equal, gradients(other, x)[0], plain))
    keep_blocks(module)
    assert gradients(module, x)[1] == much
    assert len(blocks(module)) == (4, 3)[which]


def test_an_average_is_taken_after_parameters_were_replaced():
    """As shards replace them: after the average was made, before its first step."""
    module = nn.Linear(3, 2)
    average = Average(module, 0.5)
    for part in (module, average.module):
        part.weight = nn.Parameter(part.weight.detach().clone())
    with torch.no_grad():
        before = module.weight.clone()
        module.weight.add_(1)
    average.update()
    torch.testing.assert_close(average.module.weight, before + 1 - 2 / 11)
