"""The steps of a night that read and plan, as plain functions: what `flows/sync.py` and its kin put in order.

Each step is one arrow of docs/architecture.md. Steps that write take the lease; the ledger fences them.
"""

from __future__ import annotations

import logging
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING

from flows import merging, planning, pulling, translate

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from flows.planning import Plan
    from flows.pulling import Pulled, Seen
    from flows.workspace import Workspace
    from kb.feed import ChangeFeed
    from storage.records import Pair
    from storage.records.planned import Group, PlanReport
    from storage.records.pulled import IngestReport
    from storage.records.runs import Lease, Model


log = logging.getLogger(__name__)


def probe(
    ws: Workspace,
    feed: ChangeFeed,
    *,
    as_of: datetime | None = None,
    since: datetime | None = None,
    subjects: Sequence[str] = (),
) -> Seen:
    """Ask the source for the revision of everything tracked, and for new subjects.

    An item that another model of the ledger, or a backfill, read for other relations was read in part: its
    revision is known, its other statements are not. Then everything is fetched anew. So are, where the
    model's own last sync left a relation out, the items that had statements of it.
    """
    lag = feed.lag()
    read = ws.ledger.read_beside(ws.model_name)
    anew = not subjects and read is not None and not read.issuperset(ws.relations)
    if anew:
        log.warning("Everything is read again: another run read items for other relations than these")
    last = ws.ledger.read_last(ws.model_name)
    back = sorted(set(ws.relations) - last) if last is not None else []
    if back:
        log.warning(
            "The last sync left %s out: items that got a statement of it in earlier nights are read when "
            "they are next edited, or by `factsync backfill`",
            ", ".join(back),
        )
    return pulling.probe(
        feed,
        ws.relations,
        {row.id: row for row in ws.ledger.tracked()},
        at=ws.reference_time(lag, as_of),
        lag=lag,
        cursor=None if since else ws.ledger.cursor(ws.source),
        since=since or ws.settings.since,
        subjects=subjects,
        anew=anew,
        again={row.id for row in ws.ledger.tracked(back)} if back else (),
    )


def pull(ws: Workspace, model: Model, feed: ChangeFeed, seen: Seen, *, marked: bool = True) -> Pulled:
    """Fetch what changed, and look at the objects whose own items may have changed meanwhile.

    Args:
        ws: the home.
        model: who holds what.
        feed: the source.
        seen: what the probe found.
        marked: also at the objects of groups that an earlier run read and did not plan. Later pages of one
            backfill need not.
    """
    objects = {row.value for row in ws.ledger.live_facts(model) if row.value_kind == "item"}
    objects |= {row.value for row in ws.ledger.pending(model) if row.value and row.value_kind == "item"}
    if marked:
        pairs = [pair for pair in ws.ledger.pairs_to_review(model) if pair[1] in ws.relations]
        read = (row for group in ws.ledger.groups(model, pairs) for row in group.statements)
        objects |= {row.value for row in read if row.value_kind == "item"}
    return pulling.pull(
        feed,
        ws.relations,
        seen,
        objects=objects,
        max_lag_hours=float("inf") if ws.settings.is_embedded else ws.settings.max_lag_hours,
    )


def begin(
    ws: Workspace,
    lease: Lease,
    seen: Seen,
    flow_run_id: str | None = None,
    params: Mapping[str, object] | None = None,
) -> int:
    """Open the run of a sync; it notes what it was called with, and for which relations it reads items."""
    noted = {**(params or {}), "read": sorted(ws.relations)}
    return ws.ledger.begin_run(lease, "sync", reference_time=seen.at, flow_run_id=flow_run_id, params=noted)


def record(
    ws: Workspace, lease: Lease, run: int, pulled: Pulled, *, move_cursor: bool = True
) -> IngestReport:
    """Store what was pulled and move the read cursor: one transaction. What was discovered is now followed.

    A pull of chosen subjects must not move the cursor: it did not read all that changed.
    """
    ws.ledger.track(lease, [one.subject for one in pulled.seen.probes if not one.is_deleted])
    return ws.ledger.ingest(
        lease,
        run,
        source=ws.source,
        cursor_to=pulled.cursor_to if move_cursor else None,
        lag_at=pulled.seen.lag,
        entities=translate.entity_rows(
            pulled.seen.probes, pulled.labels, pulled.redirects, pulled.unlabelled
        ),
        statements=[translate.statement_row(one) for one in pulled.statements],
        pulled_groups=pulled.pairs(ws.relations),
    )


def plan(
    ws: Workspace, lease: Lease, run: int, pulled: Pulled, *, burst_approved: bool = False
) -> tuple[Plan, PlanReport]:
    """Decide every group that changed or waits, and record changes, holds and owed edits: one transaction."""
    merged = redirects(ws, pulled)
    pairs = merging.family(under_review(ws, lease.model, pulled), merged)
    groups = ws.ledger.groups(lease.model, pairs, gone_since=gone_since(ws, pulled))
    made = decide(ws, lease.model, groups, pulled, redirects=merged, burst_approved=burst_approved)
    report = ws.ledger.record_plan(
        lease,
        run,
        [planning.change_row(made, change) for change in made.changes],
        planning.requests(made, ws.relations),
        reviewed=made.reviewed,
        flip_memory=timedelta(hours=ws.settings.trust.flip_memory_hours),
    )
    return made, report


def gone_since(ws: Workspace, pulled: Pulled) -> datetime:
    """Since when a value that went is remembered: one that comes back is a flip."""
    return pulled.seen.at - timedelta(hours=ws.settings.trust.flip_memory_hours)


def under_review(ws: Workspace, model: Model, pulled: Pulled) -> set[Pair]:
    """The groups that a plan looks at: those marked, those in which something waits, those relabelled."""
    return ws.ledger.pairs_to_review(model) | _relabelled(ws, model, pulled)


def _relabelled(ws: Workspace, model: Model, pulled: Pulled) -> set[Pair]:
    """Groups whose object reads differently than it was taught: looked at, and never edited for it."""
    return {
        (row.subject, row.property)
        for row in ws.ledger.live_facts(model)
        if (label := pulled.labels.get(row.value)) is not None and label.text != row.label
    }


def redirects(ws: Workspace, pulled: Pulled) -> dict[str, str]:
    """Target by merged item, as far as the ledger and tonight's probe know."""
    known = {row.id: row.redirect_to for row in ws.ledger.tracked() if row.redirect_to}
    return {one: known[one] for one in known if one not in pulled.standing} | pulled.redirects


def decide(
    ws: Workspace,
    model: Model,
    groups: Iterable[Group],
    pulled: Pulled,
    *,
    redirects: Mapping[str, str],
    burst_approved: bool = False,
) -> Plan:
    """What the groups under review come to; nothing is written."""
    held = Counter(row.property for row in ws.ledger.live_facts(model))
    followed = [row for row in ws.ledger.tracked() if not (row.redirect_to or row.deleted)]
    return planning.make_plan(
        groups,
        ws.relations,
        ws.settings.trust,
        pulled.seen.at,
        held_per_relation=held,
        redirects=redirects,
        object_modified=pulled.object_modified,
        standing=pulled.standing,
        tracked=[label for row in followed if (label := translate.label(row)) is not None],
        burst_approved=burst_approved,
    )
