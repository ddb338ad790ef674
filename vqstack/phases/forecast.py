"""How long a run will take: a few steps of each phase, measured before the first, on a copy that is thrown away."""

import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from accelerate import Accelerator

from vqstack.config import RunConfig
from vqstack.errors import InputError
from vqstack.fit import Fit, FitSettings
from vqstack.images import ImageSplit
from vqstack.model import HierarchicalModel
from vqstack.model_settings import ModelSettings
from vqstack.phases.data import RunData
from vqstack.phases.order import Phase, phases_of

STEPS, SECONDS = 5, 0.5
"""Steps of a phase that are measured, after one to warm up, and the time after which fewer are enough."""
WORTHWHILE = 500  # steps of a run, all phases together, below which it is over before it is measured
FORWARD = 1 / 3  # of the time of a step is taken by an evaluation of its batch, which has no backward pass


def forecast(
    config: RunConfig,
    settings: ModelSettings,
    splits: Mapping[str, ImageSplit],
    accelerator: Accelerator,
    done: Collection[str] = (),
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Seconds of each phase that is not ``done`` by name, its evaluations included, and of the ledger at the end.

    Empty where a run is too short to be measured, reads a stream, or shares its work with other processes. The random
    numbers of the run stay as they are. InputError where a batch does not fit into the memory of an accelerator.
    """
    if config.data.streaming or accelerator.num_processes > 1:
        return {}
    own = Accelerator(mixed_precision=accelerator.mixed_precision)  # with a scaler of its own
    with _random_numbers_kept(), TemporaryDirectory() as folder:
        phases = _trial_phases(config, settings, splits, own, Path(folder))
        phases = [phase for phase in phases if phase.name not in done]
        if sum(phase.settings.steps for phase in phases) < WORTHWHILE:
            return {}
        found, each = {}, 0.0
        for phase in phases:
            step = _seconds_of_a_step(phase, own, Path(folder) / phase.name, clock)
            image = FORWARD * step / phase.settings.batch_size
            averages = 2 if phase.settings.ema else 1
            scored = -(-phase.settings.steps // phase.settings.evaluate_every) * len(splits["validation"]) * averages
            found[phase.name] = phase.settings.steps * step + scored * image
            each += image
        train = min(len(splits["train"]), config.ledger_images or len(splits["train"]))
        return {**found, "ledger": (train + len(splits["test"])) * each}


def _trial_phases(
    config: RunConfig, settings: ModelSettings, splits: Mapping[str, ImageSplit], accelerator: Accelerator, folder: Path
) -> list[Phase]:
    """The phases of a model that nobody keeps, with as many images as a batch has."""
    model = HierarchicalModel(settings)
    most = max(fit.batch_size for fit in config.every_training.values())
    few = {"train": _first(splits["train"], most)}
    if model.condition is not None and few["train"].condition is not None:
        model.know_condition(few["train"].condition)
    model.to(accelerator.device).eval()
    stored = {name: split.stored for name, split in few.items()}
    judging = FitSettings(steps=1, evaluate_every=1, batch_size=min(64, len(few["train"])))
    return phases_of(config, model, RunData(config, folder, few, stored, model.stack, accelerator, judging))


def _first(split: ImageSplit, most: int) -> ImageSplit:
    labels, condition = (None if given is None else given[:most] for given in (split.labels, split.condition))
    return replace(split, stored=split.stored[:most], labels=labels, index=split.index[:most], condition=condition)


def _seconds_of_a_step(phase: Phase, accelerator: Accelerator, folder: Path, clock: Callable[[], float]) -> float:
    phase.begin()
    phase.prepare()
    source = phase.source("train", phase.settings)
    try:
        fit = Fit(phase.name, phase.module, source, source, phase.settings, accelerator, folder)
        fit.training_step()  # the first one starts the codebook
        began = clock()
        while fit.step <= STEPS and (fit.step == 1 or clock() - began < SECONDS):
            fit.training_step()
        return (clock() - began) / (fit.step - 1)
    except torch.OutOfMemoryError as error:
        settings = phase.settings
        raise InputError(
            f"{phase.name}: batch_size {settings.batch_size} in {settings.accumulate} parts does not fit into the "
            f"memory of {accelerator.device}: raise accumulate to {2 * settings.accumulate}, or choose a smaller "
            "batch_size"
        ) from error
    finally:
        phase.module.eval()
        accelerator.free_memory()


@contextmanager
def _random_numbers_kept() -> Iterator[None]:
    """Inside, random numbers are drawn as if for nobody."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(python)
    np.random.set_state(numpy)
