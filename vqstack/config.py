"""The configuration of a run, from YAML and the command line; and how commands refuse wrong input.

Values come from the recipe's YAML file, then from the command line; both are strict, both end in one line when wrong.
"""

import contextlib
import errno
import io
import itertools
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args

import tyro
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vqstack import signals
from vqstack.checkpoint import CANNOT_WRITE, failed_write
from vqstack.code_model import CodeModelSettings, RefinerSettings, check_refiners, check_unified
from vqstack.errors import BROKEN_PIPE, CommandError, InputError, LostError, Stopped, explain, reason
from vqstack.fit import FitSettings
from vqstack.images import AugmentSettings, ImageSettings
from vqstack.level import check_scale
from vqstack.model import ModelSettings, SamplingSettings
from vqstack.paths import path_of
from vqstack.reading import read_yaml_values, to_yaml_text
from vqstack.stack import StackSettings
from vqstack.terminal import escape_what_others_print, plain, say

NO_PATH = {errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG}
Settings = TypeVar("Settings", bound=BaseModel)


class RunConfig(StackSettings):
    """Everything that defines a training run."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

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
    unified: bool = Field(
        False,
        description="One transformer, with the settings of the prior, for the maps of codes of all levels: prior and "
        "refiners of the levels above 1 in one, trained with train_prior on all of them at once.",
    )
    sampling: SamplingSettings = Field(SamplingSettings(), description="Default settings of generation.")
    train_levels: tuple[FitSettings, ...] = Field(
        (FitSettings(),),
        min_length=1,
        description="Training of the levels: one entry for all, or one each, level 1 first.",
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
    seed: int = Field(
        0,
        ge=0,
        le=2**63 - 1,
        description="Seed of weights, order of images and everything random in training, no unit.",
    )
    mixed_precision: Literal["no", "fp16", "bf16"] = Field(
        "no", description="Number format of the networks in training: float32, float16 or bfloat16."
    )
    compile: bool = Field(False, description="Run networks through torch.compile in training.")
    channels_last: bool = Field(
        False, description="Keep the levels' convolutions with channels last in memory, which tensor cores prefer."
    )
    trackers: tuple[str, ...] = Field(
        (), description="Names of experiment trackers, such as tensorboard; events go into the run's folder."
    )
    deterministic: bool = Field(
        False, description="Let GPUs use only algorithms that give the same bits each time; slower."
    )
    encode_batch: int = Field(
        256, ge=1, description="Images at a time when encoding and scoring, count on each process."
    )
    sample_grid: int = Field(10, ge=1, description="Images in each picture written during training, count.")

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
        if self.augment.crop == "random" and self.data.resize in (None, self.data.size):
            raise ValueError("augment.crop random has no room: set data.resize larger than data.size")
        if self.augment.views and self.data.streaming:
            raise ValueError("augment.views stores codes of a split, and a stream is encoded on the way: leave one out")
        check_refiners(self.refiners, self.levels)
        if self.unified:
            check_unified(self.prior, self.refiners, self.levels)
        if self.joint and self.levels_from is not None:
            raise ValueError("joint trains all levels and levels_from takes some frozen: leave one of them out")
        if self.joint and any(level.quantizer.kind == "cluster" for level in self.levels):
            raise ValueError("joint trains all levels at once, and clusters are made of a finished one: leave one out")
        if self.joint and any(refiner.joint_encoder for refiner in self.refiners):
            raise ValueError("joint trains the levels with their decoders alone: leave it or joint_encoder out")
        return self

    @property
    def every_training(self) -> dict[str, FitSettings]:
        """Settings of all phases by the name of the field."""
        found: dict[str, FitSettings] = {}
        for name in ("train_levels", "train_joint", "train_decoders", "train_refiners", "train_prior"):
            value = getattr(self, name)
            found |= {f"{name}.{i}": fit for i, fit in enumerate(value)} if isinstance(value, tuple) else {name: value}
        return found

    def model_settings(
        self, image_shape: tuple[int, ...], classes: int, class_names: Sequence[str] = ()
    ) -> ModelSettings:
        """The settings of the model for images of a shape (c, h, w)."""
        return ModelSettings(
            stack=StackSettings(**{name: getattr(self, name) for name in StackSettings.model_fields}),
            prior=self.prior,
            refiners=self.refiners,
            unified=self.unified,
            sampling=self.sampling,
            image_shape=image_shape,  # type: ignore[arg-type]
            values=self.data.values,
            classes=classes,
            class_names=tuple(class_names),
        )

    def check_shapes(self, rows: int, columns: int) -> None:
        """Every map must divide the one below it, and no shift may leave nothing of an image."""
        if self.augment.shift >= min(rows, columns):
            raise InputError(
                f"augment.shift: {self.augment.shift} moves images of {rows}x{columns} pixels out of sight: choose at "
                f"most {min(rows, columns) - 1}"
            )
        below = self.pad_to or (rows, columns)
        for number, level in enumerate(self.levels, start=1):
            check_scale(number, below, level.map)
            below = level.map


def to_yaml(config: BaseModel) -> str:
    """The resolved configuration, every field."""
    return to_yaml_text(config.model_dump(mode="json"))


def read_yaml(path: Path, settings: type[Settings]) -> Settings:
    """Settings from a YAML file; unknown or repeated fields, wrong values and broken files are errors of one line."""
    try:
        values = read_yaml_values(path) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read ({reason(error)}): give the path of a YAML file, such as recipes/digits.yaml"
        ) from error
    except ValueError as error:
        raise InputError(f"{path} is not YAML ({error}): correct that line") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no fields: write them as NAME: VALUE")
    try:
        return _filled_in(settings.model_validate(values))
    except ValidationError as error:
        raise InputError(f"{path}: {explain(error)}") from error


def parse(settings: type[Settings], arguments: list[str], default: Settings | None = None, prog: str = "") -> Settings:
    """Settings from the command line over ``default``. ``--help`` prints every field and leaves."""
    given = [argument.split("=", 1)[0].replace("_", "-") for argument in arguments if argument.startswith("--")]
    arguments = _spelled_out(settings, arguments, default)
    options: dict[str, Any] = {} if default is None else {"default": _made_ready(default, given, arguments)}
    printed, shown = io.StringIO(), io.TextIOWrapper(io.BytesIO(), encoding=sys.stdout.encoding or "utf-8")
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(shown):
            found = tyro.cli(
                settings,
                args=arguments,
                prog=prog or Path(sys.argv[0]).name,
                config=(tyro.conf.AvoidSubcommands,),
                **options,
            )
        return _filled_in(found)
    except ValidationError as error:
        raise InputError(_as_option(explain(error))) from error
    except SystemExit as leave:
        if not leave.code:
            shown.seek(0)
            say(shown.read().rstrip("\n"))  # the help, whose defaults may be another person's
            raise
        raise InputError(_reason(leave, printed.getvalue(), arguments)) from None


def _filled_in(settings: Settings) -> Settings:
    """The settings with ``~`` and ``$NAME`` filled in, in every path."""
    changes: dict[str, Any] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            filled: Any = _filled_in(value)
        elif isinstance(value, tuple):
            filled = tuple(path_of(one) if isinstance(one, Path) else one for one in value)
        else:
            filled = path_of(value) if isinstance(value, Path) else value
        if filled != value:
            changes[name] = filled
    return settings.model_copy(update=changes) if changes else settings


def _spelled_out(settings: type[BaseModel], arguments: list[str], default: BaseModel | None) -> list[str]:
    """The arguments with True after a list of switches that is named without values.

    Another list without values is an error where it is empty anyway: to the command-line library it would mean nothing.
    """
    lists = {
        f"--{name.replace('_', '-')}": get_args(field.annotation)[0]
        for name, field in settings.model_fields.items()
        if get_args(field.annotation)[1:] == (...,) and not getattr(default, name, ())
    }
    found: list[str] = []
    for argument, following in itertools.zip_longest(arguments, arguments[1:], fillvalue="--"):
        found.append(argument)
        kind = lists.get(argument.replace("_", "-"))
        if kind is not None and following.startswith("--"):
            if kind is not bool:
                raise InputError(f"{argument}: has no value: give one or several, or leave it out")
            found.append("True")
    return found


def _made_ready(default: Settings, given: list[str], arguments: list[str]) -> Settings:
    """The defaults with room for what the command line names: longer lists, other files, another source."""
    if isinstance(default, RunConfig):
        default = default.model_copy(update=_lengthened(default, given))
    data = getattr(default, "data", None)
    if isinstance(data, ImageSettings):
        if "--data.files" in given:
            # A mapping that is there already would only take new values for its own keys; a given one replaces it.
            data = data.model_copy(update={"files": {}})
        source = _values(arguments, "--data.source")[-1:]
        if source and source != [data.source]:
            data = _without_own_fields(data, isinstance(default, RunConfig))
        default = default.model_copy(update={"data": data})
    return default


def _without_own_fields(data: ImageSettings, training: bool) -> ImageSettings:
    """The settings without what means something for their own source only."""
    names: tuple[str, ...] = ("name", "revision", "splits") if data.source == "hub" else ()
    if data.source == "digits":
        # The digits bring counts of their own. The geometry stays where it is that of a trained model.
        own = ("validation", "test", "values", "size") if training else ("validation", "test")
        names = tuple(name for name in own if getattr(data, name) == getattr(ImageSettings(), name))
    fields = ImageSettings.model_fields
    return data.model_copy(update={name: fields[name].get_default(call_default_factory=True) for name in names})


def _lengthened(config: RunConfig, given: list[str]) -> dict[str, Any]:
    """Lists of settings as long as the command line names them, by copies of their last entry."""

    def named(field: str) -> set[int]:
        found = (re.match(rf"--{field}\.(\d+)\.", name) for name in given)
        return {int(match[1]) for match in found if match}

    longer: dict[str, Any] = {}
    for field, first in (("levels", config.levels[0]), ("refiners", RefinerSettings(level=1))):
        entries, training = getattr(config, field), getattr(config, f"train_{field}")
        count = max(len(entries), 1 + max(named(field), default=-1))
        missing = [number for number in range(len(entries), count) if number not in named(field)]
        if missing:
            raise InputError(f"--{field}.{count - 1}: there is no --{field}.{missing[0]}: leave no gap")
        beyond = max(named(f"train-{field}"), default=0)
        if beyond >= max(count, 1):
            raise InputError(f"--train-{field}.{beyond}: there are {count} {field}: give one entry for each, from 0 on")
        trained = count if len(training) > 1 or beyond > 0 else 1
        longer[field] = entries + (entries[-1:] or (first,)) * (count - len(entries))
        longer[f"train_{field}"] = training + training[-1:] * (trained - len(training))
    return longer


def _as_option(problem: str) -> str:
    """FIELD: … with the field as it is written on the command line."""
    field, colon, rest = problem.partition(": ")
    return f"--{field.replace('_', '-')}{colon}{rest}" if re.fullmatch(r"[\w.]+", field) else problem


def _switch_before(value: str, arguments: list[str]) -> str | None:
    """The option that was given True or False, without its no-; nothing where the value is another."""
    if value.lower() not in ("true", "false"):
        return None
    words = [word for argument in arguments for word in argument.split("=", 1)]
    option = next((a for a, b in itertools.pairwise(words) if b == value and a.startswith("--")), None)
    return None if option is None else re.sub(r"^(--(?:.*\.)?)no-", r"\1", option)


def _reason(leave: SystemExit, printed: str, arguments: list[str]) -> str:
    """Why the command-line library left, in our words: FIELD: REASON: REMEDY.

    Wrong values of a settings object reach it as the exception that it was handling; the rest it only prints.
    """
    prefix, cause = "", leave.__context__
    while cause is not None and not isinstance(cause, ValidationError):
        where = getattr(cause, "arg", "")
        prefix, cause = where.replace("-", "_") if isinstance(where, str) else prefix, cause.__context__
    if cause is not None:
        return _as_option(explain(cause, prefix))
    text = _inside_the_box(printed)
    if match := re.match(r"Unrecognized options: (\S+?)(,|$)", text):
        if switch := _switch_before(match[1], arguments):
            off = re.sub(r"^(--(?:.*\.)?)", r"\1no-", switch)
            return f"{switch}: takes no value, but {match[1]!r} follows: give {switch} or {off}"
        return f"{match[1]}: unknown option: see --help for the names"
    if match := re.match(r"invalid choice (.*) for argument '(\S+)'\. Expected one of \((.*?),?\)", text):
        return f"{match[2]}: {match[1]} is not among its values: choose one of {match[3]}"
    if match := re.match(r"Missing value for argument '(\S+)'\. Expected (.*) values?", text):
        return f"{match[1]}: too few values: it takes {match[2]}"
    if match := re.match(r"Error parsing (\S+?)(/\S+)?:", text):
        values = " ".join(_values(arguments, match[1]))
        return f"{match[1]}: {values!r} does not fit: see --help for what it takes"
    if match := re.match(r"(Required options|The following arguments are required): (.*)", text):
        return f"{match[2]}: must be given: see --help"
    return f"{text}: see --help"


def _values(arguments: list[str], option: str) -> list[str]:
    """What follows an option on the command line."""
    found: list[str] = []
    inside = False
    for argument in arguments:
        name, _, value = argument.partition("=")
        if argument.startswith("--"):
            inside = name.replace("_", "-") == option
            found += [value] * (inside and "=" in argument)
        elif inside:
            found.append(argument)
    return found


def _inside_the_box(printed: str) -> str:
    """The message inside the box that the command-line library draws."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip("│╭╮╰╯ ") for line in printed.splitlines()]
    message: list[str] = []
    for line in lines[1:]:
        if line and set(line) <= {"─", "-"}:  # a rule; where the terminal has no box, there is one under the title too
            if message:
                break
            continue
        if line:
            message.append(line)
    return " ".join(message)


