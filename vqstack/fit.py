"""The training loop. It knows no quantizers and no hierarchy: ``module(*batch)`` returns an :class:`Objective`.

A step depends on (state, seed, step) alone: which images it sees, how they are augmented and every random number
inside the network follow from the seed and the step's number. A run that is resumed therefore goes on as if it had not
stopped.
"""

import copy
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Int64
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from tqdm import tqdm

from vqstack.errors import InputError
from vqstack.quantizer import usage
from vqstack.shapes import Objective


class FitSettings(BaseModel):
    """Settings of the training of one phase."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(2000, ge=1, description="Optimiser steps.")
    batch_size: int = Field(64, ge=1, description="Images a step, over all processes and accumulated micro-batches.")
    accumulate: int = Field(1, ge=1, description="Micro-batches a step.")
    learning_rate: float = Field(1e-3, gt=0, description="Peak learning rate of AdamW.")
    warmup: int = Field(100, ge=0, description="Steps of linear warm-up; cosine decay to a hundredth follows.")
    weight_decay: float = Field(
        0.01, ge=0, description="Decoupled weight decay of matrices (not of vectors and tables)."
    )
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient.")
    ema: float = Field(0.999, ge=0, lt=1, description="Decay a step of the weight average; 0 switches it off.")
    augmented: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of the training images changed as augment says; the others stay as they are.",
    )
    evaluate_every: int = Field(250, ge=1, description="Steps between evaluations on the validation split.")


@runtime_checkable
class Source(Protocol):
    """Where batches come from."""

    def __len__(self) -> int:
        """Number of images; 0 for a stream, which gives them in its own order."""

    def batch(self, indices: Int64[Tensor, "b"], epochs: Int64[Tensor, "b"] | None) -> tuple[Tensor, ...]:
        """The arguments of ``module`` for images ``indices``. In training each is seen in one of ``epochs`` and may be
        augmented, as a function of (seed, epoch, index)."""


class Average:
    """Moving average of a module's weights (Polyak); buffers, such as codebooks, are copied, not averaged."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.source, self.decay, self.updates = module, decay, 0
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self._mine: list[Tensor] = list(self.module.parameters())
        self._theirs: list[Tensor] = list(module.parameters())

    @torch.no_grad()
    def update(self) -> None:
        """One step; the decay grows to its final value so that the start is forgotten."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._mine, self._theirs, 1 - decay)

    @torch.no_grad()
    def current(self) -> nn.Module:
        """The averaged module, buffers brought up to date."""
        for mine, theirs in zip(self.module.buffers(), self.source.buffers(), strict=True):
            mine.copy_(theirs)
        return self.module


class Totals:
    """Running means of metrics and sums of histograms, kept on the device and read seldom."""

    def __init__(self) -> None:
        self.metrics: dict[str, Tensor] = {}
        self.histograms: dict[str, Tensor] = {}
        self.weight = 0

    def add(self, objective: Objective, weight: int) -> None:
        """Add one batch of ``weight`` images; one of weight 0 gives nothing but the names."""
        self.weight += weight
        for name, value in {"loss": objective.loss.detach(), **objective.metrics}.items():
            counted = value * weight if weight else torch.zeros_like(value)
            self.metrics[name] = self.metrics.get(name, 0) + counted
        for name, counts in objective.histograms.items():
            self.histograms[name] = self.histograms.get(name, 0) + counts * (weight > 0)

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over all processes; of each histogram the share of used bins and the perplexity."""
        device = accelerator.device
        names = sorted(self.metrics)
        row = torch.stack([self.metrics[n].float() for n in names] + [torch.tensor(float(self.weight), device=device)])
        *sums, weight = accelerator.reduce(row).tolist()
        values = {n: s / max(weight, 1) for n, s in zip(names, sums, strict=True)}
        for name, counts in self.histograms.items():
            use = usage(accelerator.reduce(counts))
            values |= {f"{name}_used": use.share, f"{name}_perplexity": use.perplexity}
        return values


