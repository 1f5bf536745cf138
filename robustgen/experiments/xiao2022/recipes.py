"""How each model is trained, at each scale.

At scale `full` as in the source: the autoencoder of its table 3.6 with 64 channels, codes of 20 numbers, flows of four
couplings, 100 epochs. Scale `cpu` has 16 channels, fewer images, a sixteenth of the training steps, and flows of images
that fit an hour. So few steps leave GLF's flow behind its codes at the source's rate of 1e-3: it has 5e-3 there.
"""

from typing import Any

from robustgen.experiments.ahmed2017.recipes import Averaged, Perceiving, Recipe, Redrawn, Tilting

__all__ = ["BETAS", "RECIPES", "XIAO_2022", "weighed"]

XIAO_2022 = 'Xiao, "Designing Deep Generative Models with Symbiotic Composition", 2022'
BETAS = (1, 10, 50, 100, 400)


def weighed(kind: str, beta: int) -> str:
    """The recipe of "vae", "flow-prior" or "regularised" whose reconstruction has the weight beta."""
    return f"{kind}-beta{beta}"


def _recipes(
    *,
    coder: dict[str, Any],
    flow_lr: float,
    studied: dict[str, Any],
    second_width: int,
    real_nvp: dict[str, Any],
    glow: dict[str, Any],
    pixelcnn: dict[str, Any],
    denoiser: dict[str, Any],
    classifier: dict[str, Any],
    tilt: dict[str, Any],
    tilt_epochs: int,
    glow_tilt: dict[str, Any],
    noise_free: dict[str, Any],
    equilibrium: dict[str, Any],
    ddpm: dict[str, Any],
    ddgan: dict[str, Any],
    diffusion_epochs: int,
    ddgan_epochs: int,
    ddgan_batch_size: int,
    epochs: int,
    studied_epochs: int,
    flow_epochs: int,
    pixelcnn_epochs: int,
    batch_size: int,
) -> dict[str, Recipe]:
    """All models from the sizes of a few of them.

    Args:
        coder: of Table 3.1, and of the VAE that is tilted; flow_lr: of the flow of its GLFs; studied: of the study of
            beta; tilt: of all energies that stand on that VAE; those of images alone have its width and chains.
        pixelcnn, denoiser: of PixelCNN++, and of what ScoreSDE follows, for likelihoods.
        glow_tilt: of the energy that stands on Glow, whose chains cost more.
        ddpm, ddgan: of the diffusion models; edm has the network of ddpm.
        diffusion_epochs, ddgan_epochs: of them; each part of a DDGAN has every other step.
        epochs: of autoencoders; the two stages of a two-stage VAE have as many each.
    """
    made: dict[str, tuple[str, dict[str, Any]]] = {
        "vae": ("VAE", {"likelihood": "gaussian", "scale": 1.0, **coder}),
        "wae-gan": ("WAE", {"penalty": "gan", **coder}),
        "two-stage": ("TwoStageVAE", {"second_width": second_width, "first_steps": 0.5, **coder}),
        "rae-gmm": ("RAE", coder),
        "flow-prior": ("FlowPriorVAE", {"beta": 1.0, **coder}),
        "flow-posterior": ("FlowPosteriorVAE", {"beta": 1.0, **coder}),
        "glf": ("GLF", {"flow_lr": flow_lr, **coder}),
    }
    found = {
        name: Recipe(
            model=model,
            options=options,
            epochs=epochs * (2 if name in ("two-stage", "wae-gan") else 1),  # half of the steps for each part
            batch_size=batch_size,
            annealed=name != "wae-gan",
        )
        for name, (model, options) in made.items()
    }
    found["classifier"] = Recipe(model="convnet", options=classifier, epochs=2, batch_size=batch_size)
    found["glf-perceptual"] = Perceiving(
        model="GLF",
        options={"perceptual": ["1", "3", "5"], "flow_lr": flow_lr, **coder},
        epochs=epochs,
        batch_size=batch_size,
        perceives="classifier",
    )
    for beta in BETAS:
        studies: dict[str, tuple[str, dict[str, Any]]] = {
            "vae": ("VAE", {"likelihood": "gaussian", "scale": beta**-0.5, **studied}),
            "flow-prior": ("FlowPriorVAE", {"beta": float(beta), **studied}),
            "regularised": ("GLF", {"stop_gradient": False, "beta": float(beta), **studied}),
        }
        for kind, (model, options) in studies.items():
            found[weighed(kind, beta)] = Recipe(
                model=model, options=options, epochs=studied_epochs, batch_size=batch_size
            )
    found["glf-studied"] = Recipe(model="GLF", options=studied, epochs=studied_epochs, batch_size=batch_size)
    found["real-nvp"] = Recipe(model="RealNVP", options=real_nvp, epochs=flow_epochs, batch_size=batch_size)
    found["glow"] = Recipe(model="Glow", options=glow, epochs=flow_epochs, batch_size=batch_size)
    found["tilt-base"] = Recipe(
        model="VAE", options={"likelihood": "gaussian", **coder}, epochs=epochs, batch_size=batch_size
    )
    tilts: dict[str, dict[str, Any]] = {
        "tilted": tilt,
        "tilted-adjusted": tilt | {"adjusted": True, "persistent": 0.95, "warm_up": 200, "step_size": 0.02},
        "tilted-image": tilt | {"space": "image", "step_size": 5e-5},
        "tilted-pair": tilt | {"space": "pair", "step_size": 5e-5},
        "tilted-kl": tilt | {"base_lr": 1e-5},
        "tilted-wgan": tilt | {"steps": 0, "base_lr": 1e-5},
    }
    for name, options in tilts.items():
        found[name] = Tilting(
            model="Tilted", options=options, epochs=tilt_epochs, batch_size=batch_size, annealed=False, base="tilt-base"
        )
    found["tilted-glow"] = Tilting(
        model="Tilted", options=glow_tilt, epochs=tilt_epochs, batch_size=batch_size, annealed=False, base="glow"
    )
    found["ddpm"] = Averaged(model="DDPM", options=ddpm, epochs=diffusion_epochs, batch_size=batch_size, ema=0.995)
    variants: dict[str, dict[str, Any]] = {
        **{str(steps): {"steps": steps} for steps in (1, 2, 4, 8)},
        "one-shot": {"one_shot": True},
        "direct": {"prediction": "previous"},
        "noise": {"prediction": "noise"},
        "no-latent": {"latent_dim": 0},
    }
    for name, options in variants.items():
        found[f"ddgan-{name}"] = Averaged(
            model="DDGAN", options=ddgan | options, epochs=ddgan_epochs, batch_size=ddgan_batch_size, ema=0.998
        )
    for name, redrawn in {
        "ddpm-all": {"sample_steps": ddpm["steps"]},
        "ddpm-half": {"sample_steps": ddpm["sample_steps"] // 2},
        "ddpm-unclipped": {"sample_steps": ddpm["sample_steps"], "clip": False},  # where it clips, gradients are zero
        "ddim": {"sample_steps": ddpm["sample_steps"] // 2, "eta": 0.0},
    }.items():
        found[name] = Redrawn(model="DDPM", options=redrawn, epochs=0, trained="ddpm", batch_size=batch_size)
    for name, model, options in (
        ("ddpm-learned", "DDPM", ddpm | {"learned_variance": True}),
        ("denoiser", "Denoiser", denoiser),
    ):
        found[name] = Averaged(model=model, options=options, epochs=diffusion_epochs, batch_size=batch_size, ema=0.995)
    found["denoiser-uniform"] = Tilting(
        model="ScoreSDE",
        options={"dequantization": "uniform"},
        epochs=diffusion_epochs,
        batch_size=batch_size,
        base="denoiser",
    )
    found["pixelcnn++"] = Recipe(
        model="PixelCNNPlusPlus", options=pixelcnn, epochs=pixelcnn_epochs, batch_size=batch_size
    )
    chained = {"width": tilt["width"], "steps": tilt["steps"], "sample_steps": 20 * tilt["steps"]}
    energies: dict[str, tuple[str, dict[str, Any]]] = {
        "ebm": ("EnergyModel", chained),
        "jem": ("JEM", chained),
        "noise-free": ("NoiseFreeEBM", noise_free),
        "equilibrium": ("EquilibriumMatching", equilibrium),
    }
    for name, (model, options) in energies.items():
        found[name] = Recipe(
            model=model,
            options=options,
            epochs=tilt_epochs * (2 if name == "jem" else 1),  # labels are learned besides
            batch_size=batch_size,
            annealed=name in ("equilibrium", "noise-free"),  # at a constant rate chains leave the range of MNIST
        )
    return found


RECIPES: dict[str, dict[str, Recipe]] = {
    "smoke": _recipes(
        coder={"architecture": "mlp", "width": 16, "latent_dim": 4},
        flow_lr=1e-3,
        studied={"architecture": "mlp", "width": 16, "latent_dim": 4},
        second_width=16,
        real_nvp={"levels": 17, "scales": 1, "width": 8},
        glow={"levels": 17, "quantization": "nearest", "scales": 1, "flow_steps": 2, "width": 8},
        pixelcnn={"width": 4, "blocks": 1, "components": 2},
        denoiser={"sigma_min": 0.001, "sigma_max": 20.0, "width": 4, "levels": 2},
        classifier={"width": 4},
        tilt={"width": 4, "steps": 2, "sample_steps": 2},
        tilt_epochs=1,
        glow_tilt={"width": 4, "steps": 2, "sample_steps": 2},
        noise_free={"width": 4, "steps": 2, "time": 1.0},
        equilibrium={"width": 4, "levels": 2, "sample_steps": 5},
        ddpm={"steps": 20, "sample_steps": 10, "width": 4, "levels": 2, "patch": 1},
        ddgan={"width": 4, "levels": 2, "latent_dim": 4},
        diffusion_epochs=1,
        ddgan_epochs=2,
        ddgan_batch_size=50,
        epochs=2,
        studied_epochs=2,
        flow_epochs=1,
        pixelcnn_epochs=1,
        batch_size=50,
    ),
    "cpu": _recipes(
        coder={"architecture": "infogan", "width": 16, "latent_dim": 20},
        flow_lr=5e-3,
        studied={"architecture": "mlp", "width": 128, "latent_dim": 20},
        second_width=256,
        real_nvp={"width": 16},
        glow={"flow_steps": 6, "width": 24},
        pixelcnn={"width": 14, "blocks": 1, "dropout": 0.0},
        denoiser={"sigma_min": 0.001, "sigma_max": 20.0, "width": 16, "levels": 3, "patch": 2},
        classifier={"width": 16},
        tilt={"width": 8, "steps": 15, "sample_steps": 30},
        tilt_epochs=4,
        glow_tilt={"width": 8, "steps": 5, "sample_steps": 30},
        noise_free={"width": 8, "steps": 8, "time": 1.0},
        equilibrium={"width": 8},
        ddpm={
            "steps": 1000,
            "schedule": "cosine",
            "prediction": "velocity",
            "sample_steps": 100,
            "width": 16,
            "levels": 3,
            "patch": 2,
        },
        ddgan={"width": 12, "levels": 3, "patch": 2},
        diffusion_epochs=15,
        ddgan_epochs=40,
        ddgan_batch_size=50,
        epochs=8,
        studied_epochs=8,
        flow_epochs=4,
        pixelcnn_epochs=2,
        batch_size=100,
    ),
    "full": _recipes(
        coder={"architecture": "infogan", "width": 64, "latent_dim": 20},
        flow_lr=1e-3,
        studied={"architecture": "infogan", "width": 64, "latent_dim": 20},
        second_width=1024,
        real_nvp={"width": 64, "blocks": 4},
        glow={"flow_steps": 16, "width": 64},
        pixelcnn={"width": 64, "blocks": 3},
        denoiser={"sigma_min": 0.001, "sigma_max": 20.0, "width": 64, "levels": 3},
        classifier={"width": 64},
        tilt={"architecture": "residual", "width": 64, "steps": 60, "sample_steps": 100},
        tilt_epochs=128,
        glow_tilt={"architecture": "residual", "width": 64, "steps": 60, "sample_steps": 100},
        noise_free={"architecture": "residual", "width": 64, "time": 1.0},
        equilibrium={"width": 64},
        ddpm={"steps": 1000, "sample_steps": 100, "width": 64, "levels": 3, "patch": 1},
        ddgan={"width": 64, "levels": 3},
        diffusion_epochs=200,
        ddgan_epochs=400,
        ddgan_batch_size=256,
        epochs=100,
        studied_epochs=100,
        flow_epochs=128,
        pixelcnn_epochs=128,
        batch_size=256,
    ),
}
