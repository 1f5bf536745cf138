"""One run of a trainer: the loop, and everything that it changes."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from robustgen.checks import warn_user
from robustgen.counter_rng import derive_seed, integers
from robustgen.files import load_state
from robustgen.model import evaluating
from robustgen.structure import check_structure, differences
from robustgen.training.batches import Batch, Source, epoch_order
from robustgen.training.checkpoint import (
    Checkpoint,
    best_checkpoint,
    keep_as_best,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from robustgen.training.collapse import COLLAPSED, collapse_of
from robustgen.training.distributed import World
from robustgen.training.ema import EMA
from robustgen.training.interrupt import Interrupt, Stopped
from robustgen.training.metrics import Means, best_row, write_rows
from robustgen.training.objective import Objective, describe
from robustgen.training.overfitting import Watch
from robustgen.training.players import Players
from robustgen.training.settings import Settings
from robustgen.turns import RANDOM_STATE, seeded, taking_turns

__all__ = ["Run", "training_mode"]

_NEVER = 2**62  # a step that no run reaches
_POLL = 50  # steps between looks at what a GPU or another process would make us wait for


class Run:
    """The state of a run; a checkpoint is this state after a completed step."""

    def __init__(
        self,
        settings: Settings,
        model: nn.Module,
        source: Source,
        val: Source | None,
        world: World,
        device: torch.device,
        interrupt: Interrupt,
    ) -> None:
        self.settings, self.model, self.source, self.val = settings, model, source, val
        self.world, self.device, self.interrupt = world, device, interrupt
        self.players = Players(model, settings.optimizer)
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.per_epoch = -(-len(source) // settings.batch_size)  # batches
        self._enter_epoch(0)
        self.total = settings.epochs * self.per_epoch
        for what, n in {
            "batches": len(self.order[-1]),
            "validation data": world.size if val is None else len(val),
        }.items():
            if n < world.size:
                raise ValueError(f"{what} of {n} examples cannot be shared by {world.size} processes")
        if callable(check := getattr(model, "check_training", None)):
            check(len(source), settings.batch_size)
        self.config = self._describe()
        self.ema = None if settings.ema is None else EMA(self.weights, settings.ema)
        self.watch = None if settings.guard is None else Watch(settings.guard, self._tensors)
        self.means = self._no_means()
        self.step = 0  # completed
        self.history: list[dict[str, float]] = []
        self.diverged = torch.tensor(_NEVER, device=device)  # the first step whose loss was not finite
        self.prompt = world.size == 1 and device.type == "cpu"  # nothing to wait for: look after each step
        self.saved: tuple[int, int] | None = None

    def go(self) -> list[dict[str, float]]:
        """Start or resume, train to the end, and return the history."""
        settings = self.settings
        self._start()
        wrapped = self.world.wrap(self.model, self.device, unused=self.players.several)
        if self.watch is not None and not self.watch.kept:  # only now do all ranks have the same weights
            self.watch.keep(self.step)
        every = settings.checkpoint_every or self.per_epoch
        quiet = not settings.progress or self.world.rank > 0
        with tqdm(total=self.total, initial=self.step, unit="step", disable=quiet) as bar:
            try:
                while self.step < self.total or self._epoch_ended():
                    with taking_turns(self.model, RANDOM_STATE):
                        if self._epoch_ended():
                            self._close_epoch()
                            bar.set_postfix(self._shown())
                        else:
                            self._train_step(wrapped)
                            bar.update()
                        due = self.step % every == 0 or self.step == self.total or self._is_best()
                        if due and not self._epoch_ended():
                            self._save()
                        self._poll()
            except Stopped:
                with taking_turns(self.model):
                    self._save()
                raise
            finally:
                self.players.zero_grad()
        if self.ema:
            self.ema.apply()
        if self.watch is not None and self.watch.fired and self.world.rank == 0:
            warn_user(self.watch.fired)
        kept = self._kept_history()
        if kept[-1].get(COLLAPSED) and self.world.rank == 0:
            warn_user(collapse_of(kept, self._n_classes))
        return self.history

    def _kept_history(self) -> list[dict[str, float]]:
        """The epochs up to the one that the run is about: the best where it is kept, else the last."""
        if self.settings.best is None or self.settings.run_dir is None:
            return self.history
        epoch = int(best_row(self.history, self.settings.best)["epoch"])
        return self.history[:epoch]

    @cached_property
    def _n_classes(self) -> int:
        """As a sample of the labels numbers them; 0 where there are none."""
        with seeded(derive_seed(self.settings.seed, 3)):  # a data set may augment at random
            y = self.source.sample(500)[1]
        return 0 if y is None or y.ndim != 1 else int(y.max()) + 1

    def _acted(self) -> bool:
        """Whether the guard has put weights back."""
        return self.watch is not None and self.watch.fired != ""

    def _stopped(self) -> bool:
        """Whether the guard has ended the run."""
        return self.watch is not None and self._acted() and self.watch.guard.instead is None

    def _enter_epoch(self, epoch: int) -> None:
        """The batches of an epoch, and for each of its steps a seed, made here at once: one at a time is slow."""
        self.order = epoch_order(len(self.source), self.settings.batch_size, self.settings.seed, epoch)
        steps = torch.arange(epoch * self.per_epoch, (epoch + 1) * self.per_epoch)
        self.seeds = integers(self.settings.seed, steps, (), 2**62, stream=(self.world.rank,)).tolist()

    def _train_step(self, wrapped: nn.Module) -> None:
        settings = self.settings
        epoch, i = divmod(self.step, self.per_epoch)
        if i == 0:
            self._enter_epoch(epoch)
        if settings.schedule is not None:
            self.players.scale_lr(settings.schedule(self.step / self.total))
        player = self.players.at(self.step)
        with self.players.only(player), seeded(self.seeds[i]):
            batch = self.source.fetch(self.world.share(self.order[i]), self.device)
            scalars = self._scalars(self._objective(), wrapped, batch)
            loss = scalars["loss"]
            self._watch(loss)
            if self.world.size > 1:  # DDP averages over ranks: weigh each by its share of the batch
                loss = loss * (len(batch.ids) * self.world.size / len(self.order[i]))
            self.players.zero_grad()
            loss.backward()
        if settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.players.parameters[player], settings.clip_norm)
        self.players.optimizers[player].step()
        if self.ema:
            self.ema.update(first=self.step == 0)
        self.means[player].add(self.players.named(player, scalars), len(batch.ids))
        self.step += 1
        if self.watch is not None and self.watch.look(self.model, batch, self.step, self.world):
            self.players.forget()  # what the optimizer has gathered belongs to weights that are gone
            if self._stopped():
                self.total = self.step

    def _objective(self) -> Objective:
        """What is minimised: the trainer's objective, or what its guard has put in its place."""
        if self._acted() and self.settings.guard is not None and self.settings.guard.instead is not None:
            return self.settings.guard.instead
        return self.settings.objective

    def _scalars(self, objective: Objective, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            scalars = objective(model, batch, self.step)
        if not isinstance(scalars, dict) or not isinstance(scalars.get("loss"), Tensor) or scalars["loss"].ndim:
            raise ValueError('the objective must return a dict of scalars with a tensor "loss"')
        return scalars

    def _epoch_ended(self) -> bool:
        """Whether the epoch's last step is done and its row of the history is not."""
        steps = self.step + (self.per_epoch - 1 if self._stopped() else 0)  # the guard cuts an epoch short
        return steps // self.per_epoch > len(self.history)

    def _close_epoch(self) -> None:
        self._check_loss()
        self._check_own()
        self.world.broadcast(self.model.buffers())  # as DDP does before the next step
        row: dict[str, float] = {"epoch": len(self.history) + 1, "step": self.step}
        for means in self.means.values():
            row |= means.read(self.world)
        if self.watch is not None:
            row |= self.watch.row
        self._fit_without_gradients()
        if self.val is not None:
            row |= {f"val_{name}": value for name, value in self._validate(self.val).items()}
        self.means = self._no_means()
        if (best := self.settings.best) is not None and best not in row:
            raise ValueError(f"best={best!r} is no entry of the history; it has {', '.join(row)}")
        self.history.append(row)
        if collapse_of(self.history, self._n_classes):
            row[COLLAPSED] = True
        if self.world.rank == 0:
            if self.settings.run_dir is not None:
                write_rows(self.settings.run_dir / "metrics.jsonl", self.history)
            if self.settings.after_epoch is not None:
                self._show(self.settings.after_epoch)

    def _fit_without_gradients(self) -> None:
        """Let the model do what an epoch leaves to do, as validation sees it; every rank does the same."""
        if not callable(fit := getattr(self.model, "fit_without_gradients", None)):
            return
        with ExitStack() as stack:
            stack.enter_context(evaluating(self.model))
            stack.enter_context(torch.no_grad())
            if self.ema:
                stack.enter_context(self.ema.applied())
            stack.enter_context(seeded(derive_seed(self.settings.seed, 4)))
            fit(self.source)

    def _no_means(self) -> dict[str, Means]:
        return {name: Means(self.device) for name in self.players.parameters}

    def _shown(self) -> dict[str, float]:
        """The epoch and its losses, for the progress bar."""
        row = self.history[-1]
        return {k: v for k, v in row.items() if k == "epoch" or (k.endswith("loss") and not k.startswith("val_"))}

    def _show(self, after_epoch: Callable[[nn.Module, list[dict[str, float]]], None]) -> None:
        """Call ``after_epoch`` as validation sees the model; what it draws is a function of the seed alone."""
        with ExitStack() as stack:
            stack.enter_context(evaluating(self.model))
            stack.enter_context(torch.no_grad())
            if self.ema:
                stack.enter_context(self.ema.applied())
            stack.enter_context(seeded(derive_seed(self.settings.seed, 2)))
            after_epoch(self.model, self.history)

    def _validate(self, val: Source) -> dict[str, float]:
        means, objective = Means(self.device), self.settings.val_objective or self._objective()
        mine = self.world.share(torch.arange(len(val)))
        with ExitStack() as stack:
            stack.enter_context(evaluating(self.model))
            stack.enter_context(torch.no_grad())
            if self.ema:
                stack.enter_context(self.ema.applied())
            for i, indices in enumerate(mine.split(self.settings.batch_size)):
                with seeded(derive_seed(self.settings.seed, i, self.world.rank, 1)):  # alike in each epoch
                    batch = val.fetch(indices, self.device)
                    means.add(self._scalars(objective, self.model, batch), len(indices))
                if self.world.size == 1 and self.interrupt.requested:
                    raise Stopped  # the epoch is closed again, with validation, when the run is resumed
        return means.read(self.world)

    def _watch(self, loss: Tensor) -> None:
        """Note a loss that is not finite, without waiting for it where it is not at hand."""
        finite = loss.detach().isfinite()
        if not self.prompt or not finite:
            self.diverged = torch.minimum(self.diverged, torch.where(finite, _NEVER, self.step))
        if self.prompt:
            self._check_loss()

    def _check_loss(self) -> None:
        step = int(self.world.reduce(self.diverged.clone(), lowest=True))
        if step != _NEVER:
            raise FloatingPointError(f"the loss is not finite at step {step}{self._advice()}")

    def _check_weights(self) -> None:
        if not all(bool(t.isfinite().all()) for t in [*self.weights, *self.players.tensors()]):
            raise FloatingPointError(
                f"weights or optimizer state are not finite after step {self.step}{self._advice()}"
            )

    def _check_own(self) -> None:
        """Hear what the model itself says of its weights."""
        if callable(check := getattr(self.model, "check_weights", None)):
            try:
                check()
            except FloatingPointError as error:
                raise FloatingPointError(f"{error}, after step {self.step}{self._advice()}") from None

    def _advice(self) -> str:
        saved = None if self.settings.run_dir is None else latest_checkpoint(self.settings.run_dir)
        what = "a lower learning rate or with clip_norm"
        if saved is None:
            return f"; train again with {what}"
        return f"; start another run_dir with {what} (weights of the last good state: {saved})"

    def _poll(self) -> None:
        """Stop on Ctrl-C or SIGTERM, on all ranks at the same step."""
        if self.world.size > 1:
            if self.step % _POLL:
                return
            go_on = torch.tensor(0 if self.interrupt.requested else 1, device=self.device)
            self.interrupt.requested = not int(self.world.reduce(go_on, lowest=True))
        if not self.prompt and self.step % _POLL == 0:
            self._check_loss()
        if self.interrupt.requested:
            raise Stopped

    def _start(self) -> None:
        """Load the checkpoint to resume from, or write the first one: the weights that this run began with."""
        run_dir = self.settings.run_dir
        if run_dir is None:
            return
        rows = run_dir / "metrics.jsonl"
        held = latest_checkpoint(run_dir) is not None
        if (held or rows.exists()) and not self.settings.resume:
            raise ValueError(f"{run_dir} already holds a run: pass resume=True or another run_dir")
        if rows.exists() and not (run_dir / "checkpoints").exists():
            raise ValueError(
                f"{run_dir} holds {rows.name} and no checkpoint: what was trained is gone; take another run directory"
            )
        if held:
            checkpoint = load_checkpoint(run_dir)
            self._restore(checkpoint)
            best_checkpoint(run_dir)  # raises where it is not the one of the history
            if self.world.rank == 0 and self._is_best():
                keep_as_best(checkpoint.path)  # the run was killed before it could
        self._wait()  # every rank has looked before rank 0 writes
        if self.world.rank == 0 and held:
            write_rows(rows, self.history)  # drops what was written after the checkpoint
        if not held:
            self._save()

    def _save(self) -> None:
        if self.settings.run_dir is None or self.saved == (self.step, len(self.history)):
            return
        self._check_loss()
        self._check_weights()
        self._check_own()
        averages = dict(zip(map(id, self.weights), self.ema.averages, strict=True)) if self.ema else {}
        means = {name: m.state(self.world) for name, m in self.means.items()}
        state = {
            "history": self.history,
            "means": means if self.players.several else means[self.players.at(0)],
            "optimizer": self.players.state(),
            "live_weights": [w.detach() for w in self.weights] if self.ema else [],  # the model state has averages
        }
        if self.watch is not None:
            state["watch"] = self.watch.state()
        if self.world.rank == 0:
            model_state = {k: averages.get(id(v), v) for k, v in self.model.state_dict(keep_vars=True).items()}
            path = save_checkpoint(self.settings.run_dir, self.step, model_state, state, self.config)
            if self._is_best():
                keep_as_best(path)
        self._wait()
        self.saved = self.step, len(self.history)

    def _is_best(self) -> bool:
        """Whether an epoch has just ended and is the best so far."""
        name, rows = self.settings.best, self.history
        if name is None or not rows or rows[-1]["step"] != self.step:
            return False
        return best_row(rows, name) is rows[-1]

    def _tensors(self) -> dict[str, Tensor]:
        """The network that is trained, and its averages."""
        averages = self.ema.averages if self.ema else []
        return self.model.state_dict() | {f"average {k}": average for k, average in enumerate(averages)}

    def _wait(self) -> None:
        """Until every rank is here."""
        self.world.reduce(torch.zeros((), device=self.device))

    def _restore(self, checkpoint: Checkpoint) -> None:
        self._compare(checkpoint)
        load_state(self.model, checkpoint.model_state, checkpoint.path)
        try:
            self._go_on_from(checkpoint.step, checkpoint.training_state)
        except ValueError as error:
            raise ValueError(f"{checkpoint.path}: not a state that this run can go on from ({error})") from None

    @torch.no_grad()
    def _go_on_from(self, step: int, state: dict[str, Any]) -> None:
        if not state:
            raise ValueError("it holds weights alone")
        rows = [{"epoch": int, "step": int}]
        check_structure(state, {"history": rows, "means": dict, "optimizer": dict, "live_weights": [Tensor]}, "state")
        if step > self.total or not step // self.per_epoch - 1 <= len(state["history"]) <= -(-step // self.per_epoch):
            raise ValueError(
                f"step {step} with {len(state['history'])} epochs behind it, of {self.per_epoch} steps each"
            )
        if self.ema:
            live_weights = state["live_weights"]
            if [w.shape for w in live_weights] != [w.shape for w in self.weights]:
                raise ValueError("live_weights are not the weights that are trained")
            for average, weight, live in zip(self.ema.averages, self.weights, live_weights, strict=True):
                average.copy_(weight)
                weight.copy_(live)
        self.players.restore(state["optimizer"])
        if self.watch is not None:
            check_structure(state, {"watch": dict}, "state")
            self.watch.restore(state["watch"])
        for name, means in self.means.items():
            check_structure(state["means"], {name: dict} if self.players.several else dict, "means")
            means.restore(state["means"][name] if self.players.several else state["means"], self.world)
        self.step, self.history = step, list(state["history"])
        self._enter_epoch(self.step // self.per_epoch)
        if self._stopped():
            self.total = self.step
        self.saved = self.step, len(self.history)

    def _compare(self, checkpoint: Checkpoint) -> None:
        """ValueError if the checkpoint is of no run, of another architecture or of a run with other settings."""
        own = {name: t.shape for name, t in self.model.state_dict().items()}
        if own != {name: t.shape for name, t in checkpoint.model_state.items()}:
            load_state(self.model, checkpoint.model_state, checkpoint.path)  # raises, naming the tensors
        if "epochs" not in checkpoint.config:
            raise ValueError(f"{self.settings.run_dir} holds a saved model, not a run to resume: pass another run_dir")
        old, new = dict(checkpoint.config), self.config
        check_structure(old, {"epochs": int}, checkpoint.path / "config.json", "config")
        if new["schedule"] is None and new["epochs"] > old["epochs"]:
            old["epochs"] = new["epochs"]  # only adds steps; with a schedule it would change those already taken
        shared = [name for name in new if name in old]
        if differ := differences({k: old[k] for k in shared}, {k: new[k] for k in shared}):
            raise ValueError(
                f"{self.settings.run_dir} holds another run: leave out what differs, or take another directory; other "
                f"settings: {'; '.join(differ)}"
            )

    def _describe(self) -> dict[str, Any]:
        """What a resumed run must share with the first, entry by entry."""
        t = self.settings
        config = {
            "objective": describe(t.objective),
            "schedule": None if t.schedule is None else describe(t.schedule),
            "epochs": t.epochs,
            "batch_size": t.batch_size,
            "seed": t.seed,
            "precision": t.precision,
            "ema": t.ema,
            "clip_norm": t.clip_norm,
            "guard": None if t.guard is None else t.guard.describe(),
            "best": t.best,
            "number of examples": len(self.source),
            "data": self.source.fingerprint(),
            "architecture": " ".join(repr(self.model).split()),
            "number of processes": self.world.size,
            "trained parameters": [name for name, p in self.model.named_parameters() if p.requires_grad],
            "model_class": type(self.model).__name__,
            "model": self.model.config if isinstance(getattr(self.model, "config", None), dict) else None,
            "dtypes": sorted({str(p.dtype) for p in self.model.parameters()}),
        }
        config |= self.players.describe()
        text = re.sub(r" at 0x[0-9a-fA-F]+", "", json.dumps(config, default=describe))  # addresses differ by process
        return json.loads(text)  # as it reads back from a file


@contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    """Train mode, but eval for submodules all of whose parameters are frozen; every flag is restored afterwards."""
    with taking_turns(model):
        flags = [(module, module.training) for module in model.modules()]
    try:
        with taking_turns(model):
            model.train()
            for module in model.modules():
                parameters = list(module.parameters())
                if parameters and not any(p.requires_grad for p in parameters):
                    module.eval()
        yield
    finally:
        with taking_turns(model):
            for module, flag in flags:
                module.training = flag
