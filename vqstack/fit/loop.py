"""One phase of training: steps, evaluations, checkpoints, resume."""

import copy
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from enum import IntFlag
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vqstack import signals, threads
from vqstack.checkpoint import Checkpoint, Checkpoints
from vqstack.disk import on_main
from vqstack.errors import DivergedError, InputError, Stopped
from vqstack.fit.batches import Order, ReadingAhead, Source
from vqstack.fit.blocks import keep_blocks, recompute_blocks
from vqstack.fit.callbacks import Callback
from vqstack.fit.guard import Guard, poisoned
from vqstack.fit.journal import Journal, in_words
from vqstack.fit.optimisation import (
    Average,
    learning_rate,
    load_optimizer,
    networks,
    optimizer_for,
    parameters_apart,
)
from vqstack.fit.outcome import CHECKPOINTS
from vqstack.fit.seeds import seed_everything
from vqstack.fit.settings import FitSettings
from vqstack.fit.sharding import Sharding, full
from vqstack.fit.threads import choose_threads
from vqstack.fit.totals import EvaluationError, Totals, evaluate, use_of
from vqstack.pretrained import check_numbers
from vqstack.shapes import Objective
from vqstack.shards import held
from vqstack.terminal import Progress

STREAM_EPOCH = 10_000  # images that stand for an epoch of a stream, whose length nobody knows
FIRST_LOOK = 20.0  # seconds after which a phase is looked at, should its first evaluation be later


class Demand(IntFlag):
    """What is asked of the loop after a step, by any process."""

    GO_ON = 0
    LOOK = 1
    SAVE = 2
    STOP = 4


