"""Names and sizes of many pictures as runs: what counts up, or stays the same, is written once with its number."""

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import overload

from vqstack.codec.pictures import Entry, Mode, NumberFile

_NUMBERED = re.compile(r"(.*?)([0-9]{1,18})", re.DOTALL)


def shorten(stems: list[str]) -> list[tuple[str, int]]:
    """Names as runs: a name, and how many there are whose last digits count up from it at the same width."""
    runs = list[tuple[str, int]]()
    for stem in stems:
        if runs and (following := counted_up(runs[-1][0], runs[-1][1])) == stem and following != runs[-1][0]:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((stem, 1))
    return runs


def counted_up(stem: str, ahead: int) -> str | None:
    """The name ``ahead`` places after a name that ends in ASCII digits."""
    match = _NUMBERED.fullmatch(stem)
    if match is None:
        return None
    number = str(int(match[2]) + ahead).zfill(len(match[2]))
    return match[1] + number if len(number) == len(match[2]) else None


def twice(names: Iterable[tuple[str, int]]) -> str | None:
    """A name that several of the runs hold, found without listing them."""
    spans = list[tuple[str, int, int, int]]()
    for stem, count in names:
        match = _NUMBERED.fullmatch(stem)
        if match is None and count > 1:
            return stem
        begin = int(match[2]) if match else 0
        spans.append((match[1], len(match[2]), begin, begin + count) if match else (stem, 0, 0, 1))
    spans.sort()
    for one, other in pairwise(spans):
        if one[:2] == other[:2] and other[2] < one[3]:
            return other[0] + (str(other[2]).zfill(other[1]) if other[1] else "")
    return None


class Entries(Sequence[Entry]):
    """Pictures that are made when they are asked for, from runs of names and of shapes."""

    def __init__(
        self,
        names: list[tuple[str, int]],
        shapes: list[tuple[int, int, Mode, int]],
        files: Sequence[tuple[NumberFile, int]] = (),
    ) -> None:
        self._names, self._shapes, self._files = names, shapes, files
        self._ends = [list(accumulate(run[-1] for run in runs)) for runs in (names, shapes, files)]

    def __len__(self) -> int:
        return self._ends[0][-1] if self._names else 0

    @overload
    def __getitem__(self, number: int) -> Entry: ...
    @overload
    def __getitem__(self, number: slice) -> list[Entry]: ...
    def __getitem__(self, number: int | slice) -> Entry | list[Entry]:
        if isinstance(number, slice):
            return [self[i] for i in range(len(self))[number]]
        number = range(len(self))[number]
        name, shape, file = (bisect_right(ends, number) for ends in self._ends)
        height, width, mode, _ = self._shapes[shape]
        stem, count = self._names[name]
        ahead = number - self._ends[0][name] + count
        kept = self._files[file][0] if self._files else None
        return Entry((counted_up(stem, ahead) if ahead else stem) or "", height, width, mode, kept)
