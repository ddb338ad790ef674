"""Folders of images or sounds on this machine: roots of splits, class folders, and what lies there that is neither.

Every file below a folder becomes an image, or excerpts of a sound, of a class, or is counted with the reason why it is
left out.
"""

import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from vqstack.errors import InputError, listed
from vqstack.images.files import LOOP, walk
from vqstack.images.formats import is_image
from vqstack.images.labels import alike
from vqstack.images.pieces import CUTS
from vqstack.images.settings import SPLITS, ImageSettings, Split
from vqstack.reading import plain_file

logger = logging.getLogger(__name__)
SPLIT_FOLDERS: dict[str, Split] = {
    **{name: "train" for name in ("train", "training")},
    **{name: "validation" for name in ("validation", "val", "valid", "dev")},
    **{name: "test" for name in ("test", "testing")},
}
TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
SHARDS = 1024  # of a folder that is streamed; more of them mix the classes better
HIDDEN, TABLE = "hidden", "table that label_column does not ask for"
BESIDE = "beside the folders that are read"
IsInput = Callable[[str], bool]
INPUTS: dict[str, tuple[str, IsInput]] = {
    "imagefolder": ("image", is_image),
    **{source: (cut.what, cut.named) for source, cut in CUTS.items()},
}


@dataclass
class Tree:
    """What lies below a folder."""

    root: str
    images: list[str] = field(default_factory=list)  # paths that begin with ``root``
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # reason -> paths

    def hidden(self, path: str) -> bool:
        """Whether a name on the way from ``root`` begins with a dot."""
        return f"{os.sep}." in path.removeprefix(self.root)

    def class_of(self, path: str) -> str:
        """The folder inside ``root`` that an image lies in; empty for one that lies beside these."""
        first, inside, _ = os.path.relpath(path, self.root).partition(os.sep)
        return alike(first) if inside else ""


def tree(folder: str, settings: ImageSettings) -> Tree:
    """What lies below a folder; what cannot be read is refused, or left out with ``on_error: skip``."""
    found, (what, is_input) = Tree(os.path.abspath(folder)), INPUTS[settings.source]
    for path, problem in walk(found.root):
        if not problem and not _storable(path):
            problem = "its name is not UTF-8"
        if found.hidden(path) or problem == LOOP:
            found.left_out[problem or HIDDEN].append(path)
        elif problem:
            if settings.on_error == "refuse" or path == found.root:
                shown = path.encode(errors="backslashreplace").decode()
                raise InputError(f"{shown}: {problem}; mend or remove it, or set on_error to skip")
            found.left_out[problem].append(path)
        elif os.path.basename(path) in TABLES:
            found.left_out[TABLE].append(path)
        else:
            (found.images if is_input(path) else found.left_out[f"no {what}"]).append(path)
    found.images.sort()
    return found


def _storable(path: str) -> bool:
    return path.encode(errors="replace") == path.encode(errors="surrogateescape")


def summary(left_out: Mapping[str, list[str]]) -> dict[str, Any]:
    """Reason -> how many and the first of them, for a manifest."""
    return {
        reason: {"count": len(paths), "first": [path.encode(errors="replace").decode() for path in paths[:3]]}
        for reason, paths in sorted(left_out.items())
        if paths
    }


Beside = dict[Split, dict[str, list[str]]]


def without_roots(settings: ImageSettings) -> tuple[ImageSettings, Beside]:
    """The settings with folders of splits in place of a root that holds them: ``ROOT/train``, ``ROOT/test``.

    Also what lies in a root beside these folders: split that is read first -> reason -> paths. InputError where a root
    lacks the split that it is named for, or holds other folders of images as well.
    """
    if settings.source not in INPUTS:
        return settings, {}
    files: dict[Split, str] = {}
    roots: dict[str, list[Split]] = {}
    for split, folder in settings.files.items():
        inside = _splits_inside(folder, INPUTS[settings.source][1]) if os.path.isdir(folder) else {}
        if inside and (split not in inside and len(settings.files) > 1):
            raise InputError(
                f"{folder}: holds {_listed(inside)} and no {split} {INPUTS[settings.source][0]}s; {_meant(inside)}"
            )
        chosen = inside if len(settings.files) == 1 else {split: inside.get(split, folder)}
        files |= chosen or {split: folder}
        if inside:
            roots.setdefault(os.path.abspath(folder), []).extend(chosen)
    files = {split: files[split] for split in SPLITS if split in files}
    beside: Beside = {min(splits, key=SPLITS.index): _beside(root, files) for root, splits in roots.items()}
    return settings.model_copy(update={"files": files}), beside


