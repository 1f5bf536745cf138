"""Attacks: one attack, one file, one paper. See :class:`Attack` for what all of them promise."""

from robustgen.attacks.adapters import (
    FoolboxAttack,
    FoolboxMinimalNormAttack,
    TorchattacksAttack,
    TorchattacksMinimalNormAttack,
)
from robustgen.attacks.apgd import APGD
from robustgen.attacks.apgd_targeted import APGDT
from robustgen.attacks.base import Attack, AttackResult
from robustgen.attacks.bpda import bpda
from robustgen.attacks.carlini_wagner import CarliniWagner
from robustgen.attacks.ddn import DDN
from robustgen.attacks.deepfool import DeepFool
from robustgen.attacks.embedded_input import EmbeddedInput
from robustgen.attacks.fgsm import FGSM
from robustgen.attacks.fmn import FMN
from robustgen.attacks.hopskipjump import HopSkipJump
from robustgen.attacks.mifgsm import MIFGSM
from robustgen.attacks.noise import NoiseSearch
from robustgen.attacks.on_sphere import SpherePGD
from robustgen.attacks.pgd import PGD
from robustgen.attacks.square import Square
from robustgen.attacks.transfer import TransferAttack

__all__ = [
    "APGD",
    "APGDT",
    "DDN",
    "FGSM",
    "FMN",
    "MIFGSM",
    "PGD",
    "Attack",
    "AttackResult",
    "CarliniWagner",
    "DeepFool",
    "EmbeddedInput",
    "FoolboxAttack",
    "FoolboxMinimalNormAttack",
    "HopSkipJump",
    "NoiseSearch",
    "SpherePGD",
    "Square",
    "TorchattacksAttack",
    "TorchattacksMinimalNormAttack",
    "TransferAttack",
    "bpda",
]
