"""All levels trained at once: the sum of their losses, and after that their decoders alone.

Every level reads the discrete codes of the one below, through which no gradient passes. What levels share receives the
sum of their gradients, what is a level's own the gradient of its own loss, as if it were trained by itself.
"""

from collections.abc import Iterator

import torch
from torch import nn

from vqstack.shapes import AnyCodes, Objective, Pixels
from vqstack.stack import Stack


def _sum(objectives: list[Objective]) -> Objective:
    """One objective of all levels, 1 … L: losses and nats are added, the rest is kept level by level."""
    numbered = list(enumerate(objectives, start=1))
    return Objective(
        torch.stack([objective.loss for objective in objectives]).sum(),
        {"nats": torch.stack([objective.metrics["nats"] for objective in objectives]).sum()}
        | {f"{name}-{n}": value for n, objective in numbered for name, value in objective.metrics.items()},
        {f"{name}-{n}": counts for n, objective in numbered for name, counts in objective.histograms.items()},
    )


class JointLevels(nn.Module):
    """Encoders, codebooks and decoders of all levels; each level's loss is that of :meth:`vqstack.level.Level.forward`.

    Args:
        stack: is trained in place.
    """

    def __init__(self, stack: Stack) -> None:
        super().__init__()
        self.stack = stack

    @property
    def networks(self) -> list[nn.Module]:
        """The plain networks, which can be compiled."""
        return [network for level in self.stack.levels for network in level.networks]

    def forward(self, pixels: Pixels) -> Objective:
        """Sum over the levels of nats per site and quantizer's loss. Metrics: nats per image, all and each level's."""
        below: AnyCodes | Pixels = pixels
        objectives = []
        for level in self.stack.levels:
            objective, below = level.train_and_encode(below)
            objectives.append(objective)
        return _sum(objectives)


class JointDecoders(nn.Module):
    """The decoders of all levels, on codes that no longer change.

    Args:
        stack: its decoders are trained in place, everything else stays as it is.
    """

    def __init__(self, stack: Stack) -> None:
        super().__init__()
        self.stack = stack

    @property
    def networks(self) -> list[nn.Module]:
        """The plain networks, which can be compiled."""
        return [network for level in self.stack.levels for network in level.networks[1:]]

    def trained(self) -> Iterator[nn.Parameter]:
        """Parameters of the decoders."""
        for level in self.stack.levels:
            yield from level.decoder.parameters()

    def train(self, mode: bool = True) -> "JointDecoders":
        """Only decoders ever leave evaluation mode."""
        super().train(False)
        for level in self.stack.levels:
            level.decoder.train(mode)
        self.training = mode
        return self

    def forward(self, pixels: Pixels) -> Objective:
        """Sum over the levels of nats per site."""
        below: AnyCodes | Pixels = pixels
        objectives = []
        for level, codes in zip(self.stack.levels, self.stack.encode(pixels), strict=True):
            with torch.no_grad():
                vectors = level.quantizer.unchecked_lookup(codes)
            distribution = level.distribution(vectors, codes)
            nats = -distribution.unchecked_log_prob(below).mean()
            objectives.append(Objective(nats / distribution.sites, {"nats": nats.detach()}))
            below = codes
        return _sum(objectives)
