"""What one setting of sampling buys, as a curve: groups of masked refiners, or the scale of guidance.

    python benchmarks/trades.py groups RUN --out FOLDER [--values 1 2 4 8 16 0] [--num 500]
    python benchmarks/trades.py guidance RUN --out FOLDER [--values 0 1 1.5 2 3 5] [--num 500]

groups: all masked refiners of RUN in K groups (0: one site a group) with the same weights, which must have been trained
with masks: random: bits of their rows on the test split, Fréchet distance of samples, seconds of one image.
guidance: the scale of every part that was trained with label_dropout: share of samples that a classifier, which knows
nothing of the model, gives the class asked for, and their Fréchet distance. Everything else is as RUN samples by
default. Samples of three seeds are compared with the test split, beside the floor of two halves of real images. Writes
OUT/KIND.json, OUT/KIND.png and a picture of samples at each value.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from refiners import row_bits, seconds_in_turn
from samples import score

from vqstack.ending import run_command
from vqstack.errors import InputError
from vqstack.features import trained_judge
from vqstack.images import default_cache, grid, load_splits
from vqstack.model import HierarchicalModel
from vqstack.model_settings import SamplingSettings
from vqstack.phases import data_of_run
from vqstack.plots import figure
from vqstack.quality import draw_samples, images_a_side

Variant = tuple[HierarchicalModel, SamplingSettings]


def masked_levels(model: HierarchicalModel) -> list[int]:
    """The levels whose refiners can follow any schedule."""
    return [r.level for r in model.settings.refiners if r.family == "masked" and r.masks == "random"]


def with_groups(model: HierarchicalModel, groups: int, prior: int | None = None) -> HierarchicalModel:
    """The same weights, the masked refiners in K groups, and the prior, where it is masked, in as many as given."""
    levels = masked_levels(model)
    if not levels and prior is None:
        raise InputError("groups: the run has no refiner of the masked family trained with masks random: give another")
    refiners = tuple(
        r.model_copy(update={"groups": groups, "wavefront": 0}) if r.level in levels else r
        for r in model.settings.refiners
    )
    own = model.settings.prior if prior is None else model.settings.prior.model_copy(update={"groups": prior})
    settings = model.settings.model_copy(update={"refiners": refiners, "prior": own})
    changed = HierarchicalModel(settings).to(model.device)
    changed.load_state_dict(model.state_dict())
    return changed.eval()


def by_groups(model: HierarchicalModel, groups: float) -> Variant:
    if groups != int(groups):
        raise InputError(f"values: {groups:g} groups do not exist: give whole numbers")
    return with_groups(model, int(groups)), model.settings.sampling


def by_guidance(model: HierarchicalModel, scale: float) -> Variant:
    return model, model.settings.sampling.model_copy(update={"guidance": (scale,)})


KINDS: dict[str, tuple[Callable[[HierarchicalModel, float], Variant], list[float], str]] = {
    "groups": (by_groups, [1, 2, 4, 8, 16, 0], "bits per image, refined rows"),
    "guidance": (by_guidance, [0, 1, 1.5, 2, 3, 5], "class accuracy"),
}


def plot(kind: str, results: list[dict]):
    """The curve of this kind, and the Fréchet distance with its floor."""
    made, panels = figure(2, width=9.0)
    places = [str(row["label"]) for row in results]
    quantity = "bits" if kind == "groups" else "accuracy"
    panels[0].plot(places, [row[quantity] for row in results], marker="o")
    panels[0].set_ylabel(KINDS[kind][2])
    summary = [row["summary"] for row in results]
    distances, errors = ([s["distance"][n] for s in summary] for n in ("mean", "deviation"))
    panels[1].errorbar(places, distances, errors, marker="o", capsize=3, label="samples")
    panels[1].axhline(summary[0]["floor"]["mean"], color="black", linewidth=0.8, label="other half of real")
    panels[1].set_ylabel("Fréchet distance")
    panels[1].legend()
    for axes in panels:
        axes.set_xlabel({"groups": "groups of sites, K", "guidance": "scale of guidance"}[kind])
    return made


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS, help="which setting")
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--out", type=Path, required=True, help="folder that receives the results")
    parser.add_argument("--values", type=float, nargs="+", help="of the setting")
    parser.add_argument("--num", type=int, default=500, help="images a side of each comparison")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the samples")
    parser.add_argument("--images", type=int, default=1000, help="of the test split, for bits")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="keeps the trained classifier")
    options = parser.parse_args(arguments)
    accelerator = Accelerator()
    model = HierarchicalModel.from_pretrained(options.run).to(accelerator.device)
    change, values, _ = KINDS[options.kind]
    variants = {value: change(model, value) for value in options.values or values}
    for changed, sampling in variants.values():
        changed.settings.draws(sampling)  # refuses guidance where nothing can be guided
    splits = load_splits(data_of_run(options.run))
    test, count = splits["test"], images_a_side(options.num, splits["test"])
    judge = trained_judge(splits["train"], splits["validation"], options.cache, accelerator)
    options.out.mkdir(parents=True, exist_ok=True)

    results = []
    for value, (changed, sampling) in variants.items():
        label = "N" if options.kind == "groups" and not value else f"{value:g}"
        row = {"value": value, "label": label, **score(changed, sampling, test, count, options.seeds, judge).to_json()}
        if options.kind == "groups":
            rows = row_bits(changed, test, min(options.images, len(test)), refined=True)
            row["rows"] = {f"level-{n}": rows[f"level-{n}"] for n in masked_levels(model)}
            row["bits"] = sum(row["rows"].values())
            (row["seconds"],) = seconds_in_turn([partial(changed.sample, 1, sampling=sampling)], repeats=3)
        else:
            row["accuracy"] = row["summary"]["accuracy"]["mean"]
        results.append(row)
        pixels, _ = draw_samples(changed, 100, options.seeds[0], sampling)
        shown = grid(pixels, 10, model.stack.values, max(1, 64 // model.stack.shape[1]))
        shown.save(options.out / f"{options.kind}-{label}.png")
        cells = {n: f"{s['mean']:.3f} ± {s['deviation']:.3f}" for n, s in row["summary"].items()}
        print(label, {n: round(row[n], 3) for n in ("bits", "seconds") if n in row}, cells, flush=True)
        (options.out / f"{options.kind}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    plot(options.kind, results).savefig(options.out / f"{options.kind}.png", dpi=150)


if __name__ == "__main__":
    run_command(main)
