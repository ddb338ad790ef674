"""Generate images: vqstack generate RUN --num N --out FOLDER [--label …] [--temperature …].

Draws from the prior down to pixels, makes variations of given images, or decodes stored codes.
"""

import json
from collections.abc import Collection, Iterator
from functools import partial
from itertools import chain, cycle, islice, repeat
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from accelerate import Accelerator
from pydantic import Field
from torch import Tensor

from vqstack import threads
from vqstack.codes import CodeDataset, fingerprint
from vqstack.conditions import GIVEN
from vqstack.config import Positional, parse
from vqstack.errors import InputError
from vqstack.images import FileFormat, captioned, grid, numerals, saver
from vqstack.likelihood import Draw
from vqstack.model import Decoder, HierarchicalModel
from vqstack.model_settings import SamplingSettings
from vqstack.output import Output, saved
from vqstack.phases import given_condition, read_images
from vqstack.precision import Precision, autocast
from vqstack.settings import Settings
from vqstack.shapes import Pixels
from vqstack.terminal import Progress, say
from vqstack.texts import encode_texts

FORMAT: Any = Field(
    default=None,
    description="Kind of file; default: one without loss. Of images png; of sounds wav or flac; of videos gif (256 "
    "colours a frame), mkv (FFV1) or mp4 (H.264, for players, with loss; odd sides are doubled); npy, the numbers, of "
    "all; tiff, pages of 8 or 16 bits, of volumes and images of many channels.",
)


class Command(Settings):
    """Generate images."""

    run: Positional[Path] = Field(description="Folder of a run or of a released model, or OWNER/NAME on the hub.")
    out: Path = Field(description="Folder that receives the images; new or empty.")
    num: int | None = Field(
        default=None, ge=1, description="Count of images; default: 16, or one for each image or code map."
    )
    label: tuple[str, ...] = Field(
        default=(),
        description="Class of the images, its name, else its number; several are cycled. Default: drawn from P(label). "
        "With --images or --codes only where a refiner below reads it.",
    )
    condition: Path | None = Field(
        default=None,
        description="File .npy of the floats that the model is given: of one image, for all, or a row for each image.",
    )
    text: tuple[str, ...] = Field(
        default=(), description="Text that the model is given, encoded as in training: of all images, or one for each."
    )
    seed: int = Field(
        default=0, ge=0, le=2**63 - 1, description="Names all random draws, with the image's number; no unit."
    )
    temperature: tuple[float, ...] = Field(
        default=(), description="Temperature above 0, no unit; one, or one a level, prior first. Default: the model's."
    )
    top_k: tuple[int, ...] = Field(
        default=(), description="Draw among the k most likely values, count; 0: all. One, or one a level."
    )
    top_p: tuple[float, ...] = Field(default=(), description="Nucleus probability in (0, 1]. One, or one a level.")
    mode: tuple[bool, ...] = Field(
        default=(), description="Most likely value instead of a draw; alone it means True. One, or one a level."
    )
    mean: tuple[bool, ...] = Field(
        default=(),
        description="The mean of the pixels instead of a draw or their mode; alone it means True. Level 1 only.",
    )
    guidance: tuple[float, ...] = Field(
        default=(), description="Scale of classifier-free guidance, no unit; 1: none. One, or one a level."
    )
    confidence: tuple[bool, ...] = Field(
        default=(),
        description="Masked models keep their most confident draws; alone it means True. One, or one a level.",
    )
    from_level: int | None = Field(
        default=None,
        description="Number of the level, 1 to L, whose codes (of --images or --codes) are kept; the rest is drawn.",
    )
    images: tuple[Path, ...] = Field(default=(), description="Image files to make variations of.")
    codes: Path | None = Field(
        default=None,
        description="Code data set to turn back into images, in its order; a folder or OWNER/NAME on the hub.",
    )
    split: str | None = Field(default=None, description="Split of --codes; default: test.")
    decoder: Decoder = Field(
        default="likelihood",
        description="What makes pixels of the lowest codes: level 1's own decoder, or the renderer.",
    )
    batch_size: int = Field(default=64, ge=1, description="Images at a time, count; they come out the same.")
    format: FileFormat | None = FORMAT
    mixed_precision: Precision = Field(
        default="no",
        description="Number format of the networks; chances stay in float32. bf16 and fp16 are quicker on many "
        "devices, and images come out otherwise than with no.",
    )
    device: str | None = Field(default=None, description="cpu, cuda, mps …; default: the best there is.")

    def unused(self) -> dict[str, str]:
        """Options that are read by nothing, as the others are -> why, and what to do."""
        found: dict[str, str] = {}
        if self.codes is None:
            found["split"] = "names a split of --codes: add --codes FOLDER, or leave it out"
            if not self.images:
                found["from_level"] = "needs real images to start from: add --images FILE … or --codes FOLDER"
        return found

    @property
    def given(self) -> bool:
        """Whether a condition is given."""
        return self.condition is not None or bool(self.text)


GRID = 32  # rows of the overview at most, and columns where labels do not give them
DRAWING = ("temperature", "top_k", "top_p", "seed")


