"""What a step does with the gradients: the optimiser, its learning rate, and the average of the weights."""

import copy
import math
from functools import cached_property
from typing import Any

import torch
from torch import nn

from vqstack.fit.settings import FitSettings
from vqstack.shards import local


class Average:
    """Moving average of a module's weights (Polyak); buffers, such as codebooks, are copied, not averaged."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.source, self.decay, self.updates = module, decay, 0
        self.module = copy.deepcopy(module).eval().requires_grad_(False)

    @cached_property
    def _parameters(self) -> list[list[nn.Parameter]]:
        """Of both, in the same order; both may be sharded before the first step."""
        return [list(module.parameters()) for module in (self.module, self.source)]

    @torch.no_grad()
    def update(self) -> None:
        """One step; the decay grows to its final value so that the start is forgotten."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        mine, theirs = (list(map(local, parameters)) for parameters in self._parameters)
        torch._foreach_lerp_(mine, theirs, 1 - decay)

    @torch.no_grad()
    def current(self) -> nn.Module:
        """The averaged module, buffers brought up to date."""
        for mine, theirs in zip(self.module.buffers(), self.source.buffers(), strict=True):
            mine.copy_(theirs)
        return self.module


OPPOSED = (0.5, 0.9)
"""Shares kept of the moments of gradients and of their squares, for a module that is trained against another."""


def opponent(module: nn.Module) -> nn.Module | None:
    """The part of a module that is trained against the rest, its attribute ``opponent``; None without one.

    AdamW keeps moments of each number by itself. A group of parameters with a rate, moments and clipping of its own is
    therefore an optimiser of its own, which shares the step, the checkpoint and the guard with the other.
    """
    return getattr(module, "opponent", None)


def parameters_apart(module: nn.Module) -> list[list[nn.Parameter]]:
    """Parameters whose gradients are clipped together: those of a module, then those of its opponent, if any."""
    against = opponent(module)
    theirs = [] if against is None else list(against.parameters())
    apart = set(map(id, theirs))
    return [[p for p in module.parameters() if id(p) not in apart], *([theirs] if theirs else [])]


def learning_rate(settings: FitSettings, step: int) -> float:
    """Linear warm-up, then a cosine down to a hundredth of the peak."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    progress = (step - settings.warmup) / max(settings.steps - settings.warmup, 1)
    return settings.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def optimizer_for(module: nn.Module, settings: FitSettings, device: torch.device) -> torch.optim.AdamW:
    """AdamW, fused where the device has it and the settings want it; vectors and tables are not decayed.

    Tables are embeddings and what says where a site lies (parameters called ``position``). An :func:`opponent` is a
    group of its own: its rate is ``opponent.rate`` times that of the others, and nothing of it decays.
    """
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    tables |= {id(p) for name, p in module.named_parameters() if name.split(".")[-1] == "position"}
    own, *against = ([p for p in part if p.requires_grad] for part in parameters_apart(module))
    decayed = [p for p in own if p.ndim > 1 and id(p) not in tables]
    others = [p for p in own if p.ndim <= 1 or id(p) in tables]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    for theirs in against:
        rate = opponent(module).rate  # type: ignore[union-attr]  # there is one
        groups.append({"params": theirs, "weight_decay": 0.0, "betas": OPPOSED, "rate": rate})
    return torch.optim.AdamW(
        groups,
        lr=settings.learning_rate,
        betas=(0.9, 0.99),
        fused=(settings.fused and device.type in ("cpu", "cuda")) or None,
    )


def load_optimizer(optimizer: Any, state: dict[str, Any]) -> None:
    """Takes the moments from a checkpoint, and leaves the options as they are.

    The state has the options, too, those with which it was saved: a run that goes on with others was asked to. They
    are replaced before the state is loaded, since ``fused`` decides on which device the counts of steps belong.
    """
    groups = [dict(group) for group in state["param_groups"]]
    for saved, group in zip(groups, optimizer.param_groups, strict=False):  # another number is refused below
        saved |= {name: value for name, value in group.items() if name != "params"}
    optimizer.load_state_dict({**state, "param_groups": groups})


def networks(module: nn.Module) -> list[nn.Module]:
    """The plain tensor-to-tensor networks of a module, by its attribute ``networks``; the module itself without one."""
    return list(getattr(module, "networks", [module]))
