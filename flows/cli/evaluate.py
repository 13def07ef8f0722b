"""Commands that show how well it works: the paper's evaluation, and the drift watch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.main import AsJson, app, not_empty
from flows.settings import Settings

Data = Annotated[
    str,
    typer.Option(
        help="A .json or .jsonl file, a data set's hub name, or `ledger` for the live facts.",
        callback=not_empty("name a file, a data set of the hub, or `ledger`."),
    ),
]
Methods = Annotated[list[str] | None, typer.Option(help="Repeat for more; `all` takes every one.")]
Numbers = Annotated[list[int] | None, typer.Option(help="How many edits; repeat for more.")]
Relations = Annotated[
    list[str] | None,
    typer.Option(
        help="Only records of this relation; several are mixed in equal shares.",
        callback=not_empty("write a property id such as P6, or leave the option out."),
    ),
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
    model: Annotated[
        str | None,
        typer.Option(
            help="A folder or hub name; default: this home's.",
            callback=not_empty("name a folder or a model of the hub, or leave the option out."),
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Default: the folder `evaluation` under home.")] = None,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = 0,
    shuffle: Annotated[bool, typer.Option(help="Draw the records by the seed.")] = False,
    texts: Annotated[int, typer.Option(help="Of how many records text is sampled.")] = 50,
    references: Annotated[Path | None, typer.Option(help="Reference texts for RS.")] = None,
    passages: Annotated[Path | None, typer.Option(help="Held-out text, one passage a line.")] = None,
    split: Annotated[str, typer.Option(help="Of a hub data set.")] = "train",
    as_json: AsJson = False,
) -> None:
    """Compare ways of editing on a data set; start it again to go on where it was."""
    settings: Settings = context.obj
    if model is not None:
        # `--data ledger` still means the facts of this home's model.
        settings = settings.model_copy(update={"model": model, "model_name": settings.resolved_model_name})
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
        show.print_json(report.as_json(found))
        return
    _show(found, pages)


def _show(found: Any, pages: Any) -> None:  # noqa: ANN401 - flows.evaluate is loaded late
    from flows import report
    from flows.cli import show

    # A metric a row: a terminal is too narrow for one a column.
    headings, rows = report.rows(found)
    (first, *choices), *lines = zip(headings, *rows, strict=True)
    title = f"{found.about['data']} on {found.about['model']}"
    out = show.console()
    out.print(show.table((first, *choices), lines, title=title, right=choices))
    for line in found.skipped:
        out.print(f"[yellow]left out[/] {line}")
    out.print(f"Report: {pages.html}")


@app.command(epilog="Example: factsync drift --out drift.png")
def drift(
    context: typer.Context,
    out: Annotated[Path | None, typer.Option(help="Where the picture goes; default: under home.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show how recall, edited norm and perplexity develop, and draw it."""
    settings: Settings = context.obj
    from dataclasses import asdict

    from flows import drift as watch
    from flows.cli import show
    from flows.workspace import opened_model

    with opened_model(settings) as (ws, model):
        found = watch.read(ws, model)
    path = out or settings.home / "drift.png"
    path.write_bytes(watch.picture(found))
    if as_json:
        show.print_json(asdict(found))
        return
    columns = ("position", "perplexity", "perplexity_base", "norm", "retention", "neighbours")
    values = ([row[name] for name in columns] for row in found.nights)
    rows = ((None if value is None else f"{value:.4g}" for value in row) for row in values)
    show.console().print(show.table(columns, rows, title="Drift"))
    show.console().print(f"Picture: {path}")
