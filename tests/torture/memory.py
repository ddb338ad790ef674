"""Memory of a long run: what it holds at its end is what it held soon after its start."""

import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from harness import Child

from vqstack.fit import Fit, FitSettings
from vqstack.level import LevelSettings, PixelLevel
from vqstack.likelihood import PixelHead, PixelSettings
from vqstack.sources import PixelSource
from vqstack.variables import Variable


def resident() -> float:
    """Resident memory of this process, MiB."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def long_run(folder: Path, steps: int, early: int) -> None:
    """Train level 1 of a tiny model; prints resident memory after ``early`` steps and at the end."""
    torch.manual_seed(0)
    quantizer = {"codebook_size": 8, "dim": 4}
    settings = LevelSettings(map=(2, 2), width=8, encoder_blocks=0, decoder_blocks=0, quantizer=quantizer)
    level = PixelLevel(Variable.pixels((1, 4, 4), 2), settings, PixelHead(PixelSettings(), 1, 2), (4, 4))
    images = torch.randint(0, 2, (64, 1, 4, 4), dtype=torch.uint8)
    training = FitSettings(
        steps=steps, batch_size=8, warmup=10, evaluate_every=early // 4, checkpoint_every=early // 20
    )
    fit = Fit("long", level, PixelSource(images), PixelSource(images), training, Accelerator(cpu=True), folder)
    step = fit.training_step

    def watched() -> None:
        step()
        if fit.step in (early, steps):
            print(f"{resident():.3f}", flush=True)

    fit.training_step = watched  # type: ignore[method-assign]
    fit.run()


def part(folder: Path, short: bool) -> dict[str, Any]:
    """20,000 steps of a tiny run."""
    steps, early = (1_000, 500) if short else (20_000, 2_000)
    run = folder / "long"
    run.mkdir(parents=True)
    end = Child(lambda: long_run(run, steps, early), folder).end(1800)
    if end.code:
        return {"failures": [str(end)]}
    first, last = map(float, end.out.split()[-2:])
    growth = last / first - 1
    failures = [f"memory grew by {growth:.2%}"] if growth > 0.02 else []
    rows = (run / "metrics.jsonl").stat().st_size
    return {
        "steps": steps,
        "early": early,
        "MiB early": round(first, 1),
        "MiB at the end": round(last, 1),
        "growth": round(growth, 5),
        "seconds": round(end.seconds, 1),
        "bytes of metrics": rows,
        "failures": failures,
    }
