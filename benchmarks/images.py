"""CIFAR-10 from files: cache against decoding, encoding and training against bare loops, speed and memory of streams.

    python benchmarks/images.py --data $DATA [--only cache encoding training stream] [--images N] [--repeats 5]

``$DATA`` is a folder with ``cifar10-train.parquet`` and ``cifar10-test.parquet``. Every line is a ratio within one run;
starts and streams are processes of their own, with caches that begin empty. Where other programs keep the cores busy,
``--threads 1`` still measures. Writes ``--out`` (benchmarks/images.json).
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path
from typing import cast

STARTED = time.perf_counter()

import torch  # noqa: E402
from accelerate import Accelerator  # noqa: E402
from run import HEADER, Comparison, bare_encode, bare_training, compare, make_stack, several  # noqa: E402

from vqstack.codes import MapCache  # noqa: E402
from vqstack.fit import Fit, FitSettings  # noqa: E402
from vqstack.images import ImageSettings, load_splits, open_stream  # noqa: E402
from vqstack.phases.encoding import encode_once  # noqa: E402
from vqstack.sources import PixelSource  # noqa: E402

IMPORTED = time.perf_counter()
STREAM = {"shuffle_buffer": 4000, "workers": 2, "validation": 0.0, "test": 0.0}


def settings_of(data: Path, **changes) -> ImageSettings:
    files = {name: str(data / f"cifar10-{name}.parquet") for name in ("train", "test")}
    common = {"source": "parquet", "files": files, "size": (32, 32), "channels": 3, "validation": 1000}
    return ImageSettings(**common | changes)


# --- processes of their own -------------------------------------------------------------------------------------------


def start(data: Path, limit: int | None) -> dict:
    """What a run does before it trains: splits as tensors, every byte of them read once."""
    begun = time.perf_counter()
    splits = load_splits(settings_of(data, limit=limit))
    loaded = time.perf_counter()
    total = sum(int(split.pixels.sum(dtype=torch.int64)) for split in splits.values())
    return {"import": IMPORTED - STARTED, "load": loaded - begun, "read": time.perf_counter() - loaded, "sum": total}


def stream(data: Path, file: str, count: int) -> dict:
    """Images a second and peak memory of one epoch of a file, after a warm-up of two batches."""
    settings = settings_of(data, files={"train": str(data / file)}, streaming=True, **STREAM)
    batches = cast(Generator, open_stream(settings, (3, 32, 32), 10, 100, 0, 0, 1).batches(0, False))
    for _ in range(2):
        next(batches)
    begun = time.perf_counter()
    for _ in range(count // 100):
        next(batches)
    speed = count / (time.perf_counter() - begun)
    batches.close()  # workers end, and what they used is known
    # The resource usage of a process begins with that of the one that started it; its address space does not.
    status = Path("/proc/self/status").read_text().splitlines()
    own = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))  # KiB, as below
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {"images_per_second": speed, "peak_mib": own / 1024, "peak_of_a_worker_mib": workers / 1024}


def apart(part: str, options: argparse.Namespace, folder: Path, *given: str) -> dict:
    """A part of this script in a fresh process whose caches lie in ``folder``."""
    caches = {"VQSTACK_CACHE": str(folder / "vqstack"), "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, "--data", str(options.data), "--part", part, *given]
    command += ["--images", str(options.images)] if options.images else []
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | caches)
    return json.loads(done.stdout.splitlines()[-1])


def cache(options: argparse.Namespace) -> dict:
    """First decoding against later starts."""
    with tempfile.TemporaryDirectory() as folder:
        first = apart("start", options, Path(folder))
        later = [apart("start", options, Path(folder)) for _ in range(options.repeats)]
    assert all(one["sum"] == first["sum"] for one in later), "the cache holds other images"
    second = {key: statistics.median(one[key] for one in later) for key in ("import", "load", "read")}
    row = {"first": first, "second": second, "ratio": first["load"] / second["load"], "target": 20}
    row["ratio_with_reading"] = (first["load"] + first["read"]) / (second["load"] + second["read"])
    whole = [sum(one[key] for key in ("import", "load", "read")) for one in (first, second)]
    row["ratio_with_imports"] = whole[0] / whole[1]
    print(
        f"first decoding {first['load']:.2f} s, start from the cache {second['load']:.3f} s: {row['ratio']:.1f} times"
    )
    reading, imports = row["ratio_with_reading"], row["ratio_with_imports"]
    print(f"   with reading every byte: {reading:.1f} times; with imports of torch and all: {imports:.1f} times")
    return row


def streams(options: argparse.Namespace) -> dict:
    """The two files, 10,000 and 50,000 images, an epoch each."""
    rows = {}
    for file, count in (("cifar10-test.parquet", 10_000), ("cifar10-train.parquet", 50_000)):
        with tempfile.TemporaryDirectory() as folder:
            found = apart("stream", options, Path(folder), "--file", file, "--count", str(options.images or count))
        found["peak_of_all_mib"] = found["peak_mib"] + STREAM["workers"] * found["peak_of_a_worker_mib"]
        rows[str(count)] = found
        print(
            f"stream of {count:,}: {found['images_per_second']:,.0f} images/s, peak {found['peak_of_all_mib']:,.0f} MiB"
        )
    few, many = (row["peak_of_all_mib"] for row in rows.values())
    print(f"   memory: {many / few:.3f} times")
    return {"rows": rows, "settings": STREAM, "ratio": many / few, "target": 1.1}


# --- against bare loops -----------------------------------------------------------------------------------------------


def encoding(options: argparse.Namespace, device: torch.device) -> Iterator[Comparison]:
    """A level's codes as a run stores them, from the memory map to the file, against bare networks in memory."""
    split, stack = load_splits(settings_of(options.data), ["test"])["test"], make_stack(3, device)
    stored = split.stored[: options.images or 2048]
    resident, accelerator = stored.clone().to(device), Accelerator(cpu=device.type == "cpu")
    halves = [level.quantizer.codebook().square().sum(1) / 2 for level in stack.levels]
    source = PixelSource(stored if device.type == "cpu" else stored.to(device), split.size, device=device)
    with tempfile.TemporaryDirectory() as folder:
        made = iter(range(10**9))

        def ours() -> None:
            place, shape, size = Path(folder) / str(next(made)), stack.map_shapes[2], stack.codebook_sizes[2]
            maps = MapCache(
                place, "train", views=1, images=len(stored), map_shape=shape, vocabulary=size, fingerprint=""
            )
            encode_once(maps, source, stack, 3, accelerator, 256)

        def bare() -> list:
            return [bare_encode(stack, halves, chunk)[-1] for chunk in resident.split(256)]

        yield Comparison("encoding 3 levels, map to file / bare networks", ours, bare, "speed", 0.9, len(stored))


