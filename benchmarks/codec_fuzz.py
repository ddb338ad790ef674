"""Damage files of the codec and see what comes of them: python benchmarks/codec_fuzz.py RUN --count 2000.

Two images of the data set's test split are compressed to single files and to an archive; each trial damages one of
these (bits, bytes, pieces cut, doubled, swapped or taken from another file, ends lost or grown, header fields changed
with their checks made right again) and decompresses it, every tenth with tools/decompress.py as well. Every trial must
be refused, or give images that are exact, or give the levels above the damage and say so. Anything else, and anything
that takes longer than ``--seconds``, is a failure: it is printed with its seed, and the exit code is 1.
"""

import argparse
import binascii
import contextlib
import io
import json
import random
import shutil
import signal
import struct
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vqstack.codec.archive import check_container, compress, restore
from vqstack.codec.blocks import BlockCodec
from vqstack.codec.container import open_container
from vqstack.codec.pictures import Pictures, pictures_of_split
from vqstack.commands import decompress
from vqstack.ending import run_command
from vqstack.errors import PARTLY, InputError
from vqstack.images import load_splits, save_png
from vqstack.model import HierarchicalModel
from vqstack.phases import data_of_run

Damage = Callable[[bytes, bytes, random.Random], bytes]


def somewhere(content: bytes, generator: random.Random) -> int:
    """A place in a file; every second time in its first bytes, where the structure is."""
    return generator.randrange(min(64, len(content)) if generator.random() < 0.5 else len(content))


