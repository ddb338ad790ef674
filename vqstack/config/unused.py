"""What was given and is not used: refused, because whoever gave it expects something of it."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

from pydantic import BaseModel

from vqstack.errors import InputError
from vqstack.images import ImageSettings

AnySettings = TypeVar("AnySettings", bound=BaseModel)


@runtime_checkable
class SaysUnused(Protocol):
    """Settings that know which of their fields the others leave without use."""

    def unused(self) -> dict[str, str]:
        """Dotted name of each such field -> why, and what to do."""
        ...


def unused(settings: BaseModel) -> dict[str, str]:
    """Dotted name of each field that would be read by nothing -> why, and what to do; those of the images too."""
    found = settings.unused() if isinstance(settings, SaysUnused) else {}
    data = getattr(settings, "data", None)
    if isinstance(data, ImageSettings):
        found = {f"data.{name}": why for name, why in data.unused().items()} | found
    return found


def _at(settings: BaseModel, name: str) -> Any:
    value: Any = settings
    for part in name.split("."):
        value = value[min(int(part), len(value) - 1)] if part.isdigit() else getattr(value, part)
    return value


def check_used(settings: BaseModel, default: BaseModel, among: Mapping[str, Any] | None = None) -> None:
    """InputError for what is unused and is not what it would be without a word; ``among`` these fields, if given."""
    for name, why in unused(settings).items():
        if _at(settings, name) != _at(default, name) and (among is None or _holds(among, name.split("."))):
            raise InputError(f"{name}: {why}")


def _holds(values: Any, path: list[str]) -> bool:
    """Whether nested values have one of that dotted name; a mapping in the place of a list stands for every entry."""
    for part in path:
        if not isinstance(values, Mapping):
            return True  # a whole list, or settings
        if not part.isdigit():
            if part not in values:
                return False
            values = values[part]
    return True


def check_given(settings: BaseModel, given: Iterable[str]) -> None:
    """InputError for an option of the command line that is unused, whatever its value."""
    names = [option.removeprefix("--").replace("-", "_") for option in given]
    for name, why in unused(settings).items():
        for option in names:
            if f"{option}.".startswith(f"{name}."):
                raise InputError(f"--{option.replace('_', '-')}: {why}")


def without_unused(settings: AnySettings, default: AnySettings) -> AnySettings:
    """The settings with what is unused as it is without a word: earlier versions took it in silence."""
    changes: dict[str, Any] = {}
    for name in unused(settings):
        first, _, rest = name.partition(".")
        if not rest:
            changes[first] = getattr(default, first)
        elif first == "data":
            data = changes.get(first, getattr(settings, first))
            changes[first] = data.model_copy(update={rest: _at(default, name)})
    return settings.model_copy(update=changes)
