"""Compress images without loss: vqstack compress RUN IMAGES… --out FOLDER [--single] [--label …].

Writes one archive, or one file an image, and prints what it cost beside what the ledger says.
"""

import json
from pathlib import Path

from pydantic import Field

from vqstack.codec.archive import Report, compress
from vqstack.codec.blocks import BlockCodec, given_label
from vqstack.codec.layout import SUFFIX
from vqstack.codec.pictures import (
    Pictures,
    is_of_images,
    pictures_of_files,
    pictures_of_split,
    reader_of,
    safe_stem,
    stem_of,
)
from vqstack.config import Positional, parse
from vqstack.disk import write_text
from vqstack.errors import InputError
from vqstack.images import ImageSettings, Split, is_image, is_sound, is_volume, load_splits
from vqstack.images.files import walk
from vqstack.model import HierarchicalModel
from vqstack.output import Output, unfinished
from vqstack.phases import given_condition, named_run, run_of, warn_of_changes
from vqstack.reading import read_json, reading
from vqstack.settings import Settings
from vqstack.shapes import Floats
from vqstack.terminal import say, warn

FAR = 1.5  # times the bits of the model's own test images that are called out of the ordinary


class Command(Settings):
    """Compress images without loss."""

    run: Positional[Path] = Field(description="Folder of a run or of a released model, or OWNER/NAME on the hub.")
    images: Positional[tuple[Path, ...]] = Field(
        default=(), description="Image files, and folders of them, inner folders included."
    )
    out: Path = Field(description="Folder that receives the files; new or empty.")
    single: bool = Field(default=False, description="One file an image instead of one archive.")
    name: str = Field(default="images", description="Stem of the archive's file name.")
    split: Split | None = Field(default=None, description="Compress a split of --data instead of image files.")
    data: ImageSettings = Field(
        default=ImageSettings(), description="Where --split is taken from; default: data of the run."
    )
    label: str | None = Field(
        default=None, description="Class of all images, a name or number; default: what costs least."
    )
    condition: Path | None = Field(
        default=None,
        description="A .npy file of the floats that the model is given: for all images, or a row for each in their "
        "order in the archive. Decompressing needs the same file.",
    )
    check: bool = Field(
        default=True, description="Decode before writing and compare; what fails is stored without the model."
    )
    threads: int = Field(
        default=1, ge=1, le=255, description="Threads of torch, count; whoever decompresses will use as many."
    )
    portable: bool = Field(
        default=False,
        description="Make files that any processor decompresses, in float64: slower, and a little longer.",
    )
    report: Path | None = Field(default=None, description="Receives the summary as JSON.")

    def unused(self) -> dict[str, str]:
        """Options that are read by nothing, as the others are -> why, and what to do."""
        data = "says where --split is taken from: give --split, or name image files only"
        name = "is the archive's, --single writes none: leave one of them out"
        return ({"data": data} if self.split is None else {}) | ({"name": name} if self.single else {})


def command_of(arguments: list[str]) -> Command:
    """The command line; a split is one of the run's own data set, and an artefact without its run has none."""
    split = any(argument.partition("=")[0] == "--split" for argument in arguments)
    run = named_run(arguments) if split else None
    default = None if run is None else {"run": run[0], "data": run[1]}
    return parse(Command, arguments, default)


def pictures_of(command: Command, model: HierarchicalModel) -> tuple[Pictures, int]:
    """The images that were asked for, each of which fits the model or is refused, and the bytes of their files."""
    channels, values = model.stack.shape[0], model.stack.values
    if (command.split is None) == (not command.images):
        raise InputError("name image files or folders, or a split with --split, and not both")
    if command.split is not None:
        split = load_splits(command.data, [command.split])[command.split]
        if split.pixels.shape[1] != channels or command.data.values != values:
            raise InputError(
                f"images of {split.pixels.shape[1]} channels with {command.data.values} values do not fit the model, "
                f"which wants {channels} with {values}: set --data.channels and --data.values"
            )
        warn_of_changes(command.run, command.data, {command.split: split})
        return pictures_of_split(split, model.settings.sound, command.data.range), 0
    files = dict[Path, str]()
    for path in command.images:
        with reading(path):
            files |= inside(path, model) if path.is_dir() else {path: stem_of(path)}
    return pictures_of_files(files, reader_of(model)), sum(path.stat().st_size for path in files)


