"""The folder of a run: who may write there, and with which settings and images a run may go on."""

import datetime
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from vqstack.config import SEAL, RunConfig, read_yaml, to_yaml, without_unused
from vqstack.disk import LOCK, Lock, append, check_unlocked, failed_write, make_folder, read_sealed, sealed, write_text
from vqstack.errors import InputError, WriteError, reason
from vqstack.reading import plain_file
from vqstack.settings import Change, differences, told

CONFIG, HISTORY, IMAGES = "config.yaml", "config-history.jsonl", "images.json"
# What a run may change when it goes on: none of it moves the weights, but by rounding, as the number of processes does.
MAY_CHANGE = {"cpu_offload", "encode_batch", "ledger_images", "sample_grid", "sampling", "sharded", "trackers"}
MAY_CHANGE_IN_TRAINING = {
    "checkpoint_every",
    "checkpoint_minutes",
    "collapse",
    "gradient_checkpointing",
    "keep",
    "max_bad_steps",
}


Images = dict[str, Any]  # as vqstack.images.identity describes them


def may_change(name: str) -> bool:
    """Whether a run may go on with another value of this field."""
    first, last = name.split(".")[0], name.split(".")[-1]
    return first in MAY_CHANGE or (first.startswith("train_") and last in MAY_CHANGE_IN_TRAINING)


def read_config(folder: Path) -> RunConfig:
    """The settings that the run in ``folder`` was last started with; InputError where they are not as it wrote them.

    The first versions wrote no checksum: their files begin with the name of a field. What they took and did not use is
    left out.
    """
    path = folder / CONFIG
    try:
        first, _, rest = plain_file(path).read_bytes().partition(b"\n")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): allow reading it") from error
    has_seal = not re.match(rb"[a-z_]+:", first)
    if has_seal and first != f"{SEAL}{hashlib.sha256(rest).hexdigest()}".encode():
        raise InputError(
            f"{path} is not what the run wrote (its checksum differs): put back what was there, or start the run with "
            "--override-config; settings change on the command line, not in this file"
        )
    return without_unused(read_yaml(path, RunConfig))


def _write_config(folder: Path, config: RunConfig) -> None:
    text = to_yaml(without_unused(config))
    text = f"{SEAL}{hashlib.sha256(text.encode()).hexdigest()}\n{text}"
    write_text(folder / CONFIG, text)


def read_images(folder: Path) -> Images | None:
    """What the run in ``folder`` keeps of its images (:func:`vqstack.images.identity`); None where it keeps nothing.

    InputError where that is not what the run wrote. Runs of the first versions kept nothing.
    """
    path = folder / IMAGES
    try:
        return read_sealed(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is not what the run wrote ({error}): put back what was there, or add --override-config to go on "
            "with the images of today"
        ) from error


def changed_images(folder: Path, images: Images) -> list[Change]:
    """Where ``images`` differ from those that the run in ``folder`` keeps; nothing where it kept none."""
    before = read_images(folder)
    return [] if before is None else list(differences(before, images, "images"))


def _changes(folder: Path, config: RunConfig, images: Images | None, override: bool) -> list[Change]:
    """Where settings and images differ from those that the run in ``folder`` was last started with.

    Where these cannot be known any more, that is the one difference, and an error without an override.
    """
    if not (folder / CONFIG).is_file():
        return []
    found: list[Change] = []
    try:
        before = read_config(folder)
        now = without_unused(config)  # as the one that is read: what nothing uses makes no difference
        found += differences(before.model_dump(mode="json"), now.model_dump(mode="json"))
    except InputError as error:
        if not override:
            raise
        found.append((CONFIG, str(error), "replaced"))
    try:
        found += changed_images(folder, images) if images is not None else []
    except InputError as error:
        if not override:
            raise
        found.append((IMAGES, str(error), "replaced"))
    return found


def check_run_folder(folder: Path, config: RunConfig, override: bool = False) -> None:
    """A run's folder must be new, empty, or hold a run of the same configuration that nobody is writing.

    Args:
        folder: where the run would write.
        config: its settings; some fields may differ (:func:`may_change`).
        override: let all of them differ.
    """
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    except OSError as error:
        raise InputError(f"{folder} cannot be used ({error.strerror}): choose another --out") from error
    if not existing.is_dir():
        raise InputError(f"{existing} is a file: choose another folder with --out")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{existing} cannot be written to: choose another folder with --out")
    if existing != folder or not any(folder.iterdir()):
        return
    check_unlocked(folder)
    _check_contents(folder, config, None, override)


def _check_contents(folder: Path, config: RunConfig, images: Images | None, override: bool) -> None:
    if not (folder / CONFIG).is_file():
        if {path.name for path in folder.iterdir()} <= {LOCK, IMAGES, f"{IMAGES}.tmp", f"{CONFIG}.tmp"}:
            return  # a run that was killed before it had written anything
        raise InputError(f"{folder} holds something else than a run: choose another folder with --out")
    changes = _changes(folder, config, images, override)
    if (refused := shown(changes)) and not override:
        kinds = {"images" if name.startswith("images.") else "settings": 0 for name, _, _ in changes}
        raise InputError(
            f"{folder} holds a run with other {' and '.join(kinds)} ({refused}): go on with the old ones, choose "
            "another --out, or add --override-config"
        )


def shown(changes: Iterable[Change]) -> str:
    """The changes that need an override, as a line; empty without any."""
    return told(change for change in changes if not may_change(change[0]))


def claim(
    folder: Path,
    config: RunConfig,
    override: bool = False,
    check: Callable[[str], None] = lambda changed: None,
    images: Images | None = None,
    keep: bool = False,
) -> Lock:
    """Make the folder, take its lock, and write settings and images; those that changed go into the history too.

    InputError if the folder cannot be made, another process writes into it, or has left there what
    :func:`check_run_folder` refuses, or if the images are not those that the run began with.

    Args:
        folder, config, override: as in :func:`check_run_folder`.
        check: is called with the changes that needed the override, if there are any, before they are written; may
            refuse them.
        images: what there is now; None: neither compared nor written.
        keep: let the run keep those that it began with, even with an override: nothing is trained any more.
    """
    try:
        make_folder(folder)
    except WriteError as error:
        raise InputError(f"{folder} cannot be made ({reason(error)}): choose another --out") from error
    try:
        lock = Lock(folder)
        try:
            _check_contents(folder, config, images, override)  # again: another process may have been here meanwhile
            changes = _changes(folder, config, images, override)
            _write_history(folder, changes, check)
            damaged = any(name == IMAGES for name, _, _ in changes)
            if images is not None and (damaged or not (keep and (folder / IMAGES).exists())):
                write_text(folder / IMAGES, sealed(images))
            _write_config(folder, config)
        except BaseException:
            lock.release()
            raise
    except OSError as error:
        raise failed_write(folder, error) from error
    return lock


def _write_history(folder: Path, changes: list[Change], check: Callable[[str], None]) -> None:
    if overridden := shown(changes):
        check(overridden)
    if changes:
        row = {
            "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "override": bool(overridden),
            "changes": {name: [old, new] for name, old, new in changes},
        }
        append(folder / HISTORY, json.dumps(row) + "\n")
