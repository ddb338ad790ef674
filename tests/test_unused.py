"""What is given and would not be used is refused by its name."""

import hashlib
from functools import reduce
from importlib import import_module

import pytest
from test_config import ROOT

from vqstack.config import RunConfig, changed, parse, read_recipe, to_yaml
from vqstack.errors import InputError
from vqstack.images import ImageSettings, load_splits
from vqstack.quantizer import QuantizerSettings
from vqstack.run_folder import claim, read_config
from vqstack.window import DecoderSettings

TRAIN = ROOT / "recipes" / "train_stack.py"
ARRAY = {"source": "array", "files": {"train": "a.npy"}}


def refused(arguments, recipe=None):
    with pytest.raises(InputError) as caught:
        parse(RunConfig, arguments, recipe or RunConfig())
    return str(caught.value)


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["train", "dry run"])
def test_files_without_a_recipe_do_not_train_digits(call, tmp_path, dry):
    (tmp_path / "mine").mkdir()
    code, out, err = call(TRAIN, "--data.files", "train", "mine", "--out", "run", *dry)
    assert (code, out) == (2, "") and "--data.files" in err and "--config folder" in err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("option", "data"),
    [
        ("--data.files train a.parquet", {"source": "hub", "name": "a/b", "validation": 10}),
        ("--data.files train a.parquet", {}),
        ("--data.workers 2", ARRAY),  # also where the value is the default
        ("--data.shuffle-buffer=5", ARRAY),
        ("--data.background white", ARRAY),
        ("--data.on-error skip", {}),
        ("--data.classes 3", {"label_column": "", **ARRAY}),
        ("--train-joint.steps 5", {}),
        ("--train-decoders.steps 5", {}),
        ("--train-refiners.0.steps 5", {}),
        ("--augment.views 2", {}),
        ("--train-levels.0.augmented 0.5", {}),
        ("--train_prior.augmented 0.5", {}),
    ],
    ids=str,
)
def test_what_is_given_and_not_used_is_refused(option, data):
    name = option.split()[0].split("=")[0].replace("_", "-")
    assert refused(option.split(), RunConfig(data=ImageSettings(**data))).startswith(f"{name}: ")


def test_training_of_levels_one_by_one_is_not_used_in_a_joint_run():
    assert refused(["--joint", "--train-levels.0.steps", "5"]).startswith("--train-levels")
    assert parse(RunConfig, ["--joint", "--train-joint.steps", "5"], RunConfig()).train_joint.steps == 5


def test_what_makes_it_used_may_be_given_beside_it():
    given = ["--augment.shift", "1", "--augment.views", "2", "--train-levels.0.augmented", "0.5"]
    assert parse(RunConfig, given, RunConfig()).augment.views == 2


@pytest.mark.parametrize(
    "text",
    ["data: {workers: 5}", "train_joint: {steps: 3}", "augment: {views: 2}", "train_prior: {augmented: 0.5}"],
)
def test_a_recipe_that_sets_what_it_does_not_use_is_refused(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=text.split(":")[0]):
        read_recipe(path)


def test_another_source_does_not_keep_the_files_of_the_old_one():
    recipe = read_recipe(ROOT / "recipes" / "folder.yaml")
    data = parse(RunConfig, ["--data.source", "hub", "--data.name", "a/b"], recipe).data
    assert (data.source, data.files) == ("hub", {})
    assert "files" in refused(["--data.source", "parquet"], recipe)


def test_a_dry_run_notices_a_folder_that_is_not_there(call, tmp_path):
    arguments = ("--config", ROOT / "recipes" / "folder.yaml", "--dry-run", "--data.files", "train", "nowhere")
    code, out, err = call(TRAIN, *arguments)
    assert (code, out) == (2, "") and "nowhere" in err and err.count("\n") == 1
    (tmp_path / "nowhere").touch()  # a file where a folder is wanted
    code, _, err = call(TRAIN, *arguments)
    assert code == 2 and "nowhere" in err


def test_from_python_files_of_no_use_are_refused():
    with pytest.raises(InputError, match="files"):
        load_splits(ImageSettings(files={"train": "folder"}))


