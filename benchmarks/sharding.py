"""Memory of a process that trains a prior: weights, gradients, moments, average and activations, for 1, 8 and 64 GPUs.

    python benchmarks/sharding.py [--dim 2560] [--depth 38] [--heads 20] [--map 16 16] [--codes 16384] [--images 8]

Weights are counted on the model itself, which takes no memory for it. What a step keeps for the backward pass is
measured on the CPU, on 1 and on 2 blocks of full width for one image, and extended to all blocks: it is linear in both.
"""

import argparse
import math
import re
from collections import Counter

import torch
from torch import nn

from vqstack.code_model import CodeModelSettings, build_code_model
from vqstack.fit.blocks import blocks, recompute_blocks
from vqstack.pretrained import without_memory

GB = 1e9


def prior(options: argparse.Namespace, depth: int) -> nn.Module:
    settings = CodeModelSettings(depth=depth, dim=options.dim, heads=options.heads)
    return build_code_model(settings, tuple(options.map), options.codes, 0)


def kept(options: argparse.Namespace, depth: int, recompute: bool, half: bool) -> int:
    """Bytes that autograd keeps of one image, parameters left out."""
    module = prior(options, depth)
    if recompute:
        recompute_blocks(module)
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    matrices = {part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear)}
    found: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        weight = tensor.dtype is torch.bfloat16 and tensor.numel() in matrices  # gathered so, where there are shards
        if storage.data_ptr() not in own and not weight:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=half)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        alive = module(torch.zeros(1, *options.map, dtype=torch.int64))
    del alive
    return sum(found.values())


def activations(options: argparse.Namespace, recompute: bool, half: bool) -> float:
    one, two = (kept(options, depth, recompute, half) for depth in (1, 2))
    return options.images * (one + (options.depth - 1) * (two - one))


def tensors(model: nn.Module) -> None:
    """Every kind of tensor, and what those of a kind take in shards: rows of the first axis, rounded up."""
    kinds: Counter[tuple[str, tuple[int, ...]]] = Counter()
    for name, parameter in model.named_parameters():
        kinds[re.sub(r"\.\d+\.", ".N.", name, count=1), tuple(parameter.shape)] += 1
    print(
        "| tensor | shape | how many | parameters | GB on 1 | on 8 | on 16 | on 64 |\n|---|---|---|---|---|---|---|---|"
    )
    for (name, shape), count in kinds.items():
        row = math.prod(shape[1:])
        held = [20 * count * row * math.ceil(shape[0] / processes) / GB for processes in (1, 8, 16, 64)]
        size = "×".join(map(str, shape))
        print(f"| `{name}` | {size} | {count} | {count * row * shape[0]:,} | {' | '.join(f'{n:.4f}' for n in held)} |")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"dim": 2560, "depth": 38, "heads": 20, "codes": 16384, "images": 8}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--map", type=int, nargs="+", default=[16, 16])
    options = parser.parse_args()
    model = without_memory(lambda: prior(options, options.depth), 10**5)
    parameters = sum(p.numel() for p in model.parameters())
    block = max(sum(p.numel() for p in part.parameters()) for part in blocks(model))
    root = parameters - sum(p.numel() for part in blocks(model) for p in part.parameters())
    print(f"{parameters:,} parameters; the largest block {block:,}, outside of blocks {root:,}\n")
    tensors(model)
    print("| GB of a process | 1 GPU | 8 GPUs | 64 GPUs |\n|---|---|---|---|")

    def row(name: str, whole: float) -> None:
        print(f"| {name} | {' | '.join(f'{whole / gpus / GB:.2f}' for gpus in (1, 8, 64))} |")

    for name, factor in {"weights": 4, "gradients": 4, "two moments": 8, "average": 4, "together": 20}.items():
        row(name, factor * parameters)
    for half in (False, True):
        # Weights outside of blocks stay gathered through a step, and two blocks are while one runs; gradients likewise.
        gathered = 2 * (4 * root + (2 if half else 4) * 2 * block)
        plain, again = (activations(options, recompute, half) for recompute in (False, True))
        print(f"\n{'bfloat16' if half else 'float32'}, any number of GPUs, {options.images} images at a time:")
        print(f"- gathered weights and gradients: {gathered / GB:.2f} GB")
        print(f"- kept for the backward pass: {plain / GB:.2f} GB; with gradient checkpointing {again / GB:.2f} GB")
        totals = [(20 * parameters / gpus + gathered + again) / GB for gpus in (1, 8, 64)]
        print(f"- in all, with gradient checkpointing: {' / '.join(f'{total:.1f}' for total in totals)} GB")


if __name__ == "__main__":
    main()
