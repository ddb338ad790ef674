"""What both forms of a file have in common: where blocks lie, what coded them, and checks of what a file says."""

import json
import platform
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from struct import Struct

import torch

from vqstack.codec.blocks import Block
from vqstack.codec.pictures import MAX_PIXELS, Entry, safe_stem, tile_count
from vqstack.reading import opened

MAGIC, VERSION, SUFFIX = b"vqs", 1, ".vqs"
START = Struct("<3sBB")  # magic, version, flags
ARCHIVE, RAW, RGB = 1, 2, 4  # flags
BLOCK = 256
"""Images of the model's size in a block of an archive; a larger picture is a block of its own."""
_CHECK = Struct("<I")  # CRC-32, which follows each section


class Broken(Exception):
    """Why a file is refused."""


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

    @property
    def end(self) -> int:
        """Where the next block begins."""
        return self.offset + sum(self.lengths) + _CHECK.size * len(self.lengths)


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
    middle: bool = False  # what lies beyond the end of series: see vqstack.codec.pictures.rest

    def read(self, place: Place, sections: int) -> list[tuple[bytes, int]]:
        """The first ``sections`` sections of a block and their checks, as many as are there whole."""
        found, at = [], place.offset
        with opened(self.path) if self.content is None else BytesIO(self.content) as file:
            for length in place.lengths[:sections]:
                if at + length + _CHECK.size > self.size:  # before memory is asked for
                    break
                file.seek(at)
                content, check = file.read(length), file.read(_CHECK.size)
                found.append((content, _CHECK.unpack(check)[0]))
                at += length + _CHECK.size
        return found

    def seed(self, place: Place) -> int:
        """What starts the chain of checks of a block."""
        entries = self.entries[place.first : place.first + place.count]
        return block_seed(place.number, entries) if place.seed is None else place.seed

    def present(self, place: Place) -> int:
        """Bytes of a block that are really there, whatever its lengths claim."""
        return max(0, min(place.end, self.size) - place.offset)


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


def block_seed(number: int, entries: Sequence[Entry]) -> int:
    """What starts the chain of checks of a block of an archive: its number and the pictures that it holds.

    So blocks cannot take each other's place, and pictures cannot get the names or sizes of others.
    """
    known = [[e.stem, e.height, e.width, e.mode, *([e.file.to_json()] if e.file else [])] for e in entries]
    return zlib.crc32(json.dumps([number, known]).encode())


def body(blocks: Iterable[Block]) -> bytes:
    """The sections of blocks, a check behind each."""
    return b"".join(
        section + _CHECK.pack(check)
        for block in blocks
        for section, check in zip(block.sections, block.checks, strict=True)
    )


def check_shape(height: int, width: int) -> None:
    """Broken where no picture has this size."""
    if not 0 < height * width <= MAX_PIXELS:
        raise Broken(f"a picture of {height} times {width} pixels")


def check_name(stem: str) -> None:
    """Broken where this can be no picture's file name."""
    if not safe_stem(stem):
        raise Broken("a picture has a name that is no file name")
