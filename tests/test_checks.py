"""What is no map of the model is refused in one sentence by every public method; nothing is cut off or broadcast."""

import re

import jaxtyping
import pytest
import torch
from test_model import tiny

from vqstack.conditions import NO_LABEL
from vqstack.errors import InputError
from vqstack.likelihood import Clamped, Guided, Known, LogisticMixture
from vqstack.quantizer import QuantizerSettings, build_quantizer


@pytest.fixture(autouse=True)
def as_a_user_calls():
    """Without the checks of annotations, which a user's program has not."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def model():
    return tiny(shape=(1, 4, 4), values=5, maps=((2, 2), (1, 2)), refiners=({"level": 1},))


PIXELS = {  # what is wrong -> what a user may give in place of [7, 1, 4, 4]
    "floats": lambda y: y / 255,
    "whole floats": lambda y: y.float(),
    "nan": lambda y: y.float() * torch.nan,
    "signed": lambda y: y.long(),
    "booleans": lambda y: y > 0,
    "a value too large": lambda y: y + 5,
    "one image without its axis": lambda y: y[0],
    "channels last": lambda y: y.permute(0, 2, 3, 1),
    "another size": lambda y: y[..., :2],
    "three channels": lambda y: y.expand(-1, 3, -1, -1),
    "an array": lambda y: y.numpy(),
    "a list": lambda y: y.tolist(),
    "none": lambda y: None,
    "another device": lambda y: y.to("meta"),
}
CODES = {  # in place of [7, 2, 2]
    "floats": lambda z: z.float(),
    "nan": lambda z: z * torch.nan,
    "int32": lambda z: z.int(),
    "bytes": lambda z: z.byte(),
    "a code too large": lambda z: z + 3,
    "a code below 0": lambda z: z - 3,
    "far away": lambda z: z + 2**40,
    "flat": lambda z: z.flatten(1),
    "transposed and cut": lambda z: z[:, :1],
    "an axis more": lambda z: z[:, None],
    "an array": lambda z: z.numpy(),
    "none": lambda z: None,
}
LABELS = {  # in place of [7]
    "one for all": lambda c: c[:1],
    "a number": lambda c: 1,
    "a scalar": lambda c: c[0],
    "one more": lambda c: torch.cat([c, c[:1]]),
    "a column": lambda c: c[:, None],
    "floats": lambda c: c.float(),
    "probabilities": lambda c: torch.rand(len(c), 2),
    "booleans": lambda c: c > 0,
    "int32": lambda c: c.int(),
    "too large": lambda c: c + 2,
    "below 0": lambda c: c - 2,
    "of a billion": lambda c: c + 10**9,
    "a list": lambda c: c.tolist(),
}
READS_PIXELS = {
    "encode": lambda m, y, z, c: m.encode(y),
    "ledger": lambda m, y, z, c: m.ledger(y, c),
    "code_lengths": lambda m, y, z, c: m.code_lengths(y, z, c),
    "decoders' rows": lambda m, y, z, c: m.code_lengths(y, z, c, refined=False),
    "joint_log_prob": lambda m, y, z, c: m.joint_log_prob(y, z, c),
    "random_order_nats": lambda m, y, z, c: m.random_order_nats(y, z, c),
    "stack.encode": lambda m, y, z, c: m.stack.encode(y),
    "level.encode": lambda m, y, z, c: m.stack.level(1).encode(y),
}
READS_CODES = {
    "code_lengths": lambda m, y, z, c: m.code_lengths(y, z, c),
    "joint_log_prob": lambda m, y, z, c: m.joint_log_prob(y, z, c),
    "random_order_nats": lambda m, y, z, c: m.random_order_nats(y, z, c),
    "decode": lambda m, y, z, c: m.decode(z[0], 1),
    "conditional": lambda m, y, z, c: m.conditional(1, z[0], c),
    "conditional of the decoder": lambda m, y, z, c: m.conditional(1, z[0], refined=False),
    "vary": lambda m, y, z, c: m.vary(z[0], 1, c),
    "stack.decode": lambda m, y, z, c: m.stack.decode(z[0], 1),
    "level.decode": lambda m, y, z, c: m.stack.level(1).decode(z[0]),
    "level.encode": lambda m, y, z, c: m.stack.level(2).encode(z[0]),
}
READS_LABELS = {
    "ledger": lambda m, y, z, c: m.ledger(y, c),
    "code_lengths": lambda m, y, z, c: m.code_lengths(y, z, c),
    "joint_log_prob": lambda m, y, z, c: m.joint_log_prob(y, z, c),
    "random_order_nats": lambda m, y, z, c: m.random_order_nats(y, z, c),
    "sample": lambda m, y, z, c: m.sample(7, c),
    "vary": lambda m, y, z, c: m.vary(z[0], 1, c),
    "conditional": lambda m, y, z, c: m.conditional(1, z[0], c),
}


def right(model):
    pixels = torch.arange(7 * 16).remainder(5).view(7, 1, 4, 4).to(torch.uint8)
    return pixels, model.encode(pixels), torch.arange(7) % 2


@pytest.mark.parametrize("method", {**READS_PIXELS, **READS_CODES, **READS_LABELS})
def test_what_fits_is_taken(model, method):
    for table in (READS_PIXELS, READS_CODES, READS_LABELS):
        if method in table:
            table[method](model, *right(model))


@pytest.mark.parametrize("method", READS_LABELS)
def test_labels_are_refused_where_no_classes_are_known(method):
    """Not dropped: who gives them expects something of them. ``told`` leaves out those of a data set."""
    model = tiny(shape=(1, 4, 4), values=5, maps=((2, 2), (1, 2)), classes=0)
    pixels, codes, labels = right(model)
    with pytest.raises(InputError, match="knows no classes"):
        READS_LABELS[method](model, pixels, codes, labels)
    READS_LABELS[method](model, pixels, codes, model.labels_read(labels))


@pytest.mark.parametrize("method", READS_PIXELS)
def test_pixels_that_are_none_are_refused(model, method):
    pixels, codes, labels = right(model)
    for wrong in PIXELS.values():
        with pytest.raises(InputError, match="^pixels"):
            READS_PIXELS[method](model, wrong(pixels), codes, labels)


@pytest.mark.parametrize("method", READS_CODES)
def test_codes_that_are_none_are_refused(model, method):
    pixels, codes, labels = right(model)
    for wrong in CODES.values():
        with pytest.raises(InputError, match="^codes of level 1"):
            READS_CODES[method](model, pixels, [wrong(codes[0]), codes[1]], labels)


@pytest.mark.parametrize("method", READS_LABELS)
def test_labels_that_are_none_are_refused(model, method):
    pixels, codes, labels = right(model)
    for wrong in LABELS.values():
        with pytest.raises(InputError, match="^labels"):
            READS_LABELS[method](model, pixels, codes, wrong(labels))


DISTRIBUTIONS = {
    "a table": lambda m, y, z: m.stack.level(1).decode(z[0]),
    "a mixture": lambda m, y, z: LogisticMixture(torch.randn(7, 3, 4, 4), 1, 5),
    "a refiner": lambda m, y, z: m.conditional(1, z[0], torch.arange(7) % 2),
    "guided": lambda m, y, z: Guided(*[m.stack.level(1).decode(z[0])] * 2, 2.0),
    "clamped": lambda m, y, z: Clamped(m.stack.level(1).decode(z[0]), Known(y, y > 0)),
}


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_a_distribution_scores_maps_of_its_own_alone(model, kind):
    pixels, codes, _ = right(model)
    distribution = DISTRIBUTIONS[kind](model, pixels, codes)
    assert distribution.log_prob(pixels).equal(distribution.unchecked_log_prob(pixels))
    for wrong in (*PIXELS.values(), lambda y: y[:1]):
        with pytest.raises(InputError, match="^values"):
            distribution.log_prob(wrong(pixels))


@pytest.mark.parametrize("noise", [None, torch.rand(7, 15), torch.ones(7, 16), torch.rand(7, 16) * torch.nan])
def test_noise_that_is_none_is_refused(model, noise):
    pixels, codes, _ = right(model)
    for make in DISTRIBUTIONS.values():
        with pytest.raises(InputError, match="^noise"):
            make(model, pixels, codes).sample(noise)


@pytest.mark.parametrize("family", ["autoregressive", "masked"])
def test_a_code_model_scores_maps_of_its_own_alone(family):
    model = tiny(shape=(1, 4, 4), values=5, maps=((2, 2),), family=family, labels=True)
    _, (codes,), labels = right(model)
    model.prior.log_prob(codes, {"label": labels})
    distribution = model.prior.distribution(7, {"label": labels}, model.device)
    for wrong in CODES.values():
        with pytest.raises(InputError, match="^values"):
            model.prior.log_prob(wrong(codes), {"label": labels})
        with pytest.raises(InputError, match="^values"):
            distribution.log_prob(wrong(codes))


@pytest.mark.parametrize("family", ["autoregressive", "masked"])
@pytest.mark.parametrize("training", [False, True])
def test_a_code_model_is_trained_on_maps_of_its_own_alone(family, training):
    """Whether the numbers lie in their range, no step waits to know."""
    model = tiny(shape=(1, 4, 4), values=5, maps=((2, 2),), family=family, labels=True)
    _, (codes,), labels = right(model)
    prior = model.prior.train(training)
    prior(codes, labels)
    for wrong in (codes.numpy(), codes.float(), codes.int(), codes[0], codes[:, :1], codes.to("meta")):
        with pytest.raises(InputError, match="^values"):
            prior(wrong, labels)
    for wrong in (labels.float(), labels[:1], labels[:, None], labels > 0):
        with pytest.raises(InputError, match="^labels"):
            prior(codes, wrong)


def test_a_masked_model_estimates_what_it_could_score_alone():
    model = tiny(shape=(1, 4, 4), values=5, maps=((2, 2),), family="masked", labels=True)
    _, (codes,), labels = right(model)
    model.prior.random_order_nats(codes, {"label": labels})
    for wrong in CODES.values():
        with pytest.raises(InputError, match="^values"):
            model.prior.random_order_nats(wrong(codes), {"label": labels})


def test_a_code_model_without_classes_takes_no_labels():
    model = tiny(shape=(1, 4, 4), values=5, maps=((2, 2),), classes=0)
    _, (codes,), labels = right(model)
    model.prior(codes)
    model.prior.log_prob(codes, {})
    for call in (model.prior.log_prob, lambda z, c: model.prior.distribution(7, c, model.device)):
        with pytest.raises(InputError, match="^labels: this model knows no classes"):
            call(codes, {"label": labels})


def test_a_code_model_reads_labels_of_its_own_alone(model):
    _, codes, labels = right(model)
    model.prior.log_prob(codes[1], {"label": torch.full_like(labels, NO_LABEL)})
    for call in (lambda c: model.prior.log_prob(codes[1], c), lambda c: model.prior.distribution(7, c, model.device)):
        for name, wrong in LABELS.items():
            if name != "below 0":  # -1 is a label that is not told
                with pytest.raises(InputError, match="^labels"):
                    call({"label": wrong(labels)})
        with pytest.raises(InputError, match="^labels: -2 lies outside -1 … 1"):
            call({"label": labels - 2})
        with pytest.raises(InputError, match="^conditioning: Tensor where a mapping"):
            call(labels)
        with pytest.raises(InputError, match="conditional on the class: give labels"):
            call({})


@pytest.mark.parametrize("kind", ["vq", "cosine", "fsq", "lfq", "simvq"])
def test_a_quantizer_reads_codes_and_vectors_of_its_own_alone(kind):
    quantizer = build_quantizer(QuantizerSettings(kind=kind, codebook_size=4, dim=3)).eval()
    vectors, codes = torch.randn(7, 3, 2, 2), torch.arange(28).view(7, 2, 2) % 4
    assert quantizer.encode(vectors).equal(quantizer.unchecked_encode(vectors))
    assert quantizer.lookup(codes).equal(quantizer.unchecked_lookup(codes))
    for wrong in (None, vectors.numpy(), vectors.long(), vectors[0, 0], vectors[:, :2], vectors * torch.nan):
        with pytest.raises(InputError, match="^vectors"):
            quantizer.encode(wrong)
    for wrong in (None, codes.numpy(), codes.float(), codes.int(), codes + 1, codes - 1, codes.to("meta")):
        with pytest.raises(InputError, match="^codes"):
            quantizer.lookup(wrong)
    for wrong in (codes + 1, codes - 1):  # -1 does not wrap around to the last code
        with pytest.raises(IndexError):
            quantizer.unchecked_lookup(wrong)
    for training in (False, True):
        quantizer.train(training)
        for wrong in (None, vectors.numpy(), vectors.long(), vectors[0, 0], vectors[:, :2], vectors.to("meta")):
            with pytest.raises(InputError, match="^vectors"):
                quantizer(wrong)
    for change in (quantizer.half, quantizer.bfloat16, lambda: quantizer.to(torch.float16)):
        with pytest.raises(InputError, match="^a quantizer stays in float32"):
            change()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, y, z, c: m.code_lengths(y, z[0], c), "codes: give a list of 2 maps"),
        (lambda m, y, z, c: m.code_lengths(y, z[:1], c), "codes: give a list of 2 maps"),
        (lambda m, y, z, c: m.code_lengths(y, [z[0], z[1][:1]], c), "codes of level 2 have shape (1, 1, 2)"),
        (lambda m, y, z, c: m.code_lengths(y[:1], z, c), "codes of level 1 have shape (7, 2, 2)"),
        (lambda m, y, z, c: m.decode(z[0], 0), "level: 0 is no whole number from 1 to 2"),
        (lambda m, y, z, c: m.decode(z[0], -1), "level: -1 is no"),
        (lambda m, y, z, c: m.decode(z[1], 1), "codes of level 1 have shape (7, 1, 2)"),
        (lambda m, y, z, c: m.stack.level(0), "level: 0 is no"),
        (lambda m, y, z, c: m.stack.encode(y, -1), "up_to: -1 is no"),
        (lambda m, y, z, c: m.conditional(0, z[0], c), "level: 0 is no"),
        (lambda m, y, z, c: m.conditional(1, z[0], c, guidance=float("nan")), "guidance: nan"),
        (lambda m, y, z, c: m.conditional(1, z[0], c, known=Known(y[:1], y[:1] > 0)), "known: level 0"),
        (lambda m, y, z, c: m.sample(7, c, known={0: Known(y / 2, y > 0)}), "known: level 0: values must be whole"),
        (lambda m, y, z, c: m.sample(7, c, known={0: Known(y, y)}), "known: level 0: values must be whole"),
        (lambda m, y, z, c: m.sample(-1), "num: -1 is no"),
        (lambda m, y, z, c: m.sample(2.0), "num: 2.0 is no"),
        (lambda m, y, z, c: m.sample(2, seed=-1), "seed: -1 is no"),
        (lambda m, y, z, c: m.sample(2, seed=0.5), "seed: 0.5 is no"),
        (lambda m, y, z, c: m.vary(z[0], 1, c, first=-1), "first: -1 is no"),
        (lambda m, y, z, c: m.count_labels(torch.tensor([0, 2])), "labels: 2 lies outside 0 … 1"),
        (lambda m, y, z, c: m.count_labels(torch.tensor([0.5])), "labels are float32"),
    ],
)
def test_other_arguments_that_do_not_fit_are_refused(model, call, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        call(model, *right(model))
