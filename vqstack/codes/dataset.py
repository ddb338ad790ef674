"""Code data sets: ``data/SPLIT-00000-of-0000N.parquet``, ``manifest.json``, a card and checksums.

Written shard by shard, by any number of processes, so that a killed command goes on where it stopped and ends with the
bytes of one that was not killed. Read shard by shard, in memory that does not grow with the data set.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from vqstack.codes.columns import MAX_CLASSES, tables, to_codes, to_labels, write_rows
from vqstack.codes.manifest import (
    ENCODE,
    FORMAT_VERSION,
    MANIFEST,
    Contents,
    Manifest,
    Shard,
    StoredShard,
    card,
    read_manifest,
    shards_of,
)
from vqstack.codes.storage import ASIDE, to_stored
from vqstack.disk import digest, make_folder, remove, write_atomically, write_text
from vqstack.errors import InputError
from vqstack.hub import fetched
from vqstack.output import Output, check_folder
from vqstack.reading import plain_file
from vqstack.shapes import AnyCodes, Labels

SHARD_SIZE = 10_000
PUBLISHED = (MANIFEST, "README.md", "SHA256SUMS", "data/*.parquet")
"""Patterns of the files of a finished data set."""


@dataclass(frozen=True, eq=False)
class StoredCodes:
    """Some images of a split, in its order."""

    index: Int64[Tensor, "b"]  # position of each image in its source
    labels: Labels | None  # classes, where they are known
    codes: list[AnyCodes]  # maps of levels 1 … L

    def __repr__(self) -> str:
        return f"StoredCodes({len(self.index)} images, maps {[[*codes.shape[1:]] for codes in self.codes]})"


def plan_of(contents: Contents, splits: Mapping[str, int], shard_size: int, settings: Mapping[str, Any]) -> str:
    """All that the files hang on, in a line: unfinished output is gone on with where it is the same."""
    return json.dumps(
        {
            "format_version": FORMAT_VERSION,
            "contents": contents.held(),
            "splits": dict(splits),
            "shard_size": shard_size,
            "settings": dict(settings),
            "pyarrow": pa.__version__,  # other versions may write other bytes
        }
    )


def rows_of(shard: Shard, contents: Contents, batches: Iterable[StoredCodes]) -> tuple[Any, Any, list[NDArray[Any]]]:
    """The images of one shard, given in batches of any size: their positions, their labels, the maps of each level."""
    index, labels, maps = [], [], []
    for batch in batches:
        if batch.labels is not None and not contents.labelled:
            raise ValueError(f"{shard.file}: labels in a data set without labels")
        index.append(batch.index.cpu().numpy())
        if batch.labels is not None:
            labels.append(batch.labels.cpu().numpy())
        sized = zip(batch.codes, contents.vocabularies, strict=True)
        maps.append([to_stored(codes, vocabulary) for codes, vocabulary in sized])
    levels = [np.concatenate(level) for level in zip(*maps, strict=True)]
    found = [level.shape for level in levels]
    if found != [(shard.rows, *shape) for shape in contents.map_shapes]:
        raise ValueError(f"{shard.file}: codes of shapes {found}, not {shard.rows} of {contents.map_shapes}")
    return np.concatenate(index), np.concatenate(labels) if labels else None, levels


def closing_files(contents: Contents, shards: Sequence[Shard], checksums: Mapping[str, str]) -> dict[str, str]:
    """What is written when all shards are: manifest, card and ``SHA256SUMS``, in that order.

    Args:
        contents: what the files have in common.
        shards: all of them.
        checksums: file name of each shard -> SHA-256 of its file.
    """
    splits: dict[str, list[StoredShard]] = {}
    for shard in shards:
        stored = StoredShard(file=shard.file, rows=shard.rows, sha256=checksums[shard.file])
        splits.setdefault(shard.split, []).append(stored)
    manifest = Manifest(format_version=2, splits=splits, **dict(contents))
    dump, order = manifest.model_dump(), ("format_version", *Contents.model_fields, "splits")
    texts = {MANIFEST: json.dumps({name: dump[name] for name in order}, indent=1) + "\n", "README.md": card(manifest)}
    sums = {shard.path(Path()).as_posix(): checksums[shard.file] for shard in shards}
    sums |= {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    return texts | {"SHA256SUMS": "".join(f"{checksum}  {name}\n" for name, checksum in sums.items())}


class CodeDatasetWriter:
    """Writes a code data set. Nothing is written before ``claim``; an unusable folder is an InputError at once.

    One process calls ``claim``; then each shard of ``shards`` that is not ``complete`` is written by one process; when
    all are, one calls ``finish`` with the checksums of all.

    Args:
        folder: the output folder: new, empty, or unfinished output of the same contents, splits and settings, whose
            complete shards are kept.
        contents: what the files have in common.
        splits: number of images of each split.
        shard_size: images a shard.
        settings: whatever else the codes hang on, as JSON; must be the same when an unfinished output is gone on with.
    """

    def __init__(
        self,
        folder: Path,
        contents: Contents,
        splits: Mapping[str, int],
        *,
        shard_size: int = SHARD_SIZE,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.contents = folder, contents
        self.shards = [shard for split, images in splits.items() for shard in shards_of(split, images, shard_size)]
        self._plan = plan_of(contents, splits, shard_size, settings or {})
        check_folder(folder, ENCODE, self._plan)

    def claim(self) -> None:
        """Marks the folder as this data set's unfinished output, which no other command may write then."""
        self._output = Output(self.folder, ENCODE, self._plan)
        make_folder(self.folder / "data")

    def complete(self, shard: Shard) -> bool:
        """Whether the shard's file is there, with the bytes that were written; reads it."""
        try:
            return plain_file(self._seal(shard)).read_text("utf-8") == self.checksum(shard)
        except (InputError, OSError, UnicodeDecodeError):
            return False

    def _seal(self, shard: Shard) -> Path:
        """Where the checksum of a shard stands until the manifest has those of all."""
        return shard.path(self.folder).with_suffix(".sha256")

    def write(self, shard: Shard, batches: Iterable[StoredCodes]) -> None:
        """Writes the images of one shard, given in batches of any size."""
        rows = rows_of(shard, self.contents, batches)
        remove(self._seal(shard))
        write_atomically(shard.path(self.folder), lambda aside: write_rows(aside, self.contents, *rows))
        text = self.checksum(shard)
        write_text(self._seal(shard), text)

    def checksum(self, shard: Shard) -> str:
        """SHA-256 of a complete shard's file."""
        return digest(shard.path(self.folder))

    def finish(self, checksums: Mapping[str, str]) -> None:
        """Writes manifest, card and ``SHA256SUMS``, and marks the folder as finished.

        Args:
            checksums: file name of each shard -> SHA-256 of its file.
        """
        for shard in self.shards:  # what a killed process was writing
            for path in (shard.path(self.folder), self._seal(shard)):
                remove(path.with_name(path.name + ASIDE))
        for name, text in closing_files(self.contents, self.shards, checksums).items():
            write_text(self.folder / name, text)
        self._output.finish()
        for shard in self.shards:  # last: a command that was killed before would encode the shard again
            remove(self._seal(shard))


