"""Images whose codes are changed: sites given all else, what follows above and below, lines that make them again."""

from itertools import product

import pytest
import torch
from helpers import refused

import vqstack
from vqstack import Edited
from vqstack.code_use import colours, neighbours
from vqstack.ledger import BITS
from vqstack.likelihood import Clamped, Distribution, Table
from vqstack.terms import Term


def model_of(family="product", prior="autoregressive", classes=3, renderer=None, **changes):
    """Two levels over 4x4 pixels of 4 values: maps of 2x2 codes out of 5 and of 1x2 out of 3, with random weights."""
    small = {"width": 8, "encoder_blocks": 1, "decoder_blocks": 1}
    decoder = {"family": family, "width": 8, "features": 4, "blocks": 1} if family == "window" else {}
    levels = [
        {"map": [2, 2], "quantizer": {"codebook_size": 5, "dim": 4, **changes}, "decoder": decoder, **small},
        {"map": [1, 2], "quantizer": {"codebook_size": 3, "dim": 4}, **small},
    ]
    part = {"depth": 1, "dim": 8, "heads": 2, "family": prior}
    settings = vqstack.ModelSettings.model_validate(
        {
            "stack": {"levels": levels},
            "prior": part,
            "refiners": [{**part, "level": 2}],
            "image_shape": [1, 4, 4],
            "values": 4,
            "classes": classes,
            "renderer": renderer,
        }
    )
    torch.manual_seed(0)
    model = vqstack.HierarchicalModel(settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # last layers start at zero: nothing would depend on anything
            parameter.add_(0.5 * torch.randn_like(parameter))
    return model


PIXELS = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4) % 4


def conditional(image, level, sites):
    """P(values at sites | the rest of the map, maps above): the row of every filling, normalised."""
    model, size = image.model, image.model.stack.variables[level].size
    row = "prior" if level == len(image.codes) else f"level-{level + 1}"
    found = []
    for values in product(range(size), repeat=len(sites)):
        codes = [z.clone() for z in image.codes]
        for site, value in zip(sites, values, strict=True):
            codes[level - 1][(0, *site)] = value
        found.append(model.code_lengths(image.pixels, codes, image.labels)[row])
    return (-torch.cat(found).double()).softmax(0)


@pytest.mark.parametrize("prior", ["autoregressive", "masked"])
@pytest.mark.parametrize("level", [1, 2])
def test_choices_of_a_site_are_the_conditional_of_the_joint_likelihood(prior, level):
    image = Edited.of(model_of(prior=prior), PIXELS, 1)
    site = (0, 1)
    wanted = conditional(image, level, [site])
    found = {choice.code: choice.probability for choice in image.choices(level, site, 99)}
    assert sum(found.values()) == pytest.approx(1)
    for code, probability in enumerate(wanted.tolist()):
        assert found[code] == pytest.approx(probability, abs=1e-5)


class Echo(Distribution):
    """Two sites of three values: the first is anything, the second most likely the same."""

    def __init__(self, num):
        self.batch, self.shape, self.size, self.dtype, self.device = num, (1, 2), 3, torch.int64, torch.device("cpu")
        self.then = (torch.full((3, 3), 0.05) + 0.85 * torch.eye(3)).log()

    def unchecked_log_prob(self, x):
        return self.then[x[:, 0, 0], x[:, 0, 1]] - torch.tensor(3.0).log()

    def factors(self, values):
        yield Table(torch.tensor([0]), torch.full((self.batch, 1, 3), 1 / 3).log())
        yield Table(torch.tensor([1]), self.then[values[:, :1]])


class EchoTerm(Term):
    def distribution(self, given, num, *, known=None, guidance=1.0):
        return Echo(num) if known is None else Clamped(Echo(num), known)


def test_many_proposals_draw_from_the_conditional_and_one_does_not(monkeypatch):
    """The first site given the second, at which a walk from the first to the second cannot look."""
    image = Edited.of(model_of(), PIXELS, 1).placed(2, {(0, 1): 2})
    monkeypatch.setattr(Edited, "_term", lambda self, level: EchoTerm("prior", self._variable(level)))
    for proposals, wanted in ((64, [0.05, 0.05, 0.9]), (1, [1 / 3] * 3)):
        drawn = [image.resampled(2, [(0, 0)], seed=seed, proposals=proposals).codes[1] for seed in range(60)]
        found = torch.bincount(torch.cat(drawn)[:, 0, 0], minlength=3) / 60
        torch.testing.assert_close(found, torch.tensor(wanted), atol=0.18, rtol=0)  # three deviations


