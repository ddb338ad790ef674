"""The configuration of a run, from YAML and the command line; and how commands refuse wrong input.

Values come from the recipe's YAML file, then from the command line; both are strict, both end in one line when wrong.
"""

import contextlib
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vqstack import signals
from vqstack.checkpoint import CANNOT_WRITE, failed_write
from vqstack.code_model import CodeModelSettings, RefinerSettings, check_refiners
from vqstack.errors import CommandError, InputError, Stopped
from vqstack.fit import FitSettings
from vqstack.images import AugmentSettings, ImageSettings
from vqstack.level import check_scale
from vqstack.model import ModelSettings, SamplingSettings
from vqstack.stack import StackSettings

Settings = TypeVar("Settings", bound=BaseModel)


class RunConfig(StackSettings):
    """Everything that defines a training run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: ImageSettings = Field(ImageSettings(), description="The images.")
    augment: AugmentSettings = Field(
        AugmentSettings(), description="Changes to training images on the fly; higher levels then encode as they go."
    )
    levels_from: Path | None = Field(
        None,
        description="Folder of a finished run or released model whose first levels are taken frozen: as many as both "
        "have, with the same settings. Only what lies above them is trained.",
    )
    prior: CodeModelSettings = Field(CodeModelSettings(), description="The transformer over the top map.")
    refiners: tuple[RefinerSettings, ...] = Field(
        (), description="Transformers that correct the decoders of chosen levels, trained on the frozen codes."
    )
    sampling: SamplingSettings = Field(SamplingSettings(), description="Default settings of generation.")
    train_levels: tuple[FitSettings, ...] = Field(
        (FitSettings(),), min_length=1, description="Training of the levels: one for all, or one each, level 1 first."
    )
    joint: bool = Field(
        False, description="Train all levels at once on the sum of their losses, then all decoders on the final codes."
    )
    train_joint: FitSettings = Field(FitSettings(), description="Training of all levels at once (joint).")
    train_decoders: FitSettings = Field(
        FitSettings(steps=500), description="Training of the decoders after it, on codes that no longer change (joint)."
    )
    train_refiners: tuple[FitSettings, ...] = Field(
        (FitSettings(),),
        min_length=1,
        description="Training of the refiners: one entry for all, or one each, in order.",
    )
    train_prior: FitSettings = Field(FitSettings(), description="Training of the prior.")
    seed: int = Field(0, ge=0, description="Seed of weights, order of images and everything random in training.")
    mixed_precision: Literal["no", "fp16", "bf16"] = Field("no", description="Precision of the networks in training.")
    compile: bool = Field(False, description="Run networks through torch.compile in training.")
    trackers: tuple[str, ...] = Field((), description="Experiment trackers by name, such as tensorboard.")
    deterministic: bool = Field(
        False, description="Let GPUs use only algorithms that give the same bits each time; slower."
    )
    encode_batch: int = Field(256, ge=1, description="Images at a time when encoding and scoring, each process.")
    sample_grid: int = Field(10, ge=1, description="Images in each picture written during training.")

    @model_validator(mode="after")
    def check(self) -> "RunConfig":
        if len(self.train_levels) not in (1, len(self.levels)):
            raise ValueError(f"train_levels takes one entry or {len(self.levels)} (one a level)")
        if self.refiners and len(self.train_refiners) not in (1, len(self.refiners)):
            raise ValueError(f"train_refiners takes one entry or {len(self.refiners)} (one a refiner)")
        check_refiners(self.refiners, len(self.levels))
        if self.joint and self.levels_from is not None:
            raise ValueError("joint trains all levels and levels_from takes some frozen: leave one of them out")
        return self

    @property
    def every_training(self) -> tuple[FitSettings, ...]:
        """Settings of all phases."""
        return *self.train_levels, self.train_joint, self.train_decoders, *self.train_refiners, self.train_prior

    def model_settings(self, image_shape: tuple[int, ...], classes: int) -> ModelSettings:
        """The settings of the model for images of a shape (c, h, w)."""
        return ModelSettings(
            stack=StackSettings(**{name: getattr(self, name) for name in StackSettings.model_fields}),
            prior=self.prior,
            refiners=self.refiners,
            sampling=self.sampling,
            image_shape=image_shape,  # type: ignore[arg-type]
            values=self.data.values,
            classes=classes,
        )

    def check_shapes(self, rows: int, columns: int) -> None:
        """Every map must divide the one below it."""
        below = self.pad_to or (rows, columns)
        for number, level in enumerate(self.levels, start=1):
            check_scale(number, below, level.map)
            below = level.map


def to_yaml(config: BaseModel) -> str:
    """The resolved configuration, every field."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def read_yaml(path: Path, settings: type[Settings]) -> Settings:
    """Settings from a YAML file; unknown fields, wrong values and broken files are errors of one line."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: give the path of a YAML file, such as recipes/digits.yaml") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML ({' '.join(str(error).split())}): correct that line") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no fields: write them as NAME: VALUE")
    try:
        return settings.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{path}: {_first_problem(error)}") from error


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"]))
    reason = "unknown field: see --help for the names" if first["type"] == "extra_forbidden" else first["msg"]
    return f"{field}: {reason}" if field else reason


def parse(settings: type[Settings], arguments: list[str], default: Settings | None = None, prog: str = "") -> Settings:
    """Settings from the command line over ``default``. ``--help`` prints every field and leaves."""
    if default is not None and "--data.files" in arguments and hasattr(default, "data"):
        # A mapping that is there already would only take new values for its own keys; a given one replaces it.
        default = default.model_copy(update={"data": default.data.model_copy(update={"files": {}})})
    printed = io.StringIO()
    options: dict[str, Any] = {"default": default} if default is not None else {}
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(
                settings,
                args=arguments,
                prog=prog or Path(sys.argv[0]).name,
                config=(tyro.conf.AvoidSubcommands,),
                **options,
            )
    except ValidationError as error:
        raise InputError(_first_problem(error)) from error
    except SystemExit as leave:
        if not leave.code:
            raise
        raise InputError(_one_line(printed.getvalue())) from None


def _one_line(printed: str) -> str:
    """The message inside the box that the command-line library draws."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip("│╭╮╰╯ ") for line in printed.splitlines()]
    message: list[str] = []
    for line in lines[1:]:
        if line and set(line) <= {"─", "-"}:  # a rule; where the terminal has no box, there is one under the title too
            if message:
                break
            continue
        if line and "https://errors.pydantic.dev" not in line and "For further information" not in line:
            message.append(line)
    text = re.sub(r"\s*\[type=[^]]*\]", "", " ".join(message)).replace(": 1 validation error for", " in")
    return f"{text} (see --help)"


def run_command(main: Callable[[list[str]], None]) -> None:
    """Run a command on ``sys.argv``; what ends it early is one line on standard error and an exit code (errors.py)."""
    try:
        with signals.stopping():
            main(sys.argv[1:])
    except CommandError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Stopped as stop:
        print(f"stopped {stop}", file=sys.stderr)
        sys.exit(stop.exit_code)
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        failed = failed_write(error.filename or "a file", error)
        print(f"error: {failed}", file=sys.stderr)
        sys.exit(failed.exit_code)
