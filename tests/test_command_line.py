"""The command ``vqstack``: every command by name, recipes by name, and leaving while libraries are imported."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from helpers import refused

from vqstack import __version__
from vqstack.commands import COMMANDS, run
from vqstack.config import read_recipe
from vqstack.recipes import about, find_recipe, shipped

ROOT = Path(__file__).parents[1]


SENT = "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(60)"


def vqstack(*arguments, **environment):
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "vqstack", *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        check=False,
        env={**os.environ, **environment},
    )


def test_every_command_has_a_module_and_the_overview_names_it():
    overview = vqstack("--help")
    assert (overview.returncode, overview.stderr) == (0, "")
    assert vqstack().stdout == overview.stdout
    for name in COMMANDS:
        assert callable(import_module(f"vqstack.commands.{name}").main)
        assert f"\n  {name} " in overview.stdout
    assert len(overview.stdout.splitlines()) <= 24


def test_scripts_are_commands(programs):
    names = {module.__name__.rpartition(".")[2] for module in programs.values()}
    without = {"recipes", "doctor", "reconstruct", "interpolate", "splice", "push", "completion"}
    assert names == COMMANDS.keys() - without


def test_a_wrong_name_is_refused():
    out = vqstack("trian")
    assert (out.returncode, out.stdout, out.stderr.count("\n")) == (2, "", 1)
    assert "choose train, or" in out.stderr


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], ["nonsense"], ["recipes"], ["recipes", "digits"]])
def test_what_needs_no_tensors_imports_no_torch(tmp_path, arguments):
    """torch takes seconds; here its import ends the process."""
    (tmp_path / "torch.py").write_text("import os; os._exit(99)")
    assert vqstack(*arguments, PYTHONPATH=str(tmp_path)).returncode in (0, 2)


@pytest.mark.parametrize(("name", "word"), [("train", "to go on"), ("generate", "to start over")])
def test_a_signal_while_libraries_are_imported_leaves_in_one_line(tmp_path, name, word):
    """Also where the library takes every exception for its own."""
    torch = f"try: {SENT}\nexcept BaseException as error: raise ImportError('half of it') from error"
    (tmp_path / "torch.py").write_text(torch)
    out = vqstack(name, "--help-all", PYTHONPATH=str(tmp_path))
    assert (out.returncode, out.stdout) == (75, "")
    assert out.stderr == f"stopped by SIGINT; run the same command again {word}\n"


def test_a_signal_before_the_command_is_known_leaves_without_a_word(tmp_path):
    (tmp_path / "tqdm.py").write_text(SENT)
    out = vqstack("train", PYTHONPATH=str(tmp_path))
    assert (out.returncode, out.stdout, out.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_screen_and_names_options_that_are_there(name, monkeypatch, capsys):
    def help_of(*arguments, **how):
        monkeypatch.setattr(sys, "argv", [f"vqstack {name}", *arguments])
        with contextlib.suppress(SystemExit):
            run(name, **how)
        return capsys.readouterr().out

    monkeypatch.setenv("COLUMNS", "80")
    short, whole = help_of("--help", short_help=True), help_of("--help")
    assert len(short.splitlines()) <= 40 and max(map(len, short.splitlines())) <= 120
    assert f"vqstack {name}" in short
    options = re.findall(r"^  (--[a-z-]+)", short, re.MULTILINE)
    assert options or whole == short
    for option in options:
        assert re.search(rf"^ +{option}([ .,]|$)", whole, re.MULTILINE), option


def test_doctor_measures_and_leaves_nothing(capsys, tmp_path):
    doctor = import_module("vqstack.commands.doctor")
    doctor.main(["1"])
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert {"vqstack", "packages", "device", "cores", "memory", "cache"} < printed.keys()
    assert int(re.match(r"([\d,]+) images/s", printed["speed"])[1].replace(",", "")) > 0
    doctor.main(["0"])
    assert "speed" not in capsys.readouterr().out
    refused(lambda: doctor.main(["soon"]), "soon", "seconds")
    assert not list(tmp_path.iterdir())


def test_recipes_are_listed_and_printed():
    listed = vqstack("recipes").stdout
    for name, path in shipped().items():
        assert f"{name} " in listed and about(path) in listed
        assert read_recipe(path)
    assert vqstack("recipes", "digits").stdout == shipped()["digits"].read_text("utf-8")
    assert vqstack("recipes", "nonsense").returncode == 2


def test_the_checkout_has_the_recipes_of_the_package_once():
    links = {path.stem: path for path in (ROOT / "recipes").glob("*.yaml")}
    assert links.keys() == shipped().keys()
    assert all(path.is_symlink() and path.resolve() == shipped()[name].resolve() for name, path in links.items())


def test_a_recipe_by_name_or_path(tmp_path):
    assert find_recipe("digits") == shipped()["digits"]
    (tmp_path / "digits").mkdir()  # say, of images
    assert find_recipe("digits") == shipped()["digits"]
    (tmp_path / "mnist").write_text("seed: 1")
    assert find_recipe("mnist") == Path("mnist")
    assert find_recipe("recipes/digits.yaml") == Path("recipes/digits.yaml")  # a path is never guessed at
    refused(lambda: find_recipe("digit"), "--config digit", "digits")


def test_a_shell_completes_commands_options_and_recipes(capsys):
    """In bash itself, where there is one; every option is one that the command has."""
    completion = import_module("vqstack.commands.completion")
    completion.main(["bash"])
    script = capsys.readouterr().out

    def completed(*words):
        code = (
            f'{script}\nCOMP_WORDS=({" ".join(words)}); COMP_CWORD={len(words) - 1}; _vqstack; echo "${{COMPREPLY[@]}}"'
        )
        return subprocess.run(["bash", "-c", code], capture_output=True, encoding="utf-8", check=True).stdout.split()

    if shutil.which("bash"):
        assert completed("vqstack", "tr") == ["train"]
        assert completed("vqstack", "train", "--data.class-n") == ["--data.class-names"]
        assert completed("vqstack", "train", "--levels.0.quantizer.codebook-s") == [
            "--levels.0.quantizer.codebook-size"
        ]
        assert completed("vqstack", "train", "--config", "dig") == ["digits"]
    completion.main(["fish"])
    assert "complete -c vqstack" in capsys.readouterr().out
    for name, options in completion.every_option().items():
        with contextlib.suppress(SystemExit):
            run_help(name)
        named = set(re.findall(r"^ +(--[\w.-]+)", capsys.readouterr().out, re.MULTILINE))
        assert set(options) - named <= {option for option in options if ".0." in option} | {"--help"}, name


def run_help(name):
    import_module(f"vqstack.commands.{name}").main(["--help"])


def test_one_place_has_the_version():
    root = Path(__file__).parents[1]
    assert f"\nversion: {__version__}\n" in (root / "CITATION.cff").read_text("utf-8")
    assert "\nversion" not in (root / "pyproject.toml").read_text("utf-8").split("[tool.setuptools.dynamic]")[0]