def flip(content: bytes, other: bytes, generator: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(generator.choice([1, 1, 2, 8])):
        data[somewhere(content, generator)] ^= 1 << generator.randrange(8)
    return bytes(data)


def replace(content: bytes, other: bytes, generator: random.Random) -> bytes:
    at, length = somewhere(content, generator), generator.randrange(1, 16)
    filler = generator.choice([bytes(length), b"\xff" * length, b"\x80" * length, generator.randbytes(length)])
    return content[:at] + filler + content[at + length :]


def cut_out(content: bytes, other: bytes, generator: random.Random) -> bytes:
    at = somewhere(content, generator)
    return content[:at] + content[at + generator.randrange(1, 32) :]


def double(content: bytes, other: bytes, generator: random.Random) -> bytes:
    at, length = somewhere(content, generator), generator.randrange(1, 32)
    return content[: at + length] + content[at:]


def truncate(content: bytes, other: bytes, generator: random.Random) -> bytes:
    return content[: somewhere(content, generator)]


def grow(content: bytes, other: bytes, generator: random.Random) -> bytes:
    return content + generator.randbytes(generator.randrange(1, 64))


def splice(content: bytes, other: bytes, generator: random.Random) -> bytes:
    at = somewhere(content, generator)
    return content[:at] + other[at:]


def swap(content: bytes, other: bytes, generator: random.Random) -> bytes:
    a, b, c = sorted(somewhere(content, generator) for _ in range(3))
    return content[:a] + content[b:c] + content[a:b] + content[c:]


def rewrite(content: bytes, other: bytes, generator: random.Random) -> bytes:
    """A field of an archive's header takes another value, its check is right; a single file gets another size."""
    if content[4] != 1:
        size = bytes([generator.randrange(1, 256) & 127, generator.randrange(1, 128)])
        end = 17
        for _ in range(2 + (content[4] >> 3)):  # rows, columns and the lengths, numbers of seven bits a byte
            while content[end] >= 128:
                end += 1
            end += 1
        header = content[:17] + size + content[19:end]
        return header + struct.pack("<H", binascii.crc_hqx(header, 0)) + content[end + 2 :]
    length, _ = struct.unpack_from("<II", content, 5)
    header = json.loads(zlib.decompress(content[13 : 13 + length]))
    key = generator.choice(list(header))
    odd = [0, -1, 2**31, 2**63, 1e9, None, "", "../x", [], [[]], {}, True, header["blocks"], [["a", 2**40]]]
    if isinstance(header[key], list) and header[key] and generator.random() < 0.7:
        row = generator.choice(header[key])
        row[generator.randrange(len(row))] = generator.choice([*odd, generator.randrange(1000)])
    else:
        header[key] = generator.choice(odd)
    packed = zlib.compress(json.dumps(header).encode())
    return content[:5] + struct.pack("<II", len(packed), zlib.crc32(packed)) + packed + content[13 + length :]


DAMAGES: list[Damage] = [flip, replace, cut_out, double, truncate, grow, splice, swap, rewrite]


def images_at_each_level(codec: BlockCodec, pictures: Pictures) -> dict[str, dict[int, Tensor]]:
    """What each picture may look like, by its name: 0: itself, l: what the model makes of z_l."""
    found = {}
    for i, entry in enumerate(pictures.entries):
        codes = codec.model.encode(pictures.load(i)[None])
        shown = {level: codec.model.decode(z, level)[0] for level, z in enumerate(codes, start=1)}
        found[entry.stem] = {0: pictures.load(i), **shown}
    return found


def outcome(codec: BlockCodec, path: Path, truths: dict[str, dict[int, Tensor]]) -> str:
    """What decompressing a file comes to; starts with WRONG if it shows what it should not."""
    try:
        file = open_container(path, codec.tile)
        check_container(codec, file)
        images = list(restore(codec, file, range(len(file.entries))))
    except InputError as error:
        return "refused" if "\n" not in str(error) else "WRONG: more than one line"
    worst = "exact"
    for image in images:
        if image.pixels is None or image.level:
            if not image.damaged:
                return "WRONG: damage without a word"
            worst = "partly" if image.pixels is not None or worst == "partly" else "named, no image"
        known = truths.get(image.entry.stem, {}).get(image.level)
        if image.pixels is not None and (known is None or not torch.equal(known, image.pixels)):
            return f"WRONG: {image.entry.stem} at level {image.level} shows something else"
    return worst


def command_outcome(run: Path, path: Path, expected: str, truths: dict[str, dict[int, Tensor]], values: int) -> str:
    """What tools/decompress.py makes of the same file: its exit code must fit, its images must be what they say."""
    out = path.parent / "out"
    sys.argv = ["decompress.py", str(run), str(path), "--out", str(out)]
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            run_command(decompress.main)
        code = 0
    except SystemExit as leave:
        code = int(leave.code or 0)
    shown = sorted(out.glob("*.png")) if out.is_dir() else []
    for picture in shown:
        stem, _, level = picture.stem.partition(".level-")
        save_png(truths[stem][int(level or 0)], path.parent / "wanted.png", values)
        if picture.read_bytes() != (path.parent / "wanted.png").read_bytes():
            return f"WRONG: decompress.py wrote {picture.name}, which shows something else"
    shutil.rmtree(out, ignore_errors=True)
    fits = {"exact": code == 0, "refused": code == 2 and not shown}.get(expected, code == PARTLY)
    if not fits or (code and not said.getvalue().strip()):
        return f"WRONG: {expected}, and decompress.py left with {code} and {len(shown)} images"
    return expected


def too_long(*unused: object) -> None:
    raise TimeoutError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--count", type=int, default=2000, help="damaged files (default 2000)")
    parser.add_argument("--seconds", type=int, default=60, help="longest time for one file (default 60)")
    options = parser.parse_args()
    codec = BlockCodec(HierarchicalModel.from_pretrained(options.run))
    data = data_of_run(options.run).model_copy(update={"limit": 2})
    pictures = pictures_of_split(load_splits(data, ["test"])["test"])
    truths, counts, failures = images_at_each_level(codec, pictures), Counter[str](), 0
    signal.signal(signal.SIGALRM, too_long)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def put(file: str, content: bytes) -> None:
            (folder / file).write_bytes(content)

        compress(codec, pictures, put, name=None)
        compress(codec, pictures, put, name="archive")
        whole = {path.stem: path.read_bytes() for path in sorted(folder.iterdir())}
        for seed in range(options.count):
            generator = random.Random(seed)
            stem, damage = generator.choice(list(whole)), generator.choice(DAMAGES)
            content = damage(whole[stem], whole[generator.choice(list(whole))], generator)
            path = folder / f"{stem}.vqs"
            path.write_bytes(content)
            signal.alarm(options.seconds)
            try:
                found = "unchanged" if content in whole.values() else outcome(codec, path, truths)
            except Exception as error:  # a crash is what this looks for
                found = f"WRONG: {type(error).__name__}: {error}"
            signal.alarm(0)
            if seed % 10 == 0 and not found.startswith(("WRONG", "unchanged")):
                found = command_outcome(options.run, path, found, truths, codec.model.stack.values)
            path.write_bytes(whole[stem])
            counts["WRONG" if found.startswith("WRONG") else found] += 1
            if found.startswith("WRONG"):
                failures += 1
                print(f"seed {seed}, {damage.__name__} of {stem}: {found}", file=sys.stderr)
    print(f"{options.count} damaged files: " + ", ".join(f"{n} {what}" for what, n in counts.most_common()))
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
