"""Settings from the command line over those of a recipe or a run: strict, in one line when wrong."""

import contextlib
import io
import itertools
import re
import sys
from pathlib import Path
from typing import Any, get_args

import tyro
from pydantic import BaseModel, ValidationError

from vqstack.code_model import RefinerSettings
from vqstack.config.run import RunConfig, Settings, filled_in
from vqstack.config.unused import check_given
from vqstack.errors import InputError, explain
from vqstack.images import ImageSettings
from vqstack.terminal import say


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
        found = filled_in(found)
    except ValidationError as error:
        raise InputError(_as_option(explain(error))) from error
    except SystemExit as leave:
        if not leave.code:
            shown.seek(0)
            say(shown.read().rstrip("\n"))  # the help, whose defaults may be another person's
            raise
        raise InputError(_reason(leave, printed.getvalue(), arguments)) from None
    check_given(found, given)
    return found


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
        if "--start-from" in given:  # as for files below
            default = default.model_copy(update={"start_from": {}})
    data = getattr(default, "data", None)
    if isinstance(data, ImageSettings):
        source = _values(arguments, "--data.source")[-1:]
        other = bool(source) and source != [data.source]
        if other or "--data.files" in given:
            # A mapping that is there already would only take new values for its own keys; a given one replaces it.
            data = data.model_copy(update={"files": {}})
        if other:
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
