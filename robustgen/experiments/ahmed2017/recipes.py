"""How each model is trained, at each scale.

At scale `full` sizes are those of the source or, where it leaves them open, near those of its authors' public code: the
convolutional encoder and decoder with 32 maps, twelve gated layers of 32 maps, Adam at 1e-3 with the weight of the KL
raised over the first 10,000 updates, a DCGAN of 64 maps. Epochs, batch sizes and the schedule of the learning rate are
ours throughout, as is everything about models that the source does not have. Scale `cpu` is what a few hours of two
cores allow for all tables; PixelVAE's weight of the KL rises nearly to the end there, or its latents stay unused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["COLOUR", "MNIST", "Averaged", "Perceiving", "Recipe", "Redrawn", "Tilting"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A model and its training.

    Attributes:
        model: class in :mod:`robustgen.generative`, or a network of ``trained_models.NETWORKS``: "convnet", a
            classifier; "deformed", a classifier of deformed images; "contrastive", an encoder of them.
        options: of its constructor; a ``kl_warmup`` or ``first_steps`` below 1 is a share of all updates.
        epochs, batch_size: of the training.
        annealed: whether the learning rate falls to zero; adversarial models keep theirs.
        keep: epochs whose model is kept besides the last, for ensembles.
        mutated: share of the pixels that are replaced by random ones, for background models.
    """

    model: str
    epochs: int
    options: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 100
    annealed: bool = True
    keep: tuple[int, ...] = ()
    mutated: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Perceiving(Recipe):
    """A model that compares what a classifier makes of images, that of the recipe called ``perceives``."""

    perceives: str


@dataclass(frozen=True, kw_only=True)
class Tilting(Recipe):
    """A model that begins with a trained one, that of the recipe called ``base``."""

    base: str


@dataclass(frozen=True, kw_only=True)
class Averaged(Recipe):
    """A model whose weights are averages of those of training, with the decay ``ema``."""

    ema: float


@dataclass(frozen=True, kw_only=True)
class Redrawn(Recipe):
    """The trained model of the recipe called ``trained``, whose samples are drawn by other ``options``."""

    trained: str


_BINARY = {"quantization": "stochastic"}  # Bernoulli(x), afresh in every training step
_LEVELS = {"levels": 2, **_BINARY}


_NAMES = (
    "vae",
    "iaf-vae",
    "pixelcnn",
    "pixelcnn-background",
    "pixelcnn-plain",
    "pixelvae",
    "pixelvae-bias",
    "pixelrnn",
    "pixelcnn++",
    "hierarchical-pixelvae",
    "dcgan",
    "lsgan",
    "wgan-gp",
    "ebm",
    "ebm-dsm",
    "classifier",
    "deformed",
    "contrastive",
)


