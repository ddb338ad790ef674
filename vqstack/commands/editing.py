"""What the commands share that change the codes of given images and show what becomes of them."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from pydantic import Field

from vqstack import threads
from vqstack.commands.generate import FORMAT, chosen_device
from vqstack.config import Positional
from vqstack.errors import InputError
from vqstack.images import FileFormat, captioned, grid, saver
from vqstack.model import Decoder, HierarchicalModel
from vqstack.output import Output, saved
from vqstack.phases import read_images
from vqstack.settings import Settings
from vqstack.shapes import Codes, Pixels
from vqstack.terminal import say


class Editing(Settings):
    """Which codes of which images, and what becomes of them."""

    run: Positional[Path] = Field(description="Folder of a run or of a released model, or OWNER/NAME on the hub.")
    images: Positional[tuple[Path, ...]] = Field(description="Image files.")
    out: Path = Field(description="Folder that receives the images; new or empty.")
    level: int | None = Field(
        default=None, ge=1, description="Number of the level whose codes are meant; default: the top."
    )
    sample: bool = Field(default=False, description="Draw what lies below the codes, instead of its mean.")
    label: str | None = Field(
        default=None, description="Class of what is drawn with --sample, its name or number, where a refiner reads it."
    )
    seed: int = Field(default=0, ge=0, le=2**63 - 1, description="Of what is drawn with --sample, no unit.")
    decoder: Decoder = Field(
        default="likelihood",
        description="What makes pixels of the lowest codes: level 1's own decoder, or the renderer.",
    )
    format: FileFormat | None = FORMAT
    device: str | None = Field(default=None, description="cpu, cuda, mps …; default: the best there is.")

    def unused(self) -> dict[str, str]:
        """Options that are read by nothing, as the others are -> why, and what to do."""
        why = "nothing is drawn without --sample: add it, or leave this out"
        return {} if self.sample else dict.fromkeys(("label", "seed"), why)


def opened(command: Editing, count: int | None = None) -> tuple[HierarchicalModel, int, Pixels]:
    """The model, the level and the images of a command, of which there must be ``count``."""
    if count is not None and len(command.images) != count:
        raise InputError(f"{len(command.images)} images: name {count}")
    model = opened_model(command)
    level = command.level or len(model.stack)
    if level > len(model.stack):
        raise InputError(f"--level: {level} does not exist: choose 1 … {len(model.stack)}")
    if command.sample and level == 1 and command.decoder == "renderer":
        raise InputError("--sample: the renderer draws no lots below level 1: leave one of them out")
    return model, level, read_images(command.run, command.images).to(model.device)


def opened_model(command: Editing) -> HierarchicalModel:
    """The model of a command, where it is to compute."""
    model: HierarchicalModel = HierarchicalModel.from_pretrained(command.run)
    model.check_decoder(command.decoder)
    saver(**model.settings.stored(), asked=command.format)  # refuses what the images cannot be
    threads.share_cores()
    return model.to(chosen_device(command.device))


def shown(command: Editing, model: HierarchicalModel, codes: Codes, level: int) -> Pixels:
    """Images of codes: their mean, or one that is drawn below them."""
    if not command.sample:
        return model.decode(codes, level, decoder=command.decoder)
    label = None if command.label is None else torch.tensor([model.settings.class_number(command.label)])
    labels = None if label is None else label.expand(len(codes))
    return model.vary(codes, level, labels, seed=command.seed, decoder=command.decoder).pixels


def write(command: Editing, name: str, model: HierarchicalModel, named: Sequence[tuple[str, Pixels]]) -> None:
    """Rows of images and their names: each image in a file of its own, all of them in ``grid.png``."""
    ending, save = saver(**model.settings.stored(), asked=command.format)
    output, values, rows = Output(command.out, name), model.stack.values, len(named[0][1])
    for title, images in named:
        for number, image in enumerate(images.cpu()):
            output.write(f"{number:06d}-{title}{ending}", saved(partial(save, image)))
    every = torch.stack([images.cpu() for _, images in named], 1).flatten(0, 1)
    sheet = grid(every, len(named), values, max(1, 64 // model.stack.shape[1]), model.settings.sound)
    sheet = captioned(sheet, [title for title, _ in named] * rows, len(named))
    output.write("grid.png", saved(partial(sheet.save, format="PNG")))
    output.finish()
    say(f"{rows * len(named)} images in {command.out}, overview in {command.out / 'grid.png'}")
