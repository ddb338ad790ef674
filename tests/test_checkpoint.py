"""Files that are whole or not there: checkpoints, their rotation and damage, the lock."""

import errno
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from vqstack import signals
from vqstack.checkpoint import FORMAT_VERSION, Checkpoints
from vqstack.disk import LOCK, Lock, check_ours, check_unlocked, sealed, write_atomically
from vqstack.errors import InputError, Stopped, WriteError
from vqstack.fit import write_outcome


def state(step):
    return {"step": step, "weights": torch.full((1000,), float(step))}


def written(folder, nats, keep=2):
    """Checkpoints of steps 1, 2, …, with these validation nats."""
    store = Checkpoints(folder / "checkpoints", keep)
    for step, value in enumerate(nats, start=1):
        store.write(step, state(step), value)
    return store


def steps(store):
    return [checkpoint.step for checkpoint in store.intact()]


def flip(path, place=-10):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_what_is_written_is_read(tmp_path):
    store = written(tmp_path, [3.0, None])
    first, second = store.intact()
    assert (first.score, second.score) == (3.0, None)
    assert torch.equal(second.read()["weights"], state(2)["weights"])
    assert second.read()["step"] == 2
    assert sorted(path.name for path in store.folder.iterdir()) == ["step-0000001", "step-0000002"]


@pytest.mark.parametrize(
    ("nats", "keep", "left"),
    [
        ([5.0, 4.0, 3.0, 2.0], 2, [3, 4]),
        ([1.0, 4.0, 3.0, 2.0], 2, [1, 3, 4]),  # the best is kept besides the newest
        ([5.0, 1.0, None, None], 1, [2, 4]),
        ([None, None, None, None], 3, [2, 3, 4]),
    ],
)
def test_rotation(tmp_path, nats, keep, left):
    assert steps(written(tmp_path, nats, keep)) == left


@pytest.mark.parametrize("file", ["state.pt", "mark"])
@pytest.mark.parametrize("how", ["flipped", "truncated", "missing"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path, capsys, file, how):
    store = written(tmp_path, [2.0, 1.0])
    path = store.folder / "step-0000002" / file
    if how == "flipped":
        flip(path)
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-7])
    else:
        path.unlink()
    assert steps(store) == [1]
    err = capsys.readouterr().err
    if (file, how) == ("mark", "missing"):  # that is what an unfinished one looks like
        assert err == ""
        assert not path.parent.exists()
    else:
        assert f"{path.parent} is damaged" in err
        assert err.count("\n") == 1
        assert (store.folder / "damaged-step-0000002").is_dir()
    assert steps(store) == [1]  # and nothing is said twice
    assert capsys.readouterr().err == ""


def test_the_first_format_is_read(tmp_path):
    store = written(tmp_path, [1.0, 2.0])
    mark = store.folder / "step-0000001" / "mark"
    content = json.loads(mark.read_text().splitlines()[0])
    nats = content.pop("score")
    mark.write_text(sealed({**content, "format_version": 1, "nats": nats}))
    assert [one.score for one in store.intact()] == [1.0, 2.0]


def test_a_newer_format_is_refused(tmp_path):
    store = written(tmp_path, [1.0])
    mark = store.folder / "step-0000001" / "mark"
    content = json.loads(mark.read_text().splitlines()[0])
    mark.write_text(sealed({**content, "format_version": FORMAT_VERSION + 1, "new": True}))
    with pytest.raises(InputError, match=f"format version {FORMAT_VERSION + 1}"):
        store.intact()
    assert mark.exists()


class Dies(BaseException):
    """A kill, at a file operation."""


@pytest.mark.parametrize("operation", ["fsync", "rename", "mkdir", "write"])
def test_a_write_that_fails_leaves_the_one_before(tmp_path, monkeypatch, operation):
    store = written(tmp_path, [1.0])

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    if operation == "write":
        monkeypatch.setattr("vqstack.checkpoint._Hashed.write", full)
    elif operation == "mkdir":
        monkeypatch.setattr("pathlib.Path.mkdir", full)
    else:
        monkeypatch.setattr(os, operation, full)
    with pytest.raises(WriteError, match="No space left on device") as caught:
        store.write(2, state(2), 0.5)
    assert ("checkpoints" if operation == "mkdir" else "step-0000002") in str(caught.value)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert steps(store) == [1]
    assert [path.name for path in store.folder.iterdir()] == ["step-0000001"]


@pytest.mark.parametrize("operation", ["fsync", "rename"])
def test_killed_while_writing(tmp_path, monkeypatch, operation):
    store, real, calls = written(tmp_path, [1.0]), getattr(os, operation), []

    def die(*arguments, **options):
        calls.append(arguments)
        raise Dies

    monkeypatch.setattr(os, operation, die)
    with pytest.raises(Dies):
        store.write(2, state(2), 0.5)
    monkeypatch.setattr(os, operation, real)
    assert calls
    assert steps(store) == [1]
    store.write(2, state(2), 0.5)
    assert steps(store) == [1, 2]


def test_a_file_is_whole_or_as_before(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, lambda aside: aside.write_text("one"))

    def half(aside):
        aside.write_text("tw")
        raise OSError(errno.EFBIG, "File too large")

    with pytest.raises(WriteError, match="File too large"):
        write_atomically(path, half)
    assert path.read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


FORK = multiprocessing.get_context("fork")


def hold(folder, held):
    lock = Lock(folder)  # noqa: F841  # held until the process ends
    held.set()
    time.sleep(60)


