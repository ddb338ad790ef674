"""Settings from the command line over those of a recipe or a run: strict, in one line when wrong.

An option is the path of a field, ``--levels.0.map 2 2``. Its words are put in that place among the settings that hold
without it, and then all are checked as those of a file are.
"""

import re
import sys
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

from pydantic import ValidationError

from vqstack.code_model import RefinerSettings
from vqstack.config.options import Option, help_of, options_of
from vqstack.config.run import AnySettings, RunConfig, filled_in
from vqstack.config.unused import check_given
from vqstack.errors import InputError, explain
from vqstack.images import ImageSettings
from vqstack.terminal import say

HELP = {"-h", "--help"}


def parse(
    settings: type[AnySettings],
    arguments: list[str],
    default: AnySettings | Mapping[str, Any] | None = None,
    prog: str = "",
) -> AnySettings:
    """Settings from the command line over ``default``. ``--help`` prints every field and leaves."""
    values = dict(default or {})
    if isinstance(default, RunConfig):
        values |= _lengthened(default, [argument.replace("_", "-") for argument in arguments])
    options = dict(options_of(settings, values))
    if HELP & set(arguments):
        say(help_of(settings, options, prog or Path(sys.argv[0]).name))  # whose defaults may be another person's
        raise SystemExit(0)
    told = _told(arguments, options)
    if isinstance(data := values.get("data"), ImageSettings) and told.get("--data.source", data.source) != data.source:
        values["data"] = _without_own_fields(data, isinstance(default, RunConfig))
    for name, value in told.items():
        values = _put(values, options[name].path, value)
    try:
        found = filled_in(settings.model_validate(values))
    except ValidationError as error:
        raise InputError(_as_option(explain(error), options)) from error
    check_given(found, told)
    return found


def _told(arguments: list[str], options: Mapping[str, Option]) -> dict[str, Any]:
    """Option -> what the command line gives it; words that stand alone go to the positional fields in turn."""
    told: dict[str, Any] = {}
    alone: dict[str, list[str]] = {name: [] for name in options if not name.startswith("--")}
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if argument.startswith("--"):
            following = list(takewhile(lambda word: not word.startswith("--"), waiting))
            name, value, taken = _read(argument, following, options)
            told[name] = value
            del waiting[:taken]
            continue
        place = next((name for name, words in alone.items() if len(words) < options[name].words[1]), None)
        if place is None:
            raise InputError(f"{argument}: unknown option: see --help for the names")
        alone[place].append(argument)
    return {name: options[name].value(words) for name, words in alone.items() if words} | told


def _read(argument: str, following: list[str], options: Mapping[str, Option]) -> tuple[str, Any, int]:
    """Name and value of an option, and how many of the words behind it are its own."""
    written, equals, value = argument.partition("=")
    name = written.replace("_", "-")
    switch = re.sub(r"^(--(?:.*\.)?)no-", r"\1", name)  # --levels.0.no-NAME
    if switch in options and options[switch].kinds == (bool,):
        if equals or (following[:1] and following[0].lower() in ("true", "false")):
            off = re.sub(r"^(--(?:.*\.)?)", r"\1no-", switch)
            raise InputError(f"{switch}: takes no value, but {value or following[0]!r} follows: give {switch} or {off}")
        return switch, name == switch, 0
    option = options.get(name)
    if option is None or not name.startswith("--"):
        raise InputError(f"{written}: unknown option: see --help for the names")
    least, most = option.words
    words = [value] * bool(equals) + following[: most - bool(equals)]
    if words[:1] == ["None"] and NoneType in option.kinds:
        words = words[:1]
    elif len(words) < least:
        raise InputError(f"{written}: too few values: it takes {least}")
    elif not words and not option.now and get_args(option.kinds[0])[0] is not bool:
        raise InputError(f"{written}: has no value: give one or several, or leave it out")
    elif get_origin(option.kinds[0]) is dict and len(words) % 2:
        raise InputError(f"{written}: {' '.join(words)!r} does not fit: it takes pairs of a name and a value")
    return name, option.value(words), len(words) - bool(equals)


def _put(values: Any, path: tuple[str | int, ...], value: Any) -> Any:
    """``values`` with another value at a path; settings on the way become mappings, which are checked anew."""
    if not path:
        return value
    if isinstance(values, tuple):
        return tuple(_put(one, path[1:], value) if i == path[0] else one for i, one in enumerate(values))
    mapping = dict(values or {})
    return mapping | {path[0]: _put(mapping.get(path[0]), path[1:], value)}


def _without_own_fields(data: ImageSettings, training: bool) -> ImageSettings:
    """The settings without their files, and without what means something for their own source only."""
    names: tuple[str, ...] = ("files", "name", "revision", "splits") if data.source == "hub" else ("files",)
    if data.source == "digits":
        # The digits bring counts of their own. The geometry stays where it is that of a trained model.
        own = ("validation", "test", "values", "size") if training else ("validation", "test")
        names += tuple(name for name in own if getattr(data, name) == getattr(ImageSettings(), name))
    fields = ImageSettings.model_fields
    return data.model_copy(update={name: fields[name].get_default(call_default_factory=True) for name in names})


def _lengthened(config: RunConfig, arguments: list[str]) -> dict[str, Any]:
    """Lists of settings as long as the command line names them, by copies of their last entry."""

    def named(field: str) -> set[int]:
        found = (re.match(rf"--{field}\.(\d+)\.", argument) for argument in arguments)
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


def _as_option(problem: str, options: Mapping[str, Option]) -> str:
    """FIELD: … with the field as it is written on the command line, without what lies inside an option."""
    field, colon, rest = problem.partition(": ")
    if not re.fullmatch(r"[\w.\[\]-]+", field):
        return problem
    paths = {".".join(map(str, option.path)): name for name, option in options.items()}
    inside = [path for path in paths if f"{field}.".startswith(f"{path}.")]
    return f"{paths[max(inside, key=len)] if inside else '--' + field.replace('_', '-')}{colon}{rest}"
