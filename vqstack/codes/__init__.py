"""Stored code maps: writer, reader, fingerprint; stores, never encodes.

Two forms. The cache of a training run (:mod:`vqstack.codes.cache`) holds one level's maps of one split as ``.npy``, for
nobody but that run. A code data set (:mod:`vqstack.codes.dataset`) is for others: Parquet shards, a manifest and a
card, read by :class:`CodeDataset` and by ``datasets.load_dataset(FOLDER)``. In memory codes are int64, on disk the
smallest unsigned integer that holds them.
"""

from vqstack.codes.cache import MapCache
from vqstack.codes.dataset import PUBLISHED, SHARD_SIZE, CodeDataset, CodeDatasetWriter, StoredCodes
from vqstack.codes.manifest import ENCODE, INSTALL, Contents, Shard, holds_codes, source_of, told
from vqstack.codes.shared import LEASE, SharedWriter
from vqstack.codes.storage import fingerprint, smallest_dtype, to_stored

__all__ = [
    "ENCODE",
    "INSTALL",
    "LEASE",
    "PUBLISHED",
    "SHARD_SIZE",
    "CodeDataset",
    "CodeDatasetWriter",
    "Contents",
    "MapCache",
    "Shard",
    "SharedWriter",
    "StoredCodes",
    "fingerprint",
    "holds_codes",
    "smallest_dtype",
    "source_of",
    "to_stored",
    "told",
]
