"""Simulated volumes: make them, and archive those of test with a model, beside zlib, gzip and PNG of their slices.

    python benchmarks/volume.py make FOLDER
    python benchmarks/volume.py measure RUN FOLDER --out OUT

A volume of 12 bits is a sum of 40 smooth blobs of random place, width and height, and normal noise of deviation NOISE,
rounded: no code needs fewer bits on average than the noise by itself. FOLDER/train holds 16 of 64x64x64 as ``.npy``,
FOLDER/test one of 64x64x64 and one of 96x80x72 as NIfTI.
"""

import argparse
import gzip
import io
import json
import sys
import zlib
from contextlib import redirect_stdout
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

from vqstack.commands import compress, decompress

NOISE = 12.0


def volume(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """Whole numbers from 0 to 4095."""
    generator = np.random.default_rng(seed)
    axes = [np.arange(n) for n in shape]
    smooth = np.full(shape, 300.0)
    for _ in range(40):
        centre, width = generator.uniform(0, shape), generator.uniform(3, 14, 3)
        along = [np.exp(-(((x - c) / w) ** 2) / 2) for x, c, w in zip(axes, centre, width, strict=True)]
        smooth += generator.uniform(200, 900) * np.einsum("i,j,k", *along)
    return np.clip(np.rint(smooth + NOISE * generator.standard_normal(shape)), 0, 4095).astype(np.uint16)


def make(folder: Path) -> None:
    """Writes train and test."""
    (folder / "train").mkdir(parents=True)
    (folder / "test").mkdir()
    for seed in range(16):
        np.save(folder / "train" / f"{seed:02d}.npy", volume((64, 64, 64), seed))
    np.save(folder / "test" / "cube.npy", volume((64, 64, 64), 100))
    scan = nibabel.Nifti1Image(volume((96, 80, 72), 101), np.diag([0.5, 0.5, 0.8, 1.0]))
    scan.to_filename(folder / "test" / "scan.nii")


def png(numbers: np.ndarray) -> int:
    """Bytes of the slices along the first axis, 16 bits, a file each."""
    size = 0
    for piece in numbers:
        stream = io.BytesIO()
        Image.fromarray(piece).save(stream, format="PNG", optimize=True)
        size += len(stream.getvalue())
    return size


def measure(run: Path, folder: Path, out: Path) -> dict[str, object]:
    """Bits a number of the test volumes in an archive and otherwise, and whether their files came back to the byte."""
    out.mkdir()
    files, about = sorted((folder / "test").iterdir()), out / "report.json"
    with redirect_stdout(sys.stderr):
        compress.main([str(run), *map(str, files), "--out", str(out / "small"), "--report", str(about)])
        decompress.main([str(run), str(out / "small"), "--out", str(out / "back")])
    same = [path.read_bytes() == (out / "back" / path.name).read_bytes() for path in files]
    arrays = [np.load(p) if p.suffix == ".npy" else np.asarray(nibabel.nifti1.load(p).dataobj) for p in files]
    count = sum(array.size for array in arrays)
    sizes = {
        "archive": (out / "small" / "images.vqs").stat().st_size,
        "ledger": json.loads(about.read_text())["ledger_bytes"],
        "PNG of slices": sum(map(png, arrays)),
        "zlib": sum(len(zlib.compress(array.tobytes(), 9)) for array in arrays),
        "files, gzip": sum(len(gzip.compress(path.read_bytes(), 9)) for path in files),
    }
    noise = 0.5 * np.log2(2 * np.pi * np.e * NOISE**2)
    bits = {name: 8 * size / count for name, size in sizes.items()}
    return {"numbers": count, "came back": same, "bits a number": bits | {"noise alone": noise}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "measure"])
    parser.add_argument("paths", type=Path, nargs="+", help="FOLDER, or RUN FOLDER")
    parser.add_argument("--out", type=Path, help="receives archive and volumes; new")
    options = parser.parse_args()
    if options.what == "make":
        make(*options.paths)
    else:
        run, folder = options.paths
        print(json.dumps(measure(run, folder, options.out), indent=1))


if __name__ == "__main__":
    main()