def test_a_column_of_a_file_that_has_none_is_refused(tmp_path):
    import numpy as np

    np.save(tmp_path / "a.npy", np.zeros((9, 4, 4), np.uint8))
    with pytest.raises(InputError, match="image_column"):
        load_splits(ImageSettings(source="array", files={"train": "a.npy"}, image_column="pixels"))
    with pytest.raises(InputError, match="classes"):
        load_splits(ImageSettings(source="array", files={"train": "a.npy"}, classes=3))


def test_a_run_of_an_earlier_version_that_set_more_is_read(tmp_path):
    claim(tmp_path / "run", RunConfig(data=ImageSettings(workers=7, seed=3))).release()
    config = read_config(tmp_path / "run")
    assert (config.data.workers, config.data.seed) == (ImageSettings().workers, 3)


@pytest.mark.parametrize("option", ["--num 5", "--seeds 1", "--features classifier", "--temperature 0.5", "--cache c"])
def test_options_of_samples_without_samples(call, tmp_path, option):
    arguments = ("run", "--out", "out", "--data.source", "digits", "--no-samples", *option.split())
    code, _, err = call(ROOT / "tools" / "evaluate.py", *arguments)
    assert code == 2 and err.startswith(f"error: {option.split()[0]}:")


# --- what a kind does not read


CLUSTER = {"levels": [{"map": [4, 4]}, {"map": [4, 4], "quantizer": {"kind": "cluster", "codebook_size": 8}}]}
UNLABELLED = {**ARRAY, "label_column": ""}
MASKED = {"refiners": [{"level": 1, "family": "masked"}]}
OF_KINDS = [  # a field that is set, other settings under which nothing reads it, and under which something does
    ("levels.0.quantizer.entropy", 0.3, {}, {"levels": {"quantizer": {"kind": "lfq"}}}),
    ("levels.0.quantizer.decay", 0.9, {"levels": {"quantizer": {"kind": "simvq"}}}, {}),
    ("levels.0.quantizer.revival", 0.2, {"levels": {"quantizer": {"kind": "lfq"}}}, {}),
    ("levels.0.quantizer.merge", "vectors", {}, None),
    ("levels.1.quantizer.commitment", 0.5, CLUSTER, {}),
    ("levels.1.encoder_blocks", 3, CLUSTER, {}),
    ("levels.0.embedding", "random", {}, None),
    ("levels.1.embedding", "random", {"joint": True}, {}),
    ("train_decoders.collapse", 0.1, {"joint": True}, None),
    ("train_refiners.0.collapse", 0.1, MASKED, None),
    ("train_prior.collapse", 0.1, {}, None),
    ("data.validation", 0.2, {"data": {**ARRAY, "files": {"train": "a", "validation": "b"}}}, {"data": ARRAY}),
    ("data.test", 7, {"data": {"source": "hub", "name": "a/b", "splits": {"test": "c"}}}, {"data": ARRAY}),
    ("levels.0.decoder.radius", 2, {}, {"levels": {"decoder": {"family": "window"}}}),
    ("pixels.components", 5, {}, {"data": {**ARRAY, "values": 256}}),
    ("prior.masks", "random", {}, {"prior": {"family": "masked"}}),
    ("prior.groups", 4, {"prior": {"wavefront": 2, "window": 1}}, {}),
    ("prior.label_dropout", 0.1, {"prior": {"labels": False, "condition": False}}, {}),
    ("prior.label_dropout", 0.1, {"data": UNLABELLED}, {"data": UNLABELLED | {"condition": "text"}}),
    ("refiners.0.label_dropout", 0.1, MASKED, {"refiners": [{"level": 1, "labels": True}]}),
    ("refiners.0.labels", True, {**MASKED, "data": UNLABELLED}, MASKED),
    ("refiners.0.condition", True, MASKED, {**MASKED, "data": {**ARRAY, "condition": "text"}}),
    ("refiners.0.corrupt_by", "samples", MASKED, {"refiners": [{"level": 1, "corruption": 0.2}]}),
    ("renderer.adversary.start", 5, {"renderer": {}}, {"renderer": {"adversary": {"weight": 1}}}),
    ("renderer.perceptual_weight", 2.0, {"renderer": {"perceptual": "none"}}, {"renderer": {}}),
]


