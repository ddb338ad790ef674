"""The trade that a hierarchy is for: bits and Fréchet distance over the number of sequential network evaluations.

    python benchmarks/evaluations.py RUN --out FOLDER [--pixels RUN_WITHOUT_CODES] [--seconds 300]

RUN has one level and no labels; its z_1 is common to all and frozen. Flat models over z_1: raster (one site at a time),
wavefront (diagonals of slope 1) and masked (K groups, all K from one training). Hierarchies, a masked prior and a
masked refiner of z_1 whose groups share the budget: ``clusters`` (8 clusters of the codes of z_1 on its own map) and
``thin`` (a map of half the sides, 16 codes). A hierarchy without a refiner is ``windows``: 2×2 codes of 16 for the
whole map, and z_1 given it by a window decoder, for each budget one of its own whose tiles are as large as its steps
allow; ``alone`` are the same windows under one code of 2, which says a bit at most: flat models that are windows. All
have as many parameters above z_1 as the raster model, within what a step of the width allows, and the same processor
seconds of training; a hierarchy's are those of its level, prior and refiner together.

Counted are evaluations above the pixels: groups of the prior and of the refiner, and a pass of each decoder above
level 1, or the steps of its window. The pixels' own decoder is common to all, its steps are given beside. Bits are
the ledger's rows above the pixels; samples are drawn at temperature 1. Seconds are processor seconds of drawing the
codes of an image, without its pixels, one at a time and 64 at a time. Writes OUT/evaluations.json and
OUT/evaluations.png; what is trained and measured already is taken as it is.
"""

import argparse
import json
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from refiners import above_pixels, evaluations, parameters_above, row_bits, seconds_in_turn
from samples import score
from sharing import changed
from trades import with_groups
from unified import for_steps, step_seconds, train

from vqstack.config import RunConfig
from vqstack.ending import run_command
from vqstack.errors import InputError
from vqstack.features import trained_judge
from vqstack.images import default_cache, load_splits
from vqstack.model import HierarchicalModel
from vqstack.model_settings import SamplingSettings
from vqstack.phases import Run
from vqstack.phases.named import config_of_run
from vqstack.plots import figure
from vqstack.terms import descend

MASKED = {"family": "masked", "masks": "random"}
FLAT: dict[str, dict[str, Any]] = {"raster": {}, "wavefront": {"wavefront": 1}, "masked": MASKED}
STEPS = {8: (1, 4), 16: (1, 8), 32: (1, 16), 64: (2, 16)}  # evaluations: slope, tile
ABOVE = {"windows": (2, 16), "alone": (1, 2)}  # side of the map above a window, its codes
WINDOWS = {f"{name}-{budget}": (*ABOVE[name], *STEPS[budget]) for name in ABOVE for budget in STEPS}
SHARE = {"clusters": 0.5, "thin": 0.25}  # of the evaluations, for the prior
PRIOR = 3.0  # seconds of training of a prior of four codes
EVERY = [*FLAT, *SHARE, *WINDOWS]
CODES = SamplingSettings(temperature=(1.0,))


