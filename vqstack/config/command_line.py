"""Settings from the command line over those of a recipe or a run: strict, in one line when wrong.

An option is the path of a field, ``--levels.0.map 2 2``. Its words are put in that place among the settings that hold
without it, and then all are checked as those of a file are.
"""

import inspect
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from textwrap import fill
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from vqstack.code_model import RefinerSettings
from vqstack.config.run import RunConfig, Settings, filled_in
from vqstack.config.unused import check_given
from vqstack.errors import InputError, explain
from vqstack.images import ImageSettings
from vqstack.terminal import say

Field = TypeVar("Field")
Positional = Annotated[Field, "positional"]
"""A field whose words stand alone, without its name."""
Unprefixed = Annotated[Field, "unprefixed"]
"""Settings whose fields are options without the name of the settings."""
HELP = {"-h", "--help"}
MANY = 10**9


@dataclass(frozen=True)
class Option:
    """A field that the command line can set.

    Attributes:
        path: names of fields, numbers of entries.
        field: its type and its description.
        now: what it holds without a word; undefined where it must be given.
    """

    path: tuple[str | int, ...]
    field: FieldInfo
    now: Any

    @property
    def kinds(self) -> tuple[Any, ...]:
        """The types that it may have."""
        kind = self.field.annotation
        return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)

    @property
    def words(self) -> tuple[int, int]:
        """How many words it takes, at least and at most."""
        inside = get_args(self.kinds[0])
        if get_origin(self.kinds[0]) is dict or inside[1:] == (...,):
            return 0, MANY
        many = len(inside) if get_origin(self.kinds[0]) is tuple else int(self.kinds[0] is not bool)
        return many, many

    def value(self, words: list[str]) -> Any:
        """The words as its type wants them, numbers still as they are written."""
        kind, inside = self.kinds[0], get_args(self.kinds[0])
        if words == ["None"] and NoneType in self.kinds:
            return None
        if get_origin(kind) is dict:
            return dict(zip(words[::2], (_first_that_fits(inside[1], word) for word in words[1::2]), strict=True))
        if get_origin(kind) is tuple:
            return words or [True] * (inside[0] is bool)
        return words[0]


def _first_that_fits(kinds: Any, word: str) -> Any:
    """A word as the first of several types that it can be."""
    for kind in get_args(kinds):
        with suppress(ValidationError):
            return TypeAdapter(kind).validate_python(word)
    return word


def options(
    settings: type[BaseModel],
    values: BaseModel | Mapping[str, Any] | None = None,
    prefix: str = "--",
    path: tuple[str | int, ...] = (),
) -> Iterator[tuple[str, Option]]:
    """Name and meaning of each option, those of settings inside too; of an empty list those of its first entry.

    Settings that may be none, and are, have their options too: naming one makes them.
    """
    known = dict(values or {})
    for name, field in settings.model_fields.items():
        value = known.get(name, field.get_default(call_default_factory=True))
        option, here, inside = prefix + name.replace("_", "-"), (*path, name), field.annotation
        if get_args(inside)[1:] == (NoneType,) and _are_settings(get_args(inside)[0]):
            inside = get_args(inside)[0]
        if get_args(inside)[1:] == (...,) and _are_settings(get_args(inside)[0]):
            for number, entry in enumerate(value or (None,)):
                yield from options(get_args(inside)[0], entry, f"{option}.{number}.", (*here, number))
        elif isinstance(inside, type) and _are_settings(inside):
            yield from options(inside, value, prefix if "unprefixed" in field.metadata else f"{option}.", here)
        else:
            yield name if "positional" in field.metadata else option, Option(here, field, value)