def inside(folder: Path, model: HierarchicalModel) -> dict[Path, str]:
    """What a model reads below a folder, and the stem under which each comes back: folders on the way are part of it.

    InputError where there is none, or where something there cannot be read.
    """
    wanted, what, example = (is_image, "images", "PNG") if is_of_images(model) else (is_volume, "volumes", ".npy")
    if model.settings.sound:
        wanted, what, example = is_sound, "sounds", "WAV"
    if (mark := unfinished(folder)) is not None:
        raise InputError(f"{folder} is unfinished output of {mark.command}: finish that first, or name its files")
    found, left = dict[Path, str](), list[str]()
    for name, problem in walk(str(folder)):
        path = Path(name)
        parts = path.relative_to(folder).parts
        if problem and (path.is_dir() or wanted(name)):
            raise InputError(f"{name}: {problem}: mend or remove it, or name files")
        if not problem and wanted(name) and not any(part.startswith(".") for part in parts[:-1]):
            found[path] = "/".join([*parts[:-1], stem_of(path)])
        elif not problem:
            left.append("/".join(parts))
    if not found:
        raise InputError(f"{folder} holds no {what}: name a folder with files such as {example}")
    if left:
        warn(f"{folder}: left out, being no {what} or in a hidden folder: {len(left)} files, such as {min(left)}")
    return found


def check_report(command: Command) -> None:
    """Refuse what would fail after the work is done."""
    if command.report is not None and command.report.exists():
        raise InputError(f"--report {command.report} is there already: choose another name or remove it")
    if command.report is not None and not command.report.absolute().parent.is_dir():
        raise InputError(f"--report {command.report}: there is no such folder: create it first")


def check_rows(command: Command, condition: Floats | None, count: int) -> None:
    """Refuse floats of which nobody would know whose they are."""
    rows = 1 if condition is None else len(condition)
    if rows not in (1, count):
        raise InputError(f"--condition: {rows} rows for {count} images: give one for all, or one for each")
    if rows > 1 and command.single:
        raise InputError("--condition: a row for each image, and files of their own have no order: leave --single out")


def main(arguments: list[str]) -> None:
    command = command_of(arguments)
    check_report(command)
    if "/" in command.name or not safe_stem(command.name):
        raise InputError(f"--name {command.name} is no file name: choose one without slashes")
    model = HierarchicalModel.from_pretrained(command.run)
    if command.single and (not is_of_images(model) or (command.split and command.data.padding)):
        raise InputError(
            "--single: a file of its own holds an image, sounds, volumes and pieces with padding come in archives: "
            "leave it out"
        )
    label = given_label(model, command.label)
    condition = given_condition(model, command.condition)
    pictures, given = pictures_of(command, model)
    check_rows(command, condition, len(pictures.entries))
    stems = [entry.stem for entry in pictures.entries] if command.single else [command.name]
    output = Output(command.out, "compress", expected=[f"{stem}{SUFFIX}" for stem in stems])
    report = compress(
        BlockCodec(model, command.portable, condition),
        pictures,
        output.write,
        name=None if command.single else command.name,
        label=label,
        check=command.check,
        threads=command.threads,
    )
    if command.report is not None:
        text = json.dumps(report.to_json(), indent=1) + "\n"
        write_text(command.report, text)
    output.finish()
    say(report)
    beside = f", {report.size / given:.0%} of the {given} bytes of the files that were given" if given else ""
    say(f"{report.pictures} images in {report.files} files, {report.size} bytes{beside}, in {command.out}")
    warn_of_size(command, report, given)


def warn_of_size(command: Command, report: Report, given: int) -> None:
    """Say where nothing was gained, and where images cost far more than those that the model was tested on."""
    if given and report.size >= given:
        warn(f"{command.out}: not smaller than the files that were given: keep those, or use a model of such images")
    tested, found = bits_of_test(command.run), report.ledger.bits if report.ledger else 0.0
    if tested is not None and found > FAR * tested:
        warn(
            f"a tile costs {found:,.0f} bits, and images of the model's test split {tested:,.0f}: these lie far "
            "from what it was trained on; a model of such images would need less"
        )


def bits_of_test(run: Path) -> float | None:
    """Bits per image of the test split in the ledger of a run; None for a model without its run."""
    folder = run_of(run)
    try:
        return None if folder is None else float(read_json(folder / "ledger.json", 2**20)["test"]["bits"])
    except (OSError, ValueError, TypeError, KeyError):
        return None  # missing or damaged, which is no reason to compress nothing
