"""Commands that show how well it works: the paper's evaluation, and the drift watch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.main import app
from flows.settings import Settings

Data = Annotated[
    str, typer.Option(help="A .json or .jsonl file, a data set's hub name, or `ledger` for the live facts.")
]
Methods = Annotated[list[str] | None, typer.Option(help="Repeat for more; `all` takes every one.")]
Numbers = Annotated[list[int] | None, typer.Option(help="How many edits; repeat for more.")]
Relations = Annotated[
    list[str] | None, typer.Option(help="Only records of this relation; several are mixed in equal shares.")
]


@app.command(epilog="Example: factsync evaluate --data counterfact.json --method memit --edits 100")
def evaluate(  # noqa: PLR0917 - options have no positions
    context: typer.Context,
    data: Data,
    method: Methods = None,
    edits: Numbers = None,
    batches: Annotated[int, typer.Option(help="Cut the edits into so many batches.")] = 1,
    relation: Relations = None,
    mix: Annotated[bool, typer.Option(help="Also evaluate each relation alone.")] = False,
    model: Annotated[str | None, typer.Option(help="A folder or hub name; default: this home's.")] = None,
    out: Annotated[Path | None, typer.Option(help="Default: the folder `evaluation` under home.")] = None,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = 0,
    shuffle: Annotated[bool, typer.Option(help="Draw the records by the seed.")] = False,
    texts: Annotated[int, typer.Option(help="Of how many records text is sampled.")] = 50,
    references: Annotated[Path | None, typer.Option(help="Reference texts for RS.")] = None,
    passages: Annotated[Path | None, typer.Option(help="Held-out text, one passage a line.")] = None,
    split: Annotated[str, typer.Option(help="Of a hub data set.")] = "train",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of a table.")
    ] = False,
) -> None:
    """Compare ways of editing on a data set; start it again to go on where it was."""
    settings: Settings = context.obj
    if model is not None:
        settings = settings.model_copy(update={"model": model})
    from editor.methods import METHODS
    from flows import report
    from flows.asked import Asked
    from flows.cli import show
    from flows.evaluate import evaluate as run

    names = tuple(method or ("memit",))
    folder = out or settings.home / "evaluation"
    asked = Asked(
        data=data,
        methods=tuple(METHODS) if names == ("all",) else names,
        edits=tuple(edits or (100,)),
        batches=batches,
        relations=tuple(relation or ()),
        mix=mix,
        seed=seed,
        shuffle=shuffle,
        texts=texts,
        references=references,
        passages=passages,
        split=split,
        calibrated=model is None,
    )
    with show.bars():
        found = run(settings, asked, folder)
    pages = report.write(found, folder)
    if as_json:
        show.console().print_json(json.dumps(report.as_json(found)))
        return
    _show(found, pages)


def _show(found: Any, pages: Any) -> None:  # noqa: ANN401 - flows.evaluate is loaded late
    from rich.table import Table

    from flows import report
    from flows.cli import show

    # A metric a row: a terminal is too narrow for one a column.
    headings, rows = report.rows(found)
    table = Table(title=f"{found.about['data']} on {found.about['model']}", title_justify="left")
    table.add_column(headings[0])
    for row in rows:
        table.add_column(row[0], justify="right")
    for heading, *cells in list(zip(headings, *rows, strict=True))[1:]:
        table.add_row(heading, *cells)
    out = show.console()
    out.print(table)
    for line in found.skipped:
        out.print(f"[yellow]left out[/] {line}")
    out.print(f"Report: {pages.html}")


@app.command(epilog="Example: factsync drift --out drift.png")
def drift(
    context: typer.Context,
    out: Annotated[Path | None, typer.Option(help="Where the picture goes; default: under home.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of a table.")
    ] = False,
) -> None:
    """Show how recall, edited norm and perplexity develop, and draw it."""
    settings: Settings = context.obj
    from dataclasses import asdict

    from rich.table import Table

    from flows import drift as watch
    from flows.cli import show
    from flows.workspace import opened_model

    with opened_model(settings) as (ws, model):
        found = watch.read(ws, model)
    path = out or settings.home / "drift.png"
    path.write_bytes(watch.picture(found))
    if as_json:
        show.console().print_json(json.dumps(asdict(found)))
        return
    columns = ("position", "perplexity", "perplexity_base", "norm", "retention", "neighbours")
    table = Table(*columns, title="Drift", title_justify="left")
    for row in found.nights:
        values = [row[name] for name in columns]
        table.add_row(*("–" if value is None else f"{value:.4g}" for value in values))
    show.console().print(table)
    show.console().print(f"Picture: {path}")
