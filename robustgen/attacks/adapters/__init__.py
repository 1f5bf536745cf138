"""Attacks of other libraries under the contract of ours, so that the same verdict and the same report judge them."""

from robustgen.attacks.adapters.foolbox import FoolboxAttack, FoolboxMinimalNormAttack
from robustgen.attacks.adapters.torchattacks import TorchattacksAttack, TorchattacksMinimalNormAttack

__all__ = ["FoolboxAttack", "FoolboxMinimalNormAttack", "TorchattacksAttack", "TorchattacksMinimalNormAttack"]
