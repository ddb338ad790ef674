"""Whether a large codebook is kept in use, by quantizer, revival, rotation trick and entropy term.

    python benchmarks/large_codebooks.py TRAIN.parquet TEST.parquet --out FOLDER [--steps 500] [--size 16384]

Level 1 of benchmarks/recipes/cifar10_codes.yaml with a product decoder and 16x16 maps, trained with each quantizer for
as many steps from the same start. What training says of a collapsed codebook goes to standard error. The table: codes
in use and perplexity over the first 1,000 training images, bits of the pixels of validation images given their codes,
processor seconds. Writes FOLDER/large_codebooks.json; a variant whose level is there already is not trained again.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

import vqstack
from vqstack.config import changed
from vqstack.ending import run_command
from vqstack.images import ImageSettings
from vqstack.phases import Run
from vqstack.quantizer import usage

RECIPE = Path(__file__).parent / "recipes/cifar10_codes.yaml"
IMAGES = 1000
VARIANTS: dict[str, dict[str, Any]] = {
    "vq without revival": {"revival": 0},
    "vq": {},
    "vq, rotation": {"gradient": "rotation"},
    "cosine, rotation": {"kind": "cosine", "gradient": "rotation"},
    "lfq without entropy term": {"kind": "lfq", "entropy": 0},
    "lfq": {"kind": "lfq"},
}


def measured(options: argparse.Namespace, name: str, changes: dict[str, Any]) -> dict:
    """Train one variant, and what came of it."""
    quantizer = {"codebook_size": options.size, **changes}
    level = {"map": (16, 16), "quantizer": quantizer, "decoder": {"family": "product"}}
    fit = {
        "steps": options.steps,
        "batch_size": options.batch,
        "warmup": options.steps // 10,
        "evaluate_every": max(1, options.steps // 4),
    }
    files = {"train": str(options.train), "test": str(options.test)}
    kept = {"size": (32, 32), "channels": 3, "values": 256, "validation": 100, "limit": options.limit}
    data = ImageSettings(source="parquet", files=files, **kept)
    config = changed(vqstack.recipe(RECIPE).model_copy(update={"data": data}), {"levels": level, "train_levels": fit})
    folder = options.out / name.replace(" ", "-").replace(",", "")
    run, began = Run(config, folder, Accelerator(mixed_precision=config.mixed_precision)), time.process_time()
    run.train(run.phases["level-1"])
    seconds = time.process_time() - began
    run.close()
    lowest, images = run.model.stack.level(1).eval(), run.data.pixels("train")[:IMAGES]
    with torch.no_grad():
        counts = torch.stack([lowest.quantizer.counts(lowest.code(part)) for part in images.split(64)]).sum(0)
    use = usage(counts)
    rows = (folder / "phases/level-1/metrics.jsonl").read_text("utf-8").splitlines()
    bits = min(json.loads(row)["validation/nats"] for row in rows) / math.log(2)
    return {"name": name, "used": use.share, "perplexity": use.perplexity, "bits": bits, "seconds": seconds}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path, help="Parquet file of CIFAR-10")
    parser.add_argument("test", type=Path, help="Parquet file of CIFAR-10")
    parser.add_argument("--out", type=Path, required=True, help="folder that receives runs and results")
    parser.add_argument("--steps", type=int, default=500, help="of each training")
    parser.add_argument("--batch", type=int, default=16, help="images of a step")
    parser.add_argument("--size", type=int, default=2**14, help="codes")
    parser.add_argument("--limit", type=int, help="images of a split, at most")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS, help="which quantizers")
    options = parser.parse_args(arguments)
    found = []
    print(f"| {options.size:,} codes | in use | perplexity | bits of the pixels | seconds |\n|---|---|---|---|---|")
    for name in options.variants:
        found.append(measured(options, name, VARIANTS[name]))
        row = found[-1]
        cells = f"{row['used']:.1%} | {row['perplexity']:,.0f} | {row['bits']:,.0f} | {row['seconds']:.0f}"
        print(f"| {name} | {cells} |", flush=True)
        kept = {"rows": found, "settings": vars(options)}
        (options.out / "large_codebooks.json").write_text(json.dumps(kept, indent=1, default=str) + "\n", "utf-8")


if __name__ == "__main__":
    run_command(main)
