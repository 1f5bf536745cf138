"""Hidden-state matching: a discriminator must not tell the hidden states of clean and adversarial inputs apart.

Erraqabi, Baratin, Bengio and Lacoste-Julien, "A3T: Adversarially Augmented Adversarial Training", 2018. Network and
discriminator are trained in one minimisation by the gradient reversal of Ganin and Lempitsky, "Unsupervised Domain
Adaptation by Backpropagation", 2015, equations 4-6.
"""

import copy as copying
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustgen.fortified.layer import FortifiedLayer, Tape, recording
from robustgen.fortified.placement import place
from robustgen.inputs import call_model
from robustgen.layers import uncompiled
from robustgen.model import logits_of, naming_inputs, output_itself, output_tensor, untouched
from robustgen.networks import mlp
from robustgen.training import AdversarialObjective, unwrap

__all__ = ["HiddenMatchingNetwork", "HiddenMatchingObjective"]


def reverse_gradient(state: Tensor, weight: float) -> Tensor:
    """``state`` itself, with ``-weight`` as its derivative (Ganin and Lempitsky, 2015, equations 7 and 8).

    >>> h = torch.ones(1, requires_grad=True)
    >>> reverse_gradient(h, 0.5).backward()
    >>> h.grad
    tensor([-0.5000])
    """
    constant = state.detach()
    return constant + weight * (constant - state)  # the value in brackets is exactly zero


class HiddenMatchingNetwork(nn.Module):
    """A network with a discriminator on the output of one of its layers; train it with
    :class:`HiddenMatchingObjective`.

    ``net(x)`` are the network's own logits: the discriminator is only there for training.

    Args:
        model: any ``nn.Module``; x (N, ...) -> logits (N, C), or an object with ``.logits``.
        layer: name as in ``model.named_modules()``, with states (N, D), (N, T, D) or (N, C, H, W), or a tuple whose
            first item is one. Where it is called several times, the discriminator sees all of its states.
        example_input: what the model is called with to find the shapes: a tensor, a tuple of positional or a dict of
            keyword arguments. The discriminator takes states of this size only.
        hidden: units of each of the discriminator's two hidden layers.
        batch_dim: the dimension of the states that counts examples; None finds it.
        copy: False wraps ``model`` itself instead of a copy.

    Attributes:
        backbone: the network. Its state is recorded by a forward hook, its structure is unchanged.
        discriminator: state (N, units) -> logit (N, 1), positive for clean.

    Raises:
        TypeError: model is not an nn.Module.
        ValueError: fewer than one hidden unit, or a layer without a state (unknown, never called, wrong output).

    >>> net = HiddenMatchingNetwork(mlp(8, [16], 3), "2", torch.zeros(2, 8))
    >>> net(torch.zeros(5, 8)).shape, net.verdicts(torch.zeros(5, 8)).shape
    (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str,
        example_input: Any,
        *,
        hidden: int = 128,
        batch_dim: int | None = None,
        copy: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"HiddenMatchingNetwork needs an nn.Module, got {type(model).__name__}")
        if hidden < 1:
            raise ValueError(f"hidden must be at least 1, got {hidden}")
        model = uncompiled(model)
        (placement,) = place(model, [layer], example_input, batch_dim)
        self.backbone = copying.deepcopy(model) if copy else model
        self.observer = FortifiedLayer(placement.name, None, placement.batch_dim)
        self._watched().register_forward_hook(self.observer.hook)
        with untouched(self.backbone), torch.no_grad():
            state = self._recorded(lambda: call_model(self.backbone, example_input))[1]
        self.discriminator = mlp(state.shape[1], [hidden, hidden], 1, "leaky_relu").to(state.device, state.dtype)
        self.training = self.backbone.training  # each submodule of the backbone keeps its own flag
        self.discriminator.train(self.backbone.training)

    def forward(self, *args: Any, reversal: float | None = None, **kwargs: Any) -> Any:
        """Logits (N, C), or the model's own output object; with ``reversal`` logits and the discriminator's (N,).

        Args:
            *args, **kwargs: the model's own inputs.
            reversal: the gradient of the discriminator's logits reaches the network times ``-reversal``.
        """
        if reversal is None:
            return output_itself(self.backbone(*args, **kwargs))
        logits, state = self._recorded(lambda: self.backbone(*args, **kwargs))
        return logits, self.discriminator(reverse_gradient(state, reversal)).squeeze(1)

    def verdicts(self, *args: Any, **kwargs: Any) -> Tensor:
        """The discriminator's logits (N,) on the model's inputs, in the network's mode: positive for clean."""
        return self(*args, reversal=0.0, **kwargs)[1]

    def unwrapped(self) -> nn.Module:
        """The original module with its current weights, without the hook: a copy that shares nothing."""
        hooks = self._watched()._forward_hooks
        own = [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is self.observer]
        plain = copying.deepcopy(self.backbone)
        for key in own:
            del plain.get_submodule(self.observer.name)._forward_hooks[key]
        return plain

    def _watched(self) -> nn.Module:
        return self.backbone.get_submodule(self.observer.name)

    def _recorded(self, call: Any) -> tuple[Tensor, Tensor]:
        """The model's output and its states, (N, units), of all calls of the layer."""
        tape = Tape()
        token = recording.set(tape)
        try:
            output = output_tensor(call())
        finally:
            recording.reset(token)
        states = [self.observer.per_example(state) for layer, state, _ in tape.entries if layer is self.observer]
        if not states:
            raise ValueError(f"the network did not call {self.observer.name!r} on this input")
        return output, torch.cat(states, 1)


