"""What every test stands on: shapes checked at every call, no network, the same seeds."""

import atexit
import gc
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

# What a test finds around it is the same for everybody: no cache, setting, language or token of the person who runs
# them. The libraries read these when they are imported, and the commands that tests start inherit them.
_home = tempfile.mkdtemp(prefix="vqstack-tests-")
atexit.register(shutil.rmtree, _home, ignore_errors=True)
_KEPT = ("PATH", "TMPDIR", "SYSTEMROOT", "PYTHON", "PYTEST_", "COV", "LD_", "DYLD_", "CUDA_", "NVIDIA_")
for _name in [name for name in os.environ if not name.startswith(_KEPT)]:
    del os.environ[_name]
os.environ.update(
    HOME=_home,
    LC_ALL="C.UTF-8",
    HF_HOME=_home,
    VQSTACK_CACHE=_home,
    XDG_CACHE_HOME=_home,
    MPLCONFIGDIR=_home,  # where it keeps the fonts it has found
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",  # tensors are tiny: a second thread would spin
)

from jaxtyping import install_import_hook  # noqa: E402

# Every annotation in the package is checked at run time, here and nowhere else; must precede its first import.
install_import_hook("vqstack", "beartype.beartype")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)  # also for what is made before the first test


def pytest_collection_finish() -> None:
    """What is imported by now stays: collecting garbage, as at the end of every phase, need not look at it again."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fixtures of the session are made in an empty folder: nothing that lies in the checkout has a short name."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    yield
    os.chdir(before)


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test works in a folder of its own, and what it prints does not depend on how busy the machine is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vqstack.terminal.Progress.FIRST", float("inf"))


_HANDLERS = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}


@pytest.fixture(autouse=True)
def same_start() -> Iterator[None]:
    """Each test starts from the same seeds and leaves global modes as it found them, and signals as all found them."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    deterministic = torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    torch.set_num_threads(1)  # these networks are too small for two, and other numbers round sums otherwise
    dtype = torch.get_default_dtype()
    yield
    if torch.are_deterministic_algorithms_enabled() != deterministic:  # the call alone imports the compiler
        torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = benchmark
    torch.set_num_threads(1)
    torch.set_default_dtype(dtype)
    for number, handler in _HANDLERS.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def programs():
    """The recipe and the tools as modules, by their path."""
    from helpers import program  # after the import hook above

    root = Path(__file__).parents[1]
    return {path: program(path) for path in sorted([*root.glob("recipes/*.py"), *root.glob("tools/*.py")])}


@pytest.fixture
def call(programs, monkeypatch, capsys):
    """A command in this process: (exit code, stdout, stderr)."""
    from vqstack.ending import run_command  # after the import hook above

    def run(program, *arguments):
        monkeypatch.setattr(sys, "argv", [str(program), *map(str, arguments)])
        capsys.readouterr()
        try:
            run_command(programs[program].main)
            code = 0
        except SystemExit as leave:
            code = leave.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def unregistered():
    """What is registered in a test is forgotten afterwards."""
    from vqstack.conditions import CONDITIONS
    from vqstack.images.settings import SOURCES
    from vqstack.likelihood.heads import PIXELS
    from vqstack.nets import NETWORKS
    from vqstack.quantizer.settings import QUANTIZERS
    from vqstack.renderer import PERCEPTUAL
    from vqstack.window import FAMILIES

    every = (CONDITIONS, SOURCES, PIXELS, NETWORKS, QUANTIZERS, FAMILIES, PERCEPTUAL)
    before = [(one, dict(one)) for one in every]
    yield
    for registry, content in before:
        registry.clear()
        registry.update(content)
    sys.modules.pop("plain_networks", None)
