"""How a command ends when it cannot do what was asked: one line on standard error, and an exit code that says why.

| code | meaning |
|---|---|
| 0 | done |
| 2 | wrong input; nothing was written |
| 3 | training lost its numbers: too many steps in a row, or all evaluations of a phase, were not finite |
| 65 | some files were damaged or cut short; what could be had was written, and standard error says what is missing |
| 69 | another process of the same launch is gone; the same command goes on where it stopped |
| 74 | a file could not be written (full disk, read-only folder …); what was written before is intact |
| 75 | stopped by a signal; the same command goes on where it stopped |
| 141 | nobody reads standard output any more (`| head`); nothing is printed |
"""

import re
import reprlib
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any, ClassVar

from pydantic import ValidationError

from vqstack.terminal import plain

BROKEN_PIPE = 141
"""Exit code where nobody reads standard output any more: that of a program which SIGPIPE ends."""

PARTLY = 65
"""Exit code of a command that gave what could be had of damaged files."""


class CommandError(Exception):
    """What ends a command. The message is one line that names the cause and the remedy."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str) -> None:
        super().__init__(plain(" ".join(message.split())))


class InputError(CommandError):
    """Wrong input: the user asked for something that cannot be done. Nothing has been written."""

    exit_code = 2


def extra(module: str, missing: str) -> Any:
    """A module that an extra of the package brings; InputError, which says ``missing``, where it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(missing) from error


class DivergedError(CommandError):
    """Training lost its numbers; the last good checkpoint is kept."""

    exit_code = 3


class WriteError(CommandError):
    """A file could not be written; what was there before is intact."""

    exit_code = 74


class LostError(CommandError):
    """The connection to another process of the same launch broke; what was written before is intact."""

    exit_code = 69

    @classmethod
    def of(cls, error: RuntimeError) -> "LostError | None":
        """What an error says if it comes from the connection between processes; None for all others.

        torch has a type for what its own store and NCCL report (DistError); gloo's reports are known by their text.
        """
        from torch.distributed import DistError  # seconds, which a command that ends before it needs torch has not

        text = " ".join(str(error).split())
        if not isinstance(error, DistError) and "gloo/transport/" not in text:
            return None
        reason = re.sub(r"^.*\[[^\]]*gloo/transport/[^\]]*\] ", "", text).split(". ")[0][:200]
        return cls(
            f"the connection to another process of this launch broke ({reason}): see what the first one to end "
            "printed, then run the same command again to go on"
        )


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it was raised from, the first of all last: libraries wrap what happened."""
    at: BaseException | None = error
    while at is not None:
        yield at
        at = at.__cause__


def in_one_line(error: BaseException) -> str:
    """What an error says, in one line; of the system's errors the reason and the file."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename is not None else error.strerror
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if isinstance(error, LookupError) or not text else text


def reason(error: BaseException) -> str:
    """What happened, in the words of the first cause, which libraries wrap in errors that say less."""
    return in_one_line(list(causes(error))[-1])


class Stopped(BaseException):
    """A signal asked the command to leave. No Exception, so that nothing on the way takes it for an error."""

    exit_code: ClassVar[int] = 75


def listed(names: Iterable[str]) -> str:
    """Names in one line, the first ten of them."""
    names = list(names)
    return (", ".join(names[:10]) or "none") + (f" … ({len(names)})" if len(names) > 10 else "")


def explain(error: ValidationError, prefix: str = "") -> str:
    """The first problem of settings as ``FIELD: REASON: REMEDY``; ``prefix`` is where the settings stand."""
    first = error.errors()[0]
    field = ".".join([prefix] * bool(prefix) + [str(part) for part in first["loc"]])
    if first["type"] in ("value_error", "assertion_error"):  # ours; the library puts its own words in front
        reason = str(first["ctx"]["error"])
    elif first["type"] == "extra_forbidden":
        reason = "unknown field: see --help for the names"
    elif first["type"] == "missing":
        reason = "is missing: give it"
    else:
        wanted = first["msg"].replace("Input should", "it should").replace("Field required", "it must be given")
        reason = f"{reprlib.repr(first['input'])} does not fit: {wanted[0].lower()}{wanted[1:]}"
    return f"{field[:200]}: {reason}" if field else reason
