"""Three hosts encode one data set; one is killed in the middle of a file, again and again; the bytes of one alone.

    python benchmarks/encode_hosts.py RUN [--kills 3] [--lease 5] [-- --shard-size … --data.source … --batch-size …]

A host is a process with a cache and a network of its own (``unshare --net``, where the system allows it): all that the
hosts share is the folder. Each time one of the three is killed with SIGKILL while it has a file in its hands, and the
other two finish. Prints how long they took, and how many files each of them wrote; exit code 1 if a byte differs from
what one command writes that shares with nobody.
"""

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from encode_kill import contents

HOSTS = 3


def start(options: argparse.Namespace, folder: Path, host: int, out: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "vqstack", "encode", options.run.resolve(), "--out", out, *more, *options.given]
    environment = os.environ | {"VQSTACK_CACHE": str(folder / f"cache-{host}"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*options.isolated, *map(str, command)], stdout=subprocess.PIPE, text=True, env=environment)


def claimed(out: Path, process: subprocess.Popen) -> list[str]:
    """Files that a process has in its hands."""
    found = []
    for path in out.glob("data/*.claim"):
        try:
            if f"-{process.pid}-" in path.read_text() and not path.with_suffix(".sha256").exists():
                found.append(path.name.removesuffix(".claim"))
        except FileNotFoundError:  # another one has just finished
            pass
    return found


def one_kill(options: argparse.Namespace, folder: Path, number: int, files: int) -> tuple[dict, bool]:
    """What the others end with, and whether the kill hit a file."""
    out = folder / f"killed-{number}"
    hosts = [start(options, folder, host, out, "--shared", "--lease", str(options.lease / 60)) for host in range(HOSTS)]
    draw = random.Random(number)
    victim, moment = hosts[draw.randrange(HOSTS)], draw.uniform(0.2, 0.7) * files
    while victim.poll() is None and not (len(list(out.glob("data/*.sha256"))) >= moment and claimed(out, victim)):
        time.sleep(0.001)
    victim.kill()
    began, there, lost = time.perf_counter(), len(list(out.glob("data/*.sha256"))), claimed(out, victim)
    written = []
    for host in hosts:
        said, _ = host.communicate()
        if host is not victim:
            if host.returncode:
                sys.exit(f"a host ended with exit code {host.returncode}")
            written.append(int(re.search(r"(\d+) of \d+ files", said)[1]))
    print(
        f"kill {number}: {there} of {files} files were there, {', '.join(lost) or 'none'} in its hands; the other two "
        f"wrote {written[0]} and {written[1]} and ended {time.perf_counter() - began:.1f} s later"
    )
    return contents(out), bool(lost)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--lease", type=float, default=5.0, help="seconds")
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options = parser.parse_args(sys.argv[1:split])
    options.given = sys.argv[split + 1 :]
    allowed = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode == 0
    options.isolated = ["unshare", "--net"] if allowed else []
    print(f"hosts have {'networks of their own' if allowed else 'the network of this machine'}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.perf_counter()
        if start(options, folder, 0, folder / "alone").wait():
            sys.exit("the command alone did not finish")
        alone = contents(folder / "alone")
        files = sum(path.suffix == ".parquet" for path in alone)
        print(f"alone: {files} files, {sum(map(len, alone.values())):,} bytes, {time.perf_counter() - began:.1f} s")
        wrong, missed = 0, 0
        for number in range(1, options.kills + 1):
            found, hit = one_kill(options, folder, number, files)
            differ = sorted(str(path) for path in alone.keys() | found.keys() if alone.get(path) != found.get(path))
            wrong, missed = wrong + bool(differ), missed + (not hit)
            print(f"files that differ from those of one alone: {', '.join(differ) or 'none'}")
        sys.exit(bool(wrong or missed))


if __name__ == "__main__":
    main()
