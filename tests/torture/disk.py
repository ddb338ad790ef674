"""A disk that forgets what was not forced to it: what a power cut leaves of a folder, without mounting anything.

POSIX promises the bytes of a file after ``fsync`` of the file, and the names in a folder after ``fsync`` of the folder.
Of the rest anything may have arrived. Four cuts stand for all: names that were added since their folder was last forced
are there or not, names that were removed are gone or not. Bytes that were not forced are lost in each of them.
"""

import os
import stat
import threading
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

from vqstack.disk import LOCK
from vqstack.output import UNFINISHED

Tree = dict[str, bytes]
"""Files of a folder by their path in it."""
Names = dict[str, tuple[int, bool]]
"""The number of what bears each name in a folder, and whether it is a folder itself."""

CHANGES = ("rename", "replace", "unlink", "remove", "rmdir", "mkdir")


class Disk:
    """Watches a folder while a command writes there; a context manager.

    What lies there at the beginning is on the disk. A cut is made before and after every change of a name and every
    ``fsync`` that Python makes (one that a library makes by itself does not count, which is the safe side).

    Attributes:
        cuts: what could have been left, each tree once, in the order of time.
    """

    def __init__(self, folder: Path) -> None:
        self.cuts = list[Tree]()
        self._seen, self._lock, self._replaced = set[int](), threading.RLock(), dict[str, Any]()
        self._held = dict[int, int]()  # descriptors, so that no number is given to another file
        self._bytes, self._names, self._present = dict[int, bytes](), dict[int, Names](), dict[int, Names]()
        self._root = self._hold(os.open(folder, os.O_RDONLY))
        self._look()
        for number in list(self._held):
            self._force(number)
        self._cut()

    def __enter__(self) -> "Disk":
        for name in ("fsync", *CHANGES):
            self._replaced[name] = getattr(os, name)
            setattr(os, name, self._watched(self._replaced[name], name == "fsync"))
        return self

    def __exit__(self, *_: object) -> None:
        for name, operation in self._replaced.items():
            setattr(os, name, operation)

    def now(self) -> list[Tree]:
        """What a cut leaves at this moment, at worst in four ways."""
        self._look()
        return [self._tree(self._root, *orders) for orders in product((False, True), repeat=2)]

    def written(self) -> Tree:
        """What is there without a cut."""
        self._look()
        return self._files(self._root, lambda number: self._present.get(number, {}), self._content)

    def _watched(self, operation: Callable[..., Any], forces: bool) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            with self._lock:
                self._cut()
                result = operation(*arguments, **options)
                if forces and (number := os.fstat(arguments[0]).st_ino) in self._held:
                    self._force(number)
                self._cut()
                return result

        return wrapped

    def _cut(self) -> None:
        for tree in self.now():
            key = hash(frozenset(tree.items()))
            if key not in self._seen:
                self._seen.add(key)
                self.cuts.append(tree)

    def _hold(self, descriptor: int) -> int:
        number = os.fstat(descriptor).st_ino
        if self._held.setdefault(number, descriptor) != descriptor:
            os.close(descriptor)
        return number

    def _force(self, number: int) -> None:
        if stat.S_ISDIR(os.fstat(self._held[number]).st_mode):
            self._names[number] = self._present.get(number, {})
        else:
            self._bytes[number] = self._content(number)

    def _content(self, number: int) -> bytes:
        return os.pread(self._held[number], os.fstat(self._held[number]).st_size, 0)

    def _look(self) -> None:
        """The names in all folders, those that were taken away too."""
        left = [self._root, *self._names]
        self._present = {}
        while left:
            number = left.pop()
            if number not in self._present:
                self._present[number] = self._list(self._held[number])
                left += [child for child, is_folder in self._present[number].values() if is_folder]

    def _list(self, folder: int) -> Names:
        found = Names()
        for name in os.listdir(folder):
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
                if status.st_ino not in self._held:
                    self._hold(os.open(name, os.O_RDONLY, dir_fd=folder))
                found[name] = status.st_ino, stat.S_ISDIR(status.st_mode)
        return found

    def _tree(self, folder: int, added: bool, removed: bool) -> Tree:
        def names(number: int) -> Names:
            before, after, found = self._names.get(number, {}), self._present.get(number, {}), Names()
            for name in {*before, *after}:
                if name in after and (added or before.get(name) == after[name]):
                    found[name] = after[name]
                elif name in before and (name in after or not removed):
                    found[name] = before[name]
            return found

        return self._files(folder, names, lambda number: self._bytes.get(number, b""))

    def _files(self, folder: int, names: Callable[[int], Names], content: Callable[[int], bytes]) -> Tree:
        tree = Tree()
        for name, (number, is_folder) in names(folder).items():
            if is_folder:
                tree |= {f"{name}/{path}": data for path, data in self._files(number, names, content).items()}
            else:
                tree[name] = content(number)
        return tree


def differing(tree: Tree, written: Tree, under: str = "") -> list[str]:
    """Files below a folder that a cut has changed or taken away."""
    return [name for name in written if name.startswith(under) and tree.get(name) != written[name]]


def output(tree: Tree, written: Tree) -> list[str]:
    """What is wrong with the output folder ``out``: without its mark, and with something in it, it must be whole."""
    begun = (f"out/{UNFINISHED}.", f"out/{LOCK}")  # what comes before the mark does
    finished = f"out/{UNFINISHED}" not in tree and any(not name.startswith(begun) for name in tree)
    if f"out/{UNFINISHED}" in tree and tree[f"out/{UNFINISHED}"].count(b"\n") < 3:
        return ["the mark of unfinished output is empty"]
    return [f"marked as finished without {name}" for name in differing(tree, written)] if finished else []
