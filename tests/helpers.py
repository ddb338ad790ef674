"""What several tests share: a refusal in one line, the files of a folder, finished phases, a program as a module."""

import importlib.util
import json
import sys
from functools import cache

import pytest

from vqstack.errors import InputError


def refused(call, *words):
    """The call is wrong input; the one line of it has these words."""
    with pytest.raises(InputError) as refusal:
        call()
    message = str(refusal.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def files_of(folder):
    """Every file below a folder with its content, every folder with none."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def phases_done(run):
    """What a run says of every finished phase."""
    return {path.parent.name: json.loads(path.read_text().splitlines()[0]) for path in run.glob("phases/*/DONE")}


@cache
def program(path):
    """A recipe or a tool as a module."""
    spec = importlib.util.spec_from_file_location(f"program_{path.stem}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(path, *arguments):
    """A recipe or a tool in this process."""
    program(path).main([str(argument) for argument in arguments])