class Fit:
    """One phase of training: fits ``module`` and leaves it with its best weights by the validation split.

    Args:
        name: of the phase, shown in the progress bar and in trackers.
        module: ``module(*batch) -> Objective``. The metric by which its best weights are chosen is ``nats``, or what
            its attribute ``chosen_by`` names; the less the better.
        train, validation: see :class:`Source`.
        settings: see :class:`FitSettings`.
        accelerator: device, processes, precision, trackers.
        folder: receives ``checkpoints/`` and ``metrics.jsonl``.
        seed: of the order of images, augmentation, dropout and code revival.
        compile_module: run the module's networks (its attribute ``networks``, or itself) through torch.compile.
        on_evaluation: called with (module with the better weights, step) after each evaluation, on the main process;
            also once, with the raw weights, when the phase has run for FIRST_LOOK seconds without any.
        callbacks: told of what happens, on the main process.
        sharding: how processes share the weights; None: each has them all.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        train: Source,
        validation: Source,
        settings: FitSettings,
        accelerator: Accelerator,
        folder: Path,
        *,
        seed: int = 0,
        compile_module: bool = False,
        on_evaluation: Callable[[nn.Module, int], None] | None = None,
        callbacks: Sequence[Callback] = (),
        sharding: Sharding | None = None,
    ) -> None:
        self.name, self.settings, self.accelerator, self.sharding = name, settings, accelerator, sharding
        self.outcome = module  # receives the best weights; what is trained is the module itself, or a copy in shards
        module.train()
        self.module = module = module.to(accelerator.device) if sharding is None else sharding.copy(module)
        self.train, self.validation, self.folder, self.seed = train, validation, folder, seed
        self.on_evaluation = on_evaluation
        self.callbacks = callbacks if accelerator.is_main_process else ()
        accelerator.gradient_accumulation_steps, accelerator.step = settings.accumulate, 0
        self.average = Average(module, settings.ema) if settings.ema else None
        if settings.gradient_checkpointing:
            recompute_blocks(module)
        if sharding is not None:
            sharding.shard(module, *([self.average.module] if self.average is not None else []))
        optimizer = optimizer_for(module, settings, accelerator.device)
        self.compiled = compile_module
        if compile_module:  # the plain networks only: what stands around them is small and changes shape
            for network in networks(module):
                network.compile(dynamic=False)
        if sharding is None:
            self.runner, self.optimizer = accelerator.prepare(module, optimizer)
            # Codebooks move alike on all processes; copying those of one over the others' would only hide it if not.
            self.runner.broadcast_buffers = False
        else:
            self.runner, self.optimizer = module, accelerator.prepare_optimizer(optimizer)
        self.apart = parameters_apart(module)
        self.chosen_by: str = getattr(module, "chosen_by", "nats")
        self.accumulators: list[Any] = [m for m in module.modules() if hasattr(m, "accumulating")]
        # On the CPU a thread that reads would only take time from those that compute.
        far = accelerator.device.type != "cpu"
        self.ahead = train if far and isinstance(train, ReadingAhead) else None
        self.order = Order(len(train), settings.batch_size, seed)
        self.checkpoints = Checkpoints(folder / CHECKPOINTS, settings.keep)
        self.guard = Guard(name, module, accelerator, settings.max_bad_steps, folder)
        self.journal = Journal(name, accelerator, folder)
        self.step = 0
        self.best_step, self.last = 0, math.nan  # known at the end: when the best weights were, the last score
        self.totals = Totals()  # since the last evaluation
        self.usage = Totals()  # since the last epoch ended
        self.seen = 0  # images in it, of all processes: each must end an epoch at the same step
        self.epoch = Totals()  # the last whole epoch, rounded up to whole steps
        self.loss, self.scored = math.nan, ""  # of the last step here, and the last evaluation, to be shown
        # Decisions are taken on the CPU, where no device has to be waited for.
        self._group = torch.distributed.new_group(backend="gloo") if accelerator.num_processes > 1 else None

    def run(self) -> float:
        """Train to the end, or go on from the last checkpoint; returns the best score of the validation split.

        Stopped after a signal, once the step is finished and a checkpoint written.
        """
        self._resume()
        self._choose_threads()
        batch, saved = self.settings.batch_size, time.monotonic()
        first_look = math.inf if self.step else saved + FIRST_LOOK
        with (
            signals.noted() as received,
            Progress(
                total=self.settings.steps * batch,
                initial=self.step * batch,
                desc=self.name,
                unit="img",
                unit_scale=True,
                disable=not self.accelerator.is_main_process,
            ) as progress,
        ):
            while self.step < self.settings.steps:
                self.training_step()
                for callback in self.callbacks:
                    callback.on_step(self.name, self.step, self.loss)
                progress.set_postfix_str(f"loss {self.loss:.4g}{self.scored}", refresh=False)
                progress.update(batch)
                evaluated = self.step % self.settings.evaluate_every == 0 or self.step == self.settings.steps
                score, better = self.evaluation_step() if evaluated else (None, "")
                if score is not None:
                    self.scored = f", validation {in_words(self.chosen_by, score)}"
                first_look = math.inf if evaluated else first_look
                demand = self._demand(received, saved, first_look)
                if Demand.LOOK in demand:
                    first_look = math.inf
                    self._look("module")
                every = self.settings.checkpoint_every
                due = evaluated or demand & (Demand.SAVE | Demand.STOP) or (every and self.step % every == 0)
                # Not amid bad steps: the last checkpoint is from before them. A signal and the end do not wait.
                if due and (not self.guard.in_a_row or Demand.STOP in demand or self.step == self.settings.steps):
                    self._save(score, better)
                    saved = time.monotonic()
                if Demand.STOP in demand:
                    raise Stopped(f"after step {self.step} of {self.name}; run the same command again to go on")
        return self._finish()

    def training_step(self) -> None:
        """One optimiser step over ``accumulate`` micro-batches of every process."""
        # Everything random in this step, dropout and code revival included, starts from its own seed.
        seed_everything(self.seed, self.step, self.accelerator.process_index)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, self.step) * group.get("rate", 1.0)
        self.guard.begin()
        objectives = []
        for indices, epochs in self._micro_batches(self.step):
            # Where weights are sharded, gradients of each micro-batch are reduced at once: their shards are small.
            with self.accelerator.accumulate(*[self.runner] * (self.sharding is None)):
                for part in self.accumulators:
                    part.accumulating = not self.accelerator.sync_gradients
                with self.accelerator.autocast():
                    objective = self.runner(*self.train.batch(indices, epochs))
                self.accelerator.backward(poisoned(objective.loss))
            objectives.append((objective, len(indices)))
        if self.ahead is not None:  # before the device has to be waited for
            self.ahead.announce(self._micro_batches(self.step + 1))
        self._update(objectives, self.order.indices(self.step))
        self.step += 1

    def _micro_batches(self, step: int) -> list[tuple[Tensor, Tensor]]:
        """What this process takes of a step: numbers of the images, and the epochs in which they are seen."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        everyones = torch.stack([self.order.indices(step), self.order.epochs(step)])[:, rank::world]
        return [(part[0], part[1]) for part in everyones.tensor_split(self.settings.accumulate, dim=1)]

    def _update(self, objectives: list[tuple[Objective, int]], images: Tensor) -> None:
        """Move the weights, unless the loss or the gradient is not finite: then the step leaves no trace."""
        own, *against = self.apart
        norm = self.accelerator.clip_grad_norm_(own, self.settings.clip)
        for theirs in against:  # a scaler has had its turn with all of them
            theirs_norm = torch.nn.utils.clip_grad_norm_(theirs, self.settings.clip)
            norm = theirs_norm if norm is None else full(norm) + full(theirs_norm)  # finite if both are
        loss = torch.stack([objective.loss.detach().float() for objective, _ in objectives]).mean()
        # One look at the device a step. The norm is the same in every process, so the decision is, too.
        size, loss_here = torch.stack([loss if norm is None else full(norm.detach()).to(loss), loss]).tolist()
        self.loss, fine = loss_here, math.isfinite(size)
        if fine or self.accelerator.scaler is not None:  # the scaler leaves the step out by itself, and learns from it
            self.optimizer.step()
        self.optimizer.zero_grad()
        if not fine:
            self.guard.refuse(self.step + 1, loss_here, images)
            return
        self.guard.accept(loss_here)
        for objective, weight in objectives:
            self.totals.add(objective, weight)
            self.usage.add(objective, weight)
        self.seen += self.settings.batch_size
        if self.seen >= (len(self.train) or STREAM_EPOCH):
            self.epoch, self.usage, self.seen = self.usage, Totals(), 0
        if self.average is not None:
            self.average.update()

    def evaluation_step(self) -> tuple[float | None, str]:
        """Score raw and averaged weights on the validation split: (score of the better ones, "module" or "average").

        A split that cannot be scored, a picture that cannot be drawn, a tracker that fails: reported, and counted in
        the metrics; training goes on.
        """
        short = not self.epoch.histograms and self.step == self.settings.steps  # training is over before an epoch is
        epoch = (self.usage if short else self.epoch).counts(self.accelerator)
        means = self.totals.means(self.accelerator)
        values = {f"train/{k}": v for k, v in {**means, **use_of(epoch)}.items()}
        self.totals = Totals()
        self.journal.watch(self.step, epoch, self.usage.counts(self.accelerator), self.settings.collapse, short)
        score, better = None, ""
        try:
            score, better = self._score(values)
        except EvaluationError as error:
            self.journal.failed(self.step, "evaluation", error)
        if score is not None:
            self._look(better)
        self.journal.write(self.step, values, self.guard.count)
        for callback in self.callbacks:
            callback.on_evaluation(self.name, self.step, values)
        return score, better

    def _look(self, better: str) -> None:
        """Show the weights to whoever wants to see them: it leaves no trace in them, and may fail."""
        best = self.module if better == "module" or self.average is None else self.average.module
        with nullcontext(best) if self.sharding is None else self.sharding.whole(best, self.outcome) as module:
            if not self.accelerator.is_main_process or self.on_evaluation is None:
                return
            was_training = module.training
            try:
                self.on_evaluation(module.eval(), self.step)
            except Exception as error:  # a picture is not worth a run
                self.journal.failed(self.step, "what follows an evaluation", error)
            finally:
                module.train(was_training)

    def _score(self, values: dict[str, float]) -> tuple[float, str]:
        """Adds to ``values``; (score of the better weights, which ones they are)."""
        batch, metric = self.settings.batch_size, self.chosen_by
        found = {"module": evaluate(self.runner, self.validation, batch, self.accelerator, self.seed)}
        if self.average is not None:
            averaged = self.average.current()
            found["average"] = evaluate(averaged, self.validation, batch, self.accelerator, self.seed)
        better = min(found, key=lambda name: found[name][metric] if math.isfinite(found[name][metric]) else math.inf)
        score = found[better][metric]
        if not math.isfinite(score):
            raise EvaluationError(f"validation {metric} {score}")
        if self.average is not None:
            values[f"validation/{metric}_raw"] = found["module"][metric]
        values |= {f"validation/{k}": v for k, v in found[better].items()}
        return score, better

    def _demand(self, received: list[int], saved: float, first_look: float) -> Demand:
        """What this step asks for, the same answer in every process: a signal may reach only one of them."""
        mine, now = Demand.STOP if received else Demand.GO_ON, time.monotonic()
        if self.accelerator.is_main_process:
            mine |= Demand.LOOK if now > first_look else Demand.GO_ON
            mine |= Demand.SAVE if now - saved > 60 * self.settings.checkpoint_minutes else Demand.GO_ON
        if self._group is None:
            return mine
        everyones = torch.tensor(int(mine))
        torch.distributed.all_reduce(everyones, torch.distributed.ReduceOp.BOR, group=self._group)
        return Demand(int(everyones))

    def _save(self, score: float | None, better: str) -> None:
        scaler = self.accelerator.scaler
        state = {
            "step": self.step,
            "threads": torch.get_num_threads(),
            "better": better,
            "module": self.module.state_dict(),
            "average": self.average.module.state_dict() if self.average else {},
            "updates": self.average.updates if self.average else 0,
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else {},
            "totals": self.totals.state(self.accelerator),
            "usage": self.usage.state(self.accelerator),
            "epoch": self.epoch.state(self.accelerator),
            "guard": self.guard.state(),
            "failures": self.journal.failures,
            "collapsed": self.journal.collapsed,
        }
        if self.sharding is None:
            on_main(self.accelerator, lambda: self.checkpoints.write(self.step, state, score))
        else:
            self.checkpoints.write_sharded(self.step, state, score, self.accelerator, self._group)

    def _resume(self) -> None:
        """Go on from the newest checkpoint that is intact."""
        found = on_main(self.accelerator, self.checkpoints.intact)
        if found:
            try:
                self._load(self._read(found[-1]))
            except (RuntimeError, ValueError, KeyError) as error:
                raise InputError(
                    f"{found[-1].folder} cannot be gone on with ({' '.join(str(error).split())[:200]}): "
                    "give the settings it was written with, or choose another --out"
                ) from error
        on_main(self.accelerator, lambda: self.journal.cut(self.step))

    def _read(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Its state as this process holds it, however many processes wrote it, in shards or whole."""
        if self.sharding is None:
            return checkpoint.filled(checkpoint.read())
        state = checkpoint.filled(checkpoint.read(), self.sharding.mesh, self._group)
        return self.sharding.spread(state, self.module, self.optimizer)

    def _choose_threads(self) -> None:
        """That of a phase that begins on the CPU; the step that is timed is one of a copy."""
        if self.accelerator.device.type != "cpu" or self.step:
            return
        indices, epochs = self._micro_batches(0)[0]

        def work() -> None:
            seed_everything(self.seed, 0, 0)
            copy.deepcopy(self.outcome)(*self.train.batch(indices, epochs)).loss.backward()

        note = self.checkpoints.folder / "threads"
        choose_threads(self.name, self.accelerator, note, None if self.compiled else work)

    def _load(self, state: dict[str, Any]) -> None:
        began = state.get("threads", torch.get_num_threads())  # the first checkpoints had none
        threads.keep(self.name, began, self.accelerator)
        check_numbers(held({name: state[name] for name in ("module", "optimizer", "average")}))
        self.module.load_state_dict(state["module"])
        load_optimizer(self.optimizer, state["optimizer"])
        if self.average is not None:
            # A run that began without an average has none: then it starts here, as at step 0.
            self.average.module.load_state_dict(state["average"] or state["module"])
            self.average.updates = state["updates"]
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.totals.load_state(state["totals"], self.accelerator)
        self.usage.load_state(state["usage"], self.accelerator)
        self.seen = int(state["usage"]["weight"]["weight"].sum())  # however many processes there were
        self.epoch.load_state(state["epoch"], self.accelerator)
        self.guard.load_state(state["guard"])
        self.step, self.journal.failures = state["step"], state["failures"]
        self.journal.collapsed = state.get("collapsed", [])  # the first checkpoints had none

    def _finish(self) -> float:
        """Leave the module with its best weights."""
        best, self.last = on_main(self.accelerator, self._find_best)
        self.best_step = best.step
        state = best.read(mapped=True)
        better = state["better"]
        keep_blocks(self.outcome)
        self.outcome.load_state_dict(best.filled({better: state[better]})[better])
        self.outcome.to(self.accelerator.device).eval()
        self.accelerator.free_memory()
        assert best.score is not None
        return best.score

    def _find_best(self) -> tuple[Checkpoint, float]:
        """The checkpoint of the best weights, and the score of the last ones."""
        scored = [c for c in self.checkpoints.intact() if c.score is not None]
        if not scored:
            why = next(iter(self.journal.failures), "no checkpoint of an evaluation is left")
            raise DivergedError(
                f"{self.name}: no evaluation gave finite {self.chosen_by}, so no weights can be chosen ({why}): remove "
                f"{self.checkpoints.folder} and train again with a smaller learning_rate and --override-config"
            )
        return min(scored, key=lambda c: c.score or 0.0), scored[-1].score or 0.0
