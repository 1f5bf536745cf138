"""Pages of the site that are drawn from the package and the project's own files, so that they cannot go stale.

A hook of MkDocs: API pages from each room's ``__all__``, tables of options from the command itself, and the project's
files that are pages too (SECURITY.md, CONTRIBUTING.md, CHANGELOG.md).
"""

import importlib
import inspect
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
ROOMS = ("fortified", "attacks", "detectors", "generative", "training", "evaluation", "data")
EVERYDAY = ("calibration", "fortify", "likelihood", "recipe", "seed", "suite")  # words of the glossary without tooltips
SHARED = {"security.md": "SECURITY.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The pages of docs/results go into the navigation, as many as there are."""
    folder = Path(config.docs_dir, "results")
    found = sorted(folder.rglob("*.md"), key=lambda path: (path.name != "index.md", path))
    for entry in config.nav or ():
        if isinstance(entry, dict) and "Results" in entry:
            entry["Results"] += [path.relative_to(config.docs_dir).as_posix() for path in found]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for room in ROOMS:
        files.append(File.generated(config, f"api/{room}.md", content=api_page(room)))
    for page, source in SHARED.items():
        files.append(File.generated(config, page, content=project_file(source, page)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Tables of options for ``<!-- options: COMMAND -->``, and the glossary's words as tooltips."""
    markdown = re.sub(r"<!-- options: (\S+) -->", lambda found: option_tables(found[1]), markdown)
    if page.file.src_uri.startswith(("api/", "results/")) or page.file.src_uri == "glossary.md":
        return markdown
    return (
        markdown
        + "\n\n"
        + "\n".join(f"*[{word}]: {meaning}" for word, meaning in glossary().items() if word not in EVERYDAY)
    )


def api_page(room: str) -> str:
    """One heading a public name, classes first."""
    module = importlib.import_module(f"robustgen.{room}")
    public = {name: getattr(module, name) for name in module.__all__}
    lines = [f"# robustgen.{room}", "", f"::: robustgen.{room}", "    options:"]
    lines += ["      show_root_heading: false", "      show_root_toc_entry: false", "      members: false", ""]
    rows, entries = [], []
    for name, value in sorted(public.items(), key=lambda item: (not inspect.isclass(item[1]), item[0].lower())):
        documented = inspect.isclass(value) or inspect.isroutine(value)
        summary = _summary(value) if documented else f"`{value!r}`"
        rows.append(
            f"| [`{name}`](#robustgen.{room}.{name}) | {summary} |" if documented else f"| `{name}` | {summary} |"
        )
        if documented:
            entries += [f"::: robustgen.{room}.{name}", ""]
    return "\n".join([*lines, "| name | what |", "|---|---|", *rows, "", *entries])


def _summary(value: Any) -> str:
    """The first sentence of a docstring, as a cell of a table."""
    from website.docstrings import markdown

    text = markdown(inspect.getdoc(value) or "").split("\n\n")[0].replace("\n", " ")
    return re.split(r"(?<=\.) ", text)[0].replace("|", "\\|")


def project_file(name: str, page: str) -> str:
    """A file of the project as a page: links to pages stay links, names of other files become code."""

    def link(found: re.Match[str]) -> str:
        text, target = found[1], found[2]
        if re.match(r"https?://|#", target):
            return found[0]
        path, _, anchor = target.partition("#")
        pages = {source: other for other, source in SHARED.items()}
        inside = path.removeprefix("docs/") if path.startswith("docs/") else pages.get(path)
        if inside is None:
            return text if text.startswith("`") else f"{text} (`{path}`)" if text != path else f"`{path}`"
        relative = posixpath.relpath(inside, posixpath.dirname(page) or ".")
        return f"[{text}]({relative}{'#' + anchor if anchor else ''})"

    return re.sub(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)", link, (ROOT / name).read_text())


def glossary() -> dict[str, str]:
    """Meanings by word, from the definition list of glossary.md."""
    text = (ROOT / "docs" / "glossary.md").read_text()
    found = re.findall(r"^(\S[^\n]*)\n:   ([^\n]+(?:\n    [^\n]+)*)", text, re.MULTILINE)
    return {word: re.sub(r"\[([^\]]+)\]\([^)]+\)|[`*]", r"\1", meaning).replace("\n", " ") for word, meaning in found}


def option_tables(name: str) -> str:
    """The options of a command, one table for each of the groups that its help has."""
    import typer

    from robustgen.cli import app

    root = typer.main.get_command(app)
    command = root.commands[name]  # type: ignore[attr-defined]
    context = command.make_context(name, [], resilient_parsing=True)
    groups: dict[str, list[str]] = {}
    for parameter in command.get_params(context):
        if getattr(parameter, "hidden", False) or "--help" in parameter.opts:
            continue
        argument = parameter.param_type_name == "argument"
        group = getattr(parameter, "rich_help_panel", None) or ("Arguments" if argument else "Options")
        names = (
            (parameter.metavar or parameter.name)
            if argument
            else " / ".join([*parameter.opts, *parameter.secondary_opts])
        )
        row = f"| `{names}` | {_cell(parameter.help or '')}{_default(parameter)} |"
        groups.setdefault(str(group), []).append(row)
    lines = [inspect.cleandoc(command.help or ""), ""]
    for group, rows in sorted(groups.items(), key=lambda item: (item[0] != "Arguments", item[0] == "Run")):
        title = [f"**{group}**", ""] if len(groups) > 1 else []
        lines += [*title, "| option | what |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def _default(parameter: Any) -> str:
    value = parameter.default
    if parameter.required:
        return " Required."
    if value is None or isinstance(value, bool) or value == () or "efault" in (parameter.help or ""):
        return ""
    return f" Default: `{value}`."


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
