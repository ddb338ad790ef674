"""An exported hierarchy, run with numpy and onnxruntime alone: encode, decode, sample, score.

    python run.py encode images.npy codes.npz          # z_1, z_2, …
    python run.py decode codes.npz images.npy          # of the highest map in it; or --level 1; or --decoder renderer
    python run.py sample 16 images.npy --seed 1 --label 3
    python run.py score images.npy nats.npz --label labels.npy   # of each image by row of the ledger, with its codes

Images go through the graphs in batches (``--batch-size``), which change nothing but speed and memory.

From Python: ``Exported(FOLDER).encode(pixels)``. ``export.json`` says what each graph takes and gives.
"""

import argparse
import json
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Choose = Callable[[dict[str, Any], np.ndarray, np.ndarray], np.ndarray]
"""A walk, numbers [b, n, P] and sites [n] of a step to their values, [b, n, c]."""
PART = 4096  # sites whose tables are made at a time
BATCH = 256  # images
COLDEST = 0.001  # temperature
DECODERS = "likelihood", "renderer"
LACKS = {"top_k": None, "top_p": 1.0, "guidance": 1.0, "confidence": False}
"""Settings of sampling that are not here, and the values that ask for nothing."""


class Wrong(ValueError):
    """What was given cannot be taken: one line, what is wrong and what to give."""


def onnx_graph(path: Path) -> Callable[[list[np.ndarray]], Sequence[np.ndarray]]:
    """A graph as a function of its inputs, on the CPU."""
    if path.suffix != ".onnx":
        raise Wrong(f"{path.name} is no ONNX file: open it with torch.export.load, or export with --format onnx")
    if not path.is_file():
        raise Wrong(f"{path} is missing: export again")
    try:
        import onnxruntime
    except ImportError:
        raise Wrong("onnxruntime is not installed: pip install onnxruntime") from None

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


def counted(what: str, number: Any, least: int) -> int:
    """What was given as a number of things."""
    if not isinstance(number, int | np.integer) or not least <= number < 2**63:
        raise Wrong(f"{what}: {number} is no whole number from {least} to 2**63 - 1: give one")
    return int(number)


def shaped(name: str, given: Any, shape: Sequence[int | str]) -> np.ndarray:
    """What was given as an array of a shape, where a name stands for any size but zero."""
    array = np.asarray(given)
    fits = array.ndim == len(shape) and array.size
    if not fits or any(isinstance(n, int) and n != m for n, m in zip(shape, array.shape, strict=True)):
        wanted = " × ".join(map(str, shape))
        raise Wrong(f"{name}: the shape is {' × '.join(map(str, array.shape)) or 'that of one number'}: give {wanted}")
    return array


def whole(name: str, given: Any, shape: Sequence[int | str], sizes: Mapping[str, int]) -> np.ndarray:
    """What was given as an array of whole numbers below the size of that name."""
    array, last = shaped(name, given, shape), sizes[name] - 1
    if array.dtype.kind not in "iu":
        raise Wrong(f"{name}: {array.dtype} are no whole numbers: give integers 0 … {last}")
    if array.min() < 0 or array.max() > last:
        raise Wrong(f"{name}: it holds {array.min()} … {array.max()}: give values 0 … {last}")
    return array


