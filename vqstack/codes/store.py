"""A folder that several hosts write into: on storage that all of them see, or of an object store that fsspec knows.

A file is there whole or not at all. Object stores are like that; elsewhere a file is written aside and renamed.
"""

import errno
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from vqstack.disk import failed_write, make_folder, write_atomically
from vqstack.errors import InputError, reason

ASIDE = ".aside"  # ending of a file that is not whole yet; what stands before it is its writer's alone


class Store:
    """Small files, or such as fit into memory, by their names below an address.

    Args:
        address: a path, or an address that fsspec knows: ``s3://BUCKET/FOLDER``, ``gs://…``, ``memory://…``.

    Raises:
        InputError: nothing is installed that knows such addresses.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        try:
            self._files, self._root = url_to_fs(address)
        except (ImportError, ValueError) as error:
            raise InputError(
                f"{address}: cannot be opened ({reason(error)}): install what knows such addresses"
            ) from error
        self._local = isinstance(self._files, LocalFileSystem)

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def names(self, folder: str) -> list[str]:
        """Names of what is in a folder; none where there is no such folder."""
        with self._telling(folder), suppress(FileNotFoundError):
            self._files.invalidate_cache()  # others write there
            found = self._files.ls(self._path(folder).rstrip("/"), detail=True)
            return [one["name"].rstrip("/").rpartition("/")[2] for one in found]
        return []

    def read(self, names: Sequence[str]) -> dict[str, str]:
        """The texts of those files that are there, all at once where the store can do that. WriteError if one fails."""
        places = {self._path(name): name for name in names}
        with self._telling(self.address):
            found = self._files.cat(list(places), on_error="return") if places else {}
            there = {places[path]: content for path, content in found.items() if not _missing(content)}
            for content in there.values():  # what cannot be read is not what is not there
                if isinstance(content, BaseException):
                    raise content
        return {name: content.decode(errors="replace") for name, content in there.items()}

    def write(self, name: str, content: bytes) -> None:
        """A file, in the place of one of that name. WriteError if it cannot be written."""
        path = self._path(name)
        if self._local:
            make_folder(Path(path).parent)
            write_atomically(Path(path), lambda aside: aside.write_bytes(content), f".{secrets.token_hex(8)}{ASIDE}")
            return
        with self._telling(name):
            self._files.pipe_file(path, content)

    def remove(self, names: Sequence[str]) -> None:
        """Files that are not needed any more, those of them that are there."""
        with self._telling(self.address):
            if self._local:
                for name in names:
                    Path(self._path(name)).unlink(missing_ok=True)
            elif names:
                with suppress(FileNotFoundError):  # another host has removed some
                    self._files.rm([self._path(name) for name in names])

    @contextmanager
    def _telling(self, name: str) -> Iterator[None]:
        """Around what asks the store: each kind has a library, and each library errors of its own."""
        try:
            yield
        except Exception as error:
            raise failed_write(os.path.join(self.address, name), error) from error


def _missing(found: Any) -> bool:
    """Whether what was found of a file is that there is none; on NFS, that another host has just replaced it."""
    return isinstance(found, FileNotFoundError) or getattr(found, "errno", None) in (errno.ENOENT, errno.ESTALE)
