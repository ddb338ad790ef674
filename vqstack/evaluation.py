"""Scores of a model over a split: ledger, use of each codebook, what levels leak."""

import math
from dataclasses import asdict, dataclass

import torch
from accelerate import Accelerator
from jaxtyping import Int64
from torch import Tensor

from vqstack.images import ImageSplit
from vqstack.ledger import Ledger, Row
from vqstack.likelihood import Clamped, Known, noise
from vqstack.model import HierarchicalModel
from vqstack.quantizer import Usage, usage
from vqstack.shapes import Floats, Labels, Nats, Pixels, filled, finest
from vqstack.terminal import Progress


@dataclass(frozen=True)
class Evaluation:
    """The ledger of a split, and how often it uses each code of levels 1 … L, [K] or, of D codes a site, [D, K]."""

    ledger: Ledger
    counts: list[Int64[Tensor, "..."]]

    @property
    def usage(self) -> list[Usage]:
        """Usage of the codebooks of levels 1 … L."""
        return [usage(counts) for counts in self.counts]

    def to_json(self) -> dict:
        """As ``ledger.json`` holds it."""
        return {**self.ledger.to_json(), "usage": {f"level-{n}": asdict(u) for n, u in enumerate(self.usage, start=1)}}


def labels_and_condition(
    model: HierarchicalModel, split: ImageSplit, indices: Int64[Tensor, "b"]
) -> tuple[Labels | None, Floats | None]:
    """Labels and condition of images of a split, as far as the model reads them, where it lives."""
    labels = None if split.labels is None else split.labels[indices]
    condition = None if split.condition is None else split.condition[indices]
    return model.labels_read(labels), model.condition_read(condition)


def known_ends(model: HierarchicalModel, pixels: Pixels) -> dict[int, Known]:
    """What is known of images that end where these do: rest where these have padding. Empty where none has."""
    beyond = pixels < 0
    return {0: Known(filled(pixels, model.stack.values), beyond)} if beyond.any() else {}


@torch.no_grad()
def evaluate_split(
    model: HierarchicalModel,
    split: ImageSplit,
    accelerator: Accelerator,
    batch_size: int = 256,
    *,
    refined: bool = True,
    most: int = 0,
) -> Evaluation:
    """Ledger and usage over a split, shared among the processes; clean codes, float32.

    Args:
        model: in eval mode, on the accelerator's device.
        split: images and labels.
        accelerator: processes to share the work among.
        batch_size: images at a time, each process.
        refined: score with the refiners, where there are any; otherwise with the feed-forward decoders alone.
        most: images that are scored, evenly spread over the split; 0: all.
    """
    count = min(len(split), most or len(split))
    chosen = torch.arange(count) * len(split) // count
    mine = chosen[accelerator.process_index :: accelerator.num_processes]
    dims: dict[str, int | float] = {**model.dims}
    precision = finest(accelerator.device)
    nats = torch.zeros(len(dims) + 1, dtype=precision, device=accelerator.device)  # of each row; squares
    books = [level.quantizer for level in model.stack.levels]
    counts = [torch.zeros(*b.chain, b.size, dtype=torch.int64, device=accelerator.device) for b in books]
    batches = mine.split(batch_size) if len(mine) else ()  # of few images a process may have none
    quiet = not accelerator.is_main_process
    scored = torch.zeros((), dtype=precision, device=accelerator.device)  # numbers that are no padding
    for indices in Progress(batches, desc=f"ledger of {split.name}", leave=False, disable=quiet):
        pixels = split.marked[indices].to(accelerator.device)
        scored += (pixels >= 0).sum()
        codes = model.encode(pixels)
        lengths = model.code_lengths(pixels, codes, *labels_and_condition(model, split, indices), refined=refined)
        rows = torch.stack([lengths[name].to(precision) for name in dims])
        nats += torch.stack([*rows.sum(1), rows.sum(0).square().sum()])
        for total, book, z in zip(counts, books, codes, strict=True):
            total += book.counts(z)
    *sums, squares = accelerator.reduce(nats).tolist()
    if split.padded:
        dims["level-1"] = accelerator.reduce(scored).item() / count
    ledger = Ledger({name: Row(s, dims[name]) for name, s in zip(dims, sums, strict=True)}, count, model.given, squares)
    return Evaluation(ledger, [accelerator.reduce(c).cpu() for c in counts])


@dataclass(frozen=True)
class Estimate:
    """A mean over images, nats, and its standard error; None where there is but one image."""

    nats: float
    error: float | None

    @classmethod
    def of(cls, values: Nats) -> "Estimate":
        """From one value an image."""
        count, values = len(values), values.double()
        return cls(values.mean().item(), (values.std() / count**0.5).item() if count > 1 else None)


