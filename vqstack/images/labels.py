"""What stored labels mean. A class is a name; its number is its place among the names of train.

A source whose labels are numbers alone has the classes "0", "1", …, unless ``class_names`` names them.
"""

import json
import logging
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vqstack.errors import InputError, listed
from vqstack.images.settings import ImageSettings
from vqstack.reading import plain_file

logger = logging.getLogger(__name__)
LABEL_NAMES = ("label", "labels", "fine_label", "class", "class_label", "target", "digit", "cls", "y")
FEW, MOST = 1000, 2**15  # classes without names: so many may be there whatever the images, and so many at most
NAMES_SIZE = 2**19  # bytes of all names, each on a line of its own: the configuration of a model holds them
KINDS = {"string": "text", "large_string": "text", "bool": "bool"}


def inside(row: Mapping[str, Any], path: Sequence[str]) -> Any:
    """What a row holds in a column, or in a member of a record inside it."""
    value: Any = row
    for part in path:
        value = None if value is None else value[part]
    return value


@dataclass(frozen=True)
class Stored:
    """How the labels of a split are stored.

    Attributes:
        where: the split, to begin a message with.
        column: that holds them, and the members of a record inside it.
        kind: number, text or bool; anything else is no label.
        names: of numbers, where the source says what they mean.
    """

    where: str
    column: tuple[str, ...]
    kind: str
    names: list[str] | None = None

    def of(self, row: Mapping[str, Any]) -> Any:
        """What a row holds."""
        return inside(row, self.column)


@dataclass(frozen=True)
class Classes:
    """The class of each stored label.

    Attributes:
        names: by number; None: there are numbers alone.
        numbers: stored label -> number; None: labels are stored as their numbers.
    """

    names: list[str] | None
    numbers: Mapping[Any, int] | None = None

    def number(self, label: Any, where: str) -> int:
        """InputError where the label is none, or one that train does not know."""
        if label == -1 or (self.numbers is None and isinstance(label, int) and not isinstance(label, bool)):
            return int(label)
        if self.numbers is not None and label in self.numbers:
            return self.numbers[label]
        twin = (number for name, number in (self.numbers or {}).items() if alike(str(name)) == alike(str(label)))
        if isinstance(label, str) and (number := next(twin, None)) is not None:
            return number
        known = f" (the classes are {listed(self.names)})" if self.names else ""
        raise InputError(f"{where}: an image with label {label}{known}; store a class number or name for each")

    def array(self, labels: Sequence[Any] | NDArray[Any], where: str) -> NDArray[Any]:
        """Class numbers, one for each image."""
        found = np.asarray(labels)
        if self.numbers is None and (found.dtype.kind in "iu" or found.ndim != 1 or found.dtype.kind == "f"):
            return found  # what is wrong with them says check_labels
        return np.array([self.number(label, where) for label in found.tolist()], dtype=np.int64)


def mapped(names: Sequence[str], known: Sequence[str], where: str, whose: str) -> list[int]:
    """For each class its number among those that are known; InputError with both lists where one is missing."""
    numbers = {alike(name): number for number, name in enumerate(known)}
    numbers |= {name: number for number, name in enumerate(known)}
    found = [numbers.get(name, numbers.get(alike(name))) for name in names]
    missing = [name for name, number in zip(names, found, strict=True) if number is None]
    if missing:
        raise InputError(
            f"{where}: its classes are {listed(names)}, those of {whose} {listed(known)}: {listed(missing[:1])} is not "
            "among them; classes are matched by name: correct the names, or say with data.class_names what numbers mean"
        )
    return [number for number in found if number is not None]


def alike(name: str) -> str:
    """One form (NFC) of names that look the same: macOS writes é as two characters, others as one."""
    return unicodedata.normalize("NFC", name)


def numerals(count: int) -> list[str]:
    """The names of classes that have none."""
    return [str(number) for number in range(count)]


