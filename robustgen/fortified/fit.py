"""Training the autoencoders of a pretrained network, the backbone frozen."""

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from robustgen.checks import check_numbers, warn_user
from robustgen.fortified.autoencoder import DenoisingAutoencoder
from robustgen.fortified.identity import principal_directions
from robustgen.inputs import call_model, count, each, mask_of, split
from robustgen.model import evaluating, naming_inputs, untouched
from robustgen.training import Batch, Trainer, as_source, unwrap
from robustgen.turns import seeded, taking_turns, training_alone

__all__ = ["fit_autoencoders"]

FortifiedNetwork: TypeAlias = Any  # the class in network.py, which calls this file

_ROWS = 256  # of a batch's states, evenly spaced, that directions are found from


#: Of the error without noise, beside the one with it, of an autoencoder that starts as the identity.
_CLEAN_WEIGHT = 4.0


class _AutoencoderObjective:
    """Sum over layers of the mean squared error, in units of the layer's scale, on the original network's states.

    Corrupted states alone pull every state towards the mean, which costs an identity the decisions that it began with:
    there the error of states as they are, at test time, is added, ``clean_weight`` times.
    """

    def __init__(self, clean_weight: float | None) -> None:
        self.clean_weight = clean_weight

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        net: Any = unwrap(model)
        net.backbone.eval()  # batch statistics and dropout of the frozen network stay as they are
        _, states = call_model(model, batch.x, return_states=True, detach_states=True, replace=False)
        autoencoders, mask = _by_layer(net), mask_of(batch.x)
        losses, terms = {}, []
        for name, (state, decoded) in states.items():
            autoencoder = autoencoders[name.split("#")[0]]
            losses[name] = _squared_error(net, name, autoencoder, state, decoded, mask)
            terms.append(losses[name])
            if weight := self._clean(autoencoder):
                with evaluating(autoencoder):
                    clean = autoencoder(state)
                terms.append(weight * _squared_error(net, name, autoencoder, state, clean, mask))
        total = torch.stack(terms).sum()
        return {"loss": total} | {f"relative_error/{name}": loss.detach() for name, loss in losses.items()}

    def describe(self) -> dict[str, Any]:
        """JSON-able."""
        return {"objective": "fit_autoencoders", "clean_weight": self.clean_weight}

    def _clean(self, autoencoder: DenoisingAutoencoder) -> float:
        if autoencoder.noise_at_test:
            return 0.0  # its states are never without noise
        if self.clean_weight is not None:
            return self.clean_weight
        return _CLEAN_WEIGHT if autoencoder.init == "identity" else 0.0


def _squared_error(
    net: FortifiedNetwork,
    name: str,
    autoencoder: DenoisingAutoencoder,
    state: Tensor,
    decoded: Tensor,
    mask: Tensor | None,
) -> Tensor:
    return net.per_example(name, ((decoded - state) / autoencoder.scale).square(), mask).mean()


def fit_autoencoders(
    net: FortifiedNetwork,
    data: Any,
    *,
    epochs: int,
    lr: float,
    batch_size: int,
    seed: int,
    clean_weight: float | None,
    progress: bool,
    run_dir: str | Path | None,
    resume: bool,
) -> list[dict[str, float]]:
    """See :meth:`FortifiedNetwork.fit_autoencoders`."""
    if clean_weight is not None:
        check_numbers(clean_weight=clean_weight)
    if clean_weight is not None and not 0 <= clean_weight < math.inf:
        raise ValueError(f"clean_weight must be a finite number >= 0, got {clean_weight}")
    if net.input_layer is not None and net.config["layers"]:
        raise ValueError("an input autoencoder with its loss in hidden states is trained with FortifiedObjective")
    trained = [name for name, autoencoder in _by_layer(net).items() if autoencoder.is_trained]
    _measure_states(net, data, batch_size, seed, keep=trained)
    before = _errors(net, data, batch_size) if trained else {}
    weights = {name: copy.deepcopy(_by_layer(net)[name].state_dict()) for name in trained}
    made: list[torch.optim.Optimizer] = []

    def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        made.append(torch.optim.Adam(parameters, lr=lr))
        for autoencoder in net.autoencoders():
            autoencoder.give_moments(made[-1])
        return made[-1]

    trainer = Trainer(
        _AutoencoderObjective(clean_weight),
        optimizer=adam,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        run_dir=run_dir,
        resume=resume,
        progress=progress,
        clip_norm=1.0,  # wide convolutional autoencoders diverge without it
    )
    with _frozen(net.backbone):
        history = trainer.fit(net, data)
    after = _errors(net, data, batch_size) if trained else {}
    for name in trained:
        if not after[name] <= before[name]:
            _by_layer(net)[name].load_state_dict(weights[name])
    for autoencoder in net.autoencoders():
        autoencoder.keep_moments(made[-1])
    _warn_of_disagreement(net, data, batch_size)
    return history


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """No parameter of ``module`` is trained inside."""
    with training_alone(module):
        parameters = list(module.parameters())
        with taking_turns(module):  # another thread may have them frozen just now
            required = [p.requires_grad for p in parameters]
            module.requires_grad_(False)
        try:
            yield
        finally:
            with taking_turns(module):
                for p, flag in zip(parameters, required, strict=True):
                    p.requires_grad_(flag)


