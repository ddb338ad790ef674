"""Checkpoints: folders ``step-0000123`` with ``state.pt`` and ``mark``, the sealed checksum of the state.

Where processes share the tensors among them, these lie in files beside it (:mod:`vqstack.shards`), whose checksums the
mark has, too. A checkpoint is written under another name, forced to the disk, and renamed: at every instant the folder
is whole or absent.
"""

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from accelerate import Accelerator
from pydantic import AliasChoices, Field

from vqstack import shards
from vqstack.disk import check_ours, digest, failed_write, make_folder, on_main, read_sealed, sealed, sync
from vqstack.errors import InputError
from vqstack.settings import Settings
from vqstack.terminal import warn

FORMAT_VERSION = 3
WHOLE = 2  # version of a checkpoint without shards, which older programs read
STATE, SHARDS, MARK = "state.pt", "shards", "mark"


class _Mark(Settings):
    """What makes a folder a checkpoint."""

    format_version: int = Field(description="Version of the checkpoint's format.")
    step: int = Field(ge=0, description="Steps taken.")
    score: float | None = Field(
        validation_alias=AliasChoices("score", "nats"),  # as version 1 called it
        description="Of the validation split, nats per image or another metric, the less the better; none: not scored.",
    )
    sha256: str = Field(description="Checksum of state.pt.")
    shards: dict[str, str] = Field(
        default={}, description="Checksum of each file in shards/, by its name; none: no shards."
    )


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the disk: its folder, the steps taken, and its validation score if it was evaluated."""

    folder: Path
    step: int
    score: float | None

    def read(self, mapped: bool = False) -> dict[str, Any]:
        """The state that was written; ``mapped`` leaves its tensors on the disk until they are looked at.

        Tensors that lie in shards are on the meta device until :meth:`filled` reads them.
        """
        return torch.load(self.folder / STATE, map_location="cpu", weights_only=True, mmap=mapped)

    def filled(self, state: dict[str, Any], mesh: Any = None, group: Any = None) -> dict[str, Any]:
        """The state that was read, or a part of its tree, with its shards, see :func:`vqstack.shards.filled`."""
        return shards.filled(self.folder / SHARDS, state, mesh, group)


class _Hashed:
    """A file that is hashed as it is written. Remembers why a write failed, which torch.save does not tell."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sha256 = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        self.sha256.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def write_state(path: Path, state: dict[str, Any]) -> str:
    """Write a state for ``torch.load`` and force it to the disk; its checksum. OSError if it cannot be written."""
    with path.open("wb") as file:
        hashed = _Hashed(file)
        try:
            torch.save(state, hashed)  # type: ignore[arg-type]  # write and flush are all it needs
        except (RuntimeError, OSError) as error:
            raise (hashed.error or error) from error
        file.flush()
        os.fsync(file.fileno())
    return hashed.sha256.hexdigest()


