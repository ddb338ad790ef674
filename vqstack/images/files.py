"""Files on this machine that the settings name."""

import os
from collections.abc import Container, Iterator

from vqstack.images.settings import ImageSettings
from vqstack.paths import matches, remote

LOOP = "a link to a folder around it"


def walk(
    folder: str, around: frozenset[tuple[int, int]] = frozenset(), without: Container[str] = ()
) -> Iterator[tuple[str, str]]:
    """Every file below a folder and why it cannot be read, empty where it can; links are followed, but not in circles.

    Folders come out where they cannot be opened, and as ``LOOP``; those of the paths ``without`` are passed over.
    """
    if folder in without:
        return
    try:
        status = os.stat(folder)
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        yield folder, f"cannot be read ({error.strerror})"
        return
    here = (status.st_dev, status.st_ino)
    if here in around:
        yield folder, LOOP
        return
    for entry in entries:
        if entry.is_dir():
            yield from walk(entry.path, around | {here}, without)
        else:
            yield entry.path, "" if os.path.exists(entry.path) else "a link that leads nowhere"


def local_files(settings: ImageSettings) -> list[str]:
    """Every file on this machine that the settings name, sorted; addresses are not among them."""
    names = (
        [settings.name, settings.name.rpartition(":")[0]] if settings.name else []
    )  # perhaps a configuration follows
    patterns = [*settings.files.values(), *[name for name in names if os.path.isdir(name)][:1]]
    found: list[str] = []
    for pattern in patterns:
        if not remote(pattern):
            for path in matches(pattern):
                found.extend([file for file, _ in walk(path)] if os.path.isdir(path) else [path])
    return sorted(os.path.abspath(path) for path in found)