@torch.no_grad()
def random_orders(
    model: HierarchicalModel, split: ImageSplit, batch_size: int = 256, seed: int = 0
) -> dict[str, Estimate]:
    """Estimates by row of the nats that masked models need in a random order of single sites, one pass an image.

    They belong to no ledger: an order that is drawn anew for each image is not the schedule that samples are drawn by.

    Args:
        model: in eval mode.
        split: images and labels.
        batch_size: images at a time.
        seed: of the orders.
    """
    found: dict[str, list[Nats]] = {}
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        for indices in torch.arange(len(split)).split(batch_size):
            pixels = split.marked[indices].to(model.device)
            about = labels_and_condition(model, split, indices)
            for name, nats in model.random_order_nats(pixels, model.encode(pixels), *about).items():
                found.setdefault(name, []).append(nats.cpu())
    return {name: Estimate.of(torch.cat(nats)) for name, nats in found.items()}


@dataclass(frozen=True)
class Leak:
    """How much of what a level draws has other codes above it: mass that the likelihood of ``z = enc(y)`` never uses.

    For codes z_l of an image, ``share = P_dec_l({z_{l-1} : enc_l(z_{l-1}) = z_l} | z_l)`` costs ``-log2 share`` bits.
    Averaged over images that is at least ``-log2`` of the mean share (Jensen), which draws estimate.

    Attributes:
        images: how many z_l were drawn below, once each.
        sites, maps: sites, and whole maps, of z_l that came back.
        size: sites of one map.
    """

    images: int
    sites: int
    maps: int
    size: int

    @property
    def bits(self) -> float | None:
        """Bits per image that are lost at least, as estimated; none where no map came back."""
        return abs(math.log2(self.maps / self.images)) if self.maps else None

    @property
    def surely(self) -> float:
        """Bits per image that are lost at least, with a confidence of 95 %."""
        return abs(math.log2(upper_share(self.maps, self.images)))

    def to_json(self) -> dict:
        """Shares, and the bounds in bits per image."""
        shares = {"sites": self.sites / (self.images * self.size), "maps": self.maps / self.images}
        return {"images": self.images, **shares, "lost_bits": self.bits, "lost_bits_95": self.surely}


def upper_share(hits: int, of: int, confidence: float = 0.95) -> float:
    """The largest share under which ``hits`` or fewer ``of`` so many still have a chance of 1 - confidence.

    (Clopper and Pearson 1934, one-sided; ``1 - (1 - confidence)^(1 / of)`` where there was none.)
    """
    if hits == of:
        return 1.0
    k = torch.arange(hits + 1, dtype=torch.float64)
    n = torch.tensor(float(of), dtype=torch.float64)
    ways = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    low, high = hits / of, 1.0
    for _ in range(60):
        share = (low + high) / 2
        chance = (ways + k * math.log(share) + (n - k) * math.log1p(-share)).exp().sum()
        low, high = (share, high) if chance > 1 - confidence else (low, share)
    return high


@torch.no_grad()
def leaks(
    model: HierarchicalModel,
    pixels: Pixels,
    labels: Labels | None,
    condition: Floats | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> dict[int, Leak]:
    """What each level draws below the codes of images, encoded again; refiners included.

    Args:
        model: in eval mode.
        pixels, labels, condition: the images; draws end where they do.
        batch_size: images at a time; does not change the result but at a tie.
        seed: of the draws, which follow the likelihood whatever the model's sampling settings.
    """
    names = range(1, len(model.stack) + 1)
    sites, maps = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for batch in Progress(torch.arange(len(pixels)).split(batch_size), desc="leaks", leave=False, disable=None):
        labelled = None if labels is None else model.labels_read(labels[batch])
        given = None if condition is None else model.condition_read(condition[batch])
        known = known_ends(model, pixels[batch])
        for number, codes in enumerate(model.encode(pixels[batch].to(model.device)), start=1):
            below = model.conditional(number, codes, labelled, condition=given)
            below = Clamped(below, known[0]) if number == 1 and known else below
            drawn = below.sample(noise(seed, batch.tolist(), number - 1, below.sites))
            back = (model.stack.level(number).encode(drawn) == codes).flatten(1)
            sites[number] += int(back.sum())
            maps[number] += int(back.all(1).sum())
    sizes = [math.prod(shape) for shape in model.stack.map_shapes]
    return {n: Leak(len(pixels), sites[n], maps[n], sizes[n - 1]) for n in names}
