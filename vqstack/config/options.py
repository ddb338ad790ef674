"""What the command line can set: each field of settings, by the path that leads to it; and help that lists all."""

import inspect
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from textwrap import fill
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

Field = TypeVar("Field")
Positional = Annotated[Field, "positional"]
"""A field whose words stand alone, without its name."""
Unprefixed = Annotated[Field, "unprefixed"]
"""Settings whose fields are options without the name of the settings."""
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


def options_of(
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
                yield from options_of(get_args(inside)[0], entry, f"{option}.{number}.", (*here, number))
        elif isinstance(inside, type) and _are_settings(inside):
            yield from options_of(inside, value, prefix if "unprefixed" in field.metadata else f"{option}.", here)
        else:
            yield name if "positional" in field.metadata else option, Option(here, field, value)


def _are_settings(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def help_of(settings: type[BaseModel], options: Mapping[str, Option], prog: str) -> str:
    """Every option with its description, and what it holds without a word."""
    alone = [f" {name.upper()}{' …' * (option.words[1] == MANY)}" for name, option in options.items() if name[0] != "-"]
    found = [f"usage: {prog}{''.join(alone)} [--OPTION VALUE …]\n\n{inspect.getdoc(settings)}\n"]
    width, indent = max(60, min(120, shutil.get_terminal_size().columns)), " " * 8
    for name, option in options.items():
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
