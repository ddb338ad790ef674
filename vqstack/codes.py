"""Stored code maps: writer, reader, fingerprint; stores, never encodes.

Two forms. The cache of a training run holds one level's maps per split as ``.npy``, for nobody but that run. A code
data set is for others: one parquet file per split, a manifest and a card, read by :class:`CodeDataset` and by
``datasets.load_dataset(FOLDER)``. In memory codes are int64, on disk the smallest unsigned integer that holds them.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, StringConstraints, ValidationError, model_validator
from torch import Tensor

from vqstack.errors import InputError
from vqstack.shapes import Codes, Labels

FORMAT_VERSION = 1
UNFINISHED = ".vqstack-unfinished"
ENCODE = "encode_dataset"  # the command that writes code data sets, as named in the marker of unfinished output
ROW_GROUP = 4096  # images written at a time; bounds memory and keeps list offsets inside 32 bits


def smallest_dtype(vocabulary: int) -> np.dtype[Any]:
    """The smallest of uint8, uint16 and uint32 that holds the codes 0 … ``vocabulary`` - 1."""
    for name in ("uint8", "uint16", "uint32"):
        if vocabulary <= np.iinfo(name).max + 1:
            return np.dtype(name)
    raise ValueError(f"no unsigned integer of at most 32 bits holds {vocabulary} codes")


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """SHA-256, in hexadecimal, of the sorted names, dtypes, shapes and bytes of ``state``, wherever its tensors lie."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode() + b"\n")
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def claim_folder(path: Path, command: str) -> None:
    """Makes ``path`` an empty folder marked as the unfinished output of ``command``.

    It must be absent, empty, or unfinished output of the same command, whose leftovers are then removed. Anything else
    is an InputError, and nothing is touched.
    """
    marker = path / UNFINISHED
    try:
        if path.exists() and not path.is_dir():
            raise InputError(f"{path}: is a file, not a folder; name another output folder")
        owner = marker.read_text("utf-8").strip() if marker.exists() else ""
        leftovers = [child for child in path.iterdir() if child != marker] if path.exists() else []
        if owner not in ("", command):
            raise InputError(f"{path}: holds unfinished output of {owner}; name another output folder or remove it")
        if leftovers and owner != command:
            raise InputError(f"{path}: is not empty; name another output folder or remove it")
        path.mkdir(parents=True, exist_ok=True)
        marker.write_text(command + "\n", "utf-8")
        for child in leftovers:
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child)
            else:
                child.unlink()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be used as output folder ({error}); name another one") from error


def release_folder(path: Path) -> None:
    """Marks the output in ``path`` as finished: from now on no command writes there."""
    (path / UNFINISHED).unlink(missing_ok=True)


def save_maps(folder: Path, split: str, codes: Codes, vocabulary: int, print_: str) -> None:
    """Caches one level's maps of one split; ``print_`` is the fingerprint of whatever they depend on.

    ``SPLIT.json`` is taken away first and comes back last, so that a killed run leaves maps without a fingerprint,
    never maps under the wrong one.
    """
    stored = _to_stored(codes, vocabulary)
    folder.mkdir(parents=True, exist_ok=True)
    about, maps = folder / f"{split}.json", folder / f"{split}.npy"
    about.unlink(missing_ok=True)
    aside = folder / f"{split}.npy.tmp"
    with aside.open("wb") as file:
        np.save(file, stored)
    os.replace(aside, maps)
    aside = folder / f"{split}.json.tmp"
    description = {"fingerprint": print_, "vocabulary": vocabulary, "map_shape": list(codes.shape[1:])}
    aside.write_text(json.dumps(description) + "\n", "utf-8")
    os.replace(aside, about)


def load_maps(folder: Path, split: str, print_: str) -> Codes | None:
    """Maps cached by :func:`save_maps`, or None where there are none under this fingerprint."""
    about = folder / f"{split}.json"
    if not about.exists() or json.loads(about.read_text("utf-8"))["fingerprint"] != print_:
        return None
    return torch.from_numpy(np.load(folder / f"{split}.npy", allow_pickle=False).astype(np.int64))


