"""Compressing pictures to files and getting them back, whole or as far as the levels that were read."""

import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Integer
from torch import Tensor

from vqstack.codec.blocks import BATCH, Block, BlockCodec, Padding, Section, batch_of, plausible, worthwhile
from vqstack.codec.container import open_container
from vqstack.codec.layout import BLOCK, SUFFIX, Container, Place, block_seed, blocks_of, environment
from vqstack.codec.many import pack_archive
from vqstack.codec.pictures import Entry, Pictures, from_tiles, padding, rest, tile_count, to_tiles
from vqstack.codec.single import pack_single, single_header
from vqstack.errors import InputError, WriteError
from vqstack.images import save_volume, saver
from vqstack.ledger import BITS, Ledger
from vqstack.model import HierarchicalModel
from vqstack.model_settings import SamplingSettings
from vqstack.shapes import Floats, Pixels
from vqstack.terminal import Progress


@dataclass
class Report:
    """What compressing came to.

    Attributes:
        pictures, numbers: how many; numbers are channels of pixels.
        whole: bytes of the numbers without compression.
        bits: information that was coded, by row of the ledger.
        ledger: what the ledger says of the same images and labels (tiles of the model's size, padding included).
        size: bytes of all files.
        raw: blocks for which the model was given up.
        files: how many were written.
        seconds: wall time, reading of images and self-check included.
    """

    pictures: int = 0
    numbers: int = 0
    whole: int = 0
    bits: dict[str, float] = field(default_factory=dict)
    ledger: Ledger | None = None
    size: int = 0
    raw: int = 0
    files: int = 0
    seconds: float = 0.0

    def add(self, block: Block) -> None:
        """Count a block."""
        self.raw += block.raw
        self.ledger = block.ledger if self.ledger is None else self.ledger.merge(block.ledger)
        for row, bits in block.bits.items():
            self.bits[row] = self.bits.get(row, 0.0) + bits

    def to_json(self) -> dict:
        """Totals; bits of each row as coded and as the ledger has them."""
        assert self.ledger is not None
        ledger = {name: row.nats * BITS for name, row in self.ledger.rows.items()}
        return {
            "pictures": self.pictures,
            "numbers": self.numbers,
            "files": self.files,
            "raw_blocks": self.raw,
            "seconds": self.seconds,
            "bytes": self.size,
            "ledger_bytes": sum(ledger.values()) / 8,
            "over_ledger": self.size * 8 / sum(ledger.values()) - 1,
            "bits_per_dim": self.size * 8 / self.numbers,
            "rows": {name: {"ledger_bits": bits, "coded_bits": self.bits.get(name)} for name, bits in ledger.items()},
        }

    def __str__(self) -> str:
        """A table against the ledger, in bytes, and the speed."""
        found = self.to_json()
        lines = [("row", "ledger bytes", "coded bytes", "difference")]

        def line(name: str, ledger: float, coded: float) -> None:
            lines.append((name, f"{ledger:.1f}", f"{coded:.1f}", f"{100 * (coded / ledger - 1):+.3f} %"))

        if not self.raw:
            for name, row in found["rows"].items():
                line(name, row["ledger_bits"] / 8, row["coded_bits"] / 8)
        lines.append(("headers, tails, checks", "", f"{self.size - sum(self.bits.values()) / 8:.1f}", ""))
        line("all", found["ledger_bytes"], float(self.size))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        rows = ["  ".join([c[0].ljust(widths[0]), *map(str.rjust, c[1:], widths[1:])]) for c in lines]
        speed = f"{self.pictures / self.seconds:.1f} images/s, {self.whole / self.seconds / 1e6:.3f} MB/s"
        rows.append(f"{found['bits_per_dim']:.4f} bits/dim; {speed}")
        if self.raw:
            rows.append(f"{self.raw} blocks are stored raw, because what the model coded did not come back")
        return "\n".join(rows)


