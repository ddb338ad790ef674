"""Get images back: vqstack decompress RUN FILES|FOLDER… --out FOLDER [--levels K] [--sample].

Every image comes back as STEM.png, exact, in the inner folder that it was in. Where a file is cut short or damaged, or
only its first levels are asked for, it comes as STEM.level-L.png, which shows what the model makes of the maps down to
z_L. Exit code 0: all that was asked for; 65: images are missing or come from their upper levels only, and standard
error says which; 2: nothing written.
"""

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import Field

from vqstack.codec.archive import Restored, check_container, restore, storing
from vqstack.codec.blocks import BlockCodec
from vqstack.codec.container import open_container
from vqstack.codec.layout import SUFFIX, Container
from vqstack.codec.names import twice
from vqstack.config import Positional, parse
from vqstack.errors import PARTLY, InputError
from vqstack.model import HierarchicalModel
from vqstack.output import Output, saved, unfinished
from vqstack.phases import given_condition
from vqstack.reading import reading
from vqstack.settings import Settings
from vqstack.terminal import Progress, say, warn


@dataclass(frozen=True)
class Opened:
    """A file, the inner folder that its images go into, ending in a slash, and why they may not come back whole."""

    file: Container
    inner: str
    elsewhere: str | None

    @property
    def names(self) -> Iterable[tuple[str, int]]:
        """Of its images, as runs."""
        return ((self.inner + name, count) for name, count in self.file.names)


class Command(Settings):
    """Get images back from compressed files."""

    run: Positional[Path] = Field(
        description="Folder of the run or released model that compressed them, or OWNER/NAME."
    )
    files: Positional[tuple[Path, ...]] = Field(description="Files of vqstack compress, and folders of them.")
    out: Path = Field(description="Folder that receives the images; new or empty.")
    condition: Path | None = Field(default=None, description="The .npy file of floats that they were compressed with.")
    levels: int | None = Field(
        default=None, ge=1, description="Code maps to read, from the top; default: all and the pixels."
    )
    sample: bool = Field(
        default=False, description="Draw what is not read as vqstack generate does, not as the model decodes codes."
    )
    seed: int = Field(default=0, ge=0, le=2**63 - 1, description="Names the random numbers of --sample; no unit.")
    first: int = Field(default=0, ge=0, description="First image of each file to get back, a count from 0.")
    num: int | None = Field(
        default=None, ge=1, description="Images of each file to get back; default: all from --first on."
    )

    def unused(self) -> dict[str, str]:
        """Options that are read by nothing, as the others are -> why, and what to do."""
        return {} if self.sample else {"seed": "nothing is drawn without --sample: add it, or leave this out"}


def files_of(folder: Path, codec: BlockCodec) -> tuple[list[Opened], list[str]]:
    """The files in a folder that can be read, and what else should be there; all of them useless is an error."""
    opened, refused = list[Opened](), list[InputError]()
    with reading(folder):
        inside = sorted(path for path in folder.rglob(f"*{SUFFIX}") if path.is_file())
    if (mark := unfinished(folder)) is not None and (not mark.expected or mark.missing(folder)):
        names = mark.missing(folder)
        known = f"{len(names)} of {len(mark.expected)} files, {spanned(names[0], names[-1])}" if names else ""
        missing = known or "nobody knows how much"
        problem = f"{folder}: {mark.command} has not finished it, missing: {missing}: run that command again"
        refused.append(InputError(problem))
    for path in inside:
        try:
            inner = "".join(f"{part}/" for part in path.relative_to(folder).parts[:-1])
            opened.append(checked(path, codec, inner))
        except InputError as error:  # one bad file does not keep the others back
            refused.append(error)
    if not opened:
        raise (
            refused[0]
            if refused
            else InputError(f"{folder} holds no {SUFFIX} files: name the folder that vqstack compress wrote")
        )
    return opened, list(map(str, refused))


def spanned(first: str, last: str) -> str:
    """The first and the last of some names."""
    return first if first == last else f"{first} to {last}"


def checked(path: Path, codec: BlockCodec, inner: str = "") -> Opened:
    """A file of this model whose header is whole, and what differs where it was made."""
    file = open_container(path, codec.tile)
    return Opened(file, inner, check_container(codec, file))


