"""Which images a step sees, and where they come from."""

import math
import sys
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

Asked = tuple[Int64[Tensor, "b"], Int64[Tensor, "b"] | None]  # arguments of Source.batch


@runtime_checkable
class Source(Protocol):
    """Where batches come from."""

    def __len__(self) -> int:
        """Number of images; 0 for a stream, which gives them in its own order."""

    def batch(self, indices: Int64[Tensor, "b"], epochs: Int64[Tensor, "b"] | None) -> tuple[Tensor, ...]:
        """The arguments of ``module`` for images ``indices``. In training each is seen in one of ``epochs`` and may be
        augmented, as a function of (seed, epoch, index)."""


@runtime_checkable
class ReadingAhead(Source, Protocol):
    """A source that can read what it will be asked for while the device computes."""

    def announce(self, batches: Sequence[Asked]) -> None:
        """The arguments of the next calls of ``batch``, in their order; another order costs time only."""


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


def own_batches(count: int, batch_size: int, rank: int, world: int) -> Iterator[tuple[Int64[Tensor, "b"], int]]:
    """The part of process ``rank`` of ``world`` in ``count`` images, in batches: (positions, how many of them count).

    Every process gets the same number of batches, since a wrapper that shards weights needs all processes for each. One
    that has no image left takes the first image again, which then does not count.
    """
    mine = torch.arange(count)[rank::world]
    for start in range(0, math.ceil(count / world), batch_size):
        indices = mine[start : start + batch_size]
        yield (indices, len(indices)) if len(indices) else (torch.zeros(1, dtype=torch.int64), 0)
