"""Commands in forked children, which cost milliseconds to start, and what they leave.

The parent imports everything once, on one thread, and does nothing else that starts threads; each child runs the
command's own entry point, as the command line would, and leaves through its exit code.
"""

import io
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="true")

import numpy as np  # noqa: E402
import pyarrow.parquet  # noqa: E402
import sklearn.datasets  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from vqstack.commands import compress, decompress, encode, evaluate, generate, train  # noqa: E402
from vqstack.disk import digest  # noqa: E402
from vqstack.ending import run_command  # noqa: E402
from vqstack.run_report import REPORT  # noqa: E402

torch.set_num_threads(1)
pyarrow.set_cpu_count(1)
sklearn.datasets.load_digits()

TRAIN, ENCODE, GENERATE = "recipes/train_stack.py", "tools/encode_dataset.py", "tools/generate.py"
COMPRESS, DECOMPRESS, EVALUATE = "tools/compress.py", "tools/decompress.py", "tools/evaluate.py"
FIT = "{steps: 40, batch_size: 16, warmup: 2, evaluate_every: 15, checkpoint_every: 4}"
RECIPE = """
data: {source: digits, limit: 64}
levels:
  - {map: [4, 4], width: 8, encoder_blocks: 1, decoder_blocks: 1, dropout: 0.1, quantizer: {codebook_size: 8, dim: 4},
     decoder: {family: window, radius: 1, width: 8, features: 4}}
  - {map: [2, 2], width: 8, encoder_blocks: 1, decoder_blocks: 1, quantizer: {codebook_size: 4, dim: 4}}
train_levels: [FIT]
refiners: [{level: 2, groups: 4, depth: 1, dim: 8, heads: 2, corruption: 0.2}]
train_refiners: [{steps: 30, batch_size: 16, warmup: 2, evaluate_every: 15, checkpoint_every: 4}]
prior: {depth: 1, dim: 8, heads: 2, dropout: 0.1}
train_prior: FIT
renderer: {width: 8, perceptual: none, adversary: {weight: 0.5, start: 10, width: 4, layers: 2}}
train_renderer: {steps: 30, batch_size: 16, warmup: 2, evaluate_every: 15, checkpoint_every: 4}
sample_grid: 4
""".replace("FIT", FIT)
JOINT = (
    RECIPE.replace(f"train_levels: [{FIT}]", f"train_joint: {FIT}")
    + """
joint: true
sharing: trunk
train_decoders: {steps: 20, batch_size: 16, warmup: 2, evaluate_every: 10, checkpoint_every: 4}
"""
).replace(", dropout: 0.1, quantizer", ", quantizer")  # blocks are shared between levels with the same settings
STREAMED = RECIPE.replace(
    "{source: digits, limit: 64}",
    "{source: parquet, files: {train: 'FOLDER/*.parquet'}, streaming: true, shuffle_buffer: 20, workers: 2,"
    " values: 17, limit: 64}",
)
# The game against a discriminator fills nearly all of it; every checkpoint of the renderer holds both optimisers.
ADVERSARIAL = (
    RECIPE.replace("{steps: 40,", "{steps: 8,")
    .replace("{steps: 30, batch_size: 16,", "{steps: 8, batch_size: 16,", 1)
    .replace("{steps: 30, batch_size: 16,", "{steps: 100, batch_size: 16, accumulate: 2,")
    .replace("start: 10", "start: 2, r1: 0.1")
)
# The same game while level 1 is trained: encoder, codebook, decoder and renderer against a discriminator.
BRIEF = FIT.replace("steps: 40", "steps: 8")
TOGETHER = (
    RECIPE.replace(f"levels: [{FIT}]", f"levels: [{FIT.replace('steps: 40', 'steps: 60, accumulate: 2')}, {BRIEF}]")
    .replace(FIT, BRIEF)
    .replace("{steps: 30,", "{steps: 8,")
    .replace("perceptual: none,", "perceptual: none, joint_encoder: 2,")
    .replace("start: 10", "joint: true, start: 2, r1: 0.1")
)
GREEDY = ["level-1", "level-2", "refiner-2", "prior", "renderer"]
PHASES = {recipe: GREEDY for recipe in (RECIPE, STREAMED, ADVERSARIAL, TOGETHER)}
PHASES[JOINT] = ["joint", "decoders", "refiner-2", "prior", "renderer"]
NAMES = {
    RECIPE: "greedy",
    STREAMED: "streamed",
    JOINT: "joint",
    ADVERSARIAL: "adversarial",
    TOGETHER: "adversarial encoder",
}


PROGRAMS = {
    TRAIN: train,
    ENCODE: encode,
    GENERATE: generate,
    COMPRESS: compress,
    DECOMPRESS: decompress,
    EVALUATE: evaluate,
}


ASIDE = re.compile(r"warning: levels\.|[\w-]+: +\d+% \S+/\S+ \[")
"""How lines begin that end no command: few images for so many codes, which is true of a toy; slow progress."""


@dataclass
class End:
    """How a child ended: its exit code (minus the signal that killed it), what it printed, seconds, memory it added."""

    code: int
    out: str
    err: str
    seconds: float
    mebibytes: float

    @property
    def one_line(self) -> bool:
        """Whether all it said on standard error is one line, and no traceback."""
        return self.err.count("\n") == 1 and "Traceback" not in self.err


