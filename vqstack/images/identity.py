"""What tells the images of a run from others: kept by the run and compared whenever it is started."""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from vqstack.images.cache import CONDITION, state
from vqstack.images.files import local_files
from vqstack.images.records import origins
from vqstack.images.settings import ImageSettings
from vqstack.images.splits import ImageSplit
from vqstack.paths import remote

DIGITS = 16  # of a checksum: enough to tell data sets apart, and to be read


def identity(settings: ImageSettings, splits: Mapping[str, ImageSplit]) -> dict[str, Any]:
    """As JSON: the splits, and of streams also the files, of which the splits hold but a part.

    ``{"train": {"count", "pixels", "labels", "classes"}, …, "files": {"count", "states"}}``. ``pixels`` and
    ``labels`` are checksums of all of them in their order, ``classes`` counts the images of each by its name. A source
    of files that were copied or touched has the same splits; a stream of them does not.
    """
    found: dict[str, Any] = {name: _of_split(split) for name, split in splits.items()}
    if settings.streaming:
        local = [[os.path.basename(path), size, time] for path, size, time in map(state, local_files(settings))]
        away = any(map(remote, settings.files.values())) or (settings.source == "hub" and not local)
        files = local + (origins(settings) if away else [])
        found["files"] = {"count": len(files), "states": _checksum(files)}
    return found


def _of_split(split: ImageSplit) -> dict[str, Any]:
    found: dict[str, Any] = {"count": len(split), "pixels": split.fingerprint[:DIGITS]}
    if split.labels is not None:
        counts = np.bincount(split.labels.numpy(), minlength=split.num_classes).tolist()
        classes = dict(zip(split.class_names, counts, strict=True))
        found |= {"labels": _checksum(split.labels.tolist()), "classes": classes}
    if split.condition is not None:
        found["condition"] = split.cache.sha256[CONDITION][:DIGITS]
    return found


def _checksum(values: list[Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:DIGITS]
