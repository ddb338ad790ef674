"""The training loop: order, resume to the bit, accumulation, averages, the best weights."""

import copy
import dataclasses
import itertools
import json
import math
import signal
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from vqstack.checkpoint import Checkpoints
from vqstack.disk import Lock
from vqstack.errors import DivergedError, InputError, Stopped, WriteError
from vqstack.fit import (
    Average,
    Fit,
    FitSettings,
    Order,
    Totals,
    evaluate,
    learning_rate,
    load_outcome,
    networks,
    optimizer_for,
    own_batches,
    write_outcome,
)
from vqstack.fit.journal import cause_of_collapse
from vqstack.level import LevelSettings, PixelLevel
from vqstack.likelihood import PixelHead, PixelSettings
from vqstack.quantizer import usage
from vqstack.shapes import Objective
from vqstack.variables import Variable


class Interrupted(BaseException):
    """What kills a run in these tests."""


class Images:
    """Structured binary images; in training every second image, another each epoch, is inverted."""

    def __init__(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.randint(0, 2, (count, 1, 2, 2), dtype=torch.uint8, generator=generator)
        self.pixels = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)

    def __len__(self):
        return len(self.pixels)

    def batch(self, indices, epochs):
        pixels = self.pixels[indices]
        if epochs is not None:
            pixels = pixels ^ ((indices + epochs) % 2).to(torch.uint8)[:, None, None, None]
        return (pixels,)


def level(kind="vq", dropout=0.3, seed=0, family="product"):
    torch.manual_seed(seed)
    quantizer = {"kind": kind, "codebook_size": 9 if kind == "fsq" else 8, "dim": 4, "revival": 0.9}
    settings = LevelSettings(map=(2, 2), width=8, quantizer=quantizer, dropout=dropout, decoder={"family": family})
    return PixelLevel(Variable.pixels((1, 4, 4), 2), settings, PixelHead(PixelSettings(), 1, 2), (4, 4))


def build(folder, module=None, on_evaluation=None, source=None, seed=0, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"steps": 12, "batch_size": 24, "warmup": 2, "evaluate_every": 4, "learning_rate": 3e-3, **changes}
    train, validation = source or (Images(50, 1), Images(20, 2))
    return Fit(
        "tiny",
        module if module is not None else level(),
        train,
        validation,
        FitSettings(**settings),
        Accelerator(cpu=True),
        folder,
        seed=seed,
        on_evaluation=on_evaluation,
    )


