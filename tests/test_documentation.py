"""README and the pages of docs/: their Python runs, their commands parse, the files that they name exist.

A block that the tests cannot run says so in its title, which the site shows: ``title="Not run by the tests: ..."``."""

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import typer

from robustgen import cli, data
from robustgen.cli import app, main
from robustgen.commands.opening import load_run, saved_detector
from robustgen.examples import EXAMPLES, run_directory
from robustgen.examples.__main__ import pack
from robustgen.training.recipes import find
from website.robust_accuracy import FIGURE, drawn, measured

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "guides").glob("*.md"))]
GROUP = typer.main.get_command(app)


def blocks(page, *languages):
    """(first line's number, code) of each fenced block in one of the languages that the tests run."""
    found = re.finditer(r"^( *)```(\w*)([^\n]*)\n(.*?)^\1```$", page.read_text(), re.DOTALL | re.MULTILINE)
    text = page.read_text()
    for block in found:
        indent, language, title, code = block.groups()
        if language in languages and "Not run by the tests" not in title:
            lines = [line.removeprefix(indent) for line in code.splitlines()]
            yield text[: block.start()].count("\n") + 2, "\n".join(lines) + "\n"


def commands(page):
    """The arguments of each line of a page's shell blocks that calls robustgen."""
    for _, code in blocks(page, "", "bash", "console"):
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "robustgen" in words[:1] or (words[:1] == ["torchrun"] and "robustgen" in words):
                yield words[words.index("robustgen") + 1 :]


def ident(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [page for page in PAGES if any(blocks(page, "python"))], ids=ident)
@pytest.mark.filterwarnings("default")
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {"__name__": ident(page)}
    for line, code in blocks(page, "python"):
        padding = "\n" * (line - 1)  # so that a traceback tells the page's own line
        exec(compile(padding + code, str(page), "exec"), scope)


@pytest.mark.parametrize("page", PAGES, ids=ident)
def test_commands_parse(page):
    for arguments in commands(page):
        if not arguments or arguments[0].startswith("-"):
            continue
        command = GROUP.commands[arguments[0]]
        try:
            with command.make_context(arguments[0], arguments[1:]) as context:
                assert context.params
        except Exception as error:  # raised by --list and the like, which print and leave
            if type(error).__name__ != "Exit":
                raise AssertionError(f"robustgen {shlex.join(arguments)}: {error}") from error


def test_every_command_has_its_options_on_the_page():
    drawn_there = re.findall(r"<!-- options: (\S+) -->", (ROOT / "docs" / "command.md").read_text())
    assert sorted(drawn_there) == sorted(GROUP.commands)


@pytest.mark.filterwarnings("default")
def test_commands_of_the_readme_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = 0
    for arguments in commands(README):
        if arguments[0] == "demo":
            continue  # has a test of its own
        options = {option for parameter in GROUP.commands[arguments[0]].params for option in parameter.opts}
        few = [part for part in ("--limit", "20") if "--limit" in options]
        assert main([*arguments, *few, *(["--quiet"] if "--quiet" in options else [])]) == 0, arguments
        ran += 1
    assert ran >= 3


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=ident)
def test_files_that_a_page_names_exist(page):
    text = page.read_text()
    paths = set(re.findall(r"`((?:results|benchmarks|robustgen|website)/[\w./-]*\w)", text))
    targets = {t.split("#")[0] for t in re.findall(r"\]\((?!https?:|#)([^)\s]+)\)", text)}
    drawn_from_the_project = {"security.md", "contributing.md", "changelog.md", "index.md", "README.md"}
    missing = [path for path in paths if not (ROOT / path).exists()]
    for target in targets:
        generated = "api/" in target or Path(target).name in drawn_from_the_project
        if not (page.parent / target).exists() and not (generated and page != README):
            missing.append(target)
    assert not missing


def test_the_figure_is_drawn_from_the_kept_results():
    assert FIGURE.read_text() == drawn(measured()), "python -m website.robust_accuracy draws it anew"


def test_numbers_of_recipes_are_the_kept_ones():
    rows = {row["recipe"]: row for row in measured()}
    found = re.findall(r"`([\w-]+)`[^\n`]*?([\d.]+) %", README.read_text())
    told = {recipe: value for recipe, value in found if recipe in rows}
    assert told == {name: f"{rows[name]['robust']:.1f}" for name in told}
    assert len(told) == 2
    table = (ROOT / "docs" / "measured.md").read_text()
    for name, row in rows.items():
        cells = [f"{name}, {row['threat']}", *(f"{row[key]:.1f}" for key in ("clean", "robust"))]
        cells += [f"{row['published'] or ''}", f"{max(1, round(row['core-minutes']))}"]
        drawn_row = next(line for line in table.splitlines() if line.startswith(f"| {name},"))
        assert [cell.strip(" *") for cell in drawn_row.strip("|").split("|")] == cells


def test_what_fortifying_costs_is_the_kept_measurement():
    rows = json.loads((ROOT / "results" / "benchmarks" / "identity_start.json").read_text())["rows"]
    page = (ROOT / "docs" / "measured.md").read_text()
    for init in ("identity", "random"):
        for name in ("mnist", "fashion-mnist"):
            chosen = [row for row in rows if (row["init"], row["data"]) == (init, name)]
            lost = [(row["epochs"], row["accuracy, bare"] - row["accuracy, fortified"]) for row in chosen]
            worst = [f"{max(points for e, points in lost if e == epochs):.2f}" for epochs in (0, 1, 5)]
            assert f"| {init} | {name} | {' | '.join(worst)} |" in page


