"""What a phase tells of itself: rows of metrics, trackers, failures that do not end it, codebooks that collapsed."""

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor

from vqstack.disk import append, on_main, write_atomically
from vqstack.fit.guard import REPORTS
from vqstack.quantizer import usage
from vqstack.reading import opened
from vqstack.terminal import warn

VECTORS = 100
"""For each code: with fewer in an epoch a book is too large for its data, and fewer do not tell how it is used."""


class Journal:
    """Of one phase.

    Args:
        name: of the phase.
        accelerator: its processes and trackers.
        folder: receives ``metrics.jsonl``.
    """

    def __init__(self, name: str, accelerator: Accelerator, folder: Path) -> None:
        self.name, self.accelerator, self.folder = name, accelerator, folder
        self.failures: dict[str, int] = {}  # evaluations and pictures that failed, by reason; on the main process
        self.collapsed: list[str] = []  # codebooks, at the last evaluation

    def write(self, step: int, values: dict[str, float], bad_steps: int) -> None:
        """Add a row of metrics, and to ``values`` how much went wrong so far."""
        counts = {"bad_steps": bad_steps, "failures": sum(self.failures.values())}
        values |= {f"train/{name}": count for name, count in counts.items() if count}
        try:
            self._track(step, {f"{self.name}/{k}": v for k, v in values.items()})
        except Exception as error:  # trackers are other people's programs, some of them over a network
            self.failed(step, "a tracker", error)
        row = json.dumps({"step": step, **values}) + "\n"
        on_main(self.accelerator, lambda: append(self.folder / "metrics.jsonl", row))

    def _track(self, step: int, values: dict[str, float]) -> None:
        """Tell the trackers. W&B drops a step below the last one, so there each phase has an axis of its own."""
        for tracker in self.accelerator.trackers:
            if tracker.name == "wandb":
                tracker.log({**values, f"{self.name}/step": step})
            else:
                tracker.log(values, step=step)

    def failed(self, step: int, what: str, error: Exception) -> None:
        """Count a failure that does not end training; each of the first hundred reasons is printed once."""
        reason = f"{what} failed ({' '.join(f'{type(error).__name__}: {error}'.split())[:500]})"
        if reason not in self.failures and len(self.failures) >= REPORTS:
            reason = f"more than {REPORTS} different failures; other ones are only counted from here on"
        self.failures[reason] = self.failures.get(reason, 0) + 1
        if self.failures[reason] == 1 and self.accelerator.is_main_process:
            warn(f"{self.name}, step {step}: {reason}; training goes on")

    def watch(
        self, step: int, epoch: dict[str, Tensor], since: dict[str, Tensor], collapse: float, short: bool = False
    ) -> None:
        """Warn of a codebook that has collapsed, and why, once until it has recovered.

        Args:
            step: steps taken.
            epoch: how often each code was used in the last whole epoch.
            since: the same of the steps since, which count instead where they are ``VECTORS`` for each code: an epoch
                may last for hours, and a book may die within the last one.
            collapse: see :class:`vqstack.fit.FitSettings`.
            short: training ends before an epoch does, and ``epoch`` is of the steps that there were.
        """
        level = int(number) if (number := self.name.removeprefix("level-")).isdigit() else None
        before, self.collapsed = self.collapsed, []
        newer = {name: counts for name, counts in since.items() if counts.sum() >= VECTORS * counts.numel()}
        for name, counts in {**epoch, **newer}.items():
            perplexity, size = usage(counts).perplexity, counts.shape[-1]
            least = 1 + collapse * (size - 1)  # one code in use has perplexity 1, whatever the size
            if perplexity >= least:
                continue
            self.collapsed.append(name)
            if name not in before and self.accelerator.is_main_process:
                each = counts.sum().item() / counts.numel()
                cause = cause_of_collapse(self._history(f"train/{name}_perplexity"), step, least, size, each, level)
                cause = "training was shorter than an epoch: give it more steps first" if short else cause
                when = "all steps" if short else "the steps since the last epoch" if name in newer else "an epoch"
                above = level is not None and level > 1
                first = ". Where few codes of the level below are in use, mend that one first" if above else ""
                warn(
                    f"{self.name}: the {name} have collapsed: perplexity {perplexity:.1f} of {size} over {when}, "
                    f"below {least:.2f}; {cause}{first}"
                )

    def _history(self, metric: str) -> list[tuple[int, float]]:
        """Steps and values of a metric, as far as they have been written."""
        path = self.folder / "metrics.jsonl"
        rows = map(json.loads, path.read_text("utf-8").splitlines()) if path.exists() else ()
        return [(row["step"], row[metric]) for row in rows if metric in row]

    def cut(self, step: int) -> None:
        """Steps after the checkpoint are repeated, and so are their rows; a killed run may have left half a row."""
        for path in (self.folder / "metrics.jsonl", self.folder / "bad-steps.jsonl"):
            if path.exists():
                with opened(path) as file:
                    rows = [row for row in file.read().splitlines(keepends=True) if row.endswith(b"\n")]
                steps = list(map(_step_of, rows))
                kept = b"".join(row for row, its in zip(rows, steps, strict=True) if its <= step)
                write_atomically(path, partial(Path.write_bytes, data=kept))
                if math.inf in steps:
                    warn(f"{path} had {steps.count(math.inf)} damaged rows, left out")


def cause_of_collapse(
    history: Sequence[tuple[int, float]],
    step: int,
    least: float,
    size: int,
    vectors: float,
    level: int | None = None,
) -> str:
    """Why a codebook has collapsed, and the settings to change.

    Args:
        history: earlier steps, and the perplexity of the epoch before each.
        step: at which it was found.
        least: perplexity below which it counts as collapsed.
        size: of the book.
        vectors: of an epoch, for each code.
        level: whose settings they are, its number.
    """
    quantizer, training = (
        ("quantizer", "") if level is None else (f"levels.{level - 1}.quantizer", f"train_levels.{level - 1}.")
    )
    rate = f"{training}learning_rate"
    before = [(at, value) for at, value in history if value >= least]
    if before:
        at, value = before[-1]
        following = next((later for later, _ in history if later > at), step)
        return (
            f"it had {value:.1f} at step {at:,} and fell by step {following:,}: lower {rate}, or raise "
            f"{quantizer}.revival"
        )
    if vectors < VECTORS:
        smaller = 2 ** max(1, int(vectors * size / VECTORS).bit_length() - 1)
        return (
            f"it never had more, and an epoch has but {vectors:.0f} vectors for each code, too few: set "
            f"{quantizer}.codebook_size to {smaller}"
        )
    return (
        f"it never had more, its codes died at the start: raise {quantizer}.revival or {training}warmup, "
        f"or lower {rate}"
    )


def _step_of(row: bytes) -> float:
    """The step of a row of metrics; infinity where the row is damaged."""
    try:
        return float(json.loads(row)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def in_words(metric: str, score: float) -> str:
    """A score for a person: nats per image as bits, anything else under its name."""
    return f"{score / math.log(2):.2f} bits" if metric == "nats" else f"{metric} {score:.4g}"