def learning_rate(settings: FitSettings, step: int) -> float:
    """Linear warm-up, then a cosine down to a hundredth of the peak."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    progress = (step - settings.warmup) / max(settings.steps - settings.warmup, 1)
    return settings.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def optimizer_for(module: nn.Module, settings: FitSettings, device: torch.device) -> torch.optim.AdamW:
    """AdamW, fused where the device has it; vectors and embedding tables are not decayed."""
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    trained = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim > 1 and id(p) not in tables]
    others = [p for p in trained if p.ndim <= 1 or id(p) in tables]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups, lr=settings.learning_rate, betas=(0.9, 0.99), fused=device.type in ("cpu", "cuda") or None
    )


def networks(module: nn.Module) -> list[nn.Module]:
    """The plain tensor-to-tensor networks of a module, by its attribute ``networks``; the module itself without one."""
    return list(getattr(module, "networks", [module]))


class Order:
    """Which images step s sees: a new permutation each epoch, a function of (seed, epoch) alone.

    Of a stream (count 0) the numbers of the images in the order in which they come.
    """

    def __init__(self, count: int, batch: int, seed: int) -> None:
        self.count, self.batch, self.seed = count, batch, seed
        self._epoch, self._permutation = -1, np.empty(0, dtype=np.int64)

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            key = np.array([self.seed % 2**64, epoch], dtype=np.uint64)
            generator = np.random.Generator(np.random.Philox(key=key))
            self._epoch, self._permutation = epoch, generator.permutation(self.count)
        return self._permutation

    def indices(self, step: int) -> Int64[Tensor, "b"]:
        """Positions in the split of the images of one step, over all processes."""
        parts, position, end = [], step * self.batch, (step + 1) * self.batch
        if not self.count:
            return torch.arange(position, end)
        while position < end:
            epoch, start = divmod(position, self.count)
            part = self._epoch_order(epoch)[start : start + end - position]
            parts.append(part)
            position += len(part)
        return torch.from_numpy(np.concatenate(parts))

    def epochs(self, step: int) -> Int64[Tensor, "b"]:
        """The epoch in which each of these images is seen; a stream counts its own."""
        return torch.arange(step * self.batch, (step + 1) * self.batch) // (self.count or sys.maxsize)


def shares(count: int, batch_size: int, rank: int, world: int) -> Iterator[tuple[Int64[Tensor, "b"], int]]:
    """The part of process ``rank`` of ``world`` in ``count`` images, in batches: (positions, how many of them count).

    Every process gets the same number of batches, since a wrapper that shards weights needs all processes for each. One
    that has no image left takes the first image again, which then does not count.
    """
    mine = torch.arange(count)[rank::world]
    for start in range(0, math.ceil(count / world), batch_size):
        indices = mine[start : start + batch_size]
        yield (indices, len(indices)) if len(indices) else (torch.zeros(1, dtype=torch.int64), 0)


@torch.no_grad()
def evaluate(module: nn.Module, source: Source, batch_size: int, accelerator: Accelerator) -> dict[str, float]:
    """Means of the objective over a whole split, each process its share."""
    was_training = module.training
    module.eval()
    totals = Totals()
    rank, world = accelerator.process_index, accelerator.num_processes
    for indices, weight in shares(len(source), batch_size, rank, world):
        with accelerator.autocast():
            totals.add(module(*source.batch(indices, None)), weight)
    module.train(was_training)
    return totals.read(accelerator)


def write_atomically(path: Path, save: Callable[[Path], Any]) -> None:
    """Write a file aside and rename it, so that a reader never sees half of it."""
    aside = path.with_name(path.name + ".tmp")
    save(aside)
    os.replace(aside, path)


class Fit:
    """One phase of training: fits ``module`` and leaves it with its best weights by validation nats.

    Args:
        name: of the phase, shown in the progress bar and in trackers.
        module: ``module(*batch) -> Objective`` with a metric ``nats``.
        train, validation: see :class:`Source`.
        settings: see :class:`FitSettings`.
        accelerator: device, processes, precision, trackers.
        folder: receives ``checkpoint.pt``, ``best.pt``, ``metrics.jsonl``.
        seed: of the order of images, augmentation, dropout and code revival.
        compile_module: run the module's networks (its attribute ``networks``, or itself) through torch.compile.
        on_evaluation: called with (module with the better weights, step) after each evaluation, on the main process.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        train: Source,
        validation: Source,
        settings: FitSettings,
        accelerator: Accelerator,
        folder: Path,
        *,
        seed: int = 0,
        compile_module: bool = False,
        on_evaluation: Callable[[nn.Module, int], None] | None = None,
    ) -> None:
        self.name, self.module, self.settings, self.accelerator = name, module, settings, accelerator
        self.train, self.validation, self.folder, self.seed = train, validation, folder, seed
        self.on_evaluation = on_evaluation
        accelerator.gradient_accumulation_steps, accelerator.step = settings.accumulate, 0
        module.to(accelerator.device).train()
        self.average = Average(module, settings.ema) if settings.ema else None
        optimizer = optimizer_for(module, settings, accelerator.device)
        if compile_module:  # the plain networks only: what stands around them is small and changes shape
            for network in networks(module):
                network.compile(dynamic=False)
        self.runner, self.optimizer = accelerator.prepare(module, optimizer)
        self.accumulators: list[Any] = [m for m in module.modules() if hasattr(m, "accumulating")]
        self.order = Order(len(train), settings.batch_size, seed)
        self.step, self.best = 0, math.inf
        self.totals = Totals()

    def run(self) -> float:
        """Train to the end, or go on from the last checkpoint; returns the best validation nats an image."""
        self._resume()
        batch = self.settings.batch_size
        with tqdm(
            total=self.settings.steps * batch,
            initial=self.step * batch,
            desc=self.name,
            unit="img",
            unit_scale=True,
            disable=not (self.accelerator.is_main_process and sys.stderr.isatty()),
        ) as progress:
            while self.step < self.settings.steps:
                self.training_step()
                progress.update(batch)
                if self.step % self.settings.evaluate_every == 0 or self.step == self.settings.steps:
                    values = self.evaluation_step()
                    progress.set_postfix_str(f"validation {values['validation/nats'] / math.log(2):.2f} bits")
                    self._save()
        state = torch.load(self.folder / "best.pt", map_location="cpu", weights_only=True)
        self.module.load_state_dict(state)
        self.module.eval()
        self.accelerator.free_memory()
        return self.best

    def training_step(self) -> None:
        """One optimiser step over ``accumulate`` micro-batches of every process."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        # Everything random in this step, dropout and code revival included, starts from its own seed.
        seed = int(np.random.SeedSequence([self.seed, self.step, rank]).generate_state(1, np.uint64)[0] >> 1)
        torch.manual_seed(seed)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, self.step)
        mine = torch.stack([self.order.indices(self.step), self.order.epochs(self.step)])[:, rank::world]
        for indices, epochs in mine.tensor_split(self.settings.accumulate, dim=1):
            with self.accelerator.accumulate(self.runner):
                for part in self.accumulators:
                    part.accumulating = not self.accelerator.sync_gradients
                objective = self.runner(*self.train.batch(indices, epochs))
                self.accelerator.backward(objective.loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.module.parameters(), self.settings.clip)
                self.optimizer.step()
                self.optimizer.zero_grad()
            self.totals.add(objective, len(indices))
        self.step += 1
        if self.average is not None:
            self.average.update()

    def evaluation_step(self) -> dict[str, float]:
        """Score raw and averaged weights on the validation split and keep the best so far."""
        values = {f"train/{k}": v for k, v in self.totals.read(self.accelerator).items()}
        self.totals = Totals()
        raw = evaluate(self.runner, self.validation, self.settings.batch_size, self.accelerator)
        better, module = raw, self.module
        if self.average is not None:
            averaged = evaluate(self.average.current(), self.validation, self.settings.batch_size, self.accelerator)
            values["validation/nats_raw"] = raw["nats"]
            if averaged["nats"] < raw["nats"]:
                better, module = averaged, self.average.module
        if not math.isfinite(better["nats"]):
            raise InputError(
                f"{self.name} diverged by step {self.step}: choose a smaller learning_rate and another --out"
            )
        values |= {f"validation/{k}": v for k, v in better.items()}
        if self.accelerator.is_main_process:
            with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self.step, **values}) + "\n")
            if better["nats"] < self.best:
                write_atomically(self.folder / "best.pt", lambda path: torch.save(module.state_dict(), path))
            if self.on_evaluation is not None:
                was_training = module.training
                self.on_evaluation(module.eval(), self.step)
                module.train(was_training)
        self.best = min(self.best, better["nats"])
        self.accelerator.log({f"{self.name}/{k}": v for k, v in values.items()}, step=self.step)
        return values

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            state = {
                "step": self.step,
                "best": self.best,
                "module": self.module.state_dict(),
                "average": self.average.module.state_dict() if self.average else {},
                "updates": self.average.updates if self.average else 0,
                "optimizer": self.optimizer.state_dict(),
            }
            write_atomically(self.folder / "checkpoint.pt", lambda path: torch.save(state, path))
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        path, metrics = self.folder / "checkpoint.pt", self.folder / "metrics.jsonl"
        if path.exists():
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.module.load_state_dict(state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.average is not None:
                self.average.module.load_state_dict(state["average"])
                self.average.updates = state["updates"]
            self.step, self.best = state["step"], state["best"]
        if metrics.exists() and self.accelerator.is_main_process:
            # Steps after the checkpoint are repeated, and so are their rows; a killed run may have left half a row.
            rows = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = "".join(row for row in rows if row.endswith("\n") and json.loads(row)["step"] <= self.step)
            write_atomically(metrics, lambda path: path.write_text(kept, encoding="utf-8"))
