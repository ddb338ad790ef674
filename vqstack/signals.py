"""Leaving when asked: SIGTERM, SIGINT and SIGUSR1, which schedulers send before they take a machine away."""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from vqstack.errors import Stopped

GRACE = 1.0  # seconds after a signal in which others change nothing: what is being tidied up is not interrupted
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None], afterwards: Any = None) -> Iterator[None]:
    """Signals go to ``handler`` inside, then to ``afterwards`` or as before; only the main thread may handle them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old if afterwards is None else afterwards)


@contextmanager
def blocked() -> Iterator[None]:
    """The signals wait until the end; a process forked inside has them blocked for good (see :func:`of_parent`)."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def of_parent(worker: int) -> None:
    """In a worker process: a signal from the parent ends it, one to the whole group is the parent's to decide about.

    Where the system does not say who sends (macOS), every signal ends it.
    """
    if not hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return

    def wait() -> None:
        while signal.sigwaitinfo(SIGNALS).si_pid != parent:
            pass
        os._exit(0)

    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=wait, daemon=True).start()


def leave_at_once(again: str) -> None:
    """From now on a signal ends the process with one line and the code of :class:`Stopped`, for as long as it imports.

    An exception in the middle of an import would be taken for one of the library's, and half a library be left.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        os.write(2, f"stopped by {signal.Signals(number).name}; run the same command again {again}\n".encode())
        os._exit(Stopped.exit_code)

    for number in SIGNALS:
        signal.signal(number, leave)


@contextmanager
def stopping(again: str) -> Iterator[None]:
    """A signal leaves at once, with :class:`Stopped`, which says what running the command ``again`` does.

    Afterwards signals are ignored: the command is over, and its exit code shall say how it ended.
    """
    deaf_until = 0.0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal deaf_until
        now = time.monotonic()
        if now >= deaf_until:
            deaf_until = now + GRACE
            raise Stopped(f"by {signal.Signals(number).name}; run the same command again {again}")

    with _handled(stop, afterwards=signal.SIG_IGN):
        yield
        deaf_until = math.inf  # it has ended by itself


@contextmanager
def noted() -> Iterator[list[int]]:
    """A signal is put on the list, for the caller to obey when it can; one that nobody obeyed is sent again at the end.

    An exception counts as obeying: the caller is leaving.
    """
    received: list[int] = []
    with _handled(lambda number, frame: received.append(number)):
        yield received
    if received:
        signal.raise_signal(received[0])
