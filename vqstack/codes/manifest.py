"""What a code data set says about itself: ``manifest.json``, and the card that is written from it."""

import json
import math
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, StringConstraints, ValidationError, model_validator

from vqstack.errors import InputError, reason
from vqstack.output import unfinished
from vqstack.reading import read_json

FORMAT_VERSION = 2
ENCODE = "encode"  # the command that writes code data sets, as named in the marker of unfinished output
MANIFEST = "manifest.json"
LARGEST_MANIFEST = 2**28  # bytes; that of 100,000 shards has 15 million
MAX_SHARDS = 99_999  # of one split: with more, five digits no longer sort by number
MAX_SITES = 2**31 - 1  # of one map: offsets inside a column have 32 bits

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]{1,64}$")]  # becomes a part of paths
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=2**48)]


class Shard(BaseModel):
    """Images ``start`` … ``start + rows - 1`` of a split, in one file.

    Attributes:
        split: name of the split.
        number: of this shard, from 0.
        of: number of shards of the split.
        start: its first image, counted inside the split.
        rows: number of its images.
    """

    model_config = ConfigDict(frozen=True)

    split: str
    number: int
    of: int
    start: int
    rows: int

    @property
    def file(self) -> str:
        """Name of the file, inside ``data/``."""
        return f"{self.split}-{self.number:05d}-of-{self.of:05d}.parquet"

    def path(self, folder: Path) -> Path:
        """Where the file lies in the folder of a data set."""
        return folder / "data" / self.file


def shards_of(split: str, images: int, size: int) -> list[Shard]:
    """A split in shards of ``size`` images, the last one smaller; an empty split is one empty shard."""
    count = max(1, math.ceil(images / size))
    if count > MAX_SHARDS:
        raise InputError(
            f"{split}: {images} images in shards of {size} are {count} files, more than {MAX_SHARDS}: "
            "choose a larger shard size"
        )
    return [
        Shard(split=split, number=n, of=count, start=n * size, rows=min(size, images - n * size)) for n in range(count)
    ]


