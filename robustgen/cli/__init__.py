"""The command ``robustgen``: parses, calls the library, prints. torch is imported only by what needs it."""

import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer

from robustgen import __version__
from robustgen.cli.attack import attack
from robustgen.cli.certify import certify
from robustgen.cli.options import refuse_empty
from robustgen.cli.quality import quality
from robustgen.cli.reproduce import demo, report, reproduce
from robustgen.cli.score import score
from robustgen.cli.terminal import GroupedCommand, complain, examples, say
from robustgen.cli.train import sample, train

__all__ = ["app", "main"]

app = typer.Typer(
    help="Generative models that guard networks: fortify, attack, and score inputs for distribution shift.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.command()(demo)
app.command(
    cls=GroupedCommand,
    epilog=examples(
        "train --data mnist --data-root data --adversarial fast --run runs/robust",
        "train --data digits --adversarial trades --fortify auto --detach-states --run runs/guarded",
        "train vae --data mnist --data-root data --set quantization=stochastic --run runs/vae",
        "train char-lm --data book.txt --run runs/book",
    ),
)(train)
app.command()(sample)
app.command(
    cls=GroupedCommand,
    epilog=examples(
        "attack --run example:digits",
        "attack --run runs/robust --data-root data --suite standard --limit 1000 --out runs/robust/attack",
        "attack --model torchvision:resnet18 --weights resnet18.pth --data photos/ --eps 8/255",
    ),
)(attack)
app.command(
    cls=GroupedCommand,
    epilog=examples(
        "train denoiser --data mnist --data-root data --epochs 3 --run runs/denoiser",
        "certify --run runs/plain --denoiser runs/denoiser --data-root data --sigma 0.5 --limit 200 --n 2000",
        "certify --run runs/robust --sigma 0.25 --sigma 0.5 --radius 0.25 --attack 50 --out runs/robust/certified",
    ),
)(certify)
app.command(
    cls=GroupedCommand,
    epilog=examples(
        "score --run example:digits --data digits --against noise --against pgd",
        "score --run runs/guarded --data photos/ --out scores.csv",
        "score --checkpoint runs/vae --detector input-complexity --data mnist --data-root data --out scores.csv",
    ),
)(score)
app.command(
    cls=GroupedCommand,
    epilog=examples(
        "quality --checkpoint runs/vae --data mnist --data-root data --out runs/vae/quality",
        "quality --checkpoint runs/gan --data photos/ --features runs/classifier --n 5000",
    ),
)(quality)
app.command()(reproduce)
app.command()(report)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        say(f"robustgen {__version__}")
        raise typer.Exit


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Exit codes: 0 done, 1 failed or stopped (Ctrl-C, SIGTERM, --max-minutes), 2 wrong use.

    Errors are one line.

    ``ROBUSTGEN_DEBUG=1`` in the environment shows the traceback instead.
    """
    with warnings.catch_warnings(), _stopped_by_sigterm():
        warnings.showwarning = lambda message, *_, **__: complain("warning", message)
        return _run(arguments)


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Inside, SIGTERM ends the command as Ctrl-C does. Not under torchrun, which stops who waits for a dead process."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        or os.environ.get("WORLD_SIZE", "1") != "1"
    ):
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _run(arguments: list[str] | None) -> int:
    interrupted = "interrupted; run it again, with --resume where the command has it, to go on from what it has written"
    try:
        refuse_empty(sys.argv[1:] if arguments is None else arguments)
        code = typer.main.get_command(app).main(args=arguments, standalone_mode=False, prog_name="robustgen")
        return _fail(1, interrupted) if code == 130 else 0  # how newer versions of typer report Ctrl-C
    except KeyboardInterrupt:
        return _fail(1, interrupted)
    except Exception as error:
        if type(error).__name__ == "Abort":  # how older ones do
            return _fail(1, interrupted)
        if os.environ.get("ROBUSTGEN_DEBUG"):
            raise
        if hasattr(error, "format_message"):  # the parser's own: wrong use
            return _fail(2, f"{error.format_message()} (see robustgen --help)")
        wrong_use = isinstance(error, ValueError | TypeError | FileNotFoundError)
        message = _naming_option(f"{error}", sys.argv[1:] if arguments is None else arguments)
        return _fail(2 if wrong_use else 1, message or type(error).__name__)


def _naming_option(message: str, arguments: Sequence[str]) -> str:
    """The message; one that begins with an argument's name begins with that of the option where the command has it."""
    command = getattr(typer.main.get_command(app), "commands", {}).get(arguments[0]) if arguments else None
    name, must, rest = message.partition(" must be ")
    options = {} if command is None or not must else {p.name: p.opts[0] for p in command.params}
    return f"{options[name]}{must}{rest}" if name in options else message


def _fail(code: int, message: str) -> int:
    complain("error", message)
    return code
