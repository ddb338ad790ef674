"""The folder of a run: who may write there, and with which settings a run may go on."""

import datetime
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vqstack.checkpoint import LOCK, Lock, check_unlocked, failed_write, write_atomically
from vqstack.config import RunConfig, read_yaml, to_yaml
from vqstack.errors import InputError

CONFIG, HISTORY = "config.yaml", "config-history.jsonl"
# What a run may change when it goes on: none of it moves the weights.
MAY_CHANGE = {"encode_batch", "sample_grid", "sampling", "trackers"}
MAY_CHANGE_IN_TRAINING = {"checkpoint_every", "checkpoint_minutes", "collapse", "keep", "max_bad_steps"}


def differences(before: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, old, new) of every value that differs; a value that is missing on one side is None there."""
    if isinstance(before, list) and isinstance(now, list):
        before, now = ({str(i): value for i, value in enumerate(values)} for values in (before, now))
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*before, *now]):
            yield from differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif before != now:
        yield name, before, now


def may_change(name: str) -> bool:
    """Whether a run may go on with another value of this field."""
    first, last = name.split(".")[0], name.split(".")[-1]
    return first in MAY_CHANGE or (first.startswith("train_") and last in MAY_CHANGE_IN_TRAINING)


def _changes(folder: Path, config: RunConfig) -> list[tuple[str, Any, Any]]:
    """Where ``config`` differs from the settings that the run in ``folder`` was last started with."""
    if not (folder / CONFIG).is_file():
        return []
    before = read_yaml(folder / CONFIG, RunConfig)
    return list(differences(before.model_dump(mode="json"), config.model_dump(mode="json")))


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
    _check_contents(folder, config, override)


def _check_contents(folder: Path, config: RunConfig, override: bool) -> None:
    if not (folder / CONFIG).is_file():
        if {path.name for path in folder.iterdir()} <= {LOCK, f"{CONFIG}.tmp"}:
            return  # a run that was killed before it had written anything
        raise InputError(f"{folder} holds something else than a run: choose another folder with --out")
    refused = [change for change in _changes(folder, config) if not may_change(change[0])]
    if refused and not override:
        shown = "; ".join(f"{name}: {old} → {new}" for name, old, new in refused)
        raise InputError(
            f"{folder} holds a run with other settings ({shown}): go on with the old ones, choose another --out, or "
            "add --override-config"
        )


def claim(folder: Path, config: RunConfig, override: bool = False) -> Lock:
    """Make the folder, take its lock, and write the settings; those that changed go into the history too.

    InputError if the folder cannot be made, another process writes into it, or has left there what
    :func:`check_run_folder` refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made ({error.strerror}): choose another --out") from error
    try:
        lock = Lock(folder)
        _check_contents(folder, config, override)  # again: another process may have been here while this one loaded
        changes = _changes(folder, config)
        if changes:
            row = {
                "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                "override": any(not may_change(name) for name, _, _ in changes),
                "changes": {name: [old, new] for name, old, new in changes},
            }
            with (folder / HISTORY).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        write_atomically(folder / CONFIG, lambda aside: aside.write_text(to_yaml(config), encoding="utf-8"))
    except OSError as error:
        raise failed_write(folder, error) from error
    return lock
