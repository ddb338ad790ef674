"""A model of sounds on files that it has not seen: exact archives, reconstructions, drawings.

    python benchmarks/speech.py RUN FOLDER --out OUT

FOLDER has a folder of sound files for each class. Each class becomes one archive, which is decompressed and compared.
"""

import argparse
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import soundfile
import torch

from vqstack.commands import compress, decompress, generate
from vqstack.images import load_splits
from vqstack.model import HierarchicalModel
from vqstack.phases import data_of_run


def archived(run: Path, folder: Path, out: Path) -> dict[str, float]:
    """Bits a number: of the archive of one class, by the ledger, of the files themselves; and how many came back."""
    files, about = sorted(folder.iterdir()), out / f"{folder.name}.json"
    said = ["--label", folder.name, "--out", str(out / folder.name), "--report", str(about)]
    compress.main([str(run), str(folder), *said])
    decompress.main([str(run), str(out / folder.name / "images.vqs"), "--out", str(out / f"{folder.name}-back")])
    exact = numbers = 0
    for file in files:
        ours, theirs = (
            soundfile.read(path, dtype="int16")[0] for path in (out / f"{folder.name}-back" / f"{file.stem}.wav", file)
        )
        exact += np.array_equal(ours, theirs)
        numbers += len(theirs)
    return {
        "files": len(files),
        "exact": exact,
        "numbers": numbers,
        "archive": 8 * (out / folder.name / "images.vqs").stat().st_size,
        "ledger": 8 * json.loads(about.read_text())["ledger_bytes"],
        "source": 8 * sum(file.stat().st_size for file in files),
    }


@torch.no_grad()
def signal_to_noise(run: Path, model: HierarchicalModel, count: int) -> dict[str, float]:
    """Decibels of the mean below each map, over the first test excerpts."""
    pixels = load_splits(data_of_run(run), ["test"])["test"].pixels[:count]
    middle, codes, found = model.stack.values / 2, model.encode(pixels), {}
    for level, z in enumerate(codes, start=1):
        error = (model.decode(z, level) - pixels).double().square().sum()
        found[f"level-{level}"] = float(10 * torch.log10((pixels - middle).double().square().sum() / error))
    return found


def pictured(run: Path, folder: Path, out: Path, model: HierarchicalModel) -> None:
    """Spectrograms: a real excerpt of each class in the first row, two that were drawn below it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names, rate, size = model.settings.class_names, model.settings.geometry.rate, model.stack.shape[-1]
    cold = ["--temperature", *["0.9"] * len(model.stack), "1"]  # of the codes
    generate.main([str(run), "--num", str(2 * len(names)), "--label", *names, *cold, "--out", str(out / "drawn")])
    figure, axes = plt.subplots(3, len(names), figsize=(2.6 * len(names), 6))
    for column, name in enumerate(names):
        real = soundfile.read(max((folder / name).iterdir(), key=lambda path: path.stat().st_size))[0]
        shown = [real[len(real) // 2 - size // 2 :][:size]]
        shown += [soundfile.read(out / "drawn" / f"{column + row * len(names):06d}.wav")[0] for row in (0, 1)]
        for row, numbers in enumerate(shown):
            axes[row, column].specgram(numbers, NFFT=128, noverlap=112, Fs=rate, vmin=-140, vmax=-40)
            axes[row, column].set_axis_off()
        axes[0, column].set_title(name)
    figure.tight_layout()
    figure.savefig(out / "spectrograms.png", dpi=70)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run on sounds with classes")
    parser.add_argument("folder", type=Path, help="sound files in a folder for each class")
    parser.add_argument("--out", type=Path, required=True, help="receives archives, sounds and spectrograms; new")
    parser.add_argument("--excerpts", type=int, default=100, help="for the signal-to-noise ratio")
    options = parser.parse_args()
    options.out.mkdir()
    model = HierarchicalModel.from_pretrained(options.run / "model")
    with redirect_stdout(sys.stderr):
        each = {path.name: archived(options.run, path, options.out) for path in sorted(options.folder.iterdir())}
        pictured(options.run, options.folder, options.out, model)
    total = {name: sum(one[name] for one in each.values()) for name in next(iter(each.values()))}
    bits = {name: total[name] / total["numbers"] for name in ("archive", "ledger", "source")}
    found = {"files": total["files"], "exact": total["exact"], "bits a number": bits, "by class": each}
    found["decibels"] = signal_to_noise(options.run, model, options.excerpts)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