class _Manifest(BaseModel):
    """manifest.json; keys that are not known here are ignored."""

    model_config = ConfigDict(frozen=True, strict=True)

    format_version: int
    map_shapes: list[Annotated[list[PositiveInt], Field(min_length=1)]] = Field(min_length=1)
    vocabularies: list[Annotated[int, Field(ge=1, le=2**32)]]
    fingerprint: str
    source: dict[str, Any]
    # Names become parts of paths.
    splits: dict[Annotated[str, StringConstraints(pattern=r"^\w+$")], Annotated[int, Field(ge=0)]]

    @model_validator(mode="after")
    def _one_vocabulary_a_level(self) -> "_Manifest":
        if len(self.map_shapes) != len(self.vocabularies):
            raise ValueError(f"{len(self.map_shapes)} map shapes but {len(self.vocabularies)} vocabularies")
        return self


class CodeDatasetWriter:
    """Writes a code data set: ``write_split`` for each split, labelled ones first, then ``finish``.

    Args:
        folder: the output folder, claimed at once (:func:`claim_folder`, InputError) and released by ``finish``.
        map_shapes: axes of the map of each level, level 1 first.
        vocabularies: number of codes of each level.
        fingerprint: of the encoder (:func:`fingerprint`).
        source: where the images came from, as JSON.
    """

    def __init__(
        self,
        folder: Path,
        map_shapes: Sequence[Sequence[int]],
        vocabularies: Sequence[int],
        fingerprint: str,
        source: dict[str, Any],
    ) -> None:
        self._manifest = _Manifest(
            format_version=FORMAT_VERSION,
            map_shapes=[list(shape) for shape in map_shapes],
            vocabularies=list(vocabularies),
            fingerprint=fingerprint,
            source=source,
            splits={},
        )
        self._folder = folder
        self._labelled: bool | None = None
        claim_folder(folder, ENCODE)
        (folder / "data").mkdir()

    def write_split(
        self, split: str, index: Int64[Tensor, "b"], labels: Labels | None, codes: Sequence[Int64[Tensor, "b ..."]]
    ) -> None:
        """Writes one split: position of each image in its source, labels where there are any, a map of each level."""
        manifest = self._manifest
        shapes = [list(maps.shape) for maps in codes]
        if shapes != [[len(index), *shape] for shape in manifest.map_shapes]:
            raise ValueError(f"codes of shapes {shapes} for {len(index)} images with maps {manifest.map_shapes}")
        if split in manifest.splits or not split.isidentifier():
            raise ValueError(f"{split}: written already, or not a name")
        # One schema for all splits, else `datasets` refuses the folder: where labels are secret they are null.
        if self._labelled is None:
            self._labelled = labels is not None
        elif labels is not None and not self._labelled:
            raise ValueError(f"{split} has labels and an earlier split has none; write labelled splits first")
        stored = [_to_stored(maps, vocabulary) for maps, vocabulary in zip(codes, manifest.vocabularies, strict=True)]
        schema = pa.schema(_fields(manifest, self._labelled))
        with pq.ParquetWriter(_split_path(self._folder, split), schema) as file:
            for start in range(0, len(index), ROW_GROUP):
                rows = slice(start, start + ROW_GROUP)
                columns = [pa.array(index[rows].cpu().numpy())]
                if self._labelled:
                    count = len(columns[0])
                    columns += [pa.nulls(count, pa.int64()) if labels is None else pa.array(labels[rows].cpu().numpy())]
                columns += [_nested(maps[rows]) for maps in stored]
                file.write_table(pa.table(columns, schema=schema))
        manifest.splits[split] = len(index)

    def finish(self) -> None:
        """Writes the manifest and the data set card, and marks the folder as finished."""
        manifest = json.dumps(self._manifest.model_dump(), indent=2)
        (self._folder / "manifest.json").write_text(manifest + "\n", "utf-8")
        (self._folder / "README.md").write_text(_card(self._manifest), "utf-8")
        release_folder(self._folder)