class Contents(BaseModel):
    """What every file of a data set has in common.

    Attributes:
        map_shapes: axes of the map of each level, level 1 first.
        vocabularies: number of codes of each level.
        fingerprint: of the encoder (:func:`vqstack.codes.fingerprint`).
        source: where the images came from, as JSON.
        labelled: whether there is a column of labels; in splits whose labels are not known it is null.
        class_names: names of the classes that the labels number; empty: not known, as in older data sets.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    map_shapes: list[Annotated[list[PositiveInt], Field(min_length=1, max_length=8)]] = Field(
        min_length=1, max_length=64
    )
    vocabularies: list[Annotated[int, Field(ge=1, le=2**32)]]
    fingerprint: Annotated[str, StringConstraints(max_length=256)]
    source: dict[str, Any]
    labelled: bool
    class_names: list[str] = []

    @model_validator(mode="after")
    def _fits(self) -> "Contents":
        if len(self.map_shapes) != len(self.vocabularies):
            raise ValueError(f"{len(self.map_shapes)} map shapes but {len(self.vocabularies)} vocabularies")
        if any(math.prod(shape) > MAX_SITES for shape in self.map_shapes):
            raise ValueError(f"a map has more than {MAX_SITES} sites")
        return self


class StoredShard(BaseModel):
    """A shard as the manifest lists it."""

    model_config = ConfigDict(frozen=True, strict=True)

    file: str
    rows: Count
    sha256: Digest | None  # none: written before format version 2


class Manifest(Contents):
    """manifest.json; keys that are not known here are ignored."""

    format_version: Literal[2]
    splits: dict[Name, Annotated[list[StoredShard], Field(min_length=1, max_length=MAX_SHARDS)]]

    @model_validator(mode="after")
    def _files(self) -> "Manifest":
        for split in self.splits:
            for shard, stored in zip(self.shards(split), self.splits[split], strict=True):
                # Files are opened by the name that they must have, never by one that the manifest gives them.
                if stored.file != shard.file:
                    raise ValueError(f"splits.{split}: a file {stored.file[:80]!r} where {shard.file} belongs")
        return self

    def shards(self, split: str) -> list[Shard]:
        """The files of a split, in order."""
        found, start, of = [], 0, len(self.splits[split])
        for number, stored in enumerate(self.splits[split]):
            found.append(Shard(split=split, number=number, of=of, start=start, rows=stored.rows))
            start += stored.rows
        return found

    def images(self, split: str) -> int:
        """Number of images of a split."""
        return sum(stored.rows for stored in self.splits[split])


def holds_codes(folder: Path) -> bool:
    """Whether the folder is that of a code data set; whether it can be read, reading it tells."""
    return (folder / MANIFEST).is_file()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a finished code data set; InputError where there is none, or none that can be understood."""
    path = folder / MANIFEST
    if unfinished(folder) is not None:
        raise InputError(f"{folder}: is unfinished; run the command that writes it again")
    try:
        content = read_json(path, LARGEST_MANIFEST)
    except OSError as error:
        raise InputError(
            f"{folder}: no code data set there ({reason(error)}); name a folder that vqstack {ENCODE} wrote"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); encode the data set again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no fields, so it is no manifest; encode the data set again")
    version = content.get("format_version")
    if type(version) is not int or version < 1:  # true and 1.0 are equal to 1, and no versions
        raise InputError(f"{path}: format_version {reprlib.repr(version)} was never written; encode the data set again")
    if version > FORMAT_VERSION:
        raise InputError(
            f"{path}: format version {str(version)[:20]}, and {FORMAT_VERSION} is read here; install a newer vqstack"
        )
    try:
        return Manifest.model_validate(_upgraded(content) if version == 1 else content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "manifest"
        raise InputError(f"{path}: {where[:200]}: {first['msg']}; encode the data set again") from error


def _upgraded(content: dict[str, Any]) -> dict[str, Any]:
    """Format 1 had one file a split, the number of its images in place of the list of files, and no checksums."""
    splits = content.get("splits")
    if not isinstance(splits, dict):
        return content
    files = {
        split: [{"file": f"{split}-00000-of-00001.parquet", "rows": rows, "sha256": None}]
        for split, rows in splits.items()
    }
    return content | {"format_version": FORMAT_VERSION, "labelled": False, "splits": files}


def card(manifest: Manifest) -> str:
    """README.md: the front matter tells ``datasets`` which files are which split."""
    files = [f"  - split: {split}\n    path: data/{split}-*.parquet" for split in manifest.splits]
    levels = enumerate(zip(manifest.map_shapes, manifest.vocabularies, strict=True), 1)
    maps = [f"| codes_{level} | {'×'.join(map(str, shape))} | {size} |" for level, (shape, size) in levels]
    lines = [
        "---",
        "configs:",
        "- config_name: default",
        "  data_files:",
        *files,
        "tags:",
        "- vqstack",
        "---",
        "# Image codes",
        "One row an image: `index` is its position in the source split, `label` its class where there is one, and",
        "`codes_1` and up are its code maps, from the level next to the pixels upwards.",
        "`manifest.json` holds the checksum of every file; `sha256sum -c SHA256SUMS` checks them.",
        "`vqstack.CodeDataset(FOLDER)` reads them, and `datasets.load_dataset(FOLDER)`; a name on the hub does for the",
        "folder. The codes have the licence of their images.",
        "",
        "| column | map | vocabulary |",
        "|---|---|---|",
        *maps,
        "",
        f"Encoder: `{manifest.fingerprint}`. Rows: {_rows(manifest, list(manifest.splits))}.",
        "",
        "Source:",
        "```json",
        quoted(manifest.source),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _rows(manifest: Manifest, splits: Sequence[str]) -> str:
    return ", ".join(f"{manifest.images(split)} {split}" for split in splits)


def quoted(source: dict[str, Any]) -> str:
    """JSON that cannot end the block it stands in, nor be read as markup: names of files are another person's text."""
    text = json.dumps(source, indent=2)
    for character in "`<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
