"""Whether a Parquet file's footer can be looked at without harm: another process looks first.

The library checks little of a footer, and ends the whole process by SIGABRT at some: an unknown codec, statistics whose
lengths do not match.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from vqstack.errors import InputError

PROBE = Path(__file__).with_name("probe.py")
PATIENCE = 60.0  # seconds for the process to start, on a busy machine
PATIENCE_FILE = 1.0  # seconds more for each file, which takes some milliseconds


def check_footers(paths: Sequence[Path]) -> None:
    """InputError naming the first file whose footer ends a process that looks at it; missing files are passed over.

    What can be read, or is refused by an exception, passes. Files that have not changed are looked at once.
    """
    files = []
    for path in paths:
        if path.is_file():
            about = path.stat()
            files.append((path.absolute(), about.st_size, about.st_mtime_ns))
    if files:
        _look(tuple(files))


@lru_cache(maxsize=8)
def _look(files: tuple[tuple[Path, int, int], ...]) -> None:
    """One process for all files; sizes and times are there for the cache to see a change."""
    given = json.dumps({"path": sys.path, "files": [str(path) for path, _, _ in files]})
    command = [sys.executable, "-I", str(PROBE)]
    patience = PATIENCE + PATIENCE_FILE * len(files)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        try:
            begun, errors = child.communicate(given, patience)
            problem = f"its footer breaks the reader, which ends with code {child.returncode}"
        except subprocess.TimeoutExpired:
            child.kill()
            begun, errors = child.communicate()
            problem = f"its footer holds the reader up: {len(files)} files took more than {patience:.0f} seconds"
        except BaseException:  # such as Ctrl-C: nobody waits for the answer any more
            child.kill()
            raise
    if child.returncode == 0:
        return
    if not begun:
        raise RuntimeError(f"{' '.join(command)} ended with code {child.returncode}: {errors[-1000:]}")
    path = files[int(begun.split()[-1])][0]
    raise InputError(f"{path}: not a Parquet file that can be read ({problem}); encode the data set again")