class CodeDataset:
    """Reads a code data set. InputError names the file, and the column, that is not as the manifest says.

    Opening reads the manifest and what the files say about themselves; the codes are read and checked shard by shard.

    Args:
        folder: of the data set, or its name on the hub: OWNER/NAME or OWNER/NAME@REVISION.
    """

    def __init__(self, folder: Path | str) -> None:
        folder = fetched(folder, "dataset", PUBLISHED, "a code data set")
        self.folder = folder
        self._manifest = read_manifest(folder)
        shards = [shard for split in self._manifest.splits for shard in self._manifest.shards(split)]
        for _ in tables(folder, shards, self._manifest, read=False):
            pass
        self._refuse_unnamed()

    def __repr__(self) -> str:
        return f"CodeDataset({self.folder}: {self.splits}, maps {self.map_shapes} of {self.vocabularies} codes)"

    def _refuse_unnamed(self) -> None:
        """A manifest that has lost a split would read as a smaller data set."""
        named = {shard.file for split in self._manifest.splits for shard in self._manifest.shards(split)}
        for path in sorted((self.folder / "data").glob("*.parquet")):
            if path.name not in named:
                raise InputError(f"{path}: {MANIFEST} does not name it; put back the manifest, or remove the file")

    @property
    def splits(self) -> dict[str, int]:
        """Number of images of each split."""
        return {split: self._manifest.images(split) for split in self._manifest.splits}

    @property
    def map_shapes(self) -> list[tuple[int, ...]]:
        """Axes of the map of each level, level 1 first."""
        return [tuple(shape) for shape in self._manifest.map_shapes]

    @property
    def vocabularies(self) -> list[int]:
        """Number of codes of each level, level 1 first."""
        return list(self._manifest.vocabularies)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in the order of their numbers; empty without labels, and in older data sets."""
        return list(self._manifest.class_names)

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

    def verify(self) -> None:
        """InputError naming the first file whose bytes are not those of its checksum; reads every file once."""
        for split in self._manifest.splits:
            for shard in self._manifest.shards(split):
                self._verified(shard)

    def _verified(self, shard: Shard) -> Shard:
        path, known = shard.path(self.folder), self._manifest.splits[shard.split][shard.number].sha256
        if known is not None and digest(path) != known:
            raise InputError(f"{path}: not the bytes that manifest.json has a checksum of; encode it again")
        return shard

    def blocks(self, split: str) -> Iterator[StoredCodes]:
        """A split in its order, some thousand images at a time; memory does not grow with the data set."""
        self._check_split(split)
        manifest = self._manifest
        classes = len(manifest.class_names) or MAX_CLASSES
        for path, table in tables(self.folder, map(self._verified, manifest.shards(split)), manifest, read=True):
            levels = enumerate(zip(manifest.map_shapes, manifest.vocabularies, strict=True), 1)
            codes = [to_codes(table, f"codes_{n}", shape, size, path) for n, (shape, size) in levels]
            yield StoredCodes(to_codes(table, "index", [], None, path), to_labels(table, classes, path), codes)

    def read(self, split: str) -> StoredCodes:
        """A whole split in memory, 8 bytes a code."""
        self._check_split(split)
        blocks = list(self.blocks(split))
        known = [block.labels for block in blocks if block.labels is not None]
        if 0 < len(known) < len(blocks):
            raise InputError(f"{self.folder}: column label of {split} has missing values; encode the data set again")
        return StoredCodes(
            torch.cat([block.index for block in blocks]),
            torch.cat(known) if known else None,
            [torch.cat(level) for level in zip(*(block.codes for block in blocks), strict=True)],
        )

    def _check_split(self, split: str) -> None:
        if split not in self._manifest.splits:
            raise InputError(f"{self.folder}: no split {split}; it has {', '.join(self._manifest.splits)}")
