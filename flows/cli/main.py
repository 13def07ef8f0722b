"""The command line's root: options for all commands, and how errors become one sentence and an exit code."""

from __future__ import annotations

import importlib
import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

from flows.errors import FlowError
from flows.import_guard import check_import_names
from flows.process import tune_threads
from flows.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

app = typer.Typer(
    name="factsync",
    help="Keep the facts inside a language model in step with Wikidata.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]

FAMILIES = ("run", "look", "checkpoints", "operate", "curate", "ledger", "evaluate", "serve")
"""Modules of commands, in the order `--help` shows them. They load torch and Prefect only when they run."""

EXIT_CODES = """\
Exit codes: 0 done · 1 failed · 2 wrong input or settings · 3 a source or server could not be reached ·
4 another writer holds the model · 5 held back by a gate or guard · 130 Ctrl-C."""


def not_empty(then: str) -> Callable[[Any], Any]:
    """A check of a word, or of each word of a list, that a person may give: an empty one chooses nothing.

    A shell's unset variable is an empty word, and must not stand for the default.

    Args:
        then: what to write instead.
    """

    def check(given: Any) -> Any:  # noqa: ANN401 - a word, several, or None where none was given
        words = given if isinstance(given, list) else [] if given is None else [given]
        if not all(word.strip() for word in words):
            raise typer.BadParameter(f"it is empty; {then}")
        return given

    return check


def _folder(given: str) -> Path:
    if not given.strip():  # as a path, it would be whatever the command is run in
        raise typer.BadParameter("it is empty: name a folder.")
    return Path(given)


@app.callback(epilog=EXIT_CODES)
def root(
    context: typer.Context,
    home: Annotated[
        Path | None,
        typer.Option(
            parser=_folder, metavar="DIRECTORY", help="Folder that holds all state; also FACTSYNC_HOME."
        ),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what every step does.")] = False,
) -> None:
    """Keep the facts inside a language model in step with Wikidata."""
    handler = RichHandler(console=Console(stderr=True), show_path=False)
    if not verbose:
        handler.addFilter(_worth_a_look)
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(message)s", handlers=[handler]
    )
    check_import_names()
    tune_threads()
    context.obj = Settings.read(home)


INTERRUPTED = 130
"""The exit code of a command that Ctrl-C ended, as shells have it; typer makes it of a KeyboardInterrupt."""


def main() -> None:
    """Run a command; turn a named error into one sentence on stderr and a documented exit code."""
    try:
        for family in FAMILIES:
            importlib.import_module(f"flows.cli.{family}")
        app()
    except KeyboardInterrupt:
        _interrupted()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _interrupted()
        raise
    except Exception as error:
        code = exit_code(error)
        if code is None:
            raise
        log.info("Where it went wrong", exc_info=True)
        say(error)
        sys.exit(code)


def _interrupted() -> NoReturn:
    """Say what Ctrl-C leaves, and go; whoever presses it again need not wait for Prefect's server to end."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    said = "Interrupted. Nothing is lost: what was begun and not finished is settled by the next run."
    Console(stderr=True).print(said, highlight=False, soft_wrap=True)
    sys.exit(INTERRUPTED)


def _worth_a_look(record: logging.LogRecord) -> bool:
    """Whether a record belongs on the terminal: all but what Prefect says of an end that `main` tells itself.

    Prefect writes a traceback of each error for every task and flow that it passes. Its server still gets
    them, and `--verbose` shows them; those of errors that have no name here are shown always.
    """
    if not record.name.startswith("prefect."):
        return True
    if record.exc_info and record.exc_info[1] is not None:
        return exit_code(record.exc_info[1]) is None
    return not record.getMessage().startswith(("Crash detected!", "Finished in state"))


def exit_code(error: BaseException) -> int | None:
    """The documented exit code of a named error; None for anything else."""
    return error.exit_code if isinstance(error, FlowError) else package_exit_code(error)


def package_exit_code(error: BaseException) -> int | None:
    """The exit code of a named error of `kb`, `storage` or `editor`, or of one that input causes elsewhere.

    None for anything else. The packages are looked up by name in the error's own classes, so that a command
    which never loaded torch or Prefect does not load it to fail.
    """
    bases = {f"{base.__module__}.{base.__name__}" for base in type(error).__mro__}
    codes = {
        "storage.errors.LockHeldError": 4,
        "storage.errors.LedgerConnectionLostError": 3,
        "storage.errors.LedgerUrlError": 2,
        "storage.errors.UnknownCheckpointError": 2,
        "storage.errors.ConflictStandsError": 2,
        "storage.errors.QueryRefusedError": 2,
        "storage.errors.LedgerError": 1,
        "kb.errors.UnknownRelationError": 2,
        "kb.errors.TransientKBError": 3,
        "kb.errors.BannedError": 3,
        "kb.serving.StoreStartError": 3,
        "kb.errors.KBError": 2,
        "editor.errors.OutOfMemoryError": 1,
        "editor.errors.NonFiniteError": 1,
        "editor.errors.CorruptStateError": 1,
        "editor.errors.EditorError": 2,
        "prefect.exceptions.ParameterTypeError": 2,
        "builtins.OSError": 1,
    }
    return next((code for name, code in codes.items() if name in bases), None)


def say(error: Exception) -> None:
    """Print what went wrong where it is not taken for a result."""
    text = f"[bold red]Error:[/] {escape(_sentence(error))}"
    Console(stderr=True).print(text, highlight=False, soft_wrap=True)


def _sentence(error: Exception) -> str:
    """What to say of an error; those of others are not written to be read on the command line."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}. Check the path, its permissions and the disk."
    if type(error).__name__ == "ParameterTypeError":
        wrong = [line.removeprefix(" - ") for line in str(error).splitlines()[1:]]
        return f"{'; '.join(wrong)}. `--help` says what each option takes."
    return str(error)