def test_the_table_of_natural_images_is_the_kept_one():
    record = json.loads((ROOT / "results" / "benchmarks" / "natural_images.json").read_text())
    page = (ROOT / "docs" / "guides" / "score.md").read_text()
    lines = [line for line in page.splitlines() if re.match(r"\|[^|]*(\|[^|]*\d\.\d\d, \d\.\d\d[^|]*){4}\|", line)]
    assert len(lines) >= 8
    for line in lines:
        name, *told = (cell.strip(" `*") for cell in line.strip("|").split("|"))
        found = [row["AUROC"][name] for row in record["rows"]]
        assert told == [", ".join(f"{f[k]:.2f}" for f in found) for k in found[0]]


def test_names_of_the_library_that_a_page_gives_are_public():
    rooms = ("fortified", "attacks", "detectors", "generative", "training", "evaluation", "data", "networks")
    rooms += ("recurrent_networks",)
    public = {name for room in rooms for name in importlib.import_module(f"robustgen.{room}").__all__}
    for page in PAGES:
        if page.name in ("architecture.md", "README.md"):
            continue
        named = re.findall(r"`([A-Z][a-z0-9]+[A-Z]\w*|[A-Z]{3,}[A-Za-z]*)(?:\([^`]*\))?`", page.read_text())
        strangers = {name for name in named if name not in public} - {"MinimalNorm", "ROBUSTGEN_DEBUG", "MODEL"}
        assert not strangers, f"{ident(page)}: {strangers}"


def test_what_a_page_loads_is_told_from_what_it_links_to():
    pytest.importorskip("mkdocs")
    from website.self_contained import loaded_from_elsewhere

    page = '<a href="https://a.org"></a><link rel="next" href="https://b.org"><img src="x.png">'
    assert loaded_from_elsewhere(page) == []
    page += '<link rel="stylesheet" href="//fonts.org/f.css"><script src="https://c.org/s.js"></script>'
    assert loaded_from_elsewhere(page) == ["//fonts.org/f.css", "https://c.org/s.js"]


def test_docstrings_become_markdown():
    pytest.importorskip("griffe")
    from website.docstrings import markdown

    text = "About :class:`~robustgen.data.Table`.\n\n    n: > 0\n\n>>> 1\n1\n\nReturns:\n    x: it"
    expected = "About `Table`.\n\n    n: \\> 0\n\n```pycon\n>>> 1\n1\n```\n\nReturns:\n    x: it"
    assert markdown(text) == expected


# The runs that come with the package: attacked and scored before anything is trained.


def run(capsys, *arguments):
    code = cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def path(name):
    from pathlib import Path

    return Path(f"example:{name}")


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_its_recipe_and_small(name):
    network, info = load_run(path(name))
    recipe = find(info["training"]["name"])
    assert recipe.record().items() <= info["training"].items()
    assert network(torch.rand(2, *recipe.shape)).shape == (2, 10)
    files = [file for file in run_directory(path(name)).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 4_000_000
    assert not any(str(part) in json.dumps(info) for part in ("/tmp", "/home", "/work", "..")), info["command"]


def test_all_together_are_under_five_megabytes():
    files = [f for name in EXAMPLES for f in run_directory(path(name)).rglob("*") if f.is_file()]
    assert sum(file.stat().st_size for file in files) < 5_000_000


def test_the_digits_are_robust_and_their_detector_keeps_its_rate(capsys):
    few = ["--data", "digits", "--quiet", "--json"]
    code, out, err = run(capsys, "attack", "--run", "example:digits", *few, "--eps", "0.15", "--suite", "quick")
    assert code == 0, err
    found = json.loads(out)
    assert found["clean_accuracy"]["value"] > 0.95
    assert found["worst_case_accuracy"]["value"] > 0.7
    network, _ = load_run(path("digits"))
    detector = saved_detector(path("digits"), network)
    x = data.digits("test").images()
    assert detector.flag(x, fpr=0.05).double().mean() < 0.1
    assert detector.flag(data.noise(50, (1, 8, 8), seed=0).images(), fpr=0.05).all()


def test_an_unknown_example_is_one_line(capsys):
    code, _, err = run(capsys, "attack", "--run", "example:digist", "--eps", "0.1")
    assert (code, "no example is called 'digist'; did you mean 'digits'" in err) == (2, True)


def test_what_is_packed_is_the_best_epoch(tmp_path, capsys):
    few = ["--data", "digits", "--limit", "120", "--width", "4", "--epochs", "4", "--quiet", "--adversarial", "fast"]
    assert run(capsys, "train", "--run", tmp_path / "run", *few, "--fortify", "auto")[0] == 0
    pack(tmp_path / "run", tmp_path / "packed")
    x = data.digits("test").images()[:50]
    one, two = (load_run(tmp_path / name) for name in ("run", "packed"))
    assert torch.equal(one[0](x), two[0](x))
    assert one[1] == two[1]
    scores = [saved_detector(tmp_path / n, net).score(x) for n, (net, _) in (("run", one), ("packed", two))]
    assert torch.equal(*scores)