class Exported:
    """The graphs of a folder.

    Args:
        folder: that ``vqstack export`` has written.
        load: a path to a graph as a function of its inputs.
    """

    def __init__(self, folder: str | Path, load: Callable[[Path], Any] = onnx_graph) -> None:
        self.folder, self.load = Path(folder), load
        if not (self.folder / "export.json").is_file():
            raise Wrong(f"{self.folder} has no export.json: give the folder that vqstack export has written")
        self.card: dict[str, Any] = json.loads((self.folder / "export.json").read_text("utf-8"))
        self.sizes = {"pixels": self.card["images"]["values"]}
        self.sizes |= {name: about["codes"] for name, about in self.card["maps"].items()}
        self._loaded: dict[str, Any] = {}

    def run(self, name: str, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A graph's outputs by name; of what is given it takes its inputs. Pixels and codes are checked."""
        if name not in self.card["graphs"]:
            raise Wrong(f"{name} was not exported: see --parts of vqstack export")
        about = self.card["graphs"][name]
        num = None
        for port in about["inputs"]:
            if port["name"] in self.sizes:
                num = len(whole(port["name"], given[port["name"]], [num or "b", *port["shape"][1:]], self.sizes))
        if name not in self._loaded:
            self._loaded[name] = self.load(self.folder / about["file"])
        inputs = [np.ascontiguousarray(given[port["name"]], port["dtype"]) for port in about["inputs"]]
        return dict(zip((port["name"] for port in about["outputs"]), self._loaded[name](inputs), strict=True))

    def encode(self, pixels: np.ndarray) -> list[np.ndarray]:
        """``[z_1, …, z_L]``."""
        scale, images = self.scale(), np.shape(pixels)[2:]
        if len(images) == len(scale) and any(size % step for size, step in zip(images, scale, strict=True)):
            wanted = " × ".join(map(str, scale))
            raise Wrong(f"pixels: {' × '.join(map(str, images))} do not divide into codes of {wanted}: crop them")
        return list(self.run("encode", {"pixels": pixels}).values())

    def scale(self) -> list[int]:
        """Pixels under a code of the highest map along each axis, where images may have any size; else nothing."""
        port = self.card["graphs"].get("encode", {"inputs": [{"shape": []}]})["inputs"][0]
        top = list(self.card["maps"].values())[-1]["shape"]
        shape = self.card["images"]["shape"][1:] if any(isinstance(n, str) for n in port["shape"][1:]) else []
        return [size // sites for size, sites in zip(shape, top[len(top) - len(shape) :], strict=True)]

    def decode(self, codes: np.ndarray, level: int = 1, decoder: str = "likelihood") -> np.ndarray:
        """The mean picture below the most likely maps below ``z_level``; or what the renderer draws of z_1."""
        if f"z_{level}" not in self.card["maps"]:
            raise Wrong(f"level {level} is not there: give 1 … {len(self.card['maps'])}")
        if decoder not in DECODERS:
            raise Wrong(f"decoder {decoder!r} is not there: give {' or '.join(DECODERS)}")
        if decoder == "renderer" and not self.card["renderer"]:
            raise Wrong(f"decoder {decoder!r}: this model has none: leave it out")
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
        temperature: float | None = None,
        first: int = 0,
    ) -> dict[str, np.ndarray]:
        """Samples ``first`` … ``first + num - 1`` of a seed: ``pixels``, the maps they came from, and their ``label``.

        They are drawn by the model's own settings; a temperature takes the place of all of them, in every part.
        """
        counted("num", num, 1), counted("seed", seed, 0), counted("first", first, 0)
        indices = range(first, first + num)
        choosers = [self.chooser(name, temperature) for name in self.card["sample"]]
        values = self.told(num, label, condition)
        if self.card["label"] and label is None:
            log_probs = np.array(self.card["label"]["log_probs"], np.float32)
            noise = uniforms(seed, indices, self.card["label"]["number"], 1)
            values["label"] = drawn(log_probs[None, None], noise)[:, 0]
        for name, chooser in zip(self.card["sample"], choosers, strict=True):
            walk = self.walk_of(name)
            noise = uniforms(seed, indices, walk["number"], walk["sites"] * walk["channels"])
            values[walk["target"]] = self.walk(name, values, chooser(noise), num)
        return values

    def chooser(self, name: str, temperature: float | None) -> Callable[[np.ndarray], Choose]:
        """From uniforms to how a walk of a sample chooses its values."""
        own = self.card["sampling"][name]
        if temperature is not None:
            if not COLDEST <= temperature < np.inf:
                raise Wrong(f"temperature: {temperature} is not from {COLDEST} up: give 1 to draw true samples")
            return lambda noise: self.draws(noise, temperature)
        for setting, nothing in LACKS.items():
            if own[setting] != nothing:
                raise Wrong(
                    f"{name}: the model's own sampling has {setting} {own[setting]}, which run.py has not: give a "
                    "temperature, which takes the place of these settings, or sample with vqstack generate"
                )
        if own["mean"] or own["mode"]:
            return lambda noise: self.mean if own["mean"] else self.likeliest
        return lambda noise: self.draws(noise, own["temperature"])

    def told(self, num: int, label: np.ndarray | None, condition: np.ndarray | None) -> dict[str, np.ndarray]:
        """Label and condition of ``num`` images, those that are given, checked."""
        found: dict[str, np.ndarray] = {}
        for name, given in (("label", label), ("condition", condition)):
            if given is not None and self.card[name] is None:
                raise Wrong(f"{name}: this model knows none: leave it out")
        if label is not None:
            found["label"] = whole("label", label, [num], {"label": len(self.card["label"]["log_probs"])})
        if condition is not None:
            found["condition"] = shaped("condition", condition, [num, *self.card["condition"]["shape"]])
            if found["condition"].dtype.kind not in "fiu" or not np.isfinite(found["condition"]).all():
                raise Wrong("condition: it holds what is no finite number: give floats")
        elif self.card["condition"]:
            shape = " × ".join(map(str, self.card["condition"]["shape"]))
            raise Wrong(f"condition is missing: give {shape} floats an image, {self.card['condition']['name']}")
        return found

    def walk_of(self, name: str) -> dict[str, Any]:
        """What the card says of a walk."""
        if name not in self.card["walks"]:
            why = self.card["left_out"].get(name, "see --parts of vqstack export")
            raise Wrong(f"{name} was not exported: {why}")
        return self.card["walks"][name]

    def score(
        self,
        pixels: np.ndarray,
        codes: Sequence[np.ndarray],
        label: np.ndarray | None = None,
        condition: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """Nats of each image by row of the ledger; label and condition must be given where the model knows them."""
        if len(codes) != len(self.card["maps"]):
            raise Wrong(f"codes: {len(codes)} maps: give all of {', '.join(self.card['maps'])}")
        if self.card["label"] and label is None:
            last = len(self.card["label"]["log_probs"]) - 1
            raise Wrong(f"label is missing: give a class number 0 … {last} of each image")
        pixels = shaped("pixels", pixels, ["b", *["m"] * len(self.card["images"]["shape"])])
        maps = dict(zip(self.card["maps"], codes, strict=True))
        nats = self.run("score", {"pixels": pixels, **maps, **self.told(len(pixels), label, condition)})["nats"]
        return dict(zip(self.card["rows"], nats.T, strict=True))

    def walk(self, name: str, given: Mapping[str, Any], choose: Choose, num: int | None = None) -> np.ndarray:
        """A map, drawn step by step: numbers of the sites of a step from the values of the steps before."""
        walk = self.walk_of(name)
        state = self.run(walk["begin"], given) if walk["begin"] else {}
        num = len(next(iter(given.values()))) if num is None else num
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


def opened(path: str, ending: str) -> Any:
    """The array of a .npy, or the arrays of a .npz by name."""
    try:
        found = np.load(path, mmap_mode="c", allow_pickle=False)
        found = found if isinstance(found, np.ndarray) else dict(found)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "it cannot be read"
        raise Wrong(f"{path}: {why}: give a {ending} of numpy") from None
    if isinstance(found, np.ndarray) != (ending == ".npy"):
        raise Wrong(f"{path} is another kind of file: give a {ending} of numpy")
    return found


def numbers_of(given: str | None, num: int) -> np.ndarray | None:
    """One class number for all of ``num`` images, or a .npy of one for each."""
    if given is None or given.endswith(".npy"):
        return None if given is None else opened(given, ".npy")
    try:
        return np.broadcast_to(np.int64(given), num)
    except (ValueError, OverflowError):
        raise Wrong(f"--label: {given} is no class number and no .npy: give one of them") from None


Parts = tuple[int, Callable[[slice], Any]]
"""How many images there are, and what a command gives of some of them: an array for a .npy, arrays by name for .npz."""


def parts_of(asked: argparse.Namespace, exported: Exported) -> Parts:
    """The command that was asked for, over some of its images at a time; what is given with them is checked at once."""
    if asked.what == "decode":
        codes, level = codes_of(asked, exported)
        return len(codes), lambda some: exported.decode(codes[some], level, asked.decoder)
    if asked.what == "sample":
        num, seed, pixels = counted("num", asked.num, 1), counted("seed", asked.seed, 0), np.zeros(0)
    else:
        pixels = np.atleast_1d(opened(asked.source, ".npy"))
        num = len(pixels)
    if asked.what == "encode":
        return num, lambda some: dict(zip(exported.card["maps"], exported.encode(pixels[some]), strict=True))
    label = numbers_of(asked.label, num)
    condition = None if asked.condition is None else opened(asked.condition, ".npy")
    exported.told(num, label, condition)

    def of(some: slice) -> Any:
        labels, told = (None if given is None else np.array(given[some]) for given in (label, condition))
        if asked.what == "score":
            return exported.score(pixels[some], exported.encode(pixels[some]), labels, told)
        return exported.sample(some.stop - some.start, seed, labels, told, asked.temperature, some.start)["pixels"]

    return num, of


def codes_of(asked: argparse.Namespace, exported: Exported) -> tuple[np.ndarray, int]:
    """Codes that a file holds, and their level."""
    codes = opened(asked.source, ".npz")
    known = [number for number in range(1, len(exported.card["maps"]) + 1) if f"z_{number}" in codes]
    level = max(known, default=0) if asked.level is None else asked.level
    if level not in known:
        has = ", ".join(codes) or "nothing"
        raise Wrong(f"{asked.source} holds {has}: give codes {', '.join(exported.card['maps'])}, and a --level of them")
    return np.atleast_1d(codes[f"z_{level}"]), level


def in_batches(parts: Parts, size: int) -> Iterator[Any]:
    """What a command gives, batch by batch, with progress on a terminal."""
    num, of = parts
    for start in range(0, max(num, 1), size):  # of none there is a batch too: the graph says what is wrong
        stop = min(start + size, num)
        yield of(slice(start, stop))
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{stop:,} of {num:,} images" + "\n" * (stop == num))
            sys.stderr.flush()


def write(result: Path, num: int, batches: Iterator[Any]) -> None:
    """The batches as one file, whole or not there. A .npy grows by batches: no more than one is held."""
    aside = result.with_name(f"{result.name}.part")
    try:
        with aside.open("wb") as file:
            if result.suffix == ".npy":
                for batch in batches:
                    if not file.tell():
                        about = {"descr": batch.dtype.str, "fortran_order": False, "shape": (num, *batch.shape[1:])}
                        np.lib.format.write_array_header_1_0(file, about)
                    file.write(batch.tobytes())
            else:
                found = list(batches)
                whole: dict[str, Any] = {name: np.concatenate([batch[name] for batch in found]) for name in found[0]}
                np.savez(file, **whole)
        aside.replace(result)
    finally:
        aside.unlink(missing_ok=True)


def main() -> None:
    """The four commands of the first lines."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="what", required=True)
    encode = commands.add_parser("encode", help="pixels to codes z_1, z_2, …")
    decode = commands.add_parser("decode", help="codes to pixels")
    sample = commands.add_parser("sample", help="draw new images")
    score = commands.add_parser("score", help="nats of images, by row of the ledger")
    for command in (encode, score):
        command.add_argument("source", help=".npy of pixels [b, c, …]")
    decode.add_argument("source", help=".npz of codes z_1, z_2, …")
    decode.add_argument("--level", type=int, help="from this map; default: the highest in the file")
    decode.add_argument(
        "--decoder", choices=DECODERS, default=DECODERS[0], help="mean of the likelihood (default), or the renderer"
    )
    sample.add_argument("num", type=int, help="how many")
    sample.add_argument("--seed", type=int, default=0, help="names all draws; default: 0")
    sample.add_argument("--temperature", type=float, help="of all parts; default: the model's own settings")
    for command in (sample, score):
        command.add_argument("--label", help="a class number, or a .npy of one for each image; sample: or none, drawn")
        command.add_argument("--condition", help=".npy of floats, where the model is given any")
    for command, ending in ((encode, ".npz"), (decode, ".npy"), (sample, ".npy"), (score, ".npz")):
        command.add_argument("result", help=f"{ending} to write")
        command.add_argument("--batch-size", type=int, default=BATCH, help=f"images at a time; default: {BATCH}")
        command.set_defaults(ending=ending)
    asked = parser.parse_args()
    try:
        result = Path(asked.result)
        if result.suffix != asked.ending or not result.parent.is_dir():
            raise Wrong(f"{result}: give a {asked.ending} in a folder that is there")
        size = counted("--batch-size", asked.batch_size, 1)
        parts = parts_of(asked, Exported(Path(__file__).parent))
        write(result, parts[0], in_batches(parts, size))
    except (Wrong, OSError) as wrong:
        line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(wrong))  # names of files are anything
        parser.exit(2, f"run.py: {line}\n")


if __name__ == "__main__":
    main()