def variant(base: RunConfig, name: str, dim: int) -> RunConfig:
    """The run with transformers of this width over the frozen z_1."""
    prior = base.prior.model_dump() | {"dim": dim, "dropout": 0.0, **FLAT.get(name, MASKED)}
    if name in FLAT:
        return changed(base, {"prior": prior})
    first = base.levels[0]
    below = first.map
    above = {"map": below, "width": 32, "encoder_blocks": 1, "decoder_blocks": 1}
    codes = 8 if name == "clusters" else 16
    if name in WINDOWS:
        side, codes, slope, tile = WINDOWS[name]
        window = {"family": "window", "radius": 3, "slope": slope, "width": dim, "blocks": 2}
        window["tile"] = tuple(min(tile, sites) for sites in below)
        above |= {
            "map": (side,) * len(below),
            "width": 16,
            "networks": {"kind": "staged"},
            "decoder_blocks": 0,
            "decoder": window,
        }
        prior |= {"family": "autoregressive", "groups": 1, "depth": 1, "dim": 8 * base.prior.heads}
    size: dict[str, Any] = {"codebook_size": codes}
    if name == "clusters":
        size["kind"] = "cluster"
    if name == "thin":
        above["map"] = (below[0] // 2, below[1] // 2)
    levels = [first.model_dump(), above | {"quantizer": {"dim": first.quantizer.dim, **size}}]
    fit = {"steps": 300, "batch_size": 32, "learning_rate": 2e-3, "evaluate_every": 300, "warmup": 50}
    fits = [base.train_levels[0].model_dump(), fit]
    refiners = [] if name in WINDOWS else [{**prior, "level": 2}]
    changes = {"levels": levels, "train_levels": fits, "prior": prior, "refiners": refiners}
    return RunConfig.model_validate({**base.model_dump(), **changes})


def as_large(base: RunConfig, name: str, shape: tuple[int, ...], wanted: int) -> RunConfig:
    """The variant whose parameters above z_1 come nearest to those wanted."""
    heads = base.prior.heads
    tried = [variant(base, name, dim) for dim in range(4 * heads, 2 * base.prior.dim, heads)]
    return min(tried, key=lambda c: abs(parameters_above(HierarchicalModel(c.model_settings(shape, 0))) - wanted))


def trained(config: RunConfig, folder: Path, codes: Path, seconds: float) -> tuple[HierarchicalModel, dict]:
    """The model of a variant after so many processor seconds of training, and what the training was."""
    if (folder / "training.json").exists():
        model: HierarchicalModel = HierarchicalModel.from_pretrained(folder / "model")
        return model, json.loads((folder / "training.json").read_text(encoding="utf-8"))

    def spent(config: RunConfig, folder: Path, steps: int | None) -> tuple[HierarchicalModel, Run, float]:
        Run(for_steps(config, steps), folder, Accelerator(mixed_precision=config.mixed_precision)).close()
        shutil.copytree(codes, folder / "codes", dirs_exist_ok=True)  # encoded once for all
        started = time.process_time()
        model, run, _ = train(config, folder, steps)
        return model, run, time.process_time() - started

    levels = folder.with_name(f"{folder.name}-levels")
    windows = config.levels[-1].decoder.family == "window" and len(config.levels) > 1
    if windows:  # nearly all of it is the level
        few, more = (
            spent(level_for(config, steps), folder.with_name(f"{folder.name}-{steps}"), None)[2] for steps in (20, 80)
        )
        step = (more - few) / 60
        config = level_for(config, max(20, round((seconds - PRIOR - few) / step) + 20))
    _, run, used = spent(config, levels, None)
    if len(config.levels) == 1:
        used = 0.0
    each = step_seconds(run, config.train_prior, time.process_time)
    steps = max(20, round((PRIOR if windows else seconds - used) / sum(each)))
    model, _, more = spent(changed(config, {"levels_from": levels}), folder, steps)
    about = {"steps": steps, "level_seconds": used, "seconds": used + more, "dim": config.prior.dim}
    (folder / "training.json").write_text(json.dumps(about) + "\n", encoding="utf-8")
    return model, about


def level_for(config: RunConfig, steps: int) -> RunConfig:
    """The settings with this many steps of level 2."""
    first, second = config.train_levels
    fit = second.model_copy(update={"steps": steps, "evaluate_every": steps, "warmup": min(50, steps // 4)})
    return changed(config, {"train_levels": (first, fit)})


def points(model: HierarchicalModel, name: str, budgets: list[int]) -> list[HierarchicalModel]:
    """The model at each number of evaluations that it can have; masked parts keep their weights."""
    if name in ("raster", "wavefront", *WINDOWS):
        return [model]
    if name in FLAT:
        return [with_groups(model, 0, budget) for budget in budgets]
    found = []
    for budget in budgets:
        prior = min(max(1, round(SHARE[name] * budget)), model.prior.sites)
        found.append(with_groups(model, max(1, budget - 1 - prior), prior))
    return found


def above(model: HierarchicalModel) -> int:
    """Sequential evaluations above the pixels."""
    windows = [
        level.decoder.window for level in list(model.stack.levels)[1:] if level.settings.decoder.family == "window"
    ]
    return evaluations(model) - 1 + sum(len(window.schedule) - 1 for window in windows)


def code_seconds(model: HierarchicalModel, batch: int) -> float:
    """Processor seconds of drawing the codes of an image, ``batch`` images at a time."""
    terms, draws = model.terms()[:-1], model.settings.draws(CODES)[:-1]
    draw = partial(descend, terms, {}, draws, 0, range(batch), {})
    (seconds,) = seconds_in_turn([torch.no_grad()(draw)], repeats=3, clock=time.process_time)
    return seconds / batch


def plot(results: list[dict], pixels: dict | None):
    made, panels = figure(2, width=10.5)
    for panel, key, label in zip(
        panels, ("bits", "distance"), ("bits above the pixels", "Fréchet distance"), strict=True
    ):
        for name in dict.fromkeys(row["name"].partition("-")[0] for row in results):
            rows = [row for row in results if row["name"].partition("-")[0] == name]
            flat = name in (*FLAT, "alone")
            style = {"linestyle": "--" if flat else "-", "marker": "s" if flat else "o"}
            panel.plot([row["evaluations"] for row in rows], [row[key] for row in rows], label=name, **style)
        panel.set_xscale("log", base=2)
        panel.set_xlabel("sequential evaluations above the pixels")
        panel.set_ylabel(label)
    panels[1].axhline(results[0]["floor"], color="black", linewidth=0.8, label="other half of real")
    if pixels:
        panels[1].axhline(pixels["distance"], color="gray", linewidth=0.8, linestyle=":", label="pixels without codes")
    made.legend(*panels[1].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    return made


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run with one level, prior.labels false")
    parser.add_argument("--out", type=Path, required=True, help="folder that receives runs and results")
    parser.add_argument("--pixels", type=Path, help="a run that stands for a pixel model without codes")
    parser.add_argument("--seconds", type=float, default=300, help="processor seconds of each training")
    parser.add_argument("--dim", type=int, default=128, help="width of the raster model, whose size all have")
    parser.add_argument("--budgets", type=int, nargs="+", default=[8, 16, 32, 64, 128, 256], help="evaluations")
    parser.add_argument("--images", type=int, default=1000, help="of the test split, for bits")
    parser.add_argument("--num", type=int, default=500, help="images a side of each comparison of samples; 0: none")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the samples")
    parser.add_argument("--variants", nargs="+", default=EVERY, choices=EVERY, help="which models")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="keeps the trained classifier")
    options = parser.parse_args(arguments)
    base = config_of_run(options.run)
    if base is None or len(base.levels) > 1 or base.prior.labels:
        raise InputError("run: give the folder of a run with one level and a prior without labels")
    prior = base.prior.model_copy(update={"dim": options.dim})
    base = changed(base, {"levels_from": options.run, "prior": prior})
    _, first, _ = train(base, options.out / "codes", 1)
    splits = load_splits(base.data)
    test, shape = splits["test"], tuple(splits["train"].pixels.shape[1:])
    wanted = parameters_above(HierarchicalModel(variant(base, "raster", base.prior.dim).model_settings(shape, 0)))
    models = {}
    for name in options.variants:
        config = as_large(base, name, shape, wanted)
        models[name] = trained(config, options.out / name, first.folder / "codes", options.seconds)
        print(name, f"{parameters_above(models[name][0]):,} parameters above z_1", models[name][1], flush=True)

    judge = (
        trained_judge(splits["train"], splits["validation"], options.cache, first.accelerator) if options.num else None
    )
    results: list[dict] = []
    pixels, seeds = None, "" if len(options.seeds) == 1 else f"-{len(options.seeds)}-seeds"

    def measured(model: HierarchicalModel, kept: Path) -> dict:
        if kept.exists():
            return json.loads(kept.read_text(encoding="utf-8"))
        rows = row_bits(model, test, min(options.images, len(test)), refined=True)
        found = {"rows": rows, "bits": above_pixels(rows)}
        if judge is not None:
            quality = score(model, CODES, test, options.num, options.seeds, judge)
            found |= {
                "distance": quality.mean("distance"),
                "distances": [c.distance for c in quality.comparisons],
                "floor": quality.mean("floor"),
            }
        found["seconds"] = {batch: code_seconds(model, batch) for batch in (1, 64)}
        kept.write_text(json.dumps(found) + "\n", encoding="utf-8")
        return found

    if options.pixels and judge is not None:
        pixels = measured(HierarchicalModel.from_pretrained(options.pixels), options.out / "pixels.json")
        print("pixels without codes", pixels, flush=True)
    for name, (model, training) in models.items():
        for at in points(model, name, options.budgets):
            row = {"name": name, "evaluations": above(at), "parameters": parameters_above(at), **training}
            results.append(row | measured(at, options.out / name / f"measured-{above(at)}{seeds}.json"))
            print(
                {k: v for k, v in results[-1].items() if k in ("name", "evaluations", "bits", "distance", "seconds")},
                flush=True,
            )
            kept = {"z_1": str(options.run), "pixel_steps": len(model.stack.level(1).decoder.window.schedule)}
            kept |= {"pixels": pixels, "points": results}
            (options.out / "evaluations.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    if judge is not None:
        plot(results, pixels).savefig(options.out / "evaluations.png", dpi=110)


if __name__ == "__main__":
    run_command(main)
