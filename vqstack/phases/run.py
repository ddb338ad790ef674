"""A run: its folder, its phases one after the other, what it releases.

A finished phase leaves ``DONE`` in its folder and is not repeated.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from vqstack import threads
from vqstack.codes import source_of, told
from vqstack.config import RunConfig, to_yaml
from vqstack.disk import make_folder, on_main, write_atomically, write_text
from vqstack.errors import InputError, reason
from vqstack.evaluation import evaluate_split
from vqstack.fit import (
    DONE,
    Callback,
    Fit,
    any_algorithms,
    deterministic_algorithms,
    in_words,
    load_outcome,
    write_outcome,
)
from vqstack.images import ImageSplit, captioned, grid, identity, load_splits
from vqstack.ledger import table
from vqstack.model import HierarchicalModel
from vqstack.phases.checks import check_classes_left, check_processes, check_shapes_left, sharding_for
from vqstack.phases.data import RunData
from vqstack.phases.forecast import forecast
from vqstack.phases.opening import opening, remarks
from vqstack.phases.order import Phase, phases_of
from vqstack.phases.pictures import picture
from vqstack.reading import read_json
from vqstack.renderer import check_colours
from vqstack.reuse import START, Reused, Start, load_start, reused_levels, start_of
from vqstack.run_folder import Images, claim, read_images
from vqstack.run_report import REPORT, report
from vqstack.sources import resident_images
from vqstack.terminal import lines, warn

RISEN = 0.02  # of the best score, by which a later one is no accident
RENDERED = (
    "A renderer, trained to look well, decodes level 1 beside the likelihood's decoder. It is no likelihood: no number "
    "above depends on it."
)


def _described(model: HierarchicalModel) -> str:
    """What a model is made of, in sentences, for its card."""
    levels, refined = len(model.stack), list(map(str, sorted(map(int, model.refiners))))
    text = f"Discrete codes in {levels} level{'s' * (levels > 1)}. A transformer models the highest map (the prior)"
    if refined:
        one = "another one corrects the decoder of level" if len(refined) == 1 else "others correct those of levels"
        text += f"; {one} {' and '.join(refined)} (refiner{'s' * (len(refined) > 1)})"
    text += "."
    if model.renderer is not None:
        text += " A renderer draws pictures beside the decoder of level 1."
    given = [f"the class ({model.classes} of them)"] * (model.classes > 0)
    if model.condition is not None:
        given.append("floats" if model.condition.text is None else "texts")
    return text + f" Images are conditional on {' and on '.join(given)}." * bool(given)


def _card(model: HierarchicalModel, ledger: str, usage: Sequence[Any], splits: Mapping[str, ImageSplit]) -> str:
    """The card of a model; ``usage`` is the use of codes of each level on training images."""
    shapes, sizes = model.stack.map_shapes, model.stack.codebook_sizes
    levels = [
        f"| {number} | {'×'.join(map(str, shape))} | {size} | {used.share:.0%} | {used.perplexity:.1f} |"
        for number, (shape, size, used) in enumerate(zip(shapes, sizes, usage, strict=True), 1)
    ]
    source = source_of({name: split.source for name, split in splits.items()})
    lines = [
        "# A vqstack model",
        "",
        _described(model),
        "",
        "| level | map | codes | used | perplexity |",
        "|---|---|---|---|---|",
        *levels,
        "",
        "*Used* and *perplexity* are of the codes of training images. The perplexity is that of their frequencies.",
        "",
        "## Ledger (bits per image)",
        "",
        "What a lossless code of an image takes, row by row: the codes from the highest level down, then the pixels.",
        "",
        "```",
        ledger,
        "```",
        "",
        *[RENDERED, ""] * (model.renderer is not None),
        "## Training data",
        "",
        *told(source, {name: len(split) for name, split in splits.items()}),
        "",
    ]
    return "\n".join(lines)


class Run:
    """One training run and its folder.

    Args:
        config: what to train.
        folder: receives everything; see docs/design.md for its files.
        accelerator: device, processes, precision. Built first: modules look at the processes when they are built.
        override: let settings and images differ from those that a run in the folder began with.
        callbacks: told of steps, evaluations and the ends of phases.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        accelerator: Accelerator,
        override: bool = False,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.config, self.folder, self.accelerator, self.callbacks = config, folder, accelerator, callbacks
        check_processes(config, accelerator)
        self.sharding = sharding_for(config, accelerator)
        with accelerator.local_main_process_first():
            self.splits = load_splits(config.data)
        train = self.splits["train"]
        for name, split in self.splits.items():
            if split.pixels.shape[1:] != train.pixels.shape[1:]:
                raise InputError(f"the images of {name} have another size than those of train: set data.size")
            labelled = any(part.labels for part in (config.prior, *config.refiners))
            if labelled and train.labels is not None and split.labels is None:
                raise InputError(f"{name} has no labels, train has: set labels to false, or give them")
        wanted = config.model_settings(
            tuple(train.pixels.shape[1:]), train.num_classes, train.class_names, train.condition_shape
        )
        if config.renderer is not None:
            check_colours(config.renderer.perceptual, wanted.image_shape)
        wanted.draws()  # guidance without labels is known only now
        reused = reused_levels(config, wanted, folder / "phases")
        torch.manual_seed(config.seed)  # after what only the first start of a run does
        self.model = HierarchicalModel(wanted)
        if self.model.condition is not None:
            assert train.condition is not None
            self.model.know_condition(train.condition)
        stored = resident_images(self.splits, config.data.resident, accelerator.device)
        self.data = RunData(config, folder, self.splits, stored, self.model.stack, accelerator)
        self.phases = {phase.name: phase for phase in phases_of(config, self.model, self.data)}
        """What is trained, by name, in order."""
        self.picture: Path | None = None
        """The last one of the phase that is being trained."""
        finished = all((folder / "phases" / name / DONE).exists() for name in self.phases)
        start = None if finished else start_of(config, self.model, folder)
        self.model.to(accelerator.device).eval()
        if config.channels_last:
            for part in filter(None, (self.model.stack, self.model.renderer)):
                part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.deterministic:
            deterministic_algorithms()
        images = on_main(accelerator, lambda: self._claim(reused, start, finished, override))
        self.started = [] if finished else load_start(self.model, folder)
        """Levels, refiners and prior that start as those of another model."""
        if start is not None:
            accelerator.print(lines("\n".join(start.lines)))
        if self.model.classes:  # those that the prior was trained on, which today's need not be
            counts = torch.tensor(list(images["train"]["classes"].values()))
            self.model.count_labels(torch.arange(len(counts)).repeat_interleave(counts).to(accelerator.device))

    def _claim(self, reused: Reused | None, start: Start | None, finished: bool, override: bool) -> Images:
        """Take the folder, unless it holds a run of other settings or images; the images that the run keeps."""
        phases = self.folder / "phases"
        modules = {name: phase.module for name, phase in self.phases.items()}
        images = identity(self.config.data, self.splits)

        def check(changed: str) -> None:
            check_classes_left(self.folder, modules, images)
            check_shapes_left(phases, modules, changed)
            check_shapes_left(self.folder, {START: self.model}, changed)

        self._lock = claim(self.folder, self.config, override, check, images, keep=finished)
        if start is not None:
            start.write(self.folder)
        if reused is not None:
            reused.write(phases, self.model.stack)
        return read_images(self.folder) or images

    def close(self) -> None:
        """Let other processes write into the folder."""
        if self.accelerator.is_main_process:
            self._lock.release()

    def announce(self) -> None:
        """Say what is left to train, on which images, and, before the first step of a run, how long that may take."""
        folder = self.folder / "phases"
        left = {name: phase for name, phase in self.phases.items() if not (folder / name / DONE).exists()}
        if not left:
            return
        settings, splits, accelerator = self.model.settings, self.splits, self.accelerator
        if accelerator.is_main_process:
            for remark in remarks(self.config, settings, splits, accelerator):
                warn(remark)
        fresh = not any((folder / name).exists() for name in left)
        seconds = forecast(self.config, settings, splits, accelerator, self.phases.keys() - left) if fresh else {}
        text = opening(splits, left, seconds, accelerator, str(self.folder / "samples"))
        accelerator.print(lines("\n".join(text) + "\n"))

    def train_all(self) -> None:
        """Train what is not done, phase by phase (see vqstack/phases/order.py), and release the model."""
        if self.config.trackers:
            inside = {"wandb": {"dir": str(self.folder)}}  # beside what goes into the run's folder by itself
            self.accelerator.init_trackers(self.folder.name, init_kwargs=inside)
            if "wandb" in self.config.trackers and self.accelerator.is_main_process:
                board = self.accelerator.get_tracker("wandb", unwrap=True)
                for name in self.phases:
                    board.define_metric(f"{name}/*", step_metric=f"{name}/step")
        for phase in self.phases.values():
            self.train(phase)
        self.release()
        if self.accelerator.is_main_process:
            self._write_report()
        self.accelerator.end_training()

    def train(self, phase: Phase) -> None:
        """Train what a phase trains, unless that was done before."""
        name, folder, module = phase.name, self.folder / "phases" / phase.name, phase.module
        checkpoints = folder / "checkpoints"
        if (folder / DONE).exists():
            about = load_outcome(folder, module)
            source = about.get("taken_from")
            threads.keep(name, about.get("threads", torch.get_num_threads()), self.accelerator)  # what follows, too
            on_main(self.accelerator, lambda: shutil.rmtree(checkpoints, ignore_errors=True))
            self.accelerator.print(lines(f"{name}: taken from {source}" if source else f"{name}: done before"))
            return
        if name not in self.started:
            phase.begin()
        phase.prepare()
        self.picture = None
        on_main(self.accelerator, lambda: make_folder(folder))
        with _frozen(list(phase.frozen)):
            fit = Fit(
                name,
                module,
                phase.source("train", phase.settings),
                phase.source("validation", None),
                phase.settings,
                self.accelerator,
                folder,
                seed=self.config.seed + phase.below,
                compile_module=self.config.compile,
                on_evaluation=lambda trained, step: self._write_picture(name, trained, phase.refines, step),
                callbacks=self.callbacks,
                sharding=self.sharding,
            )
            score = fit.run()
        about = {
            "steps": phase.settings.steps,
            f"validation_{fit.chosen_by}": score,
            "threads": torch.get_num_threads(),
        }
        on_main(self.accelerator, lambda: write_outcome(folder, module.state_dict(), about))
        on_main(self.accelerator, lambda: shutil.rmtree(checkpoints, ignore_errors=True))
        for callback in fit.callbacks:
            callback.on_phase_end(name, score)
        shown = f", picture {self.picture}" if self.picture is not None else ""
        when = (
            "" if fit.best_step == phase.settings.steps else f" at step {fit.best_step:,} of {phase.settings.steps:,}"
        )
        if fit.last - score > RISEN * abs(score):
            when += (
                f", {in_words(fit.chosen_by, fit.last)} at the end: see 'Validation bits rise' in the docs (reading)"
            )
        self.accelerator.print(lines(f"{name}: best validation {in_words(fit.chosen_by, score)}{when}{shown}"))

    def _write_picture(self, name: str, trained: nn.Module, refines: int | None, step: int) -> None:
        folder = self.folder / "samples"
        make_folder(folder)
        count, seed = self.config.sample_grid, self.config.seed
        first = self.splits["validation"].part(slice(count))
        shown = first.pixels.to(self.accelerator.device)
        with torch.no_grad(), any_algorithms():  # a picture leaves no trace in the weights
            images = picture(self.model, trained, refines, shown, first.labels, first.condition, count, seed)
        settings = self.model.settings
        sheet = grid(images.cpu(), min(count, len(images)), settings.values, 2, settings.sound)
        names = settings.class_names
        if names and self.model.classes and name in ("prior", "transformer"):  # samples, class after class
            sheet = captioned(sheet, [names[i % len(names)] for i in range(count)], count)
        path = folder / f"{name}-{step:07d}.png"
        write_atomically(path, partial(sheet.save, format="PNG"))
        self.picture = path

    def release(self) -> None:
        """Score the model, write ``ledger.json`` and the artefact ``model/``, and print the ledger.

        What was released before, and still is what the phases left, stays: also where the images have changed.
        """
        if on_main(self.accelerator, self._released_before):
            self.accelerator.print(lines(f"{self.folder / 'model'} and its ledger: released before"))
            return
        most = {"train": self.config.ledger_images, "test": 0}
        results = {
            name: evaluate_split(self.model, self.splits[name], self.accelerator, self.config.encode_batch, most=count)
            for name, count in most.items()
        }
        text = table({name: result.ledger for name, result in results.items()})
        used = zip(self.model.stack.codebook_sizes, results["train"].usage, strict=True)
        use = "\n".join(
            f"level-{n}: {u.share:.0%} of {k} codes used, perplexity {u.perplexity:.1f} (train)"
            for n, (k, u) in enumerate(used, start=1)
        )
        self.accelerator.print(lines(f"\nBits per image\n{text}\n\n{use}"))
        ledger = json.dumps({name: result.to_json() for name, result in results.items()}, indent=2) + "\n"
        self.model.card = _card(self.model, text, results["train"].usage, self.splits)

        def write() -> None:
            write_text(self.folder / "ledger.json", ledger)
            self.model.save_files(self.folder / "model")

        on_main(self.accelerator, write)

    def _write_report(self) -> None:
        path, settings = self.folder / REPORT, self.model.settings
        phases = {name: getattr(phase.module, "chosen_by", "nats") for name, phase in self.phases.items()}
        try:
            page = report(
                self.folder, phases, self.model.stack.codebook_sizes, settings.class_names, to_yaml(self.config)
            )
            write_text(path, page)
        except Exception as error:  # whatever it is: the model is there, and the page can be made again
            warn(f"{path} was not written ({reason(error)}); give the same command again for it")

    def _released_before(self) -> bool:
        """Whether the folder holds this model and its ledger already; what moves no number of it is written anew.

        P(label) is that of the release, by which images may be compressed already.
        """
        folder = self.folder / "model"
        try:
            released: HierarchicalModel = HierarchicalModel.from_pretrained(folder)  # never of a hub
            read_json(self.folder / "ledger.json", 2**20)
        except (InputError, OSError, ValueError):
            return False  # there is none, or it is damaged: it is made from what the phases left
        ours, theirs = self.model.state_dict(), released.state_dict()
        weights = ours.keys() - {"label_probs"}
        if (
            not released.card
            or ours.keys() != theirs.keys()
            or not all(torch.equal(ours[n].cpu(), theirs[n]) for n in weights)
        ):
            return False
        self.model.label_probs.copy_(released.label_probs)
        wanted = self.model.settings
        if any(getattr(wanted, n) != value for n, value in released.settings if n not in ("sampling", "geometry")):
            return False
        self.model.card = released.card
        self.model.save_files(folder)
        return True


@contextmanager
def _frozen(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Keep these parameters as they are."""
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
