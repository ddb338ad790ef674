"""Recipes and overrides: strict, complete, one line when wrong."""

import ast
import math
import re
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from helpers import refused
from pydantic import BaseModel, ValidationError

from vqstack.config import RunConfig, parse, read_recipe, read_yaml, to_yaml
from vqstack.config.unused import unused
from vqstack.errors import InputError
from vqstack.fit import FitSettings
from vqstack.images import ImageSettings
from vqstack.likelihood import Draw
from vqstack.model_settings import ModelSettings, SamplingSettings
from vqstack.quantizer import QuantizerSettings

ROOT = Path(__file__).parents[1]
RECIPES = sorted([*(ROOT / "recipes").glob("*.yaml"), *(ROOT / "benchmarks/recipes").glob("*.yaml")])


@pytest.fixture
def train_stack(programs):
    return programs[ROOT / "recipes" / "train_stack.py"]


@pytest.fixture
def tools(programs):
    """Every tool that takes settings."""
    return [module for path, module in programs.items() if path.parent.name == "tools" and hasattr(module, "Command")]


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
    for name in config.data.files.values():  # a dry run notices where these are missing
        (tmp_path / name).mkdir(parents=True) if config.data.source.endswith("folder") else (tmp_path / name).touch()
    AcceleratorState._reset_state()  # one process, one precision; the recipes have several
    train_stack.main(["--config", str(path), "--dry-run"])
    AcceleratorState._reset_state()
    out, err = capsys.readouterr()
    assert err == ""  # no map of a recipe holds as much as what lies below it
    assert out.startswith(to_yaml(config))
    for number in range(1, len(config.levels) + 1):
        assert f"\nlevel {number}  " in out
    for word in ("\nprior", "\ntotal", "parameters", "MiB"):
        assert word in out
    assert {p.name for p in tmp_path.iterdir()} == {"resolved.yaml", *config.data.files.values()}