class CodeDataset:
    """Reads a code data set. InputError names the file, and the column, that is not as the manifest says.

    Opening reads the manifest and what the files say about their columns; the codes are read and checked by ``read``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._manifest = _read_manifest(folder)
        for split, count in self._manifest.splits.items():
            path = _split_path(folder, split)
            rows, schema = _read_parquet(path)
            if rows != count:
                raise InputError(f"{path}: {rows} rows where manifest.json has {count}; encode the data set again")
            for wanted in _fields(self._manifest, "label" in schema.names):
                if wanted.name not in schema.names:
                    raise InputError(f"{path}: no column {wanted.name}; encode the data set again")
                found = schema.field(wanted.name).type
                if _depth(found) != _depth(wanted.type):
                    raise InputError(f"{path}: column {wanted.name} is {found}, not {wanted.type}; encode it again")

    @property
    def splits(self) -> dict[str, int]:
        """Number of images of each split."""
        return dict(self._manifest.splits)

    @property
    def map_shapes(self) -> list[tuple[int, ...]]:
        """Axes of the map of each level, level 1 first."""
        return [tuple(shape) for shape in self._manifest.map_shapes]

    @property
    def vocabularies(self) -> list[int]:
        """Number of codes of each level, level 1 first."""
        return list(self._manifest.vocabularies)

    @property
    def source(self) -> dict[str, Any]:
        """Where the images came from."""
        return self._manifest.source

    def check(self, fingerprint: str, map_shapes: Sequence[Sequence[int]], vocabularies: Sequence[int]) -> None:
        """InputError unless the codes are those of an encoder with this fingerprint, these maps and vocabularies."""
        stored = self._manifest
        shapes = [list(shape) for shape in map_shapes]
        if shapes != stored.map_shapes:
            problem = f"maps of {stored.map_shapes} where the model has {shapes}"
        elif list(vocabularies) != stored.vocabularies:
            problem = f"vocabularies {stored.vocabularies} where the model has {list(vocabularies)}"
        elif fingerprint != stored.fingerprint:
            problem = f"codes of encoder {stored.fingerprint[:12]} where the model's is {fingerprint[:12]}"
        else:
            return
        raise InputError(f"{self.folder}: {problem}; encode the data set with this model, or name the one it is from")

    def read(self, split: str) -> tuple[Int64[Tensor, "b"], Labels | None, list[Int64[Tensor, "b ..."]]]:
        """(positions in the source, labels or None, [codes of level 1, …, codes of level L]) of one split."""
        if split not in self._manifest.splits:
            raise InputError(f"{self.folder}: no split {split}; it has {', '.join(self._manifest.splits)}")
        path = _split_path(self.folder, split)
        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path}: cannot be read ({error}); encode the data set again") from error
        index = _to_codes(table["index"], [], None, path, "index")
        secret = "label" not in table.column_names or (len(table) > 0 and table["label"].null_count == len(table))
        labels = None if secret else _to_codes(table["label"], [], None, path, "label")
        levels = enumerate(zip(self._manifest.map_shapes, self._manifest.vocabularies, strict=True), 1)
        codes = [_to_codes(table[f"codes_{n}"], shape, size, path, f"codes_{n}") for n, (shape, size) in levels]
        return index, labels, codes


def _split_path(folder: Path, split: str) -> Path:
    return folder / "data" / f"{split}-00000-of-00001.parquet"


def _fields(manifest: _Manifest, labelled: bool) -> list[Any]:
    """The columns of every file, in order."""
    fields = [pa.field("index", pa.int64())] + [pa.field("label", pa.int64())] * labelled
    for level, (shape, vocabulary) in enumerate(zip(manifest.map_shapes, manifest.vocabularies, strict=True), 1):
        kind = pa.from_numpy_dtype(smallest_dtype(vocabulary))
        for _ in shape:
            kind = pa.list_(kind)
        fields.append(pa.field(f"codes_{level}", kind))
    return fields


def _depth(kind: Any) -> int | None:
    """How many lists are wrapped around a whole number, of whatever width; None if it is not a whole number."""
    depth = 0
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind, depth = kind.value_type, depth + 1
    return depth if pa.types.is_integer(kind) else None


def _to_stored(codes: Tensor, vocabulary: int) -> NDArray[Any]:
    values = codes.cpu().numpy()
    if values.size and not (values.min() >= 0 and values.max() < vocabulary):
        raise ValueError(f"codes from {values.min()} to {values.max()} in a vocabulary of {vocabulary}")
    return values.astype(smallest_dtype(vocabulary))


def _nested(maps: NDArray[Any]) -> Any:
    """[n, *map] -> an arrow array of n nested lists, without a Python object per code."""
    array = pa.array(maps.reshape(-1))
    for axis in range(maps.ndim - 1, 0, -1):
        lists = int(np.prod(maps.shape[:axis]))
        array = pa.ListArray.from_arrays(np.arange(lists + 1, dtype=np.int32) * maps.shape[axis], array)
    return array


def _to_codes(column: Any, shape: list[int], vocabulary: int | None, path: Path, name: str) -> Tensor:
    """A column of nested lists -> int64 [n, *shape], checked; the inverse of :func:`_nested`."""
    count = len(column)
    for size in shape:
        if column.null_count or not pc.all(pc.equal(pc.list_value_length(column), size), min_count=0).as_py():
            raise InputError(f"{path}: column {name} has maps that are not of shape {shape}; encode the data set again")
        column = pc.list_flatten(column)
    if column.null_count:
        raise InputError(f"{path}: column {name} has missing values; encode the data set again")
    values = column.to_numpy().astype(np.int64).reshape(count, *shape)
    if vocabulary is not None and values.size and not (values.min() >= 0 and values.max() < vocabulary):
        found = f"codes from {values.min()} to {values.max()}"
        raise InputError(f"{path}: column {name} has {found}, outside 0 … {vocabulary - 1}; encode the data set again")
    return torch.from_numpy(values)


def _read_manifest(folder: Path) -> _Manifest:
    path = folder / "manifest.json"
    if (folder / UNFINISHED).exists():
        raise InputError(f"{folder}: is unfinished; run the command that writes it again")
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{folder}: no code data set there ({error}); name a folder of {ENCODE}") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); encode the data set again") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise InputError(
            f"{path}: format version {version}, and {FORMAT_VERSION} is read here; install a newer vqstack"
        )
    try:
        return _Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "manifest"
        raise InputError(f"{path}: {where}: {first['msg']}; encode the data set again") from error


def _read_parquet(path: Path) -> tuple[int, Any]:
    """(rows, schema), from the end of the file."""
    try:
        with pq.ParquetFile(path) as file:
            return file.metadata.num_rows, file.schema_arrow
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read ({error}); encode the data set again") from error


def _card(manifest: _Manifest) -> str:
    """README.md: the front matter tells ``datasets`` which file is which split."""
    files = [f"  - split: {split}\n    path: {_split_path(Path(), split).as_posix()}" for split in manifest.splits]
    levels = enumerate(zip(manifest.map_shapes, manifest.vocabularies, strict=True), 1)
    maps = [f"| codes_{level} | {'×'.join(map(str, shape))} | {size} |" for level, (shape, size) in levels]
    lines = [
        "---",
        "configs:",
        "- config_name: default",
        "  data_files:",
        *files,
        "tags:",
        "- vqstack",
        "---",
        "# Image codes",
        "One row an image: `index` is its position in the source split, `label` its class where there is one, and",
        "`codes_1` and up are its code maps, from the level next to the pixels upwards.",
        "",
        "| column | map | vocabulary |",
        "|---|---|---|",
        *maps,
        "",
        f"Encoder: `{manifest.fingerprint}`. Rows: {', '.join(f'{n} {s}' for s, n in manifest.splits.items())}.",
        "",
        "Source:",
        "```json",
        json.dumps(manifest.source, indent=2),
        "```",
    ]
    return "\n".join(lines) + "\n"
