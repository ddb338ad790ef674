"""What checkpoints cost: python benchmarks/checkpoints.py [--steps N] [--rounds N].

Trains level 1 of the digits recipe with checkpoints (at every evaluation, as the recipe says) and with none, in turn,
and prints the ratio of their times; evaluations are part of both.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from vqstack.checkpoint import Checkpoints
from vqstack.config import RunConfig, read_yaml
from vqstack.fit import Fit
from vqstack.images import load_splits
from vqstack.model import HierarchicalModel
from vqstack.sources import PixelSource


def seconds(config: RunConfig, splits: dict, folder: Path, steps: int, written: bool) -> float:
    """Of training level 1 for some steps, after a few that do not count."""
    torch.manual_seed(0)
    train = splits["train"]
    model = HierarchicalModel(config.model_settings(tuple(train.pixels.shape[1:]), train.num_classes))
    settings = config.train_levels[0].model_copy(update={"steps": steps})
    source, validation = (PixelSource(splits[name].pixels) for name in ("train", "validation"))
    fit = Fit("level-1", model.stack.level(1), source, validation, settings, Accelerator(cpu=True), folder)
    write = fit.checkpoints.write

    def write_or_not(step: int, state: dict, score: float | None = None) -> None:
        if written or step == steps:  # the last one is where the best weights come from
            write(step, state, score)

    fit.checkpoints.write = write_or_not  # type: ignore[method-assign]
    for _ in range(20):
        fit.training_step()
    start = time.perf_counter()
    fit.run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    config = read_yaml(Path(__file__).parents[1] / "recipes/digits.yaml", RunConfig)
    splits = load_splits(config.data)
    ratios = []
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            with_them = seconds(config, splits, Path(one), arguments.steps, True)
            without = seconds(config, splits, Path(other), arguments.steps, False)
            size = sum(p.stat().st_size for p in Checkpoints(Path(one), 1).folder.rglob("state.pt"))
        ratios.append(with_them / without)
        print(f"with {with_them:.2f} s, without {without:.2f} s: {ratios[-1]:.3f} ({size / 2**20:.1f} MiB kept)")
    print(f"time with checkpoints / without: {statistics.median(ratios):.3f} (median of {arguments.rounds})")


if __name__ == "__main__":
    main()
