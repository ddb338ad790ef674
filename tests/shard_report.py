"""One of several processes that train in shards: torchrun … shard_report.py REPORT ARGUMENTS of vqstack train.

Leaves in REPORT-RANK.json, by the name of each phase, the bytes of weights, moments and averages that this process
holds, and of all that there are. END="PHASE STEP SIGNAL" in the environment: the last process sends itself this signal
after that step.
"""

import json
import os
import sys
from pathlib import Path

from vqstack.commands import train
from vqstack.fit import Fit
from vqstack.shards import local


def main(report: str, arguments: list[str]) -> None:
    phase, step, signal = os.environ["END"].split()
    held: dict[str, list[int]] = {}
    take_step = Fit.training_step

    def watched(self):
        take_step(self)
        moments = [m for s in self.optimizer.state.values() for name, m in s.items() if name != "step"]
        tensors = [*self.module.parameters(), *self.average.module.parameters(), *moments]
        held[self.name] = [sum(local(t).nbytes for t in tensors), sum(t.numel() * t.itemsize for t in tensors)]
        Path(f"{report}-{os.environ['RANK']}.json").write_text(json.dumps(held), "utf-8")
        last = self.accelerator.process_index == self.accelerator.num_processes - 1
        if last and (self.name, self.step) == (phase, int(step)):
            os.kill(os.getpid(), int(signal))

    Fit.training_step = watched
    train.main(arguments)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
