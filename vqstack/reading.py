"""Reading what may be a stranger's: only plain files, up to a limit, and text that can mean one thing only.

YAML is read as JSON in another dress. Anchors, merge keys and tags are refused, because a few of them unfold to
gigabytes. A number that JSON would not take (``010``, ``1:30:00``, ``1_000``, ``.inf``) is refused, because readers
differ in what it means; ``yes`` and ``no`` are text. A key that stands twice is refused in both.
"""

import json
import math
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import yaml

from vqstack.errors import InputError

MAX_YAML = 2**17  # bytes; that of digits has 4,000, each further level 1,300


Named = TypeVar("Named", Path, str)


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Around what only reads: an error of the system is wrong input, told with its file and its reason."""
    try:
        yield
    except OSError as error:
        why = f"{error.filename or path}: cannot be read ({error.strerror or error})"
        raise InputError(f"{why}: mend it, or name another one") from error


def plain_file(path: Named) -> Named:
    """The path; InputError where a pipe, a socket or a device stands in a file's place: opening one may wait for ever.

    Whatever is read goes through here first. What is missing, and folders, are left to whoever opens them.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return path
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        kind = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}.get(stat.S_IFMT(mode), "a device")
        raise InputError(f"{path} is {kind}, no file: put a file in its place, or remove it")
    return path


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A plain file to be read; errors of the system name it, also where a read fails that had opened it (EIO)."""
    try:
        with plain_file(path).open("rb") as file:
            yield file
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a plain file. ValueError if it is longer than ``limit`` bytes."""
    with opened(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"longer than {limit} bytes")
    return content


def read_json(path: Path, limit: int) -> Any:
    """JSON of at most ``limit`` bytes. ValueError where it is longer, repeats a key, or has an infinite number."""
    text = read_bytes(path, limit).decode("utf-8")
    return json.loads(text, parse_constant=_finite, parse_float=_finite, object_pairs_hook=_once)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no finite number")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)[:80]} stands twice")
    return found


def read_yaml_values(path: Path) -> Any:
    """What a YAML file holds, None where it is empty. OSError, or ValueError that says what is wrong and where."""
    text = read_bytes(path, MAX_YAML).decode("utf-8")
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except RecursionError as error:
        raise ValueError("its lists are nested too deeply") from error


class _Loader(yaml.SafeLoader):
    """See the top of this file."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  # as the base class has it

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise _problem("anchors and aliases (&, *) are not read: write the values out", event)
        if event.tag is not None:
            raise _problem("tags (!) are not read: leave it out", event)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        found: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _problem("a key must be text", key)
            if key.value in found:
                raise _problem(f"{key.value[:80]} stands twice", key)
            found[key.value] = self.construct_object(value, deep=deep)
        return found

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        try:
            return _finite(node.value)
        except ValueError as error:
            raise _problem(str(error), node) from error

    def construct_unclear(self, node: yaml.ScalarNode) -> None:
        raise _problem(f"{node.value[:40]} is no number as JSON has them: write its digits, or text in quotes", node)


def _problem(problem: str, where: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, where.start_mark)


class _Dumper(yaml.SafeDumper):
    """Quotes also what only this reader takes for a number."""


def to_yaml_text(values: Any) -> str:
    """YAML that reads back as it was, here and elsewhere."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)


_DIGITS, _INTEGER = list("-0123456789"), r"-?(0|[1-9][0-9]{0,39})"
for _tag, _pattern, _first in (
    ("null", r"|~|null|Null|NULL", ["", "~", "n", "N"]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", _INTEGER, _DIGITS),
    ("float", rf"{_INTEGER}(\.[0-9]+)?([eE][-+]?[0-9]+)?", _DIGITS),
    ("unclear", r"[-+]?[0-9_]+", ["+", *_DIGITS]),  # 08, too, which YAML has as text
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first)
for _sign, _resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items():  # what else YAML itself takes for a number
    for _tag, _regexp in _resolvers:
        if _tag.endswith((":int", ":float")):
            _Loader.add_implicit_resolver("tag:yaml.org,2002:unclear", _regexp, [_sign])
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)
_Loader.add_constructor("tag:yaml.org,2002:unclear", _Loader.construct_unclear)
