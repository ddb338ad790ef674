"""Recipes and overrides: strict, complete, one line when wrong."""

import importlib.util
import io
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from vqstack.config import RunConfig, parse, read_yaml, to_yaml
from vqstack.errors import InputError

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.fixture(scope="module")
def train_stack():
    spec = importlib.util.spec_from_file_location("train_stack", ROOT / "recipes" / "train_stack.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_stack"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["train_stack"]


def leaves(value, prefix=""):
    """Command line names of every field below a settings object."""
    if isinstance(value, BaseModel):
        pairs = [(name.replace("_", "-"), getattr(value, name)) for name in type(value).model_fields]
    elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
        pairs = [(str(i), item) for i, item in enumerate(value)]
    else:
        yield prefix
        return
    for name, item in pairs:
        yield from leaves(item, f"{prefix}.{name}" if prefix else name)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_parses_and_dry_runs(path, train_stack, capsys, monkeypatch, tmp_path):
    config = read_yaml(path, RunConfig)
    written = tmp_path / "resolved.yaml"
    written.write_text(to_yaml(config), encoding="utf-8")
    assert read_yaml(written, RunConfig) == config
    if config.data.source != "digits":
        assert config.data.size is not None, "without a size a dry run would have to look at an image"

        def refuse(*args, **kwargs):
            raise AssertionError("a dry run opened the data set")

        monkeypatch.setattr("vqstack.images.splits.open_records", refuse)
        monkeypatch.setattr("vqstack.images.splits.open_streams", refuse)
    monkeypatch.chdir(tmp_path)
    train_stack.main(["--config", str(path), "--dry-run"])
    out = capsys.readouterr().out
    assert out.startswith(to_yaml(config))
    for number in range(1, len(config.levels) + 1):
        assert f"\nlevel {number}  " in out
    for word in ("\nprior", "\ntotal", "parameters", "MiB"):
        assert word in out
    assert [p.name for p in tmp_path.iterdir()] == ["resolved.yaml"]


def test_there_are_recipes():
    assert ROOT / "recipes" / "digits.yaml" in RECIPES


def test_the_default_recipe_is_digits(train_stack, capsys):
    train_stack.main(["--dry-run"])
    assert capsys.readouterr().out.startswith(to_yaml(read_yaml(ROOT / "recipes" / "digits.yaml", RunConfig)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour: 3", "colour: unknown field"),
        ("levels: [{map: [4, 4], quantiser: {}}]", "levels.0.quantiser: unknown field"),
        ("levels: [{quantizer: {codebook_size: many}}]", "levels.0.quantizer.codebook_size: "),
        ("levels: []", "levels: "),
        ("levels: [{quantizer: {kind: lfq, codebook_size: 6}}]", "power of two"),
        ("prior: {dim: 10, heads: 4}", "multiple of heads"),
        ("train_prior: {steps: 0}", "train_prior.steps: "),
        ("train_levels: [{}, {}, {}]", "train_levels takes one entry or 2"),
        ("seed: -1", "seed: "),
        ("mixed_precision: fp8", "mixed_precision: "),
        ("data: {source: moon}", "data.source: "),
        ("levels: [", "is not YAML"),
        ("a: 1: 2", "is not YAML"),
        ("- 1\n- 2", "holds no fields"),
        ("just words", "holds no fields"),
    ],
)
def test_wrong_yaml_is_one_line(tmp_path, text, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_yaml(path, RunConfig)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_yaml_that_is_not_there_or_not_text(tmp_path):
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00\x80")
    for path in (tmp_path / "missing.yaml", tmp_path, tmp_path / "bytes.yaml"):
        with pytest.raises(InputError) as caught:
            read_yaml(path, RunConfig)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_an_empty_file_means_the_defaults(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("", encoding="utf-8")
    assert read_yaml(path, RunConfig) == RunConfig()


def test_overrides():
    recipe = RunConfig()
    arguments = ["--levels.0.quantizer.codebook-size", "64", "--levels.1.map", "1", "2", "--train-prior.steps", "7"]
    config = parse(RunConfig, [*arguments, "--train-levels.0.learning-rate", "0.01", "--augment.shift", "1"], recipe)
    assert config.levels[0].quantizer.codebook_size == 64
    assert config.levels[1].map == (1, 2)
    assert config.levels[1].quantizer == recipe.levels[1].quantizer
    assert config.train_prior.steps == 7
    assert config.train_levels[0].learning_rate == 0.01
    assert config.augment.shift == 1
    assert config.data == recipe.data
    assert parse(RunConfig, [], recipe) == recipe


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--colour", "3"], "colour"),
        (["--levels.0.quantizer.codebook-size", "many"], "many"),
        (["--levels.0.quantizer.codebook-size", "1"], "greater than or equal to 2"),
        (["--levels.5.width", "8"], "levels.5.width"),
        (["--train-prior.steps"], "steps"),
        (["--train-prior.steps", "-3"], "greater than or equal to 1"),
        (["--prior.heads", "7"], "multiple of heads"),
        (["--mixed-precision", "fp8"], "fp8"),
        (["stray"], "stray"),
    ],
    ids=" ".join,
)
def test_wrong_overrides_are_one_line(arguments, message, capsys):
    with pytest.raises(InputError) as caught:
        parse(RunConfig, arguments, RunConfig(), prog="train_stack.py")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "pydantic" not in str(caught.value)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_help_mentions_every_field(train_stack, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as caught:
        train_stack.main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    recipe = read_yaml(ROOT / "recipes" / "digits.yaml", RunConfig)
    # A list that is empty in the recipe has no entries that could be set.
    names = [*(name for name in leaves(recipe) if name != "refiners"), "config", "out", "dry-run"]
    assert len(names) > 60
    missing = [name for name in names if f"--{name}" not in out]
    assert not missing


def test_every_field_is_described():
    seen, todo = set(), [RunConfig]
    while todo:
        settings = todo.pop()
        seen.add(settings)
        for name, field in settings.model_fields.items():
            assert field.description, f"{settings.__name__}.{name}"
            inner = [field.annotation, *getattr(field.annotation, "__args__", ())]
            todo += [t for t in inner if isinstance(t, type) and issubclass(t, BaseModel) and t not in seen]
    assert len(seen) > 6


def test_maps_are_checked_before_anything_is_built():
    RunConfig().check_shapes(8, 8)
    with pytest.raises(InputError, match=r"levels\.0\.map 4x4 does not divide .*9x8"):
        RunConfig().check_shapes(9, 8)
    RunConfig(pad_to=(12, 8)).check_shapes(9, 8)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_messages_on_any_terminal(encoding, monkeypatch):
    """Where the terminal has no box characters the command-line library draws rules instead."""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    with pytest.raises(InputError) as caught:
        parse(RunConfig, ["--seed", "-1"], RunConfig(), prog="train_stack.py")
    assert str(caught.value).endswith("seed Input should be greater than or equal to 0 (see --help)")
    assert "--- " not in str(caught.value)
    assert "─" not in str(caught.value)