def compress(
    codec: BlockCodec,
    pictures: Pictures,
    put: Callable[[str, bytes], Any],
    *,
    name: str | None,
    label: int | None = None,
    check: bool = True,
    threads: int = 1,
) -> Report:
    """Make files of pictures.

    Args:
        codec: of the model.
        pictures: at least one.
        put: receives name and bytes of each file.
        name: of the archive, without its suffix; none: one file for each picture.
        label: of all pictures; none: what is shortest for each.
        check: get every picture back from the bytes of its file, as decompressing will, and compare; a block of which
            one does not come back is stored raw.
        threads: of torch, here and where it is decoded.
    """
    entries, began = pictures.entries, time.perf_counter()
    numbers, whole = sum(entry.numbers for entry in entries), sum(entry.size for entry in entries)
    report = Report(len(entries), numbers, whole)
    drafts: Iterable[_Draft] = (_Single(codec, entry, threads, number) for number, entry in enumerate(entries))
    if name is not None:
        drafts = [_Archive(codec, entries, threads, name)]
    with Progress(total=len(entries), desc="compress", unit="img", disable=None) as progress:
        for draft in drafts:
            blocks = list[Block]()
            for number, places in enumerate(draft.ranges):
                tiles = _tiles(codec, pictures, places)
                inside = [pictures.entries[i] for i in places]
                known = padding(inside, codec.tile, rest(inside[0], codec.model.stack.values))
                given = codec.given(places, [tile_count(entry, codec.tile) for entry in inside])
                seed = draft.seed(number, False)
                block = codec.encode(tiles, label, batch=draft.batch, seed=seed, padding=known, condition=given)
                blocks.append(block if not block.raw else draft.stored(number, tiles, block))
                progress.update(len(places))
            content = draft.pack(blocks)
            if check and (lost := _lost(draft, pictures, content)):
                for number in lost:
                    tiles = _tiles(codec, pictures, draft.ranges[number])
                    blocks[number] = draft.stored(number, tiles, blocks[number])
                content = draft.pack(blocks)
                if _lost(draft, pictures, content):
                    raise WriteError(f"{draft.file}: what was read does not come back from it, not even stored raw")
            for block in blocks:
                report.add(block)
            put(draft.file, content)
            report.size, report.files = report.size + len(content), report.files + 1
    report.seconds = time.perf_counter() - began
    return report


class _Draft(ABC):
    """A file to be: the pictures of its blocks, and how the blocks become bytes."""

    file: str
    batch: int
    ranges: list[range]

    def __init__(self, codec: BlockCodec) -> None:
        self.codec = codec

    def told(self, entry: Entry) -> Entry:
        """What the file alone says of a picture."""
        return entry

    @abstractmethod
    def seed(self, number: int, raw: bool) -> int:
        """What the checks of a block start from."""

    @abstractmethod
    def pack(self, blocks: list[Block]) -> bytes:
        """The file."""

    def stored(self, number: int, tiles: Pixels, block: Block) -> Block:
        """A block without the model."""
        return self.codec.store(tiles, block.ledger, seed=self.seed(number, True))


class _Archive(_Draft):
    def __init__(self, codec: BlockCodec, entries: Sequence[Entry], threads: int, name: str) -> None:
        super().__init__(codec)
        self.file, self.batch, self.entries = f"{name}{SUFFIX}", BATCH, entries
        self.ranges = blocks_of(entries, codec.tile)
        self.where = environment(threads, BATCH, codec.probe(threads, BATCH), codec.portable)

    def seed(self, number: int, raw: bool) -> int:
        return block_seed(number, [self.entries[i] for i in self.ranges[number]])

    def pack(self, blocks: list[Block]) -> bytes:
        counted = list(zip(map(len, self.ranges), blocks, strict=True))
        return pack_archive(self.entries, counted, self.codec.fingerprint, self.where)