def run_command(main: Callable[[list[str]], None], again: str = "to go on") -> None:
    """Run a command on ``sys.argv``; what ends it early is one line on standard error and an exit code (errors.py).

    ``again`` is what running it once more does after a signal.
    """
    escape_what_others_print()
    try:
        with signals.stopping(again):
            main(sys.argv[1:])
            sys.stdout.flush()
    except CommandError as error:
        _leave(f"error: {error}", error.exit_code)
    except Stopped as stop:
        _leave(f"stopped {stop}", stop.exit_code)
    except (OSError, RuntimeError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            sys.exit(BROKEN_PIPE)
        ending = _ending(error)
        if ending is None:
            raise
        _leave(f"error: {ending}", ending.exit_code)


def _nobody_reads() -> bool:
    """Whether standard output is a pipe that was closed; if so, what is still to be printed is dropped."""
    try:
        print(flush=True)  # what failed is dropped already, so that flushing alone would tell nothing
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _leave(line: str, code: int) -> NoReturn:
    try:
        print(plain(line), file=sys.stderr, flush=True)
    except OSError:  # a log on the disk that is full: the exit code says it still, and nothing waits to be written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    sys.exit(code)


def _ending(error: OSError | RuntimeError) -> CommandError | None:
    """How an error from below ends a command; None for one that only a traceback explains."""
    if isinstance(error, RuntimeError):
        return LostError.of(error)
    if error.errno in CANNOT_WRITE:
        return failed_write(error.filename or "a file", error)
    return InputError(f"{error.filename}: {error.strerror}: name another path") if error.errno in NO_PATH else None
