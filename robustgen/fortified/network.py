"""``fortify`` an existing network: denoising autoencoders replace the outputs of the layers that the user names."""

import copy as copying
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustgen.checks import plain_arguments, warn_user
from robustgen.files import load_state, load_tensors, read_json, save_tensors, write_json
from robustgen.fortified.autoencoder import (
    INITS,
    ConvAutoencoder,
    DenoisingAutoencoder,
    DenseAutoencoder,
    PositionAutoencoder,
    check_activations,
)
from robustgen.fortified.fit import fit_autoencoders
from robustgen.fortified.identity import kept_directions
from robustgen.fortified.layer import FortifiedLayer, Tape, recording
from robustgen.fortified.placement import Placement, auto_layers, place
from robustgen.inputs import MASK, call_model
from robustgen.layers import check_hooks, uncompiled
from robustgen.model import evaluating, output_itself, output_tensor, untouched
from robustgen.structure import POSITIVE, check_structure
from robustgen.turns import RANDOM_STATE, taking_turns
from robustgen.weights import rebuild

__all__ = ["FortifiedNetwork", "fortify"]

_KINDS = {"conv": ConvAutoencoder, "dense": DenseAutoencoder, "positions": PositionAutoencoder}
_LAYER = {"name": str, "kind": str, "features": POSITIVE, "batch_dim": range(3), "hidden": (None, POSITIVE)}
_LAYER |= {"init?": str, "nonnegative?": bool}  # missing: a random start, as all were once
_OPTIONS = {"activation": str, "decoder_activation": str, "noise_std": float, "noise_at_test": bool}
_CONFIG = {"layers": [_LAYER], "input": (None, _LAYER), "options": _OPTIONS}
_MOST_WEIGHTS = 2**26  # of an autoencoder whose width nobody chose: 256 MiB
INPUT = "input"  # the name under which an input autoencoder without hidden layers reports