class _Single(_Draft):
    def __init__(self, codec: BlockCodec, entry: Entry, threads: int, number: int) -> None:
        super().__init__(codec)
        self.file, self.batch, self.entry = f"{entry.stem}{SUFFIX}", batch_of(tile_count(entry, codec.tile)), entry
        self.ranges = [range(number, number + 1)]
        self.where = environment(threads, self.batch, codec.probe(threads, self.batch), codec.portable)

    def told(self, entry: Entry) -> Entry:
        """The name is that of the file, which the folders that it lies in are no part of."""
        return replace(entry, stem=entry.stem.rpartition("/")[2])

    def header(self, raw: bool) -> bytes:
        sections = 1 if raw else self.codec.sections
        return single_header(self.entry, raw, sections, self.codec.fingerprint, self.where)

    def seed(self, number: int, raw: bool) -> int:
        return zlib.crc32(self.header(raw))

    def pack(self, blocks: list[Block]) -> bytes:
        return pack_single(self.header(blocks[0].raw), blocks[0])


def _tiles(codec: BlockCodec, pictures: Pictures, numbers: range) -> Pixels:
    fills = [rest(pictures.entries[i], codec.model.stack.values) for i in numbers]
    return torch.cat([to_tiles(pictures.load(i), codec.tile, fill) for i, fill in zip(numbers, fills, strict=True)])


def _lost(draft: _Draft, pictures: Pictures, content: bytes) -> list[int]:
    """Blocks from which not every picture comes back, by what the file says alone."""
    codec, lost = draft.codec, list[int]()
    file = open_container(Path(draft.file), codec.tile, content)
    restored = restore(codec, file, range(len(file.entries)))
    many = None if len(file.entries) > 1 else True
    with Progress(total=len(file.entries), desc="check", unit="img", disable=many, leave=False) as progress:
        for number, numbers in enumerate(draft.ranges):
            came_back = [_same(next(restored, None), pictures, i, draft.told(pictures.entries[i])) for i in numbers]
            lost += [] if all(came_back) else [number]
            progress.update(len(numbers))
    return lost


def _same(image: "Restored | None", pictures: Pictures, number: int, entry: Entry) -> bool:
    wanted = pictures.load(number)
    if image is None or image.entry != entry or image.level or image.pixels is None:
        return False
    if entry.mode in ("L", "RGB"):
        wanted = wanted[:1] if entry.mode == "L" else wanted.expand(3, -1, -1)
    return torch.equal(image.pixels, wanted)


# --- and back ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Restored:
    """A picture, or what the maps that were read make of it.

    Attributes:
        entry: what the file says of it.
        pixels: [c, height, width] or [c, n], with the channels of its mode; nothing, where not even z_L could be read.
        level: 0: the picture itself, exact; l: everything below z_l is the model's guess.
        damaged: whether more was asked for than the file could give.
    """

    entry: Entry
    pixels: Integer[Tensor, "c *map"] | None
    level: int
    damaged: bool


def storing(image: Restored, model: HierarchicalModel) -> tuple[str, Callable[..., None]]:
    """The ending of the file of an image, and what writes it: of a volume the kind of file that it was."""
    stored = model.settings.stored()
    if image.entry.file is None:
        assert image.pixels is not None
        return saver(**{**stored, "shape": image.pixels.shape})
    about, how = image.entry.file.container, (stored["values"], stored.get("limits"))
    return about.ending, lambda numbers, stream: save_volume(numbers.numpy(), about, *how, stream)


def check_container(codec: BlockCodec, file: Container) -> str | None:
    """Refuse a file of another model. Where the model computes otherwise than where the file was made: what differs.

    Sections whose check fits are right all the same, so such a file is read as far as it goes. Sets torch's threads to
    those of the file.
    """
    where, codec = file.environment, codec.reading(file.environment.portable)
    if not codec.fingerprint.startswith(file.model):
        raise InputError(
            f"{file.path}: is for model {file.model[:8]}, this is {codec.fingerprint[:8]}: use that model"
            + (", and the floats of --condition that it was made with" if codec.condition is not None else "")
        )
    if not 1 <= where.threads <= 255:
        raise InputError(f"{file.path}: names {where.threads} threads: compress the images again")
    if all(place.raw for place in file.places):
        return None
    probe = codec.probe(where.threads, where.batch)
    if probe.startswith(where.probe):
        return None
    here = environment(where.threads, where.batch, probe, where.portable)
    there = f"there torch {where.torch}" + (f", constriction {where.constriction}" if where.constriction else "")
    unknown = "" if where.constriction else "; a single file does not say on which processor it was made"
    return (
        f"{file.path}: coded where the model computes otherwise ({there}; here torch {here.torch}, constriction "
        f"{here.constriction}; {where.threads} threads and batches of {where.batch} on both sides{unknown}): what "
        "comes out otherwise here is left out; decompress it with those versions on a processor of that kind"
    )


