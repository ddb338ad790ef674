"""Compressing pictures to files and getting them back, whole or as far as the levels that were read."""

import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor
from tqdm import tqdm

from vqstack.codec.blocks import BATCH, Block, BlockCodec, Section, batch_of, plausible, worthwhile
from vqstack.codec.container import (
    SUFFIX,
    Container,
    Place,
    block_seed,
    environment,
    groups,
    pack_archive,
    pack_single,
    single_header,
)
from vqstack.codec.pictures import Entry, Pictures, from_tiles, tile_count, to_tiles
from vqstack.errors import InputError
from vqstack.ledger import BITS, Ledger
from vqstack.model import SamplingSettings
from vqstack.shapes import Pixels


@dataclass
class Report:
    """What compressing came to.

    Attributes:
        pictures, numbers: how many; numbers are channels of pixels, one byte each without compression.
        bits: information that was coded, by row of the ledger.
        ledger: what the ledger says of the same images and labels (tiles of the model's size, padding included).
        payload, size: bytes of all sections without their checks, and of all files.
        raw: blocks for which the model was given up.
        files: how many were written.
        seconds: wall time, reading of images and self-check included.
    """

    pictures: int = 0
    numbers: int = 0
    bits: dict[str, float] = field(default_factory=dict)
    ledger: Ledger | None = None
    payload: int = 0
    size: int = 0
    raw: int = 0
    files: int = 0
    seconds: float = 0.0

    def add(self, block: Block) -> None:
        """Count a block."""
        self.payload += sum(map(len, block.sections))
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
        speed = f"{self.pictures / self.seconds:.1f} images/s, {self.numbers / self.seconds / 1e6:.3f} MB/s"
        rows.append(f"{found['bits_per_dim']:.4f} bits/dim; {speed}")
        if self.raw:
            rows.append(f"{self.raw} blocks are stored raw, because what the model coded did not come back")
        return "\n".join(rows)


def compress(
    codec: BlockCodec,
    pictures: Pictures,
    out: Path,
    *,
    name: str | None,
    label: int | None = None,
    check: bool = True,
    threads: int = 1,
) -> Report:
    """Write pictures to the folder ``out``.

    Args:
        codec: of the model.
        pictures: at least one.
        out: an existing folder.
        name: of the archive; none: one file for each picture.
        label: of all pictures; none: what is shortest for each.
        check: decode every block before it is written.
        threads: of torch, here and where it is decoded.
    """
    entries, tile, report = pictures.entries, codec.tile, Report(pictures=len(pictures.entries))
    report.numbers, began, parts = sum(entry.size for entry in entries), time.perf_counter(), list[tuple[int, Block]]()
    where = environment(threads, BATCH, codec.probe(threads, BATCH)) if name is not None else None
    shares = [range(i, i + 1) for i in range(len(entries))] if name is None else groups(entries, tile)
    with tqdm(total=len(entries), desc="compress", unit="img", disable=None) as progress:
        for number, share in enumerate(shares):
            tiles = torch.cat([to_tiles(pictures.load(i), tile) for i in share])
            if where is not None:
                seed = block_seed(number, [entries[i] for i in share])
                block = codec.encode(tiles, label, batch=BATCH, seed=seed, check=check)
                parts.append((len(share), block))
            else:
                block, content = _single(codec, entries[number], tiles, label, check, threads)
                report.size += _write(out / f"{entries[number].stem}{SUFFIX}", content)
            report.add(block)
            progress.update(len(share))
    if where is not None:
        report.size = _write(out / f"{name}{SUFFIX}", pack_archive(entries, parts, codec.fingerprint, where))
    report.files = 1 if where is not None else len(entries)
    report.seconds = time.perf_counter() - began
    return report


def _single(
    codec: BlockCodec, entry: Entry, tiles: Pixels, label: int | None, check: bool, threads: int
) -> tuple[Block, bytes]:
    batch = batch_of(len(tiles))
    where = environment(threads, batch, codec.probe(threads, batch))
    header = single_header(entry, False, codec.sections, codec.fingerprint, where)
    block = codec.encode(tiles, label, batch=batch, seed=zlib.crc32(header), check=check)
    if block.raw:  # its chain of checks starts from another header
        header = single_header(entry, True, 1, codec.fingerprint, where)
        block = codec.store(tiles, block.ledger, seed=zlib.crc32(header))
    return block, pack_single(header, block)


