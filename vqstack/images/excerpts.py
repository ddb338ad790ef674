"""The pieces of sounds, volumes, videos and series in the place of these."""

from dataclasses import replace
from typing import Any

import numpy as np

from vqstack.errors import InputError, in_one_line
from vqstack.images.pieces import Cut, pieces
from vqstack.images.settings import ImageSettings
from vqstack.images.undecoded import Records
from vqstack.shapes import by_axis


def excerpts(inputs: Records, settings: ImageSettings, cut: Cut) -> Records:
    """The pieces of inputs in the place of these; an input without any is left out, with the reason."""
    assert settings.size is not None
    left_out = {name: dict(what) for name, what in inputs.left_out.items()}
    records: list[dict[str, Any]] = []
    origin: list[int] = []
    for number, record in enumerate(inputs.fetch(np.arange(inputs.count))):
        if settings.series:
            record = _row(record, number, inputs.where)
        try:
            starts, why = pieces(cut.sites(record, settings), settings.size), f"smaller than {by_axis(settings.size)}"
        except InputError:
            raise
        except Exception as error:  # each library's own types, and what formats raise
            why = f"cannot be read ({in_one_line(error)})"
            if settings.on_error == "refuse":
                raise InputError(f"{record['path']}: {why}; mend or remove it, or set on_error to skip") from error
            starts = []
        if not starts:
            left = left_out.setdefault(why, {"count": 0, "first": []})
            left["count"] += 1
            left["first"] = [*left["first"], record["path"]][:3]
        records += [{**record, "start": start} for start in starts]
        origin += [number] * len(starts)
    if not records:
        raise InputError(f"{inputs.where}: no {cut.what} of {by_axis(settings.size)} or more: choose a smaller size")
    rows, given = np.array(origin), inputs.given
    return replace(
        inputs,
        count=len(records),
        fetch=lambda some: [records[i] for i in some],
        labels=None if inputs.labels is None else inputs.labels[rows],
        left_out=left_out,
        given=None if given is None else lambda some: given(rows[some]),
    )


def _row(numbers: Any, number: int, where: str) -> dict[str, Any]:
    """A series as a record: its numbers tell it from others, as the bytes of a file do."""
    return {"numbers": numbers, "bytes": repr(numbers).encode(), "path": f"{where}, row {number}"}
