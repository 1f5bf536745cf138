"""Attacks: one attack, one file, one paper. See :class:`Attack` for what all of them promise."""

from robustgen.attacks.base import Attack, AttackResult
from robustgen.attacks.embedded_input import EmbeddedInput
from robustgen.attacks.fgsm import FGSM
from robustgen.attacks.noise import NoiseSearch
from robustgen.attacks.on_sphere import SpherePGD
from robustgen.attacks.pgd import PGD
from robustgen.attacks.transfer import TransferAttack

__all__ = ["FGSM", "PGD", "Attack", "AttackResult", "EmbeddedInput", "NoiseSearch", "SpherePGD", "TransferAttack"]
