"""What a finished phase leaves: its best weights, and ``DONE``, which names their checksum."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqstack.checkpoint import digest, write_atomically, write_state
from vqstack.errors import InputError

BEST, DONE = "best.pt", "DONE"


def write_outcome(folder: Path, weights: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Mark a phase as finished, with what there is to say about it; from then on it is not trained again."""
    write_atomically(folder / BEST, partial(write_state, state=weights))
    text = json.dumps({**about, "sha256": digest(folder / BEST)}) + "\n"
    write_atomically(folder / DONE, lambda aside: aside.write_text(text, encoding="utf-8"))


def load_outcome(folder: Path, module: nn.Module) -> dict[str, Any]:
    """Give ``module`` the weights of a finished phase; what was said about it.

    InputError if they are not the ones that were written.
    """
    try:
        about = json.loads((folder / DONE).read_text(encoding="utf-8"))
        if digest(folder / BEST) != about.get("sha256", digest(folder / BEST)):  # the first version wrote none
            raise ValueError("it is not what was written")
        module.load_state_dict(torch.load(folder / BEST, map_location="cpu", weights_only=True))
    except (OSError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{folder / BEST} cannot be used ({reason}): remove {folder / DONE} to train this phase again"
        ) from error
    module.eval()
    return about
