"""Artefacts and code data sets that a stranger changed: each loads to what it was, or is refused in one line.

One whose weights or codes were changed and sealed anew is a model, or a data set, of that stranger: if it loads, it
loads to what it holds.

Changes know the formats: values of a configuration become others of their type, of another type, enormous, missing or
unknown, with their checksum made right or not; entries of a safetensors header name other types, shapes and places;
Parquet files are written anew with other columns, types, counts and values, and claim sizes that they do not have;
manifests name other files and shapes.
"""

import hashlib
import json
import random
import shutil
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from boast import boast
from harness import ENCODE, Child, World, command

from vqstack.codes import CodeDataset
from vqstack.disk import digest
from vqstack.errors import InputError
from vqstack.model import HierarchicalModel

ALLOWANCE = 96.0  # MiB beyond twice the size of what is loaded: libraries warming up in a fresh child
LIMIT = 30.0  # seconds
REFUSED, EQUAL, OTHER = 2, 0, 4

ODD: list[Any] = [
    0, -1, 1, 2, 3, 7, 10**3, 2**31, 2**40, 10**9, 10**30, 0.5, -0.0, 1e-300, 1e300, True, None, "", "many", "../../x",
    [], {}, [0], [1, 1], [2**20, 2**20], [[]], "vq", "fsq", "lfq", "masked", "\x00", "é" * 50,
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something can be changed in nested JSON."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        found += places(child, (*path, key))
    return found


def change(value: Any, generator: random.Random) -> None:
    """Change one place of nested JSON."""
    found = places(value)
    if not found:  # an earlier change left nothing
        return
    *path, last = generator.choice(found)
    for key in path:
        value = value[key]
    kind = generator.random()
    if kind < 0.1:
        del value[last]
    elif kind < 0.15 and isinstance(value, dict):
        value["unknown" * generator.choice([1, 1000])] = generator.choice(ODD)
    elif kind < 0.25 and isinstance(value, list):
        value.extend(value * generator.choice([1, 1000]))
    elif kind < 0.45 and isinstance(value[last], int | float) and not isinstance(value[last], bool):
        value[last] = generator.choice([value[last] + 1, value[last] - 1, value[last] * 2, value[last] * 10**6])
    else:
        value[last] = generator.choice(ODD)


def flipped(content: bytes, generator: random.Random, first: int | None = None) -> bytes:
    """Bits, bytes or a piece of a file changed; in its first bytes only, if asked."""
    data, room = bytearray(content), first or len(content)
    for _ in range(generator.choice([1, 1, 3, 20])):
        data[generator.randrange(min(room, len(data)))] = generator.randrange(256)
    return bytes(data)


def mutate_artefact(folder: Path, generator: random.Random) -> bool:
    """One change to an artefact; whether its weights were changed and their checksum made right."""
    config, weights = folder / "config.json", folder / "model.safetensors"
    before = digest(weights)
    kind = generator.random()
    if kind < 0.5:
        content = json.loads(config.read_text())
        for _ in range(generator.choice([1, 1, 2, 5])):
            change(content if generator.random() < 0.2 else content.get("model"), generator)
        text = json.dumps(content)
        if generator.random() < 0.1:
            text = text.replace("0.1", generator.choice(["NaN", "Infinity", "1e999", "-1e400"]))
        config.write_text(text)
    elif kind < 0.6:
        config.write_bytes(flipped(config.read_bytes(), generator))
    elif kind < 0.9:
        content = weights.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        for _ in range(generator.choice([1, 1, 2])):
            change(header, generator)
        text = json.dumps(header).encode()
        claimed = generator.choice([len(text)] * 6 + [0, len(text) - 1, 2**40, 2**63])
        weights.write_bytes(struct.pack("<Q", claimed) + text + content[8 + length :])
    else:
        weights.write_bytes(flipped(weights.read_bytes(), generator, generator.choice([None, 8, 2000])))
    if generator.random() < 0.6:
        reseal_artefact(config, weights)
        return digest(weights) != before
    return False


def reseal_artefact(config: Path, weights: Path) -> None:
    """Make the checksums right, where there is still something to be right about."""
    try:
        content = json.loads(config.read_text())
        described = {"model": content["model"], "weights": digest(weights)}
        content |= {**described, "checksum": checksum(described)}
        config.write_text(json.dumps(content))
    except (ValueError, KeyError, TypeError):
        return


def checksum(described: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def mutate_codes(folder: Path, generator: random.Random) -> bool:
    """One change to a code data set; whether a file was changed and its checksum made right."""
    manifest = folder / "manifest.json"
    path = generator.choice(sorted((folder / "data").iterdir()))
    before, kind = digest(path), generator.random()
    if kind < 0.4:
        content = json.loads(manifest.read_text())
        for _ in range(generator.choice([1, 1, 2, 5])):
            change(content, generator)
        manifest.write_text(json.dumps(content))
    elif kind < 0.45:
        manifest.write_bytes(flipped(manifest.read_bytes(), generator))
    elif kind < 0.7:
        rewritten(path, generator)
    elif kind < 0.75:
        size, count = generator.choice([(2**30, 10), (None, 2**30)])
        boast(path, generator.randrange(pq.ParquetFile(path).metadata.num_columns), size, count)
    elif kind < 0.9:
        content = path.read_bytes()
        (length,) = struct.unpack("<I", content[-8:-4])
        footer = bytearray(content[-8 - length : -8])
        if generator.random() < 0.5:
            footer[generator.randrange(length)] ^= 1 << generator.randrange(8)
        else:
            footer = bytearray(flipped(bytes(footer), generator))
        path.write_bytes(content[: -8 - length] + footer + content[-8:])
    else:
        path.write_bytes(flipped(path.read_bytes(), generator)[: generator.choice([None, None, -1, 100])])
    if generator.random() < 0.6:
        manifest.write_text(manifest.read_text(errors="replace").replace(before, digest(path)))
        return digest(path) != before
    return False


def rewritten(path: Path, generator: random.Random) -> None:
    """A Parquet file with another column, type, count or value."""
    table = pq.read_table(path)
    place = generator.randrange(table.num_columns)
    name, rows = table.column_names[place], len(table)
    kind = generator.randrange(6)
    if kind == 0:
        table = table.drop_columns([name])
    elif kind == 1:
        table = table.rename_columns(
            [n if i != place else generator.choice(ODD[-6:]) or "x" for i, n in enumerate(table.column_names)]
        )  # type: ignore[arg-type]
    elif kind == 2:
        table = table.slice(0, generator.randrange(rows)) if generator.random() < 0.5 else pa.concat_tables([table] * 2)
    elif kind == 3:
        filler = generator.choice([0.5, "x", None, [[0] * 300] * 300, [[]], [[255] * 4] * 4, 2**60, [[[1]]]])
        table = table.set_column(place, name, pa.array([filler] * rows))
    elif kind == 4:
        values = table[name].to_pylist()
        values[generator.randrange(rows)] = None
        table = table.set_column(place, name, pa.array(values, table.schema.field(place).type))
    else:
        table = table.append_column(generator.choice(["label", "extra", name]), pa.array([1] * rows))
    pq.write_table(table, path, compression=generator.choice(["snappy", "zstd", "none"]))


def artefact_loader(model: HierarchicalModel) -> Callable[[Path], None]:
    """What a child does with an artefact: leaves with 0 if it is the model, 2 if it is refused, 4 otherwise."""
    expected = model.state_dict()

    def load(folder: Path) -> None:
        def attempt() -> bool:
            found = HierarchicalModel.from_pretrained(folder).state_dict()
            return found.keys() == expected.keys() and all(torch.equal(v, found[k]) for k, v in expected.items())

        conclude(attempt)

    return load


def codes_loader(whole: Path) -> Callable[[Path], None]:
    """The same for a code data set, whose splits are all read."""
    data = CodeDataset(whole)
    expected = {split: data.read(split) for split in data.splits}

    def load(folder: Path) -> None:
        def attempt() -> bool:
            found = CodeDataset(folder)
            return found.splits == data.splits and all(same(found.read(split), expected[split]) for split in expected)

        conclude(attempt)

    return load


def same(found: Any, expected: Any) -> bool:
    return torch.equal(found.index, expected.index) and all(map(torch.equal, found.codes, expected.codes))


def conclude(attempt: Callable[[], bool]) -> None:
    try:
        equal = attempt()
    except InputError as error:
        print(error)
        raise SystemExit(REFUSED) from error
    raise SystemExit(EQUAL if equal else OTHER)


def fuzz(
    folder: Path, whole: Path, mutate: Callable[[Path, random.Random], bool], load: Callable[[Path], None], count: int
) -> dict[str, Any]:
    """``count`` mutants of ``whole``, each loaded in a child of its own."""
    outcomes: Counter[str] = Counter()
    failures, largest, slowest = list[str](), 0.0, 0.0
    for seed in range(count):
        place = folder / "mutant"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(whole, place)
        own = mutate(place, random.Random(seed))
        size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file()) / 2**20
        end = Child(lambda place=place: load(place), folder).end(LIMIT)
        largest, slowest = max(largest, end.mebibytes), max(slowest, end.seconds)
        fine = {REFUSED: "refused", EQUAL: "equal"} | ({OTHER: "sealed anew"} if own else {})
        outcomes[fine.get(end.code, "failed")] += 1
        one_line = end.code != REFUSED or (end.out.count("\n") == 1 and "Traceback" not in end.err)
        if end.code not in fine or not one_line:
            failures.append(f"seed {seed}: exit code {end.code}, {end.out[-200:]!r} {end.err[-600:]!r}")
        elif end.mebibytes > 2 * size + ALLOWANCE:
            failures.append(f"seed {seed}: {end.mebibytes:.0f} MiB")
    return {
        "mutants": count,
        "outcomes": dict(outcomes),
        "largest MiB": round(largest, 1),
        "slowest seconds": round(slowest, 2),
        "failures": failures,
    }


def part(folder: Path, short: bool) -> dict[str, Any]:
    """Mutated artefacts and code data sets."""
    world, count = World(folder / "mutants"), 30 if short else 600
    codes = world.folder / "codes"
    end = Child(command(ENCODE, world.whole, "--cpu", "--shard-size", 20, "--out", codes), world.folder).end()
    assert end.code == 0, end
    model = HierarchicalModel.from_pretrained(world.whole / "model")
    results = {
        "artefacts": fuzz(world.folder, world.whole / "model", mutate_artefact, artefact_loader(model), count),
        "code data sets": fuzz(world.folder, codes, mutate_codes, codes_loader(codes), count),
    }
    return {"results": results, "failures": [f"{n}: {f}" for n, r in results.items() for f in r["failures"]]}
