"""Scores of a model over a split: the ledger, how each codebook is used, how near reconstructions come."""

from dataclasses import asdict, dataclass

import torch
from accelerate import Accelerator
from jaxtyping import Int64
from torch import Tensor
from tqdm import tqdm

from vqstack.images import ImageSplit
from vqstack.ledger import Ledger, Row
from vqstack.metrics import Fidelity, FidelityMeter
from vqstack.model import HierarchicalModel
from vqstack.quantizer import Usage, usage
from vqstack.shapes import AnyCodes, Nats, Pixels, finest


@dataclass(frozen=True)
class Evaluation:
    """The ledger of a split, and how often it uses each code of levels 1 … L."""

    ledger: Ledger
    counts: list[Int64[Tensor, "_"]]

    @property
    def usage(self) -> list[Usage]:
        """Usage of the codebooks of levels 1 … L."""
        return [usage(counts) for counts in self.counts]

    def to_json(self) -> dict:
        """As ``ledger.json`` holds it."""
        return {**self.ledger.to_json(), "usage": {f"level-{n}": asdict(u) for n, u in enumerate(self.usage, start=1)}}


@torch.no_grad()
def evaluate_split(
    model: HierarchicalModel,
    split: ImageSplit,
    accelerator: Accelerator,
    batch_size: int = 256,
    *,
    refined: bool = True,
) -> Evaluation:
    """Ledger and usage over a split, shared among the processes; clean codes, float32.

    Args:
        model: in eval mode, on the accelerator's device.
        split: images and labels.
        accelerator: processes to share the work among.
        batch_size: images at a time, each process.
        refined: score with the refiners, where there are any; otherwise with the feed-forward decoders alone.
    """
    mine = torch.arange(len(split))[accelerator.process_index :: accelerator.num_processes]
    names = ["label"] * bool(model.classes) + ["prior", *(f"level-{n}" for n in range(len(model.stack), 0, -1))]
    precision = finest(accelerator.device)
    nats = torch.zeros(len(names), dtype=precision, device=accelerator.device)
    counts = [torch.zeros(k, dtype=torch.int64, device=accelerator.device) for k in model.stack.codebook_sizes]
    batches = mine.split(batch_size) if len(mine) else ()  # of few images a process may have none
    for indices in tqdm(batches, desc=f"ledger of {split.name}", leave=False, disable=None):
        pixels = split.pixels[indices].to(accelerator.device)
        labels = None if split.labels is None else split.labels[indices].to(accelerator.device)
        codes = model.encode(pixels)
        lengths = model.code_lengths(pixels, codes, labels, refined=refined)
        nats += torch.stack([lengths[name].to(precision).sum() for name in names])
        for total, z in zip(counts, codes, strict=True):
            total += torch.bincount(z.flatten(), minlength=len(total))
    sums = accelerator.reduce(nats).tolist()
    rows = {name: Row(s, model.dims[name]) for name, s in zip(names, sums, strict=True)}
    return Evaluation(Ledger(rows, len(split)), [accelerator.reduce(c).cpu() for c in counts])


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
            pixels = split.pixels[indices].to(model.device)
            labels = None if split.labels is None else split.labels[indices].to(model.device)
            for name, nats in model.random_order_nats(pixels, model.encode(pixels), labels).items():
                found.setdefault(name, []).append(nats.cpu())
    return {name: Estimate.of(torch.cat(nats)) for name, nats in found.items()}


@torch.no_grad()
def reconstruct(model: HierarchicalModel, codes: list[AnyCodes]) -> dict[int, Pixels]:
    """The image that ``decode`` makes of the codes of each level, 1 … L, on the CPU."""
    return {number: model.decode(z, number).cpu() for number, z in enumerate(codes, start=1)}


def fidelity_by_level(model: HierarchicalModel, pixels: Pixels, batch_size: int = 64) -> dict[int, Fidelity]:
    """How near the images come that are reconstructed from each level.

    Args:
        model: in eval mode.
        pixels: the images.
        batch_size: images at a time.
    """
    meters = {number: FidelityMeter(model.stack.values) for number in range(1, len(model.stack) + 1)}
    for batch in tqdm(pixels.split(batch_size), desc="reconstruct", leave=False, disable=None):
        for number, found in reconstruct(model, model.encode(batch.to(model.device))).items():
            meters[number].add(found, batch)
    return {number: meter.read() for number, meter in meters.items()}
