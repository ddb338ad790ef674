"""Many levels that each forget a little, or few levels with refiners: bits and samples at equal sampling time.

    python benchmarks/depth.py benchmarks/recipes/mnist_product.yaml --out runs/depth [--depths 2 4 8] [any override]

The first and the last level of the recipe are the first and the last of every stack; those between fall gently, in bits
that a map can hold. Trunks are shared and all levels trained at once, then their decoders, in as many steps for every
depth as benchmarks/sharing.py gives a joint run; then the recipe's prior. The shallowest stack is also given masked
refiners of all levels above the first (the recipe's, where it has some), trained with random masks, and drawn in K = 1,
2, 4, … groups. A run that is there already is not trained again. For each: test bits, Fréchet distance of samples at
temperature 1 with its floor, seconds a sample in batches of 64, of the levels' training and of all of it. Writes
OUT/depth.json and OUT/depth.png, bits and distance over seconds a sample, so that equal times stand above each other.
"""

import json
import math
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from matplotlib.ticker import LogLocator
from pydantic import Field
from refiners import row_bits, seconds_in_turn
from samples import score
from sharing import changed, train, variant
from trades import with_groups

from vqstack.code_model import RefinerSettings
from vqstack.config import RunConfig, parse, read_yaml
from vqstack.ending import run_command
from vqstack.errors import InputError
from vqstack.features import trained_judge
from vqstack.images import default_cache, grid, load_splits
from vqstack.level import LevelSettings
from vqstack.model import HierarchicalModel
from vqstack.model_settings import SamplingSettings
from vqstack.plots import figure
from vqstack.quality import draw_samples, images_a_side

BATCH = 64


class Command(RunConfig):
    """Train stacks of several depths and compare them."""

    out: Path = Field(default=Path("runs/depth"), description="Folder of the runs.")
    depths: tuple[int, ...] = Field(
        default=(2, 4, 8), min_length=1, description="Levels of each stack, count, 2 or more."
    )
    groups: tuple[int, ...] = Field(
        default=(1, 2, 4, 8, 16), description="Groups of the refiners, count; 0: one site each."
    )
    num: int = Field(default=500, ge=5, description="Images a side of each comparison, count.")
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1, description="Seeds of the samples, no unit.")


def capacity(level: LevelSettings) -> float:
    """Bits that the map of a level can hold."""
    return math.prod(level.map) * math.log2(level.quantizer.codebook_size)


