"""Scores of a model over a split: the ledger, and how each codebook is used."""

from dataclasses import asdict, dataclass

import torch
from accelerate import Accelerator
from tqdm import tqdm

from vqstack.images import ImageSplit
from vqstack.ledger import Ledger, Row
from vqstack.model import HierarchicalModel
from vqstack.quantizer import Usage, usage
from vqstack.shapes import finest


@dataclass(frozen=True)
class Evaluation:
    """The ledger of a split and the usage of the codebooks of levels 1 … L over it."""

    ledger: Ledger
    usage: list[Usage]

    def to_json(self) -> dict:
        """As ``ledger.json`` holds it."""
        return {**self.ledger.to_json(), "usage": {f"level-{n}": asdict(u) for n, u in enumerate(self.usage, start=1)}}


@torch.no_grad()
def evaluate_split(
    model: HierarchicalModel, split: ImageSplit, accelerator: Accelerator, batch_size: int = 256
) -> Evaluation:
    """Ledger and usage over a split, shared among the processes; clean codes, float32.

    Args:
        model: in eval mode, on the accelerator's device.
        split: images and labels.
        accelerator: processes to share the work among.
        batch_size: images at a time, each process.
    """
    mine = torch.arange(accelerator.process_index, len(split), accelerator.num_processes)
    names = ["label"] * bool(model.classes) + ["prior", *(f"level-{n}" for n in range(len(model.stack), 0, -1))]
    precision = finest(accelerator.device)
    nats = torch.zeros(len(names), dtype=precision, device=accelerator.device)
    counts = [torch.zeros(k, dtype=torch.int64, device=accelerator.device) for k in model.stack.codebook_sizes]
    for indices in tqdm(mine.split(batch_size), desc=f"ledger of {split.name}", leave=False, disable=None):
        pixels = split.pixels[indices].to(accelerator.device)
        labels = None if split.labels is None else split.labels[indices].to(accelerator.device)
        codes = model.encode(pixels)
        lengths = model.code_lengths(pixels, codes, labels)
        nats += torch.stack([lengths[name].to(precision).sum() for name in names])
        for total, z in zip(counts, codes, strict=True):
            total += torch.bincount(z.flatten(), minlength=len(total))
    sums = accelerator.reduce(nats).tolist()
    rows = {name: Row(s, model.dims[name]) for name, s in zip(names, sums, strict=True)}
    return Evaluation(Ledger(rows, len(split)), [usage(accelerator.reduce(c)) for c in counts])
