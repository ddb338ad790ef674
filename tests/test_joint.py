"""Shared blocks and joint training: whose gradients reach what, what is stored, what stays as it is."""

import copy

import pytest
import torch
from accelerate import Accelerator
from helpers import randomised
from pydantic import ValidationError
from safetensors.torch import load_file

from vqstack.config import RunConfig
from vqstack.joint import JointDecoders, JointLevels
from vqstack.model import HierarchicalModel
from vqstack.phases import Run
from vqstack.report import describe
from vqstack.stack import Stack, StackSettings

QUICK = {"steps": 4, "batch_size": 8, "warmup": 1, "evaluate_every": 2}


def levels(quantizer="fsq", **changes):
    """Three levels; the first two share two blocks a path, the third one of them; fsq keeps no state of its own."""
    common = {"width": 8, "quantizer": {"kind": quantizer, "codebook_size": 8, "dim": 4}, **changes}
    return [
        {"map": [4, 4], **common},
        {"map": [2, 2], **common},
        {"map": [1, 1], **common, "encoder_blocks": 1, "decoder_blocks": 1},
    ]


def build(sharing):
    settings = StackSettings.model_validate({"levels": levels(), "sharing": sharing})
    stack = Stack(settings, (1, 8, 8), 17)
    randomised(stack, 0.2)  # residual blocks start as the identity, and gradients of zero say nothing
    return stack


@pytest.fixture
def pixels():
    return torch.randint(0, 17, (5, 1, 8, 8), dtype=torch.uint8)


def gradients(stack):
    found = {name: p.grad for name, p in stack.named_parameters(remove_duplicate=False)}
    for parameter in stack.parameters():
        parameter.grad = None
    return found


def separate_gradients(stack, pixels):
    """One backward pass a level, on the codes of the frozen ones below: what greedy training computes."""
    found = []
    maps = [pixels, *stack.encode(pixels)]
    for level, below in zip(stack.levels, maps[:-1], strict=True):
        level(below).loss.backward()
        found.append(gradients(stack))
    return found


def test_shared_parameters_receive_the_sum_of_gradients(pixels):
    stack = build("trunk")
    separate = separate_gradients(stack, pixels)
    JointLevels(stack)(pixels).loss.backward()
    joint = gradients(stack)
    users = {}
    for name, gradient in joint.items():
        parts = [grads[name] for grads in separate if grads[name] is not None]
        torch.testing.assert_close(gradient, sum(parts), rtol=1e-4, atol=1e-6, msg=name)
        users.setdefault(".blocks." in name, set()).add(len(parts))
    assert users[False] == {1}  # its own level's gradient only
    assert users[True] == {2, 3}  # block 1 is in two levels, block 0 in all of them


def test_without_sharing_each_level_has_its_greedy_loss(pixels):
    stack = build("none")
    maps = [pixels, *stack.encode(pixels)]
    alone = [level(below) for level, below in zip(stack.levels, maps[:-1], strict=True)]
    together = JointLevels(stack)(pixels)
    torch.testing.assert_close(together.loss, sum(objective.loss for objective in alone))
    torch.testing.assert_close(together.metrics["nats"], sum(objective.metrics["nats"] for objective in alone))
    for number, objective in enumerate(alone, start=1):
        torch.testing.assert_close(together.metrics[f"nats-{number}"], objective.metrics["nats"])
        assert torch.equal(together.histograms[f"codes-{number}"], objective.histograms["codes"])
    separate = separate_gradients(stack, pixels)
    together.loss.backward()
    for name, gradient in gradients(stack).items():
        own = separate[int(name.split(".")[1])][name]
        torch.testing.assert_close(gradient, own, msg=name)


def test_a_shared_stack_starts_as_one_that_shares_nothing():
    """Offsets start at zero, so the shared network is the first level's blocks."""
    shared, alone = (Stack(StackSettings.model_validate({"levels": levels(), "sharing": s}), (1, 8, 8), 17)
                     for s in ("trunk", "none"))  # fmt: skip
    trunk, other = shared.level(2).encoder.trunk, alone.level(2).encoder.trunk
    for block, twin in zip(trunk.blocks, other.blocks, strict=True):
        twin.load_state_dict(block.state_dict())
    x = torch.randn(2, 8, 2, 2)
    assert torch.equal(trunk(x), other(x))
    with torch.no_grad():
        trunk.level[1] += 1
        trunk.blocks[1].body[-1].weight.normal_()
    assert not torch.equal(trunk(x), other(x))


def test_encoders_and_decoders_do_not_share_with_each_other():
    stack = build("trunk")
    ids = [
        {id(p) for level in stack.levels for p in getattr(level, path).parameters()} for path in ("encoder", "decoder")
    ]
    assert not ids[0] & ids[1]
    first, second, third = (level.encoder.trunk.blocks for level in stack.levels)
    assert first[0] is second[0] is third[0]
    assert first[1] is second[1]


@pytest.mark.parametrize(("width", "said"), [(8, "counted with each of them"), (16, "nothing is shared")])
def test_the_report_says_whether_anything_is_shared(width, said):
    first, _, _ = levels()
    config = RunConfig.model_validate({"levels": [first, {**first, "map": [2, 2], "width": width}], "sharing": "trunk"})
    assert said in describe(config, config.model_settings((1, 8, 8), 0))


