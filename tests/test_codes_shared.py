"""Codes that many hosts write together: the bytes of one that wrote alone, whoever is lost, late or slow."""

import errno
import threading
import time
from itertools import count

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from helpers import TINY, files_of, refused, trained
from test_codes import SHAPES, SIZES, fill, part, random_images, writer_of

from vqstack.codes import CodeDataset, Contents, SharedWriter
from vqstack.codes.store import ASIDE
from vqstack.commands import encode
from vqstack.errors import WriteError
from vqstack.library import recipe

NUMBERS = count()


@pytest.fixture(params=["folder", "store"])
def address(request, tmp_path, monkeypatch):
    """A folder, or an object store: a dictionary, which fails while it is listed when another thread removes a file."""
    listed = MemoryFileSystem.ls

    def ls(self, *args, **options):
        while True:
            try:
                return listed(self, *args, **options)
            except KeyError:
                continue

    monkeypatch.setattr(MemoryFileSystem, "ls", ls)
    return str(tmp_path / "out") if request.param == "folder" else f"memory://shared-{next(NUMBERS)}/out"


@pytest.fixture
def images():
    return {"train": random_images(23), "test": random_images(5)}


def shared(address, images, lease=60.0, model="", **changes):
    contents = Contents(
        map_shapes=[list(shape) for shape in SHAPES],
        vocabularies=SIZES,
        fingerprint="abc",
        source={"name": "toy"},
        labelled=True,
        model=model,
    )
    counts = {split: len(stored.index) for split, stored in images.items()}
    return SharedWriter(address, contents, counts, shard_size=4, lease=lease, **changes)


def encoder(images, taken=None):
    """Shards cut out of images; keeps which were asked for."""

    def encoded(shard):
        if taken is not None:
            taken.append(shard.file)
        yield part(images[shard.split], shard.start, shard.start + shard.rows)

    return encoded


def there(address):
    """Every file at an address, by its name below it."""
    files, root = fsspec.core.url_to_fs(address)
    return {path.removeprefix(root).strip("/"): files.cat_file(path) for path in files.find(root)}


@pytest.fixture
def alone(images, tmp_path):
    """What one command writes that shares with nobody."""
    fill(writer_of(tmp_path / "alone", images), images)
    return {name: content for name, content in files_of(tmp_path / "alone").items() if content is not None}


