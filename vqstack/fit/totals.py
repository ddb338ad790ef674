"""Means of metrics: over the steps between two evaluations, and over a whole split."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from vqstack.fit.batches import Source, own_batches
from vqstack.fit.seeds import seed_everything
from vqstack.fit.sharding import give_back, is_sharded
from vqstack.quantizer import usage
from vqstack.shapes import Objective, finest
from vqstack.terminal import Progress


class EvaluationError(Exception):
    """A split could not be scored; raised in every process when it happened in one."""


class Totals:
    """Running means of metrics and sums of histograms, kept on the device and read seldom."""

    def __init__(self) -> None:
        self.metrics: dict[str, Tensor] = {}
        self.histograms: dict[str, Tensor] = {}
        self.moments: dict[str, Tensor] = {}  # of rows, which only a split that is scored has
        self.weight = 0

    def add(self, objective: Objective, weight: int) -> None:
        """Add one batch of ``weight`` images; one of weight 0 gives nothing but the names."""
        self.weight += weight
        for name, value in {"loss": objective.loss.detach(), **objective.metrics}.items():
            counted = value * weight if weight else torch.zeros_like(value)
            self.metrics[name] = self.metrics.get(name, 0) + counted
        for name, counts in objective.histograms.items():
            self.histograms[name] = self.histograms.get(name, 0) + counts * (weight > 0)
        for name, rows in objective.rows.items():
            extended = F.pad(rows.to(finest(rows.device)), (1, 0), value=1.0)
            self.moments[name] = self.moments.get(name, 0) + extended.T @ extended * (weight > 0)

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """Means and use of the codes, over all processes."""
        return {**self.means(accelerator), **use_of(self.counts(accelerator))}

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over the images of all processes."""
        device = accelerator.device
        names = sorted(self.metrics)
        row = torch.stack([self.metrics[n].float() for n in names] + [torch.tensor(float(self.weight), device=device)])
        *sums, weight = accelerator.reduce(row).tolist()
        return {n: s / max(weight, 1) for n, s in zip(names, sums, strict=True)}

    def counts(self, accelerator: Accelerator) -> dict[str, Tensor]:
        """The histograms, over all processes."""
        return {name: accelerator.reduce(counts) for name, counts in self.histograms.items()}

    def state(self, accelerator: Accelerator) -> dict[str, Any]:
        """The totals of every process, [processes, ...] each, to go on from after a resume."""
        weight = torch.tensor(self.weight, device=accelerator.device)
        parts = {"metrics": self.metrics, "histograms": self.histograms, "weight": {"weight": weight}}
        return {
            part: {name: accelerator.gather(values[name][None]).cpu() for name in sorted(values)}
            for part, values in parts.items()
        }

    def load_state(self, state: dict[str, Any], accelerator: Accelerator) -> None:
        """Take this process's share back; with another number of processes the first one takes it all."""

        def mine(rows: Tensor) -> Tensor:
            if len(rows) == accelerator.num_processes:
                return rows[accelerator.process_index].to(accelerator.device)
            return (rows.sum(0) if accelerator.is_main_process else torch.zeros_like(rows[0])).to(accelerator.device)

        self.metrics, self.histograms = ({n: mine(v) for n, v in state[p].items()} for p in ("metrics", "histograms"))
        self.weight = int(mine(state["weight"]["weight"]))


def use_of(histograms: Mapping[str, Tensor]) -> dict[str, float]:
    """Of each histogram the share of used bins and the perplexity."""
    values: dict[str, float] = {}
    for name, counts in histograms.items():
        use = usage(counts)
        values |= {f"{name}_used": use.share, f"{name}_perplexity": use.perplexity}
    return values


@torch.no_grad()
def evaluate(
    module: nn.Module, source: Source, batch_size: int, accelerator: Accelerator, seed: int = 0
) -> dict[str, float]:
    """Means of the objective over a whole split, each process its share; what is random in it follows from ``seed``.

    EvaluationError, in every process, where one could not score its share: the others must not wait for it. Where the
    weights are sharded all read a batch before any of them runs it; amid a forward pass the others wait for weights of
    this process, so an error there is raised in it as it is, and ends the run.
    """
    was_training, problem, sharded = module.training, None, is_sharded(module)
    given: tuple[Any, ...] = ()
    module.eval()
    totals = Totals()
    rank, world = accelerator.process_index, accelerator.num_processes
    seed_everything(seed, rank)
    try:
        mine, batches = own_batches(len(source), batch_size, rank, world), math.ceil(len(source) / world / batch_size)
        for indices, weight in Progress(mine, total=batches, desc="validation", leave=False, disable=rank > 0):
            try:
                given = source.batch(indices, None)
            except Exception as error:  # whatever it is, training goes on without this evaluation, which is reported
                problem = error
            if _anywhere(problem, accelerator) if sharded else problem is not None:
                break
            with accelerator.autocast():
                totals.add(module(*given), weight)
    except Exception as error:
        if sharded:
            raise
        problem = error
    finally:
        give_back(module)
        module.train(was_training)
    if _anywhere(problem, accelerator):
        raise EvaluationError(f"{type(problem).__name__}: {problem}" if problem else "in another process") from problem
    summary = getattr(accelerator.unwrap_model(module), "summary", None)
    moments = {name: accelerator.reduce(totals.moments[name]) for name in sorted(totals.moments)}
    return totals.read(accelerator) | ({} if summary is None else summary(moments))


def _anywhere(problem: Exception | None, accelerator: Accelerator) -> bool:
    """Whether some process has one; all of them ask."""
    return bool(accelerator.reduce(torch.tensor(float(problem is not None), device=accelerator.device)))
