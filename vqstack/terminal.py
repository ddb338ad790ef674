"""What reaches the terminal: the one place that prints, and it escapes.

Names, headers and keys come from files, and files from strangers. An escape sequence would recolour or overwrite the
terminal, a direction mark turn a name around, a newline forge a second message, half a surrogate end the command.
"""

import io
import logging
import sys
import traceback
import warnings
from types import TracebackType
from typing import Any


def plain(text: object) -> str:
    """One line: everything but printable characters and the space is written as Python escapes it (``\\x1b``)."""
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in shown)


def lines(text: object) -> str:
    """The same for a table or a text of several lines, which stay lines."""
    return "\n".join(map(plain, str(text).split("\n")))


def say(text: object) -> None:
    """Print to standard output, escaped; several lines stay lines."""
    print(lines(text))


def warn(text: object) -> None:
    """Print one line that begins with ``warning:`` to standard error, escaped."""
    print(f"warning: {plain(text)}", file=sys.stderr)


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))


def escape_what_others_print() -> None:
    """From now on log lines without a handler, warnings and tracebacks are escaped, too.

    Characters that the terminal's encoding lacks are escaped as well, where they ended the command.
    """

    def excepthook(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
        print(lines("".join(traceback.format_exception(kind, error, where)).rstrip()), file=sys.stderr)

    def showwarning(message: Any, kind: type[Warning], file: str, line: int, *_: Any) -> None:
        print(lines(warnings.formatwarning(message, kind, file, line).rstrip()), file=sys.stderr)

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Plain())
    sys.excepthook = excepthook
    warnings.showwarning = showwarning  # type: ignore[assignment]  # a file and a line of it are never given
