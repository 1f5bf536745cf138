"""Purifiers that are not diffusion models: one paper, one file. See :func:`robustgen.purify`."""

from robustgen.fortified.purifiers.base import Chain, Purifier
from robustgen.fortified.purifiers.deep_image_prior import DeepImagePrior
from robustgen.fortified.purifiers.defense_gan import DefenseGAN
from robustgen.fortified.purifiers.langevin import LangevinChain
from robustgen.fortified.purifiers.projection import Projection

__all__ = ["Chain", "DeepImagePrior", "DefenseGAN", "LangevinChain", "Projection", "Purifier"]
