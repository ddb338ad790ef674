"""What a program may be told of while something is trained."""

from collections.abc import Mapping


class Callback:
    """Told of steps, evaluations and the ends of phases, on the main process; override what you want to know of.

    Weights and random numbers are not to be touched: a run with a callback ends as one without. What a callback raises
    ends the run, which goes on from its last checkpoint when it is started again.
    """

    def on_step(self, phase: str, step: int, loss: float) -> None:
        """After each step, with the loss of this process, in the unit of the phase."""

    def on_evaluation(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        """After each evaluation, with what ``metrics.jsonl`` receives: ``validation/nats``, ``train/loss`` …"""

    def on_phase_end(self, phase: str, score: float) -> None:
        """When a phase is done, with the validation score of the weights that are kept: nats per image, as a rule."""
