"""A truncated, a bit-flipped and a missing file of every kind that the programs read."""

import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from harness import ENCODE, GENERATE, TRAIN, Child, End, World, command, remains

HOW = ["truncated", "bit flipped", "missing"]


def damage(path: Path, how: str, generator: random.Random) -> None:
    """Damage a file."""
    if how == "missing":
        path.unlink()
        return
    content = bytearray(path.read_bytes())
    if how == "truncated":
        del content[generator.randrange(len(content)) :]
    else:
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    path.write_bytes(content)


def unfinished(world: World, name: str) -> Path:
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
    return Path(shutil.copytree(kept, world.fresh(name)))


# (folder, file to damage, how to start the command, what is wrong after an exit code 0)
Prepare = Callable[[], tuple[Path, Path, Callable[[], list[Child]], Callable[[], str]]]


class Trials:
    """Rows of the table: what was damaged and how, the exit code, the line, what became of the rest."""

    def __init__(self, world: World, short: bool) -> None:
        self.world, self.times, self.how = world, 1 if short else 6, HOW[1:2] if short else HOW
        self.rows: dict[tuple[str, str], dict[str, Any]] = {}
        self.failures: list[str] = []
        self.count = 0
        self.generator = random.Random(5)

    def run(
        self, what: str, prepare: Callable[[], tuple[Path, Path, Callable[[], list[Child]], Callable[[], str]]]
    ) -> None:
        """``prepare`` gives (folder, file to damage, how to start the command, what is wrong after an exit code 0)."""
        for how in self.how:
            for number in range(self.times if how != "missing" else 1):
                folder, path, start, lost = prepare()
                if number == 0 and how == "bit flipped":  # one in the very first byte, where formats have their name
                    content = bytearray(path.read_bytes())
                    content[0] ^= 1
                    path.write_bytes(content)
                else:
                    damage(path, how, self.generator)
                before = remains(folder)
                (end,) = [child.end() for child in start()]
                self.judge(what, how, path, end, before, folder, lost)

    def judge(
        self, what: str, how: str, path: Path, end: End, before: dict[str, str], folder: Path, lost: Callable[[], str]
    ) -> None:
        """Either refused in one line with nothing touched, or done with the right result."""
        self.count += 1
        row = self.rows.setdefault((what, how), {"codes": [], "line": ""})
        if end.code not in row["codes"]:
            row["codes"].append(end.code)
        row["line"] = row["line"] or end.err.replace(str(self.world.folder), "…").strip().splitlines()[-1:]
        if end.code == 0:
            problem = lost() or ("a traceback" if "Traceback" in end.err else "")
        elif end.code == 2 and end.one_line:
            problem = "" if remains(folder) == before else "something was written"
        else:
            problem = str(end)
        if problem:
            self.failures.append(f"{what}, {how} ({path.name}): {problem}")


def training(trials: Trials) -> None:
    """Files of a run that goes on, and of one that is finished."""
    world = trials.world

    def resumed(name: str, of: Callable[[str], Path]) -> Callable[[], Any]:
        def prepare() -> Any:
            run = of("damaged")
            path = sorted(run.glob(name))[-1]
            mine = str(path.relative_to(run))  # rows of metrics that are lost cannot come back; all else must

            def lost() -> str:
                return ", ".join(
                    name for name in world.problems(run) if not (name == mine and name.endswith("metrics.jsonl"))
                )

            return run, path, lambda: world.train(run), lost

        return prepare

    for name in (
        "config.yaml",
        "phases/level-1/best.pt",
        "phases/level-1/DONE",
        "phases/level-2/metrics.jsonl",
        "phases/level-2/checkpoints/step-*/state.pt",
        "phases/level-2/checkpoints/step-*/mark",
        "codes/level-1/train.npy",
        "codes/level-1/train.json",
    ):
        trials.run(name, resumed(name, lambda copy: unfinished(world, copy)))


