"""One transformer for all maps of codes against separate ones of the same total size and training time.

    python benchmarks/unified.py recipes/cifar10_cpu.yaml --levels-from RUN --out runs/unified --seconds 600 \
        --prior.window 1 --prior.wavefront 3 [any override of the recipe]

The levels are frozen: those of RUN, and those of the recipe above them, which are trained once. ``unified`` has the
recipe's prior. ``separate`` has a prior and a refiner of each level above 1 with the same settings, but for ``dim``,
which is chosen so that all of them together have nearest to as many parameters. A step of each side is timed on
batches of train_prior. ``unified`` takes as many steps as fit into the seconds, each part of ``separate`` as many as
all of them can take in that time. A window decoder above level 1 wants its slope as prior.wavefront.

Printed: parameters, steps, seconds, bits by row of test images, Fréchet distance of samples to the test split beside
its floor, seconds of one image and of a batch of 64, both sides in turn. Writes OUT/unified.json and a picture of each
side's samples.
"""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from pydantic import Field
from refiners import evaluations, row_bits, seconds_in_turn
from samples import score
from sharing import changed
from torch import nn

from vqstack.code_model import segments_of
from vqstack.config import RunConfig, parse, read_yaml
from vqstack.ending import run_command
from vqstack.errors import InputError
from vqstack.features import trained_judge
from vqstack.fit import FitSettings, Source, optimizer_for
from vqstack.images import default_cache, grid
from vqstack.model import HierarchicalModel
from vqstack.phases import Run
from vqstack.quality import draw_samples, images_a_side
from vqstack.sources import CodeSource, RefinerSource, UnifiedSource


class Command(RunConfig):
    """Train both sides and compare them."""

    out: Path = Field(default=Path("runs/unified"), description="Folder of the runs; new.")
    seconds: float = Field(default=600.0, gt=0, description="Training of the transformers of each side, seconds.")
    images: int = Field(default=1000, ge=1, description="Test images whose bits are counted.")
    num: int = Field(default=500, ge=1, description="Images a side of each comparison of samples.")
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), description="Seeds of the samples.")
    cache: Path = Field(default=default_cache(), description="Folder that keeps the trained classifier.")


def transformers(model: HierarchicalModel) -> list[nn.Module]:
    """What is trained on the frozen codes, phase by phase."""
    if model.unified is not None:
        return [model.unified]
    refiners = [model.refiner(number) for number in range(2, len(model.stack) + 1)]
    return [*(refiner for refiner in refiners if refiner is not None), model.prior]


def parameters(model: HierarchicalModel) -> int:
    """Of all transformers together."""
    return sum(p.numel() for part in transformers(model) for p in part.parameters())


def separate(config: RunConfig, dim: int) -> RunConfig:
    """A prior and refiners of this width in place of the one transformer."""
    prior = config.prior.model_copy(update={"dim": dim})
    return changed(config, {"unified": False, "prior": prior, "refiners": segments_of(prior, len(config.levels))})


def as_large(config: RunConfig, shape: tuple[int, ...], classes: int) -> RunConfig:
    """Separate transformers with nearest to as many parameters as the one."""
    wanted = parameters(HierarchicalModel(config.model_settings(shape, classes)))
    heads = config.prior.heads
    tried = [separate(config, dim) for dim in range(heads, config.prior.dim + 1, heads)]
    # The count grows with the width: halve the widths among which the nearest lies.
    low, high = 0, len(tried) - 1
    while high - low > 1:
        middle = (low + high) // 2
        found = parameters(HierarchicalModel(tried[middle].model_settings(shape, classes)))
        low, high = (middle, high) if found < wanted else (low, middle)

    def off(side: RunConfig) -> int:
        return abs(parameters(HierarchicalModel(side.model_settings(shape, classes))) - wanted)

    return min((tried[low], tried[high]), key=off)


