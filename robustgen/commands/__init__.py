"""What ``robustgen train``, ``attack`` and ``score`` do; ``cli.py`` parses and prints."""

from robustgen.commands.adversarial import adversarial_training
from robustgen.commands.attack import attack_network
from robustgen.commands.runs import DataSpec, FortifySpec, NetworkSpec
from robustgen.commands.score import compare_populations, open_detector, score_inputs, write_rows
from robustgen.commands.train import train_network

__all__ = [
    "DataSpec",
    "FortifySpec",
    "NetworkSpec",
    "adversarial_training",
    "attack_network",
    "compare_populations",
    "open_detector",
    "score_inputs",
    "train_network",
    "write_rows",
]