def padded(names: Sequence[str] | None, count: int) -> list[str]:
    """As many names as there are classes; those that are not named are called by their numbers."""
    given = list(names or [])[:count]
    return given + [str(n) if str(n) not in given else f"class {n}" for n in range(len(given), count)]


def reference(first: Stored, values: Iterable[Any] | None, settings: ImageSettings) -> list[str] | None:
    """The names of all classes in the order of their numbers; None: there are numbers alone.

    Args:
        first: of the first split, train where there is one.
        values: what it holds, where that can be known; of texts, the classes in the order of their names.
        settings: may name the classes.
    """
    names = list(settings.class_names) or first.names
    if not names and first.kind == "bool":
        names = ["False", "True"]
    if not names and first.kind == "text":
        if values is None:
            column = ".".join(first.column)
            raise InputError(
                f"{first.where}: column {column} holds names of classes, which a stream does not tell beforehand; name "
                "them with class_names, or set label_column to '' for none"
            )
        names = sorted({value for value in values if value is not None})
        if len(set(map(alike, names))) < len(names):
            one, other = next(pair for pair in combinations(names, 2) if len(set(map(alike, pair))) == 1)
            raise InputError(f"{first.where}: two names of classes look the same ({one!a} and {other!a}): write one")
    if names and sum(len(json.dumps(name)) + 8 for name in names) > NAMES_SIZE:
        raise InputError(
            f"{first.where}: {len(names)} names of classes take more than {NAMES_SIZE} bytes; shorten them"
        )
    return names or None


def read_as(stored: Stored, known: list[str] | None, settings: ImageSettings) -> Classes:
    """What the labels of a split mean among the classes of train; InputError where names differ."""
    if stored.kind == "text":
        return Classes(known, {name: number for number, name in enumerate(known or [])})
    values: list[Any]
    if stored.kind == "bool":
        names, values = ["False", "True"], [False, True]
    elif stored.names is None and (known is None or settings.class_names):
        return Classes(known)
    else:
        names = numerals(len(known or [])) if stored.names is None else stored.names
        values = list(range(len(names)))
    if names == known and stored.kind == "number":
        return Classes(known)
    # Where train has numbers alone, names must be numbers, too.
    numbers = mapped(names, known or numerals(len(names)), stored.where, "train")
    return Classes(known, dict(zip(values, numbers, strict=True)))


def count_classes(
    names: list[str] | None, largest: int, images: int | None, settings: ImageSettings, where: str
) -> int:
    """How many classes there are; InputError where numbers that are no classes would make far too many.

    Args:
        names: of the classes, where they are known.
        largest: label of train.
        images: in train; None: nobody knows.
        settings: may say how many classes there are.
        where: to begin a message with.
    """
    count = settings.classes or len(names or []) or largest + 1
    if not names and images is not None and count > min(max(images, FEW), MOST):
        what = f"classes is {count}" if settings.classes else f"label {largest} would make {count} classes"
        raise InputError(f"{where}: {what} where there are {images} images; number the classes from 0, or correct it")
    return count