def _mnist(
    *,
    vae: dict[str, Any],
    pixelcnn: dict[str, Any],
    pixelvae: dict[str, Any],
    hierarchy: dict[str, Any],
    gan: dict[str, Any],
    energy: dict[str, Any],
    convnet: dict[str, Any],
    encoder: dict[str, Any],
    epochs: dict[str, int],
    batch_size: int,
) -> dict[str, Recipe]:
    """The models of Tables 2.1 and 4.1 from the sizes of a few of them and the epochs of all."""
    last = epochs["pixelcnn"]
    keep = tuple(sorted({max(1, last // 3), max(1, 2 * last // 3), last}))
    made = {
        "vae": ("VAE", {**_BINARY, **vae}),
        "iaf-vae": ("IAFVAE", {**_BINARY, **vae}),
        "pixelcnn": ("GatedPixelCNN", {**_LEVELS, **pixelcnn}),
        "pixelcnn-background": ("GatedPixelCNN", {**_LEVELS, **pixelcnn}),
        "pixelcnn-plain": ("PixelCNN", {**_LEVELS, "width": pixelcnn["width"], "layers": pixelcnn["layers"]}),
        "pixelvae": ("PixelVAE", {**_LEVELS, **pixelvae}),
        "pixelvae-bias": ("PixelVAE", {**_LEVELS, **pixelvae, "conditioning": "bias"}),
        "pixelrnn": ("PixelRNN", {**_LEVELS, "variant": "row", "width": 16, "layers": pixelcnn["layers"]}),
        "pixelcnn++": ("PixelCNNPlusPlus", {"width": pixelcnn["width"], "blocks": 1}),
        "hierarchical-pixelvae": ("HierarchicalPixelVAE", {**_LEVELS, **hierarchy, "kl_warmup": pixelvae["kl_warmup"]}),
        "dcgan": ("DCGAN", gan),
        "lsgan": ("LSGAN", gan),
        "wgan-gp": ("WGANGP", gan),
        "ebm": ("EnergyModel", {"objective": "langevin", **energy}),
        "ebm-dsm": ("EnergyModel", {"objective": "dsm", "width": energy["width"]}),
        "classifier": ("convnet", convnet),
        "deformed": ("deformed", encoder),
        "contrastive": ("contrastive", encoder),
    }
    return {
        name: Recipe(
            model=model,
            options=options,
            epochs=epochs[name],
            batch_size=5 * batch_size if name == "contrastive" else batch_size,  # the others are what it contrasts with
            annealed=name not in ("dcgan", "lsgan", "wgan-gp", "ebm"),
            keep=keep if name == "pixelcnn" else (),
            mutated=0.2 if name == "pixelcnn-background" else 0.0,
        )
        for name, (model, options) in made.items()
    }


MNIST: dict[str, dict[str, Recipe]] = {
    "smoke": _mnist(
        vae={"architecture": "mlp", "width": 32, "latent_dim": 4},
        pixelcnn={"width": 4, "layers": 1, "kernel_size": 3},
        pixelvae={"width": 4, "latent_dim": 4, "layers": 1, "first_kernel_size": 3, "kl_warmup": 0},
        hierarchy={"width": 4, "layers": 1, "prior_layers": 1, "latent_channels": 2, "top_latent_dim": 4},
        gan={"width": 4, "latent_dim": 4},
        energy={"width": 4, "steps": 2, "buffer_size": 64},
        convnet={"width": 4},
        encoder={"width": 4},
        epochs=dict.fromkeys(_NAMES, 3),
        batch_size=50,
    ),
    "cpu": _mnist(
        vae={"width": 16, "latent_dim": 32, "kl_warmup": 300},
        pixelcnn={"width": 16, "layers": 4, "kernel_size": 3},
        pixelvae={"width": 16, "latent_dim": 16, "layers": 2, "kernel_size": 3, "kl_warmup": 0.9},
        hierarchy={"width": 16, "layers": 2, "prior_layers": 2, "latent_channels": 4, "top_latent_dim": 16},
        gan={"width": 16, "latent_dim": 64},
        energy={"width": 16, "steps": 20, "buffer_size": 2000},
        convnet={"width": 16},
        encoder={"width": 16},
        epochs={
            "vae": 12,
            "iaf-vae": 12,
            "pixelcnn": 4,
            "pixelcnn-background": 3,
            "pixelcnn-plain": 4,
            "pixelvae": 5,
            "pixelvae-bias": 5,
            "pixelrnn": 3,
            "pixelcnn++": 3,
            "hierarchical-pixelvae": 4,
            "dcgan": 15,
            "lsgan": 15,
            "wgan-gp": 10,
            "ebm": 3,
            "ebm-dsm": 6,
            "classifier": 6,
            "deformed": 8,
            "contrastive": 10,
        },
        batch_size=100,
    ),
    "full": _mnist(
        vae={"width": 32, "latent_dim": 64, "kl_warmup": 10_000},
        pixelcnn={"width": 32, "layers": 12, "kernel_size": 5},
        pixelvae={"width": 32, "latent_dim": 16, "layers": 12, "kernel_size": 5, "kl_warmup": 10_000},
        hierarchy={"width": 64},
        gan={"width": 64, "latent_dim": 128},
        energy={"width": 64, "steps": 60, "buffer_size": 10_000},
        convnet={"width": 64},
        encoder={"width": 32},
        epochs={
            **dict.fromkeys(_NAMES, 200),
            "dcgan": 100,
            "lsgan": 100,
            "wgan-gp": 100,
            "ebm": 100,
            "ebm-dsm": 100,
            "classifier": 30,
            "deformed": 30,
            "contrastive": 100,
        },
        batch_size=100,
    ),
}


def _colour(
    width: int, latent_dim: int, blocks: int, layers: int, gan: int, epochs: dict[str, int]
) -> dict[str, Recipe]:
    """The models of Table 4.2, of 8-bit pixels."""
    made: dict[str, tuple[str, dict[str, Any]]] = {
        "iaf-vae": ("IAFVAE", {"likelihood": "discretized_logistic", "width": 2 * width, "latent_dim": latent_dim}),
        "pixelcnn++": ("PixelCNNPlusPlus", {"width": width, "blocks": blocks, "dropout": 0.0 if blocks == 1 else 0.5}),
        "pixelvae": ("PixelVAE", {"levels": 256, "width": width, "latent_dim": latent_dim, "layers": layers}),
        "dcgan": ("DCGAN", {"width": gan, "latent_dim": 128}),
    }
    return {
        name: Recipe(model=model, options=options, epochs=epochs[name], batch_size=50, annealed=name != "dcgan")
        for name, (model, options) in made.items()
    }


COLOUR: dict[str, dict[str, Recipe]] = {
    "smoke": _colour(6, 4, 1, 1, 4, dict.fromkeys(("iaf-vae", "pixelcnn++", "pixelvae", "dcgan"), 2)),
    "cpu": _colour(24, 64, 1, 2, 32, {"iaf-vae": 12, "pixelcnn++": 5, "pixelvae": 4, "dcgan": 12}),
    "full": _colour(160, 512, 5, 3, 128, {"iaf-vae": 50, "pixelcnn++": 200, "pixelvae": 100, "dcgan": 100}),
}
