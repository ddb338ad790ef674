"""Evaluate a model on a split: vqstack evaluate RUN --out FOLDER [--split test] [--no-samples].

Writes the ledger, usage of the codes, reconstructions from each level, what levels leak, and how near samples come to
held-out images, as evaluate.json, table.txt and pictures.
"""

import json
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Literal

from accelerate import Accelerator
from pydantic import Field

from vqstack import threads
from vqstack.commands.generate import drawn
from vqstack.config import Positional, Unprefixed, parse
from vqstack.evaluation import (
    Estimate,
    Evaluation,
    Leak,
    evaluate_split,
    leaks,
    random_orders,
)
from vqstack.features import Ruler, ruler
from vqstack.images import SPLITS, ImageSettings, ImageSplit, Split, default_cache, grid, load_splits
from vqstack.ledger import BITS, table
from vqstack.model import Decoder, HierarchicalModel
from vqstack.model_settings import SamplingSettings
from vqstack.output import Output, check_folder, saved
from vqstack.phases import check_condition, check_images, duration, in_classes_of, named_run, warn_of_changes
from vqstack.plots import figure, plot_ledgers, plot_usage, reconstruction_strip
from vqstack.quality import (
    PICTURED,
    Likenesses,
    Quality,
    compare,
    decoded,
    draw_samples,
    drawn_by_default,
    images_a_side,
    likenesses,
)
from vqstack.settings import Settings
from vqstack.shapes import Labels, Pixels
from vqstack.terminal import say

SHOWN = 10  # images a row of the pictures
TRIED = 16  # images that are drawn and scored to measure how long the others take


class Command(Settings):
    """Evaluate a model on a split."""

    run: Positional[Path] = Field(description="Folder of a run or of a released model, or OWNER/NAME on the hub.")
    out: Path = Field(description="Folder that receives the results; new or empty.")
    split: Split = Field(default="test", description="Split that is scored and that samples are compared with.")
    data: ImageSettings = Field(default=ImageSettings(), description="The images; default: those of the run.")
    samples: bool = Field(default=True, description="Draw samples and compare them with the split.")
    leaks: int | None = Field(
        default=None,
        ge=0,
        description="Count of images, at most, below whose codes every level draws; what it drew is encoded again and "
        "must have the same codes, or mass is lost. 0: leave that out; default: 1,000, fewer above 32x32 pixels.",
    )
    num: int | None = Field(
        default=None,
        ge=1,
        description="Count of samples, and of real images they are compared with; default: half of the split, 1,000 "
        "at most, fewer above 32x32 pixels.",
    )
    seeds: tuple[int, ...] = Field(
        default=(0, 1, 2), min_length=1, description="Seeds of the samples, no unit; one comparison each."
    )
    features: Literal["classifier", "efficientnet-lite0", "lpips", "inception"] = Field(
        default="classifier",
        description="Features that are compared: of a small classifier, trained once on the labelled training split, "
        "of EfficientNet-Lite0 (extra perceptual), LPIPS on VGG16 (needs the extra lpips and its weights), or of "
        "Inception v3 (needs the extra fid and its weights).",
    )
    sampling: Unprefixed[SamplingSettings] = Field(
        default=SamplingSettings(), description="How samples are drawn; default: the model's own settings."
    )
    decoder: Decoder = Field(
        default="likelihood",
        description="What makes pixels of the samples' lowest codes: level 1's own decoder, or the renderer. The "
        "ledger is the likelihood's either way.",
    )
    cache: Path = Field(default=default_cache(), description="Folder that keeps the trained classifier for other runs.")
    batch_size: int = Field(default=64, ge=1, description="Images at a time, count; does not change the results.")
    cpu: bool = Field(default=False, description="Stay on the CPU even where there is an accelerator.")

    def unused(self) -> dict[str, str]:
        """Options that are about samples, where none are drawn."""
        about_samples = ("num", "seeds", "features", "decoder", "cache", *SamplingSettings.model_fields)
        why = "says how samples are drawn or compared: leave it out, or --no-samples"
        return {} if self.samples else dict.fromkeys(about_samples, why)