def test_shared_parameters_are_stored_once(tmp_path, pixels):
    config = RunConfig.model_validate(
        {"levels": levels("vq"), "sharing": "trunk", "prior": {"depth": 1, "dim": 8, "heads": 2}}
    )
    model = HierarchicalModel(config.model_settings((1, 8, 8), 0)).eval()
    randomised(model, 0.2)
    model.save_pretrained(tmp_path / "model")
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert not [name for name in stored if name.startswith("stack.levels.1.encoder.trunk.blocks")]
    for name, parameter in model.stack.named_parameters():  # names each parameter once, as well
        assert torch.equal(stored[f"stack.{name}"], parameter), name
    again = HierarchicalModel.from_pretrained(tmp_path / "model")
    assert again.stack.level(2).encoder.trunk.blocks[0] is again.stack.level(1).encoder.trunk.blocks[0]
    for ours, theirs in zip(model.encode(pixels), again.encode(pixels), strict=True):
        assert torch.equal(ours, theirs)
    ours, theirs = (m.code_lengths(pixels, model.encode(pixels)) for m in (model, again))
    assert all(torch.equal(nats, theirs[name]) for name, nats in ours.items())


def test_other_dropout_cannot_be_shared():
    wrong = levels()
    wrong[1]["dropout"] = 0.5
    StackSettings.model_validate({"levels": wrong})
    with pytest.raises(ValidationError, match=r"levels\.1\.dropout is 0\.5, and 0\.0"):
        StackSettings.model_validate({"levels": wrong, "sharing": "trunk"})
    StackSettings.model_validate({"levels": [wrong[0], {**wrong[1], "width": 16}], "sharing": "trunk"})


def test_decoders_are_tuned_alone(pixels):
    stack = build("none").train()
    joint = JointDecoders(stack)
    joint.train()
    assert all(level.decoder.training and not level.encoder.training for level in stack.levels)
    maps = [pixels, *stack.encode(pixels)]
    expected = [-level.decode(z).log_prob(below).mean()
                for level, below, z in zip(stack.levels, maps[:-1], maps[1:], strict=True)]  # fmt: skip
    found = joint(pixels)
    torch.testing.assert_close(found.metrics["nats"], sum(expected).detach())
    found.loss.backward()
    reached = {name for name, gradient in gradients(stack).items() if gradient is not None}
    assert reached == {name for name, _ in stack.named_parameters() if ".decoder." in name}
    joint.eval()
    assert not any(module.training for module in joint.modules())


def config(**changes):
    values = {
        "data": {"source": "digits", "limit": 24},
        "levels": levels("vq"),
        "prior": {"depth": 1, "dim": 8, "heads": 2},
        "train_levels": [QUICK],
        "train_joint": QUICK,
        "train_decoders": QUICK,
        "train_prior": QUICK,
        "sample_grid": 2,
    }
    return RunConfig.model_validate({**values, **changes})


def test_a_joint_run(tmp_path, capsys):
    run = Run(config(joint=True, sharing="trunk"), tmp_path / "run", Accelerator(cpu=True))
    before = copy.deepcopy(run.model.stack.state_dict())
    run.train(run.phases["joint"])
    run.train(run.phases["decoders"])
    after = run.model.stack.state_dict()
    assert any(not torch.equal(value, after[name]) for name, value in before.items())
    encoders = torch.load(tmp_path / "run/phases/joint/best.pt", weights_only=True)
    for name, value in run.model.stack.encoder_state().items():  # the codes came to rest in the first phase
        assert torch.equal(value, encoders[f"stack.{name}"]), name
    assert all(parameter.requires_grad for parameter in run.model.stack.parameters())
    run.train(run.phases["prior"])
    run.release()
    run.close()
    assert {p.name for p in (tmp_path / "run/phases").iterdir()} == {"joint", "decoders", "prior"}
    again = Run(config(joint=True, sharing="trunk"), tmp_path / "run", Accelerator(cpu=True))
    again.train(again.phases["joint"])
    again.train(again.phases["decoders"])
    assert "decoders: done before" in capsys.readouterr().out
    for name, value in again.model.stack.state_dict().items():
        assert torch.equal(value, after[name]), name


def test_a_greedy_run_leaves_shared_blocks_as_the_levels_below_need_them(tmp_path):
    run = Run(config(sharing="trunk"), tmp_path / "run", Accelerator(cpu=True))
    run.train(run.phases["level-1"])
    below = copy.deepcopy(run.model.stack.level(1).state_dict())
    start = copy.deepcopy(run.model.stack.level(2).state_dict())
    run.train(run.phases["level-2"])
    for name, value in run.model.stack.level(1).state_dict().items():
        assert torch.equal(value, below[name]), name
    moved = {
        name for name, value in run.model.stack.level(2).state_dict().items() if not torch.equal(value, start[name])
    }
    assert {"encoder.enter.weight", "encoder.trunk.level", "decoder.trunk.level"} <= moved
    assert not [name for name in moved if ".blocks." in name]


def test_joint_training_takes_no_frozen_levels():
    with pytest.raises(ValidationError, match="leave one of them out"):
        config(joint=True, levels_from="somewhere")
