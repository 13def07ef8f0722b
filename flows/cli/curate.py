"""Commands about what may enter a model: relations, quarantine, replay."""

from __future__ import annotations

import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from flows.cli.main import AsJson, app
from flows.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kb.replay import Pull
    from storage.records.planned import PendingRow

relations = typer.Typer(help="The relations a model may learn.", no_args_is_help=True)
quarantine = typer.Typer(help="What is held back, and why.", no_args_is_help=True)
app.add_typer(relations, name="relations")
app.add_typer(quarantine, name="quarantine")


@relations.command("check", epilog="Example: factsync relations check my-relations.toml")
def check(
    context: typer.Context,
    file: Annotated[Path | None, typer.Argument(help="Your file, merged over the shipped one.")] = None,
) -> None:
    """Check a relations file; exit code 1 if it does not hold together."""
    settings: Settings = context.obj
    from flows.cli import show
    from flows.params import known_relations
    from kb import relation_view
    from kb.errors import RelationsError

    settings.relations_file = file or settings.relations_file
    try:
        known = known_relations(settings)
    except RelationsError as error:
        for problem in error.problems or (error,):
            show.console().print(f"[red]wrong[/]  {escape(str(problem))}")
        raise typer.Exit(1) from error
    for note in relation_view.notes(known, settings.relations):
        show.console().print(f"[yellow]note[/]   {escape(note)}")
    show.console().print("The relations hold together.")


@relations.command("list", epilog="Example: factsync relations list --json")
def list_(context: typer.Context, as_json: AsJson = False) -> None:
    """List the relations that are synced."""
    settings: Settings = context.obj
    from flows.cli import show
    from flows.params import synced_relations
    from kb import relation_view

    rows = relation_view.rows(synced_relations(settings))
    _show_rows(rows, as_json=as_json)
    if not as_json:
        show.console().print(f"{len(rows)} relations. FACTSYNC_RELATIONS chooses among them.")


@relations.command("preview", epilog="Example: factsync relations preview P6 Q183")
def preview(
    context: typer.Context,
    property_id: Annotated[str, typer.Argument(metavar="PROPERTY", help="Such as P6.")],
    subject: Annotated[str, typer.Argument(help="Such as Q183.")],
) -> None:
    """Show every sentence that would be said of a subject, with what the knowledge base says now."""
    settings: Settings = context.obj
    from flows.cli import show
    from flows.errors import UnknownSubjectError
    from flows.params import known_relations
    from flows.source import opened_feed
    from kb import relation_view
    from kb.semantics import verdict

    known = known_relations(settings)
    relation = known[property_id.strip().upper()]
    item = subject.strip().upper()
    with opened_feed(settings, known) as feed:
        statements = feed.statements([item], [relation.property])
        labels = feed.labels({item, *(one.value.canonical for one in statements if one.value.kind == "item")})
        at = feed.lag() if settings.is_embedded else datetime.now(UTC)
        if item not in labels:
            chain = ", ".join(feed.endpoint.languages)
            raise UnknownSubjectError(f"{item} has no label in the chain {chain}; is the id right?")
        said = verdict(statements, relation, at, subject=item)
        value = said.facts[0].value if said.facts else None
        for purpose, sentence in relation_view.preview(relation, labels[item], value, labels):
            show.console().print(f"{purpose:>9}  {sentence}")


@quarantine.command("list", epilog="Example: factsync quarantine list")
def list_held_back(context: typer.Context, as_json: AsJson = False) -> None:
    """List what is held back: its reason, its age, and what would release it."""
    settings: Settings = context.obj
    from flows.workspace import opened_model

    with opened_model(settings) as (ws, model):
        labels = ws.ledger.labels({row.subject for row in ws.ledger.pending(model)})
        rows = [
            {
                "id": str(row.id),
                "subject": (labels[row.subject].label if row.subject in labels else None) or row.subject,
                "property": row.property,
                "value": row.label or row.value or "(nothing)",
                "reason": row.reason,
                "since": f"{row.first_seen_at:%Y-%m-%d %H:%M}",
                "sightings": str(row.sightings),
                "releases": _release_of(row),
                "decision": row.decision or "",
            }
            for row in ws.ledger.pending(model)
        ]
    _show_rows(rows, as_json=as_json, whole=("id", "since"), wide=("sightings", "releases", "decision"))


def _release_of(row: PendingRow) -> str:
    """When something that is held back is let go, or by whom."""
    if row.kind == "conflict":
        return "on Wikidata"
    return f"{row.releases_at:%Y-%m-%d %H:%M}" if row.releases_at else "by a person or on Wikidata"


@quarantine.command("release", epilog="Example: factsync quarantine release 12")
def release(
    context: typer.Context, row: Annotated[int, typer.Argument(help="The id from the list.")]
) -> None:
    """Let one go: the next sync edits it in, if it still stands."""
    _decide(context.obj, row, "approved")


@quarantine.command("block", epilog="Example: factsync quarantine block 12")
def block(context: typer.Context, row: Annotated[int, typer.Argument(help="The id from the list.")]) -> None:
    """Keep one out for as long as it stands."""
    _decide(context.obj, row, "blocked")


