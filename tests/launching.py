"""Commands in several processes that talk through gloo, as torchrun starts them, from one that has all imports done.

Importing torch takes a process longer than what it does in a test. The server of multiprocessing imports once, and
every process of a launch is forked from it. One run of tests/test_processes.py still goes through torchrun.
"""

import multiprocessing
import os
import socket
import sys
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["vqstack.commands.train", "vqstack.commands.encode"])


def _print_to(path):
    with open(path, "wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", 1, "utf-8", closefd=False) for stream in (1, 2))


def _program(script, environment, output):
    _print_to(output)
    os.environ.update(environment)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("vqstack", "huggingface_hub")]:
        del sys.modules[name]  # they read the environment when they are imported
    exec(compile(script, "program", "exec"), {"__name__": "__main__"})


def program(script, environment, output):
    """Lines of Python that were started in a process of their own, with what they print in a file."""
    process = _FORKS.Process(target=_program, args=(script, environment, output))
    process.start()
    return process


def _rank(rank, module, arguments, environment, output):
    """One process: what it prints goes to a file, its end is that of a command."""
    _print_to(output)
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    from vqstack.ending import run_command

    sys.argv = [module, *arguments]
    run_command(import_module(module).main)


class Launch:
    """Processes of a command that were started, and are ended at the latest with the block.

    Args:
        folder: receives what each of them prints.
        module: its ``main`` is the command.
        arguments: of the command.
        processes: count.
        environment: variables beside those of a launcher.
    """

    def __init__(self, folder, module, *arguments, processes=2, **environment):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        shared = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "ACCELERATE_USE_CPU": "true"}
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **environment}
        self.outputs = [Path(folder) / f"printed-{rank}" for rank in range(processes)]
        self.ranks = [
            _FORKS.Process(target=_rank, args=(rank, module, list(map(str, arguments)), shared, output))
            for rank, output in enumerate(self.outputs)
        ]

    def __enter__(self):
        for rank in self.ranks:
            rank.start()
        return self

    def __exit__(self, *_):
        for rank in self.ranks:
            rank.kill()
            rank.join()

    def ended(self, seconds=240):
        """Exit codes, and what was printed, of each; far more time than it takes: none may wait for ever."""
        until = time.monotonic() + seconds
        for rank in self.ranks:
            rank.join(max(until - time.monotonic(), 0))
        codes = [rank.exitcode for rank in self.ranks]
        printed = [path.read_text("utf-8") if path.exists() else "" for path in self.outputs]
        assert None not in codes, printed
        return SimpleNamespace(codes=codes, printed=printed)


def launched(folder, module, *arguments, processes=2, **environment):
    """A command in so many processes, ended: see :class:`Launch`."""
    with Launch(folder, module, *arguments, processes=processes, **environment) as launch:
        return launch.ended()
