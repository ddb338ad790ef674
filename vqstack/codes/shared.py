"""A code data set that any number of processes write together, on hosts that know nothing of each other.

All they share is the folder (:mod:`vqstack.codes.store`). A process takes a shard that nobody has, says so in a file
beside it (its *claim*), and goes on saying so as long as it works. When no shard is free it watches the claims of the
others: one that does not change for the time of a lease belongs to a process that is gone, and its shard is taken over.
Whoever finds all shards written writes the manifest.

A shard is a function of the model and the images, and it is there whole or not at all. So a claim only saves work.
Where two processes encode the same shard, because a claim was taken for dead or both wrote one at once, they write the
same bytes, and the manifest has the shard once. Clocks of hosts are not compared.
"""

import hashlib
import os
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vqstack.codes.columns import write_rows
from vqstack.codes.dataset import SHARD_SIZE, StoredCodes, closing_files, plan_of, rows_of
from vqstack.codes.manifest import ENCODE, MANIFEST, Contents, Manifest, Shard, shards_of
from vqstack.codes.store import ASIDE, Store
from vqstack.errors import InputError, WriteError
from vqstack.output import UNFINISHED, differing

LEASE = 60.0
DATA, SEAL, CLAIM = "data", ".sha256", ".claim"


class SharedWriter:
    """Writes a code data set together with others that are given the same arguments.

    Args:
        address: of the folder, a path or one that fsspec knows: new, empty, or unfinished output of the same.
        contents: what the files have in common.
        splits: number of images of each split.
        shard_size: images a shard.
        settings: whatever else the codes hang on, as JSON.
        lease: seconds without a sign of life after which the shard of another process is taken over.

    Raises:
        InputError: there is other output.
        WriteError: the store fails.
    """

    def __init__(
        self,
        address: str,
        contents: Contents,
        splits: Mapping[str, int],
        *,
        shard_size: int = SHARD_SIZE,
        settings: Mapping[str, Any] | None = None,
        lease: float = LEASE,
    ) -> None:
        self.store, self.contents, self.lease = Store(address), contents, lease
        self.shards = [shard for split, images in splits.items() for shard in shards_of(split, images, shard_size)]
        # All call the model alike: where two finish at once, they write the same manifest.
        settings = {**(settings or {}), "shared": True, "model": contents.model}
        self._plan = plan_of(contents, splits, shard_size, settings)
        self._owner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(8)}"
        self._seen: dict[str, tuple[str, float]] = {}  # claims of others, and since when they have been as they are
        self._places = {shard.file: place for place, shard in enumerate(self.shards)}
        self._place = secrets.randbelow(len(self.shards))  # each begins elsewhere, so few meet
        self._join()

    def _join(self) -> None:
        """Mark the folder as unfinished output, or find that others have, or that they have finished."""
        mark = f"{ENCODE}\n{self._plan}\n\n"
        # In this order: what others begin or finish meanwhile is seen by the second or the third look.
        others = [name for name in self.store.names("") if not name.startswith(UNFINISHED)]
        if not self._open():
            if self._finished():
                return
            if others:
                raise InputError(f"{self.store.address}: is not empty; name another output folder or remove it")
            self.store.write(UNFINISHED, mark.encode())
        if (there := self.store.read([UNFINISHED]).get(UNFINISHED, mark)) != mark:
            differ = differing(there.partition("\n")[2], self._plan)
            raise InputError(
                f"{self.store.address}: holds unfinished output with other settings, data or weights, or of a command "
                f"without --shared{differ}; repeat that command as it was, name another output folder or remove it"
            )

    def _open(self) -> bool:
        """Whether the data set is unfinished. Asked after a list of files was made, it says that the list holds."""
        return bool(self.store.read([UNFINISHED]))

    def _finished(self) -> bool:
        """Whether others have finished this data set."""
        try:
            manifest = Manifest.model_validate_json(self.store.read([MANIFEST])[MANIFEST])
        except (KeyError, ValueError):
            return False
        shards = [shard for split in manifest.splits for shard in manifest.shards(split)]
        return shards == self.shards and manifest.held() == self.contents.held()

    def work(self, encode: Callable[[Shard], Iterable[StoredCodes]]) -> Iterator[Shard]:
        """Take and write shards until all are there, and finish the data set; those that were written here."""
        while True:
            names = set(self.store.names(DATA))
            if not self._open():
                return
            missing = [shard for shard in self.shards if shard.file + SEAL not in names]
            if not missing and self._finish(names):
                return
            shard = self._take(missing, names)
            if shard is None:
                time.sleep(min(1.0, self.lease / 5))
                continue
            try:
                with self._held(shard):
                    written = self._write(shard, encode(shard))
            except WriteError:
                if self._open():
                    raise
                written = False  # others have finished, and removed what was being written aside
            if not self._open():  # what was just written is there already, and needs no seal
                self.store.remove([f"{DATA}/{shard.file}{ending}" for ending in (SEAL, CLAIM)])
            if written:
                yield shard

    def _take(self, missing: Sequence[Shard], names: set[str]) -> Shard | None:
        """A shard that nobody works on; None where all that are missing are in other hands."""
        order = sorted(missing, key=lambda shard: self._places[shard.file] < self._place)
        free = next((shard for shard in order if shard.file + CLAIM not in names), None) or self._abandoned(order)
        if free is None:
            return None
        claim = f"{DATA}/{free.file}{CLAIM}"
        self.store.write(claim, self._owner.encode())
        if self.store.read([claim]).get(claim) != self._owner:
            return None  # another one wrote its claim over this one
        self._place = self._places[free.file]  # a stream is read on to the next
        return free

    def _abandoned(self, missing: Sequence[Shard]) -> Shard | None:
        """A shard whose claim has been the same for longer than a lease."""
        now, claims = time.monotonic(), self.store.read([f"{DATA}/{shard.file}{CLAIM}" for shard in missing])
        self._seen = {
            name: self._seen[name] if name in self._seen and self._seen[name][0] == text else (text, now)
            for name, text in claims.items()
        }
        dead = {name for name, (_, since) in self._seen.items() if now - since > self.lease}
        return next((shard for shard in missing if f"{DATA}/{shard.file}{CLAIM}" in dead), None)

    @contextmanager
    def _held(self, shard: Shard) -> Iterator[None]:
        """Renews the claim of a shard meanwhile."""
        done = threading.Event()

        def renew() -> None:
            beat = 0
            while not done.wait(self.lease / 4):
                beat += 1
                try:
                    self.store.write(f"{DATA}/{shard.file}{CLAIM}", f"{self._owner} {beat}".encode())
                except WriteError:
                    pass  # a claim saves work and nothing else; writing the shard will say what is wrong

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _write(self, shard: Shard, batches: Iterable[StoredCodes]) -> bool:
        """Write a shard and its seal; False where another process has done so meanwhile."""
        rows = rows_of(shard, self.contents, batches)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, shard.file)
            write_rows(path, self.contents, *rows)
            content = path.read_bytes()
        seal = f"{DATA}/{shard.file}{SEAL}"
        if self.store.read([seal]) or not self._open():
            return False
        self.store.write(f"{DATA}/{shard.file}", content)
        self.store.write(seal, hashlib.sha256(content).hexdigest().encode())
        return True

    def _finish(self, names: set[str]) -> bool:
        """Manifest, card and checksums, then the mark goes, then the seals, claims and what a lost host left aside.

        False where not all seals are there: another one has finished, and removed them.
        """
        seals = self.store.read([f"{DATA}/{shard.file}{SEAL}" for shard in self.shards])
        checksums = {Path(name).name.removesuffix(SEAL): text for name, text in seals.items()}
        if len(checksums) < len(self.shards):
            return False
        for name, text in closing_files(self.contents, self.shards, checksums).items():
            self.store.write(name, text.encode())
        self.store.remove([UNFINISHED])
        left = {name for name in {*names, *self.store.names(DATA)} if name.endswith((SEAL, CLAIM, ASIDE))}
        self.store.remove([f"{DATA}/{name}" for name in sorted(left)])
        return True
