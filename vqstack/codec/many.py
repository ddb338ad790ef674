"""Archives of many pictures: a compressed index of names, sizes and blocks, then the blocks."""

import json
import zlib
from base64 import b64decode
from collections.abc import Sequence
from io import BufferedIOBase
from itertools import groupby
from math import prod
from pathlib import Path
from struct import Struct
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from vqstack.codec.blocks import Block
from vqstack.codec.layout import (
    ARCHIVE,
    BLOCK,
    MAGIC,
    START,
    VERSION,
    Broken,
    Container,
    Environment,
    Place,
    body,
    check_name,
    check_shape,
)
from vqstack.codec.names import Entries, counted_up, shorten, twice
from vqstack.codec.pictures import Entry, Mode, NumberFile
from vqstack.errors import InputError
from vqstack.images.volumes import Container as NumberContainer

_INDEX = Struct("<II")  # bytes of the compressed header, and their CRC-32
_Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_Count = Annotated[int, Field(ge=1, le=2**32)]


def max_header(size: int) -> int:
    """Bytes that the header of an archive of this size may inflate to, so that a small file asks for little memory."""
    return 2**22 + 16 * size


def max_elements(size: int) -> int:
    """Names, numbers and lists that this header may hold. Whole files hold fewer: some ten a block, four a picture."""
    return 2**19 + 2 * size


def max_pictures(size: int) -> int:
    """Pictures that an archive of this size may list. Whole ones list fewer: a block of 256 takes more than 4 bytes."""
    return 2**16 + 64 * size


class _File(BaseModel):
    """What brings the file of a volume back: see :class:`vqstack.codec.pictures.NumberFile`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    sites: list[_Count] = Field(min_length=1, max_length=3)
    ending: Literal[".npy", ".tif", ".tiff", ".nii", ".nii.gz"]
    dtype: Annotated[str, StringConstraints(pattern=r"^[<>|][biuf][1248]$")]
    channels: Annotated[int, Field(ge=0, le=3)] | None
    order: Literal["C", "F"]
    head: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]*=*$")]

    def file(self) -> NumberFile:
        about = self.model_dump(exclude={"sites", "head"})
        return NumberFile(tuple(self.sites), NumberContainer(**about, head=b64decode(self.head, validate=True)))


class _Header(BaseModel):
    """The JSON of an archive's header; consecutive names and equal shapes are written once with their number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model: _Hash
    probe: _Hash
    torch: Annotated[str, StringConstraints(max_length=64)]
    constriction: Annotated[str, StringConstraints(max_length=64)]
    threads: int = Field(ge=1, le=255)
    batch: int = Field(ge=1, le=BLOCK)
    portable: bool = False
    names: list[tuple[str, _Count]]
    shapes: list[tuple[_Count, _Count, Mode, _Count]]
    blocks: list[tuple[_Count, bool, list[Annotated[int, Field(ge=0, le=2**40)]]]]
    files: list[tuple[_File, _Count]] = []
    middle: bool = False


