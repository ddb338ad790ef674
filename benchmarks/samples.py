"""Samples of several runs side by side: how near they come to held-out images, and what one of them costs.

    python benchmarks/samples.py feed-forward=runs/cifar10_product refined=runs/cifar10_refined flat=runs/cifar10_flat \
        --out runs/samples [--num 500] [--codes 0.7 0.8 0.9 1.0] [--pixels 0.5 0.7 1.0] [--batches 1 8 64 256]

All runs are trained on the same images. For each, two temperatures are tuned in the same way, by the Fréchet distance
of samples of one seed to the validation split: one for the prior and all code maps, one for the pixels. With these,
three other seeds are compared with the test split, beside the floor of two halves of real images; then all are timed in
turn at batch 1, and each at its best batch. Writes OUT/samples.json and a picture of each run's samples.
"""

import argparse
import json
from functools import partial
from itertools import product
from pathlib import Path

from accelerate import Accelerator
from refiners import evaluations, same_data, seconds_in_turn

from vqstack.ending import run_command
from vqstack.errors import InputError
from vqstack.features import ImageJudge, trained_judge
from vqstack.images import ImageSplit, default_cache, grid, load_splits
from vqstack.model import HierarchicalModel
from vqstack.model_settings import SamplingSettings
from vqstack.phases import data_of_run
from vqstack.quality import Quality, compare, draw_samples, images_a_side

TUNING_SEED = 1000  # its samples choose the temperatures and are not reported


def with_temperatures(model: HierarchicalModel, codes: float, pixels: float) -> SamplingSettings:
    """The model's settings with one temperature for the prior and all code maps and one for the pixels."""
    return model.settings.sampling.model_copy(update={"temperature": (codes,) * len(model.stack) + (pixels,)})


def score(
    model: HierarchicalModel,
    sampling: SamplingSettings,
    split: ImageSplit,
    num: int,
    seeds: list[int],
    judge: ImageJudge,
) -> Quality:
    """Samples of these settings against a split."""
    draw = partial(draw_samples, model, num, sampling=sampling)
    return compare(lambda seed: draw(seed), split, num, seeds, judge.features, judge.classes)


def tuned(
    model: HierarchicalModel, validation: ImageSplit, options: argparse.Namespace, judge: ImageJudge
) -> tuple[SamplingSettings, list[dict]]:
    """The pair of temperatures with the least distance to the validation split, and the distance of every pair."""
    num = images_a_side(None if len(validation) // 2 < options.num else options.num, validation)
    tried = []
    for codes, pixels in product(options.codes, options.pixels):
        sampling = with_temperatures(model, codes, pixels)
        distance = score(model, sampling, validation, num, [TUNING_SEED], judge).mean("distance")
        tried.append({"codes": codes, "pixels": pixels, "distance": distance})
        print(f"  temperature {codes:g} of codes, {pixels:g} of pixels: distance {distance:.3f}", flush=True)
    best = min(tried, key=lambda row: row["distance"])
    for name in ("codes", "pixels"):
        values = getattr(options, name)
        if len(values) > 1 and best[name] in (min(values), max(values)):
            print(f"  the best temperature of {name}, {best[name]:g}, is at the end of those that were tried")
    return with_temperatures(model, best["codes"], best["pixels"]), tried


def best_batch(model: HierarchicalModel, sampling: SamplingSettings, batches: list[int]) -> tuple[int, float]:
    """The batch size at which most images are drawn a second, and how many."""
    rates = {}
    for batch in batches:
        (seconds,) = seconds_in_turn([partial(model.sample, batch, sampling=sampling)], repeats=3)
        rates[batch] = batch / seconds
    batch = max(rates, key=lambda size: rates[size])
    return batch, rates[batch]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="NAME=FOLDER of each run")
    parser.add_argument("--out", type=Path, required=True, help="folder that receives the results")
    parser.add_argument("--num", type=int, default=500, help="images a side of each comparison")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the samples that are reported")
    parser.add_argument("--codes", type=float, nargs="+", default=[0.7, 0.8, 0.9, 1.0], help="temperatures of codes")
    parser.add_argument("--pixels", type=float, nargs="+", default=[0.5, 0.7, 1.0], help="temperatures of pixels")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64, 256], help="batch sizes that are timed")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="keeps the trained classifier")
    options = parser.parse_args(arguments)
    runs = {name: Path(folder) for name, _, folder in (run.partition("=") for run in options.runs)}
    if not all(name and str(folder) != "." for name, folder in runs.items()):
        raise InputError("runs: give each as NAME=FOLDER")
    same_data(runs)
    accelerator = Accelerator()
    models = {n: HierarchicalModel.from_pretrained(p).to(accelerator.device) for n, p in runs.items()}
    splits = load_splits(data_of_run(next(iter(runs.values()))))
    images_a_side(options.num, splits["test"])
    judge = trained_judge(splits["train"], splits["validation"], options.cache, accelerator)
    options.out.mkdir(parents=True, exist_ok=True)

    results: dict[str, dict] = {}
    settings = {}
    for name, model in models.items():
        print(name, flush=True)
        settings[name], tried = tuned(model, splits["validation"], options, judge)
        quality = score(model, settings[name], splits["test"], options.num, options.seeds, judge)
        pixels, _ = draw_samples(model, 100, options.seeds[0], settings[name])
        shown = grid(pixels, 10, model.stack.values, max(1, 64 // model.stack.shape[1]))
        shown.save(options.out / f"{name}.png")
        results[name] = {"temperature": settings[name].temperature, "tuning": tried, **quality.to_json()}
        results[name]["evaluations"] = evaluations(model)
        (options.out / "samples.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    sides = [partial(model.sample, 1, sampling=settings[name]) for name, model in models.items()]
    for name, seconds in zip(models, seconds_in_turn(sides), strict=True):
        results[name]["seconds_at_batch_1"] = seconds
        batch, rate = best_batch(models[name], settings[name], options.batches)
        results[name] |= {"best_batch": batch, "images_a_second": rate}

    names = ["distance", "floor", "precision", "recall", "accuracy"]
    print(
        "run                 temperature  " + "  ".join(f"{n:>15}" for n in names) + "  evals  s at 1  images/s (batch)"
    )
    for name, found in results.items():
        summary = found["summary"]
        cells = [f"{summary[n]['mean']:.3f} ± {summary[n]['deviation']:.3f}" if n in summary else "-" for n in names]
        temperature = "/".join(f"{t:g}" for t in (found["temperature"][0], found["temperature"][-1]))
        cost = f"{found['evaluations']:5}  {found['seconds_at_batch_1']:6.3f}"
        most = f"{found['images_a_second']:.1f} ({found['best_batch']})"
        print(f"{name:18}  {temperature:>11}  " + "  ".join(f"{c:>15}" for c in cells) + f"  {cost}  {most}")
    (options.out / "samples.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
