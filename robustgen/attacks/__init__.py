"""Attacks: one attack, one file, one paper. See :class:`Attack` for what all of them promise."""

from robustgen.attacks.adapters import (
    FoolboxAttack,
    FoolboxMinimalNormAttack,
    TorchattacksAttack,
    TorchattacksMinimalNormAttack,
)
from robustgen.attacks.apgd import APGD
from robustgen.attacks.apgd_targeted import APGDT
from robustgen.attacks.at_eps import AtEps
from robustgen.attacks.autoattack import AutoAttack
from robustgen.attacks.base import Attack, AttackResult
from robustgen.attacks.bpda import bpda
from robustgen.attacks.carlini_wagner import CarliniWagner
from robustgen.attacks.ddn import DDN
from robustgen.attacks.deepfool import DeepFool
from robustgen.attacks.embedded_input import EmbeddedInput
from robustgen.attacks.engine import Engine
from robustgen.attacks.fab import FAB
from robustgen.attacks.fgsm import FGSM
from robustgen.attacks.fmn import FMN
from robustgen.attacks.hopskipjump import HopSkipJump
from robustgen.attacks.joint import JointAttack
from robustgen.attacks.kl_pgd import KLPGD
from robustgen.attacks.mifgsm import MIFGSM
from robustgen.attacks.noise import NoiseSearch
from robustgen.attacks.on_sphere import SpherePGD
from robustgen.attacks.pgd import PGD
from robustgen.attacks.random_start_fgsm import RandomStartFGSM
from robustgen.attacks.square import Square
from robustgen.attacks.transfer import TransferAttack

__all__ = [
    "APGD",
    "APGDT",
    "DDN",
    "FAB",
    "FGSM",
    "FMN",
    "KLPGD",
    "MIFGSM",
    "PGD",
    "AtEps",
    "Attack",
    "AttackResult",
    "AutoAttack",
    "CarliniWagner",
    "DeepFool",
    "EmbeddedInput",
    "Engine",
    "FoolboxAttack",
    "FoolboxMinimalNormAttack",
    "HopSkipJump",
    "JointAttack",
    "NoiseSearch",
    "RandomStartFGSM",
    "SpherePGD",
    "Square",
    "TorchattacksAttack",
    "TorchattacksMinimalNormAttack",
    "TransferAttack",
    "bpda",
]
