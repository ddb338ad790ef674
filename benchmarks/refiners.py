"""What refiners close of the gap between feed-forward decoders and a flat prior, and at which cost.

    python benchmarks/refiners.py REFINED FLAT [--images 2000] [--out refiners.json]

REFINED is a run with refiners (benchmarks/recipes/cifar10_refined.yaml), FLAT one with a prior directly over the same
frozen z_1 (benchmarks/recipes/cifar10_flat.yaml). Printed for the first images of the test split: bits of all rows
above the pixels (feed-forward, refined, flat) and the share of the gap that is closed, where there is one; sequential
network evaluations of one image, and the seconds it takes at batch 1, refined and flat in turn; parameters of what lies
above z_1.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vqstack.ending import run_command
from vqstack.errors import InputError
from vqstack.images import ImageSplit, load_splits
from vqstack.ledger import BITS
from vqstack.model import HierarchicalModel
from vqstack.phases import data_of_run
from vqstack.settings import differences


def same_data(runs: dict[str, Path]) -> None:
    """Figures compare only on the same images."""
    first, *others = runs
    for name in others:
        for field, *_ in differences(data_of_run(runs[first]).model_dump(), data_of_run(runs[name]).model_dump()):
            raise InputError(f"{name}: data.{field} differs from that of {first}: give runs on the same images")


@torch.no_grad()
def same_codes(model: HierarchicalModel, flat: HierarchicalModel, split: ImageSplit) -> None:
    """Bits above the pixels compare only over the same z_1."""
    pixels = split.pixels[:100]
    ours, theirs = (m.encode(pixels.to(m.device))[0].cpu() for m in (model, flat))
    if not torch.equal(ours, theirs):
        raise InputError("the two runs have other codes at level 1: train both with levels_from the same run")


@torch.no_grad()
def row_bits(model: HierarchicalModel, split: ImageSplit, count: int, *, refined: bool) -> dict[str, float]:
    """Mean bits per image of each row."""
    sums: dict[str, Tensor] = {}
    for start in range(0, count, 100):
        chosen = slice(start, min(start + 100, count))
        pixels = split.pixels[chosen].to(model.device)
        labels = None if split.labels is None else model.labels_read(split.labels[chosen])
        rows = model.code_lengths(pixels, model.encode(pixels), labels, refined=refined)
        sums = {name: sums.get(name, torch.zeros(())) + nats.double().sum().cpu() for name, nats in rows.items()}
    return {name: total.item() / count * BITS for name, total in sums.items()}


def above_pixels(rows: dict[str, float]) -> float:
    """Bits of the codes: all rows but the label and the pixels."""
    return sum(bits for name, bits in rows.items() if name not in ("label", "level-1"))


def evaluations(model: HierarchicalModel) -> int:
    """Network passes of one image that must follow one another.

    A decoder makes its pass also where a refiner corrects what it says.
    """
    return sum(len(part.schedule) for part in model.parts) + len(model.stack)


def parameters_above(model: HierarchicalModel) -> int:
    """Parameters of the levels above 1, of their refiners and of the prior; what they share is counted once."""
    above = [*model.stack.levels[1:], model.prior, *(model.refiner(n) for n in range(2, len(model.stack) + 1))]
    return sum(p.numel() for p in {p for part in above if part is not None for p in part.parameters()})


def seconds_in_turn(
    sides: Sequence[Callable[[], object]], repeats: int = 5, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Median seconds of each side, run A B A B … after a warm-up of all."""
    for side in sides:
        side()
    times: list[list[float]] = [[] for _ in sides]
    for _ in range(repeats):
        for mine, side in zip(times, sides, strict=True):
            start = clock()
            side()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            mine.append(clock() - start)
    return [statistics.median(mine) for mine in times]


def main(arguments: list[str]) -> None:
    torch.manual_seed(0)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("refined", type=Path, help="folder of the run with refiners")
    parser.add_argument("flat", type=Path, help="folder of the flat baseline")
    parser.add_argument("--images", type=int, default=2000, help="of the test split")
    parser.add_argument("--out", type=Path, help="receives the numbers as JSON")
    options = parser.parse_args(arguments)
    same_data({"REFINED": options.refined, "FLAT": options.flat})
    model, flat = (HierarchicalModel.from_pretrained(p) for p in (options.refined, options.flat))
    split = load_splits(data_of_run(options.refined), ["test"])["test"]
    count = min(options.images, len(split))
    same_codes(model, flat, split)

    rows = {
        "feed-forward": row_bits(model, split, count, refined=False),
        "refined": row_bits(model, split, count, refined=True),
        "flat": row_bits(flat, split, count, refined=True),
    }
    bits = {name: above_pixels(of) for name, of in rows.items()}
    gap = bits["feed-forward"] - bits["flat"]
    closed = (bits["feed-forward"] - bits["refined"]) / gap if gap > 0 else None
    print(f"bits above the pixels, {count} test images")
    for name, of in rows.items():
        parts = " + ".join(f"{row} {value:.1f}" for row, value in of.items() if row not in ("label", "level-1"))
        print(f"  {name:13} {bits[name]:8.1f}  ({parts})")
    share = "the flat prior leaves no gap to close" if closed is None else f"gap closed {closed:.3f}"
    print(f"  {share}, refined / flat {bits['refined'] / bits['flat']:.4f}")

    print(f"parameters above z_1: refined {parameters_above(model):,}, flat {parameters_above(flat):,}")
    ours, theirs = seconds_in_turn([lambda: model.sample(1), lambda: flat.sample(1)])
    print(f"sequential evaluations: refined {evaluations(model)}, flat {evaluations(flat)}")
    print(f"seconds of one image: refined {ours:.3f}, flat {theirs:.3f}, ratio {ours / theirs:.3f}")

    if options.out:
        result = {"images": count, "rows": rows, "gap_closed": closed, "seconds": [ours, theirs]}
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
