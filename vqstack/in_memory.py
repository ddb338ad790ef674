"""Images in memory as the data set of a run: arrays, data sets of torch, data sets of ``datasets``.

They are written into a file beside the run, so that the same call goes on where it stopped, and a run with other images
is told from it.
"""

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor
from torch.utils.data import Dataset

from vqstack.config import RunConfig, changed
from vqstack.disk import make_folder, remove, write_atomically
from vqstack.errors import InputError, explain
from vqstack.images import ImageSettings
from vqstack.run_folder import check_run_folder

InMemory: TypeAlias = NDArray[Any] | Tensor | Dataset | Any
"""An array, a data set of torch, a data set of ``datasets`` or several by the names of their splits."""
OF_ANY_SOURCE = {"limit", "seed", "resident"}
HELD_OUT = {"validation", "test"}
OF_FILES = {"size", "resize", "channels", "values", "background", "on_error", "image_column", "label_column"}


def with_images(
    config: RunConfig, folder: Path, images: InMemory, labels: Any, condition: Any, values: int | None
) -> tuple[RunConfig, AbstractContextManager[None]]:
    """The settings with these images as their data set, and what writes that beside the folder of the run.

    InputError where they do not fit each other, or the folder holds a run of others.
    """
    if _of_datasets(images) or (isinstance(images, Mapping) and images and all(map(_of_datasets, images.values()))):
        if any(given is not None for given in (labels, condition)):
            raise InputError("labels, condition: a data set has columns of them: name these in data, or leave them out")
        data, contents = _from_datasets(config, images if isinstance(images, Mapping) else {"train": images}, values)
    else:
        if isinstance(images, Dataset):
            images, labels = _from_torch(images, labels)
        data, contents = _from_arrays(config, np.asarray(images), labels, condition, values)
    data |= config.data.model_dump(include=OF_ANY_SOURCE | (HELD_OUT if config.data.source != "digits" else set()))
    # Named by what it holds: a run in the folder that had other images is refused, and keeps its own.
    paths = {split: _beside(folder, split, content) for split, content in contents.items()}
    try:
        given = ImageSettings.model_validate(data | {"files": {split: str(path) for split, path in paths.items()}})
    except ValidationError as error:
        raise InputError(explain(error, "data")) from error
    config = changed(config, {"data": given})
    check_run_folder(folder, config)
    return config, _all_written({paths[split]: content for split, content in contents.items()})


def _beside(folder: Path, split: str, content: io.BytesIO) -> Path:
    kind = "npz" if bytes(content.getbuffer()[:2]) == b"PK" else "parquet"
    part = "" if kind == "npz" else f"-{split}"
    checksum = hashlib.sha256(content.getbuffer()).hexdigest()[:12]
    return folder.absolute().parent / f"{folder.name}-images{part}-{checksum}.{kind}"


def _from_arrays(
    config: RunConfig, images: NDArray[Any], labels: Any, condition: Any, values: int | None
) -> tuple[dict[str, Any], dict[str, io.BytesIO]]:
    """Fields of the data set, and its file."""
    arrays = {"images": images, "labels": labels, "condition": condition}
    arrays = {name: np.asarray(array) for name, array in arrays.items() if array is not None}
    for name, array in arrays.items():
        if len(array) != len(images):
            raise InputError(f"{name}: {len(array)} for {len(images)} images: give one for each")
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]  # names that are no options of it
    colours = 3 if images.ndim == 4 and 3 in (images.shape[1], images.shape[3]) else 1
    data: dict[str, Any] = {"source": "array", "channels": colours, "values": values or config.data.values}
    return data | {"condition": "condition" if condition is not None else None}, {"train": content}


def _from_torch(images: Any, labels: Any) -> tuple[NDArray[Any], Any]:
    """The images of a data set that is asked for one after the other, and the labels that come with them."""
    items = [images[number] for number in range(len(images))]
    if not items:
        raise InputError("images: an empty data set: give one with images")
    if not isinstance(items[0], tuple | list):
        return _stacked(items), labels
    if labels is not None or any(len(item) != 2 for item in items):
        raise InputError("images: a data set gives images, or pairs of image and label and no others beside it")
    return _stacked([image for image, _ in items]), [int(label) for _, label in items]


def _stacked(images: Sequence[Any]) -> NDArray[Any]:
    arrays = [np.asarray(image) for image in images]
    if len({array.shape for array in arrays}) > 1:
        raise InputError("images: of several sizes: bring them to one, or store them in a folder and use recipe folder")
    return np.stack(arrays)


def _of_datasets(images: Any) -> bool:
    return hasattr(images, "features") and hasattr(images, "to_parquet")


def _from_datasets(
    config: RunConfig, splits: Mapping[str, Any], values: int | None
) -> tuple[dict[str, Any], dict[str, io.BytesIO]]:
    """Fields of the data set, and a Parquet file for each split, images included that lie in files of their own."""
    from datasets.table import embed_table_storage  # a second to import

    if "train" not in splits or splits.keys() - {"train", "validation", "test"}:
        raise InputError(f"images: splits {', '.join(splits)}: give train, and perhaps validation and test")
    contents: dict[str, io.BytesIO] = {}
    for split, rows in splits.items():
        whole = rows.with_format("arrow").map(embed_table_storage, batched=True, keep_in_memory=True)
        whole.with_format(None).to_parquet(contents.setdefault(split, io.BytesIO()))
    own = config.data.source != "digits"
    data = config.data.model_dump(include=OF_FILES) if own else {"channels": _channels(splits["train"])}
    return {**data, "source": "parquet"} | ({"values": values} if values else {}), contents


def _channels(rows: Any) -> int:
    """1 where the first image is grey, else 3."""
    image = next((value for value in rows[0].values() if hasattr(value, "mode")), None)
    return 1 if image is not None and image.mode[0] in "1LIF" else 3


@contextmanager
def _all_written(contents: Mapping[Path, io.BytesIO]) -> Iterator[None]:
    with ExitStack() as stack:
        for path, content in contents.items():
            stack.enter_context(_written(path, content.getbuffer()))
        yield


@contextmanager
def _written(path: Path, content: memoryview) -> Iterator[None]:
    """A file that is there inside, and stays unless what is done with it is refused."""
    made = not path.exists()
    if made:
        make_folder(path.parent)
        write_atomically(path, lambda aside: aside.write_bytes(content))
    try:
        yield
    except InputError:
        if made:
            remove(path)
        raise
