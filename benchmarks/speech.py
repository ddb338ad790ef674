"""A model of sounds on files that it has not seen: exact archives, reconstructions, drawings.

    python benchmarks/speech.py RUN FOLDER --out OUT

FOLDER has a folder of sound files for each class. Each class becomes one archive, which is decompressed and compared.
Mel distances need librosa, of the extra bench.
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
def reconstructed(run: Path, model: HierarchicalModel, count: int) -> dict[str, dict[str, float]]:
    """Of ``count`` test excerpts, evenly spread: what comes back from each map, by its mean and drawn once.

    Beside them "another": an excerpt of the same class from half a class further on, which is another recording.
    """
    split = load_splits(data_of_run(run), ["test"])["test"]
    places = np.linspace(0, len(split), min(count, len(split)), endpoint=False).astype(int)
    pixels, labels = split.pixels[places], split.labels[places]
    found = {"another": compared(model, pixels, pixels[_another(labels)])}
    for level, z in enumerate(model.encode(pixels), start=1):
        found[f"level-{level}, mean"] = compared(model, pixels, model.decode(z, level))
        found[f"level-{level}, drawn"] = compared(model, pixels, model.vary(z, level).pixels)
    return found


def _another(labels: torch.Tensor) -> torch.Tensor:
    """For each excerpt the place of one of its class, as far from it as the class allows."""
    places = torch.arange(len(labels))
    for label in labels.unique():
        own = places[labels == label]
        places[own] = own.roll(len(own) // 2)
    return places


def compared(model: HierarchicalModel, wanted: torch.Tensor, found: torch.Tensor) -> dict[str, float]:
    """Signal-to-noise ratio over all numbers, and :func:`mel_distance`, both in decibels."""
    middle = model.stack.values / 2
    signal, error = (wanted - middle).double().square().sum(), (found - wanted).double().square().sum()
    one, other = ((values[:, 0].numpy() - middle) / middle for values in (wanted, found))
    return {
        "signal to noise": float(10 * torch.log10(signal / error)),
        "mel": mel_distance(one, other, rate_of(model)),
    }


def rate_of(model: HierarchicalModel) -> int:
    """Numbers a second of the sounds of a model."""
    geometry = model.settings.geometry
    if geometry is None or geometry.rate is None:
        sys.exit("error: RUN is not a run on sounds: its artefact tells no rate")
    return int(geometry.rate)


def mel_distance(one: np.ndarray, other: np.ndarray, rate: int) -> float:
    """The mean absolute difference of two log-mel spectrograms, in decibels.

    By librosa: power in 40 mel bands from 0 to half the rate, Hann windows of 32 ms every 8 ms; what is below -60 dB,
    the rounding of 16 bits, counts as -60 dB. Sounds [n, numbers], 1.0 is full scale.
    """
    import librosa

    def levels(sounds: np.ndarray) -> np.ndarray:
        window, hop = round(0.032 * rate), round(0.008 * rate)
        bands = librosa.feature.melspectrogram(y=sounds, sr=rate, n_fft=window, hop_length=hop, n_mels=40)
        return librosa.power_to_db(bands, amin=1e-6, top_db=None)

    return float(np.abs(levels(one) - levels(other)).mean())


def pictured(run: Path, folder: Path, out: Path, model: HierarchicalModel) -> None:
    """Spectrograms: a real excerpt of each class in the first row, two that were drawn below it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names, rate, size = model.settings.class_names, rate_of(model), model.stack.shape[-1]
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
    parser.add_argument("--excerpts", type=int, default=100, help="of the test split, to compare with what comes back")
    options = parser.parse_args()
    options.out.mkdir()
    model = HierarchicalModel.from_pretrained(options.run / "model")
    with redirect_stdout(sys.stderr):
        each = {path.name: archived(options.run, path, options.out) for path in sorted(options.folder.iterdir())}
        pictured(options.run, options.folder, options.out, model)
    total = {name: sum(one[name] for one in each.values()) for name in next(iter(each.values()))}
    bits = {name: total[name] / total["numbers"] for name in ("archive", "ledger", "source")}
    found = {"files": total["files"], "exact": total["exact"], "bits a number": bits, "by class": each}
    found["reconstructions"] = reconstructed(options.run, model, options.excerpts)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
