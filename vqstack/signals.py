"""Leaving when asked: SIGTERM, SIGINT and SIGUSR1, which schedulers send before they take a machine away."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from vqstack.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Signals go to ``handler`` inside; outside the main thread, which alone may handle them, nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


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


@contextmanager
def stopping(again: str) -> Iterator[None]:
    """A signal leaves at once, with :class:`Stopped`, which says what running the command ``again`` does."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(f"by {signal.Signals(number).name}; run the same command again {again}")

    with _handled(stop):
        yield


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
