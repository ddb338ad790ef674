"""Files of the codec: one picture with a header of about twenty bytes, or an archive of many with an index.

docs/codec.md has the layout byte by byte. Whatever a file says is checked against its size before it is believed.
"""

import struct
import zlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path

from vqstack.codec.layout import ARCHIVE, MAGIC, START, VERSION, Broken, Container
from vqstack.codec.many import open_archive
from vqstack.codec.single import open_single
from vqstack.errors import InputError
from vqstack.reading import plain_file


def open_container(path: Path, tile: tuple[int, ...], content: bytes | None = None) -> Container:
    """Reads a file's header. A file that no encoder has written is an InputError, one that is cut short is not.

    Args:
        path: the file.
        tile: rows and columns of the model's images, or sites along each axis.
        content: what will be written there, of a file that is not yet.
    """
    try:
        size = plain_file(path).stat().st_size if content is None else len(content)
        with path.open("rb") if content is None else BytesIO(content) as file:
            start = file.read(4096)
            found = open_archive(path, file, size, tile) if _is_archive(start) else open_single(path, start, size, tile)
        if not found.places or not all(place.lengths for place in found.places):
            raise Broken("it holds no pictures")
        if size > (end := max(place.end for place in found.places)):
            raise Broken(f"there are {size - end} bytes after its end")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): name a file of vqstack compress") from error
    except (Broken, struct.error, zlib.error, ValueError, IndexError) as error:  # of pydantic and of texts, too
        reason = str(error) if isinstance(error, Broken) else "its header is damaged"
        raise InputError(f"{path}: is not a whole file of vqstack compress ({reason}): compress it again") from error
    return replace(found, content=content)


def _is_archive(start: bytes) -> bool:
    """Whether a file that begins with ``start`` holds many pictures; Broken where it is none of ours."""
    magic, version, flags = START.unpack_from(start)
    if magic != MAGIC:
        raise Broken("it does not start as one")
    if version != VERSION:
        raise Broken(f"it has format version {version}, this program reads {VERSION}")
    if flags & ARCHIVE and flags != ARCHIVE:
        raise Broken("its flags are unknown")
    return flags == ARCHIVE
