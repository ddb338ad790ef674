"""Names of files as people write them. A path that exists is that path, whatever signs it holds."""

import glob
import os
import re
from pathlib import Path

from vqstack.errors import InputError

_NAME = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})")


def remote(path: str) -> bool:
    """Whether this is an address, such as ``https://…`` or ``hf://…``, and no file or folder of that name is here."""
    return "://" in path and not _split(path)[0]


def check_local(path: Path | str) -> None:
    """InputError for an address where a file or a folder of this machine is wanted; a Path has lost a slash of it."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/+", str(path))
    if found and not _split(str(path))[0]:
        raise InputError(
            f"{found[1]}://{str(path)[found.end() :]}: an address, where a file or folder of this machine is wanted: "
            "copy it here first (`aws s3 sync`, or get of fsspec), or give OWNER/NAME of what lies on the hub; only "
            "vqstack encode writes to addresses"
        )


def expanded(path: str) -> str:
    """``~`` and ``$NAME`` filled in, but not in that part of the path which exists as it stands, nor in addresses.

    ValueError where a name is not set.
    """
    head, rest = _split(path)
    if not rest or remote(path):
        return path
    rest = rest if head else os.path.expanduser(rest)
    for found in _NAME.finditer(rest):
        name = found[1] or found[2]
        if name not in os.environ:
            raise ValueError(f"{path}: {name} is not set: set it, or write the path out")
    return head + _NAME.sub(lambda found: os.environ[found[1] or found[2]], rest)


def path_of(path: Path | str) -> Path:
    """A path with what :func:`expanded` fills in; InputError where a name is not set, and for addresses."""
    check_local(path)
    try:
        return Path(expanded(str(path)))
    except ValueError as error:
        raise InputError(str(error)) from error


def matches(path: str) -> list[str]:
    """The file or folder of that name; else those that it describes as a glob, sorted.

    A leading part that exists is no glob: ``data[1]/*.parquet`` are the files in ``data[1]`` where that is a folder.
    """
    head, rest = _split(path)
    return [path] if not rest else sorted(glob.glob(glob.escape(head) + rest, recursive=True))


def _split(path: str) -> tuple[str, str]:
    """The longest leading part of a path that exists as it stands, and the rest."""
    end = len(path)
    while end > 0 and not os.path.lexists(path[:end]):
        end = max(path.rfind("/", 0, end), 0)
    return path[:end], path[end:]
