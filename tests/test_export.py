"""Exported files give what torch gives, for every kind of model, for any number of images, and without torch."""

import re
import subprocess
import sys
from pathlib import Path

import jaxtyping
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers import randomised, refused

from vqstack.commands import export as command
from vqstack.export import run
from vqstack.export.card import about, readme, write_card
from vqstack.export.check import check_graph, check_walks, given_floats, ties_of
from vqstack.export.folder import example, export
from vqstack.export.plan import Planner
from vqstack.export.run import Exported
from vqstack.export.trace import load
from vqstack.model import HierarchicalModel
from vqstack.model_settings import ModelSettings, SamplingSettings

EXTENDING = Path(__file__).parents[1] / "docs" / "extending.md"
PROGRAMS = re.findall(r"```python\n(.*?)```", EXTENDING.read_text("utf-8"), re.DOTALL)


def level(*shape, kind="vq", size=4, decoder=None, networks="residual", **quantizer):
    return {
        "map": shape,
        "width": 8,
        "encoder_blocks": 1,
        "decoder_blocks": 1,
        "quantizer": {"kind": kind, "codebook_size": size, "dim": 4, **quantizer},
        "decoder": decoder or {},
        "networks": {"kind": networks},
    }


def code_model(**settings):
    return {"depth": 1, "dim": 8, "heads": 2, **settings}


WINDOW = {"family": "window", "radius": 1, "slope": 1, "width": 8, "features": 3}

MODELS = {
    "classes, product decoders": {
        "stack": {"levels": [level(4, 4), level(2, 2, kind="cosine")]},
        "prior": code_model(),
        "refiners": [code_model(level=2, window=1)],
        "classes": 3,
    },
    "fsq below clusters, masked": {
        "stack": {"levels": [level(4, 4, kind="fsq", size=9), level(4, 4, kind="cluster", size=3)]},
        "prior": code_model(family="masked", groups=4, window=1),
        "refiners": [code_model(level=2, family="masked", groups=3)],
    },
    "lfq, colours, groups": {
        "stack": {"levels": [level(4, 4, kind="lfq", size=8), level(2, 2, kind="simvq")], "pixels": {"components": 2}},
        "prior": code_model(groups=2),
        "refiners": [code_model(level=1, wavefront=1, window=1, labels=False), code_model(level=2, codebook=True)],
        "classes": 2,
        "image_shape": (3, 8, 8),
        "values": 40,
    },
    "residual, window decoders": {
        "stack": {
            "levels": [
                level(4, 4, kind="residual", codes=2, decoder={**WINDOW, "tile": [4, 8], "slope": 2, "radius": 2}),
                level(2, 2, decoder=WINDOW),
            ]
        },
        "prior": code_model(),
        "values": 40,
    },
    "product, refined window": {
        "stack": {"levels": [level(4, 4, kind="product", codes=2, decoder=WINDOW), level(2, 2)]},
        "prior": code_model(wavefront=1, window=1),
        "refiners": [code_model(level=1, wavefront=1, window=1)],
        "values": 40,
    },
    "clusters drawn by a window": {
        "stack": {"levels": [level(4, 4), level(4, 4, kind="cluster", size=2, decoder=WINDOW)]},
        "prior": code_model(),
        "refiners": [code_model(level=2, wavefront=1, window=1)],
    },
    "one transformer": {
        "stack": {"levels": [level(4, 4), level(2, 2, decoder=WINDOW), level(2, 1)]},
        "prior": code_model(wavefront=1, window=1),
        "unified": True,
        "classes": 2,
    },
    "stages, renderer": {
        "stack": {"levels": [level(2, 2, networks="staged")]},
        "prior": code_model(),
        "renderer": {"width": 8, "blocks": 1, "least_width": 4},
        "condition": {"name": "told", "kind": "sequence", "shape": (2, 3)},
    },
    "series": {
        "stack": {"levels": [level(4, decoder={**WINDOW, "adaptive": True, "radius": 3, "slope": 0})]},
        "prior": code_model(),
        "condition": {"name": "told", "kind": "vector", "shape": (3,)},
        "image_shape": (1, 8),
        "values": 300,
    },
    "volume, padded": {
        "stack": {"levels": [level(2, 2, 2)], "pad_to": (4, 4, 4)},
        "prior": code_model(family="masked"),
        "image_shape": (1, 3, 4, 4),
        "values": 2,
    },
}


