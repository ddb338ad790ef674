"""Which images belong to which split, and which of them are kept.

Each image has a **lot** in [0, 1): a hash of the seed and of what the image is. The test split takes the images with
the smallest lots, validation those that come next, train the rest; under ``limit`` the smallest lots of a split are
kept. So an image stays in its split whatever order the files come in; where parts are shares, whatever files are added.
"""

from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.random import PCG64, Generator
from numpy.typing import NDArray

from vqstack.images.pieces import cut_of
from vqstack.images.settings import ImageSettings
from vqstack.images.undecoded import Records
from vqstack.reading import plain_file

FETCH = 512  # images fetched at a time; bounds the memory of those that are still encoded


def hashed(record: Any, settings: ImageSettings, root: str | None) -> int:
    """64 bits of the seed and the path below ``root`` (an image folder), else the bytes of the file.

    No path in a packed shard is opened: its image is refused or skipped when it is decoded. A record may have a hash.
    """
    if record is not None and "hash" in record:
        return int(record["hash"])
    stored, path = (record["bytes"], record["path"]) if record is not None else (None, None)
    if stored is None and path is not None and not settings.packed:
        if root is not None:
            stored = path.removeprefix(root).lstrip("/").encode()
        else:
            try:
                with open(plain_file(path), "rb") as file:
                    stored = file.read()
            except OSError:
                stored = path.encode()  # it will be refused or skipped when it is decoded
    return int.from_bytes(blake2b(stored or b"", digest_size=8, key=settings.seed.to_bytes(8, "big")).digest(), "big")


def lot(number: int) -> float:
    """A hash as a number in [0, 1)."""
    return (number >> 11) / 2**53


def lots(stored: Records, settings: ImageSettings) -> NDArray[np.float64]:
    """The lot of every image of a mapped split; by its position in digits and arrays, which are one file."""
    if stored.ordered:
        order = Generator(PCG64(settings.seed)).permutation(stored.count)
        found = np.empty(stored.count)
        found[order] = (np.arange(stored.count) + 0.5) / stored.count
        return found
    positions = np.arange(stored.count)
    batches = (stored.fetch(positions[start : start + FETCH]) for start in range(0, stored.count, FETCH))
    return np.array([lot(hashed(record, settings, stored.root)) for batch in batches for record in batch])


def bounds(stored: set[str], settings: ImageSettings) -> dict[str, tuple[float, float]]:
    """Smallest and largest lot of each split of a stream, which holds out shares: split -> [from, to)."""
    test = 0.0 if "test" in stored else float(settings.test)
    validation = 0.0 if "validation" in stored else float(settings.validation)
    held = {"test": (0.0, test), "validation": (test, test + validation)}
    found = {name: limits for name, limits in held.items() if limits[1] > limits[0]}
    return {name: (0.0, 1.0) for name in stored} | found | {"train": (test + validation, 1.0)}


def partition(
    counts: Mapping[str, int], lots_of: Callable[[str], NDArray[np.float64]], settings: ImageSettings
) -> dict[str, tuple[str, NDArray[np.int64]]]:
    """Split -> (stored split, positions in it, ascending): what is missing is held out of train, then limited.

    Args:
        counts: stored split -> number of images.
        lots_of: the lots of all images of a stored split; asked for where they matter.
        settings: what is held out, and the limit.
    """
    held = [name for name in ("test", "validation") if name not in counts and getattr(settings, name) > 0]
    pieces = cut_of(settings) is not None  # those of an input have one lot and stay together
    parts = {name: (name, np.arange(count)) for name, count in counts.items()}
    found = {name: lots_of(name) for name in counts if settings.limit or (name == "train" and held)}
    if "train" in counts and held:
        order = np.argsort(found["train"], kind="stable")
        sorted_lots, taken, bound = found["train"][order], 0, 0.0
        for name in held:
            share = getattr(settings, name)
            if isinstance(share, int):
                end = min(taken + share, len(order))
                bound = float(sorted_lots[end - 1]) if end else 0.0
            else:
                bound += share
                end = max(taken + 1, int(np.searchsorted(sorted_lots, bound)))
            if pieces and taken < end:
                end = int(np.searchsorted(sorted_lots, sorted_lots[min(end, len(order)) - 1], side="right"))
            parts[name], taken = ("train", np.sort(order[taken:end])), end
        parts["train"] = ("train", np.sort(order[taken:]))
    if settings.limit is not None:
        for name, (origin, positions) in parts.items():
            kept = np.argsort(found[origin][positions], kind="stable")[: settings.limit]
            parts[name] = (origin, positions[np.sort(kept)])
    return parts