def ladder(first: LevelSettings, last: LevelSettings, count: int) -> tuple[LevelSettings, ...]:
    """``count`` levels from ``first`` to ``last`` whose capacities fall by the same factor each.

    Each has the smallest map between the two, sides halved in turn, that holds its bits in codebooks no larger than the
    larger of theirs.
    """
    if count < 2 or capacity(last) >= capacity(first):
        raise InputError("depth: needs 2 levels or more, the last of which holds fewer bits than the first")
    maps, largest = [first.map], max(first.quantizer.codebook_size, last.quantizer.codebook_size)
    while maps[-1] != last.map:
        rows, columns = maps[-1]
        if columns // last.map[1] >= 2 * (rows // last.map[0]) or rows == last.map[0]:
            maps.append((rows, max(columns // 2, last.map[1])))
        else:
            maps.append((max(rows // 2, last.map[0]), columns))
    levels = [first]
    for step in range(1, count - 1):
        bits = capacity(first) * (capacity(last) / capacity(first)) ** (step / (count - 1))
        shape = min((m for m in maps if math.prod(m) * math.log2(largest) >= bits), key=math.prod)
        quantizer = last.quantizer.model_copy(update={"codebook_size": max(2, round(2 ** (bits / math.prod(shape))))})
        levels.append(last.model_copy(update={"map": shape, "quantizer": quantizer}))
    return (*levels, last)


def stack_of(config: RunConfig, depth: int) -> RunConfig:
    """The recipe with this many levels, trunks shared, trained at once, without refiners."""
    levels = ladder(config.levels[0], config.levels[-1], depth)
    alike = changed(config, {"levels": levels, "train_levels": config.train_levels[:1], "refiners": (), "sampling": {}})
    return variant(alike, "trunk", True)


def with_refiners(config: RunConfig, shallow: RunConfig, levels_from: Path) -> RunConfig:
    """The shallow stack, taken frozen, with masked refiners above level 1."""
    given = {refiner.level: refiner for refiner in config.refiners}
    masked = {"family": "masked", "masks": "random", "labels": False}
    refiners = [
        given.get(n, RefinerSettings(level=n)).model_copy(update=masked) for n in range(2, len(shallow.levels) + 1)
    ]
    changes = {"refiners": tuple(refiners), "train_refiners": config.train_refiners[-1:], "joint": False}
    return changed(shallow, {**changes, "levels_from": levels_from})


def seconds_of(folder: Path) -> dict[str, float]:
    """Seconds of a run's training: of its levels, of all of it."""
    return json.loads((folder / "seconds.json").read_text())


def plot(results: list[dict]):
    """Bits of the codes and distance over the seconds of a sample: stacks of decoders alone, and refined."""
    made, panels = figure(2, width=10.0)
    for kind, marker in (("feed-forward", "o"), ("refined", "s")):
        rows = [row for row in results if row["kind"] == kind]
        seconds = [row["seconds_a_sample"] for row in rows]
        heights = [[row["bits"] for row in rows], [row["summary"]["distance"]["mean"] for row in rows]]
        for axes, values in zip(panels, heights, strict=True):
            axes.plot(seconds, values, marker=marker, label=kind)
            for row, x, y in zip(rows, seconds, values, strict=True):
                axes.annotate(row["short"], (x, y), textcoords="offset points", xytext=(-4, 6), fontsize="small")
    panels[1].axhline(results[0]["summary"]["floor"]["mean"], color="black", linewidth=0.8, label="other half of real")
    for axes, title in zip(panels, ("bits per image", "Fréchet distance"), strict=True):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")  # labels of 3 and 4 would touch
        axes.set_xlabel(f"seconds a sample, batches of {BATCH}")
        axes.set_ylabel(title)
        axes.legend()
    return made


def main(arguments: list[str]) -> None:
    path, *given = (
        arguments
        if arguments and not arguments[0].startswith("-")
        else ("benchmarks/recipes/mnist_product.yaml", *arguments)
    )
    command = parse(Command, given, Command(**dict(read_yaml(Path(path), RunConfig))), prog="depth.py")
    config = RunConfig(**{name: getattr(command, name) for name in RunConfig.model_fields})
    stacks = {depth: stack_of(config, depth) for depth in command.depths}
    splits = load_splits(config.data)
    count = images_a_side(command.num, splits["test"])
    few = min(stacks)
    runs = {f"{depth} levels": (stacks[depth], command.out / f"levels-{depth}") for depth in stacks}
    runs["refined"] = (with_refiners(config, stacks[few], command.out / f"levels-{few}"), command.out / "refined")
    for wanted, folder in runs.values():
        train(wanted, folder)
    accelerator = Accelerator()
    models = {n: HierarchicalModel.from_pretrained(f / "model").to(accelerator.device) for n, (_, f) in runs.items()}
    refined = models.pop("refined")
    judge = trained_judge(splits["train"], splits["validation"], default_cache(), accelerator)
    sides = [(name, "feed-forward", name.split()[0], model) for name, model in models.items()]
    sides += [(f"refined, K = {k}", "refined", f"K{k}", with_groups(refined, k)) for k in command.groups]
    times = seconds_in_turn([partial(model.sample, BATCH) for *_, model in sides], repeats=3)

    results = []
    for (name, kind, short, model), seconds in zip(sides, times, strict=True):
        rows = row_bits(model, splits["test"], min(1000, len(splits["test"])), refined=True)
        quality = score(model, SamplingSettings(), splits["test"], count, list(command.seeds), judge)
        spent = seconds_of(runs[name if kind == "feed-forward" else kind][1])
        if kind == "refined":  # its levels were trained by the run that it takes them from
            spent["all"] += seconds_of(command.out / f"levels-{few}")["levels"]
        results.append({"name": name, "kind": kind, "short": short, "bits": sum(rows.values()), "rows": rows,
                        "seconds_a_sample": seconds / BATCH, "training": spent, **quality.to_json()})  # fmt: skip
        pixels, _ = draw_samples(model, 100, command.seeds[0], SamplingSettings())
        grid(pixels, 10, config.data.values, max(1, 64 // pixels.shape[2])).save(command.out / f"{kind}-{short}.png")
        distance, floor = quality.mean("distance"), quality.mean("floor")
        cost = f"{seconds / BATCH:.5f} s a sample, {spent['all']:.0f} s of training"
        print(
            f"{name:16} {sum(rows.values()):9.2f} bits, distance {distance:.3f} (floor {floor:.3f}), {cost}", flush=True
        )
        (command.out / "depth.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    plot(results).savefig(command.out / "depth.png", dpi=150)


if __name__ == "__main__":
    run_command(main)