def model_of(name, **changes):
    """A model of random weights, none of them left at zero."""
    settings = {"image_shape": (1, 8, 8), "values": 17, **MODELS[name], **changes}
    torch.manual_seed(0)
    model = HierarchicalModel(ModelSettings.model_validate(settings))
    return randomised(model, 0.3).eval()


def plan_of(model):
    return Planner(model, example(model)).made()


def written(model, folder, kind="onnx", **options):
    """An export; while torch traces a model, sizes are no numbers, so what a function takes is not checked here."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        return export(model, folder, kind, **options)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def eager(model, folder):
    """The runner over the modules themselves, before anything is traced."""
    plan = plan_of(model)
    write_card(about(model, plan, "torch", 20), folder)
    modules = {f"{graph.name}.pt2": graph.module for graph in plan.graphs}

    def opened(path):
        def run(given):
            with torch.no_grad():
                found = modules[path.name](*map(torch.from_numpy, given))
            return [part.numpy() for part in ([found] if isinstance(found, torch.Tensor) else found)]

        return run

    return Exported(folder, opened)


def assert_runs_as(model, exported, num):
    """Encoding, decoding, drawing and scoring of ``num`` images, by numpy and by the model."""
    condition = given_floats(model, num)
    floats = {} if condition is None else {"condition": condition.numpy()}
    sample = model.sample(num, condition=condition, seed=5, sampling=SamplingSettings())
    found = exported.sample(num, seed=5, **floats)
    assert np.array_equal(found["pixels"], sample.pixels.numpy())
    for number, codes in sample.codes.items():
        assert np.array_equal(found[f"z_{number}"], codes.numpy())
    maps = model.encode(sample.pixels)
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(exported.encode(found["pixels"]), maps, strict=True))
    for number, codes in enumerate(maps, start=1):
        assert np.array_equal(exported.decode(codes.numpy(), number), model.decode(codes, number).numpy())
    if model.renderer is not None:
        rendered = exported.decode(maps[-1].numpy(), len(maps), "renderer")
        assert np.array_equal(rendered, model.decode(maps[-1], len(maps), decoder="renderer").numpy())
    labels = {} if sample.labels is None else {"label": sample.labels.numpy()}
    rows = exported.score(found["pixels"], [z.numpy() for z in maps], **labels, **floats)
    with torch.no_grad():
        expected = model.code_lengths(sample.pixels, maps, sample.labels, condition)
    assert rows.keys() == expected.keys()
    for row, nats in expected.items():
        np.testing.assert_allclose(rows[row], nats.numpy(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_what_numpy_walks_is_the_model(name, tmp_path):
    model = model_of(name)
    exported = eager(model, tmp_path)
    for num in (1, 3):
        assert_runs_as(model, exported, num)


def test_the_temperature_is_that_of_the_model(tmp_path):
    model = model_of("residual, window decoders")
    sample = model.sample(2, seed=1, sampling=SamplingSettings(temperature=(0.5,)))
    assert np.array_equal(eager(model, tmp_path).sample(2, seed=1, temperature=0.5)["pixels"], sample.pixels.numpy())


@pytest.mark.parametrize(
    "own",
    [
        {"temperature": (0.3, 0.5, 0.7)},
        {"mode": True, "mean": True},
        {"mode": (True, False, True), "temperature": (1, 0.4, 1)},
    ],
)
@pytest.mark.parametrize("name", ["classes, product decoders", "fsq below clusters, masked"])
def test_a_seed_draws_by_the_settings_of_the_model(name, own, tmp_path):
    model = model_of(name, sampling=own)
    exported, sample = eager(model, tmp_path), model.sample(5, seed=4)
    found = exported.sample(5, seed=4)
    assert np.array_equal(found["pixels"], sample.pixels.numpy())
    assert all(np.array_equal(found[f"z_{number}"], codes.numpy()) for number, codes in sample.codes.items())
    plain = model.sample(5, seed=4, sampling=SamplingSettings()).pixels.numpy()
    assert np.array_equal(exported.sample(5, seed=4, temperature=1.0)["pixels"], plain)
    assert not np.array_equal(found["pixels"], plain)


def wrong(does, *words):
    """One line that has the words."""
    with pytest.raises(ValueError, match=".+") as caught:
        does()
    assert type(caught.value) is run.Wrong and "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("own", [{"top_k": 2}, {"top_p": (1, 1, 0.9)}, {"confidence": True}])
def test_settings_that_are_not_there_are_named(own, tmp_path):
    exported = eager(model_of("fsq below clusters, masked", sampling=own), tmp_path)
    wrong(lambda: exported.sample(1), next(iter(own)), "give a temperature")
    assert exported.sample(1, temperature=0.5)["pixels"].shape == (1, 1, 8, 8)


def test_wrong_arrays_are_refused(tmp_path):
    exported = eager(model_of("classes, product decoders"), tmp_path)
    pixels, label = np.zeros((2, 1, 8, 8), np.uint8), np.array([0, 2])
    codes = exported.encode(pixels)
    for given, word in (
        (pixels + 17, "give values 0 … 16"),
        (pixels.astype(int) - 1, "give values 0 … 16"),
        (pixels / 1.0, "float64"),
        (pixels[0], "1 × 8 × 8: give b × 1 × 8 × 8"),
        (pixels[:0], "0 × 1 × 8 × 8"),
        (pixels[..., 1:], "8 × 7"),
    ):
        wrong(lambda given=given: exported.encode(given), "pixels", word)
        wrong(lambda given=given: exported.score(given, codes, label), "pixels")
    for level, given, word in (
        (1, codes[0].astype(int) - 9, "0 … 3"),
        (2, codes[1] + 4, "0 … 3"),
        (2, codes[0], "2 × 2"),
        (1, codes[0][0], "4 × 4"),
        (1, np.array(3), "one number"),
    ):
        wrong(lambda level=level, given=given: exported.decode(given, level), f"z_{level}", word)
    wrong(lambda: exported.decode(codes[0], 3), "level 3", "1 … 2")
    wrong(lambda: exported.decode(codes[0], 1, "picture"), "picture", "renderer")
    wrong(lambda: exported.score(pixels, codes), "label is missing", "0 … 2")
    wrong(lambda: exported.score(pixels, codes, np.array([0, 3])), "label", "0 … 2")
    wrong(lambda: exported.score(pixels, codes, np.array([0])), "label", "give 2")
    wrong(lambda: exported.score(pixels, codes[:1], label), "codes", "z_1, z_2")
    wrong(lambda: exported.score(pixels, [codes[0][:1], codes[1]], label), "z_1", "give 2 × 4 × 4")
    wrong(lambda: exported.score(pixels, codes, label, np.zeros((2, 3))), "condition", "leave it out")


def test_images_of_any_size_divide_into_codes(tmp_path):
    exported = eager(model_of("stages, renderer"), tmp_path)
    assert exported.encode(np.zeros((2, 1, 12, 20), np.uint8))[0].shape == (2, 3, 5)
    wrong(lambda: exported.encode(np.zeros((2, 1, 13, 20), np.uint8)), "13 × 20", "4 × 4")


def test_wrong_wishes_are_refused(tmp_path):
    exported = eager(model_of("series"), tmp_path)
    told = np.zeros((1, 3), np.float32)
    for num, seed, temperature, word in (
        (0, 0, None, "num: 0"),
        (-1, 0, None, "num: -1"),
        (1, -1, None, "seed: -1"),
        (1, 0, 0.0009, "0.001"),
        (1, 0, float("nan"), "temperature"),
    ):
        wrong(lambda n=num, s=seed, t=temperature: exported.sample(n, s, None, told, t), word)
    wrong(lambda: exported.sample(1), "condition is missing", "3 floats", "told")
    wrong(lambda: exported.sample(1, condition=told[0]), "condition", "give 1 × 3")
    wrong(lambda: exported.sample(1, condition=told * np.nan), "condition", "finite")
    wrong(lambda: exported.sample(1, label=np.array([0]), condition=told), "label", "leave it out")
    wrong(lambda: Exported(tmp_path / "none"), "export.json")
    wrong(lambda: Exported(tmp_path).encode(np.zeros((1, 1, 8), int)), "encode.pt2", "torch.export.load")


@pytest.fixture(params=["classes, product decoders"])
def told_to(request, tmp_path, monkeypatch):
    """The command line of the runner, over the modules of a model; its exit code."""
    exported = eager(model_of(request.param), tmp_path)
    monkeypatch.setattr(run, "Exported", lambda folder: exported)
    monkeypatch.chdir(tmp_path)

    def tell(*arguments):
        monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
        try:
            run.main()
        except SystemExit as end:
            return end.code
        return 0

    return exported, tell


def test_the_command_line_scores_what_it_draws(told_to):
    exported, tell = told_to
    assert tell("sample", "3", "x.npy", "--seed", "2", "--label", "1") == 0
    label = np.array([1, 1, 1])
    pixels = np.load("x.npy")
    assert np.array_equal(pixels, exported.sample(3, 2, label)["pixels"])
    np.save("label.npy", label)
    for given in ("1", "label.npy"):
        assert tell("score", "x.npy", "nats.npz", "--label", given) == 0
        found, rows = np.load("nats.npz"), exported.score(pixels, exported.encode(pixels), label)
        assert list(found) == list(rows) and all(np.array_equal(found[row], rows[row]) for row in rows)


def test_batches_change_nothing(told_to):
    exported, tell = told_to
    labels = np.array([2, 0, 1, 1, 2])
    np.save("label.npy", labels)
    label = ("--label", "label.npy")
    found = []
    for size in "2", "5", "9":
        more = ("--batch-size", size)
        assert tell("sample", "5", "drawn.npy", "--seed", "3", *more) == 0
        assert tell("sample", "5", "x.npy", "--seed", "3", *label, *more) == 0
        assert tell("encode", "x.npy", "codes.npz", *more) == 0
        assert tell("decode", "codes.npz", "means.npy", "--level", "1", *more) == 0
        assert tell("score", "x.npy", "nats.npz", *label, *more) == 0
        arrays = {name: np.load(f"{name}.npy") for name in ("drawn", "x", "means")} | dict(np.load("codes.npz"))
        found.append((arrays, dict(np.load("nats.npz"))))
    arrays, nats = found[0]
    for others, rows in found[1:]:
        assert all(np.array_equal(arrays[name], others[name]) for name in others)
        assert all(np.allclose(nats[row], rows[row], rtol=1e-5) for row in rows)
    assert len(arrays["x"]) == 5 and nats.keys() == set(exported.card["rows"])
    assert np.array_equal(exported.sample(2, 3, first=3)["pixels"], arrays["drawn"][3:])


@pytest.mark.parametrize("told_to", ["stages, renderer"], indirect=True)
def test_the_command_line_decodes_by_either_decoder(told_to):
    exported, tell = told_to
    codes = np.random.default_rng(0).integers(0, 4, (3, 2, 2))
    np.savez("codes.npz", z_1=codes)
    drawn = {}
    for decoder, more in (("likelihood", ()), ("renderer", ("--decoder", "renderer"))):
        assert tell("decode", "codes.npz", "x.npy", *more) == 0
        drawn[decoder] = np.load("x.npy")
        assert np.array_equal(drawn[decoder], exported.decode(codes, 1, decoder))
    assert not np.array_equal(*drawn.values())


@pytest.mark.parametrize(
    "arguments, words",
    [
        ("sample 0 y.npy", "num: 0"),
        ("sample -3 y.npy", "num: -3"),
        ("sample 1 y.npy --seed -1", "seed: -1"),
        ("sample 1 y.npy --temperature 0", "temperature: 0"),
        ("sample 1 y.npy --label 3", "0 … 2"),
        ("sample 1 y.npy --label three", "three is no class number"),
        ("sample 1 y", "y: give a .npy"),
        ("sample 1 none/y.npy", "in a folder that is there"),
        ("encode none.npy y.npz", "none.npy: No such file"),
        ("encode \x1b[2J.npy y.npz", r"run.py: \x1b[2J.npy: No such file"),
        ("encode z.npz y.npz", "z.npz is another kind of file: give a .npy"),
        ("encode text.npy y.npz", "text.npy: it cannot be read"),
        ("encode one.npy y.npz", "1 × 8 × 8"),
        ("decode x.npy y.npy", "x.npy is another kind of file: give a .npz"),
        ("decode z.npz y.npy", "z.npz holds other"),
        ("decode w.npz y.npy --level 1", "w.npz holds z_2"),
        ("decode w.npz y.npy --level 0", "w.npz holds z_2"),
        ("decode v.npz y.npy --decoder renderer", "this model has none"),
        ("sample 1 y.npy --batch-size 0", "--batch-size: 0"),
        ("sample 1 y.npy --label long.npy", "label: the shape is 2: give 1"),
        ("score x.npy y.npz", "label is missing"),
    ],
)
def test_the_command_line_says_what_is_wrong_in_a_line(told_to, arguments, words, capsys):
    _, tell = told_to
    pixels = np.zeros((1, 1, 8, 8), np.uint8)
    np.save("x.npy", pixels)
    np.save("one.npy", pixels[0])
    np.savez("z.npz", other=pixels)
    np.savez("w.npz", z_2=np.zeros((1, 2, 2), np.uint8))
    np.savez("v.npz", z_1=np.zeros((1, 4, 4), np.uint8))
    np.save("long.npy", np.zeros(2, int))
    Path("text.npy").write_text("no array", "utf-8")
    assert tell(*arguments.split()) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and said.startswith("run.py: ")
    assert not list(Path().glob("y*"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "torch"])
@pytest.mark.parametrize("name", MODELS)
def test_files_give_what_torch_gives(name, kind, tmp_path):
    model = model_of(name)
    card = written(model, tmp_path / "out", kind)
    assert not card["left_out"]
    assert all("check" in part for part in [*card["graphs"].values(), *card["walks"].values()])
    exported = Exported(tmp_path / "out", load(kind))
    for num in (1, 3, 7):
        assert_runs_as(model, exported, num)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """One level, its decoder a window, and a prior that knows classes: every part in a few files."""
    model = model_of(
        "classes, product decoders", stack={"levels": [level(2, 2, decoder=WINDOW)]}, refiners=[], values=4
    )
    folder = tmp_path_factory.mktemp("export") / "out"
    return model, folder, written(model, folder)


def test_a_file_takes_any_number_of_images(small):
    model, folder, _ = small
    exported = Exported(folder)
    for num in (1, 3, 7):
        assert_runs_as(model, exported, num)


WITHOUT = """
import sys

