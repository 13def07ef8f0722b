"""Commands that run nights: sync, plan, demo."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from flows import local_prefect
from flows.cli.main import AsJson, app
from flows.settings import Settings

_EDITED = """
SELECT
    operation AS kind, subject, subject_label, property, slot,
    old_value, old_target AS old_label, new_value, new_target AS new_label
FROM edit_history
WHERE model = :model AND run_id = :run AND status IN ('written', 'applied')
ORDER BY edit_id
"""
"""What a run edited: in checkpoints that were promoted, or in one that waits for a person."""


def _utc(given: datetime | None) -> datetime | None:
    """The command line's moments carry no time zone; they are UTC."""
    return None if given is None else given.replace(tzinfo=UTC)


AsOf = Annotated[
    datetime | None,
    typer.Option(help="Judge everything at this moment (UTC); default: now.", callback=_utc),
]


@app.command(epilog="Example: factsync sync --limit 200")
def sync(  # noqa: PLR0917 - options have no positions
    context: typer.Context,
    as_of: AsOf = None,
    limit: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="Most edits in this run; the rest stays owed.")
    ] = None,
    approve_burst: Annotated[bool, typer.Option(help="Let through what the burst guard holds back.")] = False,
    approval: Annotated[bool, typer.Option(help="Stop at a candidate; `factsync promote` it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Pull what changed, edit the model, check it, promote it."""
    settings: Settings = context.obj
    local_prefect.for_runs(settings)
    from flows.cli import show
    from flows.sync import require_promoted
    from flows.sync import sync as run

    with show.bars():
        night = run(as_of=as_of, limit=limit, approve_burst=approve_burst, approval=approval)
    edited, owed = _edited(settings, night.run)
    if as_json:
        show.print_json(_night_json(night, edited, owed))
    else:
        out = show.console()
        changes = show.changes_table(night.plan, title="What changed")
        if changes.row_count:
            out.print(changes)
        planned = {(one.subject, one.property, one.slot) for one in night.plan.edits}
        if edited and {(one["subject"], one["property"], one["slot"]) for one in edited} != planned:
            out.print(show.edits_table(edited, title="What was edited"))
        if night.candidate is not None:
            out.print(show.metrics_table([("tonight", night.candidate)], title="What was measured"))
        counted = f" {len(edited)} edited, {owed} still owed." if night.candidate or owed else ""
        out.print(f"{show.night_summary(night)}{counted}")
    require_promoted(night)


def _edited(settings: Settings, run: int) -> tuple[list[dict[str, Any]], int]:
    """The edits that a run made, and how many the next sync would make."""
    from flows.workspace import opened_model

    with opened_model(settings) as (ws, model):
        found = ws.ledger.query(_EDITED, {"model": model.name, "run": run}, limit=None)
        owed = len(ws.owed(model))
    return found.dicts, owed


def _night_json(
    night: Any,  # noqa: ANN401 - flows.sync is loaded late
    edited: list[dict[str, Any]],
    owed: int,
) -> dict[str, Any]:
    candidate = night.candidate
    return {
        "run": night.run,
        "reference_time": night.at.isoformat(),
        "changes": night.plan.counts,
        "edited": len(edited),
        "owed": owed,
        "edits": edited,
        "checkpoint": candidate.digest if candidate else None,
        "promoted": night.promoted,
        "waiting": night.waiting,
        "burst": night.plan.burst.held,
        "rebuilt": night.rebuilt.ending.message if night.rebuilt else None,
        "metrics": candidate.metrics.to_json() if candidate else None,
        "gates": {gate.name: gate.passed for gate in candidate.gates} if candidate else {},
    }


@app.command(epilog="Example: factsync plan --as-of 2026-09-08T02:00:00")
def plan(context: typer.Context, as_of: AsOf = None, as_json: AsJson = False) -> None:
    """Show what a sync would change. Nothing is written."""
    settings: Settings = context.obj
    from flows.cli import show
    from flows.dry_run import dry_run, owed_beside

    made = dry_run(settings, as_of)
    owed = [
        {
            "kind": row.op,
            "subject": row.subject,
            "subject_label": row.subject_label,
            "property": row.property,
            "slot": row.slot,
            "old_value": row.old_value,
            "old_label": row.old_label,
            "new_value": row.value,
            "new_label": row.target,
        }
        for row in owed_beside(settings, made)
    ]
    if as_json:
        changes = [
            {
                "kind": change.kind.value,
                "subject": change.subject,
                "property": change.property,
                "old": change.old and change.old.value.canonical,
                "new": change.new and change.new.value.canonical,
                "reason": change.reason,
            }
            for change in made.changes
        ]
        show.print_json({"counts": made.counts, "changes": changes, "owed": len(owed), "owed_edits": owed})
        return
    out = show.console()
    shown = show.changes_table(made, title="What a sync would do (nothing was written)")
    if shown.row_count:
        out.print(shown)
    out.print(", ".join(f"{count} {kind}" for kind, count in made.counts.items()) or "Nothing changed.")
    if owed:
        out.print(show.edits_table(owed, title="Owed from earlier runs"))
        out.print(f"{len(owed)} owed from earlier runs: a sync edits these too.")
    for reason in made.burst.reasons:
        out.print(f"[yellow]The burst guard would hold back:[/] {reason}")


@app.command(epilog="Example: factsync --home /tmp/tour demo")
def demo(context: typer.Context) -> None:
    """Sync two nights of the shipped sample into the bundled model, and show what came of it."""
    settings: Settings = context.obj
    settings.require_embedded("demo")
    local_prefect.configure(settings)
    from flows.cli.demo import run_demo

    run_demo(settings)
