"""Commands about checkpoints: list, materialize, export, diff, rollback."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from flows.cli.main import AsJson, app, not_empty
from flows.formats import Dtype, Format
from flows.settings import Settings

if TYPE_CHECKING:
    from flows.workspace import Workspace
    from storage.records.checkpoints import CheckpointRow
    from storage.records.runs import Model

checkpoint = typer.Typer(help="List checkpoints, and make models of them.", no_args_is_help=True)
app.add_typer(checkpoint, name="checkpoint")


_given = not_empty("name a checkpoint, `factsync checkpoint list` shows them.")


def _to_write(ws: Workspace, model: Model, which: str) -> CheckpointRow | None:
    """The checkpoint that a person wants as a folder; None for the live one."""
    from flows import heads
    from flows.errors import CheckpointInputError

    if which == heads.BASE:
        raise CheckpointInputError(
            f"The base model carries no edits, so there is nothing to write: load {model.base_ref} itself."
        )
    return None if which == "live" else ws.ledger.checkpoint(model, which)


@checkpoint.command("list", epilog="Example: factsync checkpoint list")
def list_(
    context: typer.Context,
    as_json: AsJson = False,
) -> None:
    """List all checkpoints, oldest first, each with its last decision and why."""
    settings: Settings = context.obj
    from flows.cli import show
    from flows.workspace import opened_model

    with opened_model(settings) as (ws, model):
        rows, undone = ws.ledger.checkpoints(model), ws.ledger.undone(model)
    for number, row in enumerate(rows):
        if row.state == "rolled_back" and row.id in undone:
            at, why = undone[row.id]
            rows[number] = replace(row, decided_at=at, reason=why)
    if as_json:
        show.print_json([asdict(row) for row in rows])
        return
    columns = ("checkpoint", "stands on", "state", "edits", "live facts", "size", "decided", "reason")
    cells = (
        (
            (row.digest or "–")[:12],
            "base" if row.from_base else (row.parent_digest or "base")[:12],
            Text(row.state, "green" if row.state == "promoted" else ""),
            row.edits,
            row.live_facts,
            None if row.size_bytes is None else f"{row.size_bytes / 1e6:.1f} MB",
            f"{row.decided_at:%Y-%m-%d %H:%M}" if row.decided_at else None,
            row.reason or "",
        )
        for row in rows
    )
    short = ("checkpoint", "stands on", "state", "decided")
    made = show.table(columns, cells, whole=short, wide=("stands on", "live facts", "size"))
    show.console().print(made)


@checkpoint.command(
    "materialize", epilog="Example: factsync checkpoint materialize live ./march --as-of 2026-03-01"
)
def materialize(
    context: typer.Context,
    which: Annotated[
        str, typer.Argument(help="A digest or its beginning, or `live`.", callback=_given)
    ] = "live",
    out: Annotated[
        Path | None, typer.Argument(help="Folder to make.", show_default="factsync-DIGEST here")
    ] = None,
    as_of: Annotated[
        datetime | None, typer.Option(help="With `live`: what was live at this moment (UTC).")
    ] = None,
) -> None:
    """Write a checkpoint as a Hugging Face folder that transformers loads."""
    settings: Settings = context.obj
    from datetime import UTC

    from flows import publish
    from flows.cli import show
    from flows.errors import CheckpointInputError
    from flows.workspace import opened_model

    if as_of is not None and which != "live":
        raise CheckpointInputError(
            f"--as-of goes with `live`, not with {which}: leave it out, or write "
            f"`factsync checkpoint materialize live {out or which} --as-of {as_of:%Y-%m-%dT%H:%M:%S}`."
        )
    with opened_model(settings) as (ws, model):
        row = _to_write(ws, model, which)
        if as_of is not None:
            row = publish.live_at(ws, model, as_of.replace(tzinfo=UTC))
        folder = publish.export(ws, model, row, out).folder
    show.console().print(f"Wrote {folder}; AutoModelForCausalLM.from_pretrained loads it.")


@app.command(epilog="Example: factsync diff base live")
def diff(
    context: typer.Context,
    before: Annotated[
        str, typer.Argument(help="A digest or its beginning, `live`, or `base`.", callback=_given)
    ],
    after: Annotated[str, typer.Argument(help="Likewise.", callback=_given)],
    as_json: AsJson = False,
) -> None:
    """Show on which facts two checkpoints do not agree, and what was measured of each."""
    settings: Settings = context.obj
    from flows.cli import show
    from flows.comparing import compare, named
    from flows.workspace import opened_model

    with opened_model(settings) as (ws, model):
        found = compare(ws, model, named(ws, model, before), named(ws, model, after))
    if as_json:
        show.print_json(asdict(found))
        return
    sides = (before[:12], after[:12])
    facts = (
        (f"{fact.label} ({fact.subject})", fact.property, fact.before, fact.after) for fact in found.facts
    )
    measured = (
        (name, *(None if one is None else f"{one:.4g}" for one in pair))
        for name, pair in found.metrics.items()
    )
    out = show.console()
    out.print(show.table(("subject", "relation", *sides), facts, title=f"{len(found.facts)} facts differ"))
    out.print(show.table(("", *sides), measured, title="Measured", right=("", *sides)))


@app.command(epilog="Example: factsync export --format peft --out ./adapter")
def export(  # noqa: PLR0917 - options have no positions
    context: typer.Context,
    which: Annotated[
        str,
        typer.Argument(metavar="[CHECKPOINT]", help="A digest or its beginning, or `live`.", callback=_given),
    ] = "live",
    out: Annotated[Path, typer.Option(help="Folder to make.")] = Path("model"),
    form: Annotated[Format, typer.Option("--format", help="What to make of it.")] = Format.HF,
    dtype: Annotated[Dtype, typer.Option(help="Precision of what is written.")] = Dtype.FLOAT32,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Most rank of an adapter (peft); default: exact.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Publish a checkpoint: merged, as a PEFT adapter, or merged for llama.cpp's converter, with a card."""
    settings: Settings = context.obj
    if rank is not None and form is not Format.PEFT:
        wrong = f"only an adapter has a rank; leave it out, or write --format peft instead of {form.value}."
        raise typer.BadParameter(wrong, param_hint="'--rank'")
    from flows import publish
    from flows.cli import show
    from flows.workspace import opened_model

    with opened_model(settings) as (ws, model):
        row = _to_write(ws, model, which)
        done = publish.export(
            ws,
            model,
            row,
            out,
            form=form,
            dtype=dtype,
            rank=rank,
        )
    if not as_json:
        show.console().print(f"Wrote {done.folder}. {done.form.text}")
        return
    found = {
        "folder": str(done.folder),
        "rounded_away": done.rounding.share if done.rounding else None,
        "rank": done.adapter.rank if done.adapter else None,
        "error": done.adapter.error if done.adapter else None,
    }
    show.print_json(found)


@app.command(epilog="Example: factsync rollback base --reason 'a bad night'")
def rollback(
    context: typer.Context,
    which: Annotated[
        str,
        typer.Argument(help="A digest or its beginning that was live before, or `base`.", callback=_given),
    ],
    reason: Annotated[str, typer.Option(help="Kept in the ledger.")] = "rolled back by hand",
    again: Annotated[
        bool, typer.Option(help="Let the next sync queue again whatever Wikidata still states.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make an earlier checkpoint live again, to the bit. Going forward again works the same way."""
    settings: Settings = context.obj
    from flows import heads
    from flows.cli import show
    from flows.workspace import opened_model

    with opened_model(settings) as (ws, _), ws.writer() as lease:
        moved = heads.go_to(ws, lease, which, reason=reason, again=again)
    if as_json:
        show.print_json(asdict(moved))
        return
    show.console().print(moved.text)
