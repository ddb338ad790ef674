"""Kill tools/encode_dataset.py again and again, and compare what it ends with to what it writes when left alone.

    python benchmarks/encode_kill.py RUN [--kills 5] [--shard-size 2000] [--seed 0] [-- --data.source … --batch-size …]

What follows ``--`` goes to encode_dataset.py. The moments of the SIGKILLs are seeded and spread over the work: a moment
is a number of files, whose fraction is waited for in terms of the time that the uninterrupted command took for one. So
a machine that is slower meanwhile is killed at the same point. Prints each moment and what lay on the disk then; exit
code 1 if a byte of any file differs or a kill came too late.
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


def wait_for_work(process: subprocess.Popen, out: Path) -> None:
    """Until the command has claimed its folder."""
    while process.poll() is None and not (out / "data").is_dir():
        time.sleep(0.01)


def uninterrupted(options: argparse.Namespace, out: Path) -> float:
    """Seconds a file."""
    process = start(options, out)
    wait_for_work(process, out)
    began = time.perf_counter()
    if process.wait():
        sys.exit(f"encode_dataset.py ended with exit code {process.returncode}")
    written = sorted(path.stat().st_mtime for path in out.glob("data/*.parquet"))
    seconds = (written[-1] - written[0]) / max(len(written) - 1, 1)
    print(f"uninterrupted: {len(written)} files, one in {seconds:.2f} s, {time.perf_counter() - began:.1f} s in all")
    return seconds


def killed(options: argparse.Namespace, out: Path, total: int, seconds: float) -> int:
    """Kills at seeded moments; the number of kills that hit a command at work."""
    draw = random.Random(options.seed)
    moments = sorted(draw.uniform(0, total - 1) for _ in range(options.kills))
    hits = 0
    for number, moment in enumerate(moments, start=1):
        process = start(options, out)
        wait_for_work(process, out)
        while process.poll() is None and shards(out) < int(moment):
            time.sleep(0.001)
        time.sleep(moment % 1 * seconds)
        hits += process.poll() is None
        process.kill()
        process.wait()
        half = shards(out, ".parquet.tmp")
        print(f"kill {number}: moment {moment:.2f} of {total}; {shards(out)} files whole, {half} in the middle")
    return hits


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--shard-size", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options = parser.parse_args(sys.argv[1:split])
    options.given = sys.argv[split + 1 :]
    with tempfile.TemporaryDirectory() as folder:
        whole, parts = Path(folder, "whole"), Path(folder, "parts")
        seconds = uninterrupted(options, whole)
        hits = killed(options, parts, shards(whole), seconds)
        if hits == options.kills and start(options, parts).wait():
            sys.exit("the last command did not finish")
        one, two = contents(whole), contents(parts)
        differ = sorted(str(path) for path in one.keys() | two.keys() if one.get(path) != two.get(path))
        total = sum(map(len, one.values()))
        print(f"{hits} of {options.kills} kills hit a command at work; {len(one)} files, {total:,} bytes")
        print(f"files that differ from the uninterrupted ones: {', '.join(differ) or 'none'}")
        sys.exit(bool(differ) or hits < options.kills)


if __name__ == "__main__":
    main()