def test_many_end_with_the_bytes_of_one(address, images, alone):
    written = []

    def work():
        written.extend(shared(address, images).work(encoder(images)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert there(address) == alone
    assert {shard.file for shard in written} == {shard.file for shard in shared(address, images).shards}


def test_the_shard_of_a_lost_host_is_taken_over_and_that_of_a_living_one_is_not(address, images, alone):
    lost, slow, quick = (shared(address, images, lease=1.5) for _ in range(3))
    gone = lost._take(lost.shards, set())  # and then the host is lost
    assert gone is not None
    lost.store.write(f"data/{gone.file}.0{ASIDE}", b"half of it")
    holding, taken = threading.Event(), []

    def slowly(shard):
        if not holding.is_set():
            held.append(shard.file)
            holding.set()
            time.sleep(4)  # more than two leases, in which its claim is renewed
        yield from encoder(images, taken)(shard)

    held: list[str] = []
    thread = threading.Thread(target=lambda: list(slow.work(slowly)))
    thread.start()
    assert holding.wait(10)
    mine = [shard.file for shard in quick.work(encoder(images, taken))]
    thread.join()
    assert there(address) == alone
    assert held[0] != gone.file and held[0] not in mine
    assert sorted(taken) == sorted(shard.file for shard in quick.shards)  # each once


def test_who_was_taken_for_lost_leaves_nothing_behind(address, images, alone):
    """While one encodes its first shard, and does not show it for a long time, another does all the work."""
    slow, quick = shared(address, images, lease=1000.0), shared(address, images, lease=0.05)

    def late(shard):
        assert len(list(quick.work(encoder(images)))) == len(quick.shards)
        yield from encoder(images)(shard)

    assert list(slow.work(late)) == []
    assert there(address) == alone


def test_who_comes_late_finds_it_finished(address, images, alone):
    assert len(list(shared(address, images).work(encoder(images)))) == 8
    assert list(shared(address, images).work(encoder(images))) == []
    assert there(address) == alone
    refused(lambda: shared(address, {"train": random_images(3)}), "is not empty")


def test_a_read_that_fails_is_not_taken_for_a_file_that_is_gone(address, images, alone, monkeypatch):
    """A missing mark would mean that others have finished, and a host with other settings would join where it fails."""
    writer = shared(address, images)
    files, read = type(writer.store._files), type(writer.store._files).cat_file

    def failing(self, path, *given, **options):
        if path.endswith(".vqstack-unfinished"):
            raise OSError(errno.EIO, "Input/output error")
        return read(self, path, *given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(files, "cat_file", failing)
        for does in (lambda: list(writer.work(encoder(images))), lambda: shared(address, images, settings={"a": 1})):
            with pytest.raises(WriteError, match="Input/output error"):
                does()
    assert list(there(address)) == [".vqstack-unfinished"]
    assert len(list(writer.work(encoder(images)))) == len(writer.shards)
    assert there(address) == alone


def test_a_seal_that_is_read_too_early_is_read_again(address, images, alone, monkeypatch):
    """As NFS may show it: in the list, and not to be opened yet. Nobody leaves before the manifest is there."""
    writer, late = shared(address, images, lease=0.05), []
    read = writer.store.read

    def without_one(names):
        found = read(names)
        if len(found) == len(writer.shards) and not late:
            late.append(found.popitem())
        return found

    monkeypatch.setattr(writer.store, "read", without_one)
    assert len(list(writer.work(encoder(images)))) == len(writer.shards)
    assert late and there(address) == alone


def test_a_kill_keeps_what_is_written(address, images, alone):
    taken: list[str] = []
    first = shared(address, images).work(encoder(images, taken))
    assert next(first).file == taken[0]
    first.close()
    again: list[str] = []
    assert len(list(shared(address, images).work(encoder(images, again)))) == 7
    assert taken[0] not in again
    assert there(address) == alone


def test_other_settings_do_not_join(address, images):
    shared(address, images, settings={"batch_size": 1})
    other = {"batch_size": 2}
    refused(lambda: shared(address, images, settings=other), "(settings.batch_size: 1 → 2)", "repeat that command")
    assert list(there(address)) == [".vqstack-unfinished"]


def test_hosts_call_the_model_alike(address, images):
    """Or two that finish at once would write manifest and checksums of two kinds."""
    shared(address, images, model="digits")
    refused(lambda: shared(address, images, model="copy"), "(settings.model: digits → copy)")
    list(shared(address, images, model="digits").work(encoder(images)))
    assert list(shared(address, images, model="copy").work(encoder(images))) == []  # finished, whoever did it


def test_alone_and_together_do_not_mix(images, tmp_path):
    shared(str(tmp_path / "one"), images)
    refused(lambda: writer_of(tmp_path / "one", images), "unfinished")
    refused(lambda: CodeDataset(tmp_path / "one"), "unfinished")
    writer_of(tmp_path / "two", images).claim()
    refused(lambda: shared(str(tmp_path / "two"), images), "without --shared", "settings.shared: None → True")


def test_a_folder_of_somebody_else_is_not_touched(address, images):
    files, root = fsspec.core.url_to_fs(address)
    files.makedirs(f"{root}/photos")
    files.pipe_file(f"{root}/photos/one.png", b"png")
    refused(lambda: shared(address, images), "is not empty")
    assert there(address) == {"photos/one.png": b"png"}


def test_unknown_addresses_are_refused(images):
    refused(lambda: shared("nowhere://there", images), "nowhere://there")


def test_the_command_writes_the_same_to_a_folder_and_to_a_store(tmp_path):
    trained(recipe("digits", **TINY), tmp_path / "run")
    given = [str(tmp_path / "run"), "--shard-size", "500", "--cpu"]
    encode.main([*given, "--out", str(tmp_path / "alone")])
    encode.main([*given, "--out", str(tmp_path / "shared"), "--shared"])
    store = f"memory://shared-{next(NUMBERS)}/codes"
    encode.main([*given, "--out", store])
    wanted = {name: content for name, content in files_of(tmp_path / "alone").items() if content is not None}
    assert there(str(tmp_path / "shared")) == wanted == there(store)
