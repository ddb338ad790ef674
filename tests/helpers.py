"""What several tests share: a refusal in one line, the files of a folder, finished phases, a program as a module."""

import importlib
import json
import re
from contextlib import closing, contextmanager
from functools import cache

import pytest
from accelerate import Accelerator

from vqstack.errors import InputError
from vqstack.fit import Fit
from vqstack.model import HierarchicalModel
from vqstack.phases import Run

# Changes to the digits recipe that train in a second.
TINY = {
    "levels": {"width": 8, "encoder_blocks": 1, "decoder_blocks": 1, "decoder": {"width": 8, "blocks": 1}},
    "prior": {"depth": 1, "dim": 8, "heads": 2},
    "refiners": (),
    "train_levels": {"steps": 3, "batch_size": 16, "warmup": 1, "evaluate_every": 3},
    "train_prior": {"steps": 3, "batch_size": 16, "warmup": 1, "evaluate_every": 3},
}


def refused(call, *words):
    """The call is wrong input; the one line of it has these words."""
    with pytest.raises(InputError) as refusal:
        call()
    message = str(refusal.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def files_of(folder):
    """Every file below a folder with its content, every folder with none."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def trained(config, folder):
    """The model that a run of these settings leaves: all phases, then the release."""
    with closing(Run(config, folder, Accelerator(cpu=True))) as run:
        for phase in run.phases.values():
            run.train(phase)
        run.release()
    return HierarchicalModel.from_pretrained(folder / "model")


@contextmanager
def killed(phase, step):
    """Training inside ends before this step of this phase, as it would by a kill."""

    def kill(fit, take=Fit.training_step):
        if (fit.name, fit.step) == (phase, step):
            raise KeyboardInterrupt
        take(fit)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Fit, "training_step", kill)
        yield


def assert_same_run(one, other):
    """To the bit: the model, its ledger, and the metrics of every phase."""
    names = ["model/model.safetensors", "ledger.json", *(str(p.relative_to(one)) for p in one.glob("phases/*/*.jsonl"))]
    assert len(names) > 2
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def phases_done(run):
    """What a run says of every finished phase."""
    return {path.parent.name: json.loads(path.read_text().splitlines()[0]) for path in run.glob("phases/*/DONE")}


@cache
def program(path):
    """The module of the command that a script in recipes/ or tools/ runs."""
    (name,) = re.findall(r'run\("(\w+)"\)', path.read_text("utf-8"))
    return importlib.import_module(f"vqstack.commands.{name}")


def main(path, *arguments):
    """A recipe or a tool in this process."""
    program(path).main([str(argument) for argument in arguments])