@pytest.mark.parametrize("family", ["product", "window"])
@pytest.mark.parametrize("several", [{}, {"kind": "residual", "codes": 2}], ids=["one", "two codes"])
def test_a_change_leaves_all_that_lies_elsewhere(family, several):
    image = Edited.of(model_of(family, **several), PIXELS, 0)
    site = (0, 1, 0) if several else (1, 0)
    other = (int(image.codes[0][(0, *site)]) + 1) % 5
    changed = image.placed(1, {site: other}, draw=True)
    assert changed.codes[0][(0, *site)] == other
    kept = torch.ones(4, 4, dtype=torch.bool)
    kept[2:, :2] = False
    assert torch.equal(changed.pixels[0, 0][kept], image.pixels[0, 0][kept])
    assert torch.equal(changed.codes[1], image.model.stack.level(2).encode(changed.codes[0]))
    twice = changed.placed(1, {site: other}, draw=True)  # the same noise, whatever came between
    assert torch.equal(twice.pixels, changed.pixels)
    same = image.placed(
        1, {site: int(image.codes[0][(0, *site)])}, draw=True
    )  # what lies under it is drawn all the same
    assert (same.pixels != image.pixels).any() and torch.equal(same.codes[0], image.codes[0])
    everywhere = image.resampled(1, seed=3, near=False, draw=True)
    assert (everywhere.pixels != image.pixels)[0, 0][kept].any()


def test_below_the_top_maps_follow_and_pixels_alone_can_be_drawn():
    image = Edited.drawn(model_of(), seed=4, label=2)
    changed = image.placed(2, {(0, 0): (int(image.codes[1][0, 0, 0]) + 1) % 3})
    assert torch.equal(changed.codes[0][:, :, 1], image.codes[0][:, :, 1])  # under the other site
    assert torch.equal(changed.pixels[..., 2:], image.pixels[..., 2:])
    drawn = image.resampled(0, [(0, 3, 3)], seed=1)
    same = torch.ones(4, 4, dtype=torch.bool)
    same[3, 3] = False
    assert torch.equal(drawn.pixels[0, 0][same], image.pixels[0, 0][same])
    assert torch.equal(drawn.codes[0], image.model.encode(drawn.pixels)[0])


@pytest.mark.parametrize("near", [True, False])
def test_the_renderer_draws_what_follows_from_codes(near):
    """Codes are those of the likelihood; pixels are the renderer's wherever the change reaches."""
    model = model_of(renderer={"width": 8, "least_width": 4, "perceptual": "none"})
    likely, given = Edited.of(model, PIXELS, 0), Edited.of(model, PIXELS, 0).by("renderer")
    assert torch.equal(given.pixels, PIXELS)
    other = (int(given.codes[0][0, 1, 0]) + 1) % 5
    one, changed = (image.placed(1, {(1, 0): other}, near=near) for image in (likely, given))
    reached = torch.zeros(4, 4, dtype=torch.bool)
    reached[2:, :2] = True
    assert all(torch.equal(a, b) for a, b in zip(one.codes, changed.codes, strict=True))
    drawn = model.render(changed.codes[0])
    assert torch.equal(changed.pixels, torch.where(reached, drawn, PIXELS) if near else drawn)
    above = given.resampled(2, seed=3, near=False, draw=True)
    assert torch.equal(above.pixels, model.render(above.codes[0]))
    sample = Edited.drawn(model, 3, 2, 1, decoder="renderer")
    assert torch.equal(sample.pixels, model.render(sample.codes[0]))
    with torch.no_grad():
        rows = model.code_lengths(sample.pixels, list(sample.codes), sample.labels)
    assert sum(sample.bits.values()) == pytest.approx(sum(float(nats) for nats in rows.values()) * BITS)
    blended = sample.blended(given, [0.5, 0.5]).varied(2, seed=1).by("likelihood").varied(1, seed=2)
    names = {"model": model, "pixels": PIXELS}
    exec(blended.script(), names)
    assert names["image"].script() == blended.script() and torch.equal(names["image"].pixels, blended.pixels)
    refused(lambda: given.resampled(0, [(0, 0, 0)]), "level 0", "likelihood")
    refused(lambda: Edited.of(model_of(), PIXELS, 0).by("renderer"), "no renderer")


def test_its_lines_make_an_image_again():
    model = model_of()
    image = Edited.drawn(model, 3, 2, 1, sampling=vqstack.SamplingSettings(temperature=0.8))
    given = Edited.of(model, PIXELS)
    for start in (image, given):
        edited = start.resampled(1, [(0, 1), (1, 1)], seed=7, proposals=4)
        held = int(edited.codes[0][0, 0, 0])
        edited = edited.exchanged(1, held, (held + 1) % 5, draw=True)
        edited = edited.copied(2, given.codes[1], [(0, 1)], near=False).resampled(0, seed=2)
        for other in (image.resampled(2, seed=1), edited.blended(given, [0.5, 0.5])):  # a blend of a blend, of blends
            edited = edited.blended(other, [0.5, 0.0], seed=4)
        names = {"model": model, "pixels": PIXELS}
        exec(edited.script(), names)
        made = names["image"]
        assert made.script() == edited.script() and torch.equal(made.pixels, edited.pixels)
        assert all(torch.equal(one, other) for one, other in zip(made.codes, edited.codes, strict=True))


