"""What a code costs and what it earns: one level with a window decoder, its map and codebook exchanged.

    python benchmarks/codes.py --out runs/codes --data.source parquet --data.files train TRAIN test TEST

Every variant is a run of its own of benchmarks/recipes/cifar10_codes.yaml with the same steps, and goes on where it
stopped. Prints, for each map and codebook, bits per image of the codes and of the pixels given them, on test images.
A map of one site with two codes stands for no codes at all: it costs at most a bit.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = (((1, 1), 2), ((2, 2), 256), ((4, 4), 256), ((8, 8), 16), ((8, 8), 256), ((16, 16), 64))


def main(arguments: list[str]) -> None:
    if arguments[:1] != ["--out"] or len(arguments) < 2:
        raise SystemExit(__doc__)
    out, given = Path(arguments[1]), arguments[2:]
    rows = []
    for (height, width), size in VARIANTS:
        folder = out / f"{height}x{width}-{size}"
        command = [sys.executable, str(ROOT / "recipes/train_stack.py"), "--out", str(folder)]
        command += ["--config", str(ROOT / "benchmarks/recipes/cifar10_codes.yaml"), *given]
        command += ["--levels.0.map", str(height), str(width), "--levels.0.quantizer.codebook-size", str(size)]
        subprocess.run(command, check=True)
        test = json.loads((folder / "ledger.json").read_text(encoding="utf-8"))["test"]
        bits = {row["row"]: row["bits"] for row in test["rows"]}
        use = test["usage"]["level-1"]
        rows.append((f"{height}x{width} of {size}", bits["prior"], bits["level-1"], test["bits"], use))
    least = rows[0]
    print("| map | codes | pixels given codes | total | saved below | codes used | perplexity |")
    print("|---|---|---|---|---|---|---|")
    for name, codes, pixels, total, use in rows:
        numbers = f"{codes:,.0f} | {pixels:,.0f} | {total:,.0f} | {least[2] - pixels:,.0f}"
        print(f"| {name} | {numbers} | {100 * use['share']:.0f} % | {use['perplexity']:.0f} |")


if __name__ == "__main__":
    main(sys.argv[1:])