class HiddenMatchingObjective(AdversarialObjective):
    """clean_weight * CE(x) + CE(x_adv) + L_D for ``Trainer``, the network ascending ``weight`` * L_D.

    L_D is the discriminator's mean binary cross-entropy on the hidden states of x (clean) and x_adv. The
    discriminator descends it; the gradient that goes on into the network is reversed and weighed. All terms come from
    one forward of both halves. Logged beside the losses: ``accuracy``, ``adv_accuracy`` and
    ``discriminator_accuracy``, the share of both halves that it tells right (0.5: the states match, or it failed to
    learn).

    Args:
        attack: callable ``attack(model, x, y, *, ids) -> x_adv``, run on the network as it is at each step; it does
            not see the discriminator.
        weight: 0 leaves a plain adversarial training beside which a discriminator learns.
        clean_weight: of CE(x).
        label_smoothing: of both cross-entropies, in [0, 1).

    Raises:
        ValueError: no attack, a value out of range; at the call, data without labels.
        TypeError: at the call, a network that is no :class:`HiddenMatchingNetwork`.

    >>> from robustgen.training import Batch
    >>> net = HiddenMatchingNetwork(mlp(4, [8], 2), "2", torch.zeros(2, 4))
    >>> objective = HiddenMatchingObjective(lambda model, x, y, ids: x + 0.1, weight=0.1)
    >>> sorted(objective(net, Batch(torch.rand(6, 4), torch.arange(6) % 2, torch.arange(6)), step=0))
    ['accuracy', 'adv_accuracy', 'adv_loss', 'clean_loss', 'discriminator_accuracy', 'discriminator_loss', 'loss']
    """

    def __init__(
        self, attack: Any, *, weight: float = 0.1, clean_weight: float = 1.0, label_smoothing: float = 0.0
    ) -> None:
        if attack is None:
            raise ValueError("HiddenMatchingObjective matches clean with adversarial states: pass an attack")
        super().__init__(attack, clean_weight, label_smoothing)
        if not 0 <= weight < float("inf"):
            raise ValueError(f"weight must be a finite number >= 0, got {weight}")
        self.weight = weight

    def losses(self, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        net = unwrap(model)
        if not isinstance(net, HiddenMatchingNetwork):
            raise TypeError(f"HiddenMatchingObjective trains a HiddenMatchingNetwork, not {type(net).__name__}")
        n = len(y)
        with naming_inputs(x):
            output, verdicts = model(x, reversal=self.weight)
        loss, logged = self.classification(logits_of(output), y)
        verdicts = verdicts.to(torch.promote_types(verdicts.dtype, torch.float32))  # bfloat16 is too coarse
        is_clean = torch.arange(2 * n, device=x.device) < n
        discriminator_loss = F.binary_cross_entropy_with_logits(verdicts, is_clean.to(verdicts.dtype))
        logged["discriminator_loss"] = discriminator_loss
        logged["discriminator_accuracy"] = ((verdicts > 0) == is_clean).float().mean()
        loss = loss + discriminator_loss
        return {"loss": loss} | {name: value.detach() for name, value in logged.items()}

    def describe(self) -> dict[str, Any]:
        """Every setting, JSON-able."""
        return super().describe() | {"weight": self.weight}