def test_a_given_image_gets_the_class_that_makes_it_shortest():
    model = model_of(classes=5)
    image = Edited.of(model, PIXELS)
    totals = [-model.joint_log_prob(PIXELS, list(image.codes), torch.tensor([label])) for label in range(5)]
    assert image.labels == torch.cat(totals).argmin()


def test_what_is_no_site_code_or_level_is_refused():
    image = Edited.of(model_of(), PIXELS, 0)
    refused(lambda: image.placed(1, {(2, 0): 1}), "(2, 0)", "2x2")
    refused(lambda: image.placed(1, {(0, 0): 5}), "code")
    refused(lambda: image.resampled(3), "level")
    refused(lambda: image.resampled(1, []), "sites")
    refused(lambda: image.choices(0, (0, 0, 0)), "level")
    refused(lambda: image.copied(1, image.codes[1]), "level 1")
    missing = next(code for code in range(5) if not (image.codes[0] == code).any())
    refused(lambda: image.exchanged(1, missing, 0), "does not occur")
    held = int(image.codes[0].max())
    refused(lambda: image.exchanged(1, held, held), "stays")
    refused(lambda: Edited.of(image.model, PIXELS.expand(2, -1, -1, -1)), "2 images")


@pytest.mark.parametrize("family", ["product", "window"])
def test_lengths_of_sites_add_up_to_those_of_the_image(family):
    model, pixels = model_of(family), torch.randint(0, 4, (3, 1, 4, 4), dtype=torch.uint8)
    codes, labels = model.encode(pixels), torch.tensor([0, 2, 1])
    rows, sites = model.code_lengths(pixels, codes, labels), model.code_lengths_by_site(pixels, codes, labels)
    assert list(rows) == list(sites) and sites["level-1"].shape == pixels.shape
    for name, nats in rows.items():
        torch.testing.assert_close(sites[name].reshape(3, -1).sum(1), nats, atol=1e-4, rtol=1e-5)


def test_a_blend_keeps_shares_of_both():
    model = model_of()
    first, second = (model.encode(torch.randint(0, 4, (1, 1, 4, 4), dtype=torch.uint8)) for _ in range(2))
    label = torch.tensor([1])
    assert torch.equal(vqstack.blend(model, first, second, [1.0, 0.0], label).codes[1], second[0])
    whole = vqstack.blend(model, first, second, [0.0, 1.0], label, seed=5)
    assert torch.equal(whole.codes[2], second[1])
    assert torch.equal(whole.pixels, model.vary(second[1], 2, label, seed=5).pixels)
    half = vqstack.blend(model, first, second, [0.5, 0.0], label)
    assert torch.equal(half.codes[2], first[1])
    refused(lambda: vqstack.blend(model, first, second, [0.5], label), "share")
    refused(lambda: vqstack.blend(model, first, second, [0.5, 2.0], label), "shares")


@pytest.mark.parametrize("several", [{}, {"kind": "residual", "codes": 2}], ids=["one", "two codes"])
@pytest.mark.parametrize("level", [1, 2])
def test_use_of_codes_is_what_a_count_by_hand_finds(several, level):
    model, pixels = model_of(**several), torch.randint(0, 4, (70, 1, 4, 4), dtype=torch.uint8)
    use, codes = vqstack.use_of_codes(model, pixels, level), model.encode(pixels)[level - 1]
    size, (rows, columns) = model.stack.level(level).quantizer.size, model.stack.level(level).map_shape
    height, width = 4 // rows, 4 // columns
    chain = codes if codes.ndim == 4 else codes[:, None]
    for row in range(len(use.counts)):
        d, code = divmod(row, size)
        places = (chain[:, d] == code).nonzero().tolist()
        assert use.counts[row] == len(places)
        patches = [
            pixels[i, :, y * height : (y + 1) * height, x * width : (x + 1) * width].float() for i, y, x in places
        ]
        if patches:
            torch.testing.assert_close(use.patches[row], torch.stack(patches).mean(0))
        for image, site in use.places(row, 3):
            assert chain[image, d].flatten()[site] == code


def test_neighbours_are_nearest_and_colours_differ():
    model = model_of()
    book = model.stack.level(1).quantizer.codebook()
    for row in range(5):
        distances = (book - book[row]).norm(dim=1)
        found = neighbours(model, 1, row, 4)
        assert row not in found and sorted(found, key=lambda k: distances[k].item()) == found
    assert len({tuple(colour) for colour in colours(model.stack.level(1).quantizer).tolist()}) == 5
    assert torch.equal(colours(model.stack.level(2).quantizer), colours(model.stack.level(2).quantizer))