def test_the_lock_ends_with_its_process(tmp_path):
    held = FORK.Event()
    holder = FORK.Process(target=hold, args=(tmp_path, held))
    holder.start()
    try:
        assert held.wait(60)
        for take in (check_unlocked, lambda folder: Lock(folder, patience=0.0)):
            with pytest.raises(InputError, match="another process is writing"):
                take(tmp_path)
    finally:
        holder.kill()
        holder.join()
    check_unlocked(tmp_path)
    Lock(tmp_path, patience=0.0).release()
    Lock(tmp_path, patience=0.0).release()  # given back, it can be taken again


def test_a_forked_child_does_not_hold_the_lock(tmp_path):
    lock = Lock(tmp_path)
    child = FORK.Process(target=time.sleep, args=(60,))
    child.start()
    try:
        time.sleep(0.2)
        with pytest.raises(InputError, match="another process is writing"):
            check_unlocked(tmp_path)  # the child that let go has not taken it from its parent
        lock.release()
        Lock(tmp_path, patience=0.0).release()
    finally:
        child.kill()
        child.join()


@pytest.mark.parametrize("after", ["another run", "another folder", "nothing", "no lock"])
def test_a_folder_that_is_another_one_by_now_is_not_written_into(tmp_path, after):
    """The folder of a living run is renamed, and another one starts at its path."""
    run, moved = tmp_path / "run", tmp_path / "moved"
    run.mkdir()
    lock = Lock(run)
    write_atomically(run / "file", lambda aside: aside.write_text("whole"))
    run.rename(moved) if after != "no lock" else (run / LOCK).unlink()
    if after.startswith("another"):
        run.mkdir()
    other = Lock(run) if after == "another run" else None
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for write in (
        lambda: write_atomically(run / "file", lambda aside: aside.write_text("of the first")),
        lambda: Checkpoints(run / "phases" / "checkpoints", 1).write(3, {"step": 3}),
        lambda: check_ours(run / "metrics.jsonl"),
    ):
        with pytest.raises(WriteError, match="no longer the folder"):
            write()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    lock.release()
    if other is not None:
        write_atomically(run / "file", lambda aside: aside.write_text("of the second"))


def test_a_folder_that_becomes_another_one_while_a_file_is_written(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    lock = Lock(run)

    def slow(aside):
        aside.write_text("of the first")
        run.rename(tmp_path / "moved")
        run.mkdir()
        aside.write_text("of the second, under the same name")

    with pytest.raises(WriteError, match="no longer the folder"):
        write_atomically(run / "file", slow)
    assert not (run / "file").exists()
    lock.release()


def test_a_lock_reached_by_another_name_is_still_ours(tmp_path, monkeypatch):
    """A relative path, and a link to the folder."""
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    monkeypatch.chdir(tmp_path)
    locks = [Lock(Path("run"))]
    for name in ("run", "link"):
        write_atomically(Path(name) / "file", lambda aside: aside.write_text("whole"))
    locks.pop().release()
    locks.append(Lock(Path("link")))
    write_atomically(Path("link") / "file", lambda aside: aside.write_text("whole"))


def test_looking_does_not_lock(tmp_path):
    check_unlocked(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_signal_leaves_at_once_or_is_noted(number):
    with signals.stopping("to go on"):
        with pytest.raises(Stopped, match="obeyed"), signals.noted() as received:
            signal.raise_signal(number)
            assert received == [number]
            raise Stopped("obeyed")
        with pytest.raises(Stopped, match=f"{signal.Signals(number).name}; run the same command again to go on"):
            signal.raise_signal(number)
    with signals.stopping(""), pytest.raises(Stopped, match=signal.Signals(number).name), signals.noted():
        signal.raise_signal(number)  # nobody obeys: sent again at the end
    assert {signal.getsignal(number) for number in signals.SIGNALS} == {signal.SIG_IGN}  # the command is over


# Each case in a process of its own: several signals at once while it works, while it tidies up, and after its end.
SALVOS = """
import atexit, os, sys
from vqstack import signals
from vqstack.ending import run_command

def salvo():
    for number in 3 * signals.SIGNALS:
        os.kill(os.getpid(), number)

def working(arguments):
    atexit.register(salvo)
    try:
        salvo()
    finally:
        salvo()

def noted(arguments):
    with signals.noted():
        salvo()

def over(arguments):
    atexit.register(salvo)

for case in (working, noted, over):
    if (child := os.fork()) == 0:
        run_command(case)
        sys.exit()
    print(case.__name__, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=sys.stderr)
"""


def test_several_signals_in_quick_succession_are_one():
    command = [sys.executable, "-c", SALVOS]
    err = subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stderr.splitlines()
    stopped = [line for line in err if line.startswith("stopped by ") and line.endswith("to go on")]
    assert [line for line in err if line not in stopped] == ["working 75", "noted 75", "over 0"]
    assert len(stopped) == 2


def test_a_signal_that_was_swallowed_is_not_the_last_to_be_heard(monkeypatch):
    with signals.stopping(""):
        for now in (100.0, 100.0 + signals.GRACE):
            monkeypatch.setattr("time.monotonic", lambda now=now: now)
            with pytest.raises(Stopped):
                signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)  # at once: what tidies up is left alone


def test_a_worker_whose_system_names_no_sender_obeys_every_signal(monkeypatch):
    monkeypatch.delattr(signal, "sigwaitinfo")
    with signals.blocked():  # as when workers are started
        assert set(signals.SIGNALS) <= signal.pthread_sigmask(signal.SIG_BLOCK, [])
        signals.of_parent(0)
        assert not set(signals.SIGNALS) & signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_weights_of_a_phase_that_do_not_fit_the_disk(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))  # the signal is ignored, the write fails in the middle
    try:
        with pytest.raises(WriteError, match="best.pt cannot be written .File too large"):
            write_outcome(tmp_path, {"weights": torch.zeros(5000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
