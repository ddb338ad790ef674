"""A truncated, a bit-flipped and a missing file of every kind that the programs read.

Each trial damages one file of a working example and runs the command that reads it. Either the command refuses, in one
line, with exit code 2 and nothing touched; or it ends well, with the result it would have had (decompress.py may give
part of the images back, exactly or announced, with exit code 65). ``ledger.json``, the pictures and the histories are
not here because no program reads them.
"""

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from harness import COMPRESS, DECOMPRESS, ENCODE, GENERATE, TRAIN, Child, End, World, command, png, remains

from vqstack.codes import CodeDatasetWriter
from vqstack.errors import PARTLY

HOW = ["truncated", "bit flipped", "missing", "a pipe in its place"]
REFUSED = 2


@dataclass
class Case:
    """A working example.

    Attributes:
        folder: everything below stays as it is where the command refuses.
        path: the file that is damaged.
        start: runs the command.
        wrong: what is wrong with the result after exit code 0; empty where nothing is.
        wrong_part: the same after exit code 65, of a command that may give back a part.
    """

    folder: Path
    path: Path
    start: Callable[[], Child]
    wrong: Callable[[], str]
    wrong_part: Callable[[], str] | None = None


@dataclass
class Row:
    """What came of one kind of file damaged in one way."""

    codes: Counter[int] = field(default_factory=Counter)
    lines: dict[int, str] = field(default_factory=dict)  # the first one of each exit code


class Trials:
    """All trials, in rows of (kind of file, damage)."""

    def __init__(self, world: World, short: bool) -> None:
        self.world, self.times, self.how = world, 1 if short else 6, HOW[1:2] if short else HOW
        self.rows: dict[tuple[str, str], Row] = {}
        self.failures: list[str] = []
        self.generator = random.Random(5)

    def run(self, kind: str, prepare: Callable[[], Case]) -> None:
        """Damage the file of fresh examples in every way."""
        for how in self.how:
            for number in range(self.times if how in HOW[:2] else 1):
                case = prepare()
                # One flip in the very first byte, where formats have their name.
                self._damage(case.path, how, 0 if number == 0 and how == "bit flipped" else None)
                before = remains(case.folder)
                end = case.start().end()
                row = self.rows.setdefault((kind, how), Row())
                row.codes[end.code] += 1
                row.lines.setdefault(end.code, self._last_line(end))
                problem = self._problem(case, end, before)
                if problem:
                    self.failures.append(f"{kind}, {how} ({case.path.name}): {problem}")

    def _damage(self, path: Path, how: str, place: int | None) -> None:
        if how not in HOW[:2]:
            path.unlink()
            if how != "missing":
                os.mkfifo(path)
            return
        content = bytearray(path.read_bytes())
        place = self.generator.randrange(len(content)) if place is None else place
        if how == "truncated":
            del content[place:]
        else:
            content[place] ^= 1 << self.generator.randrange(8)
        path.write_bytes(content)

    def _last_line(self, end: End) -> str:
        lines = end.err.replace(str(self.world.folder), "…").strip().splitlines()
        return lines[-1] if lines else ""

    @staticmethod
    def _problem(case: Case, end: End, before: dict[str, str]) -> str:
        check = {0: case.wrong, PARTLY: case.wrong_part}.get(end.code)
        if check is not None:
            return check() or (str(end) if "Traceback" in end.err else "")
        if end.code == REFUSED and end.one_line:
            return "" if remains(case.folder) == before else "something was written"
        return str(end)

    def table(self) -> list[dict[str, Any]]:
        """For the report."""
        return [
            {"file": kind, "damage": how, "exit codes": {str(n): row.codes[n] for n in row.codes}, "lines": row.lines}
            for (kind, how), row in self.rows.items()
        ]


def nothing_wrong() -> str:
    """Where a command may only refuse, or reads what is there."""
    return ""


def must_refuse() -> str:
    """Where nothing that is damaged may be read, whatever comes of it."""
    return "it was read"


