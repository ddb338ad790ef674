"""How commands end: what ends one early is one line on standard error and an exit code."""

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from vqstack import signals
from vqstack.errors import BROKEN_PIPE, CommandError, LostError, Stopped
from vqstack.terminal import escape_what_others_print, plain


def run_command(main: Callable[[list[str]], None], again: str = "to go on") -> None:
    """Run a command on ``sys.argv``; what ends it early is one line on standard error and an exit code (errors.py).

    ``again`` is what running it once more does after a signal.
    """
    escape_what_others_print()
    try:
        with signals.stopping(again):
            main(sys.argv[1:])
            sys.stdout.flush()
            _part()
    except CommandError as error:
        _leave(f"error: {error}", error.exit_code)
    except Stopped as stop:
        _leave(f"stopped {stop}", stop.exit_code)
    except (OSError, RuntimeError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            sys.exit(BROKEN_PIPE)
        ending = _ending(error)
        if ending is None:
            raise
        _leave(f"error: {ending}", ending.exit_code)


def _part() -> None:
    """Take leave of the other processes of a launch: their threads, still running, could end this one with an abort."""
    distributed = sys.modules.get("torch.distributed")  # without torch nobody was met
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _nobody_reads() -> bool:
    """Whether standard output is a pipe that was closed; if so, what is still to be printed is dropped."""
    try:
        print(flush=True)  # what failed is dropped already, so that flushing alone would tell nothing
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _leave(line: str, code: int) -> NoReturn:
    try:
        print(plain(line), file=sys.stderr, flush=True)
    except OSError:  # a log on the disk that is full: the exit code says it still, and nothing waits to be written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    sys.exit(code)


def _ending(error: OSError | RuntimeError) -> CommandError | None:
    """How an error from below ends a command; None for one that only a traceback explains."""
    if isinstance(error, RuntimeError):
        return LostError.of(error)
    from vqstack.disk import told_apart  # imports torch, which takes seconds

    return told_apart(error)
