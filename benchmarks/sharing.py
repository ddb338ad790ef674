"""Sharing and joint training: parameters, bits and seconds of none and trunk, greedy and joint.

    python benchmarks/sharing.py benchmarks/recipes/mnist_product.yaml --out runs/sharing [any override]

Trains the four variants of a recipe (a variant that is there already is not trained again) and tabulates them. So that
blocks can be shared, all levels get the width of the first and the largest dropout, in every variant. A joint run takes
as many steps as the levels of the greedy one have on average, with the other settings of level 1's: four fifths of them
for all levels at once, one fifth for the decoders on the final codes. Writes OUT/sharing.json.
"""

import json
import statistics
import time
from pathlib import Path

from accelerate import Accelerator
from pydantic import Field

from vqstack.config import RunConfig, parse, read_yaml
from vqstack.ending import run_command
from vqstack.errors import InputError
from vqstack.model import HierarchicalModel
from vqstack.phases import Run
from vqstack.run_folder import check_run_folder


class Command(RunConfig):
    """Train the four variants and tabulate them."""

    out: Path = Field(default=Path("runs/sharing"), description="Folder of the runs.")


def changed(config: RunConfig, changes: dict) -> RunConfig:
    """The recipe with other values of some fields, checked again."""
    return RunConfig.model_validate({**config.model_dump(), **{k: _dumped(v) for k, v in changes.items()}})


def variant(config: RunConfig, sharing: str, joint: bool) -> RunConfig:
    """The recipe with this sharing, trained in this way."""
    width, dropout = config.levels[0].width, max(level.dropout for level in config.levels)
    levels = tuple(level.model_copy(update={"width": width, "dropout": dropout}) for level in config.levels)
    every = config.train_levels * (len(levels) if len(config.train_levels) == 1 else 1)
    first = every[0]
    steps = round(statistics.fmean(fit.steps * fit.batch_size for fit in every) / first.batch_size)
    both = (max(1, steps * 4 // 5), max(1, steps // 5))
    fits = [first.model_copy(update={"steps": n, "evaluate_every": max(1, n // 4)}) for n in both]
    changes = {"levels": levels, "sharing": sharing, "joint": joint, "train_joint": fits[0], "train_decoders": fits[1]}
    return changed(config, changes)


def _dumped(value):
    if isinstance(value, tuple):
        return tuple(_dumped(item) for item in value)
    return value.model_dump() if hasattr(value, "model_dump") else value


def train(config: RunConfig, folder: Path) -> None:
    """The recipe's algorithm, its levels and its prior timed; nothing where the folder holds that already."""
    check_run_folder(folder, config)
    if (folder / "seconds.json").exists():
        return
    if (folder / "phases").exists():
        raise InputError(f"{folder}: a run that was interrupted, whose seconds nobody knows: remove it")
    run = Run(config, folder, Accelerator(mixed_precision=config.mixed_precision))
    seconds = {"levels": 0.0, "all": 0.0}
    for phase in run.phases.values():
        started = time.perf_counter()
        run.train(phase)
        seconds["all"] += time.perf_counter() - started
        if phase.refines is None and phase.name != "prior":
            seconds["levels"] = seconds["all"]
    run.release()
    (folder / "seconds.json").write_text(json.dumps(seconds) + "\n")


def main(arguments: list[str]) -> None:
    path, *given = (
        arguments
        if arguments and not arguments[0].startswith("-")
        else ("benchmarks/recipes/mnist_product.yaml", *arguments)
    )
    command = parse(Command, given, Command(**dict(read_yaml(Path(path), RunConfig))), prog="sharing.py")
    config = RunConfig(**{name: getattr(command, name) for name in RunConfig.model_fields})
    results: dict[str, dict] = {}
    for sharing in ("none", "trunk"):
        for joint in (False, True):
            name = f"{sharing}-{'joint' if joint else 'greedy'}"
            folder = command.out / name
            train(variant(config, sharing, joint), folder)
            stack = HierarchicalModel.from_pretrained(folder / "model").stack
            test = json.loads((folder / "ledger.json").read_text())["test"]
            results[name] = {
                "parameters": sum(parameter.numel() for parameter in stack.parameters()),
                "bits": test["bits"],
                "rows": {row["row"]: row["bits"] for row in test["rows"]},
                "seconds": json.loads((folder / "seconds.json").read_text())["levels"],
            }
            (command.out / "sharing.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    rows = list(next(iter(results.values()))["rows"])
    print(
        "variant        parameters of the levels   "
        + "  ".join(f"{r:>9}" for r in rows)
        + "      total  seconds of the levels"
    )
    for name, found in results.items():
        bits = "  ".join(f"{found['rows'][row]:9.2f}" for row in rows)
        print(f"{name:13}  {found['parameters']:24,}   {bits}  {found['bits']:9.2f}  {found['seconds']:8.1f}")


if __name__ == "__main__":
    run_command(main)
