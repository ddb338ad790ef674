"""What both forms of stored codes stand on: number types, fingerprints, output folders."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqstack.checkpoint import LOCK, Lock, check_unlocked, sync, write_atomically
from vqstack.errors import InputError, WriteError

UNFINISHED = ".vqstack-unfinished"
ASIDE = ".tmp"  # ending of a file that is still being written


def smallest_dtype(vocabulary: int) -> np.dtype[Any]:
    """The smallest of uint8, uint16 and uint32 that holds the codes 0 … ``vocabulary`` - 1."""
    for name in ("uint8", "uint16", "uint32"):
        if vocabulary <= np.iinfo(name).max + 1:
            return np.dtype(name)
    raise ValueError(f"no unsigned integer of at most 32 bits holds {vocabulary} codes")


def to_stored(codes: Tensor, vocabulary: int) -> NDArray[Any]:
    """int64 codes as the smallest unsigned integer. A code outside 0 … ``vocabulary`` - 1 is a ValueError."""
    values = codes.cpu().numpy()
    if values.size and not (values.min() >= 0 and values.max() < vocabulary):
        raise ValueError(f"codes from {values.min()} to {values.max()} in a vocabulary of {vocabulary}")
    return values.astype(smallest_dtype(vocabulary))


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """SHA-256, in hexadecimal, of the sorted names, dtypes, shapes and bytes of ``state``, wherever its tensors lie."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode() + b"\n")
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_folder(path: Path, command: str, plan: str = "", writes: Sequence[str] = ()) -> None:
    """InputError unless ``path`` can be the output folder of ``command``; writes nothing.

    It must be absent, empty, or unfinished output of the same command with the same ``plan`` that no other process is
    writing now. Without a plan, what lies there must be files whose names match ``writes``.
    """
    check_unlocked(path)
    _check_contents(path, command, plan, writes)


def _check_contents(path: Path, command: str, plan: str, writes: Sequence[str]) -> None:
    marker = path / UNFINISHED
    try:
        if path.exists() and not path.is_dir():
            raise InputError(f"{path}: is a file, not a folder; name another output folder")
        found = marker.read_text("utf-8") if marker.exists() else ""
        owner, _, planned = (part.strip() for part in found.partition("\n"))
        children = [child for child in path.iterdir() if child.name != LOCK] if path.exists() else []
        foreign = [child for child in children if not _written(child, writes)]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be used as output folder ({error}); name another one") from error
    if owner not in ("", command):
        raise InputError(f"{path}: holds unfinished output of {owner}; name another output folder or remove it")
    if owner != command and any(not child.name.startswith(UNFINISHED) for child in children):
        raise InputError(f"{path}: is not empty; name another output folder or remove it")
    if owner and planned != plan:
        raise InputError(
            f"{path}: holds unfinished output of {owner} with other settings, data or weights; repeat that command "
            "as it was, name another output folder or remove it"
        )
    if owner and not plan and foreign:
        raise InputError(
            f"{foreign[0]}: lies in unfinished output of {owner}, which did not write it; move it away or name another "
            "output folder"
        )


def _written(path: Path, writes: Sequence[str]) -> bool:
    """Whether a command whose files have such names (shell patterns) may have written this one."""
    name = path.name.removesuffix(ASIDE)
    return name == UNFINISHED or (any(fnmatchcase(name, pattern) for pattern in writes) and not path.is_dir())


def claim_folder(path: Path, command: str, plan: str = "", writes: Sequence[str] = ()) -> Lock:
    """Makes ``path`` a folder marked as the unfinished output of ``command``; InputError as :func:`check_folder`.

    Leftovers of the same command, files whose names match ``writes``, are removed, unless there is a ``plan`` (one line
    of text): they then belong to the same output and are left for the command to go on with. Nobody else writes there
    until the lock that is returned is given to :func:`release_folder`, or the process ends, however it ends.
    """
    check_folder(path, command, plan, writes)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = Lock(path)
        _check_contents(path, command, plan, writes)  # again: another process may have begun, or finished, in between
        write_atomically(path / UNFINISHED, lambda aside: aside.write_text(f"{command}\n{plan}\n", "utf-8"))
        for child in path.iterdir():
            if not plan and child.name not in (UNFINISHED, LOCK):
                child.unlink()
    except (OSError, WriteError) as error:
        raise InputError(f"{path}: cannot be used as output folder ({error}); name another one") from error
    return lock


def release_folder(path: Path, lock: Lock) -> None:
    """Marks the output in ``path`` as finished: from now on no command writes there."""
    (path / UNFINISHED).unlink(missing_ok=True)
    (path / LOCK).unlink(missing_ok=True)  # second: who takes this lock or a new one finds a finished folder
    sync(path)
    lock.release()
