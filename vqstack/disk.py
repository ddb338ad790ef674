"""Files that are whole or not there: atomic writing, sealed lines, one writer for a folder."""

import errno
import fcntl
import hashlib
import json
import os
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from vqstack.errors import CommandError, InputError, WriteError
from vqstack.paths import check_local
from vqstack.reading import opened, plain_file

Result = TypeVar("Result")

LOCK = ".lock"
ONLY_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
EITHER = {errno.EACCES, errno.EPERM, errno.EIO}
NO_PATH = {errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG}


def failed_write(path: Path | str, error: Exception) -> WriteError:
    """The one line of a file that could not be written."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return WriteError(
        f"{path} cannot be written ({reason}): make room or allow writing there, then run the same command again; "
        "what was written before is intact"
    )


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Around what writes: an error of the system becomes a WriteError. See :func:`vqstack.reading.reading`.

    And so does a folder that is no longer ours (:func:`check_ours`).
    """
    check_ours(Path(path))
    try:
        yield
    except OSError as error:
        raise failed_write(path, error) from error


def told_apart(error: OSError) -> CommandError | None:
    """How an error of the system ends a command; None where only a traceback explains it.

    Whatever writes says so itself (:func:`writing`), so that a file which is still not told of was to be read.
    """
    if error.errno in ONLY_WRITING or (error.errno in EITHER and error.filename is None):
        return failed_write(error.filename or "a file", error)
    if error.errno in EITHER | NO_PATH:
        return InputError(f"{error.filename}: cannot be read ({error.strerror}): mend it, or name another one")
    return None


def remove(path: Path) -> None:
    """Remove a file of our own, where it is there. WriteError if it cannot be."""
    with writing(path):
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder and those above it that are missing, and force their names to the disk, or WriteError.

    InputError for an address, of which a folder ``s3:`` would be made.
    """
    check_local(path)
    with writing(path):
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            sync(folder.parent)


def append(path: Path, text: str) -> None:
    """Add text to the end of a file and force it to the disk. WriteError if it cannot be written."""
    with writing(path):
        new = not path.exists()
        with plain_file(path).open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if new:
            sync(path.parent)


def write_atomically(path: Path, save: Callable[[Path], Any], ending: str = ".tmp") -> None:
    """Write a file aside, force it to the disk and rename it: a reader never sees half of it. WriteError if not.

    Aside it has another ``ending``; those of writers that may write the same file at once must differ.
    """
    check_ours(path)
    aside = path.with_name(path.name + ending)
    try:
        aside.unlink(missing_ok=True)
        aside.touch()
        mode = aside.stat().st_mode
        save(aside)
        aside.chmod(mode)  # what the user's umask allows; some libraries write files for their owner alone
        sync(aside)
        check_ours(path)  # writing a large file takes a while
        os.replace(aside, path)
        sync(path.parent)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise failed_write(path, error) from error
        raise


def write_text(path: Path, text: str) -> None:
    """:func:`write_atomically` of a text."""
    write_atomically(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def sealed(content: Any) -> str:
    """JSON in a line of text, and a line with its checksum."""
    line = json.dumps(content)
    return _with_checksum(line)


def _with_checksum(line: str) -> str:
    return f"{line}\n{hashlib.sha256(line.encode()).hexdigest()}\n"


def unsealed(text: str) -> str:
    """The line that was sealed. ValueError where the text is not what was written."""
    line = text.partition("\n")[0]
    if text != _with_checksum(line):
        raise ValueError("it is not what was written")
    return line


def read_sealed(path: Path) -> Any:
    """What is sealed in a file, as JSON. OSError, or ValueError where the file is not what was written."""
    return json.loads(unsealed(plain_file(path).read_text(encoding="utf-8")))


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    sha256 = hashlib.sha256()
    with opened(path) as file:
        while block := file.read(2**20):
            sha256.update(block)
    return sha256.hexdigest()


def on_main(accelerator: Accelerator, action: Callable[[], Result]) -> Result:
    """What ``action`` returns, run by the main process alone; an error that ends a command ends it in every process."""
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = action()
        except CommandError as error:
            outcome[1] = error
        except OSError as error:
            outcome[1] = told_apart(error) or failed_write(error.filename or "a file", error)
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


class Lock:
    """The right to write into a folder, held by one process at a time.

    The kernel takes the lock back when the process ends, however it ends, so a crash blocks nobody. The file stays; an
    existing one means nothing. On a network file system that has no locks, every attempt succeeds. The lock is of a
    file, and writing goes by names: :func:`check_ours` compares the two before what is written counts.
    """

    def __init__(self, folder: Path, patience: float = 1.0) -> None:
        """Take the lock. InputError if another process still holds it after ``patience`` seconds."""
        descriptor = os.open(plain_file(folder / LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self.release = weakref.finalize(self, os.close, descriptor)  # called, or when nobody has the lock any more
        self.folder, self._descriptor = folder.absolute(), descriptor
        _locks.add(self)
        deadline = time.monotonic() + patience
        while not _flock(descriptor, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                self.release()
                raise _taken(folder)
            time.sleep(0.05)  # somebody may only be looking

    def check(self) -> None:
        """WriteError if the folder that is locked no longer has its name: it was moved, or its lock was removed."""
        if not self.release.alive:
            return
        try:
            there, ours = os.stat(self.folder / LOCK), os.fstat(self._descriptor)
        except FileNotFoundError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
            raise WriteError(
                f"{self.folder} is no longer the folder that this command began to write into (it was moved or "
                "replaced, or its .lock removed): run the command again where it is now; nothing more is written"
            )


_locks: "weakref.WeakSet[Lock]" = weakref.WeakSet()


def check_ours(path: Path) -> None:
    """WriteError if ``path`` lies in a folder that this process has locked and that meanwhile has another name."""
    for lock in list(_locks):
        if path.absolute().is_relative_to(lock.folder):
            lock.check()


def _let_go() -> None:
    """A forked child, such as a worker that reads images, may outlive the process whose lock it is."""
    for lock in list(_locks):
        lock.release()


os.register_at_fork(after_in_child=_let_go)


def _flock(descriptor: int, kind: int) -> bool:
    """Whether nobody stands in the way of a lock; where the file system has none, nobody does."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
    return True


def check_unlocked(folder: Path) -> None:
    """InputError if another process writes into ``folder`` now; changes nothing."""
    try:
        descriptor = os.open(plain_file(folder / LOCK), os.O_RDONLY)
    except OSError:
        return
    try:
        if not _flock(descriptor, fcntl.LOCK_SH):
            raise _taken(folder)
    finally:
        os.close(descriptor)


def _taken(folder: Path) -> InputError:
    return InputError(f"another process is writing into {folder}: wait until it has ended, or choose another --out")
