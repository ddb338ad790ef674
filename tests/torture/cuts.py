"""Power cuts: what bears a mark of completion is whole, and what a command leaves with exit code 0 is on the disk."""

import hashlib
import json
import os
import pickle
import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from device import after_the_end
from disk import Disk, Tree, differing, output
from harness import COMPRESS, DECOMPRESS, ENCODE, EVALUATE, GENERATE, RECIPE, TRAIN, Child, command, write_shards

from vqstack.checkpoint import MARK, STATE
from vqstack.disk import LOCK, unsealed
from vqstack.images import ImageSettings, load_splits
from vqstack.images.cache import META
from vqstack.output import UNFINISHED

Law = Callable[[Tree, Tree], list[str]]
"""What is wrong with a tree that a cut left; the second one is what the command wrote in the end."""


def cut(folder: Path, action: Callable[[], None], law: Law) -> dict[str, Any]:
    """Run a command in a child that writes into ``folder``, and look at every cut.

    Args:
        folder: watched, with all that is in it.
        action: the command.
        law: of every cut.
    """
    folder.mkdir(parents=True, exist_ok=True)
    result = folder.with_name(folder.name + ".cuts")

    def watched() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
        with Disk(folder) as disk:
            try:
                action()
            finally:
                result.write_bytes(pickle.dumps((disk.cuts, disk.now(), disk.written())))

    end = Child(watched, folder.parent).end(300)
    if end.code:
        return {"cuts": 0, "failures": [str(end)]}
    cuts, last, written = pickle.loads(result.read_bytes())
    failures = [found for tree in cuts for found in law(tree, written)]
    for tree in last:
        failures += [f"after the end: {name}" for name in written if lasts(name) and tree.get(name) != written[name]]
        failures += [f"after the end: {name}" for name in tree if name.endswith(UNFINISHED)]
    return {"cuts": len(cuts), "failures": sorted(set(failures))}


def cache(tree: Tree, written: Tree) -> list[str]:
    """A split of the cache that has its description is whole."""
    whole = {name.removesuffix(META) for name in tree if name.endswith(META) and ".part/" not in name}
    return [f"described without {name}" for folder in whole for name in differing(tree, written, folder)]


def run(tree: Tree, written: Tree) -> list[str]:
    """What is marked in the folder of a run is whole: checkpoints, phases that are done, the artefact."""
    found = []
    for name, content in tree.items():
        folder, _, file = name.rpartition("/")
        if file == MARK and folder.rpartition("/")[2].startswith("step-"):
            try:
                intact = json.loads(unsealed(content.decode()))["sha256"]
            except ValueError:
                intact = ""
            if hashlib.sha256(tree.get(f"{folder}/{STATE}", b"")).hexdigest() != intact:
                found.append(f"{folder} is not what its mark says")
        elif file == "DONE" and tree.get(f"{folder}/best.pt") != written[f"{folder}/best.pt"]:
            found.append(f"{folder} is done without its weights")
        elif file == "config.json":
            found += [f"released without {missing}" for missing in differing(tree, written, f"{folder}/")]
    return found


def lasts(name: str) -> bool:
    """Whether a file is promised to outlast the command; pictures and the lock of a run, seals of shards are not."""
    return not name.endswith((f"/{LOCK}", ".sha256")) and "/samples/" not in name


def decode(shards: Path, cached: Path) -> None:
    """Decode Parquet files into the image cache."""
    os.environ["VQSTACK_CACHE"] = str(cached)
    load_splits(ImageSettings(source="parquet", files={"train": str(shards / "*.parquet")}, values=17), ["train"])


def _into(program: str, home: Path, *arguments: object) -> Callable[[], None]:
    """A command whose last argument is its output folder."""
    *others, out = arguments
    return command(program, home, *others, "--out", out)


def _unforced(out: Path) -> None:
    out.mkdir()
    (out / "file").write_bytes(bytes(1000))


def part(folder: Path, short: bool) -> dict[str, Any]:
    """A power cut at every change of a name, in every command that writes."""
    every = 10 if short else 4
    recipe = RECIPE.replace("checkpoint_every: 4", f"checkpoint_every: {every}")
    if short:
        recipe = recipe.replace("steps: 40", "steps: 20").replace("steps: 30", "steps: 20")
    folder.mkdir(parents=True)
    (folder / "tiny.yaml").write_text(recipe, encoding="utf-8")
    os.environ.update(VQSTACK_CACHE=str(folder / "cache"), HF_DATASETS_CACHE=str(folder / "hub"))  # of children
    (folder / "shards").mkdir()
    write_shards(folder / "shards")
    home, count = folder / "train" / "run", 70 if short else 200
    images = ["--split", "test", "--data.limit", count]
    devices = dict[str, list[str] | None]()
    results = {"training": cut(folder / "train", command(TRAIN, "--config", folder / "tiny.yaml", "--out", home), run)}
    for name, program, *arguments in [
        ("compress", COMPRESS, *images),
        ("compress --single", COMPRESS, *images, "--single"),
        ("generate", GENERATE, "--num", count),
        ("evaluate", EVALUATE, "--no-samples"),
        ("encode_dataset", ENCODE, "--shard-size", 20),
    ]:
        place = folder / name.replace(" ", "")
        action = command(program, home, *arguments, "--out", place / "out")
        results[name] = cut(place, action, output)
        devices[name] = after_the_end(folder / f"{place.name}.device", partial(_into, program, home, *arguments))
    place, archive = folder / "decompress", folder / "compress" / "out"
    results["decompress"] = cut(place, command(DECOMPRESS, home, archive, "--out", place / "out"), output)
    device = partial(_into, DECOMPRESS, home, archive)
    devices["decompress"] = after_the_end(folder / "decompress.device", device)
    results["image cache"] = cut(folder / "cached", lambda: decode(folder / "shards", folder / "cached"), cache)
    failures = [f"{name}: {failure}" for name, result in results.items() for failure in result["failures"]]
    failures += [f"{name}, on ext4: lost {lost}" for name, found in devices.items() for lost in found or ()]
    if after_the_end(folder / "control.device", lambda out: partial(_unforced, out)) == []:
        failures.append("on ext4: what nobody forced to the disk was there after the cut, so the cut shows nothing")
    whole = [name for name, found in devices.items() if found == []]
    return {"results": results, "on ext4": whole, "failures": failures}
