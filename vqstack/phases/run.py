"""What is trained in which order: the levels, each on the codes of the frozen ones below, then refiners, then prior.

One transformer for all maps of codes (``unified``) is trained in the prior's place, as phase ``transformer``.

A finished phase leaves ``DONE`` in its folder and is not repeated.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import nn

from vqstack.checkpoint import make_folder, on_main, write_atomically
from vqstack.cluster import ClusterLevel, neighbours
from vqstack.code_model import CodeModel, JointEncoder, UnifiedCodeModel
from vqstack.codes import MapCache, fingerprint, quoted
from vqstack.config import RunConfig
from vqstack.errors import InputError
from vqstack.evaluation import evaluate_split
from vqstack.fit import (
    DONE,
    Fit,
    FitSettings,
    Source,
    any_algorithms,
    deterministic_algorithms,
    load_outcome,
    write_outcome,
)
from vqstack.images import AugmentSettings, center, grid, identity, load_splits, open_stream
from vqstack.joint import JointDecoders, JointLevels
from vqstack.ledger import BITS, table
from vqstack.level import CodeLevel, Level
from vqstack.model import HierarchicalModel
from vqstack.phases.checks import check_classes_left, check_processes, check_shapes_left
from vqstack.phases.pictures import picture
from vqstack.pretrained import find_artefact
from vqstack.reading import read_json
from vqstack.reuse import ENCODERS, START, Reused, Start, load_start, reused_levels, start_of
from vqstack.run_folder import Images, claim, read_images
from vqstack.shapes import Labels, Pixels
from vqstack.sources import (
    CodeSource,
    EncodingSource,
    PixelSource,
    RefinerSource,
    StreamSource,
    UnifiedSource,
    encode_once,
    resident_images,
)
from vqstack.terminal import lines


class Run:
    """One training run and its folder.

    Args:
        config: what to train.
        folder: receives everything; see docs/design.md for its files.
        accelerator: device, processes, precision. Built first: modules look at the processes when they are built.
        override: let settings and images differ from those that a run in the folder began with.
    """

    def __init__(self, config: RunConfig, folder: Path, accelerator: Accelerator, override: bool = False) -> None:
        self.config, self.folder, self.accelerator = config, folder, accelerator
        check_processes(config, accelerator)
        with accelerator.local_main_process_first():
            self.splits = load_splits(config.data)
        train = self.splits["train"]
        for name, split in self.splits.items():
            if split.pixels.shape[1:] != train.pixels.shape[1:]:
                raise InputError(f"the images of {name} have another size than those of train: set data.size")
            labelled = any(part.labels for part in (config.prior, *config.refiners))
            if labelled and train.labels is not None and split.labels is None:
                raise InputError(f"{name} has no labels, train has: set labels to false, or give them")
        wanted = config.model_settings(tuple(train.pixels.shape[1:]), train.num_classes, train.class_names)
        wanted.draws()  # guidance without labels is known only now
        reused = reused_levels(config, wanted, folder / "phases")
        torch.manual_seed(config.seed)  # after what only the first start of a run does
        self.model = HierarchicalModel(wanted)
        finished = all((folder / "phases" / name / DONE).exists() for name in self._modules())
        start = None if finished else start_of(config, self.model, folder)
        self.model.to(accelerator.device).eval()
        if config.channels_last:
            self.model.stack.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.stored = resident_images(self.splits, config.data.resident, accelerator.device)
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
        phases, modules = self.folder / "phases", self._modules()
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

    def _modules(self) -> dict[str, nn.Module]:
        """What each phase trains, by its name."""
        stack = self.model.stack
        levels: dict[str, nn.Module] = {f"level-{n}": self._level_or_both(n) for n in self.levels}
        if self.config.at_once:
            levels = {self._first: JointLevels(stack), "decoders": JointDecoders(stack)}
        above = {"prior": self.model.prior} if self.model.unified is None else {"transformer": self.model.unified}
        return levels | {f"refiner-{n}": self._refiner(n) for n in self.refined} | above

    @property
    def _first(self) -> str:
        """The phase after which all decoders are trained at once."""
        return "joint" if self.config.joint else ENCODERS

    def close(self) -> None:
        """Let other processes write into the folder."""
        if self.accelerator.is_main_process:
            self._lock.release()

    def pixels(self, split: str) -> Pixels:
        """All images of a split as they are scored; on the device if they fit."""
        return center(self.stored[split], self.splits[split].size)

    @property
    def levels(self) -> range:
        """Numbers of the levels, 1 … L."""
        return range(1, len(self.model.stack) + 1)

    @property
    def refined(self) -> list[int]:
        """Numbers of the levels that have a refiner."""
        return [refiner.level for refiner in self.config.refiners]

    def train_level(self, number: int) -> None:
        """``enc_l*, dec_l* = argmin E[-ln P_dec_l(z_{l-1} | z_l)]``, the levels below frozen.

        So are blocks shared with a level below: they are trained with the first level that has them.
        """
        level = self.model.stack.level(number)
        if isinstance(level, CodeLevel) and f"level {number}" not in self.started:
            level.start_from(self.model.stack.level(number - 1))
        if isinstance(level, ClusterLevel) and not (self.folder / "phases" / f"level-{number}" / "DONE").exists():
            self._learn_clusters(level)
        settings = self.config.train_levels
        with _frozen(self.model.stack.borrowed(number)):
            module = self._level_or_both(number)
            self._fit(f"level-{number}", module, number - 1, settings[0 if len(settings) == 1 else number - 1])

    @torch.no_grad()
    def _learn_clusters(self, level: ClusterLevel) -> None:
        """The table of a cluster level, from the training images as they are scored: the same however often it is made.

        Counts are whole numbers, so the number of processes makes no difference.
        """
        stack, below, pixels = self.model.stack, self.model.stack.level(level.number - 1), self.pixels("train")
        size, device = below.quantizer.size, self.accelerator.device
        counts = torch.zeros(size, dtype=torch.int64, device=device)
        beside = torch.zeros(size, size, dtype=torch.int64, device=device)
        mine = torch.arange(len(pixels))[self.accelerator.process_index :: self.accelerator.num_processes]
        for indices in mine.split(self.config.encode_batch) if len(mine) else ():
            codes = stack.encode(pixels[indices.to(pixels.device)].to(device), below.number)[-1]
            counts += torch.bincount(codes.flatten(), minlength=size)
            beside += neighbours(codes, size)
        level.learn_from(below, self.accelerator.reduce(counts), self.accelerator.reduce(beside))

    def _level_or_both(self, number: int) -> Level | JointEncoder:
        """The level, with its refiner where the settings train its encoder with both."""
        level = self.model.stack.level(number)
        weight = sum(settings.joint_encoder for settings in self.config.refiners if settings.level == number)
        return JointEncoder(level, self._refiner(number), weight) if weight else level

    def train_jointly(self) -> None:
        """``argmin E[-sum_l ln P_dec_l(z_{l-1} | z_l)]`` over all levels at once, then over the decoders alone.

        While the levels are trained together their codes move under the decoders; the second phase lets these catch up.
        Encoders of another run are in the place of the first phase.
        """
        stack = self.model.stack
        self._fit(self._first, JointLevels(stack), 0, self.config.train_joint)
        decoders = JointDecoders(stack)
        tuned = {id(parameter) for parameter in decoders.trained()}
        with _frozen([parameter for parameter in stack.parameters() if id(parameter) not in tuned]):
            self._fit("decoders", decoders, 0, self.config.train_decoders)

    def train_refiner(self, number: int) -> None:
        """A better ``P(z_{l-1} | z_l)`` over the frozen codes.

        It starts as the decoder of level l, or as what was trained with that level's encoder.
        """
        every = self.config.train_refiners
        settings = every[0 if len(every) == 1 else self.refined.index(number)]
        self._fit(f"refiner-{number}", self._refiner(number), number - 1, settings, refines=number)

    def _refiner(self, number: int) -> CodeModel:
        """The refiner of a level, told which of the codes that it models are near each other."""
        refiner = self.model.refiner(number)
        assert refiner is not None
        if number > 1:
            refiner.know_codebook(self.model.stack.level(number - 1).quantizer.codebook())
        return refiner

    def train_prior(self) -> None:
        """``pri* = argmin E[-ln P_pri(z_L | label)]``, the stack frozen.

        With ``unified`` over all maps of codes at once, ``argmin E[-ln P(z_1 … z_L | label)]``.
        """
        prior, unified, levels = self.model.prior, self.model.unified, len(self.levels)
        prior.know_codebook(self.model.stack.level(levels).quantizer.codebook())
        if unified is None:
            self._fit("prior", prior, levels, self.config.train_prior, prior.classes > 0)
            return
        for number in self.levels[1:]:
            self._refiner(number)
        self._fit("transformer", unified, 1, self.config.train_prior, unified.classes > 0)

    def _fit(
        self,
        name: str,
        module: nn.Module,
        below: int,
        settings: FitSettings,
        labelled: bool = False,
        refines: int | None = None,
    ) -> None:
        folder = self.folder / "phases" / name
        checkpoints = folder / "checkpoints"
        if (folder / DONE).exists():
            source = load_outcome(folder, module).get("taken_from")
            on_main(self.accelerator, lambda: shutil.rmtree(checkpoints, ignore_errors=True))
            self.accelerator.print(lines(f"{name}: taken from {source}" if source else f"{name}: done before"))
            return
        on_main(self.accelerator, lambda: make_folder(folder))
        fit = Fit(
            name,
            module,
            self._source("train", below, settings, labelled, refines, isinstance(module, UnifiedCodeModel)),
            self._source("validation", below, None, labelled, refines, isinstance(module, UnifiedCodeModel)),
            settings,
            self.accelerator,
            folder,
            seed=self.config.seed + below,
            compile_module=self.config.compile,
            on_evaluation=lambda trained, step: self._write_picture(name, trained, refines, step),
        )
        nats = fit.run()
        about = {"steps": settings.steps, "validation_nats": nats}
        on_main(self.accelerator, lambda: write_outcome(folder, module.state_dict(), about))
        on_main(self.accelerator, lambda: shutil.rmtree(checkpoints, ignore_errors=True))
        self.accelerator.print(lines(f"{name}: best validation {nats * BITS:.2f} bits an image"))

    def _source(
        self,
        split: str,
        below: int,
        fit: FitSettings | None = None,
        labelled: bool = False,
        refines: int | None = None,
        unified: bool = False,
    ) -> Source:
        """Images (below = 0) or codes of level ``below``: stored ones, or encoded on the fly.

        ``fit`` is given for training, where images may be augmented or streamed; ``refines`` adds what the refiner of
        that level sees of the map above, ``unified`` all maps above and what each says of the one below it.
        """
        if unified:
            return UnifiedSource(self._source(split, below, fit, labelled), self.model.stack)
        if refines is not None:
            stack, settings = self.model.stack, self.config.refiners[self.refined.index(refines)]
            above = stack.level(refines + 1) if refines < len(stack) else None
            inner = self._source(split, below, fit, settings.labels)
            return RefinerSource(inner, stack.level(refines), settings, above)
        augmentation = self.config.augment if fit and fit.augmented else AugmentSettings()
        share, seed = fit.augmented if fit else 0.0, self.config.seed + below
        if fit and self.config.data.streaming:
            images: Source = self._stream(fit, augmentation, seed, labelled)
            return EncodingSource(images, self.model.stack, below) if below else images
        labels = self.splits[split].labels
        given = labels.to(self.accelerator.device) if labelled and labels is not None else None
        images = self._images(split, augmentation, share, seed, given)
        if below == 0:
            return images
        if augmentation.active and not augmentation.views:
            return EncodingSource(images, self.model.stack, below)
        return CodeSource(self._stored_codes(split, below, augmentation, share), self.accelerator.device, given)

    def _images(
        self, split: str, augmentation: AugmentSettings, share: float, seed: int, labels: Labels | None = None
    ) -> PixelSource:
        size, device = self.splits[split].size, self.accelerator.device
        return PixelSource(self.stored[split], size, augmentation, share, seed, device, labels)

    def _stream(self, fit: FitSettings, augmentation: AugmentSettings, seed: int, labelled: bool) -> StreamSource:
        """Training images that are read as they are needed; what is kept of train serves for scoring alone."""
        train, rank, world = self.splits["train"], self.accelerator.process_index, self.accelerator.num_processes
        batch, shape = fit.batch_size // fit.accumulate // world, tuple(train.stored.shape[1:])
        stream = open_stream(self.config.data, shape, train.num_classes, batch, seed, rank, world)
        labelled = labelled and train.labels is not None
        return StreamSource(
            stream, world, train.size, augmentation, fit.augmented, seed, self.accelerator.device, labelled
        )

    def _stored_codes(self, split: str, level: int, augmentation: AugmentSettings, share: float) -> NDArray[Any]:
        """Codes [views, n, *map] of a split, encoded once, by all processes together, and kept under ``codes/``."""
        stack = self.model.stack
        images = self._images(split, augmentation, share, self.config.seed)
        made_from = {name: value for name, value in stack.encoder_state().items() if _level_of(name) <= level}
        batch_size, seed = self.config.encode_batch, self.config.seed
        about = {"batch_size": batch_size, "seed": seed, "share": share, **augmentation.model_dump()}
        cache = MapCache(
            self.folder / "codes" / f"level-{level}",
            split,
            views=augmentation.views if augmentation.active else 1,
            images=len(images),
            map_shape=stack.map_shapes[level - 1],
            vocabulary=stack.codebook_sizes[level - 1],
            fingerprint=f"{fingerprint(made_from)} {self.splits[split].fingerprint} {images.size} {json.dumps(about)}",
        )
        return encode_once(cache, images, stack, level, self.accelerator, batch_size)

    def _write_picture(self, name: str, trained: nn.Module, refines: int | None, step: int) -> None:
        folder = self.folder / "samples"
        make_folder(folder)
        count, seed, labels = self.config.sample_grid, self.config.seed, self.splits["validation"].labels
        shown = self.pixels("validation")[:count].to(self.accelerator.device)
        with torch.no_grad(), any_algorithms():  # a picture leaves no trace in the weights
            told = None if labels is None else labels[:count]
            images = picture(self.model, trained, refines, shown, told, count, seed)
        sheet = grid(images.cpu(), min(count, len(images)), self.model.stack.values, 2)
        write_atomically(folder / f"{name}-{step:07d}.png", partial(sheet.save, format="PNG"))

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
        use = "\n".join(
            f"level-{n}: {u.share:.0%} of {k} codes used, perplexity {u.perplexity:.1f} (train)"
            for n, k, u in zip(self.levels, self.model.stack.codebook_sizes, results["train"].usage, strict=True)
        )
        self.accelerator.print(lines(f"\nBits an image\n{text}\n\n{use}"))
        ledger = json.dumps({name: result.to_json() for name, result in results.items()}, indent=2) + "\n"
        self.model.card = (
            "# A vqstack model\n\nA hierarchy of discrete codes with a transformer prior. "
            f"## Ledger (bits an image)\n\n```\n{text}\n```\n\n{use}\n\n"
            f"## Images\n\n```json\n{quoted(self.splits['train'].source)}\n```\n"
        )

        def write() -> None:
            write_atomically(self.folder / "ledger.json", lambda aside: aside.write_text(ledger, encoding="utf-8"))
            self.model.save_files(self.folder / "model")

        on_main(self.accelerator, write)

    def _released_before(self) -> bool:
        """Whether the folder holds this model and its ledger already; what moves no number of it is written anew.

        P(label) is that of the release, by which images may be compressed already.
        """
        folder = self.folder / "model"
        try:
            released: HierarchicalModel = HierarchicalModel.from_pretrained(find_artefact(folder))  # never of a hub
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


def _level_of(name: str) -> int:
    """Number of the level that a name in the state of a stack belongs to."""
    return int(name.split(".")[1]) + 1
