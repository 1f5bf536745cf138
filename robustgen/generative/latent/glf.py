"""The generative latent flow: a deterministic autoencoder, and a flow that learns the density of its codes beside it.

Xiao, Yan and Amit, "Generative Latent Flow", 2019: both are trained in one loop, and the flow's gradient stops at the
codes. Xiao, "Designing Deep Generative Models with Symbiotic Composition", 2022, equations 3.5 (without the stop, the
regularised model) and 3.7, section 3.4.1 (activations of a frozen network compared in place of pixels).
"""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from robustgen.checks import check_flags, check_integers, check_positive
from robustgen.generative.latent.autoencoder import AutoEncoder, adam_with_decay
from robustgen.generative.latent.latent_flow import latent_density
from robustgen.layers import find_layer, first_tensor, uncompiled, watching
from robustgen.training import Batch

__all__ = ["GLF"]


class GLF(AutoEncoder):
    """z = E(x), trained for the reconstruction alone; eps = f(z) ~ N(0, I), trained for log p(z) alone.

    ``log_prob_kind`` is None: the model has no density of images. ``latent_log_prob`` is exact, of codes.

    Args:
        shape: (C, H, W).
        latent_dim: of z, at least 2.
        architecture, width: as in :class:`VAE`.
        flow_blocks, flow_width: affine couplings of the flow and hidden units of their networks.
        flow_lr: learning rate of the flow alone. In a short training 5e-3 gets it much further than the paper's 1e-3.
        stop_gradient: False is the regularised model: the flow's gradient reaches the encoder, which then gains
            likelihood by shrinking its codes. It is here to be looked at: log p(z) grows without bound.
        beta: weight of the reconstruction, half the squared error of an image; with the stopped gradient it only
            scales the gradients of the autoencoder, which Adam undoes.
        perceptual: names of layers of a classifier: the reconstruction is the sum over them of the mean absolute
            difference between the activations at x and at G(E(x)). The classifier itself is no part of the model nor
            of its files: hand it over before training, with :meth:`perceive`. None: squared error of pixels.

    Raises:
        ValueError: an argument out of range; in training, ``perceptual`` without a classifier.

    >>> import torch
    >>> glf, x = GLF((1, 8, 8), latent_dim=2, architecture="mlp", width=16).eval(), torch.rand(4, 1, 8, 8)
    >>> eps, log_det = glf.to_noise(x)
    >>> torch.allclose(glf.from_noise(eps), glf.reconstruct(x), atol=1e-5), glf.latent_log_prob(x).shape
    (True, torch.Size([4]))
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        latent_dim: int = 20,
        architecture: str = "infogan",
        width: int | None = None,
        flow_blocks: int = 4,
        flow_width: int = 64,
        flow_lr: float = 1e-3,
        stop_gradient: bool = True,
        beta: float = 1.0,
        perceptual: list[str] | None = None,
    ) -> None:
        super().__init__(shape, latent_dim, architecture, width)
        check_integers(flow_blocks=flow_blocks, flow_width=flow_width)
        check_flags(stop_gradient=stop_gradient)
        check_positive(beta=beta, flow_lr=flow_lr)
        if perceptual is not None and (
            not isinstance(perceptual, list) or not perceptual or not all(isinstance(name, str) for name in perceptual)
        ):
            raise ValueError(f"perceptual must be a list of at least one layer's name, got {perceptual!r}")
        self.flow_blocks, self.flow_width, self.flow_lr = flow_blocks, flow_width, flow_lr
        self.stop_gradient, self.beta, self.perceptual = stop_gradient, beta, perceptual
        self.flow = latent_density(latent_dim, flow_blocks, flow_width)
        self._classifier: tuple[nn.Module, ...] = ()  # in a tuple it is no part of this module

    def perceive(self, classifier: nn.Module) -> "GLF":
        """Take a frozen copy of the ``classifier`` whose ``perceptual`` layers are to be compared; it is not saved.

        Raises:
            TypeError: not an ``nn.Module``.
            ValueError: no such layer, or a model that compares pixels.
        """
        if not isinstance(classifier, nn.Module):
            raise TypeError(f"perceive needs an nn.Module, got {type(classifier).__name__}")
        if self.perceptual is None:
            raise ValueError("this GLF compares pixels: make it with perceptual=[names of layers]")
        network = copy.deepcopy(uncompiled(classifier)).eval().requires_grad_(False)
        for layer in self.perceptual:
            find_layer(network, layer)
        self._classifier = (network,)
        return self

    def _activations(self, x: Tensor) -> list[Tensor]:
        """Those of the ``perceptual`` layers, in the order of their calls."""
        if not self._classifier:
            raise ValueError(
                "perceptual compares activations of a classifier, which no file holds: hand it over in Python, "
                "glf.perceive(classifier), before training"
            )
        network = self._classifier[0].to(x.device)
        with watching({name: network.get_submodule(name) for name in self.perceptual or ()}) as calls:
            network(x)
        found = [state for call in calls if (state := first_tensor(call.output)) is not None]
        if not found:
            raise ValueError(f"the classifier calls none of the layers {', '.join(self.perceptual or ())}")
        return found

    def _reconstruction(self, x: Tensor, decoded: Tensor) -> Tensor:
        """What the autoencoder minimises, ()."""
        if self.perceptual is None:
            return self._squared_error(x, decoded).mean() / 2
        with torch.no_grad():
            wanted = self._activations(x)
        pairs = zip(wanted, self._activations(decoded), strict=True)
        return torch.stack([(a - b).abs().mean() for a, b in pairs]).sum()

    def _log_prior(self, z: Tensor) -> Tensor:
        return self.flow.log_prob(z).to(z.dtype)

    def prior_sample(self, noise: Tensor) -> Tensor:
        return self.flow.from_noise(noise)

    def to_noise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """eps = f(E(x)) (N, D) of images x (N, *shape), and log |det df/dz| (N,) of the flow alone.

        Raises as ``check`` does.
        """
        return self.flow.to_noise(self.encode(x))

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """beta times the reconstruction, and -log p(z) of the codes; the mean standard deviation of codes is logged."""
        z = self._encode(batch.x)
        reconstruction = self._reconstruction(batch.x, self.decode(z))
        nll = -self._log_prior(z.detach() if self.stop_gradient else z).mean()
        logged = {"reconstruction": reconstruction, "latent_nll": nll, "latent_std": z.std(0, correction=0).mean()}
        return {"loss": self.beta * reconstruction + nll} | {name: value.detach() for name, value in logged.items()}

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:  # type: ignore[override]
        """Adam, lr 1e-3, ``flow_lr`` for the flow, which alone has a weight decay, 2e-5 (Xiao, 2022, section 3.4)."""
        return adam_with_decay(parameters, self.flow, 2e-5, self.flow_lr)
