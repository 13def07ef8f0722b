"""Commands that a person runs by hand: calibrate, backfill, rebuild, promote, reject."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer

from flows import local_prefect
from flows.cli.main import AsJson, app, not_empty
from flows.settings import Settings

_property = not_empty("write a property id such as P6, or leave the option out.")
_item = not_empty("write an item id such as Q183, or leave the option out.")
Since = Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="First day, in UTC.")]
Until = Annotated[
    datetime | None, typer.Option(formats=["%Y-%m-%d"], help="The day after the last one, in UTC.")
]
Which = Annotated[
    str | None,
    typer.Argument(
        help="The candidate's digest or its beginning; default: the one.",
        callback=not_empty("name the candidate, or leave it out for the one that waits."),
    ),
]
By = Annotated[str, typer.Option("--by", help="Who decides, for the ledger.")]
Note = Annotated[str, typer.Option(help="Why, for the ledger.")]


@app.command(epilog="Example: factsync backfill --relation P6 --since 2026-01-01 --dry-run")
def backfill(  # noqa: PLR0917 - options have no positions
    context: typer.Context,
    relation: Annotated[
        list[str] | None, typer.Option(help="Property id; repeat for more.", callback=_property)
    ] = None,
    subject: Annotated[
        list[str] | None, typer.Option(help="Item id; repeat for more.", callback=_item)
    ] = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Most edits in this run.")] = 1_000,
    batch_size: Annotated[int, typer.Option(min=1, max=5_000, help="Edits a checkpoint.")] = 200,
    budget_minutes: Annotated[
        int, typer.Option(min=1, max=1_440, help="No page, and no second batch, begins later.")
    ] = 120,
    dry_run: Annotated[bool, typer.Option(help="Show the plan; write nothing.")] = False,
    approval: Annotated[bool, typer.Option(help="Stop at a candidate; a person decides.")] = False,
    approve_burst: Annotated[bool, typer.Option(help="Let an unusual share change.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring older or newly configured facts into the model; start it again to go on where it was."""
    settings: Settings = context.obj
    local_prefect.for_runs(settings)
    from flows.backfill import backfill as run
    from flows.cli import show
    from flows.errors import GateError

    with show.bars():
        done = run(
            relations=relation or [],
            subjects=subject or [],
            since=since.date() if since else None,
            until=until.date() if until else None,
            limit=limit,
            batch_size=batch_size,
            budget_minutes=budget_minutes,
            dry_run=dry_run,
            approval=approval,
            approve_burst=approve_burst,
        )
    out = show.console()
    if as_json:
        show.print_json(_backfill_json(done))
    else:
        if done.plan is not None:
            out.print(show.changes_table(done.plan, title="What it comes to"))
        out.print(f"{done.ending.name}: {done.ending.message}")
    if not done.ending.ok:
        raise GateError(f"{done.ending.name}: {done.ending.message}")


def _backfill_json(done: Any) -> dict[str, Any]:  # noqa: ANN401 - flows.backfill is loaded late
    return {
        "run": done.run,
        "subjects": done.subjects,
        "changes": done.plan.counts if done.plan else {},
        "checkpoints": [
            {
                "digest": one.candidate.digest,
                "state": one.state,
                "carried": one.owed,
                "edits": one.live,
                "promoted": one.checkpoints,
            }
            for one in done.batches
        ],
        "left": done.left,
        "burst": done.plan.burst.held if done.plan else "",
        "rebuilt": done.rebuilt.ending.message if done.rebuilt else None,
        "ending": done.ending.name,
    }