def equal(a, b):
    """Equal to the bit, through dictionaries and lists."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def checkpoint(folder):
    return Checkpoints(folder / "checkpoints", 1).intact()[-1].read()


def interrupt(first):
    """An evaluation that kills the run, from this step on."""

    def kill(module, step):
        if step >= first:
            raise Interrupted

    return kill


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_whose_folder_was_renamed_writes_nothing_into_the_one_at_its_path(tmp_path):
    folder, locks = tmp_path / "run" / "phases", []

    def rename(module, step):
        if step == 8:
            (tmp_path / "run").rename(tmp_path / "moved")
            folder.mkdir(parents=True)
            locks.append(Lock(tmp_path / "run"))

    fit = build(folder, on_evaluation=rename)
    locks.append(Lock(tmp_path / "run"))
    with pytest.raises(WriteError, match="no longer the folder"):
        fit.run()
    assert {path.name for path in (tmp_path / "run").rglob("*")} == {"phases", ".lock"}
    assert rows(tmp_path / "moved" / "phases")[-1]["step"] == 4


def test_a_phase_goes_on_with_the_threads_it_began_with(tmp_path, capsys):
    few = {"steps": 2, "evaluate_every": 1}
    torch.set_num_threads(2)
    with pytest.raises(Interrupted):
        build(tmp_path, on_evaluation=interrupt(2), **few).run()
    torch.set_num_threads(1)
    seen = []
    build(tmp_path, on_evaluation=lambda module, step: seen.append(torch.get_num_threads()), **few).run()
    assert seen == [2]
    assert "began with 2 threads" in capsys.readouterr().err
    assert checkpoint(tmp_path)["threads"] == 2


def test_so_does_one_that_was_stopped_before_its_first_checkpoint(tmp_path, capsys):
    def stop():
        raise Interrupted

    seen = []
    for number in (2, 1):
        torch.set_num_threads(number)
        fit = build(tmp_path, on_evaluation=lambda module, step: seen.append(torch.get_num_threads()), steps=1)
        if number == 2:
            fit.training_step = stop
            with pytest.raises(Interrupted):
                fit.run()
    fit.run()
    assert seen == [2]
    assert "began with 2 threads" in capsys.readouterr().err


def test_no_damage_to_what_a_phase_says_goes_unseen(tmp_path):
    module, done = nn.Linear(1, 1), tmp_path / "DONE"
    write_outcome(tmp_path, module.state_dict(), {"steps": 3})
    whole = done.read_bytes()
    assert load_outcome(tmp_path, module)["steps"] == 3
    for place in range(len(whole)):
        done.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(InputError, match="train this phase again"):
            load_outcome(tmp_path, module)
    done.write_bytes(whole.splitlines(keepends=True)[0])  # as the first versions wrote it
    assert load_outcome(tmp_path, module)["steps"] == 3


@pytest.mark.parametrize("part", ["module", "optimizer"])
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e12])
def test_numbers_that_no_training_leaves_are_refused_whatever_their_checksum(tmp_path, part, value):
    few = {"steps": 2, "evaluate_every": 1}
    build(tmp_path, **few)._save(1.0, "")
    state = checkpoint(tmp_path)
    if part == "optimizer":
        state["optimizer"] = {"state": {0: {"exp_avg": torch.tensor([0.0, value])}}}
    else:
        next(tensor for tensor in state["module"].values() if tensor.is_floating_point()).view(-1)[0] = value
    checkpoints = Checkpoints(tmp_path / "checkpoints", 1)
    checkpoints.remove()
    checkpoints.write(1, state)
    with pytest.raises(
        InputError, match=f"step-0000001 cannot be gone on with .*{part if part == 'optimizer' else ''}"
    ):
        build(tmp_path, **few).run()
    if part == "module":
        write_outcome(tmp_path, state["module"], {})
        with pytest.raises(InputError, match=r"best.pt cannot be used \(.* holds "):
            load_outcome(tmp_path, level())


def test_each_epoch_is_a_permutation():
    order = Order(10, 4, seed=3)
    seen = torch.cat([order.indices(step) for step in range(15)])
    epochs = seen.view(6, 10)
    for epoch in epochs:
        assert epoch.sort().values.tolist() == list(range(10))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 6
    # A function of the seed and the step: whatever was asked before, from whichever object.
    again = Order(10, 4, seed=3)
    for step in (14, 2, 7, 0):
        assert torch.equal(again.indices(step), seen[4 * step : 4 * step + 4])
    assert not torch.equal(torch.cat([Order(10, 4, seed=4).indices(s) for s in range(5)]), seen[:20])


def test_a_batch_larger_than_the_split():
    indices = Order(3, 8, seed=0).indices(1)
    assert len(indices) == 8
    assert set(indices.tolist()) == {0, 1, 2}


def test_learning_rate():
    settings = FitSettings(steps=110, warmup=10, learning_rate=2.0)
    rates = [learning_rate(settings, step) for step in range(110)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10] == max(rates) == 2.0
    assert rates[60] == pytest.approx(2.0 * (0.01 + 0.99 / 2))
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert learning_rate(settings, 110) == learning_rate(settings, 500) == pytest.approx(0.02)
    assert learning_rate(FitSettings(steps=5, warmup=0), 0) == 1e-3


def test_only_matrices_decay():
    module = nn.ModuleDict({"matrix": nn.Linear(3, 2), "table": nn.Embedding(4, 2), "model": nn.Module()})
    module["model"].position = nn.Parameter(torch.zeros(9, 2))
    decayed, others = optimizer_for(module, FitSettings(weight_decay=0.5), torch.device("cpu")).param_groups
    assert [p.shape for p in decayed["params"]] == [(2, 3)]
    assert decayed["weight_decay"] == 0.5
    assert sorted(tuple(p.shape) for p in others["params"]) == [(2,), (4, 2), (9, 2)]
    assert others["weight_decay"] == 0


def test_one_kernel_if_wanted():
    for fused in (True, False):
        optimizer = optimizer_for(nn.Linear(3, 2), FitSettings(fused=fused), torch.device("cpu"))
        assert bool(optimizer.defaults["fused"]) == fused


def test_a_stream_is_taken_in_its_own_order():
    order = Order(0, 4, seed=3)
    assert torch.cat([order.indices(step) for step in range(3)]).tolist() == list(range(12))
    assert order.epochs(2).tolist() == [0] * 4
    assert torch.cat([Order(10, 4, seed=3).epochs(step) for step in range(5)]).tolist() == [0] * 10 + [1] * 10


def test_average_by_hand():
    module = nn.BatchNorm1d(3)
    average = Average(module, 0.4)
    expected = module.weight.detach().clone()
    for n in range(1, 8):
        with torch.no_grad():
            module.weight.normal_()
            module.running_mean.normal_()
        average.update()
        decay = min(0.4, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * module.weight.detach()
        current = average.current()
        torch.testing.assert_close(current.weight, expected)
        assert torch.equal(current.running_mean, module.running_mean)  # buffers are copied
    assert not current.training
    assert not current.weight.requires_grad


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("kind", "family"), [("vq", "product"), ("vq", "window"), ("lfq", "product")])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, kind, family, accumulate):
    whole = build(tmp_path / "whole", level(kind, family=family), accumulate=accumulate)
    best = whole.run()

    killed = build(tmp_path / "parts", level(kind, family=family), on_evaluation=interrupt(8), accumulate=accumulate)
    with pytest.raises(Interrupted):
        killed.run()
    assert checkpoint(tmp_path / "parts")["step"] == 4
    torch.manual_seed(99)  # nothing may hang on the state of the process that goes on
    resumed = build(tmp_path / "parts", level(kind, seed=5, family=family), accumulate=accumulate)
    assert resumed.run() == best
    assert equal(checkpoint(tmp_path / "parts"), checkpoint(tmp_path / "whole"))
    assert equal(resumed.module.state_dict(), whole.module.state_dict())
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


def test_a_run_goes_on_with_the_options_of_the_optimiser_that_it_is_given(tmp_path):
    """The state of a checkpoint has those it was written with, too."""

    for name in ("same", "other"):
        with pytest.raises(Interrupted):
            build(tmp_path / name, on_evaluation=interrupt(8), weight_decay=0.01).run()
    before = checkpoint(tmp_path / "other")
    for name, changes in {"same": {"weight_decay": 0.01}, "other": {"weight_decay": 0.5, "fused": False}}.items():
        build(tmp_path / name, **changes).run()
    same, other = checkpoint(tmp_path / "same"), checkpoint(tmp_path / "other")
    assert before["step"] == 4
    assert [group["weight_decay"] for group in before["optimizer"]["param_groups"]] == [0.01, 0.0]
    assert [group["weight_decay"] for group in other["optimizer"]["param_groups"]] == [0.5, 0.0]
    assert [group["fused"] for group in before["optimizer"]["param_groups"]] == [True, True]
    assert [group["fused"] for group in other["optimizer"]["param_groups"]] == [None, None]
    matrices = [name for name, value in same["module"].items() if value.ndim > 1 and name.endswith("weight")]
    norms = [sum(float(state["module"][name].norm()) for name in matrices) for state in (other, same)]
    assert norms[0] < norms[1]
    assert all(step["step"] == 12 for step in other["optimizer"]["state"].values())


def test_an_average_begins_where_a_run_without_one_goes_on(tmp_path):
    with pytest.raises(Interrupted):
        build(tmp_path, on_evaluation=interrupt(8), ema=0).run()
    fit = build(tmp_path, level(seed=5), ema=0.9)
    fit._resume()
    assert fit.average.updates == 0
    assert equal(fit.average.module.state_dict(), checkpoint(tmp_path)["module"])
    fit.run()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_stopped_by_a_signal_between_evaluations(tmp_path, number):
    whole = build(tmp_path / "whole", evaluate_every=6)
    best = whole.run()
    stopped = build(tmp_path / "parts", evaluate_every=6)
    step = stopped.training_step

    def signalled():
        step()
        if stopped.step == 8:
            signal.raise_signal(number)

    stopped.training_step = signalled
    with pytest.raises(Stopped, match="after step 8 of tiny"):
        stopped.run()
    assert checkpoint(tmp_path / "parts")["step"] == 8
    resumed = build(tmp_path / "parts", level(seed=5), evaluate_every=6)
    assert resumed.run() == best
    assert equal(checkpoint(tmp_path / "parts"), checkpoint(tmp_path / "whole"))
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")  # totals between evaluations go on, too


@pytest.mark.parametrize("options", [{"checkpoint_every": 5}, {"checkpoint_minutes": 1e-9}])
def test_checkpoints_between_evaluations(tmp_path, options):
    fit = build(tmp_path, steps=12, evaluate_every=12, keep=50, **options)
    fit.run()
    steps = [c.step for c in fit.checkpoints.intact()]
    assert steps == ([5, 10, 12] if "checkpoint_every" in options else list(range(1, 13)))


def spoiled(fit, *steps):
    """Let the loss be infinite in some steps (numbers count from 1)."""
    forward = fit.module.forward

    def maybe(*batch):
        objective = forward(*batch)
        bad = fit.module.training and fit.step + 1 in steps
        return dataclasses.replace(objective, loss=objective.loss * math.inf) if bad else objective

    fit.module.forward = maybe
    return fit


def test_a_step_that_is_not_finite_leaves_no_trace(tmp_path, capsys):
    fit = spoiled(build(tmp_path, steps=6, evaluate_every=6), 3)
    fit._resume()
    for step in range(1, 5):
        before = copy.deepcopy([fit.module.state_dict(), fit.optimizer.state_dict()["state"]])
        fit.training_step()
        after = [fit.module.state_dict(), fit.optimizer.state_dict()["state"]]
        assert equal(before, after) == (step == 3)
    err = capsys.readouterr().err
    assert "the loss (inf) of step 3 is not finite" in err
    assert err.count("\n") == 1
    (row,) = map(json.loads, (tmp_path / "bad-steps.jsonl").read_text().splitlines())
    assert row["step"] == 3
    assert row["images"] == fit.order.indices(2).tolist()
    assert len(row["before"]) == 2


def test_a_gradient_that_is_not_finite_is_left_out(tmp_path, capsys):
    fit = build(tmp_path, steps=4, evaluate_every=4)
    weight = next(p for p in fit.module.parameters() if p.ndim > 1)
    weight.register_hook(lambda gradient: gradient * (math.nan if fit.step == 1 else 1))
    fit.run()
    assert "the gradient of step 2 is not finite" in capsys.readouterr().err
    assert rows(tmp_path)[-1]["train/bad_steps"] == 1
    assert all(torch.isfinite(p).all() for p in fit.module.parameters())


def test_too_many_bad_steps_end_the_run_with_the_last_good_checkpoint(tmp_path):
    fit = spoiled(build(tmp_path, max_bad_steps=3), 2, 3, 5, 6, 7, 8)
    with pytest.raises(DivergedError, match="3 steps in a row, up to step 7"):
        fit.run()
    assert checkpoint(tmp_path)["step"] == 4
    resumed = build(tmp_path, max_bad_steps=3)
    resumed.run()
    assert resumed.step == 12


def test_no_checkpoint_is_written_amid_bad_steps(tmp_path):
    fit = spoiled(build(tmp_path, max_bad_steps=4, checkpoint_every=1, checkpoint_minutes=1e-9), 3, 6, 7, 8, 9)
    with pytest.raises(DivergedError, match="up to step 9"):
        fit.run()
    assert checkpoint(tmp_path)["step"] == 5
    assert checkpoint(tmp_path)["guard"]["in_a_row"] == 0


def test_a_hundred_bad_steps_are_printed(tmp_path, capsys):
    fit = build(tmp_path, max_bad_steps=1000)
    for step in range(150):
        fit.guard.refuse(step, math.inf, torch.arange(3))
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 101 and err[-1] == "warning: tiny: 100 bad steps; further ones are only counted"
    assert len((tmp_path / "bad-steps.jsonl").read_text().splitlines()) == 100
    assert fit.guard.count == 150


def test_a_hundred_failures_are_told_apart(tmp_path, capsys):
    fit = build(tmp_path)
    for number in range(150):
        fit.journal.failed(0, "a tracker", ValueError(f"{number} {'x' * 9999}"))
    assert len(fit.journal.failures) == capsys.readouterr().err.count("\n") == 101
    assert sum(fit.journal.failures.values()) == 150
    assert max(map(len, fit.journal.failures)) < 600


@pytest.mark.parametrize("name", ["wandb", "tensorboard", "trackio"])
def test_no_phase_is_lost_in_a_tracker_that_knows_no_way_back(tmp_path, name):
    """W&B ignores a step below the last one, and every phase counts from 0."""
    axes = list[tuple[int | None, float | None]]()

    def log(values, step=None):
        axes.append((step, values.get("tiny/step")))

    fit = build(tmp_path)
    fit.accelerator.trackers = [SimpleNamespace(name=name, log=log)]
    fit.journal.write(4, {"train/nats": 1.0}, 0)
    assert axes == [(None, 4) if name == "wandb" else (4, None)] and not fit.journal.failures


@pytest.mark.parametrize("steps", [[8], [4, 8, 12]])
def test_validation_nats_that_are_not_finite(tmp_path, capsys, steps):
    fit = build(tmp_path, ema=0.0)
    forward = fit.module.forward

    def maybe(*batch):
        objective = forward(*batch)
        bad = not fit.module.training and fit.step in steps
        return dataclasses.replace(objective, metrics={"nats": torch.tensor(math.inf)}) if bad else objective

    fit.module.forward = maybe
    if len(steps) < 3:
        assert math.isfinite(fit.run())
    else:
        with pytest.raises(DivergedError, match="no evaluation gave finite nats.* nats inf.* remove"):
            fit.run()
    assert fit.step == 12
    assert capsys.readouterr().err.count("evaluation failed (EvaluationError: validation nats inf)") == 1
    assert ["validation/nats" in row for row in rows(tmp_path)] == [step not in steps for step in (4, 8, 12)]


@pytest.mark.parametrize(("used", "warned"), [(1, True), (2, False)])
def test_one_code_in_use_is_a_collapse_however_small_the_book(tmp_path, capsys, used, warned):
    for size in (2, 16):
        fit, counts = build(tmp_path / str(size)), torch.zeros(size, dtype=torch.int64)
        counts[:used] = 9
        fit.journal.watch(fit.step, {"codes": counts}, {}, fit.settings.collapse)
        assert ("have collapsed" in capsys.readouterr().err) == warned


def test_a_collapse_is_warned_about_once_until_the_book_has_recovered(tmp_path, capsys):
    def evaluated(fit, used):
        counts = torch.zeros(16, dtype=torch.int64)
        counts[:used] = 9
        fit.journal.watch(
            fit.step, {"codes": counts, "others": torch.ones(16, dtype=torch.int64)}, {}, fit.settings.collapse
        )
        return capsys.readouterr().err.count("the codes have collapsed")

    fit = build(tmp_path)
    assert [evaluated(fit, used) for used in (1, 1, 9, 9, 1, 1)] == [1, 0, 0, 0, 1, 0]
    fit._save(None, "")
    resumed = build(tmp_path)
    resumed._resume()
    assert [evaluated(resumed, used) for used in (1, 9, 1)] == [0, 0, 1]


@pytest.mark.parametrize(("vectors", "warned"), [(1599, 0), (1600, 1)])
def test_a_collapse_within_an_epoch_is_seen_as_soon_as_its_steps_tell(tmp_path, capsys, vectors, warned):
    fit, fine = build(tmp_path), torch.full((16,), 100)
    fit.usage.histograms = {"codes": torch.tensor([vectors, *[0] * 15])}
    for epoch in ({}, {"codes": fine}):  # in the first epoch, and in a later one
        fit.epoch.histograms, fit.journal.collapsed = epoch, []
        fit.evaluation_step()
        assert capsys.readouterr().err.count("the codes have collapsed: perplexity 1.0 of 16") == warned
    fit.epoch.histograms, fit.usage.histograms = fit.usage.histograms, {"codes": fine}
    fit.journal.collapsed = ["codes"]
    fit.evaluation_step()
    assert not fit.journal.collapsed  # and so is its recovery


class Overflowing:
    """A scaler of half precision whose scale is too large."""

    def get_scale(self):
        return self.scale

    def __init__(self, scale):
        self.scale = scale


@pytest.mark.parametrize(("scale", "bad"), [(1024.0, 0), (0.5, 1)])
def test_overflows_of_half_precision_do_not_count(tmp_path, scale, bad):
    fit = build(tmp_path)
    fit.accelerator.scaler = Overflowing(scale)
    fit.guard.begin()
    fit.guard.refuse(1, 2.0, torch.arange(3))
    assert fit.guard.count == bad


def test_a_collapsed_codebook_is_warned_about(tmp_path, capsys):
    build(tmp_path / "fine", collapse=0.0).run()
    assert capsys.readouterr().err == ""
    build(tmp_path / "warned", collapse=0.99).run()
    err = capsys.readouterr().err
    assert "tiny: the codes have collapsed: perplexity" in err
    assert "of 8 over an epoch, below 7.93; " in err


@pytest.mark.parametrize(
    ("history", "vectors", "words"),
    [
        (
            [(100, 2.0), (200, 40.0), (300, 35.0), (400, 3.0), (500, 2.0)],
            1e3,
            ["35.0 at step 300", "by step 400", "learning_rate"],
        ),
        ([(100, 40.0)], 7.0, ["40.0 at step 100", "by step 600"]),  # there were enough vectors for it to be in use
        ([(100, 2.0), (200, 1.0)], 1e3, ["died at the start", "revival"]),
        ([], 50.0, ["50 vectors for each code", "codebook_size to 32"]),  # 64 codes of 50 vectors are 32 of 100
    ],
)
def test_the_cause_of_a_collapse(history, vectors, words):
    cause = cause_of_collapse(history, 600, 10.0, 64, vectors)
    assert all(word in cause for word in words), cause
    of_level = cause_of_collapse(history, 600, 10.0, 64, vectors, level=2)
    assert "levels.1.quantizer" in of_level or "train_levels.1." in of_level


def test_a_collapse_is_told_where_training_is_shorter_than_an_epoch(tmp_path, capsys):
    """Nor is the level below forgotten: where it has one code, the level above has nothing to encode."""
    fit = build(tmp_path)
    fit.name = fit.journal.name = "level-2"
    fit.step = fit.settings.steps
    fit.usage.histograms = {"codes": torch.tensor([9, *[0] * 15])}
    fit.evaluation_step()
    err = capsys.readouterr().err
    assert "level-2: the codes have collapsed" in err and "over all steps" in err and "level below" in err


def test_the_end_says_when_the_best_weights_were_and_what_the_last_ones_score(tmp_path):
    fit, scores = build(tmp_path), iter([3.0, 1.0, 2.0])
    fit._score = lambda values: (next(scores), "module")
    fit.settings = fit.settings.model_copy(update={"steps": 3, "evaluate_every": 1})
    assert fit.run() == 1.0 and (fit.best_step, fit.last) == (2, 2.0)


def test_the_cause_is_found_in_the_rows_of_the_phase(tmp_path, capsys):
    fit = build(tmp_path)
    for step, perplexity in ((4, 7.0), (8, 6.0)):
        fit.journal.write(step, {"train/codes_perplexity": perplexity}, 0)
    fit.journal.watch(12, {"codes": torch.tensor([900] + [0] * 15)}, {}, 0.1)
    assert "it had 6.0 at step 8 and fell by step 12: lower learning_rate" in capsys.readouterr().err


def test_an_evaluation_that_fails_does_not_end_training(tmp_path, capsys):
    def fails(module, step):
        raise ValueError("no picture")

    fit = build(tmp_path, on_evaluation=fails)
    fit.validation.batch = lambda indices, epochs: 1 / 0 if fit.step == 8 else (fit.validation.pixels[indices],)
    fit.run()
    err = capsys.readouterr().err
    assert err.count("no picture") == 1
    assert "step 8: evaluation failed (EvaluationError: ZeroDivisionError: division by zero)" in err
    assert err.count("\n") == 2
    assert [row["train/failures"] for row in rows(tmp_path)] == [1, 2, 3]
    assert ["validation/nats" in row for row in rows(tmp_path)] == [True, False, True]


def test_damaged_rows_of_metrics_are_dropped(tmp_path):
    build(tmp_path).run()
    good = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_bytes(good.encode() + b'{"step": 4, "tr\xff\n{"step": 12')
    build(tmp_path)._resume()
    assert (tmp_path / "metrics.jsonl").read_text() == good


def test_killed_before_the_first_checkpoint(tmp_path):
    whole = build(tmp_path / "whole")
    whole.run()

    with pytest.raises(Interrupted):
        build(tmp_path / "parts", on_evaluation=interrupt(0)).run()
    resumed = build(tmp_path / "parts")
    resumed.run()
    assert equal(resumed.module.state_dict(), whole.module.state_dict())
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


def test_the_seed_matters(tmp_path):
    one, two = build(tmp_path / "one"), build(tmp_path / "two", seed=1)
    one.run()
    two.run()
    assert not equal(one.module.state_dict(), two.module.state_dict())


def test_accumulation_changes_nothing(tmp_path):
    folders = tmp_path / "one", tmp_path / "two"
    source = Images(48, 1), Images(20, 2)
    for folder, accumulate in zip(folders, (1, 2), strict=True):
        module = level("fsq", dropout=0)
        source[0].batch = lambda indices, epochs: (source[0].pixels[indices],)
        build(folder, module, source=source, steps=3, accumulate=accumulate, evaluate_every=3).run()
    one, two = map(checkpoint, folders)
    start = level("fsq", dropout=0).state_dict()
    for name, value in one["module"].items():
        torch.testing.assert_close(value, two["module"][name], atol=2e-4, rtol=1e-3, msg=name)
    moved = sum((one["module"][k].float() - start[k].float()).abs().sum() for k in start)
    apart = sum((one["module"][k].float() - two["module"][k].float()).abs().sum() for k in start)
    assert apart < 1e-3 * moved
    for key, state in one["optimizer"]["state"].items():
        torch.testing.assert_close(state["exp_avg"], two["optimizer"]["state"][key]["exp_avg"], atol=1e-5, rtol=1e-3)
        assert state["step"] == two["optimizer"]["state"][key]["step"] == 3


class Walker(nn.Module):
    """Training pulls the weight to 10, validation wants it at 1: the best weights come early."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        target = 10.0 if self.training else 1.0
        nats = (self.weight - target).square().sum() + 0 * x.sum()
        return Objective(nats, {"nats": nats.detach()})