def unfinished(world: World) -> Path:
    """A copy of a run that was stopped in level 2, after an evaluation and two checkpoints."""
    kept = world.folder / "unfinished"

    def far_enough() -> bool:
        rows = kept / "phases/level-2/metrics.jsonl"
        return rows.exists() and len(list(kept.glob("phases/level-2/checkpoints/step-*/mark"))) > 1

    if not kept.exists():
        (child,) = world.train(kept)
        while not far_enough():
            time.sleep(0.01)
        child.signal(signal.SIGTERM)
        end = child.end()
        assert end.code == 75 and far_enough(), end
    return Path(shutil.copytree(kept, world.fresh("damaged")))


def unfinished_runs(trials: Trials) -> None:
    """Files of a run that goes on."""
    world = trials.world

    def going_on(name: str) -> Case:
        run = unfinished(world)
        path = sorted(run.glob(name))[-1]

        def wrong() -> str:  # rows of metrics that are lost cannot come back; all else must
            mine = path.relative_to(run) if path.name == "metrics.jsonl" else None
            return ", ".join(name for name in world.problems(run) if name != str(mine))

        return Case(run, path, lambda: world.train(run)[0], must_refuse if name.endswith(".yaml") else wrong)

    for name in (
        "config.yaml",
        "images.json",
        "phases/level-1/best.pt",
        "phases/level-1/DONE",
        "phases/level-2/metrics.jsonl",
        "phases/level-2/checkpoints/step-*/state.pt",
        "phases/level-2/checkpoints/step-*/mark",
        "codes/level-1/train.npy",
        "codes/level-1/train.json",
    ):
        trials.run(f"run: {name}", lambda name=name: going_on(name))


def recipes(trials: Trials) -> None:
    """A damaged recipe may still be a recipe, of another run, which then refuses the folder."""
    world = trials.world

    def prepare() -> Case:
        recipe, run = world.folder / "damaged.yaml", world.copy("damaged")
        shutil.copy(world.folder / "tiny.yaml", recipe)
        action = command(TRAIN, "--config", recipe, "--out", run)
        return Case(run, recipe, lambda: Child(action, world.folder), lambda: ", ".join(world.problems(run)))

    trials.run("recipe (YAML)", prepare)


def image_caches(trials: Trials) -> None:
    """Decoded images, of which a run is made that had none yet."""
    world = trials.world

    def prepare(name: str) -> Case:
        cache, run = world.fresh("damaged-cache"), world.fresh("damaged")
        shutil.copytree(world.folder / "cache", cache)
        (path,) = cache.glob(f"images/train-*/{name}")
        environment = {"VQSTACK_CACHE": str(cache)}
        return Case(run, path, lambda: world.train(run, environment)[0], lambda: ", ".join(world.problems(run)))

    for name in ("pixels.npy", "index.npy", "labels.npy", "meta.json"):
        trials.run(f"image cache: {name}", lambda name=name: prepare(name))