@plain_arguments
def fortify(
    model: nn.Module,
    layers: str | Sequence[str],
    *,
    example_input: Any,
    hidden: int | None = None,
    activation: str = "leaky_relu",
    decoder_activation: str = "linear",
    noise_std: float = 0.1,
    noise_at_test: bool = False,
    batch_dim: int | None = None,
    input_autoencoder: bool = False,
    init: str | None = None,
    copy: bool = True,
) -> "FortifiedNetwork":
    """Put a denoising autoencoder on the output of each named layer of ``model``; later layers see the decoded state.

    Lamb, "Generative Models: A Critical Review", 2018, section 2.5. The autoencoders start as the identity, so that
    the network answers as before: then train it jointly with :class:`FortifiedObjective`, or keep a pretrained one and
    call ``fit_autoencoders``. Before that, reconstruction errors are rounding noise.

    Args:
        model: any ``nn.Module``; x (N, ...) -> logits (N, C), or an object with ``.logits``. Of what ``torch.compile``
            made, the network inside is fortified, since compiled code takes no notice of hooks: compile the result.
        layers: names as in ``model.named_modules()``, or "auto": the middle and the last hidden activation, or block of
            a transformer (see :func:`~robustgen.fortified.placement.auto_layers`). Each must give a float tensor
            (N, D), (N, T, D), (N, C, L) behind 1-D convolutions, or (N, C, H, W), or a tuple whose first item is one
            (an nn.LSTM: its output at every time step).
        example_input: what the model is called with to find the shapes: a tensor, a tuple of positional or a dict of
            keyword arguments. It is called on it five times ("auto" is one of them), once of these on the example twice
            over and once with a backward pass; no more is needed than a few inputs.
        hidden: units (channels) of each autoencoder of states of D features (channels); None means 2 D, or D
            behind a ReLU, with which an identity is exact. Where there is none, where it would have more than 64
            million weights and with ``init="random"``, it means 2 D up to 1024 but at least min(D, 1024) for dense
            states and C for maps.
        activation, decoder_activation: leaky_relu, relu, tanh or linear.
        noise_std: of the corruption noise on the states.
        noise_at_test: corrupt in eval mode too. The network is then stochastic and attacks treat it so.
        batch_dim: the dimension of the states that counts examples; None finds it by calling the model on the example
            twice over.
        input_autoencoder: one autoencoder on the input instead; ``layers`` (may be empty) then only say where its
            loss is measured: between the state of the clean and that of the reconstructed input (Liao et al.,
            "Defense against Adversarial Attacks Using High-Level Representation Guided Denoiser", 2018).
        init: what the autoencoders start as. "identity": without noise net(x) is model(x), to float rounding; near it
            where an activation is tanh, and with a smaller ``hidden`` once ``fit_autoencoders`` has seen states, whose
            principal directions it then keeps. "random", as in the source. None: "identity" where there is one; no
            decoder that ends in a ReLU gives back states that may be negative. Which states never are is known from
            the layer's kind (nn.ReLU, or a block that ends in one).
        copy: False fortifies ``model`` itself instead of a copy.

    Raises:
        TypeError: model is not an nn.Module.
        ValueError: an example that the model does not take, a network that is fortified already, a layer that cannot be
            fortified (unknown, never called, wrong output, inside a part that is compiled or scripted by itself), or a
            wrong option, ``init="identity"`` where there is none among them.

    >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> fortified = fortify(net, ["1"], example_input=torch.zeros(2, 8))
    >>> fortified(torch.zeros(2, 8)).shape, list(fortified.reconstruction_errors(torch.zeros(2, 8)))
    (torch.Size([2, 3]), ['1'])
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"fortify needs an nn.Module, got {type(model).__name__}")
    model = uncompiled(model)
    check_hooks(model)
    _check_not_fortified(model)
    if layers == "auto":
        with _naming_example(example_input):
            layers = auto_layers(model, example_input)
    elif isinstance(layers, str):
        layers = [layers]
    if not layers and not input_autoencoder:
        raise ValueError("no layers to fortify: name at least one, or pass 'auto'")
    check_activations(activation, decoder_activation)
    if init not in (None, *INITS):
        raise ValueError(f"unknown init {init!r}; known: {', '.join(INITS)}")
    with _naming_example(example_input):
        placements = place(model, layers, example_input, batch_dim)
    options = {
        "activation": activation,
        "decoder_activation": decoder_activation,
        "noise_std": noise_std,
        "noise_at_test": noise_at_test,
    }
    if input_autoencoder:
        layer_specs = [_observed(p) for p in placements]
        input_spec = _spec(_input_placement(example_input), hidden, init, activation, decoder_activation)
    else:
        layer_specs = [_spec(p, hidden, init, activation, decoder_activation) for p in placements]
        input_spec = None
    config = {"layers": layer_specs, "input": input_spec, "options": options}
    with taking_turns(model):  # another thread may have it frozen just now
        backbone = copying.deepcopy(model) if copy else model
    with taking_turns(RANDOM_STATE):  # the initial weights are the caller's to seed, not another thread's
        net = FortifiedNetwork(backbone, config)
    _warn_of_ignored_layers(net, example_input)
    return net


@contextmanager
def _naming_example(example: Any) -> Iterator[None]:
    """Turn what torch raises where the model does not take the example into a ValueError that names it."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError) as error:
        shape = f" of shape {tuple(example.shape)}" if isinstance(example, Tensor) else ""
        line = " ".join(str(error).split())
        what = f"example_input{shape}, which must be a batch of its inputs (N, ...), such as x[:2]"
        raise ValueError(f"the model fails on {what}: {line}") from error


def _observed(placement: Placement) -> dict[str, Any]:
    """JSON-able description of a layer without an autoencoder."""
    record = asdict(placement) | {"hidden": None}
    del record["nonnegative"]
    return record


def _spec(
    placement: Placement, hidden: int | None, init: str | None, activation: str, decoder_activation: str
) -> dict[str, Any]:
    """JSON-able description of one fortified layer."""
    record, features, kernel = _observed(placement), placement.features, _KINDS[placement.kind].kernel
    options = (activation, decoder_activation, placement.nonnegative)
    if hidden is None:
        wide = features if placement.nonnegative else 2 * features
        exact = init != "random" and kept_directions(features, wide, *options) == features
        if exact and wide * features * math.prod(kernel) <= _MOST_WEIGHTS:
            hidden = wide
        elif placement.kind == "conv":
            hidden = features
        else:
            hidden = max(min(2 * features, 1024), min(features, 1024))
    record["hidden"] = hidden
    if init == "random" or (init is None and not kept_directions(features, hidden, *options)):
        return record
    return record | {"init": "identity", "nonnegative": placement.nonnegative}


def _input_placement(x: object) -> Placement:
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim not in (2, 3, 4):
        raise ValueError("an input autoencoder needs a model with one float input (N, D), (N, T, D) or (N, C, H, W)")
    return Placement(INPUT, "conv" if x.ndim == 4 else "dense", x.shape[1] if x.ndim == 4 else x.shape[-1], 0)


