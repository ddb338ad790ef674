"""Output folders: finished and on the disk, or marked as unfinished; nothing of anybody else is touched."""

import multiprocessing
import os
import signal
import stat
from io import BytesIO

import pytest
from helpers import files_of, refused
from torture.disk import Disk, differing
from torture.disk import output as out

from vqstack.disk import LOCK, Lock
from vqstack.errors import InputError, WriteError
from vqstack.output import UNFINISHED, Output, check_folder, unfinished


def killed(folder, **files):
    """What a command leaves that was killed after it had written these files."""
    output = Output(folder, "generate", expected=[*files, "last.png"])
    for name, content in files.items():
        output.write(name, content)
    output._settle()
    output.lock.release()


@pytest.mark.parametrize("start", ["absent", "empty"])
def test_a_free_folder_is_claimed_and_released(tmp_path, start):
    folder = tmp_path / "a" / "b"
    if start == "empty":
        folder.mkdir(parents=True)
    output = Output(folder, "generate", expected=["a.png", "b.png"])
    assert {path.name for path in folder.iterdir()} == {UNFINISHED, LOCK}
    assert unfinished(folder).missing(folder) == ["a.png", "b.png"]
    output.write("a.png", b"x")
    output.finish()
    assert files_of(folder) == {"a.png": b"x"}
    assert unfinished(folder) is None


def die_with_a_folder(folder):
    output = Output(folder, "generate")  # noqa: F841  # held until the process ends
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_crash_leaves_no_lock(tmp_path):
    child = multiprocessing.get_context("fork").Process(target=die_with_a_folder, args=(tmp_path / "out",))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert (tmp_path / "out" / LOCK).exists()
    Output(tmp_path / "out", "generate").finish()
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_with_nothing_but_a_lock_is_free(tmp_path):
    Lock(tmp_path).release()  # of a command that was killed before it had marked the folder
    Output(tmp_path, "generate")


def test_own_unfinished_output_is_removed(tmp_path):
    killed(tmp_path, **{"1.png": b"x", "2.png": b"x", "cats/big/3.png": b"x"})
    for name in (".tmp", ".0", ".63"):  # what it was writing
        (tmp_path / f"{UNFINISHED}{name}").write_text("x")
    with (tmp_path / UNFINISHED).open("a") as file:
        file.write("half a li")
    (tmp_path / "2.png").unlink()
    again = Output(tmp_path, "generate")
    assert {path.name for path in tmp_path.iterdir()} == {UNFINISHED, LOCK}
    again.write("1.png", b"y")
    again.write("cats/3.png", b"z")
    again.finish()
    assert files_of(tmp_path) == {"1.png": b"y", "cats": None, "cats/3.png": b"z"}


@pytest.mark.parametrize("name", ["thesis.tex", "chapters", "last.png", "0.png", "link.png", "cats/mine.png"])
def test_what_others_put_into_unfinished_output_is_kept(tmp_path, name):
    """The command wrote 0.png: another file of that name is not its own, nor one that it was still going to write."""
    folder, elsewhere = tmp_path / "out", tmp_path / "elsewhere.png"
    elsewhere.write_bytes(b"x")
    killed(folder, **{"0.png": b"x", "link.png": b"x", "cats/1.png": b"x"})
    if name == "chapters":
        (folder / name).mkdir()
        (folder / name / "1.png").write_text("x")
    elif name == "link.png":
        (folder / name).unlink()
        (folder / name).symlink_to(elsewhere)
    else:
        (folder / name).write_text("the user's")
    before = files_of(tmp_path)
    refused(lambda: Output(folder, "generate"), str(folder / name), "did not write it")
    refused(lambda: check_folder(folder, "generate"), str(folder / name), "did not write it")
    assert files_of(tmp_path) == before


def test_a_file_that_appears_meanwhile_is_kept(tmp_path):
    output = Output(tmp_path, "generate")
    (tmp_path / "a.png").write_bytes(b"the user's")
    output.write("a.png", b"x")
    with pytest.raises(WriteError, match=r"a\.png was put there meanwhile"):
        output.finish()
    assert (tmp_path / "a.png").read_bytes() == b"the user's"