class Inputs:
    """Finished inputs of the tools, and what the tools make of them."""

    def __init__(self, world: World) -> None:
        self.world, self._known = world, dict[str, dict[str, str]]()
        self.codes, self.images, self.packed = (world.folder / name for name in ("codes", "images", "packed"))
        self.run(ENCODE, world.whole, "--cpu", "--shard-size", 20, "--out", self.codes)
        self.run(GENERATE, world.whole, "--num", 2, "--device", "cpu", "--out", self.images)
        images = [self.images / f"{number:06d}.png" for number in range(2)]
        self.run(COMPRESS, world.whole, *images, "--out", self.packed / "archive")
        self.run(COMPRESS, world.whole, *images, "--single", "--out", self.packed / "single")

    def run(self, *arguments: object) -> None:
        """A command that must go well."""
        end = Child(command(str(arguments[0]), *arguments[1:]), self.world.folder).end()
        assert end.code == 0, end

    def case(self, source: Path, name: str, program: str, options: Callable[[Path], list[object]]) -> Case:
        """A copy of ``source`` that a program reads; the pictures must be those that it makes of ``source``."""
        folder = self.world.fresh("damaged")
        place, out = folder / "input", folder / "out"
        shutil.copytree(source, place)
        action = command(program, *options(place), "--out", out)
        wanted, partly = self._reference(program, options(source)), program == DECOMPRESS

        def pictures() -> dict[str, str]:  # decompress.py names those that come from upper levels only
            return {name: sha256 for name, sha256 in _pictures(out).items() if ".level-" not in name}

        return Case(
            folder,
            sorted(place.glob(name))[-1],
            lambda: Child(action, self.world.folder),
            lambda: "" if pictures() == wanted else "other pictures",
            (lambda: "" if pictures().items() <= wanted.items() else "wrong pictures") if partly else None,
        )

    def _reference(self, program: str, options: list[object]) -> dict[str, str]:
        key = str([program, *options])
        if key not in self._known:
            out = self.world.fresh("reference")
            self.run(program, *options, "--out", out)
            self._known[key] = _pictures(out)
        return self._known[key]


def _pictures(folder: Path) -> dict[str, str]:
    return {name: sha256 for name, sha256 in remains(folder).items() if name.endswith(".png")}


def tools(trials: Trials) -> None:
    """Artefacts, code data sets, images and compressed files, as the tools read them."""
    world = trials.world
    inputs = Inputs(world)
    cpu = ["--device", "cpu"]

    def from_model(place: Path) -> list[object]:
        return [place, "--num", 2, *cpu]

    def from_codes(place: Path) -> list[object]:
        return [world.whole, "--codes", place, "--num", 2, *cpu]

    def from_image(place: Path) -> list[object]:
        return [world.whole, "--images", place / "000000.png", "--from-level", 1, *cpu]

    def from_packed(place: Path) -> list[object]:  # by name: of a folder, a missing file is not missed
        return [world.whole, *(place / path.name for path in packed)]

    for name in ("config.json", "model.safetensors", "README.md"):
        trials.run(
            f"artefact: {name}", lambda name=name: inputs.case(world.whole / "model", name, GENERATE, from_model)
        )
    for name in ("manifest.json", "data/test-*.parquet", "README.md", "SHA256SUMS"):
        trials.run(f"code data set: {name}", lambda name=name: inputs.case(inputs.codes, name, GENERATE, from_codes))

    def given_image() -> Case:  # a flipped bit may be one that PNG does not protect: then other pixels are read
        case = inputs.case(inputs.images, "000000.png", GENERATE, from_image)
        case.wrong = nothing_wrong
        return case

    trials.run("image given by hand (PNG)", given_image)
    for kind in ("archive", "single"):
        source = inputs.packed / kind
        packed = sorted(source.iterdir())
        damaged = lambda source=source: inputs.case(source, "*.vqs", DECOMPRESS, from_packed)  # noqa: E731
        trials.run(f"compressed file ({kind})", damaged)


def encodings(trials: Trials) -> None:
    """What encode_dataset.py reads: the run's settings, and its own unfinished output."""
    world = trials.world
    kept, whole = world.folder / "half-encoded", world.folder / "encoded"

    def encode(run: Path, out: Path) -> Callable[[], None]:
        return command(ENCODE, run, "--cpu", "--shard-size", 20, "--out", out)

    def killed() -> None:
        CodeDatasetWriter.finish = lambda self, checksums: signal.raise_signal(signal.SIGKILL)  # type: ignore
        encode(world.whole, kept)()

    assert Child(encode(world.whole, whole), world.folder).end().code == 0
    assert Child(killed, world.folder).end().code == -signal.SIGKILL

    def going_on(name: str) -> Case:
        out = Path(shutil.copytree(kept, world.fresh("damaged")))
        path = sorted(out.glob(name))[-1]
        action = encode(world.whole, out)
        wrong = lambda: "" if remains(out) == remains(whole) else "other codes"  # noqa: E731
        return Case(out, path, lambda: Child(action, world.folder), wrong)

    def settings() -> Case:
        folder = world.fresh("damaged")
        run = Path(shutil.copytree(world.whole, folder / "run"))
        action = encode(run, folder / "out")
        return Case(folder, run / "config.yaml", lambda: Child(action, world.folder), must_refuse)

    for name in ("data/test-*.parquet", "data/test-*.sha256", ".vqstack-unfinished"):
        trials.run(f"unfinished code data set: {name}", lambda name=name: going_on(name))
    trials.run("config.yaml, read by vqstack encode", settings)