class Refusing:
    def find_spec(self, name, *others):
        if name.partition(".")[0] in ("torch", "vqstack", "x_transformers"):
            raise ImportError(name)

sys.meta_path.insert(0, Refusing())
sys.argv = [{path!r}, *{arguments!r}]
names = {{"__name__": "__main__", "__file__": {path!r}}}
exec(compile(open({path!r}, encoding="utf-8").read(), {path!r}, "exec"), names)
"""


def test_it_runs_where_there_is_no_torch(small):
    model, folder, _ = small
    for arguments in (
        ["sample", "5", "images.npy", "--seed", "3", "--label", "2"],
        ["encode", "images.npy", "codes.npz"],
        ["decode", "codes.npz", "means.npy"],
    ):
        code = WITHOUT.format(path=str(folder / "run.py"), arguments=arguments)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=False)
        assert done.returncode == 0, done.stderr
    sample = model.sample(5, torch.full((5,), 2), seed=3, sampling=SamplingSettings())
    assert np.array_equal(np.load("images.npy"), sample.pixels.numpy())
    codes = model.encode(sample.pixels)
    assert np.array_equal(np.load("codes.npz")["z_1"], codes[0].numpy())
    assert np.array_equal(np.load("means.npy"), model.decode(codes[0]).numpy())


def test_the_card_says_what_every_file_takes(small):
    _, folder, card = small
    page = (folder / "README.md").read_text("utf-8")
    for graph in card["graphs"].values():
        assert (folder / graph["file"]).stat().st_size == graph["bytes"]
        session = onnxruntime.InferenceSession(folder / graph["file"], providers=["CPUExecutionProvider"])
        asked = session.get_inputs()
        assert [port.name for port in asked] == [port["name"] for port in graph["inputs"]]
        for one, said in zip(asked, graph["inputs"], strict=True):
            assert [n if isinstance(n, int) else "any" for n in one.shape] == [
                n if isinstance(n, int) else "any" for n in said["shape"]
            ]
        assert f"## {graph['file']}" in page and graph["check"]["ties"] == 0
        assert onnx.load(folder / graph["file"]).opset_import[0].version == card["opset"]
    assert "opset 20" in page and "nats" in page


def test_the_page_opens_a_program(tmp_path, monkeypatch):
    model = model_of("series", stack={"levels": [level(4)]}, values=4)
    written(model, tmp_path / "out", "torch", parts=("encode",))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"encode.pt2", "export.json", "README.md"}
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text("utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path / "out")
    names = {"pixels": torch.randint(0, 4, (5, 1, 8), dtype=torch.uint8)}
    exec(code, names)
    assert torch.equal(names["outputs"][0], model.encode(names["pixels"])[0])


def commands_of(page):
    """Of ``run.py``, as the card for people shows them."""
    return [line.split()[2:] for line in page.splitlines() if line.startswith("python run.py ")]


def test_every_command_of_the_page_runs(small, tmp_path, monkeypatch):
    _, folder, card = small
    exported = Exported(folder)
    monkeypatch.setattr(run, "Exported", lambda folder: exported)
    monkeypatch.chdir(tmp_path)
    np.save("images.npy", np.zeros((2, 1, 8, 8), np.uint8))
    np.save("labels.npy", np.arange(16) % 3)  # of the images that `sample` writes
    shown = commands_of(readme(card))
    assert [words[0] for words in shown] == ["encode", "decode", "sample", "score"]
    for words in shown:
        monkeypatch.setattr(sys, "argv", ["run.py", *words])
        run.main()
    alone = card | {"graphs": {"encode": card["graphs"]["encode"]}, "walks": {}}
    assert [words[0] for words in commands_of(readme(alone))] == ["encode"]


@pytest.mark.slow
def test_maps_of_stages_may_have_any_size(tmp_path):
    model = model_of("stages, renderer")
    written(model, tmp_path / "out", parts=("encode", "decode", "render"))
    exported = Exported(tmp_path / "out")
    pixels = torch.randint(0, 17, (2, 1, 12, 20), dtype=torch.uint8)
    first = model.stack.level(1)
    with torch.no_grad():
        codes = first.code(pixels)
        numbers = first.up(first.quantizer.unchecked_lookup(codes))[1]
    assert codes.shape == (2, 3, 5)
    assert np.array_equal(exported.encode(pixels.numpy())[0], codes.numpy())
    assert np.array_equal(exported.decode(codes.numpy()), first.head(numbers).mean().numpy())
    assert exported.decode(codes.numpy(), decoder="renderer").shape == pixels.shape


def test_a_code_is_searched_among_all_vectors(tmp_path):
    """In torch many are searched in parts; a graph has one part, and it holds all of them."""
    model = model_of("series", stack={"levels": [level(4, size=4096)]}, values=4)
    written(model, tmp_path / "out", parts=("encode",))
    pixels = torch.randint(0, 4, (300, 1, 8), dtype=torch.uint8)  # 1,200 vectors, 512 a part
    assert np.array_equal(Exported(tmp_path / "out").encode(pixels.numpy())[0], model.encode(pixels)[0].numpy())


def test_weights_that_are_too_many_for_one_file_lie_beside_it(tmp_path, monkeypatch):
    """More than protobuf takes, two gigabytes; here already a few numbers."""
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 0)
    model = model_of("series", stack={"levels": [level(4, size=300)]}, values=4)
    out = tmp_path / "out"
    graph = written(model, out, parts=("encode",))["graphs"]["encode"]
    assert graph["weights"] == "encode.onnx.data" and "`encode.onnx.data`" in (out / "README.md").read_text("utf-8")
    assert graph["bytes"] == sum(path.stat().st_size for path in out.glob("*.onnx*"))
    pixels = torch.randint(0, 4, (5, 1, 8), dtype=torch.uint8)
    assert np.array_equal(Exported(out).encode(pixels.numpy())[0], model.encode(pixels)[0].numpy())


def test_a_tie_is_counted_and_anything_else_refused():
    numbers = torch.tensor([0.2, 0.499999, 0.500001, 3.0])
    assert ties_of("x", torch.round, numbers, torch.tensor([0.0, 0.0, 1.0, 3.0])) == 0
    assert ties_of("x", torch.round, numbers, torch.tensor([0.0, 1.0, 0.0, 3.0])) == 2
    refused(lambda: ties_of("x", torch.round, numbers, torch.tensor([1.0, 0.0, 1.0, 3.0])), "x: 1 ", "nothing was")


@pytest.mark.parametrize("name", ["encode", "decode", "score", "prior-step"])
def test_a_file_that_gives_something_else_is_refused(name, tmp_path):
    model = model_of("classes, product decoders")
    exported = eager(model, tmp_path)
    graph = next(graph for graph in plan_of(model).graphs if graph.name == name)
    assert check_graph(exported, graph)["difference"] < 1e-5
    run = exported.load(tmp_path / f"{name}.pt2")
    exported._loaded[name] = lambda given: [1 - x if x.dtype == np.int64 else x + x.dtype.type(1) for x in run(given)]
    refused(lambda: check_graph(exported, graph), name, "nothing was exported")


def test_draws_that_differ_are_refused(tmp_path):
    model = model_of("residual, window decoders")
    exported = eager(model, tmp_path)
    found = check_walks(exported, model)
    assert found.keys() == exported.card["walks"].keys() and all(part["ties"] == 0 for part in found.values())
    run = exported.load(tmp_path / "level-1-step.pt2")
    odd = np.float32(0.3) * (np.arange(1000) % 2)
    exported._loaded["level-1-step"] = lambda given: [x + odd[: x.shape[-1]] for x in run(given)]
    refused(lambda: check_walks(exported, model), "level-1", "nothing was exported")


def test_what_is_not_there_is_refused_by_name(tmp_path):
    window, product = model_of("product, refined window"), model_of("classes, product decoders")
    out = tmp_path / "out"
    refused(lambda: export(window, out, parts=("decode",)), "decode", "step by step")
    refused(lambda: export(product, out, parts=("render",)), "render", "no renderer")
    assert not out.exists()


def test_a_family_of_ones_own_is_named_as_left_out(tmp_path, unregistered):
    exec(next(program for program in PROGRAMS if "register_family(" in program), {})
    levels = [level(4, 4, decoder={"family": "chain"})]
    model = model_of("classes, product decoders", stack={"levels": levels}, refiners=[])
    assert "family chain" in plan_of(model).left_out["level-1"]
    refused(lambda: export(model, tmp_path / "out", parts=("walk",)), "level-1", "family chain")
    exported = eager(model, tmp_path)
    with pytest.raises(ValueError, match="level-1 was not exported: a decoder of family chain"):
        exported.sample(1, label=np.array([0]))


def test_blocks_that_attend_to_what_is_given_are_left_out_and_the_score_is_not(tmp_path):
    told = {"name": "told", "kind": "attention", "shape": (2, 3)}
    model = model_of("stages, renderer", condition=told)
    assert set(plan_of(model).left_out) == {"prior"}
    refused(lambda: export(model, tmp_path / "out", parts=("walk",)), "prior", "attend to what is given")
    exported, num = eager(model, tmp_path), 5
    values, floats = example(model), given_floats(model, 7)[:num].numpy()
    pixels = values["pixels"][:num]
    found = exported.score(pixels.numpy(), exported.encode(pixels.numpy()), condition=floats)
    wanted = model.code_lengths(pixels, model.encode(pixels), None, torch.from_numpy(floats))
    for row, nats in wanted.items():
        np.testing.assert_allclose(found[row], nats.detach(), rtol=1e-4, atol=1e-4)


def test_the_command_says_what_it_needs(monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    refused(lambda: command.main(["run", "--out", "out"]), "onnx, onnxscript, onnxruntime", "vqstack[export]")
