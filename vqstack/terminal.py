"""What reaches the terminal: the one place that prints, and it escapes.

Names, headers and keys come from files, and files from strangers. An escape sequence would recolour or overwrite the
terminal, a direction mark turn a name around, a newline forge a second message, half a surrogate end the command.
"""

import io
import logging
import sys
import time
import traceback
import warnings
from types import TracebackType
from typing import Any

from tqdm import tqdm


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


class Progress(tqdm):
    """How far something is: a bar on a terminal and in a notebook, elsewhere plain lines twice a minute.

    Arguments are those of tqdm; ``disable`` silences both.
    """

    FIRST, EVERY = 4.0, 30.0  # seconds from the start to the first line, and between lines at most (or one step)

    def __init__(self, *args: Any, disable: bool | None = False, **options: Any) -> None:
        self._plain = not (sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel."))
        if self._plain:
            options |= {"mininterval": 0, "miniters": 1}  # asked at every step, which display() looks at by itself
        self._due = time.monotonic() + self.FIRST
        super().__init__(*args, disable=bool(disable), **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if not self._plain:
            return bool(super().display(msg, pos))
        if time.monotonic() >= self._due:
            print(plain(self.format_meter(**{**self.format_dict, "ncols": 0})), file=sys.stderr, flush=True)
            self._due = time.monotonic() + self.EVERY
        return True

    def close(self) -> None:
        if self._plain:
            self.disable = True  # a line that was printed is not cleared
        super().close()


class _Plain(logging.LogRecord):
    """A line of a log, escaped before any handler sees it: libraries bring handlers of their own."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.exc_info:
            self.exc_text = lines("".join(traceback.format_exception(*self.exc_info)).rstrip())

    def getMessage(self) -> str:
        return plain(super().getMessage())


def escape_what_others_print() -> None:
    """From now on log lines, warnings and tracebacks are escaped, too.

    Characters that the terminal's encoding lacks are escaped as well, where they ended the command.
    """

    def excepthook(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
        print(lines("".join(traceback.format_exception(kind, error, where)).rstrip()), file=sys.stderr)

    def showwarning(message: Any, kind: type[Warning], file: str, line: int, *_: Any) -> None:
        print(lines(warnings.formatwarning(message, kind, file, line).rstrip()), file=sys.stderr)

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.setLogRecordFactory(_Plain)
    sys.excepthook = excepthook
    warnings.showwarning = showwarning  # type: ignore[assignment]  # a file and a line of it are never given
