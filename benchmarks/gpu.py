"""Everything that wants a GPU, in one command of at most nine minutes; without one it checks itself at toy size.

    python benchmarks/gpu.py [--out gpu.json] [--toy]

Trains and encodes in bfloat16, compiled, channels last, with the fused optimiser, and compares each with a bare loop
over the same modules under the same settings. The walk of a prior reads all its weights once a site, as the bfloat16
copies that autocast keeps of them; it is compared with the time in which the device copies as many bytes. Then a run is
stopped in the middle and gone on with, ``deterministic``, and its weights are compared with those of a run that was
left alone, bit by bit. The numbers are written after each comparison; what is not measured after nine minutes is not.
Prints what falls short of the aims: training 0.9 of the bare loop, encoding 0.9 of the bare network, a walk within
twice the time of its bytes, equal bits.
"""

import argparse
import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from run import Comparison, bare_training, compare, make_pixels, seconds
from torch import Tensor

import vqstack
from vqstack.code_model import CodeModelSettings, build_code_model
from vqstack.ending import run_command
from vqstack.errors import Stopped
from vqstack.fit import Callback, Fit, FitSettings
from vqstack.level import Level, LevelSettings, NetworkSettings
from vqstack.likelihood import noise
from vqstack.quantizer import QuantizerSettings
from vqstack.sources import PixelSource
from vqstack.stack import Stack, StackSettings
from vqstack.window import DecoderSettings


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    width: int
    codes: int
    batch: int
    images: int
    depth: int
    dim: int
    sites: int
    steps: int


LONGEST = 530  # seconds
FULL = Size(width=256, codes=4096, batch=256, images=8192, depth=24, dim=1024, sites=256, steps=200)
TOY = Size(width=16, codes=32, batch=8, images=64, depth=2, dim=32, sites=16, steps=8)


def level_of(size: Size, family: str, device: torch.device) -> Level:
    """Level 1 of images of 32×32, in stages, channels last."""
    torch.manual_seed(0)
    quantizer = QuantizerSettings(codebook_size=size.codes, dim=16)
    decoder = DecoderSettings(family=family)
    networks = NetworkSettings(kind="staged")
    settings = LevelSettings(map=(8, 8), quantizer=quantizer, width=size.width, decoder=decoder, networks=networks)
    level = Stack(StackSettings(levels=(settings,)), (3, 32, 32), 256).to(device).level(1)
    level.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch has it, its stub does not
    return level


def accelerator_of(device: torch.device) -> Accelerator:
    """In bfloat16 on a GPU."""
    return Accelerator(cpu=device.type == "cpu", mixed_precision="no" if device.type == "cpu" else "bf16")


def training(size: Size, device: torch.device) -> Iterator[Comparison]:
    """Level 1, compiled, through the toolkit's loop and through a bare one."""
    compiled = device.type == "cuda"
    for family in ("product", "window"):
        settings = FitSettings(steps=10**6, batch_size=size.batch)
        pixels, accelerator = make_pixels(size.images, device), accelerator_of(device)
        bare_level, level = (level_of(size, family, device) for _ in range(2))
        if compiled:
            for network in bare_level.networks:
                network.compile(dynamic=False)
        bare = bare_training(bare_level, pixels, settings)

        def step(bare: Iterator[None] = bare, accelerator: Accelerator = accelerator) -> None:
            with accelerator.autocast():
                next(bare)

        with tempfile.TemporaryDirectory() as folder:
            source = PixelSource(pixels)
            fit = Fit("gpu", level, source, source, settings, accelerator, Path(folder), compile_module=compiled)
            name = f"training, {family}, batch {size.batch} / bare loop"
            yield Comparison(name, fit.training_step, step, "speed", 0.9, size.batch)


def encoding(size: Size, device: torch.device) -> Iterator[Comparison]:
    """Images to codes, and the network alone."""
    level, pixels = level_of(size, "product", device).eval(), make_pixels(size.batch, device)
    if device.type == "cuda":
        level.encoder.compile(dynamic=False)
    accelerator = accelerator_of(device)

    @torch.no_grad()
    def ours() -> Tensor:
        with accelerator.autocast():
            return level.code(pixels)

    @torch.no_grad()
    def bare() -> Tensor:
        with accelerator.autocast():
            return level.encoder(level.features(pixels))

    yield Comparison(f"encoding {size.batch} images / bare network", ours, bare, "speed", 0.9, size.batch)


