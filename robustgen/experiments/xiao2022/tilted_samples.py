"""Tables 4.1, 4.2 and 4.6 in shape: samples of models, of their tilts, and of what else an energy can do."""

from robustgen.experiments.experiment import Row
from robustgen.experiments.xiao2022.quality import TRAINING_IMAGES
from robustgen.experiments.xiao2022.recipes import XIAO_2022
from robustgen.experiments.xiao2022.samples import SampleTable

__all__ = ["EXPERIMENT"]

_PUBLISHED = {  # FID on MNIST and Fashion-MNIST, Tables 4.1 and 4.2
    "tilt-base": (18.9, 57.1),
    "tilted": (16.0, 38.1),
    "glow": (29.4, 58.7),
    "tilted-glow": (12.3, 41.6),
}
_TITLES = {
    "tilt-base": "VAE",
    "tilted": "VAE, tilted",
    "tilted-adjusted": "VAE, tilted, chains adjusted and kept",
    "tilted-kl": "VAE, tilted, whose decoder learns from the energy",
    "tilted-wgan": "WGAN with the VAE's decoder",
    "tilted-image": "energy of images, chains from the VAE",
    "tilted-pair": "tilted, one step size for images and latents",
    "ebm": "energy of images, persistent chains",
    "glow": "Glow",
    "tilted-glow": "Glow, tilted",
}


class _Table(SampleTable):
    name = "xiao-2022/tilted-samples"
    title = "samples of a VAE, of a flow and of their tilts (Tables 4.1, 4.2 and 4.6)"
    question = "What does an energy on top of a VAE do to its samples, and where must its chains run?"
    finding = (
        "Frechet distance in our features, on MNIST and Fashion-MNIST: VAE {tilt-base|mnist-frechet}, "
        "{tilt-base|fashion-mnist-frechet}; tilted {tilted|mnist-frechet}, {tilted|fashion-mnist-frechet}, with chains "
        "that are adjusted and kept {tilted-adjusted|mnist-frechet}, {tilted-adjusted|fashion-mnist-frechet}; the same "
        "energy of images alone, chains from the VAE {tilted-image|mnist-frechet}, "
        "{tilted-image|fashion-mnist-frechet}. Glow on MNIST {glow|mnist-frechet}, tilted {tilted-glow|mnist-frechet}."
    )
    source = f"{XIAO_2022}, Tables 4.1, 4.2 and 4.6"
    seeds = 1
    rows = (
        *(
            Row(
                key=key,
                title=title,
                published=dict(zip(("mnist-frechet", "fashion-mnist-frechet"), _PUBLISHED.get(key, ()), strict=False)),
            )
            for key, title in _TITLES.items()
        ),
        Row(key=TRAINING_IMAGES, title="training images", note="what perfect samples would get"),
    )
    order = (
        ("tilted", "tilt-base"),
        ("tilted-adjusted", "tilted"),
        ("tilted", "tilted-image"),
        ("tilted", "tilted-kl"),
        ("tilted", "tilted-pair"),
    )
    notes = (
        "Published: FIDs of other networks, of another metric. Table 4.6 has its ablations on CIFAR-10 alone: EBM on x "
        "48.9, its chains from the base 29.3, WGAN 20.4, tilted with the generator's KL 14.0, tilted 13.0, base 56.0.",
        "Energies of data and chains part in these trainings (see `overlap` in the cells), held by the regularisation "
        "alone: f tells data from what the VAE draws, it is no log density.",
        "The energy is a network of 8 channels with chains of 15 steps in training at scale `cpu`, far smaller than "
        "the source's. Samples of the VAE and of its tilts in its noise are expected images.",
    )


EXPERIMENT = _Table()
