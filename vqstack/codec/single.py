"""Files of one picture, whose header has about twenty bytes."""

import binascii
import re
import zlib
from pathlib import Path
from struct import Struct

from vqstack.codec.blocks import Block, batch_of
from vqstack.codec.layout import (
    MAGIC,
    RAW,
    RGB,
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
from vqstack.codec.pictures import Entry, tile_count
from vqstack.errors import InputError

SECTIONS = 3  # the bits of the flags from this one on count the sections
MAX_SECTIONS = 2 ** (8 - SECTIONS) - 1
_ABOUT = Struct("<4s4s3BB")  # model, probe, torch's version, threads (0: portable)
_CHECK = Struct("<H")  # CRC-16 of the header, which finds every burst of up to 16 bits


def single_header(entry: Entry, raw: bool, sections: int, model: str, where: Environment) -> bytes:
    """The header but for the lengths, which follow it; its CRC-32 starts the chain of checks."""
    if sections > MAX_SECTIONS:
        raise InputError(
            f"--single: the model has more than {MAX_SECTIONS - 1} levels, too many for the header of a single file: "
            "write an archive"
        )
    flags = RAW * raw | RGB * (entry.mode == "RGB") | sections << SECTIONS
    numbers = [min(int(n), 255) for n in re.findall(r"\d+", where.torch)[:3]]
    start = START.pack(MAGIC, VERSION, flags)
    about = _ABOUT.pack(
        bytes.fromhex(model)[:4], bytes.fromhex(where.probe)[:4], *numbers, 0 if where.portable else where.threads
    )
    return start + about + _varint(entry.height) + _varint(entry.width)


def pack_single(header: bytes, block: Block) -> bytes:
    """The file of one picture."""
    header += b"".join(_varint(len(section)) for section in block.sections)
    return header + _CHECK.pack(binascii.crc_hqx(header, 0)) + body([block])


def open_single(path: Path, content: bytes, size: int, tile: tuple[int, ...]) -> Container:
    """The file of one picture whose first bytes are ``content``."""
    flags = START.unpack_from(content)[2]
    model, probe, *numbers, threads = _ABOUT.unpack_from(content, START.size)
    at = START.size + _ABOUT.size
    height, at = _read_varint(content, at)
    width, at = _read_varint(content, at)
    seed = zlib.crc32(content[:at])
    lengths = list[int]()
    for _ in range(flags >> SECTIONS):
        length, at = _read_varint(content, at)
        lengths.append(length)
    if _CHECK.unpack_from(content, at)[0] != binascii.crc_hqx(content[:at], 0):
        raise Broken("its header is damaged")
    at += _CHECK.size
    entry = Entry(path.stem, height, width, "RGB" if flags & RGB else "L")
    place = Place(0, 1, bool(flags & RAW), lengths, at, seed)
    if len(tile) != 2:
        raise Broken("it holds an image, and the model knows none")
    check_shape(height, width)
    check_name(entry.stem)
    batch = batch_of(tile_count(entry, tile))
    where = Environment(".".join(map(str, numbers)), "", threads or 1, batch, probe.hex(), not threads)
    return Container(path, model.hex(), where, [entry], [place], size, [(path.stem, 1)])


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
            raise Broken("its header is damaged")
