"""Commands about the home: doctor, sql, settings, kb load."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.text import Text

from flows.cli.main import AsJson, app, say
from flows.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from storage.shell import QueryResult

kb = typer.Typer(help="The embedded knowledge base.", no_args_is_help=True)
app.add_typer(kb, name="kb")


@app.command(epilog="Example: factsync doctor --repair")
def doctor(
    context: typer.Context,
    repair: Annotated[bool, typer.Option(help="Put right what is safe to put right.")] = False,
    quick: Annotated[bool, typer.Option(help="Do not read every byte of every checkpoint.")] = False,
    as_json: AsJson = False,
) -> None:
    """Examine the ledger and its files; exit code 1 if anything is wrong."""
    settings: Settings = context.obj
    from flows.cli import show
    from flows.workspace import opened_model
    from storage import doctor as examination

    out = show.console()
    with opened_model(settings) as (ws, model):
        done: list[str] = []
        if repair:
            with ws.writer() as lease:
                done = examination.repair(ws.ledger, lease, ws.files)
        report = examination.examine(ws.ledger, model, ws.files, deep=not quick)
    findings = [{"check": one.check, "message": one.message} for one in report.findings]
    if as_json:
        show.print_json({"checks": dict(report.checks), "done": done, "findings": findings})
    else:
        for line in done:
            out.print(f"[green]did[/]    {line}")
        for one in report.findings:
            hint = " (--repair can put it right)" if one.repairable else ""
            out.print(f"[red]wrong[/]  {one.check}: {escape(one.message)}{hint}")
        looked = ", ".join(f"{name} {count}" for name, count in report.checks)
        out.print(f"Looked at: {looked}. {'All is well.' if report.healthy else ''}")
    if not report.healthy:
        raise typer.Exit(1)


def _query(given: str | None) -> str | None:
    if given is not None and not given.strip():
        raise typer.BadParameter("it is empty; write one SELECT.")
    return given


@app.command(epilog='Example: factsync sql "SELECT subject_label, target FROM live_facts LIMIT 5"')
def sql(
    context: typer.Context,
    query: Annotated[
        str | None,
        typer.Argument(help="One SELECT; without it, read them from the terminal.", callback=_query),
    ] = None,
    given: Annotated[
        list[str] | None, typer.Option("--set", help="A value, as name=value, for :name; repeat for more.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most rows to show.")] = 200,
    as_json: AsJson = False,
) -> None:
    """Ask the ledger in SQL; it can only be read. docs/ledger.md describes the views."""
    settings: Settings = context.obj
    from flows.workspace import opened_model
    from storage.errors import QueryRefusedError

    values = dict(_named(one) for one in given or ())
    refused = False
    with opened_model(settings) as (ws, _):
        for text in [query] if query else _typed():
            try:
                _print_rows(ws.ledger.query(text, values, limit=limit), as_json=as_json)
            except QueryRefusedError as error:
                if query:
                    raise
                say(error)
                refused = True
    if refused and not sys.stdin.isatty():
        raise typer.Exit(2)  # a person saw it, a script asks how it ended


def _named(given: str) -> tuple[str, str | float]:
    """The name and the value of `--set`; what reads as a number is one."""
    name, equals, value = given.partition("=")
    if not (name and equals):
        raise typer.BadParameter(f"{given!r} names no value: write --set name=value.")
    if not re.fullmatch(r"-?\d+(\.\d+)?", value):
        return name, value
    return name, float(value) if "." in value else int(value)


def _typed() -> Iterator[str]:
    """Queries typed at the prompt, one a line, until the input ends."""
    prompt = "factsync> " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            return
        if line:
            yield line


def _print_rows(found: QueryResult, *, as_json: bool) -> None:
    from flows.cli import show

    if as_json:
        show.print_json(found.dicts)
        return
    out = show.console()
    out.print(
        show.table(found.columns, (("" if value is None else value for value in row) for row in found.rows))
    )
    if found.truncated:
        out.print(f"Only the first {len(found.rows)} rows are shown; raise --limit.")


@app.command("settings", epilog="Example: factsync settings | grep ENDPOINT")
def settings_(context: typer.Context) -> None:
    """List every setting as a line of `<home>/factsync.env`: its meaning, its variable, its value here."""
    settings: Settings = context.obj
    from flows.cli import show

    out = show.console()
    for prefix, values in (("FACTSYNC_", settings), ("FACTSYNC_GATE_", settings.gates)):
        for name, field in type(values).model_fields.items():
            if name == "gates":
                continue
            value = show.ledger_url(settings) if name == "ledger_url" else getattr(values, name)
            unset = "# " if value is None else ""
            out.print(Text(f"# {field.description}", style="dim"), soft_wrap=True)
            out.print(Text(f"{unset}{prefix}{name.upper()}={_written(value)}"), soft_wrap=True)


def _written(value: object) -> str:
    """A setting's value as one writes it."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "" if value is None else json.dumps(value) if isinstance(value, dict) else str(value)


@kb.command("load", epilog="Example: factsync kb load night1")
def load(
    context: typer.Context,
    what: Annotated[
        list[str], typer.Argument(help="night1, night2, or Turtle or N-Triples files, which are one content.")
    ],
    lenient: Annotated[
        bool,
        typer.Option("--lenient", help="Take IRIs that the standard does not: Wikidata's dumps hold some."),
    ] = False,
    timeout_minutes: Annotated[int, typer.Option(min=1, help="How long loading may take.")] = 10,
) -> None:
    """Replace the embedded knowledge base by a night of the sample or by files.

    A raw dump of Wikidata, or a part of it, also wants FACTSYNC_ENDPOINT_LAYOUT=dump.
    """
    settings: Settings = context.obj
    from flows.cli import show
    from kb.store import LocalStore, nights

    store = LocalStore(settings.store_dir)
    known = {f"night{number}": number for number in nights()}
    if len(what) == 1 and what[0] in known:
        store.load_night(known[what[0]])
    else:
        store.load(*map(Path, what), lenient=lenient, timeout_s=60.0 * timeout_minutes)
    show.console().print(f"The embedded knowledge base holds {', '.join(store.sources())}.")