def open_files(command: Command, codec: BlockCodec) -> tuple[list[Opened], list[str]]:
    """All files, and why some of a folder are left out; a file that is named itself must be readable."""
    found, refused = list[Opened](), list[str]()
    for path in command.files:
        with reading(path):
            folder = path.is_dir()
        opened, left = files_of(path, codec) if folder else ([checked(path, codec)], [])
        found, refused = found + opened, refused + left
    for one in found:
        if command.first >= len(one.file.entries):
            raise InputError(f"--first {command.first}: {one.file.path} holds images 0 … {len(one.file.entries) - 1}")
    stem = twice(name for one in found for name in one.names)
    if stem is not None:
        paths = ", ".join(dict.fromkeys(str(path) for path in command.files))
        raise InputError(f"two of the files in {paths} both hold {stem}: decompress them one by one")
    return found, refused


def chosen_images(command: Command, file: Container) -> range:
    """The numbers of the images asked for."""
    return range(len(file.entries))[command.first :][: command.num]


def write(image: Restored, inner: str, output: Output, model: HierarchicalModel) -> None:
    """Store what there is of an image or a sound."""
    if image.pixels is not None:
        ending, save = storing(image, model)
        end = f".level-{image.level}{ending}" if image.level else ending
        output.write(f"{inner}{image.entry.stem}{end}", saved(partial(save, image.pixels)))


@dataclass
class Partial:
    """Consecutive images of a file that came back as far; level none: not at all."""

    path: Path
    level: int | None
    why: str
    first: str
    last: str
    count: int = 1

    def __str__(self) -> str:
        """What is said of them."""
        names = spanned(self.first, self.last) + (f" ({self.count} images)" if self.count > 1 else "")
        if self.level is None:
            return f"{self.path}: {names}: {self.why} before the end of the top map: no image"
        return f"{self.path}: {names}: {self.why} below level {self.level}: see STEM.level-{self.level}.png"


def note(damaged: list[Partial], image: Restored, path: Path, why: str) -> None:
    """Add an image to what is said of those before it, or begin anew."""
    level, stem = None if image.pixels is None else image.level, image.entry.stem
    if damaged and (damaged[-1].path, damaged[-1].level) == (path, level):
        damaged[-1].last, damaged[-1].count = stem, damaged[-1].count + 1
    else:
        damaged.append(Partial(path, level, why, stem, stem))


def main(arguments: list[str]) -> None:
    command = parse(Command, arguments)
    model = HierarchicalModel.from_pretrained(command.run)
    if command.levels is not None and command.levels > len(model.stack):
        raise InputError(f"--levels {command.levels}: the model has {len(model.stack)}; leave it out for whole images")
    codec = BlockCodec(model, condition=given_condition(model, command.condition))
    files, refused = open_files(command, codec)
    sampling = model.settings.sampling if command.sample else None
    damaged, size, exact, shown, began = list[Partial](), 0, 0, 0, time.perf_counter()
    output = Output(command.out, "decompress")
    total = sum(len(chosen_images(command, one.file)) for one in files)
    with Progress(total=total, desc="decompress", unit="img", disable=None) as progress:
        for one in files:
            why = "damaged or cut short" + (", or computed otherwise here," if one.elsewhere else "")
            chosen = chosen_images(command, one.file)
            images = restore(codec, one.file, chosen, levels=command.levels, sampling=sampling, seed=command.seed)
            for image in images:
                write(image, one.inner, output, model)
                if image.damaged:
                    note(damaged, image, one.file.path, why)
                shown += image.pixels is not None
                exact += image.level == 0 and image.pixels is not None
                size += image.entry.size
                progress.update()
    output.finish()
    for complaint in [*refused, *(one.elsewhere for one in files if one.elsewhere), *damaged]:
        warn(complaint)
    seconds = time.perf_counter() - began
    say(
        f"{exact} images exact and {shown - exact} from their upper levels in {command.out}; "
        f"{total / seconds:.1f} images/s, {size / seconds / 1e6:.3f} MB/s"
    )
    if damaged or refused:
        sys.exit(PARTLY)