def pack_archive(entries: Sequence[Entry], blocks: list[tuple[int, Block]], model: str, where: Environment) -> bytes:
    """The file of many pictures; ``blocks`` come with how many pictures each holds."""
    shapes = list[Any]()
    for entry in entries:
        shape = [entry.height, entry.width, entry.mode]
        if shapes and shapes[-1][:3] == shape:
            shapes[-1][3] += 1
        else:
            shapes.append([*shape, 1])
    files = [(file.to_json(), len(list(run))) for file, run in groupby(e.file for e in entries) if file]
    header = {
        "model": model,
        "probe": where.probe,
        "torch": where.torch,
        "constriction": where.constriction,
        "threads": where.threads,
        "batch": where.batch,
        **({"portable": True} if where.portable else {}),
        "names": shorten([entry.stem for entry in entries]),
        "shapes": shapes,
        "blocks": [(count, block.raw, [len(section) for section in block.sections]) for count, block in blocks],
        **({"files": files} if files else {}),
        **({"middle": True} if files and len(files[0][0]["sites"]) == 1 else {}),
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    packed = zlib.compress(text, 9)
    start = START.pack(MAGIC, VERSION, ARCHIVE) + _INDEX.pack(len(packed), zlib.crc32(packed))
    content = start + packed + body(block for _, block in blocks)
    if len(text) > max_header(len(content)) or _elements(text) > max_elements(len(content)):
        raise InputError("the names and sizes of so many pictures are too long for one archive: write several")
    return content


def _elements(text: bytes) -> int:
    """No fewer than the strings, numbers and lists in JSON."""
    return text.count(b",") + text.count(b"[")


def open_archive(path: Path, file: BufferedIOBase, size: int, tile: tuple[int, ...]) -> Container:
    """An archive of ``size`` bytes whose index has been read and checked."""
    header, offset = _read_header(file, size)
    _check_header(header, size)
    files = [(found.file(), number) for found, number in header.files]
    _check_files(header, [file for file, _ in files], tile)
    places, first = list[Place](), 0
    for number, (count, raw, lengths) in enumerate(header.blocks):
        places.append(Place(first, count, raw, lengths, offset, None, number))
        first, offset = first + count, places[-1].end
    where = Environment(header.torch, header.constriction, header.threads, header.batch, header.probe, header.portable)
    entries = Entries(header.names, header.shapes, files)
    return Container(path, header.model, where, entries, places, size, header.names, middle=header.middle)


def _read_header(file: BufferedIOBase, size: int) -> tuple[_Header, int]:
    """The header, and where the first block begins; no objects are made of a longer one than a whole file has."""
    file.seek(START.size)
    length, check = _INDEX.unpack(file.read(_INDEX.size))
    start = START.size + _INDEX.size
    if length > size - start:
        raise Broken("it ends inside its header")
    packed = file.read(length)
    if zlib.crc32(packed) != check:
        raise Broken("its header is damaged")
    inflate = zlib.decompressobj()
    text = inflate.decompress(packed, max_header(size) + 1)
    if not inflate.eof or inflate.unused_data or len(text) > max_header(size) or _elements(text) > max_elements(size):
        raise Broken("its header is damaged, or longer than that of a file of its size")
    return _Header.model_validate_json(text), start + length


def _check_header(header: _Header, size: int) -> None:
    """Names, sizes and blocks are of the same pictures, which a file of this size can hold and no two share a name."""
    count = sum(n for n, *_ in header.blocks)
    same = count == sum(n for *_, n in header.shapes) == sum(n for _, n in header.names)
    if not same or any(n > BLOCK for n, *_ in header.blocks):
        raise Broken("its header contradicts itself")
    if count > max_pictures(size):
        raise Broken("it lists more pictures than a file of its size can hold")
    for height, width, *_ in header.shapes:
        check_shape(height, width)
    for stem, number in header.names:  # the names between the first and the last are as long
        check_name(stem)
        if number > 1 and counted_up(stem, number - 1) is None:
            raise Broken("its header contradicts itself")
    if twice(header.names) is not None:
        raise Broken("two pictures have one name")


def _check_files(header: _Header, files: list[NumberFile], tile: tuple[int, ...]) -> None:
    """Volumes, and nothing else, have files, whose sites are as many as the header says, along the model's axes."""
    several = {mode for *_, mode, _ in header.shapes}
    if bool(files) != ("NUM" in several) or (files and len(several) > 1) or (not files and len(tile) != 2):
        raise Broken("its header contradicts itself")
    if files and sum(n for _, n in header.files) != sum(n for *_, n in header.shapes):  # before they are listed
        raise Broken("its header contradicts itself")
    sites = (prod(file.sites) for file, (_, n) in zip(files, header.files, strict=True) for _ in range(n))
    columns = (width for _, width, _, n in header.shapes for _ in range(n))
    if files and list(sites) != list(columns):
        raise Broken("its header contradicts itself")
    if any(len(file.sites) != len(tile) for file in files):
        raise Broken("its volumes have other axes than the model")
    several_channels = any(height > 1 for height, *_ in header.shapes)
    for kept in (file.container for file in files):
        paged = kept.ending.startswith(".tif")
        lost = several_channels if kept.channels is None else kept.channels > len(tile)
        if lost or (paged and kept.dtype[1:] not in ("u1", "u2")):
            raise Broken("its volumes fit no file of their kind")
        if paged:
            kept.head.decode()  # a text; see open_container for what is none
