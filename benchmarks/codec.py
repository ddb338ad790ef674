"""The codec against its ledger and against lossless formats: python benchmarks/codec.py --case NAME RUN FILE [COUNT] …

Each case is a model and a Parquet file of images, read with the model's channels (colours under a grey model are made
grey first, grey under a model of colours is repeated); COUNT takes the first ones only. All
images are compressed to one archive and decompressed, the first ``--singles`` also to a file each, and every one is
compared with what went in. PNG (optimised), WebP and JPEG XL (both lossless, slowest setting; JPEG XL wants the extra
``bench``) compress the same images. Prints a table a case and writes everything as JSON.
"""

import argparse
import io
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pillow_jxl  # noqa: F401  # registers JPEG XL with pillow
import torch
from PIL import Image

from vqstack.codec.archive import check_container, compress, restore
from vqstack.codec.blocks import BlockCodec
from vqstack.codec.container import open_container
from vqstack.codec.pictures import Pictures, from_tiles, pictures_of_split, to_tiles
from vqstack.images import ImageSettings, load_splits, save_png
from vqstack.model import HierarchicalModel

FORMATS: dict[str, dict] = {
    "PNG": {"format": "PNG", "optimize": True},
    "WebP": {"format": "WEBP", "lossless": True, "quality": 100, "method": 6},
    "JPEG XL": {"format": "JXL", "lossless": True, "effort": 9},
}


def pictures_of_file(codec: BlockCodec, file: Path, count: int | None) -> Pictures:
    """The first images of a Parquet file with the model's channels and values, at their own size."""
    stack = codec.model.stack
    settings = ImageSettings(
        source="parquet", files={"test": str(file)}, channels=stack.shape[0], values=stack.values, validation=0
    )
    pictures = pictures_of_split(load_splits(settings, ["test"])["test"])
    return Pictures(pictures.entries[:count], pictures.load)


def decompressed(codec: BlockCodec, folder: Path, pictures: Pictures) -> tuple[int, float]:
    """How many images come back exactly, and the seconds that took (comparing included)."""
    began, exact = time.perf_counter(), 0
    wanted = {entry.stem: i for i, entry in enumerate(pictures.entries)}
    for path in sorted(folder.iterdir()):
        file = open_container(path, codec.tile)
        check_container(codec, file)
        for image in restore(codec, file, range(len(file.entries))):
            number = wanted[image.entry.stem]
            entry, pixels = pictures.entries[number], pictures.load(number)
            wanted_pixels = pixels[: len(entry.mode.replace("L", "1"))]  # grey is repeated for a model of colours
            exact += image.level == 0 and image.pixels is not None and torch.equal(image.pixels, wanted_pixels)
    return exact, time.perf_counter() - began


def round_trip(codec: BlockCodec, pictures: Pictures, name: str | None, threads: int) -> dict:
    """Compress, decompress, compare."""
    with tempfile.TemporaryDirectory() as folder:

        def put(file: str, content: bytes, folder: str = folder) -> None:
            (Path(folder) / file).write_bytes(content)

        report = compress(codec, pictures, put, name=name, threads=threads)
        exact, seconds = decompressed(codec, Path(folder), pictures)
        sizes = [path.stat().st_size for path in Path(folder).iterdir()]
    found = report.to_json()
    ledger_bits = sum(row["ledger_bits"] for row in found["rows"].values())
    return {
        **found,
        "exact": exact,
        "encode_images_per_second": len(pictures.entries) / report.seconds,
        "decode_images_per_second": len(pictures.entries) / seconds,
        "encode_megabytes_per_second": report.whole / report.seconds / 1e6,
        "decode_megabytes_per_second": report.whole / seconds / 1e6,
        "bytes_over_ledger_a_file": (sum(sizes) - ledger_bits / 8) / len(sizes),
    }


def others(codec: BlockCodec, pictures: Pictures) -> dict[str, dict]:
    """Bits/dim of each format over the same images, as 8-bit pictures, one file each, and images a second."""
    images = list[Image.Image]()
    for i, entry in enumerate(pictures.entries):
        buffer = io.BytesIO()
        shown = from_tiles(to_tiles(pictures.load(i), codec.tile), entry)
        save_png(shown, buffer, codec.model.stack.values)  # type: ignore[arg-type]  # pillow takes a file as well
        images.append(Image.open(buffer))
        images[-1].load()
    numbers = sum(entry.numbers for entry in pictures.entries)
    return {name: measured(partial(size_of, options=o), images, numbers) for name, o in FORMATS.items()}


def size_of(image: Image.Image, options: dict) -> int:
    """Bytes of one picture."""
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.tell()


def measured(size: Callable[[Image.Image], int], images: list[Image.Image], numbers: int) -> dict:
    began = time.perf_counter()
    total = sum(map(size, images))
    return {"bits_per_dim": total * 8 / numbers, "images_per_second": len(images) / (time.perf_counter() - began)}


def run_case(name: str, run: Path, file: Path, count: int | None, singles: int, threads: int) -> dict:
    """All figures of one model and one file of images."""
    codec = BlockCodec(HierarchicalModel.from_pretrained(run))
    pictures = pictures_of_file(codec, file, count)
    few = Pictures(pictures.entries[:singles], pictures.load)
    return {
        "case": name,
        "images": len(pictures.entries),
        "channels": codec.model.stack.shape[0],
        "archive": round_trip(codec, pictures, "images", threads),
        "singles": round_trip(codec, few, None, threads) if singles else None,
        "others": others(codec, pictures),
    }


def show(case: dict) -> None:
    """The table of a case."""
    print(f"\n{case['case']}, {case['images']} images of {case['channels']} channels")
    print(f"{'':22} {'exact':>13} {'bits/dim':>9} {'over ledger':>12} {'bytes a file':>13} {'in/s':>8} {'out/s':>8}")
    for kind in ("archive", "singles"):
        if (row := case[kind]) is not None:
            exact = f"{row['exact']} of {row['pictures']}"
            print(
                f"{kind:22} {exact:>13} {row['bits_per_dim']:9.4f} {100 * row['over_ledger']:+11.3f}% "
                f"{row['bytes_over_ledger_a_file']:+13.1f} {row['encode_images_per_second']:8.1f} "
                f"{row['decode_images_per_second']:8.1f}"
            )
    for name, row in case["others"].items():
        print(f"{name:22} {'':>13} {row['bits_per_dim']:9.4f} {'':>12} {'':>13} {row['images_per_second']:8.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--case", nargs="+", action="append", required=True, metavar=("NAME", "RUN FILE"), help="NAME RUN FILE [COUNT]"
    )
    parser.add_argument("--singles", type=int, default=500, help="images that are also stored in a file each")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of torch")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("codec.json"), help="receives the numbers")
    options = parser.parse_args()
    for case in options.case:
        if len(case) not in (3, 4):
            parser.error("--case takes NAME RUN FILE and perhaps COUNT")
    cases = list[dict]()
    for name, run, file, *count in options.case:
        limit = int(count[0]) if count else None
        cases.append(run_case(name, Path(run), Path(file), limit, options.singles, options.threads))
        show(cases[-1])
    machine = {"torch": torch.__version__, "machine": platform.machine(), "threads": options.threads}
    options.out.write_text(json.dumps({**machine, "cases": cases}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
