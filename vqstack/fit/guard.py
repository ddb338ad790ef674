"""Keeps a step whose loss or gradient is not finite from leaving a trace, and a run from going on without numbers."""

import json
import math
from collections import deque
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Int64
from torch import Tensor, nn

from vqstack.disk import append, on_main
from vqstack.errors import DivergedError
from vqstack.terminal import warn

HISTORY = 20  # losses before a bad step that are reported
REPORTS = 100  # bad steps printed and written down, and failures told apart; later ones are only counted


def poisoned(loss: Tensor) -> Tensor:
    """The loss itself where it is finite, else one whose gradient is NaN everywhere.

    The gradient is averaged over processes, so each sees from its own that the loss of another was not finite.
    """
    return loss * torch.where(torch.isfinite(loss.detach()), 1.0, math.nan)


class Guard:
    """Watches the steps of one phase.

    Buffers, such as a codebook's averages, change in the forward pass, before the gradient is known; they are copied
    at the start of a step and brought back if it was bad.

    Args:
        name: of the phase.
        module: what is trained.
        accelerator: its processes; all of them come to the same decision.
        limit: bad steps in a row after which training ends.
        folder: receives ``bad-steps.jsonl``.
    """

    def __init__(self, name: str, module: nn.Module, accelerator: Accelerator, limit: int, folder: Path) -> None:
        self.name, self.accelerator, self.limit, self.folder = name, accelerator, limit, folder
        self.losses: deque[float] = deque(maxlen=HISTORY)
        self.in_a_row, self.count = 0, 0
        self._buffers = [buffer for buffer in module.buffers() if buffer.numel()]
        self._before = [buffer.detach().clone() for buffer in self._buffers]

    @torch.no_grad()
    def begin(self) -> None:
        """At the start of a step."""
        if self._buffers:
            torch._foreach_copy_(self._before, self._buffers)

    def accept(self, loss: float) -> None:
        """The step was taken; ``loss`` is this process's."""
        self.losses.append(loss)
        self.in_a_row = 0

    @torch.no_grad()
    def refuse(self, step: int, loss: float, indices: Int64[Tensor, "b"]) -> None:
        """The step was left out: undo what it did, and report it. DivergedError after too many in a row.

        An overflow in half precision, which only makes the scaler choose a smaller scale, is no bad step.
        """
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._before)
        losses = self.accelerator.gather(torch.tensor([loss], device=self.accelerator.device)).tolist()
        scaler = self.accelerator.scaler
        if scaler is not None and all(map(math.isfinite, losses)) and scaler.get_scale() >= 1:
            return
        self.in_a_row += 1
        self.count += 1
        on_main(self.accelerator, lambda: self._report(step, losses, indices.tolist()))
        if self.in_a_row >= self.limit:
            raise DivergedError(
                f"{self.name}: loss or gradient were not finite for {self.in_a_row} steps in a row, up to step {step}; "
                "the last checkpoint is from before: go on from it with a smaller learning_rate and --override-config"
            )

    def _report(self, step: int, losses: list[float], images: list[int]) -> None:
        if self.count > REPORTS:
            return
        what = "gradient" if all(map(math.isfinite, losses)) else f"loss ({', '.join(f'{x:.4g}' for x in losses)})"
        shown = ", ".join(map(str, images[:8])) + (" …" if len(images) > 8 else "")
        before = ", ".join(f"{x:.4g}" for x in list(self.losses)[-5:]) or "none"
        warn(
            f"{self.name}: the {what} of step {step} is not finite; the step is left out, "
            f"{self.in_a_row} of at most {self.limit} in a row (images {shown}; losses before: {before})"
        )
        if self.count == REPORTS:
            warn(f"{self.name}: {REPORTS} bad steps; further ones are only counted")
        row = {"step": step, "losses": [str(x) for x in losses], "images": images, "before": list(self.losses)}
        append(self.folder / "bad-steps.jsonl", json.dumps(row) + "\n")

    def state(self) -> dict[str, Any]:
        """To go on from after a resume."""
        return {"losses": list(self.losses), "in_a_row": self.in_a_row, "count": self.count}

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state`."""
        self.losses = deque(state["losses"], maxlen=HISTORY)
        self.in_a_row, self.count = state["in_a_row"], state["count"]