def _are_settings(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def parse(
    settings: type[Settings],
    arguments: list[str],
    default: Settings | Mapping[str, Any] | None = None,
    prog: str = "",
) -> Settings:
    """Settings from the command line over ``default``. ``--help`` prints every field and leaves."""
    values = dict(default or {})
    if isinstance(default, RunConfig):
        values |= _lengthened(default, [argument.replace("_", "-") for argument in arguments])
    known = dict(options(settings, values))
    if HELP & set(arguments):
        say(_help(settings, known, prog or Path(sys.argv[0]).name))  # whose defaults may be another person's
        raise SystemExit(0)
    told = _told(arguments, known)
    if isinstance(data := values.get("data"), ImageSettings) and told.get("--data.source", data.source) != data.source:
        values["data"] = _without_own_fields(data, isinstance(default, RunConfig))
    for name, value in told.items():
        values = _put(values, known[name].path, value)
    try:
        found = filled_in(settings.model_validate(values))
    except ValidationError as error:
        raise InputError(_as_option(explain(error), known)) from error
    check_given(found, told)
    return found


def _told(arguments: list[str], known: Mapping[str, Option]) -> dict[str, Any]:
    """Option -> what the command line gives it; words that stand alone go to the positional fields in turn."""
    told: dict[str, Any] = {}
    alone: dict[str, list[str]] = {name: [] for name in known if not name.startswith("--")}
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if argument.startswith("--"):
            following = list(takewhile(lambda word: not word.startswith("--"), waiting))
            name, value, taken = _read(argument, following, known)
            told[name] = value
            del waiting[:taken]
            continue
        place = next((name for name, words in alone.items() if len(words) < known[name].words[1]), None)
        if place is None:
            raise InputError(f"{argument}: unknown option: see --help for the names")
        alone[place].append(argument)
    return {name: known[name].value(words) for name, words in alone.items() if words} | told


def _read(argument: str, following: list[str], known: Mapping[str, Option]) -> tuple[str, Any, int]:
    """Name and value of an option, and how many of the words behind it are its own."""
    written, equals, value = argument.partition("=")
    name = written.replace("_", "-")
    switch = re.sub(r"^(--(?:.*\.)?)no-", r"\1", name)  # --levels.0.no-NAME
    if switch in known and known[switch].kinds == (bool,):
        if equals or (following[:1] and following[0].lower() in ("true", "false")):
            off = re.sub(r"^(--(?:.*\.)?)", r"\1no-", switch)
            raise InputError(f"{switch}: takes no value, but {value or following[0]!r} follows: give {switch} or {off}")
        return switch, name == switch, 0
    option = known.get(name)
    if option is None or not name.startswith("--"):
        raise InputError(f"{written}: unknown option: see --help for the names")
    least, most = option.words
    words = [value] * bool(equals) + following[: most - bool(equals)]
    if words[:1] == ["None"]:
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
    known = dict(values or {})
    return known | {path[0]: _put(known.get(path[0]), path[1:], value)}


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


def _as_option(problem: str, known: Mapping[str, Option]) -> str:
    """FIELD: … with the field as it is written on the command line, without what lies inside an option."""
    field, colon, rest = problem.partition(": ")
    if not re.fullmatch(r"[\w.\[\]-]+", field):
        return problem
    paths = {".".join(map(str, option.path)): name for name, option in known.items()}
    inside = [path for path in paths if f"{field}.".startswith(f"{path}.")]
    return f"{paths[max(inside, key=len)] if inside else '--' + field.replace('_', '-')}{colon}{rest}"


def _help(settings: type[BaseModel], known: Mapping[str, Option], prog: str) -> str:
    """Every option with its description, and what it holds without a word."""
    alone = [f" {name.upper()}{' …' * (option.words[1] == MANY)}" for name, option in known.items() if name[0] != "-"]
    found = [f"usage: {prog}{''.join(alone)} [--OPTION VALUE …]\n\n{inspect.getdoc(settings)}\n"]
    width, indent = max(60, min(120, shutil.get_terminal_size().columns)), " " * 8
    for name, option in known.items():
        kind, written = option.kinds[0], name if name.startswith("--") else name.upper()
        if kind is bool:
            written += ", " + re.sub(r"^(--(?:.*\.)?)", r"\1no-", name)
        elif get_origin(kind) is Literal:
            written += " " + "|".join(map(str, get_args(kind)))
        now = "must be given" if option.now is PydanticUndefined else f"default: {_shown(option.now)}"
        about = f"{option.field.description} ({now})" if option.now not in (None, ()) else option.field.description
        about = fill(str(about), width, initial_indent=indent, subsequent_indent=indent)
        found.append(f"  {written}\n{about}")
    return "\n".join(found)


def _shown(value: Any) -> str:
    """A value as the command line would have it."""
    if isinstance(value, dict):
        value = tuple(word for pair in value.items() for word in pair)
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
