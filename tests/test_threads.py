"""The number of threads that a phase trains with is measured, unless somebody has named one."""

import pytest
import torch

from vqstack.fit import threads


@pytest.fixture(autouse=True)
def as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


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
