"""The trainer: a run from its settings, ``settings.py``. The loop itself is in ``run.py``."""

from contextlib import ExitStack
from typing import Any

from torch import nn

from robustgen.training.batches import as_source
from robustgen.training.distributed import join
from robustgen.training.interrupt import deferred_interrupt
from robustgen.training.run import Run, training_mode
from robustgen.training.settings import Settings
from robustgen.turns import taking_turns, training_alone

__all__ = ["Trainer"]


class Trainer(Settings):
    """Trains a network on an objective; killed at any moment, it resumes exactly.

    Everything random in a step (batch order, dropout, noise) is a function of (seed, step) and is drawn from torch's
    global generators, which are forked: no random state is saved and the caller's is not advanced. On the CPU, with
    the same number of threads, a run that was killed and resumed ends bitwise as if it had not been. Between steps
    other threads may attack the model or score with it.

    A model with ``fit_without_gradients(source)`` has it called after the last step of each epoch, in eval mode and
    with the averages of weights, where there are any: for what is fitted to the training data in other ways.

    Under ``torchrun`` each process takes a share of every batch and gradients are averaged, weighted by the shares:
    up to float order, the same objective value and weights as one process where the objective is a mean over examples
    that draws no random numbers. Noise and dropout are other ones on each rank, batch statistics (and batch norm's) are
    of its share, and the model's buffers those of rank 0. Rank 0 writes.

    Args:
        objective: ``objective(model, batch, step) -> {"loss": scalar, ...}``, means over the batch; the other entries
            are logged. See :class:`ClassifierObjective`.
        optimizer: makes the optimizer from the parameters that require a gradient; the default is Adam, lr 1e-3. A
            model with ``players`` (a mapping of names to modules) has one for each: step by step it trains the one
            that its ``player_at(step)`` names, and the entries of the history begin with that name.
        schedule: learning-rate factor as a function of the progress in [0, 1), or None.
        epochs, batch_size: an epoch is a permutation of the data in batches of at most ``batch_size`` (over all
            processes) whose sizes differ by at most one.
        seed: of everything random.
        device: where to train; default: where the model is, under NCCL the GPU of LOCAL_RANK.
        precision: "float32", or "bfloat16" for autocast (weights and loss stay as they are).
        ema: decay in [0, 1) of an exponential moving average of the weights. Validation uses the averages, and a
            finished ``fit`` leaves them in the model.
        clip_norm: largest norm of the whole gradient.
        guard: puts weights from before back where training goes wrong; see :class:`OverfittingGuard`.
        val_objective: what validation computes in place of ``objective``, such as :class:`RobustAccuracy`.
        best: an entry of the history, "val_adv_accuracy" for one: the checkpoint of the epoch in which it is highest
            is kept beside the latest (:func:`best_checkpoint`).
        run_dir: where checkpoints and ``metrics.jsonl`` (the history, one line an epoch) go; None writes nothing.
        resume: go on from the latest checkpoint in ``run_dir``, or start where there is none.
        checkpoint_every: steps between checkpoints; default once an epoch. The first and last state are always saved.
        after_epoch: called with the model, as validation sees it, and the history, by rank 0 (to draw samples, say).
        progress: a progress bar on stderr.

    Raises:
        TypeError: a number of another kind.
        ValueError: an argument out of range.

    >>> import torch
    >>> x, y = torch.rand(64, 8), torch.arange(64) % 2
    >>> from robustgen.training import ClassifierObjective
    >>> trainer = Trainer(ClassifierObjective(), epochs=2, batch_size=16, progress=False)
    >>> history = trainer.fit(nn.Linear(8, 2), (x, y), val=(x, y))
    >>> [(row["epoch"], row["step"]) for row in history], [name for name in sorted(history[0]) if "loss" in name]
    ([(1, 4), (2, 8)], ['clean_loss', 'loss', 'val_clean_loss', 'val_loss'])
    """

    def fit(self, model: nn.Module, data: Any, val: Any = None) -> list[dict[str, float]]:
        """Train ``model`` in place.

        The whole model is put in train mode, save for submodules all of whose parameters are frozen: these are in eval
        mode, so that batch statistics of a frozen backbone do not move. Every flag is restored afterwards.

        Args:
            model: its parameters that require a gradient are trained. Left on the device where it was trained.
            data: see :func:`as_source`: (x, y) tensors or arrays, x a dict of the model's keyword arguments too, an
                ``ArrayDataset``, a map-style ``Dataset``, a ``DataLoader``.
            val: the same, or None: the objective on it, in eval mode, at the end of each epoch.

        Returns:
            One dict an epoch: ``epoch`` and ``step`` (completed), means of the objective's entries over the epoch,
            and those of ``val`` prefixed ``val_``. With ``resume`` it starts at the run's first epoch. A run that the
            guard has ended warns, and its last epoch may be cut short.

        Raises:
            ValueError: an empty data set, no parameter to train, a ``run_dir`` that already holds a run (without
                ``resume``), or a run with other settings or another architecture (each difference is named), or a
                model that was saved without its run; a ``best`` that is no entry of the history or needs ``val``.
            FloatingPointError: the loss or the weights are no longer finite; the last good checkpoint stays. A resumed
                run has the same settings: start another, in another ``run_dir``, at a lower learning rate or clipped.
            BlockingIOError: another process or thread is writing in ``run_dir``.
            RuntimeError: another thread trains the model or a part of it.
            OSError: a checkpoint cannot be written; the one before stays.
            KeyboardInterrupt: Ctrl-C or SIGTERM, after the step is completed and a checkpoint written; a second Ctrl-C
                at once. A handler for SIGTERM of the caller's own stays in place instead.
        """
        if val is None and self.best is not None and self.best.startswith("val_"):
            raise ValueError(f"best={self.best!r} is found on validation data: pass val")
        source, val_source = as_source(data), None if val is None else as_source(val)
        world, device = join(self.device, model)
        with ExitStack() as stack:
            interrupt = stack.enter_context(deferred_interrupt())
            stack.enter_context(training_alone(model))
            stack.enter_context(training_mode(model))
            with taking_turns(model):
                run = Run(self, model.to(device), source, val_source, world, device, interrupt)
            stack.enter_context(world.alone(self.run_dir, device))
            return run.go()
