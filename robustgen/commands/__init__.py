"""What ``robustgen train``, ``attack`` and ``score`` do; ``cli.py`` parses and prints."""

from robustgen.commands.attack import attack_network
from robustgen.commands.runs import DataSpec, FortifySpec, NetworkSpec
from robustgen.commands.score import compare_populations, open_detector, score_inputs, write_rows
from robustgen.commands.train import train_network, training_attack

__all__ = [
    "DataSpec",
    "FortifySpec",
    "NetworkSpec",
    "attack_network",
    "compare_populations",
    "open_detector",
    "score_inputs",
    "train_network",
    "training_attack",
    "write_rows",
]
