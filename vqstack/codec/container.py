"""Files of the codec: one picture with a header of about twenty bytes, or an archive of many with an index.

docs/codec.md has the layout byte by byte. Whatever a file says is checked against its size before it is believed.
"""

import binascii
import json
import platform
import re
import struct
import zlib
from base64 import b64decode, b64encode
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from io import BufferedIOBase, BytesIO
from itertools import accumulate, groupby, pairwise
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, overload

import torch
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from vqstack.codec.blocks import Block, batch_of
from vqstack.codec.pictures import MAX_PIXELS, Entry, Mode, NumberFile, safe_stem, tile_count
from vqstack.errors import InputError
from vqstack.images.volumes import Container as NumberContainer
from vqstack.reading import opened, plain_file

MAGIC, VERSION, SUFFIX = b"vqs", 1, ".vqs"
BLOCK = 256
"""Images of the model's size in a block of an archive; a larger picture is a block of its own."""
ARCHIVE, RAW, RGB = 1, 2, 4
SECTIONS = 3  # the bits from this one on count the sections of a single file
MAX_SECTIONS = 2 ** (8 - SECTIONS) - 1
CHECK = 4  # bytes
_START = struct.Struct("<3sBB")
_SINGLE = struct.Struct("<4s4s3BB")  # model, probe, torch's version, threads
_ARCHIVE = struct.Struct("<II")  # bytes of the compressed header, and their CRC-32
_CHECK = struct.Struct("<I")
_HEADER_CHECK = struct.Struct("<H")  # CRC-16 of a single file's header, which finds every burst of up to 16 bits


def max_header(size: int) -> int:
    """Bytes that the header of an archive of this size may inflate to, so that a small file asks for little memory."""
    return 2**22 + 16 * size


def max_elements(size: int) -> int:
    """Names, numbers and lists that this header may hold. Whole files hold fewer: some ten a block, four a picture."""
    return 2**19 + 2 * size


def max_pictures(size: int) -> int:
    """Pictures that an archive of this size may list. Whole ones list fewer: a block of 256 takes more than 4 bytes."""
    return 2**16 + 64 * size


@dataclass(frozen=True)
class Environment:
    """What the coder's probabilities depend on besides the model's weights.

    Attributes:
        torch, constriction: versions of the libraries, torch's with the processor's kind; of a single file 3 numbers.
        threads: of torch.
        batch: shape of the networks' batches.
        probe: the hash of :meth:`vqstack.codec.blocks.BlockCodec.probe`, or its first digits.
        portable: whether they depend on the model's weights alone (see ``portable.py``).
    """

    torch: str
    constriction: str
    threads: int
    batch: int
    probe: str
    portable: bool = False


def environment(threads: int, batch: int, probe: str, portable: bool = False) -> Environment:
    """That of this process; torch's version is followed by the instructions that it uses of the processor."""
    kind = f"{version('torch')} ({torch.backends.cpu.get_cpu_capability()}, {platform.machine()})"
    return Environment(kind[:64], version("constriction"), threads, batch, probe, portable)


@dataclass(frozen=True)
class Place:
    """Where a block lies: its pictures ``first … first + count - 1``, its bytes from ``offset`` on."""

    first: int
    count: int
    raw: bool
    lengths: Sequence[int]
    offset: int
    seed: int | None  # of the chain of checks; none: it follows from the block's number and pictures
    number: int = 0


