"""What grows with the number of images: bytes on disk, memory of a process; and what a billion images would take.

    python benchmarks/scaling.py [--config benchmarks/recipes/cifar10_product.yaml] [--images 10000] [--codes FOLDER]

Each row of memory is a process of its own that does one thing for N and for 10 N images (the permutation: a hundred
times as many). ``resident`` is its peak minus that of a process that only imports; ``own`` leaves out pages of files,
which the system takes back when it needs room. Codes are random unless a code data set is named, so that nothing in
them can be compressed: an upper bound.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from vqstack.codes import CodeDataset, CodeDatasetWriter, Contents, MapCache, StoredCodes
from vqstack.config import RunConfig, read_yaml
from vqstack.fit import Order
from vqstack.sources import CodeSource

RECIPE = Path(__file__).parent / "recipes" / "cifar10_product.yaml"
BATCH, BILLION = 256, 10**9


def contents_of(config: RunConfig) -> Contents:
    shapes = [list(level.map) for level in config.levels]
    sizes = [level.quantizer.codebook_size for level in config.levels]
    return Contents(map_shapes=shapes, vocabularies=sizes, fingerprint="random", source={}, labelled=True)


def random_codes(contents: Contents, start: int, count: int) -> StoredCodes:
    generator = torch.Generator().manual_seed(start)
    sized = zip(contents.map_shapes, contents.vocabularies, strict=True)
    codes = [torch.randint(k, (count, *shape), generator=generator) for shape, k in sized]
    return StoredCodes(torch.arange(start, start + count), torch.zeros(count, dtype=torch.int64), codes)


def batches(contents: Contents, start: int, stop: int) -> Iterator[StoredCodes]:
    for first in range(start, stop, BATCH):
        yield random_codes(contents, first, min(BATCH, stop - first))


def cache_of(folder: Path, contents: Contents, level: int, images: int) -> MapCache:
    shape, size = tuple(contents.map_shapes[level]), contents.vocabularies[level]
    return MapCache(
        folder / f"{level}", "train", views=1, images=images, map_shape=shape, vocabulary=size, fingerprint=""
    )


def write_cache(folder: Path, contents: Contents, images: int) -> None:
    for level in range(len(contents.map_shapes)):
        cache = cache_of(folder, contents, level, images)
        cache.begin()
        for start in range(0, images, BATCH):
            cache.write(0, start, random_codes(contents, start, min(BATCH, images - start)).codes[level])
        cache.finish()


def read_cache(folder: Path, contents: Contents, images: int) -> CodeSource:
    """Training batches of level 1 in random order."""
    codes = cache_of(folder, contents, 0, images).load()
    assert codes is not None, "the cache was finished before"
    source = CodeSource(codes, torch.device("cpu"))
    order = torch.randperm(images, generator=torch.Generator().manual_seed(0))
    for indices in order.split(BATCH):
        source.batch(indices, None)
    return source  # still mapped when its pages are counted


def write_data_set(folder: Path, contents: Contents, images: int) -> None:
    writer = CodeDatasetWriter(folder / "codes", contents, {"train": images})
    writer.claim()
    for shard in writer.shards:
        writer.write(shard, batches(contents, shard.start, shard.start + shard.rows))
    writer.finish({shard.file: writer.checksum(shard) for shard in writer.shards})


def read_data_set(folder: Path, contents: Contents, images: int) -> None:
    for _ in CodeDataset(folder / "codes").blocks("train"):
        pass


def permutation(folder: Path, contents: Contents, images: int) -> Order:
    """That of an epoch, for a hundred times as many images."""
    order = Order(100 * images, BATCH, 0)
    order.indices(0)
    return order


def nothing(folder: Path, contents: Contents, images: int) -> None:
    """What a process takes for its imports."""


WORK = {work.__name__: work for work in (nothing, write_cache, read_cache, write_data_set, read_data_set, permutation)}


def work_here(name: str, config: Path, folder: Path, images: int) -> None:
    """The child: does one thing and prints its peak memory, and its own part of it at the end, in bytes."""
    torch.set_num_threads(1)
    kept = WORK[name](folder, contents_of(read_yaml(config, RunConfig)), images)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps([peak, peak - int(status["RssFile"].split()[0]) * 1024]))
    del kept


def memory(name: str, config: Path, folder: Path, images: int) -> tuple[int, int]:
    command = [sys.executable, __file__, "--config", config, "--work", name, "--folder", folder, "--images", images]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    out = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, env=environment)
    peak, own = json.loads(out.stdout)
    return peak, own


def print_bytes(folder: Path, contents: Contents, config: RunConfig, images: int, codes: Path | None) -> None:
    """Bytes an image on disk."""
    height, width = config.data.size or (0, 0)
    rows = {"images, uint8": float(config.data.channels * height * width)}
    for level in range(len(contents.map_shapes)):
        rows[f"codes of level {level + 1}, .npy"] = (folder / f"{level}" / "train.npy").stat().st_size / images
    data = codes or folder / "codes"
    count = images if codes is None else sum(CodeDataset(codes).splits.values())
    files = sum(path.stat().st_size for path in (data / "data").iterdir())
    rows["code data set, Parquet"] = files / count
    rows["manifest and checksums"] = sum(p.stat().st_size for p in data.iterdir() if p.is_file()) / count
    print(f"\n{'on disk':<28}{'bytes per image':>16}{'a billion images':>20}")
    for name, size in rows.items():
        print(f"{name:<28}{size:>16,.2f}{size * BILLION / 1e9:>17,.1f} GB")


def print_memory(name: str, config: Path, parent: Path, counts: tuple[int, int], base: tuple[int, int]) -> None:
    """One row: peaks for both counts, and by how much they grow with each image."""
    found = []
    for images in counts:
        folder = parent / str(images)
        folder.mkdir(exist_ok=True)
        found.append([a - b for a, b in zip(memory(name, config, folder, images), base, strict=True)])
    cells = "".join(f"{resident / 1e6:>12,.1f}{own / 1e6:>8,.1f}" for resident, own in found)
    done = (counts[1] - counts[0]) * (100 if name == "permutation" else 1)
    print(f"{name.replace('_', ' '):<24}{cells}{(found[1][1] - found[0][1]) / done:>14,.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=RECIPE, help="recipe that says which maps")
    parser.add_argument("--images", type=int, default=10_000, help="N; the second measurement has 10 N")
    parser.add_argument("--codes", type=Path, help="a code data set to weigh instead of random codes")
    parser.add_argument("--work", choices=WORK, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work_here(options.work, options.config, options.folder, options.images)
        return
    config = read_yaml(options.config, RunConfig)
    contents, counts = contents_of(config), (options.images, 10 * options.images)
    with tempfile.TemporaryDirectory() as parent:
        columns = "".join(f"{f'{n:,} images':>20}" for n in counts)
        print(f"{'memory of a process, MB':<24}{columns}{'own, bytes':>14}")
        print(f"{'':<24}" + f"{'resident':>12}{'own':>8}" * 2 + f"{'an image':>14}")
        base = memory("nothing", options.config, Path(parent), 0)
        print(f"{'imports':<24}{base[0] / 1e6:>12,.1f}{base[1] / 1e6:>8,.1f}")
        for name in list(WORK)[1:]:
            print_memory(name, options.config, Path(parent), counts, base)
        print_bytes(Path(parent, str(counts[1])), contents, config, counts[1], options.codes)


if __name__ == "__main__":
    main()