def training(options: argparse.Namespace, device: torch.device) -> Iterator[Comparison]:
    """Level 1 on the memory map through the toolkit's loop, against a bare loop on resident tensors."""
    split = load_splits(settings_of(options.data), ["train"])["train"]
    steps, settings = 2, FitSettings(steps=100_000, batch_size=64)
    bare = bare_training(make_stack(1, device).level(1), split.stored.clone().to(device), settings)
    source = PixelSource(split.stored if device.type == "cpu" else split.stored.to(device), split.size, device=device)
    with tempfile.TemporaryDirectory() as folder:
        accelerator = Accelerator(cpu=device.type == "cpu")
        fit = Fit("benchmark", make_stack(1, device).level(1), source, source, settings, accelerator, Path(folder))
        yield Comparison(
            "training level 1, batch 64 / bare loop",
            partial(several, steps, fit.training_step),
            partial(several, steps, partial(next, bare)),
            "speed",
            0.95,
            steps * settings.batch_size,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the Parquet files")
    parser.add_argument("--only", nargs="*", default=["cache", "encoding", "training", "stream"], help="parts to run")
    parser.add_argument("--images", type=int, help="images of each split and part; default: all, 2,048 to encode")
    parser.add_argument("--repeats", type=int, default=5, help="least number of pairs, and starts from the cache")
    parser.add_argument("--threads", type=int, help="of torch; default: as it chooses")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images.json", help="JSON of all figures")
    parser.add_argument("--part", choices=["start", "stream"], help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.part == "start":
        print(json.dumps(start(options.data, options.images)))
        return
    if options.part == "stream":
        print(json.dumps(stream(options.data, options.file, options.count)))
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: dict = {"device": str(device), "threads": torch.get_num_threads(), "torch": torch.__version__}
    if "cache" in options.only:
        found["cache"] = cache(options)
    for name, part in (("encoding", encoding), ("training", training)):
        if name in options.only:
            print(HEADER)
            for comparison in part(options, device):
                row = compare(comparison, options.repeats, device)
                print(row, flush=True)
                pairs = ", ".join(f"{ratio:.3f}" for ratio in sorted(row.ratios))
                print(f"   {row.ours_per_second:,.0f} images/s; ratios of the pairs: {pairs}")
                found[name] = vars(row)
    if "stream" in options.only:
        found["stream"] = streams(options)
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
