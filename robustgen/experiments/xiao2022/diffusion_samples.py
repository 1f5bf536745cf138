"""Tables 6.1 and 6.2 in shape: samples of diffusion models in many steps, in few, and in few by a GAN."""

from robustgen.experiments.experiment import Row
from robustgen.experiments.xiao2022.quality import TRAINING_IMAGES
from robustgen.experiments.xiao2022.recipes import XIAO_2022
from robustgen.experiments.xiao2022.samples import SampleTable

__all__ = ["EXPERIMENT"]

_TITLES = {
    "ddpm-all": "DDPM, 1000 steps",
    "ddpm": "DDPM, 100 of its steps",
    "ddpm-half": "DDPM, 50 of its steps",
    "ddim": "DDPM, 50 of its steps without noise (DDIM)",
    "ddgan-1": "DDGAN of 1 step",
    "ddgan-2": "DDGAN of 2 steps",
    "ddgan-4": "DDGAN of 4 steps",
    "ddgan-8": "DDGAN of 8 steps",
    "ddgan-one-shot": "GAN behind the noise of a diffusion",
    "ddgan-direct": "DDGAN of 4 steps that makes the next image itself",
    "ddgan-noise": "DDGAN of 4 steps that predicts noise",
    "ddgan-no-latent": "DDGAN of 4 steps without latents",
    "vae": "VAE",
}
_ORDER = (  # of CIFAR-10 in the source
    ("ddgan-4", "ddgan-1"),
    ("ddgan-4", "ddgan-8"),
    ("ddgan-4", "ddgan-one-shot"),
    ("ddgan-4", "ddgan-direct"),
    ("ddgan-4", "ddgan-noise"),
    ("ddgan-4", "ddgan-no-latent"),
    ("ddpm-all", "ddgan-4"),
    ("ddpm-all", "ddim"),
)


class _Table(SampleTable):
    name = "xiao-2022/diffusion-samples"
    title = "samples of diffusion models and of denoising diffusion GANs (Tables 6.1 and 6.2)"
    question = "Do a few large steps of a conditional GAN give the samples of a thousand small ones?"
    finding = (
        "Frechet distance in our features, on MNIST: DDPM in 100 steps {ddpm|mnist-frechet}, in 50 "
        "{ddpm-half|mnist-frechet}, by DDIM {ddim|mnist-frechet}; DDGAN of 4 steps {ddgan-4|mnist-frechet}; VAE "
        "{vae|mnist-frechet}; training images {training|mnist-frechet}."
    )
    source = f"{XIAO_2022}, Tables 6.1 and 6.2"
    seeds = 1
    rows = (
        *(Row(key=key, title=title) for key, title in _TITLES.items()),
        Row(key=TRAINING_IMAGES, title="training images", note="what perfect samples would get"),
    )
    order = _ORDER
    notes = (
        "The source has CIFAR-10 and FID, of far larger networks: DDPM 3.21, DDIM of 50 steps 4.67, DDGAN of 1, 2, 4, "
        "8 steps 14.6, 4.08, 3.75, 4.36; behind noise 13.2, direct 6.03, of noise 8.04, without latents 20.6.",
        "Learning rates of DDGANs were chosen for four steps, by trials on MNIST with the seed of these cells.",
        "Calls of the network for a sample: 1000, 100, 50, 50, then one a step. Seconds are in the cells, of a "
        "machine on which other programs ran.",
    )


EXPERIMENT = _Table()
