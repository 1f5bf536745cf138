"""``robustgen demo``, ``reproduce`` and ``report``."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from robustgen.cli.options import (
    DeviceOption,
    QuietOption,
    RootOption,
    SeedOption,
    command_line,
)
from robustgen.cli.terminal import say

__all__ = ["demo", "report", "reproduce"]


def demo(
    out: Annotated[Path, typer.Option("--out", help="Directory of report.json and report.html.")] = Path("demo-report"),
    seed: SeedOption = 0,
    smoke: Annotated[bool, typer.Option("--smoke", help="A few seconds of the same, to see that it runs.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Fortify, attack and score on scikit-learn's handwritten digits; no network access, under three minutes."""
    from robustgen.experiments.demo import SMOKE, Scale, run_demo

    run_demo(out, scale=SMOKE if smoke else Scale(), seed=seed, progress=not quiet, command=command_line())


def reproduce(
    experiment: Annotated[str | None, typer.Argument(help="Its name, as --list prints it.")] = None,
    list_: Annotated[
        bool, typer.Option("--list", help="Show all experiments, what is measured and what is not.")
    ] = False,
    data_root: RootOption = None,
    scale: Annotated[str, typer.Option("--scale", help="smoke (digits, seconds), cpu or full.")] = "cpu",
    seeds: Annotated[
        int | None, typer.Option("--seeds", help="How many; default: what the experiment asks for.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Where results are kept.")] = Path("results"),
    work: Annotated[
        Path, typer.Option("--work", help="Where trained networks are kept, for cells that share them.")
    ] = Path("runs/reproduce"),
    cell: Annotated[str | None, typer.Option("--cell", help="Only this one: row--column--seedN.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Measure a kept --cell again, from nothing, and compare.")
    ] = False,
    part: Annotated[str, typer.Option("--part", help="i/k: every k-th row from the i-th, to share the work.")] = "1/1",
    merge: Annotated[
        Path | None, typer.Option("--merge", help="Take the cells of this other results folder into --out.")
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option("--page", help="Draw the page of all results to this file, its details into docs/ beside it."),
    ] = None,
    device: DeviceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Measure a table or figure of the source theses: published numbers beside ours, cell by cell, resumable."""
    if merge is not None and experiment is None:
        raise ValueError("--merge needs an experiment")
    if experiment is None and not list_ and page is None:
        raise ValueError("name an experiment, or pass --list or --page")
    if check and (experiment is None or cell is None):
        raise ValueError("--check needs an experiment and its --cell")
    from robustgen.commands import reproduce as command
    from robustgen.experiments.pages import draw_list

    if experiment is not None and merge is not None:
        say(command.take_in(experiment, scale=scale, out=out, other=merge))
    elif experiment is not None:
        root = None if data_root is None else Path(data_root)
        if check:
            assert cell is not None
            with tempfile.TemporaryDirectory() as fresh:
                problems = command.check(
                    experiment,
                    cell,
                    scale=scale,
                    out=out,
                    work=Path(fresh),
                    data_root=root,
                    device=device,
                    progress=not quiet,
                    say=say,
                )
            if problems:
                raise RuntimeError("; ".join(problems))
            say(f"{cell}: every number comes out the same")
            return
        say(
            command.measure(
                experiment,
                scale=scale,
                out=out,
                work=work,
                data_root=root,
                seeds=seeds,
                cell=cell,
                part=part,
                device=device,
                progress=not quiet,
                command=command_line(),
                say=say,
            )
        )
    if page is not None:
        for path in command.draw(out, page):
            say(path)
    if list_:
        say(draw_list(out))


def report(
    path: Annotated[Path, typer.Argument(help="A report.json, or the directory that holds one.")],
    out: Annotated[Path | None, typer.Option("--out", help="Page to write; default: report.html beside it.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables instead.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Draw the page of a report.json, certification.json, random_defence.json or quality.json, or print its tables as
    Markdown."""
    from robustgen.evaluation.certification_page import (
        certification_html,
        certification_in,
        certification_markdown,
        load_certification,
    )
    from robustgen.evaluation.random_defence_page import (
        load_random_defence,
        random_defence_html,
        random_defence_in,
        random_defence_markdown,
    )
    from robustgen.evaluation.report import draw_html, draw_markdown, load_report
    from robustgen.evaluation.sample_quality_page import load_quality, quality_html, quality_in, quality_markdown
    from robustgen.files import write_bytes

    certificates, quality = certification_in(path), quality_in(path)
    html: Callable[[dict[str, Any]], str] = draw_html
    text: Callable[[dict[str, Any]], str] = draw_markdown
    if certificates is not None:
        found = load_certification(certificates)
        html, text, beside = certification_html, certification_markdown, certificates.with_suffix(".html")
    elif (ledger := random_defence_in(path)) is not None:
        found = load_random_defence(ledger)
        html, text, beside = random_defence_html, random_defence_markdown, ledger.with_suffix(".html")
    elif quality is not None:
        found = load_quality(quality)
        html, text, beside = quality_html, quality_markdown, quality.with_suffix(".html")
    else:
        found = load_report(path)
        beside = (path if path.is_dir() else path.parent) / "report.html"
    if markdown:
        say(text(found))
        return
    page = beside if out is None else out
    write_bytes(page, html(found).encode())
    say(page)