def compare_samples(
    command: Command,
    output: Output,
    model: HierarchicalModel,
    split: ImageSplit,
    count: int,
    by: Ruler,
) -> Quality:
    """Samples of each seed against the split; a picture of the first ones."""
    classify = None if by.judge is None else by.judge.classes

    def draw(seed: int) -> tuple[Pixels, Labels | None]:
        pixels, labels = draw_samples(model, count, seed, command.sampling, command.batch_size, split, command.decoder)
        if seed == command.seeds[0]:
            scale = max(1, 64 // model.stack.shape[1])
            shown = grid(pixels[: SHOWN**2], SHOWN, model.stack.values, scale, model.settings.sound)
            output.write("samples.png", saved(partial(shown.save, format="PNG")))
        return pixels, labels

    return compare(draw, split, count, list(command.seeds), by.rows, classify)


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _pictures(found: Likenesses) -> list[str]:
    """Ways from codes to pictures, side by side; nothing where there is but the mean, and no ruler."""
    if found.features is None and not any("renderer" in name for name in found.ways):
        return []
    by = "no features" if found.features is None else f"features: {found.features}"
    lines = ["", f"Pictures of the codes of {found.images} images, beside these ({by}; none of it is a likelihood)"]
    lines.append(f"{'':18}   PSNR dB    SSIM  perceptual      rFID")
    for name, way in found.ways.items():
        cells = _cell(way.psnr, 2), _cell(way.ssim, 3), _cell(way.perceptual, 4), _cell(way.frechet, 3)
        lines.append("{:18}  {:>8}  {:>6}  {:>10}  {:>8}".format(name, *cells))
    if found.floor is not None:
        lines.append(f"between halves of the images, {found.images // 2} a side: {found.floor:.3f}")
    return lines


def report(
    scores: dict[str, Evaluation],
    orders: dict[str, Estimate],
    pictures: Likenesses,
    leaked: dict[int, Leak],
    quality: Quality | None,
    decoder: Decoder,
) -> str:
    """Everything as one table to read; ``decoder``: what the samples' pixels came from."""
    lines = ["Bits per image", table({name: score.ledger for name, score in scores.items()}), ""]
    if orders:
        lines.append("Masked models in random orders of single sites, bits per image, ± standard error")
        for row, nats in orders.items():
            error = "-" if nats.error is None else f"{nats.error * BITS:.2f}"
            lines.append(f"{row:12}  {nats.nats * BITS:10.2f} ± {error}")
        lines.append("")
    lines.append("level    used  perplexity   PSNR dB    SSIM")
    usage = next(iter(scores.values())).usage
    for number, use in enumerate(usage, start=1):
        near = pictures.ways[f"level-{number}"]
        psnr, ssim = _cell(near.psnr, 2), _cell(near.ssim, 3)
        lines.append(f"{number:5}  {use.share:6.1%}  {use.perplexity:10.1f}  {psnr:>8}  {ssim:>6}")
    lines += _pictures(pictures)
    if leaked:
        images = leaked[1].images
        lines += ["", f"What each level draws below the codes of {images} images, encoded again: shares that come back"]
        lines.append("level     sites      maps   bits lost, at least   with 95 % confidence")
        for number, leak in leaked.items():
            found = leak.to_json()
            least = "-" if leak.bits is None else f"{leak.bits:.2f}"
            surely = f"{'at least' if leak.maps else 'more than'} {leak.surely:.2f}"
            lines.append(f"{number:5}  {found['sites']:8.2%}  {found['maps']:8.2%}  {least:>20}  {surely:>21}")
    if quality is not None:
        of = f"pixels by the {decoder}, {quality.images} a side, {len(quality.comparisons)} seeds, ± their deviation"
        lines += ["", f"Samples ({of})", f"{'':18}  {'samples':>18}  {'other half of real':>18}"]
        for title, name, floor in (
            ("Fréchet distance", "distance", "floor"),
            ("precision", "precision", "floor_precision"),
            ("recall", "recall", "floor_recall"),
            ("class accuracy", "accuracy", "floor_accuracy"),
        ):
            cells = [
                "-"
                if getattr(quality.comparisons[0], n) is None
                else f"{quality.mean(n):.3f} ± {quality.deviation(n):.3f}"
                for n in (name, floor)
            ]
            lines.append(f"{title:18}  {cells[0]:>18}  {cells[1]:>18}")
    return "\n".join(lines) + "\n"


def forecast(
    command: Command, model: HierarchicalModel, split: ImageSplit, accelerator: Accelerator, count: int, below: int
) -> str:
    """What will be scored and drawn, and how long both take, by a measurement of a few images."""
    drawn = count * len(command.seeds) * command.samples + below
    pictures = min(len(split), PICTURED) * (1 + command.samples)  # of codes: their means, and draws to compare with
    few = min(TRIED, command.batch_size, len(split))
    began = time.perf_counter()
    draw_samples(model, few, 0, command.sampling, few, split, command.decoder)
    between = time.perf_counter()
    evaluate_split(model, split, accelerator, command.batch_size, most=few)
    scored = len(split) * (2 if model.refiners else 1)
    seconds = (between - began) / few * (drawn + pictures) + (time.perf_counter() - between) / few * scored
    classifies = command.features == "classifier" or (model.classes and split.labelled)
    judged = "; a classifier of the images is trained before, in up to some minutes, unless the cache has it"
    judged = judged if command.samples and classifies else ""
    return (
        f"{len(split)} images of {command.split} are scored, {drawn} are drawn, which takes about {duration(seconds)}"
        f"{judged}; --leaks, --num and --no-samples say what is left out"
    )


def main(arguments: list[str]) -> None:
    run = named_run(arguments)  # its data set and its model's sampling settings are the defaults
    default = None
    if run is not None:
        sampling = HierarchicalModel.from_pretrained(run[0]).settings.sampling
        default = {"run": run[0], "data": run[1], "sampling": sampling}
    command = parse(Command, arguments, default)
    model: HierarchicalModel = HierarchicalModel.from_pretrained(command.run)
    own, draws = model.settings.sampling, model.settings.draws(command.sampling)
    asked = [name for name in SamplingSettings.model_fields if getattr(command.sampling, name) != getattr(own, name)]
    drawn(asked, draws, command.decoder)
    model.check_decoder(command.decoder)
    figure()  # refuses before anything is written where there is nothing to plot with
    names = SPLITS if command.samples else (command.split,)
    splits = load_splits(command.data, names)
    check_images(splits, command.data, model)
    check_condition(splits, model)
    warn_of_changes(command.run, command.data, splits)
    splits = in_classes_of(model, splits)
    split = splits[command.split]
    model.check_labels(model.labels_read(split.labels))
    accelerator = Accelerator(cpu=command.cpu)
    threads.share_cores(accelerator.num_processes)
    model.to(accelerator.device)
    count = images_a_side(command.num, split) if command.samples else 0
    below = min(len(split), drawn_by_default(split.size) if command.leaks is None else command.leaks)
    check_folder(command.out, "evaluate")
    say(forecast(command, model, split, accelerator, count, below))
    given = splits.get("train"), splits.get("validation"), command.cache, accelerator
    classes = model.classes > 0  # samples of others have none to be told
    by = ruler(command.features, *given, classes) if command.samples else None  # type: ignore[arg-type]  # all are there

    output = Output(command.out, "evaluate")
    columns = {"feed-forward": False} | ({"refined": True} if model.refiners else {})
    scores = {
        name: evaluate_split(model, split, accelerator, command.batch_size, refined=refined)
        for name, refined in columns.items()
    }
    orders = random_orders(model, split, command.batch_size)
    pictures = likenesses(model, split, by, command.batch_size)
    first = split.part(slice(below))
    leaked = leaks(model, split.marked[:below], first.labels, first.condition, command.batch_size) if below else {}
    quality = compare_samples(command, output, model, split, count, by) if by else None

    ledgers = plot_ledgers({name: score.ledger for name, score in scores.items()})
    usage = plot_usage(scores["feed-forward"].counts)
    output.write("ledger.png", saved(partial(ledgers.savefig, dpi=150)))
    output.write("usage.png", saved(partial(usage.savefig, dpi=150)))
    strip = reconstruction_strip(
        split.pixels[:SHOWN], decoded(model, split.marked[:SHOWN]), model.stack.values, model.settings.sound
    )
    output.write("reconstructions.png", saved(partial(strip.save, format="PNG")))
    results = {
        "split": command.split,
        "ledger": {name: score.to_json() for name, score in scores.items()},
        "random_orders": {row: asdict(of) for row, of in orders.items()},
        "reconstruction": asdict(pictures),
        "leaks": {f"level-{number}": leak.to_json() for number, leak in leaked.items()},
        "samples": quality and {"decoder": command.decoder, "features": command.features, **quality.to_json()},
        "settings": command.model_dump(mode="json"),
    }
    text = report(scores, orders, pictures, leaked, quality, command.decoder)
    output.write("evaluate.json", (json.dumps(results, indent=1) + "\n").encode())
    output.write("table.txt", text.encode())
    output.finish()
    say(f"{text}\n{command.out}: evaluate.json, table.txt and pictures")
