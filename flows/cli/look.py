"""Commands that look and change nothing: status, ask, explain, history."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from flows.cli.main import AsJson, app, not_empty
from flows.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable


_prompt = not_empty("give a prompt.")
_subject = not_empty("write an id such as Q183 or a label.")


@app.command(epilog="Example: factsync status --json")
def status(context: typer.Context, as_json: AsJson = False) -> None:
    """Show where the model stands: what is live, owed and held back, and how the last run went."""
    settings: Settings = context.obj
    from flows.cli import show
    from flows.workspace import opened_model

    with opened_model(settings) as (ws, model):
        found = ws.ledger.status(model)
        owed = len(ws.owed(model))
    left_alone = found.owed - owed
    if as_json:
        show.print_json({**asdict(found), "owed": owed, "left_alone": left_alone})
        return
    table = Table.grid(padding=(0, 2))
    head, run = found.head, found.last_run
    rows = (
        ("model", f"{model.name}, base {model.base_digest[:12]}"),
        (
            "live",
            "the base model itself"
            if head is None
            else f"checkpoint {str(head.digest)[:12]} of {head.decided_at:%Y-%m-%d %H:%M} UTC",
        ),
        ("live facts", str(found.live_facts)),
        ("owed", f"{owed} edits wait for the next run" + _left_alone(left_alone)),
        ("held back", f"{found.held_back} (see `factsync quarantine list`)"),
        (
            "last run",
            "never" if run is None else f"{run.kind} of {run.reference_time:%Y-%m-%d %H:%M} UTC: {run.state}",
        ),
        (
            "read up to",
            ", ".join(f"{source}: {at:%Y-%m-%d %H:%M} UTC" for source, at in found.cursors.items()) or "–",
        ),
        ("ledger", show.ledger_url(settings)),
        ("checkpoints", str(settings.checkpoints_dir)),
    )
    for row in rows:
        table.add_row(*row)
    if found.open_checkpoint is not None and found.open_checkpoint.state == "candidate":
        waits = f"checkpoint {str(found.open_checkpoint.digest)[:12]}: `factsync promote` or `reject` it"
        table.add_row("waits", waits)
    if found.holder:
        table.add_row("writer", found.holder)
    show.console().print(table)


def _left_alone(count: int) -> str:
    """What stays in the queue while the settings are as they are."""
    return f"; {count} more are of a relation not synced, or on a block list" if count else ""


@app.command(epilog='Example: factsync ask "The head of government of Germany is"')
def ask(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(help="Text to complete.", callback=_prompt)],
    tokens: Annotated[int, typer.Option(min=1, max=200, help="How many tokens to add.")] = 12,
    as_json: AsJson = False,
) -> None:
    """Complete a prompt with the live model, beside the base model."""
    settings: Settings = context.obj
    from editor.recall import completions
    from flows import models
    from flows.cli import show
    from flows.workspace import opened_model

    with opened_model(settings) as (ws, model):
        lm = models.load_base(settings)
        base = completions(lm, [prompt], tokens=tokens)[0]
        models.put_on(lm, ws.files, ws.ledger.lineage(model))
        live = completions(lm, [prompt], tokens=tokens)[0]
    if as_json:
        show.print_json({"prompt": prompt, "base": base, "live": live})
        return
    show.answers(prompt, base, live)


@app.command(epilog='Example: factsync explain "The head of government of Germany is"')
def explain(
    context: typer.Context,
    prompt: Annotated[
        str, typer.Argument(help="Text to complete; name the subject in it.", callback=_prompt)
    ],
    tokens: Annotated[int, typer.Option(min=1, max=200, help="How many tokens to add.")] = 12,
    as_json: AsJson = False,
) -> None:
    """Show which facts bear on an answer, with the edits, statements and revisions behind each."""
    settings: Settings = context.obj
    from flows import explaining, models
    from flows.cli import show
    from flows.workspace import opened_model

    with opened_model(settings) as (ws, model):
        found = explaining.explain(ws, model, models.load_base(settings), prompt, tokens=tokens)
    if as_json:
        show.print_json(asdict(found))
        return
    show.answers(found.prompt, found.base, found.live)
    out = show.console()
    if not found.facts:
        out.print("The prompt names no subject of a live fact: no edit was meant to bear on it.")
        return
    rows = (
        (
            f"{fact.label} ({fact.subject})",
            f"{fact.property} {fact.name}",
            fact.target,
            f"{fact.p_base:.3f} → {fact.p_live:.3f}",
            f"{fact.checkpoint[:12]} since {fact.since}",
            _sources(fact.sources),
        )
        for fact in found.facts
    )
    columns = ("subject", "relation", "taught", "P base → live", "checkpoint", "statement @ revision")
    out.print(show.table(columns, rows, title="Live facts of subjects that the prompt names"))


def _sources(sources: Iterable[tuple[str, int]]) -> str:
    return "\n".join(f"{statement} @ {revision}" for statement, revision in sources)


@app.command(epilog="Example: factsync history Q183")
def history(
    context: typer.Context,
    subject: Annotated[str, typer.Argument(help="A Q-id, or the subject's label.", callback=_subject)],
    as_json: AsJson = False,
) -> None:
    """Show every edit of a subject's facts, with the statements and revisions behind each."""
    settings: Settings = context.obj
    from flows.cli import show
    from flows.errors import UnknownSubjectError
    from flows.workspace import opened_model

    with opened_model(settings) as (ws, model):
        held = {row.subject_label.casefold(): row.subject for row in ws.ledger.live_facts(model)}
        item = held.get(subject.casefold(), subject.upper())
        rows = ws.ledger.history(model, item)
    if not rows:
        raise UnknownSubjectError(
            f"The ledger holds no edit of {subject!r}: write an id such as Q183 or a label, the whole of it; "
            "`factsync sql` can search for it."
        )
    if as_json:
        show.print_json([asdict(row) for row in rows])
        return
    columns = ("relation", "operation", "from", "to", "P(new)", "exact", "checkpoint", "statement @ revision")
    cells = (_history_cells(row) for row in rows)
    narrow = {"whole": ("relation", "checkpoint"), "wide": ("operation", "P(new)", "exact")}
    show.console().print(show.table(columns, cells, title=f"Edits of {item}", **narrow))


def _history_cells(row: Any) -> tuple[str, ...]:  # noqa: ANN401 - storage is loaded late
    before, after = row.p_new_before, row.p_new_after
    probability = "–" if before is None or after is None else f"{before:.3f} → {after:.3f}"
    return (
        row.property,
        row.op,
        row.old_label or "",
        row.new_label or "",
        probability,
        {None: "–", True: "yes", False: "no"}[row.exact],
        f"{(row.checkpoint or '')[:12]}\n{row.checkpoint_state}",
        _sources(row.sources),
    )