def _write(path: Path, content: bytes) -> int:
    path.write_bytes(content)
    return len(content)


# --- and back ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Restored:
    """A picture, or what the maps that were read make of it.

    Attributes:
        entry: what the file says of it.
        pixels: [c, height, width] with the channels of its mode; nothing, where not even z_L could be read.
        level: 0: the picture itself, exact; l: everything below z_l is the model's guess.
        damaged: whether more was asked for than the file could give.
    """

    entry: Entry
    pixels: UInt8[Tensor, "c height width"] | None
    level: int
    damaged: bool


def check_container(codec: BlockCodec, file: Container) -> None:
    """Refuse a file of another model, or of a machine that computes otherwise. Sets torch's threads to the file's."""
    where = file.environment
    if not codec.fingerprint.startswith(file.model):
        raise InputError(f"{file.path}: is for model {file.model[:8]}, this is {codec.fingerprint[:8]}: use that model")
    if not 1 <= where.threads <= 255:
        raise InputError(f"{file.path}: names {where.threads} threads: compress the images again")
    if all(place.raw for place in file.places):
        return
    probe = codec.probe(where.threads, where.batch)
    if not probe.startswith(where.probe):
        libraries = f"torch {where.torch}" + (f", constriction {where.constriction}" if where.constriction else "")
        here = environment(where.threads, where.batch, probe)
        raise InputError(
            f"{file.path}: coded where the model computes otherwise (there {libraries}, probe {where.probe[:8]}; here "
            f"torch {here.torch}, constriction {here.constriction}, probe {probe[:8]}; {where.threads} threads, batch "
            f"{where.batch} on both sides): decompress it with those versions on a machine of that kind"
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
        sampling: how to draw what is not read; none: the image that ``model.decode`` makes, most likely value by value.
        seed: of the noise it is drawn with; with the tile's number in its block it names all of it.
    """
    codec.probe(file.environment.threads, file.environment.batch)
    for place in file.places:
        share = range(max(place.first, wanted.start), min(place.first + place.count, wanted.stop))
        if not share:
            continue
        entries = file.entries[place.first : place.first + place.count]
        counts = [tile_count(entry, codec.tile) for entry in entries]
        sections = codec.sections if levels is None else min(levels, codec.sections)
        found = _decode(codec, file, place, sum(counts), sections)
        tiles, level = _show(codec, found, sampling, seed)
        damaged = len(found) < (1 if place.raw else sections)
        first = 0
        for number, (entry, count) in enumerate(zip(entries, counts, strict=True), start=place.first):
            if number in share:
                pixels = None if tiles is None else from_tiles(tiles[first : first + count], entry)
                yield Restored(entry, pixels, level, damaged)
            first += count


def _decode(codec: BlockCodec, file: Container, place: Place, count: int, sections: int) -> list[Section]:
    """What can be read of a block; the pixels stand last."""
    if place.raw:
        stored = file.read(place, 1)
        pixels = codec.decode_raw(*stored[0], count, seed=place.seed) if stored else None
        return [] if pixels is None else [[pixels]]
    believed = plausible(count, sum(place.lengths)) and worthwhile(count, file.present(place))
    if len(place.lengths) != codec.sections or not believed:
        return []
    return codec.decode(file.read(place, sections), count, batch=file.environment.batch, seed=place.seed)


@torch.inference_mode()
def _show(
    codec: BlockCodec, found: list[Section], sampling: SamplingSettings | None, seed: int
) -> tuple[Pixels | None, int]:
    """Images from the lowest map there is, and its level; 0 for pixels."""
    if not found:
        return None, len(codec.model.stack)
    lowest = found[-1][-1]
    if lowest.dtype == torch.uint8:
        return lowest, 0
    level, shown = codec.sections - len(found), list[Tensor]()
    labels = found[0][0] if codec.model.classes else None
    for first in range(0, len(lowest), BATCH):
        part = slice(first, first + BATCH)
        if sampling is None:
            shown.append(codec.model.decode(lowest[part], level))
        else:
            given = None if labels is None else labels[part]
            sample = codec.model.vary(lowest[part], level, given, seed=seed, sampling=sampling, first=first)
            shown.append(sample.pixels)
    return torch.cat(shown), level
