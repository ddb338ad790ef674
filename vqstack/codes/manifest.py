"""What a code data set says about itself: ``manifest.json``, and the card that is written from it."""

import json
import math
import reprlib
from collections.abc import Mapping
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
OF_A_SPLIT = ("origin", "held_out", "left_out", "skipped")  # what a source says of each split
NAMED = 20  # classes that a card names
INSTALL = "vqstack is on no package index: `pip install` a checkout of its repository, or a wheel that was made there."
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
        model: name of the model that encoded: its folder's, or OWNER/NAME; empty in older data sets.
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
    model: Annotated[str, StringConstraints(max_length=256)] = ""

    @model_validator(mode="after")
    def _fits(self) -> "Contents":
        if len(self.map_shapes) != len(self.vocabularies):
            raise ValueError(f"{len(self.map_shapes)} map shapes but {len(self.vocabularies)} vocabularies")
        if any(math.prod(shape) > MAX_SITES for shape in self.map_shapes):
            raise ValueError(f"a map has more than {MAX_SITES} sites")
        return self

    def held(self) -> dict[str, Any]:
        """All that the codes hang on; what their model is called, whose folder may be moved, they do not."""
        return self.model_dump(include={*Contents.model_fields} - {"model"})


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
    maps = [f"| `codes_{level}` | {'×'.join(map(str, shape))} | 0 … {size - 1} |" for level, (shape, size) in levels]
    split, top = next(iter(manifest.splits)), len(manifest.map_shapes)
    model = _plain(manifest.model) if "/" in manifest.model else "MODEL"  # of the hub; of others the folder is unknown
    named = f"MODEL is the folder of {span(manifest.model or 'the model')}, or OWNER/NAME of it. " * (model == "MODEL")
    lines = [
        "---",
        "configs:",
        "- config_name: default",
        "  data_files:",
        *files,
        "tags:",
        "- vqstack",
        "---",
        f"# Codes of images, by {span(manifest.model) if manifest.model else 'a vqstack model'}",
        "",
        "Each row is an image. Its maps of codes stand in the place of its pixels; level 1 is the one next to them.",
        "`index` is the place of the image in its source, `label` its class where there is one.",
        "",
        "| column | map | codes |",
        "|---|---|---|",
        *maps,
        "",
        "## How to read and decode them",
        "",
        "```python",
        "import vqstack",
        "",
        f'codes = vqstack.CodeDataset("FOLDER").read("{split}").codes  # [z_1, …, z_L], each int64 [n, *map]',
        f'model = vqstack.load("{model}")',
        "images = model.decode(codes[0][:16])  # level 1: uint8 [16, c, h, w]",
        f"coarse = model.decode(codes[-1][:16], level={top})  # of the highest level alone",
        "```",
        "",
        f"FOLDER is this folder, or OWNER/NAME of this data set on the hub. {named}`datasets.load_dataset(FOLDER)`",
        f"reads the rows, and `vqstack generate {model} --codes FOLDER --out images` writes the images as files.",
        INSTALL,
        "",
        "Only the model that made the codes can decode them. Fingerprint of its encoder, which `vqstack generate`",
        f"compares: `{manifest.fingerprint}`. `sha256sum -c SHA256SUMS` checks all files.",
        "",
        "## Images that were encoded",
        "",
        *told(manifest.source, {split: manifest.images(split) for split in manifest.splits}),
        "",
        "The codes have the licence of their images.",
    ]
    return "\n".join(lines) + "\n"


def source_of(sources: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Where images came from: what holds for all splits, and what each of them has of its own."""
    first = next(iter(sources.values()))
    common = {name: value for name, value in first.items() if name not in OF_A_SPLIT}
    own = {name: {key: source[key] for key in OF_A_SPLIT} for name, source in sources.items()}
    return common | {"splits": own}


def told(source: Mapping[str, Any], counts: Mapping[str, int]) -> list[str]:
    """Where images came from, as the lines of a list for a card; ``source`` as in a manifest, images of each split."""
    known, lines = dict(source), []
    own, names, seed = known.pop("splits", {}), known.pop("class_names", None) or [], known.pop("seed", None)
    for name in {"source", *(name for of in own.values() for name in of)}:  # what each split says for itself
        known.pop(name, None)
    for split, count in counts.items():
        of = own.get(split, {})
        line = f"- {split}: {count:,} image{'s' * (count != 1)}"
        line += f" of {span(of['origin'])}" if "origin" in of else ""
        line += f", held out of its train split with seed {seed}" if of.get("held_out") else ""
        missing = {"cannot be read": of.get("skipped", {"count": 0}), **of.get("left_out", {})}
        left = (f"; {what['count']} left out ({span(why)})" for why, what in missing.items() if what["count"])
        lines.append(line + "".join(left))
    if shape := known.pop("shape", None):
        channels, values = shape[0], known.pop("values", None)
        inputs = f"- Inputs: {'×'.join(map(str, shape[1:]))}, {channels} channel{'s' * (channels != 1)}"
        lines.append(inputs + (f" of {values:,} values" if values else ""))
    if classes := known.pop("num_classes", 0):
        shown = ", ".join(map(span, names[:NAMED])) + " …" * (len(names) > NAMED)
        lines.append(f"- Classes: {classes:,}" + f" ({shown})" * bool(names))
    if known.pop("padded", False):
        lines.append("- What lies beyond the end of an input is padding")
    return [*lines, *(f"- {span(name)}: {span(json.dumps(value))}" for name, value in known.items())]


def span(text: Any) -> str:
    """Another person's text, such as names of files, in a line of Markdown: code, in which nothing is markup."""
    return f"`{_plain(text)}`"


def _plain(text: Any) -> str:
    """In one line, of visible signs, and without what would end a span of code."""
    return "".join(c if c.isprintable() else " " for c in str(text)).replace("`", "'").strip() or " "