@pytest.mark.parametrize(("field", "value", "idle", "read"), OF_KINDS, ids=[case[0] for case in OF_KINDS])
def test_what_a_kind_does_not_read_is_refused_by_its_name(tmp_path, field, value, idle, read):
    """On the command line and in a recipe; the run of an earlier version that has it is read, and so is its recipe."""
    option = f"--{field.replace('_', '-')}"
    settings = changed(RunConfig(), idle)
    given = [option, str(value)][: 1 if value is True else 2]
    assert refused(given, settings).startswith(f"{option}: ")
    values = settings.model_dump(mode="json")
    *path, last = field.split(".")
    reduce(lambda inside, part: inside[int(part) if part.isdigit() else part], path, values)[last] = value
    (tmp_path / "recipe.yaml").write_text(to_yaml(RunConfig(**values)), encoding="utf-8")
    with pytest.raises(InputError, match=f": {field}: "):
        read_recipe(tmp_path / "recipe.yaml")
    old = to_yaml(RunConfig(**values))
    (tmp_path / "run").mkdir()
    sealed = f"# sha256 {hashlib.sha256(old.encode()).hexdigest()}\n{old}"
    (tmp_path / "run" / "config.yaml").write_text(sealed, encoding="utf-8")
    assert read_config(tmp_path / "run") == read_recipe(tmp_path / "run" / "config.yaml") == settings
    if read is not None:
        found = parse(RunConfig, given, changed(RunConfig(), read))
        assert reduce(lambda inside, part: inside[int(part)] if part.isdigit() else getattr(inside, part), path, found)


def test_what_a_run_writes_down_can_be_its_recipe(tmp_path):
    """A product in the place of a recipe's window leaves the window's settings without use."""
    recipe = read_recipe(ROOT / "recipes" / "digits.yaml")
    config = parse(RunConfig, ["--levels.0.decoder.family", "product", "--refiners.0.wavefront", "0"], recipe)
    claim(tmp_path / "run", config).release()
    assert read_recipe(tmp_path / "run" / "config.yaml") == read_config(tmp_path / "run")
    assert read_config(tmp_path / "run").levels[0].decoder == DecoderSettings()


def test_what_is_said_of_every_entry_must_be_read_by_one():
    """The digits' level 1 has a window, the other has none."""
    recipe = read_recipe(ROOT / "recipes" / "digits.yaml")
    levels = changed(recipe, {"levels": {"decoder": {"width": 8}}}).levels
    assert [level.decoder.width for level in levels] == [8, DecoderSettings().width]
    for values in ({"quantizer": {"entropy": 0.5}}, [level.model_dump() | {"embedding": "random"} for level in levels]):
        with pytest.raises(InputError, match="levels.0"):
            changed(recipe, {"levels": values})


def test_classes_that_are_registered_may_read_any_setting():
    assert QuantizerSettings(kind="vq").unused() and not QuantizerSettings.model_construct(kind="mine").unused()


# --- options of the commands


OF_COMMANDS = [  # a command, what gives an option that nothing reads, and what has it read
    ("reconstruct run a", "--label 3", "--sample"),
    ("reconstruct run a --own-size", "--seed 3", None),
    ("interpolate run a b", "--seed 3", "--sample"),
    ("splice run a b", "--label 3", "--sample"),
    ("compress run", "--data.limit 5", "--split test"),
    ("compress run a --single", "--name images", None),
    ("decompress run a", "--seed 0", "--sample"),
    ("encode run", "--lease 5", "--shared"),
    ("export run --format torch", "--opset 20", None),
    ("generate run", "--split train", "--codes c"),
    ("generate run", "--from-level 1", "--images a"),
    ("train", "--processes 2", "--dry-run"),
]


@pytest.mark.parametrize(("command", "option", "reader"), OF_COMMANDS, ids=[" ".join(c[:2]) for c in OF_COMMANDS])
def test_an_option_that_nothing_reads_is_refused_by_its_name(command, option, reader):
    name, *given = f"{command} --out out {option}".split()
    settings = import_module(f"vqstack.commands.{name}").Command
    with pytest.raises(InputError, match=rf"^{option.split()[0]}: "):
        parse(settings, given)
    if reader is not None:
        parse(settings, [*given, *reader.split()])
