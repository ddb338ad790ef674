"""Where training batches come from: images, stored codes, or codes encoded on the way."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from vqstack.code_model import RefinerSettings, parent_of
from vqstack.conditions import GIVEN
from vqstack.fit import Asked, ReadingAhead, Source
from vqstack.images import AugmentSettings, ImageSplit, ImageStream, Size, StreamBatch, augment, center, uniforms
from vqstack.level import Level
from vqstack.likelihood import by_site
from vqstack.quantizer import in_chunks
from vqstack.shapes import AnyCodes, Pixels, filled
from vqstack.stack import Stack
from vqstack.window import Seeing

logger = logging.getLogger(__name__)
RESIDENT = 2**30  # bytes of code maps that are kept in the device's memory


class ReadAhead:
    """Batches that are read by a thread before they are asked for.

    Args:
        read: gives a batch, in the memory of the host, from the arguments of :meth:`Source.batch`.
    """

    def __init__(self, read: Callable[[Int64[Tensor, "b"], Int64[Tensor, "b"] | None], Tensor]) -> None:
        self.read, self._waiting = read, deque[tuple[Asked, Future[Tensor]]]()
        self._thread: ThreadPoolExecutor | None = None  # begun when it is needed

    def announce(self, batches: Sequence[Asked]) -> None:
        """Begin to read these, which will be taken in this order."""
        self._thread = self._thread or ThreadPoolExecutor(1, "reading-ahead")
        self._waiting.extend((asked, self._thread.submit(self.read, *asked)) for asked in batches)

    def take(self, indices: Int64[Tensor, "b"], epochs: Int64[Tensor, "b"] | None) -> Tensor:
        """One batch: the next that was announced, if it is this one, else it is read now and the others are dropped."""
        if self._waiting:
            asked, future = self._waiting.popleft()
            if torch.equal(asked[0], indices) and _equal(asked[1], epochs):
                return future.result()
            self._waiting.clear()
        return self.read(indices, epochs)


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


class PixelSource:
    """Images on the device, or in host memory where they do not fit, augmented as they are taken.

    Args:
        pixels: as large as they are kept, on the device or not.
        size: sites of the images along each axis; None: as large as they are kept.
        augmentation: what may change where a batch is taken for training.
        share: of the images of a batch that are changed.
        seed: with the epoch and the number of the image it decides on the view.
        device: where batches go; None: where ``pixels`` are.
        given: of all images, what the module takes beside them: labels, floats.
        beyond: the value of what a view has beyond the edge.
    """

    def __init__(
        self,
        pixels: Pixels,
        size: Size | None = None,
        augmentation: AugmentSettings | None = None,
        share: float = 1.0,
        seed: int = 0,
        device: torch.device | None = None,
        given: Sequence[Tensor] = (),
        beyond: int = 0,
    ) -> None:
        self.pixels, self.size = pixels, size or tuple(pixels.shape[2:])
        self.augmentation, self.share, self.seed = augmentation or AugmentSettings(), share, seed
        self.device, self.given, self.beyond = device or pixels.device, given, beyond
        self.ahead = ReadAhead(self._read)

    def __len__(self) -> int:
        return len(self.pixels)

    def _read(self, indices: Int64[Tensor, "b"], epochs: Int64[Tensor, "b"] | None) -> Pixels:
        return pinned(self.pixels[indices.to(self.pixels.device)], self.device)

    def announce(self, batches: Sequence[Asked]) -> None:
        """Read images that lie in host memory before they are asked for."""
        if self.pixels.device.type == "cpu":
            self.ahead.announce(batches)

    def batch(self, indices: Int64[Tensor, "b"], epochs: Int64[Tensor, "b"] | None) -> tuple[Tensor, ...]:
        pixels = self.ahead.take(indices, epochs).to(self.device, non_blocking=True)
        if epochs is None or not self.augmentation.active:
            pixels = center(pixels, self.size)
        else:
            draws = uniforms(self.seed, epochs, indices)
            pixels = augment(pixels, draws, self.augmentation, self.size, self.share, self.beyond)
        return pixels, *rows(self.given, indices, self.device)


class StreamSource:
    """Images of a stream, one batch after the other; its length is 0, which says that they come in their own order.

    Args:
        stream: of this process, in batches as large as those that are asked for.
        world: number of processes, among which the indices are dealt out in turn.
        size, augmentation, share, seed, device, beyond: as for :class:`PixelSource`.
        reads: names of what the module takes beside the images: label, condition.
    """

    def __init__(
        self,
        stream: ImageStream,
        world: int,
        size: Size,
        augmentation: AugmentSettings,
        share: float,
        seed: int,
        device: torch.device,
        reads: Sequence[str],
        beyond: int = 0,
    ) -> None:
        self.stream, self.world, self.size, self.device, self.reads = stream, world, size, device, reads
        self.augmentation, self.share, self.seed, self.beyond = augmentation, share, seed, beyond
        self.next, self.left_out = -1, 0
        self._batches: Iterator[StreamBatch] = iter(())

    def __len__(self) -> int:
        return 0

    def batch(self, indices: Int64[Tensor, "b"], epochs: Int64[Tensor, "b"] | None) -> tuple[Tensor, ...]:
        """The next images; where ``indices`` do not go on from the last ones, the stream begins there anew."""
        number = int(indices[0]) // self.world // self.stream.batch
        if number != self.next:
            self._batches = self.stream.batches(number, self.device.type == "cuda")
        taken = next(self._batches)
        self.next = number + 1
        self._report(taken.failed)
        pixels = taken.pixels.to(self.device, non_blocking=True)
        if self.augmentation.active:
            draws = uniforms(self.seed, taken.epochs, taken.images)
            pixels = augment(pixels, draws, self.augmentation, self.size, self.share, self.beyond)
        else:
            pixels = center(pixels, self.size)
        given = {"label": taken.labels, GIVEN: taken.condition}
        return pixels, *(value.to(self.device) for name in self.reads if (value := given[name]) is not None)

    def _report(self, failed: list[str]) -> None:
        for problem in failed:
            self.left_out += 1
            if self.left_out & (self.left_out - 1) == 0:  # the 1st, 2nd, 4th, …
                logger.warning("train: %d images of the stream left out so far: %s", self.left_out, problem)


def resident_images(splits: Mapping[str, ImageSplit], resident: str, device: torch.device) -> dict[str, Pixels]:
    """The stored images of each split: on the device where they fit, else memory maps in host memory.

    On a CPU a memory map is as good as memory: what has been read once stays in the page cache while there is room.
    """
    if device.type == "cpu" or resident == "host":
        return {name: split.stored for name, split in splits.items()}
    wanted = sum(split.stored.nbytes for split in splits.values())
    if resident == "auto" and device.type == "cuda" and wanted > torch.cuda.mem_get_info(device)[0] // 2:
        return {name: split.stored for name, split in splits.items()}
    return {name: split.stored.to(device) for name, split in splits.items()}


def rows(values: Sequence[Tensor], indices: Int64[Tensor, "b"], device: torch.device) -> Iterator[Tensor]:
    """What images ``indices`` are given, on ``device``."""
    for given in values:
        yield given[indices.to(given.device)].to(device)


def pinned(batch: Tensor, device: torch.device) -> Tensor:
    """A batch from where it can go to ``device`` without being waited for: to a GPU from pinned memory."""
    return batch.pin_memory() if device.type == "cuda" and batch.device.type == "cpu" else batch


class CodeSource:
    """Stored codes of one level, with what the module is given.

    Args:
        maps: unsigned [views, n, *map], as :class:`vqstack.codes.MapCache` gives them; stay where they are (mapped into
            memory) on the CPU and where they take more than ``RESIDENT`` bytes, else they are copied to the device.
        device: of the batches.
        given: as for :class:`PixelSource`.
    """

    def __init__(self, maps: NDArray[Any], device: torch.device, given: Sequence[Tensor] = ()) -> None:
        # Tensors of wide unsigned numbers can hardly be indexed: the same bits as signed ones can, and are masked.
        signed = maps.view(np.uint8 if maps.itemsize == 1 else f"i{maps.itemsize}")
        self.maps, self.mask = torch.from_numpy(signed), 2 ** (8 * maps.itemsize) - 1
        if maps.nbytes <= RESIDENT:
            self.maps = self.maps.to(device)
        self.device, self.given = device, given
        self.ahead = ReadAhead(self._read)

    def __len__(self) -> int:
        return self.maps.shape[1]

    def _read(self, indices: Int64[Tensor, "b"], epochs: Int64[Tensor, "b"] | None) -> Tensor:
        # Another view each epoch, until all have been seen.
        views = torch.zeros_like(indices) if epochs is None else (indices + epochs) % len(self.maps)
        return pinned(self.maps[views.to(self.maps.device), indices.to(self.maps.device)], self.device)

    def announce(self, batches: Sequence[Asked]) -> None:
        """Read maps that lie in host memory before they are asked for."""
        if self.maps.device.type == "cpu":
            self.ahead.announce(batches)

    def batch(self, indices: Int64[Tensor, "b"], epochs: Int64[Tensor, "b"] | None) -> tuple[Tensor, ...]:
        codes = self.ahead.take(indices, epochs).to(self.device, non_blocking=True).long() & self.mask
        return codes, *rows(self.given, indices, self.device)


class DerivedSource:
    """What is made of the batches of another source."""

    def __init__(self, below: Source) -> None:
        self.below = below

    def __len__(self) -> int:
        return len(self.below)

    def announce(self, batches: Sequence[Asked]) -> None:
        """Pass on to where the batches come from."""
        if isinstance(self.below, ReadingAhead):
            self.below.announce(batches)


class EncodingSource(DerivedSource):
    """Codes of one level, encoded through the frozen levels as they are taken: every view of an image is a new map."""

    def __init__(self, images: Source, stack: Stack, level: int) -> None:
        super().__init__(images)
        self.stack, self.level = stack, level

    def batch(self, indices: Int64[Tensor, "b"], epochs: Int64[Tensor, "b"] | None) -> tuple[Tensor, ...]:
        pixels, *given = self.below.batch(indices, epochs)
        return self.stack.encode(pixels, self.level)[-1], *given


class RenderedSource(DerivedSource):
    """Images with the vectors of their codes of level 1, which is frozen; encoded as they are taken."""

    def __init__(self, images: Source, stack: Stack) -> None:
        super().__init__(images)
        self.stack = stack

    @torch.no_grad()
    def batch(self, indices: Int64[Tensor, "b"], epochs: Int64[Tensor, "b"] | None) -> tuple[Tensor, ...]:
        (pixels,) = self.below.batch(indices, epochs)
        level = self.stack.levels[0]
        return pixels, level.quantizer.unchecked_lookup(level.code(pixels))


class RefinerSource(DerivedSource):
    """What a refiner of level l is trained on: maps z_{l-1}, conditions, and what the frozen level says of them.

    In training a share of the parent codes is replaced, and the same codes give the feed-forward distribution and the
    features, so that the refiner meets such codes before it meets sampled ones; half of the images stay as they are.

    Args:
        below: yields z_{l-1} (pixels for level 1), and what the refiner is given.
        level: l, frozen.
        settings: how parent codes are replaced.
        above: level l + 1, whose decoder gives the samples; none for the top level.
    """

    NEIGHBOURS = 8

    def __init__(self, below: Source, level: Level, settings: RefinerSettings, above: Level | None) -> None:
        super().__init__(below)
        self.level, self.settings = level, settings
        self.above = above if settings.corrupt_by == "samples" else None
        self.neighbours: Tensor | None = None
        if settings.corruption and self.above is None:
            count = min(self.NEIGHBOURS + 1, level.quantizer.size)
            nearest = [
                torch.cdist(part, codebook).topk(count, largest=False).indices
                for codebook in level.quantizer.codebook().split(level.quantizer.size)
                for part in in_chunks(codebook, codebook)
            ]
            self.neighbours = torch.cat(nearest)[:, 1:]  # without the code itself

    @torch.no_grad()
    def batch(self, indices: Int64[Tensor, "b"], epochs: Int64[Tensor, "b"] | None) -> tuple[Tensor, ...]:
        below, *given = self.below.batch(indices, epochs)
        codes = self.level.encode(below)
        share = torch.zeros(len(codes))
        if epochs is not None and self.settings.corruption:
            # What is drawn follows from the images of the batch, whose order follows from the seed, and their epochs.
            seed = np.random.SeedSequence([*epochs.tolist(), *indices.tolist()]).generate_state(1, np.uint64)[0]
            generator = torch.Generator().manual_seed(int(seed >> 1))
            chosen = torch.rand(len(codes), generator=generator) < 0.5
            share = torch.rand(len(codes), generator=generator) * self.settings.corruption * chosen
            replaced = torch.rand(codes.shape, generator=generator) < share.view(-1, *[1] * (codes.ndim - 1))
            codes = torch.where(replaced.to(codes.device), self._replacements(codes, generator), codes)
        base, features, share = parent_of(self.level, codes, share.to(codes.device))[:3]
        if isinstance(base, Seeing):
            base = base.parameters(by_site(filled(below, self.level.lower.size), self.level.head.channels))
        return below, *given, base, features, share

    def _replacements(self, codes: AnyCodes, generator: torch.Generator) -> AnyCodes:
        """Another code for every site: a near neighbour, or what the decoder above might have drawn."""
        if self.neighbours is not None:
            which = torch.randint(self.neighbours.shape[1], codes.shape, generator=generator).to(codes.device)
            return self.neighbours[self.level.quantizer.rows(codes), which]
        assert self.above is not None
        drawn = self.above.decode(self.above.encode(codes))
        return drawn.sample(torch.rand(len(codes), drawn.sites, generator=generator, dtype=torch.float64))


class UnifiedSource(DerivedSource):
    """Maps of all levels with what each says of the map below: what the transformer of all maps is trained on.

    Args:
        lowest: gives z_1, and what the transformer is given.
        stack: frozen.
    """

    def __init__(self, lowest: Source, stack: Stack) -> None:
        super().__init__(lowest)
        self.stack = stack

    @torch.no_grad()
    def batch(self, indices: Int64[Tensor, "b"], epochs: Int64[Tensor, "b"] | None) -> tuple[Tensor, ...]:
        codes, *given = self.below.batch(indices, epochs)
        maps, parents = [codes], list[tuple[Tensor, Tensor]]()
        for level in self.stack.levels[1:]:
            maps.append(level.encode(maps[-1]))
            base, features = parent_of(level, maps[-1])[:2]
            if isinstance(base, Seeing):
                base = base.parameters(by_site(maps[-2], level.head.channels))
            parents.append((base, features))
        return *given, *maps[::-1], *(tensor for pair in parents[::-1] for tensor in pair)
