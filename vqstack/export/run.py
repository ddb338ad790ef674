"""An exported hierarchy, run with numpy and onnxruntime alone: encode, decode, sample, score.

    python run.py encode images.npy codes.npz          # z_1, z_2, …
    python run.py decode codes.npz images.npy          # of the highest map in the file; or --level 1
    python run.py sample 16 images.npy --seed 1 --label 3

Or from Python: ``Exported(FOLDER).encode(pixels)``. ``export.json`` says what each graph takes and gives.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Choose = Callable[[dict[str, Any], np.ndarray, np.ndarray], np.ndarray]
"""A walk, numbers [b, n, P] and sites [n] of a step to their values, [b, n, c]."""
PART = 4096  # sites whose tables are made at a time


def onnx_graph(path: Path) -> Callable[[list[np.ndarray]], Sequence[np.ndarray]]:
    """A graph as a function of its inputs, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]
    return lambda given: session.run(None, dict(zip(names, given, strict=True)))


def uniforms(seed: int, indices: Sequence[int], number: int, sites: int) -> np.ndarray:
    """What draws map ``number`` (0: pixels) of samples ``indices``, [b, sites]: the same for a sample in any batch."""
    key = np.array([seed, number], np.uint64)
    rows = [np.random.Generator(np.random.Philox(key=key, counter=[0, 0, i, 0])).random(sites) for i in indices]
    return np.stack(rows)


