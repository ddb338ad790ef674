"""What was given and is not used: refused, because whoever gave it expects something of it."""

from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any, Protocol, TypeVar, runtime_checkable

from pydantic import BaseModel

from vqstack.errors import InputError

AnySettings = TypeVar("AnySettings", bound=BaseModel)


@runtime_checkable
class SaysUnused(Protocol):
    """Settings that know which of their fields the others leave without use."""

    def unused(self) -> dict[str, str]:
        """Dotted name of each such field -> why, and what to do."""
        ...


def unused(settings: BaseModel) -> dict[str, str]:
    """Dotted name of each field that would be read by nothing -> why, and what to do; of settings inside, too."""
    found: dict[str, str] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        entries = {f"{name}.{i}": one for i, one in enumerate(value)} if isinstance(value, tuple) else {name: value}
        for place, inside in entries.items():
            if isinstance(inside, BaseModel):
                found |= {f"{place}.{field}": why for field, why in unused(inside).items()}
    return found | (settings.unused() if isinstance(settings, SaysUnused) else {})


def _entry(settings: Any, part: str) -> Any:
    """A field, or an entry of a list, the last one where an unused list has been left out and is shorter."""
    return settings[min(int(part), len(settings) - 1)] if part.isdigit() else getattr(settings, part)


def _at(settings: BaseModel, name: str) -> tuple[Any, Any]:
    """What a field holds, and what it would hold without a word."""
    *path, last = name.split(".")
    owner: Any = reduce(_entry, path, settings)
    return getattr(owner, last), type(owner).model_fields[last].get_default(call_default_factory=True)


def check_used(settings: BaseModel, among: Mapping[str, Any] | None = None) -> None:
    """InputError for what is unused and is not what it would be without a word.

    Args:
        settings: all of them.
        among: nested values, to look at these fields alone. A mapping in the place of a list stands for every entry,
            of which one must read what it says.
    """
    found = unused(settings)
    for name, why in found.items():
        now, default = _at(settings, name)
        if now == default:
            continue
        held, for_all = (True, False) if among is None else _holds(among, name.split("."))
        if held and not (for_all and any(other not in found for other in _in_every_entry(settings, name.split(".")))):
            raise InputError(f"{name}: {why}")


def _holds(values: Any, path: list[str]) -> tuple[bool, bool]:
    """Whether nested values have one of that dotted name, and whether as one for every entry of a list."""
    for_all = False
    for part in path:
        if not isinstance(values, Mapping):
            break  # a whole list, or settings
        if part.isdigit():
            for_all = True
        elif part not in values:
            return False, for_all
        else:
            values = values[part]
    return True, for_all


def _in_every_entry(settings: Any, path: list[str]) -> list[str]:
    """Dotted names of the field at a path in each entry of the list on its way."""
    place = next(i for i, part in enumerate(path) if part.isdigit())
    entries = reduce(_entry, path[:place], settings)
    return [".".join([*path[:place], str(i), *path[place + 1 :]]) for i in range(len(entries))]


def check_given(settings: BaseModel, given: Iterable[str]) -> None:
    """InputError for an option of the command line that is unused, whatever its value."""
    names = [option.removeprefix("--").replace("-", "_") for option in given]
    for name, why in unused(settings).items():
        for option in names:
            if f"{option}.".startswith(f"{name}."):
                raise InputError(f"--{option.replace('_', '-')}: {why}")


def without_unused(settings: AnySettings) -> AnySettings:
    """The settings with what is unused as it is without a word: earlier versions took it in silence."""
    for name in unused(settings):
        settings = _with(settings, name.split("."), _at(settings, name)[1])
    return settings


def _with(settings: Any, path: list[str], value: Any) -> Any:
    """Settings, or a list of them, with another value at a path."""
    if not path:
        return value
    inside = _with(_entry(settings, path[0]), path[1:], value)
    if isinstance(settings, tuple):
        place = min(int(path[0]), len(settings) - 1)
        return (*settings[:place], inside, *settings[place + 1 :])
    return settings.model_copy(update={path[0]: inside})