def test_the_files_of_another_command_at_the_same_path_are_left_alone(tmp_path):
    folder = tmp_path / "out"
    output = Output(folder, "generate")
    output.write("a.png", b"x")
    folder.rename(tmp_path / "moved")
    folder.mkdir()
    (folder / f"{UNFINISHED}.0").write_bytes(b"what the other is writing")
    with pytest.raises(WriteError, match="no longer the folder"):
        output.finish()
    assert files_of(folder) == {f"{UNFINISHED}.0": b"what the other is writing"}


@pytest.mark.parametrize("mark", [b"generate\n\n{}\n", b"generate\n\n[3]\n", b"\xff\n", b"generate\n\n[\n"])
def test_a_mark_that_nobody_wrote_is_refused(tmp_path, mark):
    (tmp_path / UNFINISHED).write_bytes(mark)
    refused(lambda: Output(tmp_path, "generate"), UNFINISHED)


@pytest.mark.parametrize("start", ["foreign", "finished", "file", "other", "below a file"])
def test_a_used_folder_is_refused_and_nothing_is_touched(tmp_path, start):
    folder = tmp_path / "out"
    if start == "foreign":
        folder.mkdir()
        (folder / "thesis.tex").write_text("x")
    elif start in ("finished", "other"):
        output = Output(folder, "generate" if start == "finished" else "encode")
        (folder / "file").write_text("x")
        if start == "finished":
            output.finish()
        output.lock.release()
    else:
        folder.write_text("x")
    before = files_of(tmp_path)
    target = folder / "deeper" if start == "below a file" else folder
    refused(lambda: Output(target, "generate"), str(target))
    assert files_of(tmp_path) == before


def test_what_is_marked_finished_is_on_the_disk(tmp_path, monkeypatch):
    """At every instant the mark is there, or every byte and every name has been forced to the disk."""
    synced, fsync = set(), os.fsync

    def noted(descriptor):
        fsync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", noted)
    output = Output(tmp_path / "a" / "b", "generate")
    for number in range(130):
        output.write(f"{number}.png", b"%d" % number)
    output._settle()
    synced.discard((tmp_path / "a" / "b").stat().st_ino)
    output.finish()
    paths = [tmp_path, *tmp_path.rglob("*")]
    assert len(paths) == 133
    assert all(path.stat().st_ino in synced for path in paths)


@pytest.mark.parametrize("forgotten", ["", "files", "folders"])
def test_a_power_cut_is_seen_by_what_is_not_forced_to_the_disk(tmp_path, monkeypatch, forgotten):
    """The law of the torture holds for an output, and fails for one that leaves out a kind of fsync."""
    with Disk(tmp_path) as disk, monkeypatch.context() as patch:
        force = os.fsync

        def forgetful(descriptor):
            if stat.S_ISDIR(os.fstat(descriptor).st_mode) != (forgotten == "folders") or not forgotten:
                force(descriptor)

        patch.setattr(os, "fsync", forgetful)
        output = Output(tmp_path / "out", "generate")
        for number in range(12):
            output.write(f"{number}.png", b"%d" % number)
        output.finish()
        last, written = disk.now(), disk.written()
    wrong = [found for tree in disk.cuts for found in out(tree, written)]
    wrong += [name for tree in last for name in differing(tree, written)]
    assert len(written) == 12
    assert bool(wrong) == bool(forgotten), wrong


def test_a_stream_becomes_a_file_as_bytes_do(tmp_path):
    """What its reader gives is on the disk, recorded by checksum, and a rerun knows it as its own."""
    content, output = bytes(range(256)) * 9_000, Output(tmp_path / "out", "generate")
    output.write("one", content)
    output.write("two", BytesIO(content))
    output._settle()
    output.lock.release()
    assert (tmp_path / "out/one").read_bytes() == (tmp_path / "out/two").read_bytes() == content
    check_folder(tmp_path / "out", "generate")
    (tmp_path / "out/two").write_bytes(content[:-1])
    with pytest.raises(InputError, match="two: lies in unfinished output"):
        check_folder(tmp_path / "out", "generate")