def sources(trials: Trials) -> None:
    """A user's images. What can be read is taken as it is: these files are nobody's copy."""
    world = trials.world
    pixels = np.random.default_rng(0).integers(0, 17, (40, 8, 8), dtype=np.uint8)

    def write(place: Path, kind: str) -> tuple[str, Path, Path]:
        """(source, what the settings name, the file to damage)."""
        place.mkdir(parents=True)
        if kind == "PNG in a folder":
            for number, image in enumerate(pixels):
                (place / f"{number:02d}.png").write_bytes(png(image * 15))
            return "imagefolder", place, place / "07.png"
        path = place / f"train.{kind}"
        if kind == "npy":
            np.save(path, pixels)
        elif kind == "npz":
            np.savez(path, images=pixels, labels=np.arange(40) % 10)
        else:
            pq.write_table(pa.table({"image": [{"bytes": png(image * 15), "path": None} for image in pixels]}), path)
            return "parquet", path, path
        return "array", path, path

    def prepare(kind: str) -> Case:
        folder = world.fresh("damaged")
        source, named, path = write(folder / "data", kind)
        given = ["--data.source", source, "--data.files", "train", named, "--data.validation", 5, "--data.test", 5]
        action = command(ENCODE, world.whole, *given, "--cpu", "--out", folder / "out")
        return Case(folder, path, lambda: Child(action, world.folder), nothing_wrong)

    for kind in ("npy", "npz", "parquet", "PNG in a folder"):
        trials.run(f"source: {kind}", lambda kind=kind: prepare(kind))


def part(folder: Path, short: bool) -> dict[str, Any]:
    """The table of damaged files."""
    trials = Trials(World(folder / "damage"), short)
    for kind in (unfinished_runs, recipes, image_caches, tools, encodings, sources):
        kind(trials)
    count = sum(sum(row.codes.values()) for row in trials.rows.values())
    return {"trials": count, "table": trials.table(), "failures": trials.failures}


def page(result: dict[str, Any]) -> str:
    """The table as a page of the documentation."""
    lines = [
        "# Damaged files",
        "",
        f"Written by `make torture PART=damage`: {result['trials']} trials, {len(result['failures'])} failures.",
        "",
        "Exit code 2: refused in this one line, and nothing was written or changed. Exit code 0: the result is that",
        "of the undamaged file, to the bit; where nothing is printed, the damaged bytes carry nothing. Exit code 65",
        "(of `decompress.py`): what came back is exact, or named in the line. So nothing was lost anywhere, but for",
        "damaged rows of `metrics.jsonl`, which are a log, and for sources and single images, which are read as they",
        "are: a flipped bit that their format does not protect is another pixel.",
        "",
        "| file | damage | exit code (trials) | line printed |",
        "|---|---|---|---|",
    ]
    for row in result["table"]:
        for code, count in sorted(row["exit codes"].items()):
            said = {str(number): line for number, line in row["lines"].items()}[code]
            lines.append(f"| {_cell(row['file'])} | {row['damage']} | {code} ({count}) | {_cell(said) or '-'} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Text inside a table: in one line, no longer than two of them, nothing read as markup."""
    plain = "".join(letter if letter.isprintable() else "�" for letter in text)
    plain = plain if len(plain) <= 240 else f"{plain[:239]}…"
    for letter in "\\|*_<>`":
        plain = plain.replace(letter, f"\\{letter}")
    return plain
