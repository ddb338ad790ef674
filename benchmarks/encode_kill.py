"""Kill tools/encode_dataset.py again and again, and compare what it ends with to what it writes when left alone.

    python benchmarks/encode_kill.py RUN [--kills 5] [--shard-size 2000] [--seed 0] [-- --data.source … --batch-size …]

What follows ``--`` goes to encode_dataset.py. The moments of the SIGKILLs are seeded and spread over the time that the
uninterrupted command needed between its first and its last file. Prints each moment and what lay on the disk then; exit
code 1 if a byte of any file differs.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOOL = Path(__file__).parents[1] / "tools" / "encode_dataset.py"


def start(options: argparse.Namespace, out: Path) -> subprocess.Popen:
    command = [sys.executable, TOOL, options.run, "--out", out, "--shard-size", options.shard_size, *options.given]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)


def shards(out: Path, ending: str = ".parquet") -> int:
    return len(list(out.glob(f"data/*{ending}")))


def wait_for_work(process: subprocess.Popen, out: Path) -> float:
    """Seconds until the command has claimed its folder."""
    began = time.perf_counter()
    while process.poll() is None and not (out / "data").is_dir():
        time.sleep(0.01)
    return time.perf_counter() - began


def uninterrupted(options: argparse.Namespace, out: Path) -> float:
    """Seconds from the first file to the end."""
    process = start(options, out)
    ready = wait_for_work(process, out)
    began = time.perf_counter()
    if process.wait():
        sys.exit(f"encode_dataset.py ended with exit code {process.returncode}")
    seconds = time.perf_counter() - began
    print(f"uninterrupted: {shards(out)} shards in {seconds:.1f} s, after {ready:.1f} s of loading")
    return seconds


def killed(options: argparse.Namespace, out: Path, seconds: float) -> int:
    """Kills at seeded moments; the number of kills that hit a command at work."""
    moments = sorted(random.Random(options.seed).random() for _ in range(options.kills))
    hits = 0
    for number, (before, moment) in enumerate(zip([0.0, *moments], moments, strict=False), start=1):
        process = start(options, out)
        wait_for_work(process, out)
        began = time.perf_counter()
        while process.poll() is None and time.perf_counter() - began < (moment - before) * seconds:
            time.sleep(0.005)
        hits += process.poll() is None
        process.kill()
        process.wait()
        half = shards(out, ".parquet.tmp")
        print(
            f"kill {number}: {time.perf_counter() - began:5.2f} s after it set to work, {shards(out)} shards whole, "
            f"{half} in the middle"
        )
    return hits


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--shard-size", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("given", nargs="*", help="further arguments of encode_dataset.py, after --")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        whole, parts = Path(folder, "whole"), Path(folder, "parts")
        seconds = uninterrupted(options, whole)
        hits = killed(options, parts, seconds)
        if start(options, parts).wait():
            sys.exit("the last command did not finish")
        one, two = contents(whole), contents(parts)
        differ = sorted(str(path) for path in one.keys() | two.keys() if one.get(path) != two.get(path))
        total = sum(map(len, one.values()))
        print(f"{hits} of {options.kills} kills hit a command at work; {len(one)} files, {total:,} bytes")
        print(f"files that differ from the uninterrupted ones: {', '.join(differ) or 'none'}")
        sys.exit(bool(differ))


if __name__ == "__main__":
    main()
