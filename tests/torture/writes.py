"""Writes that are cut short: a kill before and after every file operation, a full disk, a read-only folder."""

import contextlib
import io
import os
import resource
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from harness import TRAIN, Child, World, command

from vqstack.checkpoint import Checkpoints
from vqstack.disk import Lock, write_atomically
from vqstack.errors import InputError
from vqstack.fit import load_outcome, write_outcome
from vqstack.model import HierarchicalModel

OPERATIONS = ["open", "close", "fsync", "rename", "replace", "mkdir", "rmdir", "unlink"]


class Shim:
    """Counts the file operations of this process and kills it before or after one of them."""

    def __init__(self, at: int = -1, after: bool = False) -> None:
        self.at, self.after, self.count = at, after, 0

    def wrap(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            number, self.count = self.count, self.count + 1
            if number == self.at and not self.after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return operation(*arguments, **options)
            finally:
                if number == self.at:
                    os.kill(os.getpid(), signal.SIGKILL)

        return wrapped

    def install(self) -> None:
        """For the rest of this process, which is a child that ends soon."""
        for name in OPERATIONS:
            setattr(os, name, self.wrap(getattr(os, name)))
        shutil.rmtree = self.wrap(shutil.rmtree)  # type: ignore[assignment]
        opened = io.open

        def opening(*arguments: Any, **options: Any) -> Any:
            file = opened(*arguments, **options)
            for name in ("write", "flush", "close"):
                with contextlib.suppress(AttributeError):  # some files have slots only: their opening is counted
                    setattr(file, name, self.wrap(getattr(file, name)))
            return file

        io.open = self.wrap(opening)  # what Path.open calls
        from vqstack import checkpoint

        checkpoint._Hashed.write = self.wrap(checkpoint._Hashed.write)  # type: ignore[method-assign]


def state(step: int) -> dict[str, Any]:
    return {"step": step, "weights": [torch.full((300,), float(step)) for _ in range(3)]}


def every_operation(
    folder: Path, prepare: Callable[[Path], None], act: Callable[[Path], None], check: Callable[[Path], str]
) -> dict[str, Any]:
    """Kill ``act`` before and after each of its file operations; ``check`` says what is wrong afterwards."""

    def shimmed(place: Path, shim: Shim) -> None:
        shim.install()
        act(place)
        print(shim.count)

    dry = folder / "dry"
    prepare(dry)
    end = Child(lambda: shimmed(dry, Shim()), folder).end()
    assert end.code == 0, end
    total, failures, killed = int(end.out.split()[-1]), list[str](), 0
    if check(dry):
        failures.append(f"not killed at all: {check(dry)}")
    for number in range(total):
        for after in (False, True):
            place = folder / f"kill-{number}-{after}"
            prepare(place)
            shim = Shim(number, after)
            end = Child(lambda place=place, shim=shim: shimmed(place, shim), folder).end()
            killed += end.code == -signal.SIGKILL
            problem = check(place) if end.code == -signal.SIGKILL else f"ended with {end}"
            if problem:
                failures.append(f"{'after' if after else 'before'} operation {number} of {total}: {problem}")
            shutil.rmtree(place, ignore_errors=True)
    return {"operations": total, "kills": killed, "failures": failures}


def checkpoints(folder: Path) -> dict[str, Any]:
    """A third checkpoint, which removes the first: afterwards there is the second or the third, and a fourth fits."""

    def prepare(place: Path) -> None:
        for step in (1, 2):
            Checkpoints(place, 1).write(step, state(step), 3.0 - step)

    def check(place: Path) -> str:
        store = Checkpoints(place, 1)
        found = store.intact()
        wrong = [c.step for c in found if c.read()["step"] != c.step or not torch.equal(*weights(c.read(), c.step))]
        if wrong or [c.step for c in found][-1:] not in ([2], [3]):
            return f"found {[c.step for c in found]}, wrong {wrong}"
        store.write(4, state(4), -1.0)
        left = sorted(path.name for path in place.iterdir())
        return "" if [c.step for c in store.intact()] == [4] and left == ["step-0000004"] else f"left {left}"

    return every_operation(folder, prepare, lambda place: Checkpoints(place, 1).write(3, state(3), 0.0), check)


def weights(found: dict[str, Any], step: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.stack(found["weights"]), torch.stack(state(step)["weights"])


def outcomes(folder: Path) -> dict[str, Any]:
    """The end of a phase: it is done with its weights, or not done."""
    module = torch.nn.Linear(3, 2)

    def check(place: Path) -> str:
        if not (place / "DONE").exists():
            return ""
        found = torch.nn.Linear(3, 2)
        load_outcome(place, found)
        return "" if torch.equal(found.weight, module.weight) else "other weights"

    return every_operation(
        folder,
        lambda place: place.mkdir(parents=True),
        lambda place: write_outcome(place, module.state_dict(), {}),
        check,
    )


def artefacts(folder: Path, model: HierarchicalModel) -> dict[str, Any]:
    """The release: the folder holds the model, or none."""

    def check(place: Path) -> str:
        return "" if not (place / "config.json").exists() or holds(place, model) else "another model"

    return every_operation(folder, lambda place: place.mkdir(parents=True), model.save_pretrained, check)


def replaced_artefacts(folder: Path, old: HierarchicalModel, new: HierarchicalModel) -> dict[str, Any]:
    """A release over another one: the old model, the new one, or a refusal by name until it has run again."""
    refused: Counter[str] = Counter()

    def check(place: Path) -> str:
        try:
            wrong = not holds(place, old) and not holds(place, new)
        except InputError as error:
            wrong = f"{place / 'model.safetensors'} does not fit its config.json" not in str(error)
            refused["refused"] += 1
        new.save_files(place)
        left = sorted(path.name for path in place.iterdir())
        fine = not wrong and holds(place, new) and left == ["README.md", "config.json", "model.safetensors"]
        return "" if fine else f"wrong {wrong}, left {left}"

    result = every_operation(folder, old.save_files, new.save_files, check)
    return {**result, **refused}


def holds(place: Path, model: HierarchicalModel) -> bool:
    """Whether a folder has this model, its settings and its weights."""
    found, wanted = HierarchicalModel.from_pretrained(place), model.state_dict()
    same = found.state_dict().keys() == wanted.keys()
    return (
        found.settings == model.settings
        and same
        and all(torch.equal(value, wanted[name]) for name, value in found.state_dict().items())
    )


def another(model: HierarchicalModel) -> HierarchicalModel:
    """One of the same shapes with other weights and settings: only checksums tell a mix of both from either."""
    torch.manual_seed(5)
    sampling = model.settings.sampling.model_copy(update={"temperature": (0.5,)})
    return HierarchicalModel(model.settings.model_copy(update={"sampling": sampling}))


def files(folder: Path) -> dict[str, Any]:
    """A file that is replaced: the old one or the new one, and the lock can be taken."""

    def prepare(place: Path) -> None:
        place.mkdir(parents=True)
        (place / "file").write_text("old")

    def act(place: Path) -> None:
        Lock(place)
        write_atomically(place / "file", lambda aside: aside.write_text("new"))

    def check(place: Path) -> str:
        Lock(place, patience=0.0).release()
        text = (place / "file").read_text()
        return "" if text in ("old", "new") else f"{text!r}"

    return every_operation(folder, prepare, act, check)


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """A file system of ``size`` KiB mounted at ``folder``; False where mounting is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], check=False)


def full_disks(world: World, short: bool) -> dict[str, Any]:
    """Runs on disks of growing size, each gone on with when there is room; then the same with a limit on file sizes."""
    rows, failures, lines = 0, list[str](), set[str]()
    sizes = [200, 420] if short else [20, 60, 100, 150, 200, 250, 300, 360, 420, 480, 560, 640]
    for size in sizes:
        with small_disk(world.folder / "disk", size) as mounted:
            if not mounted:
                return {"failures": [], "note": "mounting is not allowed here"}
            run = world.folder / "disk" / "run"
            (end,) = [child.end() for child in world.train(run)]
            rows += 1
            if end.code == 0:
                failures += world.problems(run)
                continue
            lines.add(end.err.replace(str(run), "RUN").strip())
            if end.code not in (2, 74) or not end.one_line:
                failures.append(f"{size} KiB: {end}")
            subprocess.run(["mount", "-o", "remount,size=64m", str(world.folder / "disk")], check=True)
            (end,) = [child.end() for child in world.train(run)]
            failures += [f"{size} KiB, then room: {p}" for p in ([str(end)] if end.code else world.problems(run))]
    return {"runs": rows, "lines": sorted(lines), "failures": failures}


def size_limits(world: World, short: bool) -> dict[str, Any]:
    """A limit on the size of a file, which fails in the middle of a write."""
    failures, lines, rows = list[str](), set[str](), 0
    for limit in [6000] if short else [0, 500, 3000, 6000, 12000, 20000, 40000]:
        run = world.fresh("limited")
        action = command(TRAIN, "--config", world.folder / "tiny.yaml", "--out", run)

        def limited(limit: int = limit, action: Callable[[], None] = action) -> None:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # Python ignores the signal, the write fails
            try:
                action()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))  # for what the harness writes

        end = Child(limited, world.folder).end()
        rows += 1
        lines.add(end.err.replace(str(run), "RUN").strip()[-300:])
        if end.code not in (0, 2, 74) or (end.code and limit and not end.one_line):
            failures.append(f"limit {limit}: {end}")
        (end,) = [child.end() for child in world.train(run)]
        failures += [f"limit {limit}, then none: {p}" for p in ([str(end)] if end.code else world.problems(run))]
    return {"runs": rows, "lines": sorted(lines), "failures": failures}


def read_only(world: World) -> dict[str, Any]:
    """A folder that becomes read-only: before the run, and in the middle of it."""
    failures, lines = list[str](), set[str]()
    for begun in (False, True):
        with small_disk(world.folder / "sealed", 65536) as mounted:
            if not mounted:
                return {"failures": [], "note": "mounting is not allowed here"}
            disk = world.folder / "sealed"
            run = disk / "run"
            if begun:
                shutil.copytree(world.whole, run)
                for path in (run / "phases/prior/DONE", run / "phases/prior/best.pt", run / "ledger.json"):
                    path.unlink()
                shutil.rmtree(run / "model")
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            (end,) = [child.end() for child in world.train(run)]
            lines.add(end.err.replace(str(run), "RUN").strip())
            if end.code not in (2, 74) or not end.one_line:
                failures.append(f"read-only, begun {begun}: {end}")
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
            (end,) = [child.end() for child in world.train(run)]
            failures += [f"writable again: {p}" for p in ([str(end)] if end.code else world.problems(run))]
    return {"runs": 2, "lines": sorted(lines), "failures": failures}


def part(folder: Path, short: bool) -> dict[str, Any]:
    """Kills at file operations, full disks, read-only folders."""
    world = World(folder / "disks")
    model = HierarchicalModel.from_pretrained(world.whole / "model")
    results = {
        "kills in a checkpoint": checkpoints(folder / "checkpoints"),
        "kills in the end of a phase": outcomes(folder / "outcomes"),
        "kills in a release": artefacts(folder / "artefacts", model),
        "kills in a release over another": replaced_artefacts(folder / "replaced", another(model), model),
        "kills in replacing a file": files(folder / "files"),
        "full disks": full_disks(world, short),
        "limits on file size": size_limits(world, short),
        "read-only folders": read_only(world),
    }
    return {"results": results, "failures": [f"{n}: {f}" for n, r in results.items() for f in r["failures"]]}
