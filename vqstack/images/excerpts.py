"""The pieces of sounds, volumes, videos and series in the place of these: of all inputs at once, or of a stream."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqstack.disk import make_folder
from vqstack.errors import InputError, in_one_line
from vqstack.images.cache import cache_folder, writing
from vqstack.images.parts import hashed
from vqstack.images.pieces import Cut, Start, piece_of
from vqstack.images.settings import ImageSettings
from vqstack.images.undecoded import LEFT_OUT, Records, Streamed, count_left_out
from vqstack.paths import remote
from vqstack.shapes import by_axis

AT_ONCE = 16  # inputs that are fetched at a time: rows may hold whole files


def excerpts(inputs: Records, settings: ImageSettings, cut: Cut) -> Records:
    """The pieces of inputs in the place of these; an input without any is left out, with the reason.

    Where an input must be read to know how large it is, its pieces are held, so that it is not read again.
    """
    left_out = {name: dict(what) for name, what in inputs.left_out.items()}
    records, origin = list[dict[str, Any]](), list[int]()
    with _Held() as held:
        for number, record in enumerate(_each(inputs)):
            record = _named(record, f"{inputs.where}, row {number}", settings)
            starts, values, why = _opened(record, settings, cut)
            if not starts:
                count_left_out(left_out, why, record["path"])
            if values is not None:
                held.add(piece_of(values, start, settings) for start in starts)
            records += [_about(record) | {"start": start} for start in starts]
            origin += [number] * len(starts)
        kept = held.pieces()
    if not records:
        size = by_axis(settings.kept or ())
        raise InputError(f"{inputs.where}: no {cut.what} of {size} or more: choose a smaller size")
    rows, given = np.array(origin), inputs.given
    return replace(
        inputs,
        count=len(records),
        fetch=lambda some: [records[i] if kept is None else records[i] | {"piece": kept[i]} for i in some],
        labels=None if inputs.labels is None else inputs.labels[rows],
        left_out=left_out,
        given=None if given is None else lambda some: given(rows[some]),
    )


def streamed_excerpts(inputs: Streamed, settings: ImageSettings, cut: Cut) -> Streamed:
    """A stream of the pieces of inputs: each input is read once, when its turn comes.

    One without pieces is a row whose record says why (``LEFT_OUT``).
    """
    apart = partial(_taken_apart, inputs.image_column, inputs.where, settings, cut)
    return replace(inputs, rows=inputs.rows.map(apart, batched=True, batch_size=1))


def _taken_apart(
    column: str, where: str, settings: ImageSettings, cut: Cut, batch: Mapping[str, Sequence[Any]]
) -> dict[str, list[Any]]:
    """One row as a row for each of its pieces, which hold their values."""
    (record,) = batch[column]
    begins = f" that begins {str(record)[:40]}" if settings.series else ""
    record = _named(record, f"{where}, the row{begins}", settings)
    starts, values, why = _opened(record, settings, cut)
    pieces = [_piece(record, start, number, values, settings, cut) for number, start in enumerate(starts)]
    pieces = pieces or [_about(record) | {LEFT_OUT: why}]
    return {name: list(one) * len(pieces) for name, one in batch.items()} | {column: pieces}


def _piece(
    record: Mapping[str, Any], start: Start, number: int, values: Any, settings: ImageSettings, cut: Cut
) -> dict[str, Any]:
    found = _about(record) | {"start": start, "number": number}
    try:
        piece = cut.read(record, start, settings) if values is None else piece_of(values, start, settings)
    except InputError:
        raise
    except Exception as error:  # of a sound whose header can be read
        return found | {"problem": in_one_line(error)}
    return found | {"piece": piece}


def _opened(record: Mapping[str, Any], settings: ImageSettings, cut: Cut) -> tuple[list[Start], Any, str]:
    """As :meth:`Cut.opened`, and why there are no pieces; what cannot be read is refused, or has none."""
    try:
        short = "holds no number" if settings.padding else f"smaller than {by_axis(settings.kept or ())}"
        return *cut.opened(record, settings), short
    except InputError:
        raise
    except Exception as error:  # each library's own types, and what formats raise
        why = f"cannot be read ({in_one_line(error)})"
        if settings.on_error == "refuse":
            raise InputError(f"{record['path']}: {why}; mend or remove it, or set on_error to skip") from error
        return [], None, why


def _each(inputs: Records) -> Iterator[Any]:
    for first in range(0, inputs.count, AT_ONCE):
        yield from inputs.fetch(np.arange(first, min(first + AT_ONCE, inputs.count)))


def _named(row: Any, name: str, settings: ImageSettings) -> dict[str, Any]:
    """What a row holds as a record that says where: its numbers, or the bytes of its file, tell it from others.

    Rows of shards on this machine say it themselves, and so do files.
    """
    if settings.series:
        lot = hashed({"bytes": repr(row).encode(), "path": name}, settings, None)
        return {"path": name, "numbers": row, "hash": lot}
    if not settings.sounds:
        return dict(row)
    held, path = (None, None) if row is None else (row["bytes"], row["path"])
    told = settings.packed and not any(map(remote, settings.files.values()))
    if path is None or (held is not None and not told):
        held, path = held or b"", f"{name}, {path}" if path else name
    record = {"bytes": held, "path": path}
    return record | {"hash": hashed(record, settings, None)}


def _about(record: Mapping[str, Any]) -> dict[str, Any]:
    """Of an input what its pieces keep."""
    return {"bytes": None} | {name: record[name] for name in ("path", "hash") if name in record}


class _Held:
    """Pieces of one size in a file without a name, which is gone when they are; a context manager."""

    def __init__(self) -> None:
        self._file: Any = None
        self._kind: Any = None  # shape and type of a piece
        self._count = 0

    def __enter__(self) -> "_Held":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()  # its pages stay while they are mapped

    def add(self, pieces: Iterator[NDArray[Any]]) -> None:
        """Pieces, behind those that are there."""
        for piece in pieces:
            with writing(cache_folder()):
                if self._file is None:
                    make_folder(cache_folder())
                    self._file, self._kind = tempfile.TemporaryFile(dir=cache_folder()), (piece.shape, piece.dtype)
                self._file.write(np.ascontiguousarray(piece).data)
            self._count += 1

    def pieces(self) -> NDArray[Any] | None:
        """All of them; none where none was added."""
        if self._file is None:
            return None
        with writing(cache_folder()):
            self._file.flush()
        shape, kind = self._kind
        return np.memmap(self._file, kind, "r", shape=(self._count, *shape))
