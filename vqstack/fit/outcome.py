"""What a phase leaves: its best weights and ``DONE``, with their checksum and its own; until then checkpoints."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqstack.checkpoint import Checkpoints, write_state
from vqstack.disk import digest, sealed, unsealed, write_atomically, write_text
from vqstack.errors import InputError
from vqstack.pretrained import check_numbers
from vqstack.reading import plain_file

BEST, DONE, CHECKPOINTS = "best.pt", "DONE", "checkpoints"


def write_outcome(folder: Path, weights: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Mark a phase as finished, with what there is to say about it; from then on it is not trained again."""
    write_atomically(folder / BEST, partial(write_state, state=weights))
    write_text(folder / DONE, sealed({**about, "sha256": digest(folder / BEST)}))


def load_outcome(folder: Path, module: nn.Module) -> dict[str, Any]:
    """Give ``module`` the weights of a finished phase; what was said about it.

    InputError if they are not the ones that were written, or do not fit.
    """
    about, weights = _read(folder, mapped=False)
    try:
        check_numbers(weights)
    except ValueError as error:
        raise _unusable(folder, error) from error
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{folder / BEST} does not fit ({reason}): give the settings and images that it was trained with, or "
            "choose another --out"
        ) from error
    module.eval()
    return about


def shapes_left(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes, by name, of the weights from which a phase would go on; empty where it has none. Changes nothing.

    InputError if the phase is finished and its weights are not the ones that were written.
    """
    if (folder / DONE).exists():
        weights = _read(folder, mapped=True)[1]
    else:
        newest = Checkpoints(folder / CHECKPOINTS, keep=1).newest()
        weights = {} if newest is None else newest.read(mapped=True)["module"]
    return {name: tuple(value.shape) for name, value in weights.items()}


def _read(folder: Path, mapped: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What was said about a finished phase, and its weights; ``mapped`` leaves them on the disk until looked at."""
    try:
        text = plain_file(folder / DONE).read_text(encoding="utf-8")
        about = json.loads(text if text.find("\n") == len(text) - 1 else unsealed(text))  # the first were not sealed
        if digest(folder / BEST) != about.get("sha256", digest(folder / BEST)):  # nor had this
            raise ValueError("it is not what was written")
        return about, torch.load(plain_file(folder / BEST), map_location="cpu", weights_only=True, mmap=mapped)
    except (OSError, ValueError, AttributeError, RuntimeError) as error:
        raise _unusable(folder, error) from error


def _unusable(folder: Path, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:200]
    return InputError(f"{folder / BEST} cannot be used ({reason}): remove {folder / DONE} to train this phase again")
