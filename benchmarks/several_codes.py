"""Several codes a site against one of as many bits: reconstruction, usage, bits of the codes and of the pixels.

    python benchmarks/several_codes.py --out runs/several --data.source parquet --data.files train TRAIN test TEST

Every variant is a run of its own of benchmarks/recipes/cifar10_codes.yaml with the same steps, and goes on where it
stopped: 8x8 sites of 8 bits, as one code of 256, two of 16 or four of 4. Reconstructions are of 500 test images;
with fewer codes of each site the later ones are left out.
"""

import json
import subprocess
import sys
from pathlib import Path

import torch

from vqstack.images import load_splits
from vqstack.metrics import FidelityMeter
from vqstack.model import HierarchicalModel
from vqstack.phases import data_of_run

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = (("vq", 1, 256), ("residual", 2, 16), ("residual", 4, 4), ("product", 2, 16), ("product", 4, 4))
IMAGES = 500


@torch.no_grad()
def fidelity(run: Path) -> list[float | None]:
    """PSNR in dB of the images that the first code of each site makes, the first two, … all."""
    model = HierarchicalModel.from_pretrained(run).eval()
    pixels = load_splits(data_of_run(run))["test"].pixels[:IMAGES]
    meters = [FidelityMeter(model.stack.values) for _ in range(model.stack.level(1).quantizer.codes)]
    for batch in pixels.split(64):
        codes = model.encode(batch)[0]
        for number, meter in enumerate(meters, start=1):
            meter.add(model.decode(codes, 1, number), batch)
    return [meter.read().psnr for meter in meters]


def main(arguments: list[str]) -> None:
    if arguments[:1] != ["--out"] or len(arguments) < 2:
        raise SystemExit(__doc__)
    out, given = Path(arguments[1]), arguments[2:]
    print("| codes a site | codes | pixels given codes | total | codes used | perplexity | dB from the first codes |")
    print("|---|---|---|---|---|---|---|")
    for kind, count, size in VARIANTS:
        folder = out / f"{kind}-{count}x{size}"
        command = [sys.executable, str(ROOT / "recipes/train_stack.py"), "--out", str(folder)]
        command += [
            "--config",
            str(ROOT / "benchmarks/recipes/cifar10_codes.yaml"),
            "--prior.no-codebook",
            *given,
        ]
        command += [
            f"--levels.0.quantizer.{name}={value}"
            for name, value in (("kind", kind), ("codes", count), ("codebook-size", size))
        ]
        subprocess.run(command, check=True, stdout=sys.stderr)
        test = json.loads((folder / "ledger.json").read_text(encoding="utf-8"))["test"]
        bits, use = {row["row"]: row["bits"] for row in test["rows"]}, test["usage"]["level-1"]
        pictures = ", ".join(f"{psnr:.1f}" for psnr in fidelity(folder))
        numbers = f"{bits['prior']:,.0f} | {bits['level-1']:,.0f} | {test['bits']:,.0f}"
        used = f"{100 * use['share']:.0f} % | {use['perplexity']:.1f}"
        print(f"| {kind}, {count} of {size} | {numbers} | {used} | {pictures} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