_NOT_FOR_APPROVAL = ("blocked: on a block list", "label-missing", "burst")
"""How the reasons begin that a person's yes does not pass."""


def _decide(settings: Settings, row: int, decision: str) -> None:
    import getpass

    from flows.cli import show
    from flows.errors import UnknownSubjectError
    from flows.workspace import opened_model

    with opened_model(settings) as (ws, _), ws.writer() as lease:
        if not ws.ledger.decide(lease, row, decision, by=getpass.getuser()):
            raise UnknownSubjectError(
                f"Nothing with the id {row} is held back; see `factsync quarantine list`."
            )
        reason = next(one.reason for one in ws.ledger.pending(lease.model) if one.id == row)
    if decision == "approved" and reason.startswith(_NOT_FOR_APPROVAL):
        show.console().print(f"{row} is approved, and still held back until this is over: {reason}")
    else:
        show.console().print(f"{row} is {decision}; the next sync acts on it.")


@app.command(epilog="Example: factsync replay pulls.jsonl.gz --dry-run --json")
def replay(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="One pull a line; docs/replay.md describes it.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Up to the plan; no model is needed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Play a file of pulls as nightly syncs, through a real SPARQL server.

    Without --dry-run it edits the model of this home, which must sync from the local store.
    """
    settings: Settings = context.obj
    if not dry_run:
        settings.require_embedded("replay")
    from kb.replay import read_pulls

    pulls = read_pulls(file)
    if dry_run:
        _rehearse(settings, pulls, as_json=as_json)
    else:
        _replay_for_real(settings, pulls, as_json=as_json)


def _rehearse(settings: Settings, pulls: Sequence[Pull], *, as_json: bool) -> None:
    from flows.params import wikidata_relations
    from kb.replay import PROPERTY, Rehearsal, play
    from kb.replay_store import NightServer

    known = wikidata_relations(settings).only((PROPERTY,))
    rehearsal = Rehearsal(known, settings.trust)
    with (
        tempfile.TemporaryDirectory(prefix="factsync-replay-") as scratch,
        NightServer(Path(scratch)) as server,
    ):
        for night in play(pulls, known, rehearsal.trust, server.feed_of, rehearsal):
            typer.echo(json.dumps(night.summary(), ensure_ascii=False) if as_json else night.line())
    _facts(rehearsal.facts(), as_json=as_json)


def _replay_for_real(settings: Settings, pulls: Sequence[Pull], *, as_json: bool) -> None:
    from flows import local_prefect

    local_prefect.for_runs(settings)
    from flows.cli import show
    from flows.errors import GateError
    from flows.sync import sync
    from flows.workspace import opened_model
    from kb.replay import rounds
    from kb.store import LocalStore

    store = LocalStore(settings.store_dir)
    kept_back: list[str] = []
    with tempfile.TemporaryDirectory(prefix="factsync-replay-") as scratch:
        for one in rounds(pulls):
            path = Path(scratch) / f"night-{one.number}.nt"
            path.write_text(one.turtle(), encoding="utf-8")
            store.load(path)
            night = sync(as_of=one.at)
            said = show.night_summary(night)
            if as_json:
                summary = {"night": one.number, "at": one.at.isoformat(), "changes": night.plan.counts}
                _line({**summary, "promoted": night.promoted, "summary": said}, as_json=True)
            else:
                typer.echo(f"night {one.number} {one.at.isoformat()}: {said}")
            if not night.promoted and (night.candidate or night.held or night.waiting):
                kept_back.append(str(one.number))
    with opened_model(settings) as (ws, model):
        facts = [
            {"subject": row.subject, "property": row.property, "value": row.value, "label": row.label}
            for row in ws.ledger.live_facts(model)
        ]
    _facts(facts, as_json=as_json)
    if kept_back:
        raise GateError(
            "Nights that a gate, a guard or a waiting candidate kept out of the model: "
            f"{', '.join(kept_back)}. "
            "The line of each says why; what they left owed, `factsync sync` edits."
        )


def _line(summary: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(summary, ensure_ascii=False, default=str))
        return
    changes, reasons = summary["changes"], summary.get("reasons", {})
    text = ", ".join(f"{count} {kind}" for kind, count in changes.items()) or "nothing"
    if reasons:
        text += "; held back: " + ", ".join(f"{count} {why}" for why, count in reasons.items())
    typer.echo(f"night {summary['night']} {summary['at']}: {text}")


def _facts(facts: list[dict[str, str]], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"facts": facts}, ensure_ascii=False))
        return
    for fact in facts:
        typer.echo(f"{fact['subject']} {fact['property']} {fact['value']}  {fact['label']}")
    typer.echo(f"{len(facts)} facts held at the end.")


def _show_rows(
    rows: list[dict[str, str]], *, as_json: bool, whole: Sequence[str] = (), wide: Sequence[str] = ()
) -> None:
    from flows.cli import show

    if as_json:
        show.print_json(rows)
        return
    columns = tuple(rows[0]) if rows else ("nothing",)
    made = show.table(columns, (row.values() for row in rows), whole=whole, wide=wide)
    show.console().print(made)
