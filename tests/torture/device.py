"""A power cut on a real file system: ext4 in a file, copied right after a command has ended, and mounted anew."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from disk import Tree
from harness import Child

from vqstack.disk import LOCK


def _done(*words: object) -> bool:
    return subprocess.run([str(word) for word in words], capture_output=True, check=False).returncode == 0


@contextmanager
def _mounted(image: Path, place: Path) -> Iterator[bool]:
    """The file system of an image; False where nothing may be mounted."""
    place.mkdir()
    mounted = _done("mount", "-o", "loop", image, place)
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=True)


def _tree(folder: Path) -> Tree:
    """What is promised to outlast a command: all but its lock and the seals of shards, which it removes."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.endswith((LOCK, ".sha256")))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def after_the_end(folder: Path, action: Callable[[Path], Callable[[], None]]) -> list[str] | None:
    """What a cut right after the end of a command took of its output; none where no file system can be made.

    Args:
        folder: scratch, new.
        action: from the output folder to the command that a child runs.
    """
    folder.mkdir()
    image, copy = folder / "disk.img", folder / "cut.img"
    with image.open("wb") as file:
        file.truncate(2**27)
    if shutil.which("mkfs.ext4") is None or not _done("mkfs.ext4", "-q", "-F", image):
        return None
    with _mounted(image, folder / "disk") as mounted:
        if not mounted:
            return None
        end = Child(action(folder / "disk" / "out"), folder).end(300)
        shutil.copyfile(image, copy)  # what has reached the disk, and nothing that still waits in memory
        written = _tree(folder / "disk" / "out")
    with _mounted(copy, folder / "after"):
        left = _tree(folder / "after" / "out")
    lost = [name for name in {**written, **left} if written.get(name) != left.get(name)]
    return [str(end)] if end.code or not written else lost
