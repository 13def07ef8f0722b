"""What a sync would do, with nothing written: the same pull and the same rules."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from flows import merging, night, translate
from flows.workspace import Workspace
from kb.semantics import resolve
from storage.database import parse_url, sqlite_path
from storage.records.runs import Model

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from flows.planning import Plan
    from flows.pulling import Pulled, Seen
    from flows.settings import Settings
    from kb.feed import ChangeFeed
    from storage.records import Pair
    from storage.records.planned import EditRequestRow, Group
    from storage.records.pulled import EntityRow, StatementRow


def dry_run(settings: Settings, as_of: datetime | None = None) -> Plan:
    """Plan a sync without writing anything, not even an empty ledger where there is none yet.

    Args:
        settings: the home.
        as_of: the reference time; None as in a sync.
    """
    with untouched(settings) as readable, Workspace.open(readable) as ws, ws.feed() as feed:
        return plan_of(ws, feed, night.probe(ws, feed, as_of=as_of))


def owed_beside(settings: Settings, plan: Plan) -> list[EditRequestRow]:
    """The edits that earlier runs left owed, without those that a plan decides anew: a sync makes them too.

    Args:
        settings: the home.
        plan: what `dry_run` came to.
    """
    decided = {*plan.reviewed, *((one.subject, one.property) for one in plan.changes)}
    with untouched(settings) as readable, Workspace.open(readable) as ws:
        model = ws.model
        owed = [] if model is None else ws.owed(model)
    return [row for row in owed if (row.subject, row.property) not in decided]


@contextlib.contextmanager
def untouched(settings: Settings) -> Iterator[Settings]:
    """Settings whose ledger may be opened to look: an empty one elsewhere, where this home has none yet."""
    path = sqlite_path(parse_url(settings.resolved_ledger_url))
    if path is None or path.exists():
        yield settings
        return
    with tempfile.TemporaryDirectory(prefix="factsync-plan-") as scratch:
        yield settings.model_copy(update={"ledger_url": f"sqlite:///{Path(scratch) / 'ledger.db'}"})


def plan_of(ws: Workspace, feed: ChangeFeed, seen: Seen, *, burst_approved: bool = False) -> Plan:
    """Plan what a probe found; nothing is written."""
    model = ws.model or _UNKNOWN
    pulled = night.pull(ws, model, feed, seen)
    merged = night.redirects(ws, pulled)
    groups = _overlaid(ws, model, pulled, merged)
    return night.decide(ws, model, groups, pulled, redirects=merged, burst_approved=burst_approved)


_UNKNOWN = Model(id=-1, name="", base_ref="", base_digest="", head=None, head_digest=None, epoch=0)
"""A model that the ledger does not know holds nothing, and has looked at nothing that was read for others."""


def _under_review(ws: Workspace, model: Model, pulled: Pulled) -> set[Pair]:
    if model is _UNKNOWN:
        return {(row.id, prop) for row in ws.ledger.tracked() for prop in ws.relations}
    return night.under_review(ws, model, pulled)


def _overlaid(ws: Workspace, model: Model, pulled: Pulled, merged: Mapping[str, str]) -> Iterator[Group]:
    """The groups a plan would look at, with tonight's statements in place of the ledger's."""
    rows: dict[tuple[str, str], list[StatementRow]] = {}
    for one in pulled.statements:
        rows.setdefault((one.subject, one.property), []).append(translate.statement_row(one))
    fresh, read = set(pulled.seen.changed), set(pulled.pairs(ws.relations))
    found = translate.entity_rows(pulled.seen.probes, pulled.labels, pulled.redirects, pulled.unlabelled)
    entities = {row.id: row for row in found}
    held = {
        (row.subject, row.property)
        for row in ws.ledger.live_facts(model)
        if resolve(row.subject, merged) in fresh or row.subject in fresh
    }
    pairs = merging.family({*rows, *held, *_under_review(ws, model, pulled)}, merged)
    for group in ws.ledger.groups(model, pairs, gone_since=night.gone_since(ws, pulled)):
        pair = (group.subject, group.property)
        labels = dict(group.labels)
        labels.update({value: row for value, row in entities.items() if value != group.subject})
        entity = entities.get(group.subject, group.entity)
        if entity.label is None:
            entity = replace(entity, label=group.entity.label, language=group.entity.language)
        statements = {row.id: row for row in group.statements if pair not in read}
        statements |= {row.id: row for row in rows.get(pair, ())}
        yield replace(group, entity=entity, statements=tuple(statements.values()), labels=_named(labels))


def _named(labels: dict[str, EntityRow]) -> dict[str, EntityRow]:
    return {entity: row for entity, row in labels.items() if row.label}
