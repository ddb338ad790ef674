"""Get images back: python tools/decompress.py RUN FILES|FOLDER… --out FOLDER [--levels K] [--sample].

Every image comes back as STEM.png, exact. Where a file is cut short or damaged, or only its first levels are asked for,
it comes as STEM.level-L.png, which shows what the model makes of the maps down to z_L. Exit code 0: all that was asked
for; 65: images are missing or come from their upper levels only, and standard error says which; 2: nothing written.
"""

import sys
import time
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from pathlib import Path

import tyro
from pydantic import BaseModel, ConfigDict, Field
from tqdm import tqdm

from vqstack.codec.archive import Restored, check_container, restore
from vqstack.codec.blocks import BlockCodec
from vqstack.codec.container import SUFFIX, Container, open_container
from vqstack.config import parse, run_command
from vqstack.errors import PARTLY, InputError
from vqstack.images import save_png
from vqstack.model import HierarchicalModel
from vqstack.output import Output, saved, unfinished
from vqstack.pretrained import find_artefact
from vqstack.terminal import say, warn


class Command(BaseModel):
    """Get images back from compressed files."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    run: tyro.conf.Positional[Path] = Field(description="Folder of the run or released model that compressed them.")
    files: tyro.conf.Positional[tuple[Path, ...]] = Field(description="Files of compress.py, and folders of them.")
    out: Path = Field(description="Folder that receives the images; new or empty.")
    levels: int | None = Field(None, ge=1, description="Code maps to read, from the top; default: all and the pixels.")
    sample: bool = Field(False, description="Draw what is not read as generate.py does, not its most likely values.")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="Names the random numbers of --sample; no unit.")
    first: int = Field(0, ge=0, description="First image of each file to get back, a count from 0.")
    num: int | None = Field(None, ge=1, description="Images of each file to get back; default: all from --first on.")


def files_of(folder: Path, codec: BlockCodec) -> tuple[list[Container], list[str]]:
    """The files in a folder that can be read, and what else should be there; all of them useless is an error."""
    opened, refused = list[Container](), list[InputError]()
    if (mark := unfinished(folder)) is not None and (not mark.expected or mark.missing(folder)):
        names = mark.missing(folder)
        missing = f"{len(names)} of {len(mark.expected)} files, {spanned(names)}" if names else "nobody knows how much"
        problem = f"{folder}: {mark.command} has not finished it, missing: {missing}: run that command again"
        refused.append(InputError(problem))
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            opened.append(checked(path, codec))
        except InputError as error:  # one bad file does not keep the others back
            refused.append(error)
    if not opened:
        raise (
            refused[0]
            if refused
            else InputError(f"{folder} holds no {SUFFIX} files: name the folder that compress.py wrote")
        )
    return opened, list(map(str, refused))


def spanned(names: list[str]) -> str:
    """The first and the last name."""
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"


def checked(path: Path, codec: BlockCodec) -> Container:
    """A file whose header is whole and that this model can decode here."""
    file = open_container(path, codec.tile)
    check_container(codec, file)
    return file


def open_files(command: Command, codec: BlockCodec) -> tuple[list[Container], list[str]]:
    """All files, and why some of a folder are left out; a file that is named itself must be readable."""
    found, refused, seen = list[Container](), list[str](), dict[str, Path]()
    for path in command.files:
        opened, left = files_of(path, codec) if path.is_dir() else ([checked(path, codec)], [])
        found, refused = found + opened, refused + left
    for file in found:
        path = file.path
        if command.first >= len(file.entries):
            raise InputError(f"--first {command.first}: {path} holds images 0 … {len(file.entries) - 1}")
        for entry in file.entries:
            if entry.stem in seen:
                raise InputError(f"{path} and {seen[entry.stem]} both hold {entry.stem}: decompress them one by one")
            seen[entry.stem] = path
    return found, refused


def wanted(command: Command, file: Container) -> range:
    """The numbers of the images asked for."""
    return range(len(file.entries))[command.first :][: command.num]


def write(image: Restored, output: Output, values: int) -> None:
    """Store what there is of an image."""
    if image.pixels is not None:
        end = f".level-{image.level}.png" if image.level else ".png"
        output.write(f"{image.entry.stem}{end}", saved(partial(save_png, image.pixels, values=values)))


def complaints(damaged: list[tuple[Path, int | None, str]]) -> Iterator[str]:
    """A line for each run of images (file, level, stem) that came back as far; level none: not at all."""
    for (path, level), run in groupby(damaged, lambda image: image[:2]):
        stems = [stem for _, _, stem in run]
        names = spanned(stems) + (f" ({len(stems)} images)" if len(stems) > 1 else "")
        if level is None:
            yield f"{path}: {names}: damaged or cut short before the end of the top map: no image"
        else:
            yield f"{path}: {names}: damaged or cut short below level {level}: see STEM.level-{level}.png"


def main(arguments: list[str]) -> None:
    command = parse(Command, arguments, prog="decompress.py")
    model = HierarchicalModel.from_pretrained(find_artefact(command.run))
    if command.levels is not None and command.levels > len(model.stack):
        raise InputError(f"--levels {command.levels}: the model has {len(model.stack)}; leave it out for whole images")
    if command.seed and not command.sample:
        raise InputError("--seed names the random numbers of --sample: give both or none")
    codec = BlockCodec(model)
    files, refused = open_files(command, codec)
    sampling = model.settings.sampling if command.sample else None
    damaged, numbers, exact, shown, began = list[tuple[Path, int | None, str]](), 0, 0, 0, time.perf_counter()
    output = Output(command.out, "decompress")
    total = sum(len(wanted(command, file)) for file in files)
    with tqdm(total=total, desc="decompress", unit="img", disable=None) as progress:
        for file in files:
            images = restore(
                codec, file, wanted(command, file), levels=command.levels, sampling=sampling, seed=command.seed
            )
            for image in images:
                write(image, output, model.stack.values)
                if image.damaged:
                    damaged.append((file.path, None if image.pixels is None else image.level, image.entry.stem))
                shown += image.pixels is not None
                exact += image.level == 0 and image.pixels is not None
                numbers += image.entry.size
                progress.update()
    output.finish()
    for complaint in [*refused, *complaints(damaged)]:
        warn(complaint)
    seconds = time.perf_counter() - began
    say(
        f"{exact} images exact and {shown - exact} from their upper levels in {command.out}; "
        f"{total / seconds:.1f} images/s, {numbers / seconds / 1e6:.3f} MB/s"
    )
    if damaged or refused:
        sys.exit(PARTLY)


if __name__ == "__main__":
    run_command(main, again="to start over")
