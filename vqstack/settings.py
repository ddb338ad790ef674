"""What all settings have in common, and what two of them have not."""

from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict

SHOWN = 8  # changes that one line names
Change = tuple[str, Any, Any]  # dotted name, old and new value


class Settings(BaseModel):
    """Settings: fixed once made; unknown names and numbers that are not finite are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        """Tell the fields in the docstring, so that ``help()`` starts with them."""
        super().__pydantic_init_subclass__(**options)
        fields = [f"    {name}: {field.description}" for name, field in cls.model_fields.items()]
        about = (cls.__doc__ or "").partition("\n\nFields:")[0].rstrip()
        cls.__doc__ = "\n".join([f"{about}\n", "Fields:", *fields])


def differences(before: Any, now: Any, name: str = "") -> Iterator[Change]:
    """(dotted name, old, new) of every value that differs; a value that is missing on one side is None there.

    Lists of settings are compared entry by entry, other lists are values.
    """
    if isinstance(before, list) and isinstance(now, list) and any(isinstance(one, dict) for one in before + now):
        before, now = ({str(i): value for i, value in enumerate(values)} for values in (before, now))
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*before, *now]):
            yield from differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif before != now:
        yield name, before, now


def told(changes: Iterable[Change]) -> str:
    """Changes as a line, the first eight of them, and of long values how they begin; empty without any."""
    lines = [f"{name}: {old!s:.200} → {new!s:.200}" for name, old, new in changes]
    more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return "; ".join(lines[:SHOWN]) + more
