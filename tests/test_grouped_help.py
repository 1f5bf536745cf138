"""The help of the long commands: every option under a heading that says what it is about, and examples that parse."""

import re
import shlex

import pytest
import typer

from robustgen.cli import app, main

LONG = {
    "train": ["Data", "Network", "Adversarial training", "Fortify", "Optimisation", "Generative models", "Run"],
    "attack": ["Data", "Network", "Attack", "Detector", "Run"],
    "score": ["Data", "Network", "Generative models", "Attack", "Detector", "Run"],
}


def shown(capsys, command):
    assert main([command, "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", LONG)
def test_every_option_is_under_its_heading(capsys, command):
    text = shown(capsys, command)
    headings = re.findall(r"^(\w[\w ]*):$", text, re.MULTILINE)
    assert [name for name in headings if name != "Arguments"] == LONG[command]
    parameters = typer.main.get_command(app).commands[command].params
    for parameter in parameters:
        if parameter.param_type_name == "option":
            assert parameter.rich_help_panel in LONG[command], parameter.name
            assert re.search(rf"^  {parameter.opts[0]}\b", text, re.MULTILINE), parameter.name


@pytest.mark.parametrize("command", LONG)
def test_its_examples_are_commands(capsys, command):
    examples = shown(capsys, command).partition("Examples:\n")[2].splitlines()
    assert len(examples) == 3
    for line in examples:
        words = shlex.split(line)
        assert words[:2] == ["robustgen", command]
        typer.main.get_command(app).commands[command].make_context(command, words[2:])  # raises on an unknown option