def _by_layer(net: FortifiedNetwork) -> dict[str, DenoisingAutoencoder]:
    return dict(zip(net.layers, net.autoencoders(), strict=True))


def _errors(net: FortifiedNetwork, data: Any, batch_size: int) -> dict[str, float]:
    """The mean relative error of each layer over all of the data, on the states of the original network."""
    source, device = as_source(data), next(net.parameters()).device
    totals = dict.fromkeys(net.layers, 0.0)
    with untouched(net), torch.no_grad():  # with noise at test: the same noise each time
        for rows in torch.arange(len(source)).split(batch_size):
            x = each(source.batch(rows)[0], lambda t: t.to(device))
            for name, error in call_model(net.reconstruction_errors, x, relative=True, replace=False).items():
                totals[name] += float(error.double().sum())
    return {name: total / len(source) for name, total in totals.items()}


def _warn_of_disagreement(net: FortifiedNetwork, data: Any, batch_size: int, most: float = 0.01) -> None:
    """Warn where the fortified predictions differ from the original network's on too many of a sample of the inputs."""
    device, n, different = next(net.parameters()).device, 0, 0
    with evaluating(net), torch.no_grad():
        for few in split(as_source(data).sample(2000)[0], batch_size):
            x = each(few, lambda t: t.to(device))
            original, _ = call_model(net, x, return_states=True, replace=False)
            logits, _ = call_model(net, x, return_states=True)
            different += int((logits.argmax(-1) != original.argmax(-1)).reshape(count(x), -1).any(1).sum())
            n += count(x)
    if different > most * n:
        warn_user(
            f"the fortified network decides otherwise than the original on {different / n:.1%} of {n} training inputs: "
            "train its autoencoders for more epochs, or make them wider"
        )


def _measure_states(
    net: FortifiedNetwork, data: Any, batch_size: int, seed: int, keep: Sequence[str], batches: int = 10
) -> None:
    """Set each scale and, of an identity start with too few units, the directions; not of layers to ``keep``: an
    autoencoder that is trained already would be another one.
    """
    device = next(net.parameters()).device
    squares = {name: torch.zeros((), dtype=torch.float64, device=device) for name in net.layers}
    counts = dict.fromkeys(net.layers, 0)
    autoencoders = {name: a for name, a in _by_layer(net).items() if name not in keep}
    seen: dict[str, list[Tensor]] = {name: [] for name, a in autoencoders.items() if a.projects}
    with evaluating(net), torch.no_grad():
        for few in split(as_source(data).sample(batches * batch_size)[0], batch_size):
            x = each(few, lambda t: t.to(device))
            with naming_inputs(x):
                _, states = call_model(net, x, return_states=True, replace=False)
            for name, (state, _) in states.items():
                layer = name.split("#")[0]
                values = net.per_example(name, state.double().square(), mask_of(x))
                squares[layer] += values.sum()
                counts[layer] += values.numel()
                if layer in seen:
                    rows = autoencoders[layer].rows(state).flatten(0, -2)
                    seen[layer].append(rows[:: -(-len(rows) // _ROWS)].float())
    for name, autoencoder in autoencoders.items():
        rms = (squares[name] / max(1, counts[name])).sqrt()
        autoencoder.scale.copy_(torch.where(rms > 0, rms, torch.ones_like(rms)))
    with seeded(seed):
        for name, rows in seen.items():
            autoencoders[name].follow(principal_directions(torch.cat(rows), autoencoders[name].hidden))