def find_labels(types: Mapping[str, Any], where: str, settings: ImageSettings) -> Stored | None:
    """The column of the labels, by its type and its name; what is found and not used is said.

    Args:
        types: features of ``datasets`` by column.
        where: to begin a message with.
        settings: may name the column; '' for no labels.
    """
    if settings.label_column == "":
        return None
    members: dict[tuple[str, ...], Any] = {
        (name, part): kind
        for name, record in types.items()
        if isinstance(record, dict) and record.keys() != {"bytes", "path"}
        for part, kind in record.items()
    }
    kinds = {(name,): kind for name, kind in types.items()} | members
    usable = {path: _kind(kind) for path, kind in kinds.items() if _kind(kind)}
    names = {path: list(kinds[path].names) for path in usable if getattr(kinds[path], "names", None)}

    if settings.label_column is not None:
        path = next((path for path in kinds if ".".join(path) == settings.label_column), None)
        if path is not None and path in usable:
            return Stored(where, path, usable[path], names.get(path))
        found = f"holds {_called(kinds[path])}" if path else "is not there"
        fitting = ", ".join(".".join(path) for path in usable) or "none"
        raise InputError(
            f"{where}: label column {settings.label_column} {found}; classes are whole numbers or names, which these "
            f"columns hold: {fitting}; set label_column"
        )
    named = [path for path in names if len(path) == 1]
    usual = [(name,) for name in LABEL_NAMES if (name,) in (named or usable)]
    by_type = [path for path in usual if usable[path] == "number"] or named or usual
    if by_type is named and len(named) > 1:
        columns = ", ".join(".".join(path) for path in named)
        raise InputError(f"{where}: cannot tell the label column: {columns} hold classes; set label_column")
    if not by_type:
        _say_what_is_there(kinds, usable, where)
        return None
    if len(by_type) > 1:
        taken, *others = (".".join(path) for path in by_type)
        logger.warning("%s: %s holds the labels, not %s; set label_column to say so", where, taken, ", ".join(others))
    return Stored(where, by_type[0], usable[by_type[0]], names.get(by_type[0]))


def _say_what_is_there(kinds: Mapping[tuple[str, ...], Any], usable: Mapping[tuple[str, ...], str], where: str) -> None:
    for name in LABEL_NAMES:
        if (name,) in kinds and not isinstance(kinds[(name,)], dict):
            found = _called(kinds[(name,)])
            logger.warning(
                "%s: column %s holds %s, so there are no labels; store class numbers or names", where, name, found
            )
            return
    maybe = [path for path in usable if not path[-1].startswith("__")]  # those are the archives' own
    if maybe:
        columns = ", ".join(".".join(path) for path in maybe)
        logger.warning("%s: no column of labels; if one of these holds classes, set label_column: %s", where, columns)


def _kind(kind: Any) -> str:
    dtype = str(getattr(kind, "dtype", ""))
    return "number" if "int" in dtype and not isinstance(kind, dict | list) else KINDS.get(dtype, "")


def _called(kind: Any) -> str:
    """A type in words."""
    if isinstance(kind, dict):
        return f"records of {', '.join(kind)}"
    return str(kind.dtype) if getattr(kind, "pa_type", None) is not None else type(kind).__name__


def texts_in(paths: Sequence[str], stored: Stored) -> list[Any] | None:
    """The texts in a column of Parquet files on this machine; None where it lies inside a record."""
    if len(stored.column) > 1 or not paths:
        return None
    return [
        text
        for path in paths
        for text in pq.read_table(plain_file(path), columns=[stored.column[0]])[0].unique().to_pylist()
    ]


def check_names(paths: Sequence[str], column: str | None) -> None:
    """All Parquet files of a split must mean the same classes; InputError with both lists.

    The loader believes the first file, whatever the others say.

    Args:
        paths: on this machine.
        column: of the labels, or all columns of classes.
    """
    seen: tuple[str, dict[str, list[str]]] | None = None
    for path in paths:
        found = _names_in(path)
        if found is None:
            continue
        seen = seen or (path, found)
        for name in sorted({*seen[1], *found}):
            lists = [names[name] if name in names else None for names in (seen[1], found)]
            if lists[0] != lists[1] and column in (None, name):
                one, other = ("no names" if names is None else listed(names) for names in lists)
                raise InputError(
                    f"{path}: column {name} has the classes {other}, in {seen[0]} {one}; classes are names: write "
                    "these files with the same ones"
                )


def _names_in(path: str) -> dict[str, list[str]] | None:
    """Column -> names of its classes, as the file has them; None for a file that cannot be opened."""
    try:
        metadata = pq.read_schema(plain_file(path)).metadata or {}
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        return {name: kind["names"] for name, kind in features.items() if isinstance(kind, dict) and "names" in kind}
    except (OSError, ValueError, AttributeError, TypeError, pa.ArrowException):
        return None  # damaged: it is refused where it is read
