"""Judge generated digits: are they of the class that was asked for, and are they no copies?

    python benchmarks/digits.py RUN [--temperature 1] [--seed 0]

500 images, 50 a class. A support vector machine trained on the training split names their class; distances are L1 in
grey steps (0 … 16) to the nearest training image.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from sklearn.svm import SVC

from vqstack.images import load_splits
from vqstack.model import HierarchicalModel
from vqstack.model_settings import SamplingSettings
from vqstack.phases import data_of_run


def nearest_distance(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """L1 distance of each image to the nearest of the others, grey steps."""
    return np.stack([np.abs(others - image).sum(1).min() for image in images])


def judge(model: HierarchicalModel, run: Path, sampling: SamplingSettings | None, seed: int) -> dict[str, float]:
    """Class accuracy, share of near copies, median distance to training images, share of distinct images."""
    splits = load_splits(data_of_run(run))
    flat = {name: split.pixels.flatten(1).numpy().astype(int) for name, split in splits.items()}
    labels = {name: split.labels.numpy() for name, split in splits.items() if split.labels is not None}
    wanted = torch.arange(500) % 10
    samples = model.sample(500, wanted, seed=seed, sampling=sampling).pixels.flatten(1).numpy().astype(int)
    classifier = SVC(C=10, gamma=0.001).fit(flat["train"], labels["train"])
    distances = nearest_distance(samples, flat["train"])
    real = nearest_distance(flat["test"], flat["train"])
    return {
        "accuracy": float((classifier.predict(samples) == wanted.numpy()).mean()),
        "accuracy_real": float(classifier.score(flat["test"], labels["test"])),
        "nearer_than_31": float((distances < 31).mean()),
        "nearer_than_31_real": float((real < 31).mean()),
        "median_distance": float(np.median(distances)),
        "median_distance_real": float(np.median(real)),
        "distinct": len(np.unique(samples, axis=0)) / len(samples),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run on the digits")
    parser.add_argument("--temperature", type=float, nargs="+", help="default: the model's own sampling settings")
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples")
    options = parser.parse_args()
    model = HierarchicalModel.from_pretrained(options.run / "model")
    sampling = None if options.temperature is None else SamplingSettings(temperature=tuple(options.temperature))
    print(json.dumps(judge(model, options.run, sampling, options.seed), indent=1))


if __name__ == "__main__":
    main()