class Checkpoints:
    """The checkpoints of one phase: the newest ones, and always the best.

    Args:
        folder: holds them, and nothing else.
        keep: how many of the newest to keep; the one with the lowest score is kept besides.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def write(self, step: int, state: dict[str, Any], score: float | None = None) -> None:
        """Write a checkpoint and remove those that are not needed any more. WriteError if it cannot be written."""
        self._finish(self._begin(step), step, state, score, {})

    def write_sharded(
        self, step: int, state: dict[str, Any], score: float | None, accelerator: Accelerator, group: Any
    ) -> None:
        """The same by all processes together, of a state whose tensors they share; ``group``: of them, on the CPU."""
        whole, sharded = shards.split(state)
        aside = on_main(accelerator, lambda: self._begin(step))
        try:
            checksums = shards.write(aside / SHARDS, sharded, group)
        except OSError as error:
            on_main(accelerator, lambda: shutil.rmtree(aside, ignore_errors=True))
            raise failed_write(aside, error) from error
        on_main(accelerator, lambda: self._finish(aside, step, whole, score, checksums))

    def _begin(self, step: int) -> Path:
        """An empty folder beside the checkpoints."""
        check_ours(self.folder)
        aside = self.folder / f".step-{step:07d}.tmp"
        try:
            make_folder(self.folder)
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
        except OSError as error:
            raise failed_write(aside, error) from error
        return aside

    def _finish(
        self, aside: Path, step: int, state: dict[str, Any], score: float | None, checksums: dict[str, str]
    ) -> None:
        """Make a checkpoint of it, with the state and with the shards that it may hold already."""
        final = self.folder / f"step-{step:07d}"
        try:
            about: dict[str, Any] = {"step": step, "score": score, "sha256": write_state(aside / STATE, state)}
            about |= {"format_version": FORMAT_VERSION, "shards": checksums} if checksums else {"format_version": WHOLE}
            with (aside / MARK).open("w", encoding="utf-8") as file:
                file.write(sealed(_Mark(**about).model_dump(exclude=None if checksums else {"shards"})))
                file.flush()
                os.fsync(file.fileno())
            if checksums:
                sync(aside / SHARDS)
            sync(aside)
            check_ours(self.folder)  # writing a large state takes a while
            os.rename(aside, final)
            sync(self.folder)
        except OSError as error:
            shutil.rmtree(aside, ignore_errors=True)
            raise failed_write(final, error) from error
        self._rotate()

    def _rotate(self) -> None:
        marked = self._marked()
        best = min((c for c in marked if c.score is not None), key=lambda c: c.score or 0.0, default=None)
        for checkpoint in marked[: -self.keep]:
            if checkpoint != best:  # renamed first: one that is half removed must not look like a damaged one
                aside = self.folder / f".{checkpoint.folder.name}.tmp"
                os.rename(checkpoint.folder, aside)
                shutil.rmtree(aside, ignore_errors=True)

    def _marked(self) -> list[Checkpoint]:
        """Checkpoints by their marks, oldest first, their states unchecked."""
        found = []
        for folder in sorted(self.folder.glob("step-*")):
            mark = _read_mark(folder)
            if isinstance(mark, _Mark):
                found.append(Checkpoint(folder, mark.step, mark.score))
        return found

    def intact(self) -> list[Checkpoint]:
        """Checkpoints whose checksums hold, oldest first. Removes unfinished ones; names damaged ones, set aside."""
        for leftover in self.folder.glob(".step-*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
        found = []
        for folder in sorted(self.folder.glob("step-*")):
            if not (folder / MARK).exists():
                shutil.rmtree(folder, ignore_errors=True)
                continue
            examined = _examined(folder)
            if isinstance(examined, Checkpoint):
                found.append(examined)
                continue
            aside = folder.with_name(f"damaged-{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(folder, aside)
            warn(f"{folder} is damaged ({examined}); going on without it")
        return found

    def newest(self) -> Checkpoint | None:
        """The last of :meth:`intact`, found without changing anything."""
        examined = map(_examined, sorted(self.folder.glob("step-*"), reverse=True))
        return next((checkpoint for checkpoint in examined if isinstance(checkpoint, Checkpoint)), None)

    def remove(self) -> None:
        """Remove them all, damaged ones too."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _read_mark(folder: Path) -> "_Mark | str":
    """The mark of a checkpoint, or what is wrong with it; InputError if a newer program wrote it."""
    try:
        content = read_sealed(folder / MARK)
    except (OSError, ValueError) as error:
        return f"{MARK}: {error}"
    if content["format_version"] > FORMAT_VERSION:
        raise InputError(
            f"{folder} has format version {content['format_version']}, this program reads {FORMAT_VERSION}: "
            "update vqstack"
        )
    return _Mark.model_validate(content)


def _examined(folder: Path) -> "Checkpoint | str":
    """The checkpoint in a folder, or what is wrong with it."""
    mark = _read_mark(folder)
    if isinstance(mark, str):
        return mark
    for path, sha256 in {STATE: mark.sha256, **{f"{SHARDS}/{name}": one for name, one in mark.shards.items()}}.items():
        try:
            if digest(folder / path) != sha256:
                return f"{path} is not what was written"
        except OSError as error:
            return f"{path} cannot be read: {error.strerror}"
    return Checkpoint(folder, mark.step, mark.score)