@dataclass(frozen=True)
class Container:
    """A file whose header has been read and believed. ``model`` is the fingerprint, or its first digits."""

    path: Path
    model: str
    environment: Environment
    entries: Sequence[Entry]
    places: list[Place]
    size: int
    names: Sequence[tuple[str, int]]  # a name, and how many there are that count up from it
    content: bytes | None = None  # of a file that is not written yet

    def read(self, place: Place, sections: int) -> list[tuple[bytes, int]]:
        """The first ``sections`` sections of a block and their checks, as many as are there whole."""
        found, at = [], place.offset
        with opened(self.path) if self.content is None else BytesIO(self.content) as file:
            for length in place.lengths[:sections]:
                if at + length + CHECK > self.size:  # before memory is asked for
                    break
                file.seek(at)
                content, check = file.read(length), file.read(CHECK)
                found.append((content, _CHECK.unpack(check)[0]))
                at += length + CHECK
        return found

    def seed(self, place: Place) -> int:
        """What starts the chain of checks of a block."""
        entries = self.entries[place.first : place.first + place.count]
        return block_seed(place.number, entries) if place.seed is None else place.seed

    def open(self) -> BufferedIOBase:
        """The bytes of the file."""
        return self.path.open("rb") if self.content is None else BytesIO(self.content)

    def present(self, place: Place) -> int:
        """Bytes of a block that are really there, whatever its lengths claim."""
        return max(0, min(sum(place.lengths) + CHECK * len(place.lengths), self.size - place.offset))


def blocks_of(entries: Sequence[Entry], tile: tuple[int, ...]) -> list[range]:
    """Which pictures make a block of an archive: in order, up to BLOCK tiles, at least one picture."""
    found, first, tiles = list[range](), 0, 0
    for i, entry in enumerate(entries):
        more = tile_count(entry, tile)
        if i > first and tiles + more > BLOCK:
            found.append(range(first, i))
            first, tiles = i, 0
        tiles += more
    return [*found, range(first, len(entries))]


# --- one picture ------------------------------------------------------------------------------------------------------


def single_header(entry: Entry, raw: bool, sections: int, model: str, where: Environment) -> bytes:
    """The header but for the lengths, which follow it; its CRC-32 starts the chain of checks."""
    if sections > MAX_SECTIONS:
        raise InputError(
            f"--single: the model has more than {MAX_SECTIONS - 1} levels, too many for the header of a single file: "
            "write an archive"
        )
    flags = RAW * raw | RGB * (entry.mode == "RGB") | sections << SECTIONS
    numbers = [min(int(n), 255) for n in re.findall(r"\d+", where.torch)[:3]]
    start = _START.pack(MAGIC, VERSION, flags)
    about = _SINGLE.pack(
        bytes.fromhex(model)[:4], bytes.fromhex(where.probe)[:4], *numbers, 0 if where.portable else where.threads
    )
    return start + about + _varint(entry.height) + _varint(entry.width)


def pack_single(header: bytes, block: Block) -> bytes:
    """The file of one picture."""
    header += b"".join(_varint(len(section)) for section in block.sections)
    return header + _HEADER_CHECK.pack(binascii.crc_hqx(header, 0)) + _body([block])


def _open_single(path: Path, flags: int, content: bytes, size: int, tile: tuple[int, ...]) -> Container:
    model, probe, *numbers, threads = _SINGLE.unpack_from(content, _START.size)
    at = _START.size + _SINGLE.size
    height, at = _read_varint(content, at)
    width, at = _read_varint(content, at)
    seed = zlib.crc32(content[:at])
    lengths = list[int]()
    for _ in range(flags >> SECTIONS):
        length, at = _read_varint(content, at)
        lengths.append(length)
    if _HEADER_CHECK.unpack_from(content, at)[0] != binascii.crc_hqx(content[:at], 0):
        raise _Broken("its header is damaged")
    at += _HEADER_CHECK.size
    mode: Mode = "RGB" if flags & RGB else "L"
    entry = Entry(path.stem, height, width, mode)
    place = Place(0, 1, bool(flags & RAW), lengths, at, seed)
    if len(tile) != 2:
        raise _Broken("it holds an image, and the model knows none")
    _check_shape(height, width)
    _check_name(entry.stem)
    batch = batch_of(tile_count(entry, tile))
    where = Environment(".".join(map(str, numbers)), "", threads or 1, batch, probe.hex(), not threads)
    return Container(path, model.hex(), where, [entry], [place], size, [(path.stem, 1)])