def drawn(log_probs: np.ndarray, uniform: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """The first value whose cumulated probability passes the uniform: [b, n, V] and [b, n] to [b, n]."""
    scaled = (log_probs / np.float32(temperature)).astype(np.float64)
    cdf = np.exp(scaled - scaled.max(-1, keepdims=True)).cumsum(-1)
    total = cdf[..., -1:]
    threshold = np.minimum(uniform[..., None] * total, np.nextafter(total, 0))
    return (cdf <= threshold).sum(-1)


class Exported:
    """The graphs of a folder.

    Args:
        folder: that ``vqstack export`` has written.
        load: a path to a graph as a function of its inputs.
    """

    def __init__(self, folder: str | Path, load: Callable[[Path], Any] = onnx_graph) -> None:
        self.folder, self.load = Path(folder), load
        self.card: dict[str, Any] = json.loads((self.folder / "export.json").read_text("utf-8"))
        self._loaded: dict[str, Any] = {}

    def run(self, name: str, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A graph's outputs by name; of what is given it takes its inputs."""
        if name not in self.card["graphs"]:
            raise ValueError(f"{name} was not exported: see --parts of vqstack export")
        about = self.card["graphs"][name]
        if name not in self._loaded:
            self._loaded[name] = self.load(self.folder / about["file"])
        inputs = [np.ascontiguousarray(given[port["name"]], port["dtype"]) for port in about["inputs"]]
        return dict(zip((port["name"] for port in about["outputs"]), self._loaded[name](inputs), strict=True))

    def encode(self, pixels: np.ndarray) -> list[np.ndarray]:
        """``[z_1, …, z_L]``."""
        return list(self.run("encode", {"pixels": pixels}).values())

    def decode(self, codes: np.ndarray, level: int = 1, decoder: str = "likelihood") -> np.ndarray:
        """The mean picture below the most likely maps below ``z_level``; or what the renderer draws of z_1."""
        for number in range(level, 1, -1):
            codes = self.walk(f"level-{number}", {f"z_{number}": codes}, self.likeliest)
        if decoder == "renderer":
            return self.run("render", {"z_1": codes})["pixels"]
        if "decode" in self.card["graphs"]:
            return self.run("decode", {"z_1": codes})["pixels"]
        return self.walk("level-1", {"z_1": codes}, self.mean)

    def sample(
        self,
        num: int,
        seed: int = 0,
        label: np.ndarray | None = None,
        condition: np.ndarray | None = None,
        temperature: float = 1.0,
    ) -> dict[str, np.ndarray]:
        """Samples 0 … num-1 of a seed: ``pixels``, the maps that they came from, and their ``label``."""
        values: dict[str, np.ndarray] = {} if condition is None else {"condition": condition}
        if self.card["label"]:
            log_probs = np.array(self.card["label"]["log_probs"], np.float32)
            noise = uniforms(seed, range(num), self.card["label"]["number"], 1)
            values["label"] = drawn(log_probs[None, None], noise)[:, 0] if label is None else np.asarray(label)
        for name in self.card["sample"]:
            walk = self.walk_of(name)
            noise = uniforms(seed, range(num), walk["number"], walk["sites"] * walk["channels"])
            values[walk["target"]] = self.walk(name, values, self.draws(noise, temperature), num)
        return values

    def walk_of(self, name: str) -> dict[str, Any]:
        """What the card says of a walk."""
        if name not in self.card["walks"]:
            why = self.card["left_out"].get(name, "see --parts of vqstack export")
            raise ValueError(f"{name} was not exported: {why}")
        return self.card["walks"][name]

    def score(self, pixels: np.ndarray, codes: Sequence[np.ndarray], **given: np.ndarray) -> dict[str, np.ndarray]:
        """Nats of each image by row of the ledger; ``label`` and ``condition`` are given where the model reads them."""
        maps = {f"z_{number}": z for number, z in enumerate(codes, start=1)}
        nats = self.run("score", {"pixels": pixels, **maps, **given})["nats"]
        return dict(zip(self.card["rows"], nats.T, strict=True))

    def walk(self, name: str, given: Mapping[str, Any], choose: Choose, num: int | None = None) -> np.ndarray:
        """A map, drawn step by step: numbers of the sites of a step from the values of the steps before."""
        walk = self.walk_of(name)
        num = len(next(iter(given.values()))) if num is None else num
        state = self.run(walk["begin"], given) if walk["begin"] else {}
        values = np.zeros((num, walk["sites"], walk["channels"]), np.int64)
        known = np.zeros((num, walk["sites"]), bool)
        if "cache" in walk and "cache_keys" not in state:
            layers, heads, size = walk["cache"]
            state["cache_keys"] = state["cache_values"] = np.zeros((layers, num, heads, 0, size), np.float32)
        for step in walk["steps"]:
            sites = np.array(step["sites"])
            if walk["step"]:
                inputs = {"values": values, "known": known, **step}
                state.update(self.run(walk["step"], {**state, **inputs}))
            for at in range(0, len(sites), PART):
                some = slice(at, at + PART)
                values[:, sites[some]] = choose(walk, state["numbers"][:, some], sites[some])
            known[:, sites] = True
        return values.transpose(0, 2, 1).reshape(num, *walk["shape"]).astype(walk["dtype"])

    def log_probs(self, walk: dict[str, Any], numbers: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """ln P of every value, [b, n, c, V]; each of the c values of a site is given those chosen before it."""
        if walk["table"]:
            return self.run(walk["table"], {"numbers": numbers, "values": chosen})["log_probs"]
        top = numbers.max(-1, keepdims=True)
        return (numbers - top - np.log(np.exp(numbers - top).sum(-1, keepdims=True)))[:, :, None]

    def in_turn(self, walk: dict[str, Any], numbers: np.ndarray, one: Callable[..., np.ndarray]) -> np.ndarray:
        """The values of a site one after the other: ``one`` takes ln P [b, n, V] and the place in the chain."""
        chosen = np.zeros((*numbers.shape[:2], walk["channels"]), np.int64)
        for place in range(walk["channels"]):
            chosen[:, :, place] = one(self.log_probs(walk, numbers, chosen)[:, :, place], place)
        return chosen

    def draws(self, noise: np.ndarray, temperature: float = 1.0) -> Choose:
        """Draws by the inverse CDF at uniforms [b, c * N], channel by channel."""

        def choose(walk: dict[str, Any], numbers: np.ndarray, sites: np.ndarray) -> np.ndarray:
            return self.in_turn(
                walk, numbers, lambda log_probs, c: drawn(log_probs, noise[:, c * walk["sites"] + sites], temperature)
            )

        return choose

    def likeliest(self, walk: dict[str, Any], numbers: np.ndarray, sites: np.ndarray) -> np.ndarray:
        """The most likely value of each place in turn."""
        return self.in_turn(walk, numbers, lambda log_probs, c: log_probs.argmax(-1))

    def mean(self, walk: dict[str, Any], numbers: np.ndarray, sites: np.ndarray) -> np.ndarray:
        """The mean of each pixel, rounded."""
        return self.run(walk["mean"], {"numbers": numbers})["means"]


def main() -> None:
    """The three commands of the first lines."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("encode", "decode", "sample"))
    parser.add_argument("source", help="encode: .npy of pixels [b, c, …]; decode: .npz of codes; sample: how many")
    parser.add_argument("result", help="encode: .npz; decode, sample: .npy of pixels")
    parser.add_argument("--level", type=int, help="decode: from this map; default: the highest in the file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--label", type=int, help="sample: a class number; default: drawn")
    parser.add_argument("--temperature", type=float, default=1.0)
    asked = parser.parse_args()
    exported = Exported(Path(__file__).parent)
    if asked.what == "encode":
        maps = exported.encode(np.load(asked.source))
        stored: dict[str, Any] = {f"z_{number}": z for number, z in enumerate(maps, start=1)}
        np.savez(asked.result, **stored)
    elif asked.what == "decode":
        codes = np.load(asked.source)
        level = asked.level or max(int(name.removeprefix("z_")) for name in codes)
        np.save(asked.result, exported.decode(codes[f"z_{level}"], level))
    else:
        num = int(asked.source)
        label = None if asked.label is None else np.full(num, asked.label)
        np.save(asked.result, exported.sample(num, asked.seed, label, temperature=asked.temperature)["pixels"])


if __name__ == "__main__":
    main()
