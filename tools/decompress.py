"""Get images back: python tools/decompress.py RUN FILES|FOLDER… --out FOLDER [--levels K] [--sample].

Every image comes back as STEM.png, exact. Where a file is cut short or damaged, or only its first levels are asked for,
it comes as STEM.level-L.png, which shows what the model makes of the maps down to z_L. Exit code 0: all that was asked
for; 3: some images are missing or come from their upper levels only, and standard error says which; 2: nothing written.
"""

import sys
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import tyro
from pydantic import BaseModel, ConfigDict, Field
from tqdm import tqdm

from vqstack.codec.archive import Restored, check_container, restore
from vqstack.codec.blocks import BlockCodec
from vqstack.codec.container import SUFFIX, Container, open_container
from vqstack.codes import claim_folder, release_folder
from vqstack.config import parse, run_command
from vqstack.errors import InputError
from vqstack.images import save_png
from vqstack.model import HierarchicalModel
from vqstack.pretrained import find_artefact

PARTLY = 3
"""Exit code where images are missing or come from their upper levels only."""


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


def open_files(command: Command, codec: BlockCodec) -> list[Container]:
    """All files, each one of this model; the first that is not ends the command."""
    paths = list[Path]()
    for path in command.files:
        inside = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
        if not inside:
            raise InputError(f"{path} holds no {SUFFIX} files: name the folder that compress.py wrote")
        paths += inside
    opened, seen = list[Container](), dict[str, Path]()
    for path in paths:
        file = open_container(path, codec.tile)
        check_container(codec, file)
        if command.first >= len(file.entries):
            raise InputError(f"--first {command.first}: {path} holds images 0 … {len(file.entries) - 1}")
        for entry in file.entries:
            if entry.stem in seen:
                raise InputError(f"{path} and {seen[entry.stem]} both hold {entry.stem}: decompress them one by one")
            seen[entry.stem] = path
        opened.append(file)
    return opened


def wanted(command: Command, file: Container) -> range:
    """The numbers of the images asked for."""
    return range(len(file.entries))[command.first :][: command.num]


def write(image: Restored, out: Path, values: int) -> None:
    """Store what there is of an image."""
    if image.pixels is not None:
        end = f".level-{image.level}.png" if image.level else ".png"
        save_png(image.pixels, out / f"{image.entry.stem}{end}", values)


def complaints(damaged: list[tuple[Path, int | None, str]]) -> Iterator[str]:
    """A line for each run of images (file, level, stem) that came back as far; level none: not at all."""
    for (path, level), run in groupby(damaged, lambda image: image[:2]):
        stems = [stem for _, _, stem in run]
        names = stems[0] if len(stems) == 1 else f"{stems[0]} to {stems[-1]} ({len(stems)} images)"
        if level is None:
            yield f"{path}: {names}: damaged or cut short before the end of the top map: no image"
        else:
            yield f"{path}: {names}: damaged or cut short below level {level}: see STEM.level-{level}.png"


def main(arguments: list[str]) -> None:
    command = parse(Command, arguments, prog="decompress.py")
    model = HierarchicalModel.from_pretrained(find_artefact(command.run))
    codec = BlockCodec(model)
    files = open_files(command, codec)
    sampling = model.settings.sampling if command.sample else None
    damaged, numbers, exact, shown, began = list[tuple[Path, int | None, str]](), 0, 0, 0, time.perf_counter()
    lock = claim_folder(command.out, "decompress", writes=["*.png"])
    total = sum(len(wanted(command, file)) for file in files)
    with tqdm(total=total, desc="decompress", unit="img", disable=None) as progress:
        for file in files:
            images = restore(
                codec, file, wanted(command, file), levels=command.levels, sampling=sampling, seed=command.seed
            )
            for image in images:
                write(image, command.out, model.stack.values)
                if image.damaged:
                    damaged.append((file.path, None if image.pixels is None else image.level, image.entry.stem))
                shown += image.pixels is not None
                exact += image.level == 0 and image.pixels is not None
                numbers += image.entry.size
                progress.update()
    release_folder(command.out, lock)
    for complaint in complaints(damaged):
        print(f"warning: {complaint}", file=sys.stderr)
    seconds = time.perf_counter() - began
    print(
        f"{exact} images exact and {shown - exact} from their upper levels in {command.out}; "
        f"{total / seconds:.1f} images/s, {numbers / seconds / 1e6:.3f} MB/s"
    )
    if damaged:
        sys.exit(PARTLY)


if __name__ == "__main__":
    run_command(main)
