"""The excerpts of sound files in the place of the files."""

from dataclasses import replace
from typing import Any

import numpy as np

from vqstack.errors import InputError, told
from vqstack.images import sounds
from vqstack.images.settings import ImageSettings
from vqstack.images.undecoded import Records


def excerpts(files: Records, settings: ImageSettings) -> Records:
    """The excerpts of sound files in the place of the files; files without any are left out, with the reason."""
    assert settings.kept is not None and settings.rate is not None
    size, left_out = settings.kept[0], {name: dict(what) for name, what in files.left_out.items()}
    every = list(files.fetch(np.arange(files.count)))
    records: list[dict[str, Any]] = []
    origin: list[int] = []
    for number, record in enumerate(every):
        path = record["path"]
        try:
            starts, why = sounds.excerpts(sounds.length(path, settings.rate), size), f"shorter than {size} numbers"
        except InputError:
            raise
        except Exception as error:  # soundfile's own type, and what its formats raise
            if settings.on_error == "refuse":
                raise InputError(
                    f"{path}: cannot be read ({told(error)}); mend or remove it, or set on_error"
                ) from error
            starts, why = [], f"cannot be read ({told(error)})"
        if not starts:
            left = left_out.setdefault(why, {"count": 0, "first": []})
            left["count"] += 1
            left["first"] = [*left["first"], path][:3]
        records += [{**record, "start": start} for start in starts]
        origin += [number] * len(starts)
    if not records:
        raise InputError(f"{files.where}: no sound of {size} numbers or more: choose a smaller size")
    labels = None if files.labels is None else files.labels[np.array(origin)]
    return replace(
        files, count=len(records), fetch=lambda some: [records[i] for i in some], labels=labels, left_out=left_out
    )
