"""Output folders: the files of one command, each whole or not there, marked as unfinished until all are on the disk.

The mark, ``.vqstack-unfinished``, is a text file. Its lines are the command, its plan (or nothing), the names of the
files that there will be (JSON, or nothing where the command cannot know), and then the record: checksum and name of
every file that was written. Each step waits for the disk before the next: the files under other names, their lines of
the record, their names, and at the end the mark goes. A kill or a power cut therefore leaves an output that is
finished, or one that says that it is not, and whose files are known by name and checksum.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from vqstack.disk import (
    LOCK,
    Lock,
    append,
    check_ours,
    check_unlocked,
    digest,
    failed_write,
    make_folder,
    remove,
    sync,
    write_text,
    writing,
)
from vqstack.errors import InputError, WriteError
from vqstack.reading import plain_file
from vqstack.settings import differences, told

UNFINISHED = ".vqstack-unfinished"
TOGETHER = 64  # files that wait for the disk together, in some 0.3 ms each where one alone takes 4
HELD = 2**24  # bytes of files that wait at most


@runtime_checkable
class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int = -1, /) -> bytes: ...


@dataclass(frozen=True)
class Unfinished:
    """What the mark of an unfinished output says."""

    command: str
    plan: str
    expected: list[str]
    record: frozenset[str]  # lines of checksum and name

    def missing(self, folder: Path) -> list[str]:
        """Files that there will be and are not yet."""
        return [name for name in self.expected if not (folder / name).exists()]


def unfinished(folder: Path) -> Unfinished | None:
    """The mark of a folder; none for a finished output, and for what is no output at all."""
    path = folder / UNFINISHED
    try:
        lines = plain_file(path).read_bytes().decode().split("\n")[:-1]  # what a kill left of a last line is no line
        command, plan, expected, *record = [*lines, *[""] * 3][: max(3, len(lines))]
        names = json.loads(expected or "[]")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("its third line is no list of names")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: is no mark of an unfinished output ({error}); name another folder") from error
    return Unfinished(command.strip(), plan.strip(), names, frozenset(record))


def differing(there: str, here: str) -> str:
    """What two plans differ in, for a message: `` (NAME: OLD → NEW)``; nothing where one is no JSON."""
    try:
        found = told(differences(json.loads(there), json.loads(here)))
    except (ValueError, RecursionError):
        found = ""
    return f" ({found})" if found else ""


def saved(save: Callable[[BytesIO], Any]) -> bytes:
    """What ``save`` writes into a stream."""
    stream = BytesIO()
    save(stream)
    return stream.getvalue()


def check_folder(path: Path, command: str, plan: str = "") -> None:
    """InputError unless ``path`` can be the output folder of ``command``; writes nothing.

    It must be absent, empty, or unfinished output of the same command with the same ``plan`` that no other process is
    writing now. Without a plan, what lies there must be files that the command wrote: it will remove them.
    """
    check_unlocked(path)
    list(_leftovers(path, command, plan))


def _leftovers(path: Path, command: str, plan: str) -> Iterator[Path]:
    """What lies in a folder that may be used, but for its mark and its lock."""
    try:
        if path.exists() and not path.is_dir():
            raise InputError(f"{path}: is a file, not a folder; name another output folder")
        children = [p for p in path.iterdir() if p.name != LOCK] if path.exists() else []
        mark = unfinished(path)
        others = [child for child in children if not child.name.startswith(UNFINISHED)]
        if mark is None and others:
            raise InputError(f"{path}: is not empty; name another output folder or remove it")
        if mark is not None and mark.command != command:
            raise InputError(
                f"{path}: holds unfinished output of {mark.command}; name another output folder or remove it"
            )
        if mark is not None and mark.plan != plan:
            raise InputError(
                f"{path}: holds unfinished output of {command} with other settings, data or weights"
                f"{differing(mark.plan, plan)}; repeat that command as it was, name another output folder or remove it"
            )
        if mark is not None and not plan:  # all that lies in inner folders too, those last that hold others
            others = [inner for child in others for inner in _below(child)]
        for child in others:
            if mark is not None and not plan and not _written(path, child, mark):
                raise InputError(
                    f"{child}: lies in unfinished output of {command}, which did not write it; move it away or name "
                    "another output folder"
                )
            yield child
    except OSError as error:
        raise InputError(f"{path}: cannot be used as output folder ({error}); name another one") from error


def _below(path: Path) -> Iterator[Path]:
    """What lies in a folder, links not followed, and then itself."""
    if path.is_dir() and not path.is_symlink():
        for child in path.iterdir():
            yield from _below(child)
    yield path


def _written(folder: Path, path: Path, mark: Unfinished) -> bool:
    """Whether a file is one that the command wrote, as it wrote it, or a folder that one needs."""
    name = path.relative_to(folder).as_posix()
    if path.is_symlink():
        return False
    if path.is_dir():
        return any(line.partition("  ")[2].startswith(f"{name}/") for line in mark.record)
    return path.is_file() and _line(digest(path), name) in mark.record


def _line(checksum: str, name: str) -> str:
    return f"{checksum}  {name}"


class Output:
    """The right to write into a folder, until :meth:`finish` or the end of the process.

    Making one marks the folder as unfinished output of ``command``; InputError as :func:`check_folder`. What a command
    without a plan has left there is removed; with a ``plan`` (one line of text) it belongs to the same output and is
    left for the command to go on with.

    Args:
        folder: made where it is missing.
        command: name of the program.
        plan: all that an output depends on, where a command goes on with an unfinished one.
        expected: names of the files that there will be, so that a reader of a part knows what is missing.
    """

    def __init__(self, folder: Path, command: str, plan: str = "", expected: Sequence[str] = ()) -> None:
        check_folder(folder, command, plan)
        self.folder = folder
        self._waiting: dict[str, bytes | Readable] = {}
        self._inner = set[Path]()  # folders inside, which files have been put into
        text = f"{command}\n{plan}\n{json.dumps(list(expected)) if expected else ''}\n"
        try:
            make_folder(folder)
            self.lock = Lock(folder)
            # Again: another process may have begun, or finished, in between.
            leftovers = list(_leftovers(folder, command, plan))
            for child in leftovers if not plan else []:
                child.rmdir() if child.is_dir() else child.unlink()
            for aside in folder.glob(f"{UNFINISHED}.*"):
                aside.unlink()
            write_text(folder / UNFINISHED, text)
        except (OSError, WriteError) as error:
            raise InputError(f"{folder}: cannot be used as output folder ({error}); name another one") from error

    def write(self, name: str, content: bytes | Readable) -> None:
        """A file of the output, maybe in an inner folder; it may appear with later ones. WriteError if it cannot.

        A stream is read to its end, part by part: what it holds need not fit into memory.
        """
        self._waiting[name] = content
        held = sum(len(waiting) for waiting in self._waiting.values() if isinstance(waiting, bytes))
        if len(self._waiting) >= TOGETHER or held >= HELD:
            self._settle()

    def _settle(self) -> None:
        """Put the files that wait on the disk. WriteError if they cannot be written."""
        check_ours(self.folder)
        asides, lines, name = dict[Path, Path](), list[str](), ""
        try:
            for number, (name, content) in enumerate(self._waiting.items()):
                aside = self.folder / f"{UNFINISHED}.{number}"
                with aside.open("wb") as file:
                    shutil.copyfileobj(BytesIO(content) if isinstance(content, bytes) else content, file)
                asides[aside] = self.folder / name
                lines.append(_line(digest(aside), name) + "\n")
            with ThreadPoolExecutor(16) as pool:
                list(pool.map(sync, asides))
            append(self.folder / UNFINISHED, "".join(lines))
            for aside, path in asides.items():
                if path.parent not in self._inner and path.parent != self.folder:
                    make_folder(path.parent)
                    self._inner.add(path.parent)
                if path.exists():
                    raise WriteError(f"{path} was put there meanwhile: move it away, then run the same command again")
                os.rename(aside, path)
        except OSError as error:
            raise failed_write(self.folder / name, error) from error
        self._waiting.clear()

    def finish(self) -> None:
        """Marks the output as finished, once all of it is on the disk: from now on no command writes there."""
        self._settle()
        with writing(self.folder):
            for folder in (*self._inner, self.folder):
                sync(folder)
            remove(self.folder / UNFINISHED)
            remove(self.folder / LOCK)  # second: who takes this lock or a new one finds a finished folder
            sync(self.folder)
        self.lock.release()
