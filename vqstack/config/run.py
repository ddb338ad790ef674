"""The configuration of a run, and reading it from YAML: strict, in one line when wrong."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from PIL import ImageColor
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from vqstack.code_model import CodeModelSettings, RefinerSettings, check_refiners, check_unified
from vqstack.conditions import ConditionSettings, ReaderSettings
from vqstack.config.unused import check_used, without_unused
from vqstack.errors import InputError, explain, reason
from vqstack.fit import FitSettings
from vqstack.images import AugmentSettings, ImageSettings
from vqstack.level import check_scale
from vqstack.model_settings import Geometry, ModelSettings, SamplingSettings
from vqstack.paths import path_of
from vqstack.precision import Precision
from vqstack.reading import read_yaml_values, to_yaml_text
from vqstack.renderer import RendererSettings
from vqstack.shapes import by_axis
from vqstack.stack import StackSettings

AnySettings = TypeVar("AnySettings", bound=BaseModel)
SEAL = "# sha256 "
"""Begins the first line of a run's config.yaml, which ends with the checksum of all lines below it."""


class RunConfig(StackSettings):
    """Everything that defines a training run."""

    data: ImageSettings = Field(default=ImageSettings(), description="The images.")
    augment: AugmentSettings = Field(
        default=AugmentSettings(),
        description="Changes to training images on the fly; higher levels then encode as they go.",
    )
    levels_from: Path | None = Field(
        default=None,
        description="Folder of a finished run or released model whose first levels are taken frozen: as many as both "
        "have, or levels_kept, with the same settings. Only what lies above them is trained.",
    )
    levels_kept: int | None = Field(
        default=None, ge=1, description="Count of first levels that levels_from takes; default: as many as both have."
    )
    encoders_from: Path | None = Field(
        default=None,
        description="Folder of a finished run or released model whose encoders and codebooks are taken frozen, for all "
        "levels, with the same settings. New decoders are trained on their codes (train_decoders).",
    )
    start_from: dict[Literal["all", "levels", "refiners", "prior", "renderer"], Path] = Field(
        default={},
        description="Part (levels, refiners, prior, renderer, or all) -> folder of a finished run or released model "
        "with whose weights its training starts, codebooks and rows of classes of the same name included.",
    )
    condition: ReaderSettings = Field(default=ReaderSettings(), description="What reads the floats of data.condition.")
    prior: CodeModelSettings = Field(default=CodeModelSettings(), description="The transformer over the top map.")
    refiners: tuple[RefinerSettings, ...] = Field(
        default=(), description="Transformers that correct the decoders of chosen levels, trained on the frozen codes."
    )
    unified: bool = Field(
        default=False,
        description="One transformer, with the settings of the prior, for the maps of codes of all levels: prior and "
        "refiners of the levels above 1 in one, trained with train_prior on all of them at once.",
    )
    sampling: SamplingSettings = Field(default=SamplingSettings(), description="Default settings of generation.")
    train_levels: tuple[FitSettings, ...] = Field(
        default=(FitSettings(),),
        min_length=1,
        description="Training of the levels: one entry for all, or one each, level 1 first.",
    )
    joint: bool = Field(
        default=False,
        description="Train all levels at once on the sum of their losses, then all decoders on the final codes.",
    )
    train_joint: FitSettings = Field(default=FitSettings(), description="Training of all levels at once (joint).")
    train_decoders: FitSettings = Field(
        default=FitSettings(steps=500),
        description="Training of all decoders at once on codes that no longer change (joint, encoders_from).",
    )
    train_refiners: tuple[FitSettings, ...] = Field(
        default=(FitSettings(),),
        min_length=1,
        description="Training of the refiners: one entry for all, or one each, in order; empty: as if left out.",
    )
    train_prior: FitSettings = Field(default=FitSettings(), description="Training of the prior.")
    renderer: RendererSettings | None = Field(
        default=None, description="A second decoder of level 1, to look at, outside the ledger; none: none."
    )
    train_renderer: FitSettings = Field(
        default=FitSettings(), description="Training of the renderer, on the frozen codes."
    )
    seed: int = Field(
        default=0,
        ge=0,
        le=2**63 - 1,
        description="Seed of weights, order of images and everything random in training, no unit.",
    )
    mixed_precision: Precision = Field(
        default="no", description="Number format of the networks in training: no (float32), fp16 or bf16."
    )
    compile: bool = Field(default=False, description="Run networks through torch.compile in training.")
    sharded: bool = Field(
        default=False,
        description="Share weights, gradients, moments and averages among the processes (FSDP 2): each holds its part.",
    )
    cpu_offload: bool = Field(
        default=False,
        description="Keep the shards in the memory of the host, where the optimiser steps then (sharded).",
    )
    channels_last: bool = Field(
        default=False,
        description="Keep the levels' convolutions with channels last in memory, which tensor cores prefer.",
    )
    trackers: tuple[str, ...] = Field(
        default=(),
        description="Names of experiment trackers: tensorboard, wandb (events in the run's folder), trackio (where it "
        "keeps its projects), or others that accelerate knows.",
    )
    deterministic: bool = Field(
        default=False, description="Let GPUs use only algorithms that give the same bits each time; slower."
    )
    encode_batch: int = Field(
        default=256, ge=1, description="Images at a time when encoding and scoring, count on each process."
    )
    ledger_images: int = Field(
        default=10_000,
        ge=0,
        description="Training images in the ledger, count, evenly spread; 0: all. Test is scored whole.",
    )
    sample_grid: int = Field(default=10, ge=1, description="Images in each picture written during training, count.")

    @field_validator("train_refiners", mode="before")
    @classmethod
    def _none_given(cls, value: Any) -> Any:
        """An empty list beside ``refiners: []`` says nothing, as that does."""
        return cls.model_fields["train_refiners"].default if value in ([], ()) else value

    @model_validator(mode="after")
    def check(self) -> "RunConfig":
        if len(self.train_levels) not in (1, len(self.levels)):
            raise ValueError(
                f"train_levels has {len(self.train_levels)} entries for {len(self.levels)} levels: give one or all"
            )
        if self.refiners and len(self.train_refiners) not in (1, len(self.refiners)):
            raise ValueError(
                f"train_refiners: {len(self.train_refiners)} entries for {len(self.refiners)} refiners: give one or all"
            )
        self.augment.check(self.data)
        if self.data.padding and self.renderer is not None:
            raise ValueError(
                "a renderer draws whole pictures, and data.padding leaves parts out: leave one of them out"
            )
        if self.augment.views and self.data.streaming:
            raise ValueError("augment.views stores codes of a split, and a stream is encoded on the way: leave one out")
        if self.data.condition and not any(part.condition for part in (self.prior, *self.refiners)):
            raise ValueError("data.condition is given and nothing reads it: set prior.condition, or leave it out")
        check_refiners(self.refiners, self.levels)
        if self.unified:
            check_unified(self.prior, self.refiners, self.levels)
        starts = [name for name in ("joint", "levels_from", "encoders_from") if getattr(self, name)]
        if self.levels_kept is not None and self.levels_from is None:
            raise ValueError("levels_kept counts levels of levels_from: give that, too, or leave it out")
        if len(starts) > 1:
            raise ValueError(f"{starts[0]} and {starts[1]} both say where levels come from: leave one of them out")
        if self.at_once and any(level.quantizer.kind == "cluster" for level in self.levels):
            raise ValueError(
                f"{starts[0]} trains all decoders at once, and clusters are made of a finished level: leave one out"
            )
        if (self.levels_from or self.encoders_from) and "levels" in self.start_from:
            raise ValueError(
                f"{starts[0]} keeps levels frozen and start_from levels trains them: leave one of them out"
            )
        self._check_joint_encoder(starts)
        if self.joint and any(refiner.joint_encoder for refiner in self.refiners):
            raise ValueError("joint trains the levels with their decoders alone: leave it or joint_encoder out")
        return self

    def _check_joint_encoder(self, starts: Sequence[str]) -> None:
        """Level 1 is trained with the renderer where it is trained by itself, and with nothing else."""
        if self.renderer is None or not self.renderer.joint_encoder:
            return
        if starts:
            raise ValueError(f"{starts[0]} trains no level 1 by itself: leave it or renderer.joint_encoder out")
        if any(refiner.level == 1 and refiner.joint_encoder for refiner in self.refiners):
            raise ValueError("level 1 is trained with its refiner or with the renderer: leave one joint_encoder out")

    def unused(self) -> dict[str, str]:
        """Dotted name of each field that is read by nothing, as the others are -> why, and what to do."""
        found = super().unused()
        found |= {f"pixels.{name}": why for name, why in self.pixels.unused_of(self.data.values).items()}
        if self.joint:
            found["train_levels"] = "joint trains all levels by train_joint: leave one of them out"
            why = "all levels begin at once, before there is a codebook to start from: leave joint or this out"
            found |= {f"levels.{i}.embedding": why for i in range(1, len(self.levels))}
        else:
            found["train_joint"] = "of joint training alone: add joint"
        if self.encoders_from is not None:
            found["train_levels"] = "encoders_from trains the decoders alone, by train_decoders: leave one of them out"
        elif not self.joint:
            found["train_decoders"] = "of joint training and encoders_from alone: add joint"
        why = "no codebook moves there: leave it out (of train_levels and train_joint alone)"
        moving = ("train_levels.", "train_joint.")
        found |= {f"{name}.collapse": why for name in self.every_training if not f"{name}.".startswith(moving)}
        found |= self._untold()
        if not self.data.condition:
            found["condition"] = "data.condition names no floats to read: set it, or leave this out"
        if not self.refiners:
            found["train_refiners"] = "there are no refiners: add refiners, or leave it out"
        if self.renderer is None:
            found["train_renderer"] = "there is no renderer: add renderer, or leave it out"
        if not self.augment.active:
            why = "augment changes no image: set its shift, flip or crop, or leave this out"
            found |= {"augment.views": why} | {f"{name}.augmented": why for name in self.every_training}
        return found

    def _untold(self) -> dict[str, str]:
        """What the transformers would do with labels and conditions that nothing gives: as :meth:`unused`."""
        found: dict[str, str] = {}
        given = {"labels": self.data.label_column != "", "condition": bool(self.data.condition)}
        refiners = {f"refiners.{i}": refiner for i, refiner in enumerate(self.refiners)}
        for name, part in ({"prior": self.prior} | refiners).items():
            if not any(there and getattr(part, what) for what, there in given.items()):
                found[f"{name}.label_dropout"] = "neither labels nor a condition is read there: leave it out"
        why = {"labels": "data.label_column '' means no labels", "condition": "data.condition names no floats"}
        idle = [what for what, there in given.items() if not there]
        # The prior reads by itself what there is; a refiner has to be told.
        return found | {f"{name}.{what}": f"{why[what]}: leave it out" for name in refiners for what in idle}

    @property
    def at_once(self) -> bool:
        """Whether all decoders are trained at once, by train_decoders, and not level by level."""
        return self.joint or self.encoders_from is not None

    @property
    def every_training(self) -> dict[str, FitSettings]:
        """Settings of all phases by the name of the field."""
        found: dict[str, FitSettings] = {}
        for name in (
            "train_levels",
            "train_joint",
            "train_decoders",
            "train_refiners",
            "train_prior",
            "train_renderer",
        ):
            value = getattr(self, name)
            found |= {f"{name}.{i}": fit for i, fit in enumerate(value)} if isinstance(value, tuple) else {name: value}
        return found

    def model_settings(
        self,
        image_shape: tuple[int, ...],
        classes: int,
        class_names: Sequence[str] = (),
        given: tuple[int, ...] = (),
    ) -> ModelSettings:
        r"""The settings of the model for images of a shape (c, \*map), each given floats of the shape ``given``."""
        condition = None
        if given:
            kind = "vector" if len(given) == 1 else "sequence" if self.unified else "attention"
            condition = ConditionSettings(
                kind=self.condition.kind or kind,
                options=self.condition.options,
                name=str(self.data.condition),
                shape=given,
                text=self.data.texts,
            )
        return ModelSettings(
            stack=StackSettings(**{name: getattr(self, name) for name in StackSettings.model_fields}),
            prior=self.prior,
            refiners=self.refiners,
            unified=self.unified,
            renderer=self.renderer,
            sampling=self.sampling,
            image_shape=image_shape,
            values=self.data.values,
            geometry=Geometry(
                size=self.data.size,
                resize=self.data.resize,
                rate=self.data.rate,
                range=self.data.range,
                companding=self.data.companding,
                background="#{:02x}{:02x}{:02x}".format(*ImageColor.getrgb(self.data.background)),
            ),
            classes=classes,
            condition=condition,
            class_names=tuple(class_names),
        )

    def check_shapes(self, *sides: int) -> None:
        """Every map must divide the one below it, and no shift may leave nothing of an image.

        Args:
            sides: sites of an image along each axis.
        """
        if self.augment.shift >= min(sides):
            raise InputError(
                f"augment.shift: {self.augment.shift} moves images of {by_axis(sides)} pixels out of sight: choose at "
                f"most {min(sides) - 1}"
            )
        below = self.pad_to or sides
        for number, level in enumerate(self.levels, start=1):
            check_scale(number, below, level.map)
            below = level.map


