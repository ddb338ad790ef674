"""Tensors that processes hold in shards, on the disk: torch.distributed.checkpoint, one file a process.

A state is a tree of dicts. On the disk it is two things: the state itself, in which a tensor on the meta device stands
for each sharded one, and a folder with the shards. Any number of processes can read what any other number wrote.
"""

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter, load, save
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor import empty as empty_shards

from vqstack.disk import digest

METADATA = ".metadata"  # as torch.distributed.checkpoint calls it: which piece of which tensor lies where
# Modules and names that its pickle may use, beside formats of numbers.
NAMES = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "pathlib": {"PosixPath"},
    "pathlib._local": {"PosixPath"},
}


def mapped(change: Callable[[str, Any], Any], state: Any, path: str = "") -> Any:
    """The same tree with each leaf replaced by what ``change`` makes of its path and of itself."""
    if not isinstance(state, dict):
        return change(path, state)
    return {key: mapped(change, value, f"{path}/{key}") for key, value in state.items()}


def local(tensor: Any) -> Any:
    """What this process holds of a tensor: its shard, or all of it; the memory is shared."""
    return tensor._local_tensor.detach() if isinstance(tensor, DTensor) else tensor


def held(state: dict[str, Any]) -> dict[str, Any]:
    """The same tree with what this process holds of each tensor."""
    return mapped(lambda _, leaf: local(leaf), state)


def split(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, DTensor]]:
    """The state with tensors of the meta device in the place of sharded ones, and these by their paths."""
    sharded: dict[str, DTensor] = {}

    def change(path: str, leaf: Any) -> Any:
        if not isinstance(leaf, DTensor):
            return leaf
        sharded[path] = leaf
        return torch.empty(leaf.shape, dtype=leaf.dtype, device="meta")

    return mapped(change, state), sharded


def write(folder: Path, sharded: dict[str, DTensor], group: Any) -> dict[str, str]:
    """Write the shards of all processes and force them to the disk; the checksum of each file, by its name.

    OSError in every process where one cannot write.

    Args:
        folder: receives a file of each process.
        sharded: see :func:`split`.
        group: of the processes, on the CPU.
    """
    rank = dist.get_rank(group)
    with _told():
        save(sharded, storage_writer=FileSystemWriter(folder), process_group=group)
    mine = [*folder.glob(f"__{rank}_*"), *([folder / METADATA] if rank == 0 else [])]
    everyones: list[Any] = [None] * dist.get_world_size(group)
    try:
        found: Any = {path.name: digest(path) for path in mine}
    except OSError as error:  # the others must hear of it
        found = error
    dist.all_gather_object(everyones, found, group=group)
    failed = next((one for one in everyones if isinstance(one, OSError)), None)
    if failed is not None:
        raise failed
    return {name: sha256 for one in everyones for name, sha256 in one.items()}


def filled(folder: Path, state: dict[str, Any], mesh: DeviceMesh | None, group: Any = None) -> dict[str, Any]:
    """The state, or a part of its tree, with what the folder holds in the place of tensors of the meta device.

    ValueError in every process where the folder does not hold it.

    Args:
        folder: that :func:`write` wrote.
        state: as :func:`split` left it.
        mesh: of the processes that now share each tensor; None: this process takes them whole, on the CPU.
        group: of the processes, on the CPU.
    """
    wanted: dict[str, Tensor] = {}

    def room(path: str, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_meta:
            return leaf
        if mesh is None:
            wanted[path] = torch.empty(leaf.shape, dtype=leaf.dtype)
        else:
            wanted[path] = empty_shards(leaf.shape, dtype=leaf.dtype, device_mesh=mesh, placements=[Shard(0)])
        return wanted[path]

    state = mapped(room, state)
    if wanted:
        try:
            with _told(), torch.no_grad(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process reads by itself
                load(wanted, storage_reader=_Reader(folder), process_group=group, no_dist=mesh is None)
        except (OSError, pickle.UnpicklingError) as error:
            raise ValueError(f"{folder}: {error}") from error
    return state


class _Reader(FileSystemReader):
    """Reads a folder that may be a stranger's: its metadata is a pickle, and may name nothing but metadata."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / METADATA).open("rb") as file:
            metadata = _Unpickler(file).load()
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        number = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if number or name in NAMES.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{METADATA} names {module}.{name}, which is no metadata")


class _told:
    """Turns the library's exception of any process, which is no Exception, into an OSError that says what it was."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, CheckpointException):
            causes = [cause for cause, _ in error.failures.values()]
            first = next((cause for cause in causes if isinstance(cause, OSError)), causes[0])
            raise (first if isinstance(first, OSError) else OSError(f"{type(first).__name__}: {first}")) from error
