"""What ``robustgen train``, ``attack`` and ``score`` do; ``cli.py`` parses and prints."""

from robustgen.commands.attack import attack_network, naming_options, resumed_options
from robustgen.commands.certify import certify_network
from robustgen.commands.data_spec import DataSpec
from robustgen.commands.generative import (
    generative_detector,
    sample_images,
    train_generative,
    training_data,
)
from robustgen.commands.network_spec import FortifySpec, NetworkSpec
from robustgen.commands.purify import attack_purified
from robustgen.commands.quality import measure_quality
from robustgen.commands.runs import kept_by_run, remembered_options
from robustgen.commands.score import MADE, check_way, compare_populations, open_detector
from robustgen.commands.scoring import Scoring, Unreadable, score_inputs, write_rows
from robustgen.commands.settings import parse_options
from robustgen.commands.text import sample_text, score_text, train_text
from robustgen.commands.train import train_network

__all__ = [
    "MADE",
    "DataSpec",
    "FortifySpec",
    "NetworkSpec",
    "Scoring",
    "Unreadable",
    "attack_network",
    "attack_purified",
    "certify_network",
    "check_way",
    "compare_populations",
    "generative_detector",
    "kept_by_run",
    "measure_quality",
    "naming_options",
    "open_detector",
    "parse_options",
    "remembered_options",
    "resumed_options",
    "sample_images",
    "sample_text",
    "score_inputs",
    "score_text",
    "train_generative",
    "train_network",
    "train_text",
    "training_data",
    "write_rows",
]