def sampling_of(command: Command, model: HierarchicalModel) -> SamplingSettings:
    """The model's own settings with what the command line says; for stored codes the image that ``decode`` makes."""
    given = {name: getattr(command, name) for name in SamplingSettings.model_fields if getattr(command, name)}
    started = bool(command.images) or command.codes is not None
    labelled = started or bool(command.label) or not model.classes  # else the seed draws classes, whatever the pixels
    asked = [*given, *["seed"] * (labelled and command.seed > 0)]
    if command.codes is not None and not given:
        given = {"mode": (True,), "mean": (True,)}
    elif "mode" in given and "mean" not in given:  # who asks for the mode gets it, whatever the model's own settings
        given["mean"] = (False,)
    sampling = SamplingSettings(**{**model.settings.sampling.model_dump(), **given})
    draws = model.settings.draws(sampling)  # refuses wrong values before anything is written
    read = drawn(asked, draws[-(command.from_level or 1) :] if started else draws, command.decoder)
    if started:
        check_read(command, read)
    return sampling


def drawn(asked: Collection[str], draws: list[Draw], decoder: Decoder) -> list[Draw]:
    """Those of the draws, level 1 last, that a decoder leaves; InputError where none of them reads what is asked."""
    if decoder == "renderer":
        draws = draws[:-1]
        if "mean" in asked:
            raise InputError("--mean: is of pixels that are drawn, and the renderer draws no lots: leave one out")
    unused = [name for name in DRAWING if name in asked]
    if unused and all(draw.mode or draw.mean for draw in draws):
        raise InputError(
            f"--{unused[0].replace('_', '-')}: nothing is drawn with --mode or --mean, of --codes as they come, or by "
            "the renderer: leave one of them out"
        )
    return draws


def check_read(command: Command, draws: list[Draw]) -> None:
    """Below kept codes only refiners guide or are confident: refuse what none of these draws would read."""
    for name, neutral in (("guidance", 1.0), ("confidence", False)):
        asked = any(value != neutral for value in getattr(command, name))
        if asked and all(getattr(draw, name) == neutral for draw in draws):
            level = command.from_level or 1
            raise InputError(f"--{name}: nothing that draws below level {level} reads it: leave it out")
        if asked and name == "guidance" and not command.label and not command.given:
            raise InputError(
                "--guidance: leads towards a class or a condition, and none is given: add --label or --condition, or "
                "leave it out"
            )


def check(command: Command, model: HierarchicalModel) -> None:
    """Refuse flags that contradict each other or would be ignored, and labels that the model does not know."""
    model.check_decoder(command.decoder)
    if command.images and command.codes is not None:
        raise InputError("--images and --codes: only one of them can be the start: leave one out")
    if command.images and command.from_level is None:
        raise InputError(f"--images: needs the level whose codes are kept: add --from-level 1 … {len(model.stack)}")
    if command.from_level is not None and not 1 <= command.from_level <= len(model.stack):
        raise InputError(f"--from-level: {command.from_level} does not exist: choose 1 … {len(model.stack)}")
    if command.images or command.codes is not None:
        check_refined_labels(command, model)
    if command.label and not model.classes:
        raise InputError("--label: this model knows no classes: leave it out")
    for label in command.label:
        model.settings.class_number(label)  # refuses what is no class
    if command.text and (model.condition is None or model.condition.text is None):
        raise InputError("--text: this model was trained with no text encoder: leave it out, or give --condition")
    if command.text and command.condition is not None:
        raise InputError("--text and --condition: only one of them can be given: leave one out")


def check_refined_labels(command: Command, model: HierarchicalModel) -> None:
    """Below kept codes only refiners are conditional: refuse what none would read, and the lack of what is needed."""
    kept = command.from_level or 1
    refiners = {number: model.refiner(number) for number in range(kept, int(command.decoder == "renderer"), -1)}
    for option, given, name, what in (
        ("--label", bool(command.label), "label", "a class"),
        ("--condition", command.given, GIVEN, "floats"),
    ):
        readers = {n: refiner for n, refiner in refiners.items() if refiner is not None and name in refiner.conditions}
        if given and not readers:
            raise InputError(f"{option}: nothing that draws below level {kept} reads {what}: leave it out")
        for number, refiner in readers.items():
            if not given and not refiner.settings.label_dropout:
                several = "give one or several" if name == "label" else "name a .npy file"
                raise InputError(f"{option}: missing, and the refiner of level {number} needs {what}: {several}")


def starting_codes(command: Command, model: HierarchicalModel) -> tuple[int, Iterator[torch.Tensor]] | None:
    """How many code maps there are to start from, and the maps one by one, again and again; none: drawn by the prior.

    Stored maps are read shard by shard. They are read once before that, so that a damaged one is found in time.
    """
    level = command.from_level or 1
    if command.codes is not None:
        stored, split = CodeDataset(command.codes), command.split or "test"
        stored.check(fingerprint(model.stack.encoder_state()), model.stack.map_shapes, model.stack.codebook_sizes)
        if not stored.splits.get(split):
            raise InputError(f"--split: {split} is not in {command.codes}: choose one of {', '.join(stored.splits)}")
        count = stored.splits[split]
        for _ in islice(maps_of(stored, split, level), min(command.num or count, count)):
            pass
        return count, chain.from_iterable(maps_of(stored, split, level) for _ in repeat(None))
    if command.images:
        maps = model.stack.encode(read_images(command.run, command.images).to(model.device), level)[-1]
        return len(maps), cycle(maps)
    return None


