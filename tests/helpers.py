"""What several tests share: a refusal in one line, the files of a folder, finished phases, a program as a module."""

import importlib
import itertools
import json
import math
import re
from contextlib import closing, contextmanager
from functools import cache

import pytest
import torch
from accelerate import Accelerator

from vqstack.codec.blocks import BlockCodec
from vqstack.codec.coder import Decoder
from vqstack.config import RunConfig
from vqstack.errors import InputError
from vqstack.fit import Fit
from vqstack.model import HierarchicalModel
from vqstack.model_settings import ModelSettings
from vqstack.phases import Run

# Changes to the digits recipe that train in a second.
TINY = {
    "levels": {"width": 8, "encoder_blocks": 1, "decoder_blocks": 1, "decoder": {"width": 8, "blocks": 1}},
    "prior": {"depth": 1, "dim": 8, "heads": 2},
    "refiners": (),
    "train_levels": {"steps": 3, "batch_size": 16, "warmup": 1, "evaluate_every": 3},
    "train_prior": {"steps": 3, "batch_size": 16, "warmup": 1, "evaluate_every": 3},
}


def toy(data, *maps, steps=3, window=(), **changes):
    """Settings of a run that trains in a second: a level for each map, a window decoder above the pixels, a prior."""
    level = {"width": 8, "encoder_blocks": 1, "decoder_blocks": 0, "quantizer": {"codebook_size": 4, "dim": 4}}
    decoder = {"family": "window", "radius": 1, "slope": 1, "width": 8, "features": 4, **dict(window)}
    fit = {"steps": steps, "batch_size": 8, "evaluate_every": steps}
    settings = {
        "data": data,
        "pixels": {"components": 2},
        "levels": [{**level, "map": one} | ({} if number else {"decoder": decoder}) for number, one in enumerate(maps)],
        "train_levels": [fit],
        "prior": {"depth": 1, "dim": 8, "heads": 2},
        "train_prior": fit,
    }
    return RunConfig.model_validate(settings | changes)


def randomised(module, std):
    """All its parameters drawn anew: layers that start at zero say nothing, and pass no gradient."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=std)
    return module


def every_map(shape, size, dtype=torch.int64):
    """Every map of a shape: [size ** sites, *shape]."""
    return torch.tensor(list(itertools.product(range(size), repeat=math.prod(shape))), dtype=dtype).view(-1, *shape)


def every_world(*worlds):
    """What goes together in every combination, as one batch of each."""
    index = torch.cartesian_prod(*(torch.arange(len(world)) for world in worlds))
    return [world[i] for world, i in zip(worlds, index.unbind(1), strict=True)]


def assert_as_often(drawn, probs):
    """Numbers of what was drawn come as often as their probabilities say, within five standard errors."""
    found = torch.bincount(drawn, minlength=len(probs)) / len(drawn)
    assert ((found - probs).abs() <= 5 * (probs * (1 - probs) / len(drawn)).sqrt() + 1e-3).all()


@torch.inference_mode()
def assert_coded(model, pixels, labels, portable=False):
    """The codec gives back every value of a block, in the bits that the model says they take."""
    codec, codes, count = BlockCodec(model, portable), model.encode(pixels), len(pixels)
    encoder, _ = codec._coded(count, count, model.values(pixels, codes, labels))
    stream = b"".join(encoder.sections())
    found = [values for section in codec._walk(Decoder(stream), count, count, None) for values in section]
    for wanted, got in zip([labels, *codes[::-1], pixels], found, strict=True):
        assert got.equal(wanted)
    bits = -float(model.joint_log_prob(pixels, codes, labels).sum()) / math.log(2)
    assert 8 * len(stream) == pytest.approx(bits, rel=0.06 if portable else 0.02, abs=100)


def assert_near(one, other):
    """Two states have the same tensors, up to rounding; tables of clusters to the bit."""
    for name, tensor in one.items():
        exact = {"rtol": 0, "atol": 0} if name.endswith(".table") else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(other[name], tensor, **exact, msg=lambda m, n=name: f"{n}: {m}")


def equal(one, other):
    """Whether two states have the same tensors under the same names, to the bit."""
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def refused(call, *words):
    """The call is wrong input; the one line of it has these words."""
    with pytest.raises(InputError) as refusal:
        call()
    message = str(refusal.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def command_refused(code, out, err, message):
    """A command has ended as wrong input does: exit code 2, and one line with these words."""
    assert code == 2, (out, err)
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1
    assert message in err


def files_of(folder):
    """Every file below a folder with its content, every folder with none."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def trained(config, folder):
    """The model that a run of these settings leaves: all phases, then the release."""
    with closing(Run(config, folder, Accelerator(cpu=True))) as run:
        for phase in run.phases.values():
            run.train(phase)
        run.release()
    return HierarchicalModel.from_pretrained(folder / "model")


@contextmanager
def killed(phase, step):
    """Training inside ends before this step of this phase, as it would by a kill."""

    def kill(fit, take=Fit.training_step):
        if (fit.name, fit.step) == (phase, step):
            raise KeyboardInterrupt
        take(fit)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Fit, "training_step", kill)
        yield


def assert_same_run(one, other):
    """To the bit: the model, its ledger, and the metrics of every phase."""
    names = ["model/model.safetensors", "ledger.json", *(str(p.relative_to(one)) for p in one.glob("phases/*/*.jsonl"))]
    assert len(names) > 2
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def phases_done(run):
    """What a run says of every finished phase."""
    return {path.parent.name: json.loads(path.read_text().splitlines()[0]) for path in run.glob("phases/*/DONE")}


@cache
def program(path):
    """The module of the command that a script in recipes/ or tools/ runs."""
    (name,) = re.findall(r'run\("(\w+)"\)', path.read_text("utf-8"))
    return importlib.import_module(f"vqstack.commands.{name}")


def main(path, *arguments):
    """A recipe or a tool in this process."""
    program(path).main([str(argument) for argument in arguments])


def text_encoder(folder):
    """A transformer of one block with random weights, as transformers stores it; its folder."""
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "dark", "square"]
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    torch.manual_seed(0)
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.BertConfig(vocab_size=len(words), max_position_embeddings=16, **sizes)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def untrained(folder, shape, maps, geometry=None, quantizer=None, pad_to=None, **changes):
    """A released model with random weights: maps of six codes, without its run."""
    small = {"width": 8, "encoder_blocks": 1, "decoder_blocks": 1}
    size = {"codebook_size": 6, "dim": 4, **(quantizer or {})}
    settings = {
        "stack": {"levels": [{"map": one, "quantizer": size, **small} for one in maps], "pad_to": pad_to},
        "prior": {"depth": 1, "dim": 8, "heads": 2, **changes.pop("prior", {})},
        "image_shape": shape,
        "values": 16,
        "geometry": {"size": shape[1:], **(geometry or {})},
        **changes,
    }
    torch.manual_seed(0)
    model = HierarchicalModel(ModelSettings.model_validate(settings)).eval()
    model.save_pretrained(folder)
    return model