class Nothing:
    def __len__(self):
        return 7

    def batch(self, indices, epochs):
        return (indices.float(),)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_best_weights_come_back(tmp_path, ema):
    shown = []
    fit = build(
        tmp_path,
        Walker(),
        lambda module, step: shown.append((step, module.weight.item(), module.training)),
        (Nothing(), Nothing()),
        steps=30,
        batch_size=5,
        learning_rate=0.3,
        weight_decay=0.0,
        warmup=0,
        evaluate_every=2,
        ema=ema,
    )
    best = fit.run()
    metrics = rows(tmp_path)
    assert [row["step"] for row in metrics] == list(range(2, 31, 2))
    nats = [row["validation/nats"] for row in metrics]
    assert best == min(nats) < nats[-1]
    found = evaluate(fit.module, Nothing(), 5, fit.accelerator)
    assert found["nats"] == pytest.approx(best)
    assert not fit.module.training
    assert [step for step, _, _ in shown] == [row["step"] for row in metrics]
    assert not any(training for _, _, training in shown)
    for (_, weight, _), row in zip(shown, metrics, strict=True):  # the better of raw and averaged weights is shown
        assert (weight - 1) ** 2 == pytest.approx(row["validation/nats"], rel=1e-4)
        assert ("validation/nats_raw" in row) == (ema > 0)
        assert row["validation/nats"] <= row.get("validation/nats_raw", math.inf)


