"""Images -> codes on disk -> images, for every level, against the model's own reconstruction.

    python benchmarks/round_trip.py RUN --codes FOLDER [--split test] [--num 1000]

FOLDER comes from ``tools/encode_dataset.py RUN --out FOLDER``. For each level, ``tools/generate.py RUN --codes FOLDER``
writes PNG files, which are compared with ``model.decode(model.encode(images)[level], level)``, pixel by pixel. Exit
code 1 if one differs.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from vqstack.codes import CodeDataset
from vqstack.images import load_images, load_splits
from vqstack.model import HierarchicalModel
from vqstack.phases import data_of_run

TOOL = Path(__file__).parents[1] / "tools" / "generate.py"
BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--codes", type=Path, required=True, help="code data set that this run wrote")
    parser.add_argument("--split", default="test")
    parser.add_argument("--num", type=int, default=1000, help="images compared")
    options = parser.parse_args()
    model: HierarchicalModel = HierarchicalModel.from_pretrained(options.run)
    data = data_of_run(options.run)
    pixels = load_splits(data, [options.split])[options.split].pixels[: options.num]
    stored = next(CodeDataset(options.codes).blocks(options.split)).codes
    codes = [torch.cat(maps) for maps in zip(*map(model.encode, pixels.split(BATCH)), strict=True)]
    wrong = 0
    for level in range(1, len(model.stack) + 1):
        expected = torch.cat([model.decode(z, level) for z in codes[level - 1].split(BATCH)])
        compared = min(len(stored[level - 1]), len(pixels))
        same = torch.equal(stored[level - 1][:compared], codes[level - 1][:compared])
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "images")
            given = ["--codes", options.codes, "--split", options.split, "--from-level", level, "--num", len(pixels)]
            given += ["--batch-size", BATCH, "--device", "cpu", "--out", out]
            command = list(map(str, [sys.executable, TOOL, options.run, *given]))
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            found = load_images(sorted(out.glob("[0-9]*.png")), data)
        differ = int((found != expected).flatten(1).any(1).sum())
        print(f"level {level}: {len(found)} images, {differ} of them differ; codes equal: {same}")
        wrong += differ + (not same)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