def _beside(root: str, files: Mapping[Split, str]) -> dict[str, list[str]]:
    """Reason -> paths of the files below a root that are in none of the folders."""
    found, used = Tree(root), {os.path.abspath(folder) for folder in files.values()}
    for path, problem in walk(root, without=used):
        found.left_out[problem or (HIDDEN if found.hidden(path) else BESIDE)].append(path)
    return found.left_out


def _splits_inside(folder: str, is_input: IsInput) -> dict[Split, str]:
    """Split -> folder, where the folders of images inside are splits; empty where they are anything else."""
    with os.scandir(folder) as entries:
        inside = sorted((entry.path, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    files = [path for path, is_folder in inside if not is_folder]
    children = [path for path, is_folder in inside if is_folder and _any_input(path, is_input)]
    if len(children) == 1 and os.path.basename(children[0]).casefold() not in SPLIT_FOLDERS:
        return _splits_inside(children[0], is_input)  # a folder around the root
    named = [(SPLIT_FOLDERS.get(os.path.basename(child).casefold()), child) for child in children]
    found = {split: child for split in SPLITS for name, child in named if name == split}
    others = [child for child in children if child not in found.values()]
    if len(found) > 1 and "train" in found and others:
        raise InputError(
            f"{folder}: holds folders of splits ({_listed(found)}) and others ({os.path.basename(others[0])}); "
            f"{_meant(found)}"
        )
    if others:
        _check_no_splits(folder, children, is_input)
    elif found and (loose := next(filter(is_input, files), None)):
        raise InputError(f"{loose}: lies beside the folders of splits ({_listed(found)}); move it into one, or away")
    return {} if others else found


def _check_no_splits(folder: str, children: list[str], is_input: IsInput) -> None:
    """InputError where folders that would be classes look like splits, or hold splits: test images would train."""
    maybe = {split: child for child in reversed(children) if (split := _split_in(child))}
    alike = "train" in maybe and len(maybe) > 1 and all(map(_split_in, children))
    if alike or any(len(_folders_alone(child, is_input)) > 1 for child in maybe.values()):
        raise InputError(
            f"{folder}: its folders ({_listed(maybe)}) may be splits; {_meant(maybe)}; if they are classes, rename them"
        )
    for child in children:
        inside = {
            SPLIT_FOLDERS.get(os.path.basename(path).casefold()): path for path in _folders_alone(child, is_input)
        }
        splits = {split: inside[split] for split in SPLITS if split in inside}
        if len(splits) > 1 and "train" in splits:
            raise InputError(
                f"{child}: a class, or a data set of its own, that holds splits ({_listed(splits)}); {_meant(splits)}, "
                "or put the classes into the splits"
            )


def _split_in(folder: str) -> Split | None:
    """The split that a name begins or ends with, as ``train_set``, ``test1`` and ``seg_train`` do."""
    words = re.findall("[a-z]+", os.path.basename(folder).casefold()) or [""]
    return SPLIT_FOLDERS.get(words[0]) or SPLIT_FOLDERS.get(words[-1])


def _folders_alone(folder: str, is_input: IsInput) -> list[str]:
    """The folders with images inside one that has no images beside them."""
    with os.scandir(folder) as entries:
        inside = sorted((entry.path, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    if any(is_input(path) for path, is_folder in inside if not is_folder):
        return []
    return [path for path, is_folder in inside if is_folder and _any_input(path, is_input)]


def _any_input(folder: str, is_input: IsInput) -> bool:
    inside = Tree(folder)
    return any(not (problem or inside.hidden(path)) and is_input(path) for path, problem in walk(folder))


def _listed(splits: Mapping[Split, str]) -> str:
    return ", ".join(os.path.basename(folder) for folder in splits.values())


def _meant(splits: Mapping[Split, str]) -> str:
    return "name each: --data.files " + " ".join(f"{split} {folder}" for split, folder in splits.items())


def open_folders(settings: ImageSettings, beside: Beside, streaming: bool) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Split -> its rows, a data set of ``datasets`` with columns image and label, and a summary of what is left out."""
    trees = {split: tree(folder, settings) for split, folder in settings.files.items()}
    for split, found in trees.items():
        for reason, paths in beside.get(split, {}).items():
            found.left_out[reason] += paths
        if not found.images:
            left = ", ".join(f"{len(paths)} {reason}" for reason, paths in found.left_out.items())
            what = INPUTS[settings.source][0]
            raise InputError(f"{found.root}: no {what}s ({left or 'empty'}); correct the path of {split} in files")
    column = settings.label_column
    if column is None:
        labels = _folders(trees, alone=bool(settings.class_names) or "train" not in trees)
    else:
        labels = {split: _told(found, column) for split, found in trees.items()}
    names = sorted({label for label in next(iter(labels.values())) or () if isinstance(label, str)})
    return {
        split: (_rows(found, labels[split], column or "label", names, streaming), summary(found.left_out))
        for split, found in trees.items()
    }


def _rows(found: Tree, labels: list[Any] | None, column: str, names: list[str], streaming: bool) -> Any:
    import datasets  # a second to import

    count = len(found.images)
    stored = [pa.nulls(count, pa.binary()), pa.array(found.images, pa.string())]
    columns = {"image": pa.StructArray.from_arrays(stored, ["bytes", "path"])}
    kinds: dict[str, Any] = {"image": datasets.Image(decode=False)}
    if labels is not None and names:
        numbers = {name: number for number, name in enumerate(names)}
        for path, label in zip(found.images, labels, strict=True):
            if label not in numbers:
                raise InputError(f"{path}: its class {label} is none of train ({listed(names)}); move it, or away")
        columns[column] = pa.array([numbers[label] for label in labels], pa.int64())
        kinds[column] = datasets.ClassLabel(names=names)
    elif labels is not None:
        columns[column] = pa.array(labels)
        kinds |= datasets.Features.from_arrow_schema(pa.schema([(column, columns[column].type)]))
    info = datasets.DatasetInfo(features=datasets.Features(kinds))
    rows = datasets.Dataset(datasets.table.InMemoryTable(pa.table(columns)), info=info)
    return rows.to_iterable_dataset(num_shards=min(count, SHARDS)) if streaming else rows


def _folders(trees: Mapping[Split, Tree], alone: bool) -> dict[Split, list[str] | None]:
    """For each split the class folder of each image; None where there are no class folders.

    One folder ``alone`` is a class where others are known: named, or those of a model. Else it tells nothing apart.
    """
    lies = {split: [found.class_of(path) for path in found.images] for split, found in trees.items()}
    first = next(iter(trees))
    classes = set(lies[first]) - {""}
    if len(classes) < (1 if alone else 2):
        tables = trees[first].left_out.get(TABLE, [])
        if classes or tables:
            hint = f"name {trees[first].root}/{min(classes)} if it holds class folders" if classes else ""
            hint = f"set label_column to a column of {tables[0]}" if tables else hint
            logger.warning("%s: no two folders of classes, so there are no labels; %s", trees[first].root, hint)
        for split, folders in lies.items():
            if split != first and (others := set(folders) - {""}):
                shown = listed(sorted(others))
                logger.warning(
                    "%s: its folders (%s) are no classes, for %s has none", trees[split].root, shown, trees[first].root
                )
        return {split: None for split in trees}
    found: dict[Split, list[str] | None] = {}
    for split, folders in lies.items():
        found[split] = None if set(folders) == {""} else folders
        if found[split] is None:
            logger.warning("%s: no folders of classes inside, so its images have no labels", trees[split].root)
            continue
        for path, name in zip(trees[split].images, folders, strict=True):
            if name not in classes:
                problem = (
                    f"its folder {name} is no class of {first}" if name else "lies beside the folders of the classes"
                )
                shown = listed(sorted(classes))
                raise InputError(f"{path}: {problem} (the classes are the folders {shown}); move it into one, or away")
    return found


def _told(found: Tree, column: str) -> list[Any]:
    """What the tables beside the images hold for each image in a column; None where they do not mention it."""
    told: dict[str, Any] = {}
    known: set[str] = set()
    for path in found.left_out.pop(TABLE, []):
        try:
            table = _read_table(path)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())}); repair it") from error
        known |= set(table.column_names)
        if {"file_name", column} <= set(table.column_names):
            files = (os.path.join(os.path.dirname(path), str(name)) for name in table["file_name"].to_pylist())
            told |= dict(zip(map(os.path.normpath, files), table[column].to_pylist(), strict=True))
    if not told:
        tables = " or ".join(TABLES)
        raise InputError(
            f"{found.root}: label_column {column} belongs to {tables} there, beside a column file_name; columns found: "
            f"{', '.join(sorted(known)) or 'none'}; correct it, or leave it out where folders are the classes"
        )
    return [told.get(path) for path in found.images]


def _read_table(path: str) -> Any:
    plain_file(path)
    if path.endswith(".csv"):
        return pyarrow.csv.read_csv(path)
    return pyarrow.json.read_json(path) if path.endswith(".jsonl") else pq.read_table(path)
