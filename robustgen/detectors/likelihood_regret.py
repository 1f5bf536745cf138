"""How much better the decoder could do for an input than the encoder lets it.

Xiao, Yan and Amit, "Likelihood Regret: An Out-of-Distribution Detection Score for Variational Auto-encoder", NeurIPS
2020, equations 5 and 6, in the form that optimises the posterior's parameters rather than the encoder's weights.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustgen.checks import check_integers, check_numbers, check_positive
from robustgen.detectors.base import Detector
from robustgen.progress import track

if TYPE_CHECKING:
    from robustgen.generative.latent.base import LatentVariableModel

__all__ = ["LikelihoodRegret"]


class LikelihoodRegret(Detector):
    """score(x) = max over q of ELBO(x; q) - ELBO(x; q(z | x)), in nats, >= 0, over diagonal Gaussians q.

    The posteriors of a whole batch are optimised at once with Adam, from the encoder's: it moves each coordinate by
    itself, so that no image sees another. The expectation over z is that of a few draws, the same at every step; the
    best q met is kept for each image. Nothing is learned in ``fit``.

    The gradient in x is that at a fixed best q (the envelope theorem: exact where the optimum was reached).

    Args:
        model: a latent-variable model, with ``encode`` and ``elbo_of``.
        steps: of Adam.
        lr: its step size, in units of the latents.
        samples: draws of z for each ELBO; with few of them q fits the draws.
        batch_size: inputs scored at once.

    Raises:
        TypeError: a model without latent variables.
        ValueError: an argument out of range.

    >>> import torch
    >>> from robustgen.generative import VAE
    >>> vae, x = VAE((1, 8, 8), architecture="mlp", width=8).eval(), torch.eye(8).expand(4, 1, 8, 8)
    >>> bool((LikelihoodRegret(vae, steps=5).fit(x).score(x) >= 0).all())
    True
    """

    def __init__(
        self,
        model: "LatentVariableModel",
        steps: int = 50,
        lr: float = 0.05,
        samples: int = 1,
        *,
        batch_size: int = 256,
    ) -> None:
        super().__init__(model, batch_size)
        if not callable(getattr(model, "elbo_of", None)):
            raise TypeError(f"LikelihoodRegret needs a model with latent variables, {type(model).__name__} has none")
        check_integers(steps=steps, samples=samples)
        check_numbers(lr=lr)
        check_positive(lr=lr)
        self.steps, self.lr, self.samples = steps, lr, samples

    def _elbo(self, x: Tensor, mean: Tensor, log_std: Tensor, noise: Tensor) -> Tensor:
        return torch.stack([self.model.elbo_of(x, mean, log_std, draw) for draw in noise]).mean(0)  # (N,)

    def _best(self, x: Tensor, mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log std (N, D) of the best q that Adam meets on its way from the given one."""
        mean, log_std = mean.clone().requires_grad_(), log_std.clone().requires_grad_()
        adam = torch.optim.Adam([mean, log_std], lr=self.lr)
        best, best_elbo = (mean.detach().clone(), log_std.detach().clone()), x.new_full((len(x),), -torch.inf)
        for step in track(range(self.steps + 1), "likelihood regret of a batch"):
            elbo = self._elbo(x, mean, log_std, noise)
            better = (elbo.detach() > best_elbo)[:, None]
            best = (torch.where(better, mean.detach(), best[0]), torch.where(better, log_std.detach(), best[1]))
            best_elbo = torch.maximum(best_elbo, elbo.detach())
            if step < self.steps:
                adam.zero_grad()
                (-elbo.sum()).backward()
                adam.step()
        return best

    def _score(self, x: Tensor) -> Tensor:
        posterior, noise = self.model.encode(x), self.model.posterior_noise(x, self.samples)
        with torch.inference_mode(False), torch.enable_grad():
            given = (x, posterior.mean, posterior.log_std, noise)
            best = self._best(*(part.detach().clone() for part in given))  # clones: autograd refuses inference tensors
        return self._elbo(x, *best, noise) - self._elbo(x, posterior.mean, posterior.log_std, noise)