def test_every_recipe_of_the_hub_takes_files_instead():
    arguments = "--data.source parquet --data.files train a.parquet test b.parquet".split()
    given = {"source": "parquet", "files": {"train": "a.parquet", "test": "b.parquet"}}
    given |= {"name": None, "revision": None, "splits": {}}
    recipes = [recipe for path in RECIPES if (recipe := read_yaml(path, RunConfig)).data.source == "hub"]
    assert recipes
    for recipe in recipes:
        assert parse(RunConfig, arguments, recipe).data == ImageSettings(**(recipe.data.model_dump() | given))


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
        ("train_levels: [{}, {}, {}]", "train_levels has 3 entries for 2 levels: give one"),
        ("seed: -1", "seed: "),
        ("mixed_precision: fp8", "mixed_precision: "),
        ("data: {source: moon}", "data.source: "),
        ("levels: [", "is not YAML"),
        ("a: 1: 2", "is not YAML"),
        ("seed: 1\nprior: {}\nseed: 2", "seed stands twice"),
        ("levels: [{width: 8, map: [2, 2], width: 8}]", "width stands twice"),
        ("train_prior: {learning_rate: .inf}", ".inf is no number as JSON has them"),
        ("seed: 2020-99-99", "seed: '2020-99-99' does not fit"),
        ("seed: !!int 3", "tags (!) are not read"),
        ("seed: " + 3000 * "[", "nested too deeply"),
        (f"seed: {2**63}", "seed: 9223372036854775808 does not fit"),
        (f"data: {{seed: {2**64}}}", "data.seed: 18446744073709551616 does not fit"),
        ("- 1\n- 2", "holds no fields"),
        ("just words", "holds no fields"),
    ],
    ids=lambda value: value[:40],
)
def test_wrong_yaml_is_one_line(tmp_path, text, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(text, encoding="utf-8")
    refused(lambda: read_yaml(path, RunConfig), message, str(path))


def test_yaml_that_is_not_there_or_not_text(tmp_path):
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00\x80")
    for path in (tmp_path / "missing.yaml", tmp_path, tmp_path / "bytes.yaml"):
        refused(lambda path=path: read_yaml(path, RunConfig), str(path))


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


def changed(value):
    """Another value of the same type, still a valid one."""
    if isinstance(value, bool):
        return not value
    return value * 2 if isinstance(value, int) else value * 0.5


def test_every_number_and_switch_can_be_overridden():
    recipe = read_yaml(ROOT / "recipes" / "digits.yaml", RunConfig)
    arguments, wanted = [], {}
    for name in leaves(recipe):
        value = recipe
        for part in name.split("."):
            value = value[int(part)] if part.isdigit() else getattr(value, part.replace("-", "_"))
        fixed = (
            name
            in (
                "joint",
                "data.values",
                "data.channels",
                "data.streaming",
                "data.padding",
                "refiners.0.level",
                "prior.labels",  # what label_dropout drops
                "refiners.0.labels",
                "unified",
            )
            or "map" in name
            or name.endswith("quantizer.codes")
            or name.startswith("data.text-")
            or "levels.0.dropout" in name
        )
        idle = any(f"{name.replace('-', '_')}.".startswith(f"{field}.") for field in unused(recipe))
        if isinstance(value, (bool, int, float)) and not fixed and not idle:
            wanted[name] = changed(value)
            if isinstance(value, bool):
                switch = name if wanted[name] else ".".join([*name.split(".")[:-1], f"no-{name.split('.')[-1]}"])
                arguments += [f"--{switch}"]
            else:
                arguments += [f"--{name}", str(wanted[name])]
    config = parse(RunConfig, arguments, recipe)
    for name, value in wanted.items():
        found = config
        for part in name.split("."):
            found = found[int(part)] if part.isdigit() else getattr(found, part.replace("-", "_"))
        assert found == value, name
    assert len(wanted) > 50


def test_optional_and_nested_fields_can_be_overridden():
    arguments = "--pad-to 8 8 --levels.1.quantizer.kind fsq --levels.1.quantizer.fsq-levels 4 4 --trackers a b"
    config = parse(RunConfig, [*arguments.split(), "--sampling.temperature", "1", "0.5", "0.5"], RunConfig())
    assert (config.pad_to, config.levels[1].quantizer.fsq_levels) == ((8, 8), (4, 4))
    assert (config.trackers, config.sampling.temperature) == (("a", "b"), (1.0, 0.5, 0.5))
    again = parse(RunConfig, ["--pad-to", "None", "--levels.1.quantizer.fsq-levels", "None"], config)
    assert again.pad_to is None and again.levels[1].quantizer.fsq_levels is None
    files = ["--data.source", "array", "--data.files", "train", "a.npy", "test", "b.npy"]
    config = parse(RunConfig, files, RunConfig())
    assert config.data.files == {"train": "a.npy", "test": "b.npy"}
    assert parse(RunConfig, ["--data.files", "train", "c.npy"], config).data.files == {"train": "c.npy"}


def test_lists_grow_from_the_command_line():
    recipe = read_yaml(ROOT / "recipes" / "digits.yaml", RunConfig)
    given = ["--levels.2.map", "2", "2", "--levels.2.quantizer.codebook-size=8", "--levels.3.map", "1", "1"]
    config = parse(RunConfig, given, recipe)
    assert config.levels[:2] == recipe.levels
    assert [level.map for level in config.levels] == [(4, 4), (1, 1), (2, 2), (1, 1)]
    last = recipe.levels[1]
    quantizer = last.quantizer.model_copy(update={"codebook_size": 8})
    assert config.levels[2] == last.model_copy(update={"map": (2, 2), "quantizer": quantizer})
    assert config.levels[3] == last.model_copy(update={"map": (1, 1)})
    assert config.train_levels == (*recipe.train_levels, *recipe.train_levels[1:] * 2)
    one = RunConfig(train_levels=(FitSettings(steps=7),))
    config = parse(RunConfig, ["--train-levels.1.steps", "9"], one)
    assert [settings.steps for settings in config.train_levels] == [7, 9]
    config = parse(RunConfig, ["--levels.2.map", "1", "1"], one)
    assert (len(config.levels), len(config.train_levels)) == (3, 1)  # one entry stays one for all
    config = parse(RunConfig, ["--train_levels.2.steps", "9", "--levels.2.map", "1", "1"], one)
    assert [settings.steps for settings in config.train_levels] == [7, 7, 9]


def test_refiners_are_added_from_the_command_line():
    config = parse(RunConfig, ["--refiners.0.level", "2", "--train-refiners.0.steps", "5"], RunConfig())
    assert [refiner.level for refiner in config.refiners] == [2]
    config = parse(RunConfig, ["--refiners.1.level", "1", "--refiners.1.depth", "2"], config)
    assert [(r.level, r.depth) for r in config.refiners] == [(2, config.refiners[0].depth), (1, 2)]
    assert [fit.steps for fit in config.train_refiners] == [5]


def test_another_source_leaves_what_the_digits_brought():
    files = ["--data.source", "array", "--data.files", "train", "a.npy"]
    data = parse(RunConfig, files, RunConfig()).data
    assert data == ImageSettings(source="array", files={"train": "a.npy"})
    mine = RunConfig(data=ImageSettings(validation=50, seed=3))
    data = parse(RunConfig, [*files, "--data.test", "7"], mine).data
    assert (data.validation, data.test, data.values, data.size, data.seed) == (50, 7, 256, None, 3)
    assert parse(RunConfig, ["--data.source", "digits"], mine) == mine


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--colour", "3"], "--colour: unknown option: see --help for the names"),
        (["--levels.0.widht", "3"], "--levels.0.widht: unknown option: see --help for the names"),
        (["stray"], "stray: unknown option: see --help for the names"),
        (["--joint", "True"], "--joint: takes no value, but 'True' follows: give --joint or --no-joint"),
        (["--joint=True"], "--joint: takes no value, but 'True' follows: give --joint or --no-joint"),
        (["--no-joint", "true"], "--joint: takes no value, but 'true' follows: give --joint or --no-joint"),
        (["--joint", "0", "--seed", "0"], "0: unknown option: see --help for the names"),
        (
            ["--refiners.0.labels", "false"],
            "--refiners.0.labels: takes no value, but 'false' follows: give --refiners.0.labels or "
            "--refiners.0.no-labels",
        ),
        (
            ["--levels.0.quantizer.codebook-size", "many"],
            "--levels.0.quantizer.codebook-size: 'many' does not fit: it should be a valid integer",
        ),
        (["--levels.0.map", "3", "x"], "--levels.0.map: 'x' does not fit: it should be a valid integer"),
        (["--pixels.components"], "--pixels.components: too few values: it takes 1"),
        (["--train-prior.steps"], "--train-prior.steps: too few values: it takes 1"),
        (["--data.files", "foo"], "--data.files: 'foo' does not fit: it takes pairs of a name and a value"),
        (
            ["--data.files", "foo", "bar"],
            "--data.files: 'foo' does not fit: it should be 'train', 'validation' or 'test'",
        ),
        (
            ["--levels.0.quantizer.codebook-size", "1"],
            "--levels.0.quantizer.codebook-size: '1' does not fit: it should be greater than or equal to 2",
        ),
        (
            ["--train-prior.steps", "-3"],
            "--train-prior.steps: '-3' does not fit: it should be greater than or equal to 1",
        ),
        (
            ["--train-levels.0.learning-rate", "inf"],
            "--train-levels.0.learning-rate: 'inf' does not fit: it should be a finite number",
        ),
        (["--trackers", "--compile"], "--trackers: has no value: give one or several, or leave it out"),
        (["--seed", "-1"], "--seed: '-1' does not fit: it should be greater than or equal to 0"),
        (["--prior.heads", "7"], "--prior: dim 128 is no multiple of heads 7: change one of them"),
        (
            ["--prior.wavefront", "1"],
            "--prior: wavefront: a site needs its neighbours' values: set window to 1 or more",
        ),
        (
            ["--mixed-precision", "fp8"],
            "--mixed-precision: 'fp8' does not fit: it should be 'no', 'fp16' or 'bf16'",
        ),
        (["--levels.5.width", "8"], "--levels.5: there is no --levels.2: leave no gap"),
        (["--levels.0.quantizer.kind", "lfq", "--levels.0.quantizer.codebook-size", "6"], "6 is no power of two"),
        (["--train-levels.2.steps", "8"], "--train-levels.2: there are 2 levels: give one entry for each, from 0 on"),
        (["--data.source", "hub"], "--data: source hub needs name, for example ylecun/mnist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_overrides_are_one_line(arguments, message, capsys):
    refused(lambda: parse(RunConfig, arguments, RunConfig(), prog="train_stack.py"), message)
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


UNITS = r"\b(count|share|no unit|any unit|nats|pixels|sites|steps|images|probability|minutes)\b"


def settings_below(*todo):
    """Every settings class that the fields of these lead to, at any depth."""
    seen, todo = set(), list(todo)
    while todo:
        kind = todo.pop()
        if isinstance(kind, type) and issubclass(kind, BaseModel) and kind not in seen:
            seen.add(kind)
            todo += [field.annotation for field in kind.model_fields.values()]
        todo += getattr(kind, "__args__", ())
    return seen


def kinds_in(annotation):
    """The plain types inside an annotation such as tuple[float, ...] | None."""
    inner = [kind for part in getattr(annotation, "__args__", ()) for kind in kinds_in(part)]
    return inner or [annotation]


def every_settings_class(train_stack, programs):
    commands = [train_stack.Command, *(module.Command for module in programs)]
    return settings_below(*commands, RunConfig, ModelSettings, Draw)


def test_every_field_is_described_with_its_unit(train_stack, tools):
    classes = every_settings_class(train_stack, tools)
    assert {RunConfig, FitSettings, QuantizerSettings, ImageSettings, Draw} <= classes
    for settings in classes:
        for name, field in settings.model_fields.items():
            where = f"{settings.__name__}.{name}"
            assert field.description, where
            if {int, float} & set(kinds_in(field.annotation)):
                assert re.search(UNITS, field.description, re.IGNORECASE), f"{where}: {field.description}"


def test_no_number_is_infinite(train_stack, tools):
    """Nor not a number: every field of every settings class that takes a fraction refuses both."""
    fractions = 0
    for settings in every_settings_class(train_stack, tools):
        for name, field in settings.model_fields.items():
            if float in kinds_in(field.annotation):
                fractions += 1
                many = "tuple" in str(field.annotation)
                for value in (math.inf, -math.inf, math.nan):
                    with pytest.raises(ValidationError) as caught:
                        settings.model_validate({name: (value,) if many else value})
                    assert [e for e in caught.value.errors() if e["loc"][0] == name], f"{settings.__name__}.{name}"
    assert fractions > 15


def test_maps_are_checked_before_anything_is_built():
    RunConfig().check_shapes(8, 8)
    with pytest.raises(InputError, match=r"levels\.0\.map: 4x4 does not divide .*9x8"):
        RunConfig().check_shapes(9, 8)
    RunConfig(pad_to=(12, 8)).check_shapes(9, 8)


@pytest.mark.parametrize("data", [{}, {"size": (4, 4), "resize": (4, 4)}])
def test_random_crops_need_room(data):
    images = {"source": "array", "files": {"train": "a.npy"}}
    with pytest.raises(ValueError, match=r"data\.resize"):
        RunConfig(data=images | data, augment={"crop": "random"})
    RunConfig(data=images | {"size": (4, 4), "resize": (4, 6)}, augment={"crop": "random"})


SOUNDS = {"source": "audiofolder", "files": {"train": "sounds"}, "size": (800,), "rate": 8000}
VOLUMES = {"source": "volumefolder", "files": {"train": "scans"}, "size": (8, 8, 8)}


@pytest.mark.parametrize(
    ("data", "augment", "words"),
    [
        (SOUNDS, {"flip": True}, "backwards"),
        (SOUNDS, {"flip": True, "flip_axes": ("width",)}, "width is no axis of these inputs: choose of time"),
        (VOLUMES, {"flip": True, "flip_axes": ("height", "time")}, "time is no axis .* depth, height, width"),
        ({}, {"flip_axes": ("height",)}, "nothing is mirrored"),
        (SOUNDS, {"crop": "random"}, r"data\.resize"),
        (SOUNDS | {"resize": (900,), "padding": True}, {}, "resize"),
    ],
)
def test_views_of_axes_that_are_not_there_are_refused(data, augment, words):
    with pytest.raises(ValueError, match=words):
        RunConfig(data=data, augment=augment)
    RunConfig(data=SOUNDS | {"resize": (900,)}, augment={"flip": True, "flip_axes": ["time"], "crop": "random"})
    RunConfig(data=VOLUMES | {"resize": (9, 8, 8)}, augment={"flip": True, "flip_axes": ["depth", "width"]})


def test_a_map_without_axes_is_refused_with_what_to_write():
    with pytest.raises(ValueError, match=r"give 1 an axis: \[1\] of sounds, \[1, 1\] of images"):
        RunConfig(levels=[{"map": []}])


def test_maps_that_hold_as_much_as_what_lies_below_are_warned_about(train_stack, capsys):
    bits = ["--levels.0.map", "8", "8", "--levels.0.quantizer.codebook-size", "32"]  # 320 of 64 log2(17) = 262 bits
    train_stack.main(["--dry-run", *bits])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: levels.0: its map can hold 320 bits where the images hold at most 262: ")
    train_stack.main(["--dry-run", "--levels.1.map", "4", "4", "--levels.1.quantizer.codebook-size", "128"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: levels.1: its map can hold 112 bits where the map of levels.0 holds at most ")


def test_a_model_that_does_not_fit_is_estimated(train_stack, capsys):
    """A prior of some terabytes: built for real, it would end the process."""
    train_stack.main(["--dry-run", "--prior.dim", "65536", "--prior.heads", "64", "--prior.depth", "40"])
    out = capsys.readouterr().out
    parameters = int(re.search(r"prior .* groups?, ([\d,]+) parameters", out)[1].replace(",", ""))
    assert parameters > 40 * 12 * 65536**2


def test_memory_is_that_of_a_process_of_so_many(train_stack, capsys):
    """Batches are shared in any case; weights, gradients, moments and averages where there are shards."""

    def mebibytes(*given):
        train_stack.main(["--dry-run", "--prior.dim", "4096", "--prior.heads", "64", "--prior.depth", "64", *given])
        out = capsys.readouterr().out
        assert ("weights in shards" in out) == ("--sharded" in given)
        parameters = int(re.search(r"prior .* groups?, ([\d,]+) parameters", out)[1].replace(",", ""))
        return int(re.search(r"memory   about ([\d,]+) MiB", out)[1].replace(",", "")), parameters / 2**20

    alone, million = mebibytes()
    whole, shards = (
        [mebibytes("--processes", str(number), *given)[0] for number in (2, 4)] for given in ([], ["--sharded"])
    )
    assert 20 * million < whole[1] < whole[0] < alone
    gathered = [20 * (1 - 1 / number) * million - w + s for number, w, s in zip((2, 4), whole, shards, strict=True)]
    assert gathered == pytest.approx([gathered[0]] * 2, abs=2)  # MiB, of however many processes
    assert 0 < gathered[0] < 8 * million / 10


def test_processes_are_planned_by_a_dry_run_alone(train_stack):
    refused(lambda: train_stack.main(["--processes", "8"]), "processes", "--dry-run")
    refused(lambda: train_stack.main(["--dry-run", "--processes", "7"]), "batch_size", "(7)")


def memory(train_stack, capsys, *given):
    """MiB that a dry run estimates."""
    train_stack.main(["--dry-run", *given])
    return float(re.search(r"memory   about ([\d,]+) MiB", capsys.readouterr().out)[1].replace(",", ""))


@pytest.mark.parametrize(
    ("option", "bytes_more"),
    [
        (("--encode-batch", "60000"), 60000 * 4 * 64 * 17),  # what is scored: a distribution of every pixel at least
        (("--levels.0.quantizer.dim", "65536"), 64 * 3 * 4 * 65536 * 16),  # start by k-means: vectors of the batch
        (("--levels.0.quantizer.codebook-size", "32768"), 64 * 20 * 32768 * 16),  # tables of distances
    ],
)
def test_the_estimate_grows_with_what_a_run_holds(train_stack, capsys, option, bytes_more):
    more = memory(train_stack, capsys, *option) - memory(train_stack, capsys)
    assert more > bytes_more / 2**20 - 100


def test_the_estimate_counts_what_reads_the_images(train_stack, capsys, tmp_path):
    """scikit-learn holds the digits, and nothing is needed for arrays."""
    np.save(tmp_path / "a.npy", np.zeros((4, 8, 8), np.uint8))
    arrays = ("--data.source", "array", "--data.values", "17", "--data.files", "train", str(tmp_path / "a.npy"))
    assert memory(train_stack, capsys) - memory(train_stack, capsys, *arrays) > 100


def test_help_of_settings_starts_with_their_fields():
    about = FitSettings.__doc__
    told = [line.strip().partition(": ") for line in about.partition("Fields:\n")[2].splitlines()]
    assert [(name, text) for name, _, text in told] == [(n, f.description) for n, f in FitSettings.model_fields.items()]


def test_checkers_see_every_default_without_a_plugin():
    """They know of ``Field`` what the standard says (dataclass_transform): a default is a keyword, or it is none."""
    for path in sorted((ROOT / "vqstack").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Field":
                assert not node.args, f"{path}:{node.lineno}: write Field(default=…)"


def test_what_checkers_are_told_of_sampling_are_its_fields():
    for node in ast.walk(ast.parse((ROOT / "vqstack/model_settings.py").read_bytes())):
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            assert [argument.arg for argument in node.args.kwonlyargs] == list(SamplingSettings.model_fields)
            break
    else:
        pytest.fail("SamplingSettings tells them nothing")


def test_an_empty_list_of_refiners_and_of_their_training_is_as_none_given(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("refiners: []\ntrain_refiners: []\n")
    assert read_recipe(recipe) == RunConfig()
