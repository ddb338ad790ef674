"""What a run says before its first step: the images it found, where it computes, how long that may take."""

from collections.abc import Iterator, Mapping

import psutil
import torch
from accelerate import Accelerator

from vqstack.code_model import RefinerSettings
from vqstack.config import RunConfig
from vqstack.errors import listed
from vqstack.images import ImageSplit, first_look
from vqstack.model_settings import ModelSettings
from vqstack.phases.order import Phase
from vqstack.report import memory_of, scarce_sites
from vqstack.shapes import by_axis

MINUTE, HOUR = 60, 3600


def opening(
    splits: Mapping[str, ImageSplit],
    phases: Mapping[str, Phase],
    seconds: Mapping[str, float],
    accelerator: Accelerator,
    samples: str,
) -> Iterator[str]:
    """Lines for a person.

    Args:
        splits: the images of the run.
        phases: what is left to train, by name.
        seconds: that each will take, see :func:`vqstack.phases.forecast`; empty: not known.
        accelerator: where it computes.
        samples: the folder of pictures.
    """
    train = splits["train"]
    counts = ", ".join(f"{name} {len(split)}" for name, split in splits.items())
    channels = f"{train.stored.shape[1]} channel{'s' * (train.stored.shape[1] > 1)}"
    yield f"{'images':10}{sum(map(len, splits.values()))} of {by_axis(train.size)}, {channels}: {counts}"
    if train.labels is not None:
        found = torch.bincount(train.labels, minlength=train.num_classes).tolist()
        named = [f"{name} {count}" for name, count in zip(train.class_names, found, strict=True)]
        yield f"{'classes':10}{train.num_classes}, images of train: {listed(named)}"
    processes = f", {accelerator.num_processes} processes" if accelerator.num_processes > 1 else ""
    threads = f", threads: {torch.get_num_threads()}" if accelerator.device.type == "cpu" else ""
    yield f"{'device':10}{accelerator.device}{threads}{processes}"
    yield f"{'pictures':10}{samples}, within a minute of each phase's start"
    for name, phase in phases.items():
        fit = phase.settings
        time = f", about {duration(seconds[name])}" if name in seconds else ""
        yield f"{name:10}{fit.steps:,} steps of {fit.batch_size} images{time}"
    if seconds:
        yield f"{'in all':10}about {duration(sum(seconds.values()))}, the scoring at the end included"


def duration(seconds: float) -> str:
    """In a unit that a person would choose."""
    if seconds < 2 * MINUTE:
        return f"{seconds:.0f} s"
    return f"{seconds / MINUTE:.0f} min" if seconds < 2 * HOUR else f"{seconds / HOUR:.1f} h"


def remarks(
    config: RunConfig, settings: ModelSettings, splits: Mapping[str, ImageSplit], accelerator: Accelerator
) -> Iterator[str]:
    """What will probably not turn out as somebody wishes, each with a remedy."""
    look = first_look(config.data)
    yield from look.remarks(config.data) if look is not None else ()
    count = len(splits["train"])
    if not config.data.streaming:
        yield from scarce_sites(settings, count)
    for name, fit in config.every_training.items():
        if fit.batch_size > count and not config.data.streaming and name.partition(".")[0] not in config.unused():
            yield f"{name}.batch_size: {fit.batch_size} is more than the {count} images of train: choose less"
    for part in (settings.prior, *settings.refiners):
        if part.label_dropout and not settings.conditional(part):
            name = f"the refiner of level {part.level}" if isinstance(part, RefinerSettings) else "the prior"
            yield f"label_dropout of {name}: the images have neither labels nor conditions to hide: leave it at 0"
    if accelerator.device.type == "cpu":
        needed, free = memory_of(config, settings, accelerator.num_processes), psutil.virtual_memory().available
        if needed > free:
            yield (
                f"memory: about {needed / 2**30:.1f} GiB are needed and {free / 2**30:.1f} GiB are free: raise "
                "accumulate of the largest phase, or lower its batch_size, or encode_batch"
            )