def to_yaml(config: BaseModel) -> str:
    """The resolved configuration, every field."""
    return to_yaml_text(config.model_dump(mode="json"))


def read_yaml(path: Path, settings: type[AnySettings]) -> AnySettings:
    """Settings from a YAML file; unknown or repeated fields, wrong values and broken files are errors of one line."""
    try:
        values = read_yaml_values(path) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read ({reason(error)}): name a YAML file, or one of vqstack recipes"
        ) from error
    except ValueError as error:
        raise InputError(f"{path} is not YAML ({error}): correct that line") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no fields: write them as NAME: VALUE")
    try:
        return filled_in(settings.model_validate(values))
    except ValidationError as error:
        raise InputError(f"{path}: {explain(error)}") from error


def read_recipe(path: Path) -> RunConfig:
    """The settings of a recipe, as :func:`read_yaml`; what it sets and nothing would read is an error too.

    A run's ``config.yaml`` sets every field, and those of earlier versions what nothing reads: that is left out.
    """
    config = read_yaml(path, RunConfig)
    with path.open("rb") as file:
        if file.readline().startswith(SEAL.encode()):
            return without_unused(config)
    try:
        check_used(config)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return config


def changed(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """The settings with other values of some fields, checked as a recipe is; InputError in one line.

    A mapping changes fields inside a field, and of a list every entry; anything else takes the field's place. What the
    changes leave without use is left out, unless it is one of them.
    """
    try:
        found = filled_in(RunConfig.model_validate(_merged(config.model_dump(), changes)))
    except ValidationError as error:
        raise InputError(explain(error)) from error
    check_used(found, changes)
    return without_unused(found)


def _merged(before: Any, changes: Any) -> Any:
    if not isinstance(changes, Mapping) or not isinstance(before, dict | tuple | list):
        return changes
    if isinstance(before, dict):
        return before | {name: _merged(before.get(name), value) for name, value in changes.items()}
    return [_merged(entry, changes) for entry in before]


def filled_in(settings: AnySettings) -> AnySettings:
    """The settings with ``~`` and ``$NAME`` filled in, in every path."""
    changes: dict[str, Any] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            filled: Any = filled_in(value)
        elif isinstance(value, tuple):
            filled = tuple(path_of(one) if isinstance(one, Path) else one for one in value)
        elif isinstance(value, dict):
            filled = {key: path_of(one) if isinstance(one, Path) else one for key, one in value.items()}
        else:
            filled = path_of(value) if isinstance(value, Path) else value
        if filled != value:
            changes[name] = filled
    return settings.model_copy(update=changes) if changes else settings