# --- many pictures ----------------------------------------------------------------------------------------------------

_Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_Count = Annotated[int, Field(ge=1, le=2**32)]


class _File(BaseModel):
    """What brings the file of a volume back: see :class:`vqstack.codec.pictures.NumberFile`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    sites: list[_Count] = Field(min_length=1, max_length=3)
    ending: Literal[".npy", ".tif", ".tiff", ".nii", ".nii.gz"]
    dtype: Annotated[str, StringConstraints(pattern=r"^[<>|][biuf][1248]$")]
    channels: Annotated[int, Field(ge=0, le=3)] | None
    order: Literal["C", "F"]
    head: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]*=*$")]

    @classmethod
    def of(cls, file: NumberFile) -> "_File":
        head = b64encode(file.container.head).decode()
        return cls(sites=list(file.sites), **{**vars(file.container), "head": head})

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


def block_seed(number: int, entries: Sequence[Entry]) -> int:
    """What starts the chain of checks of a block of an archive: its number and the pictures that it holds.

    So blocks cannot take each other's place, and pictures cannot get the names or sizes of others.
    """
    known = [[e.stem, e.height, e.width, e.mode, *([_File.of(e.file).model_dump()] if e.file else [])] for e in entries]
    return zlib.crc32(json.dumps([number, known]).encode())


def pack_archive(entries: Sequence[Entry], parts: list[tuple[int, Block]], model: str, where: Environment) -> bytes:
    """The file of many pictures; ``parts`` are the blocks and how many pictures each holds."""
    shapes = list[Any]()
    for entry in entries:
        shape = [entry.height, entry.width, entry.mode]
        if shapes and shapes[-1][:3] == shape:
            shapes[-1][3] += 1
        else:
            shapes.append([*shape, 1])
    files = [(_File.of(file).model_dump(), len(list(run))) for file, run in groupby(e.file for e in entries) if file]
    header = {
        "model": model,
        "probe": where.probe,
        "torch": where.torch,
        "constriction": where.constriction,
        "threads": where.threads,
        "batch": where.batch,
        **({"portable": True} if where.portable else {}),
        "names": _shorten([entry.stem for entry in entries]),
        "shapes": shapes,
        "blocks": [(count, block.raw, [len(section) for section in block.sections]) for count, block in parts],
        **({"files": files} if files else {}),
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    packed = zlib.compress(text, 9)
    start = _START.pack(MAGIC, VERSION, ARCHIVE) + _ARCHIVE.pack(len(packed), zlib.crc32(packed))
    content = start + packed + _body(block for _, block in parts)
    if len(text) > max_header(len(content)) or _elements(text) > max_elements(len(content)):
        raise InputError("the names and sizes of so many pictures are too long for one archive: write several")
    return content


def _elements(text: bytes) -> int:
    """No fewer than the strings, numbers and lists in JSON."""
    return text.count(b",") + text.count(b"[")


class _Entries(Sequence[Entry]):
    """Pictures that are made when they are asked for, from runs of names and of shapes."""

    def __init__(
        self,
        names: list[tuple[str, int]],
        shapes: list[tuple[int, int, Mode, int]],
        files: Sequence[tuple[NumberFile, int]] = (),
    ) -> None:
        self._names, self._shapes, self._files = names, shapes, files
        self._ends = [list(accumulate(run[-1] for run in runs)) for runs in (names, shapes, files)]

    def __len__(self) -> int:
        return self._ends[0][-1] if self._names else 0

    @overload
    def __getitem__(self, number: int) -> Entry: ...
    @overload
    def __getitem__(self, number: slice) -> list[Entry]: ...
    def __getitem__(self, number: int | slice) -> Entry | list[Entry]:
        if isinstance(number, slice):
            return [self[i] for i in range(len(self))[number]]
        number = range(len(self))[number]
        name, shape, file = (bisect_right(ends, number) for ends in self._ends)
        height, width, mode, _ = self._shapes[shape]
        stem, count = self._names[name]
        ahead = number - self._ends[0][name] + count
        kept = self._files[file][0] if self._files else None
        return Entry((_next(stem, ahead) if ahead else stem) or "", height, width, mode, kept)


def twice(names: Iterable[tuple[str, int]]) -> str | None:
    """A name that several of the runs hold, found without listing them."""
    spans = list[tuple[str, int, int, int]]()
    for stem, count in names:
        match = _NUMBERED.fullmatch(stem)
        if match is None and count > 1:
            return stem
        begin = int(match[2]) if match else 0
        spans.append((match[1], len(match[2]), begin, begin + count) if match else (stem, 0, 0, 1))
    spans.sort()
    for one, other in pairwise(spans):
        if one[:2] == other[:2] and other[2] < one[3]:
            return other[0] + (str(other[2]).zfill(other[1]) if other[1] else "")
    return None


def _open_archive(path: Path, file: BufferedIOBase, beginning: bytes, size: int, tile: tuple[int, ...]) -> Container:
    length, check = _ARCHIVE.unpack_from(beginning, _START.size)
    start = _START.size + _ARCHIVE.size
    if length > size - start:
        raise _Broken("it ends inside its header")
    file.seek(start)
    packed = file.read(length)
    inflate = zlib.decompressobj()
    if zlib.crc32(packed) != check:
        raise _Broken("its header is damaged")
    text = inflate.decompress(packed, max_header(size) + 1)
    if not inflate.eof or inflate.unused_data or len(text) > max_header(size) or _elements(text) > max_elements(size):
        raise _Broken("its header is damaged, or longer than that of a file of its size")
    header = _Header.model_validate_json(text)
    count = sum(n for n, *_ in header.blocks)
    same = count == sum(n for *_, n in header.shapes) == sum(n for _, n in header.names)
    if not same or any(n > BLOCK for n, *_ in header.blocks):
        raise _Broken("its header contradicts itself")
    if count > max_pictures(size):
        raise _Broken("it lists more pictures than a file of its size can hold")
    for height, width, *_ in header.shapes:
        _check_shape(height, width)
    for stem, number in header.names:  # the names between the first and the last are as long
        _check_name(stem)
        if number > 1 and _next(stem, number - 1) is None:
            raise _Broken("its header contradicts itself")
    if twice(header.names) is not None:
        raise _Broken("two pictures have one name")
    files = [(found.file(), number) for found, number in header.files]
    _check_files(header, [file for file, _ in files], tile)
    entries = _Entries(header.names, header.shapes, files)
    places, first, offset = list[Place](), 0, start + length
    for number, (count, raw, lengths) in enumerate(header.blocks):
        places.append(Place(first, count, raw, lengths, offset, None, number))
        first, offset = first + count, offset + sum(lengths) + CHECK * len(lengths)
    where = Environment(header.torch, header.constriction, header.threads, header.batch, header.probe, header.portable)
    return Container(path, header.model, where, entries, places, size, header.names)


_NUMBERED = re.compile(r"(.*?)([0-9]{1,18})", re.DOTALL)


def _shorten(stems: list[str]) -> list[tuple[str, int]]:
    """Names as runs: a name, and how many there are whose last digits count up from it at the same width."""
    runs = list[tuple[str, int]]()
    for stem in stems:
        if runs and (following := _next(runs[-1][0], runs[-1][1])) == stem and following != runs[-1][0]:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((stem, 1))
    return runs


def _next(stem: str, ahead: int) -> str | None:
    """The name ``ahead`` places after a name that ends in ASCII digits."""
    match = _NUMBERED.fullmatch(stem)
    if match is None:
        return None
    number = str(int(match[2]) + ahead).zfill(len(match[2]))
    return match[1] + number if len(number) == len(match[2]) else None


# --- both -------------------------------------------------------------------------------------------------------------


class _Broken(Exception):
    """Why a file is refused."""


def open_container(path: Path, tile: tuple[int, ...], content: bytes | None = None) -> Container:
    """Reads a file's header. A file that no encoder has written is an InputError, one that is cut short is not.

    Args:
        path: the file.
        tile: rows and columns of the model's images, or sites along each axis.
        content: what will be written there, of a file that is not yet.
    """
    try:
        size = plain_file(path).stat().st_size if content is None else len(content)
        with path.open("rb") if content is None else BytesIO(content) as file:
            start = file.read(4096)
            magic, written, flags = _START.unpack_from(start)
            if magic != MAGIC:
                raise _Broken("it does not start as one")
            if written != VERSION:
                raise _Broken(f"it has format version {written}, this program reads {VERSION}")
            if flags & ARCHIVE and flags != ARCHIVE:
                raise _Broken("its flags are unknown")
            opened = (
                _open_archive(path, file, start, size, tile)
                if flags & ARCHIVE
                else _open_single(path, flags, start, size, tile)
            )
        opened = replace(opened, content=content)
        end = max((p.offset + sum(p.lengths) + CHECK * len(p.lengths) for p in opened.places), default=0)
        if not opened.places or not all(place.lengths for place in opened.places):
            raise _Broken("it holds no pictures")
        if size > end:
            raise _Broken(f"there are {size - end} bytes after its end")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): name a file of vqstack compress") from error
    except (_Broken, struct.error, zlib.error, ValidationError, IndexError) as error:
        reason = str(error) if isinstance(error, _Broken) else "its header is damaged"
        raise InputError(f"{path}: is not a whole file of vqstack compress ({reason}): compress it again") from error
    return opened


def _check_shape(height: int, width: int) -> None:
    if not 0 < height * width <= MAX_PIXELS:
        raise _Broken(f"a picture of {height} times {width} pixels")


def _check_files(header: _Header, files: list[NumberFile], tile: tuple[int, ...]) -> None:
    """Volumes, and nothing else, have files, whose sites are as many as the header says, along the model's axes."""
    several = {mode for *_, mode, _ in header.shapes}
    if bool(files) != ("NUM" in several) or (files and len(several) > 1) or (not files and len(tile) != 2):
        raise _Broken("its header contradicts itself")
    if files and sum(n for _, n in header.files) != sum(n for *_, n in header.shapes):  # before they are listed
        raise _Broken("its header contradicts itself")
    sites = (prod(file.sites) for file, (_, n) in zip(files, header.files, strict=True) for _ in range(n))
    columns = (width for _, width, _, n in header.shapes for _ in range(n))
    if files and list(sites) != list(columns):
        raise _Broken("its header contradicts itself")
    if any(len(file.sites) != len(tile) for file in files):
        raise _Broken("its volumes have other axes than the model")
    several_channels = any(height > 1 for height, *_ in header.shapes)
    for kept in (file.container for file in files):
        paged = kept.ending.startswith(".tif")
        lost = several_channels if kept.channels is None else kept.channels > len(tile)
        if lost or (paged and (kept.dtype[1:] not in ("u1", "u2") or not _is_text(kept.head))):
            raise _Broken("its volumes fit no file of their kind")


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _check_name(stem: str) -> None:
    if not safe_stem(stem):
        raise _Broken("a picture has a name that is no file name")


def _body(blocks: Iterable[Block]) -> bytes:
    return b"".join(
        section + _CHECK.pack(check)
        for block in blocks
        for section, check in zip(block.sections, block.checks, strict=True)
    )


def _varint(number: int) -> bytes:
    """Seven bits a byte, lowest first; the highest bit says that more follow."""
    found = bytearray()
    while number >= 128:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def _read_varint(content: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = content[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number, at
        if shift > 35:
            raise _Broken("its header is damaged")