class Child:
    """A forked child that runs ``action`` with its output in files."""

    def __init__(self, action: Callable[[], None], folder: Path, environment: dict[str, str] | None = None) -> None:
        number = random.SystemRandom().randrange(10**12)
        self._out, self._err, self._memory = (folder / f".{number}.{name}" for name in ("out", "err", "memory"))
        self._start, self._seconds = time.monotonic(), 0.0
        self._status: int | None = None
        self._end: End | None = None
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            self._run(action, environment or {})

    def _run(self, action: Callable[[], None], environment: dict[str, str]) -> None:
        code = 1
        try:
            for number, path in ((1, self._out), (2, self._err)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            os.environ.update(environment)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            action()
            code = 0
        except SystemExit as leave:
            code = leave.code if isinstance(leave.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            touched = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            asked_for = pyarrow.default_memory_pool().max_memory() // 1024  # whether it was touched or not
            self._memory.write_text(str(max(touched, asked_for)))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def signal(self, number: int) -> None:
        """Send it a signal, if it still lives."""
        if self._status is None:
            os.kill(self.pid, number)  # a zombie until `ended` has looked: never somebody else's

    def ended(self) -> bool:
        """Whether it has ended by now."""
        if self._status is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                self._status, self._seconds = status, time.monotonic() - self._start
        return self._status is not None

    def end(self, limit: float = 120.0) -> End:
        """Wait for it; one that takes longer than ``limit`` seconds is killed, with exit code -999."""
        if self._end is not None:
            return self._end
        deadline, hung = time.monotonic() + limit, False
        while not self.ended():
            if time.monotonic() > deadline:
                hung = True
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.002)
        assert self._status is not None
        out, err, memory = (
            path.read_text(errors="replace") if path.exists() else "" for path in (self._out, self._err, self._memory)
        )
        for path in (self._out, self._err, self._memory):
            path.unlink(missing_ok=True)
        code = -999 if hung else os.waitstatus_to_exitcode(self._status)
        err = "".join(line for line in err.splitlines(keepends=True) if not ASIDE.match(line))
        self._end = End(code, out, err, self._seconds, int(memory or 0) / 1024)
        return self._end


def command(program: str, *arguments: object) -> Callable[[], None]:
    """What a child does that runs a program with a command line."""

    def run() -> None:
        sys.argv = [str(ROOT / program), *map(str, arguments)]
        run_command(PROGRAMS[program].main)

    return run


class World:
    """A scratch folder with the recipe, and the run that nothing interrupted."""

    def __init__(self, folder: Path, processes: int = 1, recipe: str = RECIPE) -> None:
        self.folder, self.processes, self.phases, self.name = folder, processes, PHASES[recipe], NAMES[recipe]
        folder.mkdir(parents=True, exist_ok=True)
        if recipe == STREAMED:
            write_shards(folder)
        os.environ.update(VQSTACK_CACHE=str(folder / "cache"), HF_DATASETS_CACHE=str(folder / "hub"))  # of children
        (folder / "tiny.yaml").write_text(recipe.replace("FOLDER", str(folder)), encoding="utf-8")
        self.whole = folder / f"whole-{processes}"
        start = time.monotonic()
        ends = [child.end() for child in self.train(self.whole)]
        assert all(end.code == 0 for end in ends), ends
        self.seconds = time.monotonic() - start
        self.expected = remains(self.whole)

    def train(self, run: Path, environment: dict[str, str] | None = None) -> list[Child]:
        """Start the run, or go on with it: one child a process."""
        action = command(TRAIN, "--config", self.folder / "tiny.yaml", "--out", run)
        if self.processes == 1:
            return [Child(action, self.folder, environment)]
        port = str(random.SystemRandom().randrange(20000, 60000))
        return [
            Child(
                action,
                self.folder,
                {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(self.processes),
                    "LOCAL_WORLD_SIZE": str(self.processes),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": port,
                },
            )
            for rank in range(self.processes)
        ]

    def fresh(self, name: str) -> Path:
        """A folder that is not there."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return self.folder / name

    def copy(self, name: str) -> Path:
        """A copy of the finished run."""
        return Path(shutil.copytree(self.whole, self.fresh(name)))

    def problems(self, run: Path) -> list[str]:
        """In what a finished run differs from the one that nothing interrupted."""
        found = remains(run)
        return sorted(name for name in {*found, *self.expected} if found.get(name) != self.expected.get(name))

    def phase_of(self, run: Path) -> str:
        """Where a run stands."""
        if not (run / "config.yaml").exists():
            return "start"
        done = sum((run / "phases" / phase / "DONE").exists() for phase in self.phases)
        if done == len(self.phases):
            return "release"
        following = self.phases[done]
        return following if (run / "phases" / following).exists() else f"before {following}"


def write_shards(folder: Path) -> None:
    """Digits as PNG files in four Parquet files, so that two processes have two workers each."""
    import datasets  # noqa: F401  # a second, which every child would take otherwise

    digits = sklearn.datasets.load_digits()
    for part in range(4):
        rows = range(50 * part, 50 * part + 50)
        images = [{"bytes": png(digits.images[row] * 15), "path": None} for row in rows]
        table = pyarrow.table({"image": images, "label": digits.target[rows.start : rows.stop]})
        pyarrow.parquet.write_table(table, folder / f"{part}.parquet")


def png(image: Any) -> bytes:
    """Grey values of one image as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image.astype(np.uint8)).save(file, format="PNG")
    return file.getvalue()


def remains(run: Path) -> dict[str, str]:
    """Checksums of every file of a run that is promised to be equal: not the lock, nor the report, which names it."""
    files = (path for path in run.rglob("*") if path.is_file() and path.name not in (".lock", REPORT))
    return {str(path.relative_to(run)): digest(path) for path in files if "damaged-" not in str(path)}