def maps_of(stored: CodeDataset, split: str, level: int) -> Iterator[torch.Tensor]:
    """The code maps of a level, in their order."""
    for block in stored.blocks(split):
        yield from block.codes[level - 1]


def condition_of(command: Command, model: HierarchicalModel) -> Tensor | None:
    """The floats of --condition or --text, a row for each image or one for all; InputError for anything else."""
    if command.text and model.condition is not None and model.condition.text is not None:
        condition = torch.from_numpy(encode_texts(model.condition.text, command.text))
        model.check_condition(condition, None)
        return condition
    if command.condition is None and (command.images or command.codes is not None):
        return None  # what reads it below kept codes was looked at before
    texts = ", or give --text" if model.condition is not None and model.condition.text is not None else ""
    return given_condition(model, command.condition, texts)


def chosen_device(name: str | None) -> torch.device:
    """The device of that name, or the best there is; one that cannot hold a number is refused."""
    if name is None:
        return Accelerator().device
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device: {name} cannot be used here ({reason}): leave it out") from error
    return device


def generate(
    command: Command,
    model: HierarchicalModel,
    start: Iterator[torch.Tensor] | None,
    condition: Tensor | None,
    num: int,
    sampling: SamplingSettings,
) -> Iterator[tuple[int, Pixels, list[int | None]]]:
    """Batches of (number of the first image, images, labels)."""
    how: dict[str, Any] = {"seed": command.seed, "sampling": sampling, "decoder": command.decoder}
    for first in range(0, num, command.batch_size):
        count = min(command.batch_size, num - first)
        asked = [model.settings.class_number(label) for label in command.label]
        given = torch.tensor([asked[i % len(asked)] for i in range(first, first + count)]) if asked else None
        floats = condition if condition is None or len(condition) > 1 else condition.expand(num, *condition.shape[1:])
        floats = None if floats is None else floats[first : first + count]
        with autocast(command.mixed_precision, model.device):
            if start is not None:
                chosen = torch.stack(list(islice(start, count)))
                level = command.from_level or 1
                sample = model.vary(chosen, level, given, floats, first=first, **how)
            else:
                sample = model.sample(count, given, floats, first=first, **how)
        labels = [None] * count if sample.labels is None else sample.labels.tolist()
        yield first, sample.pixels.cpu(), labels


def main(arguments: list[str]) -> None:
    command = parse(Command, arguments)
    model = HierarchicalModel.from_pretrained(command.run)
    check(command, model)
    ending, save = saver(**model.settings.stored(), asked=command.format)
    model.to(chosen_device(command.device))
    threads.share_cores()
    sampling = sampling_of(command, model)
    condition = condition_of(command, model)
    several = len(condition) if condition is not None and len(condition) > 1 else 16
    available, start = starting_codes(command, model) or (several, None)
    num = command.num or available
    if condition is not None and len(condition) not in (1, num):
        raise InputError(f"--condition: {len(condition)} rows for {num} images: give one for all, or one for each")
    columns = len(command.label) if len(command.label) > 1 else max(1, min(GRID, round(num**0.5)))
    output = Output(command.out, "generate")
    with TemporaryFile() as rows:  # what is said of each image waits on the disk
        rows.write(b'{"images": [\n')
        shown, classes = torch.empty(0), list[str]()
        with Progress(total=num, desc="generate", unit="img", disable=None) as progress:
            for first, pixels, labels in generate(command, model, start, condition, num, sampling):
                for i, (image, label) in enumerate(zip(pixels, labels, strict=True), start=first):
                    output.write(f"{i:06d}{ending}", saved(partial(save, image)))
                    name = None if label is None else [*model.settings.class_names, *numerals(model.classes)][label]
                    classes += [] if name is None or len(classes) == columns * GRID else [name]
                    about = {"file": f"{i:06d}{ending}", "index": i, "seed": command.seed}
                    about |= {"label": label, "class": name}
                    rows.write(b",\n" * bool(i) + json.dumps(about).encode())
                shown = pixels if not first else torch.cat([shown, pixels[: columns * GRID - len(shown)]])
                progress.update(len(pixels))
        scale = max(1, 64 // model.stack.shape[1])
        sheet = grid(shown[: columns * GRID], columns, model.stack.values, scale, model.settings.sound)
        sheet = captioned(sheet, classes, columns) if classes else sheet
        output.write("grid.png", saved(partial(sheet.save, format="PNG")))
        settings = {**command.model_dump(mode="json"), **sampling.model_dump(mode="json"), "num": num}
        rows.write(b'\n],\n"settings": ' + json.dumps(settings, indent=1).encode() + b"\n}\n")
        rows.seek(0)
        output.write("manifest.json", rows)
        output.finish()
    say(f"{num} images in {command.out}, overview in {command.out / 'grid.png'}")