@app.command(epilog="Example: factsync calibrate")
def calibrate(
    context: typer.Context,
    block: Annotated[
        list[int] | None,
        typer.Option(min=0, help="Edit these blocks; repeat. Default: causal tracing chooses."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find out how to edit this home's model: which blocks, which λ, which step size."""
    settings: Settings = context.obj
    local_prefect.for_runs(settings)
    from flows.calibrate import calibrate as run
    from flows.cli import show

    with show.bars():
        done = run(blocks=block)
    out = show.console()
    if as_json:
        show.print_json(done.found.to_json())
        return
    out.print(show.trials_table(done.found))
    out.print(f"{done.ending.name}: {done.ending.message}")
    out.print(f"settings and evidence  {done.file}\nheat map               {done.picture}")


@app.command(epilog="Example: factsync rebuild --approval")
def rebuild(
    context: typer.Context,
    anew: Annotated[
        bool, typer.Option(help="Find every target state anew; as slow as all edits were.")
    ] = False,
    refine: Annotated[
        bool, typer.Option(help="Ask all live facts and refine those that the rebuilt weights do not say.")
    ] = False,
    approval: Annotated[bool, typer.Option(help="Stop at a candidate; a person decides.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a checkpoint of all live facts from the base model, in one solve."""
    settings: Settings = context.obj
    local_prefect.for_runs(settings)
    from flows.cli import show
    from flows.errors import GateError
    from flows.rebuild import rebuild as run

    with show.bars():
        done = run(anew=anew, refine=refine, approval=approval)
    out = show.console()
    if as_json:
        show.print_json(_rebuild_json(done))
    else:
        if done.candidate is not None:
            out.print(show.metrics_table([("rebuilt", done.candidate)], title="What was measured"))
        out.print(f"{done.ending.name}: {done.ending.message}")
    if not done.ending.ok:
        raise GateError(f"{done.ending.name}: {done.ending.message}")


def _rebuild_json(done: Any) -> dict[str, Any]:  # noqa: ANN401 - flows.rebuild is loaded late
    return {
        "run": done.run,
        "checkpoint": done.candidate.digest if done.candidate else None,
        "reused": done.reused,
        "refined": done.refined,
        "optimised": done.optimised,
        "write_s": round(done.write_s, 2),
        "metrics": done.candidate.metrics.to_json() if done.candidate else None,
        "ending": done.ending.name,
    }


@app.command(epilog='Example: factsync promote --by Ada --note "checked P6 by hand"')
def promote(
    context: typer.Context, checkpoint: Which = None, by: By = "", note: Note = "", as_json: AsJson = False
) -> None:
    """Make the candidate that waits for approval the live model."""
    settings: Settings = context.obj
    local_prefect.for_runs(settings)
    from flows.decide import promote as run

    _say(run(checkpoint=checkpoint or "", decided_by=by, note=note), as_json=as_json)


@app.command(epilog="Example: factsync reject --drop-relation P6 --by Ada")
def reject(  # noqa: PLR0917 - likewise
    context: typer.Context,
    checkpoint: Which = None,
    drop_relation: Annotated[
        list[str] | None, typer.Option(help="Its edits fail for good.", callback=_property)
    ] = None,
    drop_subject: Annotated[
        list[str] | None, typer.Option(help="Its edits fail for good.", callback=_item)
    ] = None,
    by: By = "",
    note: Note = "",
    as_json: AsJson = False,
) -> None:
    """Turn the candidate that waits down; its edits are owed again, except those you drop."""
    settings: Settings = context.obj
    local_prefect.for_runs(settings)
    from flows.decide import reject as run

    _say(
        run(
            checkpoint=checkpoint or "",
            drop_relations=drop_relation or [],
            drop_subjects=drop_subject or [],
            decided_by=by,
            note=note,
        ),
        as_json=as_json,
    )


def _say(decision: Any, *, as_json: bool) -> None:  # noqa: ANN401 - flows.decide is loaded late
    from flows.cli import show

    if as_json:
        found = {
            "checkpoint": decision.digest,
            "promoted": decision.promoted,
            "requeued": decision.requeued,
            "due": decision.due,
        }
        show.print_json(found)
        return
    show.console().print(decision.ending.message)
