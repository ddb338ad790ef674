"""How long the first hour takes: from nothing to the demo's picture, and from a folder of images to samples.

    python benchmarks/first_hour.py demo --out FOLDER                 # a new environment, a wheel, digits, 100 samples
    python benchmarks/first_hour.py folder --images PHOTOS --out FOLDER  # docs/own-images.md, with this environment

Prints the seconds of each step as it ends, and writes them to FOLDER/seconds.json. FOLDER must not be there yet.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHORT = "--steps 2000 --train-levels.1.steps 600 --train-prior.steps 600 --train-renderer.steps 200".split()


def demo(out: Path) -> Iterator[tuple[str, list[str]]]:
    """From a checkout to a hundred digits, without anything that was installed before."""
    python = str(out / "venv" / "bin" / "python")
    yield "environment", [sys.executable, "-m", "venv", str(out / "venv")]
    yield "wheel", [python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(ROOT)]
    install = [python, "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt")]
    yield "installing", [*install, "--find-links", str(out), "vqstack[evaluate]"]
    vqstack = [python, "-m", "vqstack"]
    yield "training", [*vqstack, "train", "--config", "digits", "--out", str(out / "run")]
    yield "drawing", [*vqstack, "generate", str(out / "run"), "--num", "100", "--out", str(out / "samples")]


def folder(images: Path, out: Path) -> Iterator[tuple[str, list[str]]]:
    """From images in a folder to sixteen samples."""
    vqstack = [sys.executable, "-m", "vqstack"]
    yield "training", [*vqstack, "train", "--images", str(images), "--out", str(out / "run"), *SHORT]
    drawing = ["generate", str(out / "run"), "--num", "16", "--decoder", "renderer", "--out", str(out / "samples")]
    yield "drawing", [*vqstack, *drawing]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["demo", "folder"])
    parser.add_argument("--images", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if (arguments.part == "folder") != (arguments.images is not None):
        parser.error("--images belongs to folder")
    arguments.out.mkdir(parents=True)
    steps = demo(arguments.out) if arguments.part == "demo" else folder(arguments.images, arguments.out)
    seconds: dict[str, float] = {}
    for name, command in steps:
        began = time.monotonic()
        subprocess.run(command, check=True)
        seconds[name] = round(time.monotonic() - began, 1)
        print(f"== {name}: {seconds[name]:.1f} s", flush=True)
    seconds["in all"] = round(sum(seconds.values()), 1)
    print(f"== in all: {seconds['in all'] / 60:.1f} min")
    (arguments.out / "seconds.json").write_text(json.dumps(seconds, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