def test_usage_is_that_of_the_last_whole_epoch(tmp_path):
    """50 images in steps of 24: an epoch ends with every third step, and an evaluation follows every second one."""
    fit, counts = build(tmp_path, evaluate_every=2), []
    step = fit.training_step

    def counted():
        handle = fit.module.quantizer.register_forward_hook(
            lambda _, __, found: counts.append(torch.bincount(found.codes.flatten(), minlength=8))
        )
        step()
        handle.remove()

    fit.training_step = counted
    fit.run()
    for row in rows(tmp_path):
        whole = row["step"] // 3 * 3
        names = {name for name in row if name.startswith("train/codes")}
        assert names == ({"train/codes_used", "train/codes_perplexity"} if whole else set())
        if whole:
            expected = usage(torch.stack(counts[whole - 3 : whole]).sum(0))
            assert row["train/codes_used"] == expected.share
            assert row["train/codes_perplexity"] == pytest.approx(expected.perplexity)


class Line(nn.Module):
    """A loss whose gradient is known: the slope of every weight is what its images say."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 4))

    def forward(self, pixels):
        loss = (self.weight * pixels.float().mean((0, 1))).sum() * 100
        return Objective(loss, {"nats": loss.detach()})


def test_a_step_has_the_rate_of_the_schedule_and_a_clipped_gradient(tmp_path):
    fit, seen = build(tmp_path, Line(), steps=6, evaluate_every=6, clip=0.25, warmup=3), []
    fit.optimizer.optimizer.register_step_pre_hook(
        lambda optimizer, *_: seen.append(([g["lr"] for g in optimizer.param_groups], fit.module.weight.grad.clone()))
    )
    for number in range(6):
        fit.training_step()
        rates, gradient = seen[number]
        assert rates == [learning_rate(fit.settings, number)] * 2
        raw = 100 * fit.train.batch(fit.order.indices(number), fit.order.epochs(number))[0].float().mean((0, 1))
        assert raw.norm() > 10
        torch.testing.assert_close(gradient, raw / raw.norm() * 0.25, rtol=1e-4, atol=1e-6)


class Duel(nn.Module):
    """Two parts with losses of their own; the second is the opponent of the first."""

    chosen_by = "distance"

    def __init__(self, rate):
        super().__init__()
        self.own, self.opponent = nn.Linear(16, 3), nn.Linear(16, 2)
        self.opponent.rate = rate

    def losses(self, pixels):
        x = pixels.float().flatten(1)
        return 5 * self.own(x).square().sum(1).mean(), 900 * (self.opponent(x) - 1).square().sum(1).mean()

    def forward(self, pixels):
        loss = sum(self.losses(pixels))
        return Objective(loss, {"distance": (self.own.bias[0] - 2).detach().abs(), "nats": -loss.detach()})


def test_an_opponent_has_an_optimiser_of_its_own(tmp_path):
    """Each part ends as it would alone: the other's gradient neither moves it nor shortens its own."""
    torch.manual_seed(0)
    fit = build(tmp_path, Duel(0.5), steps=5, evaluate_every=5, clip=0.3, weight_decay=0.1, accumulate=2, batch_size=8)
    alone, settings = copy.deepcopy(fit.module), fit.settings
    matrix, bias = alone.own.parameters()
    optimizers = [
        torch.optim.AdamW([{"params": [matrix], "weight_decay": 0.1}, {"params": [bias], "weight_decay": 0}]),
        torch.optim.AdamW(alone.opponent.parameters(), weight_decay=0),
    ]
    for step in range(5):
        fit.training_step()
        losses = alone.losses(fit.train.batch(fit.order.indices(step), fit.order.epochs(step))[0])
        parts = zip((alone.own, alone.opponent), losses, optimizers, (1.0, 0.5), ((0.9, 0.99), (0.5, 0.9)), strict=True)
        for part, loss, optimizer, rate, betas in parts:
            optimizer.zero_grad()
            loss.backward()
            norm = torch.cat([p.grad.flatten() for p in part.parameters()]).norm()
            for p in part.parameters():
                p.grad *= (0.3 / norm).clamp(max=1)
            for group in optimizer.param_groups:
                group |= {"lr": learning_rate(settings, step) * rate, "betas": betas}
            optimizer.step()
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(fit.module.state_dict()[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_an_opponent_that_is_not_finite_leaves_the_step_out(tmp_path):
    fit = build(tmp_path, Duel(1.0), steps=3)
    before = copy.deepcopy(fit.module.state_dict())
    fit.module.opponent.bias.register_hook(lambda gradient: gradient * math.inf)
    fit.training_step()
    assert equal(fit.module.state_dict(), before)
    assert fit.guard.count == 1


def test_weights_are_chosen_by_the_metric_that_the_module_names(tmp_path):
    fit = build(tmp_path, Duel(1.0), steps=12, evaluate_every=2, ema=0.0)
    best, found = fit.run(), [row["validation/distance"] for row in rows(tmp_path)]
    assert best == min(found) < max(found)
    assert abs(fit.module.own.bias[0].item() - 2) == pytest.approx(best)


def test_evaluation_covers_the_split_once(tmp_path):
    fit = build(tmp_path)
    fit.module.train()
    images = Images(23, 5)
    found = evaluate(fit.module, images, 10, fit.accelerator)  # 10, 10 and 3: means over images, not over batches
    assert fit.module.training
    fit.module.eval()
    with torch.no_grad():
        assert found["nats"] == pytest.approx(fit.module(images.pixels).metrics["nats"].item(), rel=1e-5)


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [1, 2, 6, 7, 23])
def test_every_image_counts_once_and_every_process_has_as_many_batches(count, world):
    shared = [list(own_batches(count, 2, rank, world)) for rank in range(world)]
    assert len({len(batches) for batches in shared}) == 1
    counted = [i for batches in shared for indices, weight in batches for i in indices[:weight].tolist()]
    assert sorted(counted) == list(range(count))
    for indices, weight in (batch for batches in shared for batch in batches):
        assert 0 < len(indices) <= 2 and weight in (0, len(indices))


def test_a_batch_of_weight_0_gives_nothing_but_names(tmp_path):
    fit, totals = build(tmp_path), Totals()
    value, counts = torch.tensor(3.0), torch.tensor([1, 2])
    totals.add(Objective(value, {"nats": value}, {"codes": counts}), 2)
    totals.add(Objective(value * math.inf, {"nats": value * math.nan}, {"codes": counts}), 0)
    found = totals.read(fit.accelerator)
    assert (found["loss"], found["nats"], found["codes_used"]) == (3, 3, 1)
    assert torch.equal(totals.histograms["codes"], counts)


def test_only_the_plain_networks_are_compiled():
    pixels, settings = Variable.pixels((1, 4, 4), 4), LevelSettings(map=(2, 2), width=8)
    level = PixelLevel(pixels, settings, PixelHead(PixelSettings(), 1, 4), (4, 4))
    assert networks(level) == [level.encoder, level.decoder]
    plain = torch.nn.Linear(2, 2)
    assert networks(plain) == [plain]


def test_a_phase_is_looked_at_before_a_late_evaluation_and_learns_the_same(tmp_path, monkeypatch):
    seen, weights = [], []
    for seconds in (0.0, 1e9):
        monkeypatch.setattr("vqstack.fit.loop.FIRST_LOOK", seconds)
        steps = []
        fit = build(tmp_path / str(seconds), on_evaluation=lambda module, step, to=steps: to.append(step))
        fit.run()
        seen.append(steps)
        weights.append(fit.module.state_dict())
    assert seen == [[1, 4, 8, 12], [4, 8, 12]]
    assert equal(*weights)
