"""The number of threads that a phase trains with is measured, unless somebody has named one."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from test_images import random_pixels, write_parquet

from vqstack import threads
from vqstack.images import ImageSettings, load_splits


@pytest.fixture(autouse=True)
def as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_processes_of_a_machine_share_its_cores(monkeypatch):
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(threads, "quotas", list)
    for local, processes, share in ((None, 2, 4), ("2", 4, 4), ("1", 4, 8), ("16", 16, 1), ("2", 2, 4)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local) if local else monkeypatch.delenv(
            "LOCAL_WORLD_SIZE", raising=False
        )
        assert threads.cores(threads.beside(processes)) == share


@pytest.mark.parametrize(
    ("group", "files", "seconds"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, [1.5]),
        ("0::/", {"cpu.max": "max 100000"}, []),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "400000 100000"}, [4.0]),
        ("4:cpu,cpuacct:/a", {"cpu/a/cpu.cfs_quota_us": "250000", "cpu/a/cpu.cfs_period_us": "100000"}, [2.5]),
        ("4:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, []),
        ("5:cpuset:/", {"cpu.max": "100000 100000"}, []),
        ("", {"cpu.max": "100000 100000"}, []),
    ],
)
def test_a_container_has_the_cores_that_it_is_given_time_for(tmp_path, monkeypatch, group, files, seconds):
    (tmp_path / "cgroup").write_text(group + "\n" * bool(group), encoding="utf-8")
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text + "\n", encoding="ascii")
    found = threads.quotas(tmp_path / "cgroup", tmp_path / "fs")
    assert found == seconds
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(threads, "quotas", lambda: found)
    assert threads.cores() == (math.ceil(seconds[0]) if seconds else 8)


def test_images_are_decoded_by_as_many_threads_as_there_are_cores_to_use(tmp_path, monkeypatch):
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: {3}, raising=False)
    asked = []

    def pool(number):
        asked.append(number)
        return ThreadPoolExecutor(number)

    monkeypatch.setattr("vqstack.images.splits.ThreadPoolExecutor", pool)
    write_parquet(tmp_path / "a.parquet", random_pixels(8))
    load_splits(ImageSettings(source="parquet", files={"test": str(tmp_path / "a.parquet")}), ["test"])
    assert asked == [1]


@pytest.mark.parametrize(("one", "many", "chosen"), [(0.03, 0.01, 4), (0.01, 0.03, 1), (0.02, 0.02, 1)])
def test_the_quicker_number_is_taken(monkeypatch, one, many, chosen):
    clock = [0.0]

    def work():
        clock[0] += one if torch.get_num_threads() == 1 else many

    monkeypatch.setattr(threads.time, "perf_counter", lambda: clock[0])
    torch.set_num_threads(2)
    found = threads.quickest(work, 4)
    assert found == chosen
    assert torch.get_num_threads() == 2  # measuring changes nothing


@pytest.mark.parametrize(
    ("number", "launched", "asked"),
    [(None, False, False), (None, True, False), ("1", True, False), ("1", False, True), ("3", True, True)],
)
def test_what_a_person_asked_for_is_told_from_what_a_launcher_sets(monkeypatch, number, launched, asked):
    for name, value in (("OMP_NUM_THREADS", number), ("ACCELERATE_MIXED_PRECISION", "no" if launched else None)):
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, raising=False)
    assert threads.asked_for() == asked


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, 6),
        ({"OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": "no"}, 6),  # what accelerate launch sets by itself
        ({"OMP_NUM_THREADS": "1"}, 3),
        ({"OMP_NUM_THREADS": "2", "ACCELERATE_MIXED_PRECISION": "no"}, 3),
    ],
    ids=["nobody", "accelerate", "one", "two"],
)
def test_commands_that_train_nothing_take_their_cores_unless_a_number_was_named(environment, wanted, monkeypatch):
    for name in ("OMP_NUM_THREADS", "ACCELERATE_MIXED_PRECISION", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    monkeypatch.setattr(threads, "quotas", list)
    torch.set_num_threads(3)
    threads.share_cores()
    assert torch.get_num_threads() == wanted