def _warn_of_ignored_layers(net: "FortifiedNetwork", example: Any) -> None:
    layers = [layer for layer in net.fortified_layers if layer.autoencoder is not None]
    with untouched(net), torch.enable_grad():
        biases = [layer.autoencoder.decoder_bias.requires_grad_(True) for layer in layers]  # untouched() undoes it
        total = output_tensor(call_model(net, example)).sum()
        reached = torch.autograd.grad(total, biases, allow_unused=True) if total.requires_grad else [None] * len(biases)
    for layer, gradient in zip(layers, reached, strict=True):
        if gradient is None:
            warn_user(
                f"the logits do not depend on the output of layer {layer.name!r}: fortifying it has no effect on them "
                "(does the model read an RNN's final state instead of its output?)"
            )


def _check_not_fortified(model: nn.Module) -> None:
    for module in model.modules():
        hooked = any(isinstance(getattr(h, "__self__", None), FortifiedLayer) for h in module._forward_hooks.values())
        if hooked or isinstance(module, FortifiedNetwork):
            raise ValueError("this network is fortified already: name all layers at once, or fortify net.unfortified()")


class FortifiedNetwork(nn.Module):
    """An existing network with fortified layers; made by :func:`fortify` or :meth:`load`.

    Attributes:
        backbone: the network; the fortified layers hang on it as forward hooks, its structure is unchanged.
        layers: names under which states and errors are reported.
        config: what :func:`fortify` decided, JSON-able; enough to build the network again around the same model.
    """

    def __init__(self, backbone: nn.Module, config: dict[str, Any]) -> None:
        super().__init__()
        self.backbone, self.config = backbone, config
        self.fortified_layers = nn.ModuleList(_build_layer(spec, config["options"]) for spec in config["layers"])
        self.input_layer = None if config["input"] is None else _build_layer(config["input"], config["options"])
        self.layers: tuple[str, ...] = tuple(spec["name"] for spec in config["layers"]) or (INPUT,)
        self._nested = _without_nested_tensors(backbone)
        for layer in self.fortified_layers:
            backbone.get_submodule(layer.name).register_forward_hook(layer.hook)
        like = next((p for p in backbone.parameters() if p.is_floating_point()), torch.empty(0))
        dtype = torch.promote_types(like.dtype, torch.float32)  # in half precision autoencoders do not train
        self.training = backbone.training  # each submodule of the backbone keeps its own flag
        for part in (self.fortified_layers, self.input_layer):
            if part is not None:
                part.train(backbone.training).to(device=like.device, dtype=dtype)

    def forward(
        self,
        *args: Any,
        return_states: bool = False,
        detach_states: bool = False,
        replace: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Logits, or the model's own output object with ``.logits``; with ``return_states`` what autoencoders saw too.

        Of a tuple (logits, state) the first item alone: ``net.backbone(...)``, which is fortified too, gives both.

        Args:
            *args, **kwargs: the model's own inputs.
            return_states: return ``(logits, {layer: (state, decoded)})``, the logits as a tensor. A layer called k
                times in one pass appears as ``layer``, ``layer#2``, ... ``layer#k``. With an input autoencoder a pair
                holds the layer's state on the raw and on the reconstructed input.
            detach_states: record autoencoder outputs for detached states, so that losses on them train the
                autoencoders alone.
            replace: False passes the undecoded states on, as in the original network (needs ``return_states``).
        """
        if not return_states:
            return output_itself(self.backbone(*self._inputs(args), **kwargs))
        if self.input_layer is not None:
            return self._states_around_input(args, kwargs, detach_states, replace)
        logits, entries = self._recorded(args, kwargs, Tape(detach=detach_states, replace=replace))
        return logits, _named(entries)

    def _inputs(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return args if self.input_layer is None else (self.autoencoders()[0](args[0]).to(args[0].dtype), *args[1:])

    def _recorded(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], tape: Tape, constant: bool = False
    ) -> tuple[Tensor, list[tuple[FortifiedLayer, Tensor, Tensor]]]:
        """Run the backbone with a record; ``constant``: with its parameters as constants."""
        token = recording.set(tape)
        try:
            if constant:
                parameters = {name: p.detach() for name, p in self.backbone.named_parameters()}
                output = torch.func.functional_call(self.backbone, parameters, args, kwargs)
            else:
                output = self.backbone(*args, **kwargs)
        finally:
            recording.reset(token)
        own = set(self.fortified_layers)  # a fortified network inside this one records its own layers
        return output_tensor(output), [entry for entry in tape.entries if entry[0] in own]

    def _states_around_input(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], detach: bool, replace: bool
    ) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """States of the raw and of the reconstructed input; with ``detach`` only the autoencoder learns from them."""
        reconstructed = self._inputs(args)
        logits, after = self._recorded(reconstructed, kwargs, Tape())
        if self.config["layers"] or not replace:
            original, before = self._recorded(args, kwargs, Tape())
        states = {INPUT: (args[0], reconstructed[0])}
        if self.config["layers"]:
            if detach:
                _, after = self._recorded(reconstructed, kwargs, Tape(), constant=True)
            pairs = zip(before, after, strict=True)
            states = _named([(b[0], b[1].detach() if detach else b[1], a[1]) for b, a in pairs])
        return (logits if replace else original), states

    def autoencoders(self) -> list[DenoisingAutoencoder]:
        """The autoencoders, in the order of ``layers`` (or the one on the input)."""
        layers = self.fortified_layers if self.input_layer is None else [self.input_layer]
        return [layer.autoencoder for layer in layers if layer.autoencoder is not None]

    def per_example(self, name: str, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """``values`` shaped like the states of ``name``, as (N, everything else).

        With a ``mask`` (N, T), not zero at the positions that count, values of T positions are averaged over these:
        (N, D). See :func:`robustgen.inputs.mean_over_positions`.
        """
        base = name.split("#")[0]
        for layer in self.fortified_layers:
            if layer.name == base:
                return layer.per_example(values, mask)
        return FortifiedLayer(INPUT, None, 0).per_example(values, mask)

    def reconstruction_errors(self, *args: Any, relative: bool = False, **kwargs: Any) -> dict[str, Tensor]:
        """Mean squared error between state and decoded state, for each layer and example: {layer: (N,)}.

        In eval mode, whatever the network's mode; without gradient unless an input requires it. A layer called several
        times reports the mean over its calls.

        Args:
            *args, **kwargs: the model's inputs. Of states (N, T, D) or (N, C, L) only the positions count at which a
                keyword ``attention_mask`` (N, T) is not zero.
            relative: divide by the mean square of the state, which does not change with the state's scale.
        """
        inputs, mask = [*args, *kwargs.values()], kwargs.get(MASK)
        wants_grad = torch.is_grad_enabled() and any(isinstance(v, Tensor) and v.requires_grad for v in inputs)
        with evaluating(self), torch.set_grad_enabled(wants_grad):
            _, states = self(*args, return_states=True, **kwargs)
            found: dict[str, list[Tensor]] = {name: [] for name in self.layers}
            for name, (state, decoded) in states.items():
                error = self.per_example(name, (decoded - state).square(), mask).mean(1)
                if relative:
                    error = error / self.per_example(name, state.to(error).square(), mask).mean(1).clamp(min=1e-12)
                found[name.split("#")[0]].append(error)
        silent = [name for name, errors in found.items() if not errors]
        if silent:
            raise ValueError(f"the network did not call {', '.join(map(repr, silent))} on this input")
        return {name: torch.stack(errors).mean(0) for name, errors in found.items()}

    def unfortified(self) -> nn.Module:
        """The original module, without fortified layers, with its current weights: a copy that shares nothing."""
        with taking_turns(self):
            plain = copying.deepcopy(self.backbone)
        for module in plain.modules():
            for key, hook in list(module._forward_hooks.items()):
                if isinstance(getattr(hook, "__self__", None), FortifiedLayer):
                    del module._forward_hooks[key]
        for name in self._nested:
            plain.get_submodule(name).use_nested_tensor = True
        return plain

    @plain_arguments
    def fit_autoencoders(
        self,
        data: Any,
        *,
        epochs: int = 5,
        lr: float = 1e-3,
        batch_size: int = 128,
        seed: int = 0,
        clean_weight: float | None = None,
        progress: bool = True,
        run_dir: str | Path | None = None,
        resume: bool = False,
    ) -> list[dict[str, float]]:
        """Fortify a pretrained network: train only the autoencoders, on its own clean states; the backbone is frozen.

        First sets each autoencoder's ``scale`` to the root mean square of its layer's states over up to ten batches;
        then minimises the mean squared error in that unit with corrupted states, every layer seeing the states of the
        original network.

        Called again, it goes on: trained autoencoders keep their scale and, until the network is saved and loaded, the
        moments of Adam. None of them ends worse than it began: where its mean relative error over ``data``, without
        noise and on the states of the original network, has grown, it is put back as it was.

        Args:
            data: inputs as :class:`~robustgen.training.Trainer` takes them; labels, if any, are not used.
            epochs, lr, batch_size, seed, progress, run_dir, resume: of the training, by Adam.
            clean_weight: of the error of states without noise, beside that of corrupted ones: larger ones change fewer
                of the network's decisions and denoise less. None: 4 for an autoencoder that starts as the identity, 0
                (the source's loss) for one at random and for noise at test.

        Returns:
            One dict for each epoch, with the mean loss and the relative error of every layer.

        Raises:
            ValueError: no data, a weight out of range, or a network whose autoencoder sits on the input with its loss
                in hidden states.
        """
        return fit_autoencoders(
            self,
            data,
            epochs=epochs,
            lr=lr,
            batch_size=batch_size,
            seed=seed,
            clean_weight=clean_weight,
            progress=progress,
            run_dir=run_dir,
            resume=resume,
        )

    def save(self, directory: str | Path) -> None:
        """Write weights and fortify options to ``directory``; the architecture stays the user's code."""
        write_json(Path(directory) / "config.json", {"format": 1, "config": {"model": self.config}})
        save_tensors(Path(directory) / "model.safetensors", self.state_dict())

    @classmethod
    def load(cls, directory: str | Path, *, model: nn.Module) -> "FortifiedNetwork":
        """Rebuild a network that :meth:`save` or a training run wrote, around ``model``, freshly built and unfortified.

        It is in eval mode. Of a run that kept its best epoch it is that one.

        Raises:
            FileNotFoundError: nothing there.
            ValueError: truncated files, not a fortified network, or another architecture (differing tensors named).
        """
        from robustgen.training import best_checkpoint, latest_checkpoint

        directory = best_checkpoint(directory) or latest_checkpoint(directory) or Path(directory)
        path = directory / "config.json"
        if not path.is_file():
            raise FileNotFoundError(f"{directory}: no fortified network here")
        config = read_json(path, {"config?": dict}).get("config", {}).get("model")
        if not isinstance(config, dict) or not {"layers", "input", "options"} <= config.keys():
            raise ValueError(f"{directory} does not hold a fortified network")
        check_structure(config, _CONFIG, path, "config.model")
        model = uncompiled(model)
        known = dict(model.named_modules(remove_duplicate=False))
        missing = [spec["name"] for spec in config["layers"] if spec["name"] not in known]
        if missing:
            raise ValueError(f"{directory} fortifies layers that this model lacks: {', '.join(missing)}")
        weights = directory / "model.safetensors"
        tensors = load_tensors(weights)
        own = {k: v for k, v in tensors.items() if not k.startswith("backbone.")}
        rebuild(lambda: _Layers(config), own, settings=path, weights=weights)
        net = cls(copying.deepcopy(model), config)
        load_state(net, tensors, directory)
        return net.eval()


def _without_nested_tensors(backbone: nn.Module) -> list[str]:
    """Keep transformers from leaving out padding, which they do where no state has a gradient, and autoencoders may
    bring one; the names of those that did.
    """
    found = [(name, m) for name, m in backbone.named_modules() if isinstance(m, nn.TransformerEncoder)]
    nested = [name for name, m in found if m.use_nested_tensor]
    for name in nested:
        backbone.get_submodule(name).use_nested_tensor = False
    return nested


class _Layers(nn.Module):
    """The layers of a fortified network without the network."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.fortified_layers = nn.ModuleList(_build_layer(spec, config["options"]) for spec in config["layers"])
        self.input_layer = None if config["input"] is None else _build_layer(config["input"], config["options"])


def _named(entries: list[tuple[FortifiedLayer, Tensor, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    """The record by name: ``layer``, and ``layer#2``, ... for further calls of the same one."""
    states: dict[str, tuple[Tensor, Tensor]] = {}
    calls: dict[str, int] = {}
    for layer, state, decoded in entries:
        k = calls[layer.name] = calls.get(layer.name, 0) + 1
        states[layer.name if k == 1 else f"{layer.name}#{k}"] = (state, decoded)
    return states


def _build_layer(spec: dict[str, Any], options: dict[str, Any]) -> FortifiedLayer:
    if spec["hidden"] is None:
        return FortifiedLayer(spec["name"], None, spec["batch_dim"])
    start = {name: spec[name] for name in ("init", "nonnegative") if name in spec}
    try:
        autoencoder = _KINDS[spec["kind"]](spec["features"], spec["hidden"], **options, **start)
    except ValueError as error:
        raise ValueError(f"layer {spec['name']!r}: {error}") from None
    return FortifiedLayer(spec["name"], autoencoder, spec["batch_dim"])