def restore(
    codec: BlockCodec,
    file: Container,
    wanted: range,
    *,
    levels: int | None = None,
    sampling: SamplingSettings | None = None,
    seed: int = 0,
) -> Iterator[Restored]:
    """The pictures ``wanted`` of a file, in order; blocks that hold none of them are not read.

    Args:
        codec: of the model; :func:`check_container` has passed.
        file: the file.
        wanted: numbers of pictures, counted from 0.
        levels: code maps to read, from the top; none: everything.
        sampling: how to draw what is not read; none: the image that ``model.decode`` makes.
        seed: of the noise it is drawn with; with the tile's number in its block it names all of it.
    """
    codec = codec.reading(file.environment.portable)
    codec.probe(file.environment.threads, file.environment.batch)
    for place in file.places:
        numbers = range(max(place.first, wanted.start), min(place.first + place.count, wanted.stop))
        if not numbers:
            continue
        entries = file.entries[place.first : place.first + place.count]
        counts = [tile_count(entry, codec.tile) for entry in entries]
        sections = codec.sections if levels is None else min(levels, codec.sections)
        condition = codec.given(range(place.first, place.first + place.count), counts)
        known = padding(entries, codec.tile, rest(entries[0], codec.model.stack.values, file.middle))
        found = _decode(codec, file, place, sum(counts), sections, known, condition)
        tiles, level = _show(codec, found, sampling, seed, condition)
        damaged = len(found) < (1 if place.raw else sections)
        first = 0
        for number, (entry, count) in enumerate(zip(entries, counts, strict=True), start=place.first):
            if number in numbers:
                pixels = None if tiles is None else from_tiles(tiles[first : first + count], entry)
                yield Restored(entry, pixels, level, damaged)
            first += count


def _decode(
    codec: BlockCodec,
    file: Container,
    place: Place,
    count: int,
    sections: int,
    known: Padding | None,
    condition: Floats | None,
) -> list[Section]:
    """What can be read of a block of ``count`` tiles; the pixels stand last."""
    if place.count > 1 and count > BLOCK:  # no encoder makes such a block
        return []
    if place.raw:
        stored = file.read(place, 1)
        pixels = codec.decode_raw(*stored[0], count, seed=file.seed(place)) if stored else None
        return [] if pixels is None else [[pixels]]
    believed = plausible(count, sum(place.lengths)) and worthwhile(count, file.present(place))
    if len(place.lengths) != codec.sections or not believed:
        return []
    seed, batch = file.seed(place), file.environment.batch
    stored = file.read(place, sections)
    return codec.decode(stored, count, batch=batch, seed=seed, padding=known, condition=condition)


@torch.inference_mode()
def _show(
    codec: BlockCodec,
    found: list[Section],
    sampling: SamplingSettings | None,
    seed: int,
    condition: Floats | None,
) -> tuple[Pixels | None, int]:
    """Images from the lowest map there is, and its level; 0 for pixels."""
    if not found:
        return None, len(codec.model.stack)
    lowest = found[-1][-1]
    if lowest.dtype != torch.int64:  # no codes
        return lowest, 0
    level, shown = codec.sections - len(found), list[Tensor]()
    labels = found[0][0] if codec.model.classes else None
    for first in range(0, len(lowest), BATCH):
        part = slice(first, first + BATCH)
        if sampling is None:
            shown.append(codec.model.decode(lowest[part], level))
        else:
            given = None if labels is None else labels[part]
            floats = None if condition is None else condition[part]
            sample = codec.model.vary(lowest[part], level, given, floats, seed=seed, sampling=sampling, first=first)
            shown.append(sample.pixels)
    return torch.cat(shown), level
