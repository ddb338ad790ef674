"""One of several processes that train: arguments are REPORT and those of vqstack train.

Trains and leaves in REPORT-RANK.json what this process saw: the fingerprint of the module in training before
and after every step, of the whole model at the end, and which code maps it encoded. With STOP_AFTER="PHASE STEP" in
the environment the first process is asked to leave after that step.
"""

import json
import os
import signal
import sys
from pathlib import Path

from vqstack.codes import MapCache, fingerprint
from vqstack.commands import train
from vqstack.fit import Fit
from vqstack.phases import Run


def main(arguments: list[str]) -> None:
    report, *arguments = arguments
    seen: dict = {"steps": [], "maps": []}
    begin, step, write, release = Fit.run, Fit.training_step, MapCache.write, Run.release

    def watched_begin(self):
        seen["steps"].append([self.name, self.step, fingerprint(self.module.state_dict())])
        return begin(self)

    def watched_step(self):
        step(self)
        seen["steps"].append([self.name, self.step, fingerprint(self.module.state_dict())])
        if os.environ.get("STOP_AFTER") == f"{self.name} {self.step}" and self.accelerator.is_main_process:
            signal.raise_signal(signal.SIGTERM)

    def watched_write(self, view, start, codes):
        write(self, view, start, codes)
        seen["maps"].append([str(self._maps), view, start, len(codes)])

    def watched_release(self):
        release(self)
        seen["model"] = fingerprint(self.model.state_dict())

    Fit.run, Fit.training_step, MapCache.write, Run.release = (
        watched_begin,
        watched_step,
        watched_write,
        watched_release,
    )
    train.main(arguments)
    Path(f"{report}-{os.environ['RANK']}.json").write_text(json.dumps(seen), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