def bandwidth(device: torch.device, count: int) -> float:
    """Bytes a second that the device reads and writes in a copy, the better of ten."""
    source = torch.empty(count, device=device)
    target = torch.empty_like(source)
    times = [seconds(lambda: target.copy_(source), device) for _ in range(11)][1:]
    return 2 * source.nbytes / min(times)


def walk(size: Size, device: torch.device) -> dict:
    """Seconds a site of a prior at batch 1, and those in which as many bytes as its weights have are copied."""
    torch.manual_seed(0)
    settings = CodeModelSettings(depth=size.depth, dim=size.dim, heads=size.dim // 32)
    side = round(size.sites**0.5)
    prior = build_code_model(settings, (side, side), size.codes, 0, 16).to(device).eval()
    u, dtype = noise(0, range(1), 0, size.sites), torch.float32 if device.type == "cpu" else torch.bfloat16

    @torch.no_grad()
    def draw() -> None:
        with torch.autocast(device.type, dtype=dtype, enabled=device.type != "cpu"):
            prior.distribution(1, {}, device).sample(u)

    draw()
    each = min(seconds(draw, device) for _ in range(3)) / size.sites
    held = sum(p.numel() for p in prior.parameters()) * dtype.itemsize  # autocast makes its copies at the first site
    least = held / bandwidth(device, 2**18 if size is TOY else 2**28)
    return {"what": "walk of a prior, batch 1", "seconds a site": each, "of its bytes": least, "ratio": each / least}


class TimeIsUp(BaseException):
    """No Exception, so that nothing on the way takes it for an error."""


class Stopping(Callback):
    """Stops a run after some steps, as a signal from outside does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, phase: str, step: int, loss: float) -> None:
        if phase == "level-1" and step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def resumed_equal(size: Size, device: torch.device) -> bool:
    """Whether a run that was stopped amid level 1 ends with the bits of one that was left alone."""
    fit = {"steps": size.steps, "batch_size": 16, "evaluate_every": size.steps}
    precision = "no" if device.type == "cpu" else "bf16"
    config = vqstack.recipe(
        "digits", deterministic=True, mixed_precision=precision, train_levels=fit, train_refiners=fit, train_prior=fit
    )
    with tempfile.TemporaryDirectory() as folder:
        alone = vqstack.train(config, out=Path(folder) / "alone")
        try:
            vqstack.train(config, out=Path(folder) / "stopped", callbacks=[Stopping(size.steps // 2)])
            raise AssertionError("the run was not stopped")
        except Stopped:
            pass
        again = vqstack.train(config, out=Path(folder) / "stopped")
    ours, theirs = alone.state_dict(), again.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def measured(size: Size, device: torch.device) -> Iterator[tuple[dict, bool]]:
    """What was found of each thing, and whether it is as good as was aimed at."""
    for section in (training, encoding):
        for comparison in section(size, device):
            row = compare(comparison, 5, device)
            yield {"what": row.what, "ratio": row.ratio, "per_second": row.ours_per_second}, row.met is not False
    found = walk(size, device)
    yield found, found["ratio"] <= 2
    equal = resumed_equal(size, device)
    yield {"what": "stopped and gone on with, equal bits", "equal": equal}, equal


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="receives the numbers")
    parser.add_argument("--toy", action="store_true", help="at toy size, though there is a GPU")
    parser.add_argument("--seconds", type=int, default=LONGEST, help="after so many it is cut off")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    toy, began = options.toy or device.type == "cpu", time.perf_counter()
    if device.type == "cpu":
        print("no GPU is here: everything runs on the CPU at toy size, and its figures mean nothing")
    size = TOY if toy else FULL
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    found: dict[str, Any] = {
        "device": name,
        "torch": torch.__version__,
        "toy": toy,
        "rows": list[dict](),
        "short": list[str](),
    }

    def write() -> None:
        found["seconds"] = time.perf_counter() - began
        if device.type == "cuda":
            found["peak_GiB"] = torch.cuda.max_memory_allocated() / 2**30
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    def stop(*_: object) -> None:
        raise TimeIsUp

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(options.seconds)
    try:
        for row, fine in measured(size, device):
            found["rows"].append(row)
            found["short"] += [] if fine else [row["what"]]
            write()
            print(row, flush=True)
        signal.alarm(0)
    except TimeIsUp:
        found["short"].append(f"what follows, cut off after {options.seconds} s")
    write()
    print(f"{found['seconds']:.0f} s; falls short: {', '.join(found['short']) or 'nothing'}")


if __name__ == "__main__":
    run_command(main)
