"""One of several processes that train, in shards or not: arguments are REPORT and those of vqstack train.

Leaves in REPORT-RANK.json, by the name of each phase, the bytes of weights, moments and averages that this process
holds, and of all that there are. In the environment, of the last process: END="PHASE STEP SIGNAL" sends it this signal
after that step, FAILS="PHASE STEP" lets it read no image in the evaluation of that step.
"""

import json
import os
from pathlib import Path

from vqstack.commands import train
from vqstack.fit import Fit
from vqstack.shards import local


class Unreadable:
    """A source of so many images none of which can be read."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def batch(self, *_):
        raise OSError("no image")


def main(arguments: list[str]) -> None:
    report, *arguments = arguments
    *end, number = os.environ.get("END", "none 0 0").split()
    held: dict[str, list[int]] = {}
    take_step, evaluate = Fit.training_step, Fit.evaluation_step

    def at(fit, place):
        last = fit.accelerator.process_index == fit.accelerator.num_processes - 1
        return last and [fit.name, str(fit.step)] == place

    def watched(self):
        take_step(self)
        moments = [m for s in self.optimizer.state.values() for name, m in s.items() if name != "step"]
        tensors = [*self.module.parameters(), *self.average.module.parameters(), *moments]
        held[self.name] = [sum(local(t).nbytes for t in tensors), sum(t.numel() * t.itemsize for t in tensors)]
        Path(f"{report}-{os.environ['RANK']}.json").write_text(json.dumps(held), "utf-8")
        if at(self, end):
            os.kill(os.getpid(), int(number))

    def failing(self):
        validation = self.validation
        if at(self, os.environ.get("FAILS", "").split()):
            self.validation = Unreadable(len(validation))
        found = evaluate(self)
        self.validation = validation
        return found

    Fit.training_step, Fit.evaluation_step = watched, failing
    train.main(arguments)
