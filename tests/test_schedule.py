"""Schedules: every site once, beginnings that cover the map evenly, diagonals that know their neighbours."""

import itertools

import pytest
import torch

from vqstack.code_model import Schedule

SHAPES = [(1, 1), (4, 4), (2, 3), (7, 5), (9, 12), (1, 9)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("groups", [1, 2, 5, 16, 10**6])
@pytest.mark.parametrize("even", [False, True])
def test_an_ordered_partition(shape, groups, even):
    sites = shape[0] * shape[1]
    groups = min(groups, sites)
    schedule = Schedule.dispersed(shape, groups, even=even)
    assert len(schedule) == groups
    assert torch.cat([schedule.sites(k) for k in range(groups)]).sort().values.tolist() == list(range(sites))
    assert schedule.sizes[0] >= 1
    assert not even or schedule.sizes[-1] - schedule.sizes[0] <= 1
    assert list(schedule.sizes) == sorted(schedule.sizes)
    for k in range(groups):
        assert (schedule.group[schedule.sites(k)] == k).all()
        before = {int(site) for j in range(k) for site in schedule.sites(j)}
        assert set(schedule.before(torch.tensor([k]))[0].nonzero()[:, 0].tolist()) == before


def test_every_beginning_covers_the_map_evenly():
    order = Schedule.dispersed((8, 8), 64).order
    for size in (4, 16):  # the first 4 sites fall into the 4 quadrants, the first 16 into the 16 squares of side 2
        side = {4: 4, 16: 2}[size]
        squares = {(int(i) // 8 // side, int(i) % 8 // side) for i in order[:size]}
        assert len(squares) == size
    # Of the first half no two sites are neighbours: a chequerboard.
    half = [(int(i) // 8, int(i) % 8) for i in order[:32]]
    assert all(abs(a - c) + abs(b - d) > 1 for (a, b), (c, d) in itertools.combinations(half, 2))


def test_raster_is_row_by_row():
    schedule = Schedule.raster(6)
    assert schedule.order.tolist() == list(range(6))
    assert schedule.sizes == (1,) * 6


def test_even_groups_are_lattices():
    schedule = Schedule.dispersed((16, 16), 16, even=True)
    for k in range(16):
        places = {(int(site) // 16 % 4, int(site) % 16 % 4) for site in schedule.sites(k)}
        assert len(places) == 1


@pytest.mark.parametrize("slope", [1, 2])
@pytest.mark.parametrize("shape", [(4, 6), (5, 1), (1, 5), (3, 3)])
def test_wavefronts_know_what_lies_left_and_above(shape, slope):
    schedule = Schedule.wavefront(shape, slope)
    assert sorted(schedule.order.tolist()) == list(range(shape[0] * shape[1]))
    assert min(schedule.sizes) > 0
    group = schedule.group.view(shape)
    assert (group[:, 1:] > group[:, :-1]).all() and (group[1:] > group[:-1]).all()
    assert bool((group[1:, :-1] > group[:-1, 1:]).all()) is (slope == 2 or min(shape) == 1)  # above on the right
    for k in range(len(schedule)):
        assert (schedule.group[schedule.sites(k)] == k).all()


def test_the_wavefronts_of_a_square():
    assert len(Schedule.wavefront((16, 16), 1)) == 31
    assert len(Schedule.wavefront((16, 16), 2)) == 46