def recipes(trials: Trials) -> None:
    """The recipe: a damaged one may still be a recipe, of another run, which then refuses the folder."""
    world = trials.world

    def prepare() -> Any:
        recipe, run = world.folder / "damaged.yaml", world.copy("run-of-recipe")
        shutil.copy(world.folder / "tiny.yaml", recipe)

        def start() -> list[Child]:
            return [Child(command(TRAIN, "--config", recipe, "--out", run), world.folder)]

        return run, recipe, start, lambda: ", ".join(world.problems(run))

    trials.run("recipe", prepare)


def tools(trials: Trials) -> None:
    """Artefacts, code data sets and images, as generate.py and encode_dataset.py read them."""
    world = trials.world
    codes, images = world.folder / "codes", world.folder / "images"
    for program, options, out in ((ENCODE, ["--cpu"], codes), (GENERATE, ["--num", 2, "--device", "cpu"], images)):
        end = Child(command(program, world.whole, *options, "--out", out), world.folder).end()
        assert end.code == 0, end

    def generating(name: str, options: Callable[[Path], list[object]], source: Path) -> Callable[[], Any]:
        def prepare() -> Any:
            place = world.fresh("damaged-input")
            shutil.copytree(source, place)
            out = world.fresh("out")
            action = command(GENERATE, *options(place), "--out", out, "--device", "cpu")
            wanted = reference(options(source))

            def lost() -> str:
                found = {path.name: path.read_bytes() for path in out.glob("*.png")}
                return "" if found == wanted else "other images"

            return place, sorted(place.glob(name))[-1], lambda: [Child(action, world.folder)], lost

        return prepare

    known: dict[str, dict[str, bytes]] = {}

    def reference(options: list[object]) -> dict[str, bytes]:
        key = str(options)
        if key not in known:
            out = world.fresh("reference")
            end = Child(command(GENERATE, *options, "--out", out, "--device", "cpu"), world.folder).end()
            assert end.code == 0, end
            known[key] = {path.name: path.read_bytes() for path in out.glob("*.png")}
        return known[key]

    def from_model(place: Path) -> list[object]:
        return [place, "--num", 2]

    def from_codes(place: Path) -> list[object]:
        return [world.whole, "--codes", place, "--num", 2]

    def from_image(place: Path) -> list[object]:
        return [world.whole, "--images", place / "000000.png", "--from-level", 1]

    for name in ("config.json", "model.safetensors"):
        trials.run(name, generating(name, from_model, world.whole / "model"))
    for name in ("manifest.json", "data/test-*.parquet"):
        trials.run(name, generating(name, from_codes, codes))
    # A flipped bit of a PNG may be one that its format does not protect: then other pixels are read, and that is that.
    trials.run("image given by hand", generating("000000.png", from_image, images))


def arrays(trials: Trials) -> None:
    """Training images in files."""
    world = trials.world
    pixels = np.random.default_rng(0).integers(0, 17, (40, 8, 8), dtype=np.uint8)

    def prepare() -> Any:
        place = world.fresh("data")
        place.mkdir()
        np.save(place / "train.npy", pixels)
        out = world.fresh("encoded")
        given = ["--data.source", "array", "--data.files", "train", place / "train.npy", "--data.validation", 5]
        action = command(ENCODE, world.whole, *given, "--data.test", 5, "--cpu", "--out", out)
        return place, place / "train.npy", lambda: [Child(action, world.folder)], lambda: ""

    trials.run("train.npy", prepare)


def part(folder: Path, short: bool) -> dict[str, Any]:
    """The table of damaged files."""
    trials = Trials(World(folder / "damage"), short)
    for kind in (training, recipes, tools, arrays):
        kind(trials)
    table = [
        {"file": what, "how": how, "exit codes": sorted(row["codes"]), "line": "".join(row["line"])}
        for (what, how), row in trials.rows.items()
    ]
    return {"trials": trials.count, "table": table, "failures": trials.failures}