def step_seconds(run: Run, fit: FitSettings, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Median seconds of a training step of each transformer of a run, its batch included."""
    model, device = run.model, run.accelerator.device
    maps = model.encode(run.data.pixels("train")[: fit.batch_size].to(device))
    labels = run.splits["train"].labels
    given = [labels[: fit.batch_size].to(device)] if labels is not None and model.prior.classes else []
    steps = []
    for number, module in enumerate(transformers(model), start=2):
        below = len(maps) if module is model.prior else 1 if model.unified is not None else number - 1
        stored = CodeSource(maps[below - 1].cpu().numpy().astype(np.uint16)[None], device, given)
        source: Source = stored
        if model.unified is not None:
            source = UnifiedSource(stored, model.stack)
        elif module is not model.prior:
            settings = next(r for r in run.config.refiners if r.level == number)
            source = RefinerSource(stored, model.stack.level(number), settings, None)
        module.train()
        optimizer, indices = optimizer_for(module, fit, device), torch.arange(fit.batch_size)

        def step(module=module, source=source, optimizer=optimizer, indices=indices):
            module(*source.batch(indices, None)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        before = {name: value.clone() for name, value in module.state_dict().items()}
        steps += seconds_in_turn([step], clock=clock)
        module.load_state_dict(before)
    return steps


def for_steps(config: RunConfig, steps: int | None) -> RunConfig:
    """The settings with this many steps of each transformer."""
    if steps is None:
        return config
    fit = config.train_prior.model_copy(update={"steps": steps, "evaluate_every": max(1, steps // 4)})
    return changed(config, {"train_prior": fit, "train_refiners": (fit,)})


def train(config: RunConfig, folder: Path, steps: int | None) -> tuple[HierarchicalModel, Run, float]:
    """The transformers over frozen levels, with this many steps each, and their seconds; no steps: the levels alone."""
    config = for_steps(config, steps)
    run = Run(config, folder, Accelerator(mixed_precision=config.mixed_precision))
    levels = [phase for phase in run.phases.values() if phase.name.startswith("level-")]
    for phase in levels:
        run.train(phase)
    run.model.eval()
    started = time.perf_counter()
    for phase in run.phases.values() if steps is not None else ():
        if phase not in levels:
            run.train(phase)
    seconds = time.perf_counter() - started
    run.close()
    run.model.eval().save_files(folder / "model")
    return run.model, run, seconds


def main(arguments: list[str]) -> None:
    path, *given = arguments
    command = parse(Command, given, Command(**dict(read_yaml(Path(path), RunConfig))), prog="unified.py")
    if command.levels_from is None or command.out.exists():
        raise InputError("--levels-from: give the run whose levels are frozen, and an --out that is new")
    config = RunConfig(**{name: getattr(command, name) for name in RunConfig.model_fields})
    both = {"unified": changed(config, {"unified": True, "refiners": ()})}
    _, run, _ = train(both["unified"], command.out / "levels", None)
    classes, shape = run.splits["train"].num_classes, tuple(run.splits["train"].pixels.shape[1:])
    both["separate"] = as_large(both["unified"], shape, classes)
    splits = run.splits
    judge = trained_judge(splits["train"], splits["validation"], command.cache, run.accelerator)
    count = images_a_side(command.num, splits["test"])

    results: dict[str, dict] = {}
    models: dict[str, HierarchicalModel] = {}
    for name, side in both.items():
        side = changed(side, {"levels_from": command.out / "levels"})
        _, timed, _ = train(side, command.out / f"timed-{name}", None)
        steps = max(1, round(command.seconds / sum(step_seconds(timed, side.train_prior))))
        model, _, seconds = train(side, command.out / name, steps)
        models[name] = model
        rows = row_bits(model, splits["test"], min(command.images, len(splits["test"])), refined=True)
        quality = score(model, model.settings.sampling, splits["test"], count, list(command.seeds), judge)
        results[name] = {
            "parameters": parameters(model),
            "dim": side.prior.dim,
            "steps": steps,
            "seconds": seconds,
            "evaluations": evaluations(model),
            "rows": rows,
            "samples": quality.to_json(),
        }
        pixels, _ = draw_samples(model, 100, command.seeds[0], model.settings.sampling)
        shown = grid(pixels, 10, model.stack.values, max(1, 64 // model.stack.shape[1]))
        shown.save(command.out / f"{name}.png")
    for batch in (1, 64):
        times = seconds_in_turn([partial(m.sample, batch) for m in models.values()], repeats=3)
        for name, seconds in zip(models, times, strict=True):
            results[name][f"seconds of {batch}"] = seconds
    (command.out / "unified.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for name, found in results.items():
        bits = "  ".join(f"{row} {value:.2f}" for row, value in found["rows"].items())
        codes = sum(value for row, value in found["rows"].items() if row not in ("label", "level-1"))
        summary = found["samples"]["summary"]
        print(f"{name}: {found['parameters']:,} parameters, {found['steps']} steps in {found['seconds']:.0f} s")
        print(f"  bits per image: {bits}; codes together {codes:.2f}")
        print(f"  Fréchet distance {summary['distance']['mean']:.3f}, floor {summary['floor']['mean']:.3f}")
        print(f"  seconds of one image {found['seconds of 1']:.3f}, of 64 {found['seconds of 64']:.3f}")


if __name__ == "__main__":
    run_command(main)
