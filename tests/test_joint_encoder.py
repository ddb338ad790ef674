"""Encoders trained with their masked refiner: whose gradient reaches what, what the run leaves, what is refused."""

import copy

import pytest
import torch
from accelerate import Accelerator
from helpers import equal, randomised
from pydantic import ValidationError

from vqstack.code_model import JointEncoder, Parent
from vqstack.config import RunConfig
from vqstack.errors import InputError
from vqstack.model import HierarchicalModel
from vqstack.phases import Run

QUICK = {"steps": 4, "batch_size": 8, "warmup": 1, "evaluate_every": 2}
MASKED = {"family": "masked", "groups": 4, "depth": 1, "dim": 8, "heads": 2, "dropout": 0.0}


def config(weight=0.5, kind="fsq", **changes):
    quantizer = {"kind": kind, "codebook_size": 8, "dim": 4}
    level = {"width": 8, "encoder_blocks": 1, "decoder_blocks": 1, "quantizer": quantizer}
    return RunConfig.model_validate(
        {
            "data": {"source": "digits", "limit": 16},
            "levels": [{"map": [4, 4], **level}, {"map": [2, 2], **level}],
            "train_levels": [QUICK],
            "refiners": [{"level": 1, **MASKED}, {"level": 2, **MASKED, "joint_encoder": weight}],
            "train_refiners": [QUICK],
            "prior": {"depth": 1, "dim": 8, "heads": 2},
            "train_prior": QUICK,
            "sample_grid": 2,
            **changes,
        }
    )


@pytest.fixture
def model():
    built = HierarchicalModel(config().model_settings((1, 8, 8), 10))
    return randomised(built, 0.3).train()


@pytest.fixture
def codes():
    return torch.randint(0, 8, (6, 4, 4))


def gradients(module):
    return {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}


def masked_nats(level, refiner, below):
    """The refiner's loss by hand: the vectors of the codes in front, the gradient of the encoder behind."""
    vectors = level.encoder(level.features(below))
    codes = level.quantizer.encode(vectors)
    straight = level.quantizer(vectors).vectors
    assert torch.allclose(straight, level.quantizer.lookup(codes))
    features, parameters = level.decoder(straight)
    parent = Parent(parameters, torch.cat([straight, features], 1), torch.zeros(len(below)))
    torch.manual_seed(3)  # of the masks
    return refiner(below, *parent[:3]).loss


def test_the_encoder_receives_both_gradients(model, codes):
    level, refiner = model.stack.level(2), model.refiner(2)
    alone, apart = copy.deepcopy(level), copy.deepcopy(level)
    alone(codes).loss.backward()
    masked_nats(apart, refiner, codes).backward()
    refiner.zero_grad()
    torch.manual_seed(3)
    JointEncoder(level, refiner, 0.7)(codes).loss.backward()
    both, one, other = gradients(level), gradients(alone), gradients(apart)
    for name, gradient in both.items():
        expected = one[name] + 0.7 * other[name]
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6, msg=name)
    assert all(other[name].abs().max() > 0 for name in other if name.startswith("encoder."))
    assert all(gradient.abs().max() > 0 for name, gradient in gradients(refiner).items() if name != "corruption")


def test_the_encoder_learns_from_the_context_too(model, codes):
    """Not only through the decoder's distribution, which the refiner corrects."""
    level, refiner = model.stack.level(2), model.refiner(2)
    quantized = level.quantize(codes)
    parameters, features = level.base_and_context(quantized.vectors, quantized.codes)
    refiner(codes, parameters.detach(), features, torch.zeros(len(codes))).loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in level.encoder.parameters())


def test_weight_zero_is_the_levels_own_objective(model, codes):
    level = model.stack.level(2)
    together, alone = JointEncoder(level, model.refiner(2), 0.0)(codes), level(codes)
    assert torch.equal(together.loss, alone.loss)
    assert torch.equal(together.metrics["nats"], alone.metrics["nats"])


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_the_refiner_starts_from_what_the_encoder_was_trained_with(tmp_path):
    run = Run(config(kind="vq"), tmp_path / "run", Accelerator())
    at_first = weights(run.model.refiner(2)), weights(run.model.refiner(1))
    levels = ("level-1", "level-2")
    for name in levels:
        run.train(run.phases[name])
    trained = weights(run.model.refiner(2))
    assert not equal(trained, at_first[0])
    assert equal(weights(run.model.refiner(1)), at_first[1])  # off by default
    run.close()
    again = Run(config(kind="vq"), tmp_path / "run", Accelerator())
    for name in levels:
        again.train(again.phases[name])  # done before: the outcome is read
    assert equal(weights(again.model.refiner(2)), trained)
    assert equal(weights(again.model.stack), weights(run.model.stack))
    again.train(again.phases["refiner-2"])
    assert not equal(weights(again.model.refiner(2)), trained)
    again.train(again.phases["refiner-1"])
    again.train(again.phases["prior"])
    again.release()
    again.close()
    with pytest.raises(InputError, match="levels_from .*: level 2 is taken frozen, but joint_encoder trains it"):
        Run(config(kind="vq", levels_from=tmp_path / "run"), tmp_path / "other", Accelerator())


@pytest.mark.parametrize(
    ("refiner", "changes", "message"),
    [
        ({"family": "autoregressive"}, {}, "set family to masked"),
        ({"labels": True}, {}, "labels and condition to false"),
        ({"joint_encoder": -1}, {}, "greater than or equal to 0"),
        ({}, {"joint": True}, "leave it or joint_encoder out"),
    ],
)
def test_what_is_refused(refiner, changes, message):
    with pytest.raises(ValidationError, match=message):
        config(refiners=[{"level": 2, **MASKED, "joint_encoder": 1, **refiner}], **changes)
