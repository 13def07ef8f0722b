"""A backfill: bring older, or newly configured, facts into the model, in batches with a checkpoint each.

It may be cancelled or killed at any point: what it pulled stands in the ledger, what it owes stands in the
queue, and the same backfill started again reads all once more and goes on with what is owed. The nightly
cursor never moves.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

from prefect import flow
from prefect.runtime import flow_run

from flows import artifacts, batch, decide, rebuild, tasks
from flows.dry_run import plan_of, untouched
from flows.models import register
from flows.params import (
    BatchSize,
    EditLimit,
    Minutes,
    RelationList,
    SubjectList,
    check_relations,
    check_subjects,
    check_window,
    synced_relations,
)
from flows.progress import report, say
from flows.settings import Settings
from flows.states import Ending, beside, named_states
from flows.workspace import Workspace
from kb.feed import FIRST_DAY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flows.planning import Plan
    from flows.pulling import Pulled, Seen
    from flows.rebuild import Rebuild
    from kb.feed import ChangeFeed
    from kb.model import Label, Probe
    from storage.records.planned import EditRequestRow
    from storage.records.runs import Lease

log = logging.getLogger(__name__)

PULL_PAGE = 500
"""Subjects fetched and stored at a time. A backfill that is started again fetches all once more: an item that
is known was read for other relations, as far as anybody can tell."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What a backfill is about.

    Attributes:
        relations: property ids.
        subjects: item ids; empty: whatever carries one of the relations and changed in the window.
        since: where the window begins; None: at Wikidata's first day.
        until: where it ends; None: now.
    """

    relations: tuple[str, ...]
    subjects: tuple[str, ...]
    since: datetime | None
    until: datetime | None


@dataclass(frozen=True, slots=True)
class Backfill:
    """What a backfill did.

    Attributes:
        run: its key in the ledger; None for a dry run.
        subjects: how many items it looked at.
        plan: what was decided, and why.
        batches: one a checkpoint.
        left: edits in its scope that are still owed.
        stopped: why its time was over before everything was done; empty if it was not.
        rebuilt: the rebuild that followed by policy, if one did.
    """

    run: int | None
    subjects: int
    plan: Plan | None
    batches: tuple[batch.Settled, ...] = ()
    left: int = 0
    stopped: str = ""
    rebuilt: Rebuild | None = None

    @property
    def ending(self) -> Ending:
        """How it ended."""
        if self.run is None:
            counts = (
                ", ".join(f"{count} {kind}" for kind, count in self.plan.counts.items()) if self.plan else ""
            )
            what = f"{self.subjects} items: {counts or 'nothing changed'}"
            return Ending("Dry run", f"{what}. Nothing was written; the plan is an artifact.")
        live = sum(one.live for one in self.batches)
        made = sum(one.checkpoints for one in self.batches)
        what = f"{self.subjects} items, {live} edits live in {made} checkpoints, {self.left} still owed"
        last = self.batches[-1].state if self.batches else ""
        if last == batch.REJECTED:
            return Ending("Rejected by a gate", f"{self.batches[-1].candidate.failures}; {what}.", ok=False)
        if last == batch.CANDIDATE:
            return Ending("Waits for approval", f"Promote or reject its checkpoint, then go on; {what}.")
        if not self.batches and self.plan is not None and self.plan.burst.stop:
            return Ending("Held: burst", f"{self.plan.burst.held}; {what}.", ok=False)
        if self.stopped:
            return Ending("Budget used", f"{self.stopped}; {what}. Start it again to go on.{self._beside}")
        return Ending("Promoted" if self.batches else "Nothing to do", f"{what}.{self._beside}")

    @property
    def _beside(self) -> str:
        return beside(self.rebuilt, self.plan.burst.held if self.plan is not None else "")


@flow(name="backfill")
@named_states
def backfill(  # noqa: PLR0917 - a form has no positions
    relations: RelationList = [],  # noqa: B006 - a form needs a list to begin with; it is never changed
    subjects: SubjectList = [],  # noqa: B006 - likewise
    since: date | None = None,
    until: date | None = None,
    limit: EditLimit = 1_000,
    batch_size: BatchSize = 200,
    budget_minutes: Minutes = 120,
    dry_run: bool = False,
    approval: bool = False,
    approve_burst: bool = False,
) -> Backfill:
    """Bring older or newly configured facts into the model.

    Cancelled or crashed, start it again with the same values: it goes on where it was.

    Args:
        relations: Relations to fill. None chosen: all that are synced.
        subjects: Items to look at, such as Q183. Empty: every item that carries one of the relations
            and changed in the window below.
        since: First day of the window (UTC). Empty: from the beginning of Wikidata.
        until: Last moment of the window: the beginning of this day (UTC). Empty: now.
        limit: Most edits in this run; the rest stays owed.
        batch_size: Edits a checkpoint. Larger is faster; smaller loses less to a failed gate.
        budget_minutes: No further page is read and no second batch begins after this time.
        dry_run: Only show the plan, as an artifact; write nothing.
        approval: Stop at the first checkpoint that passed its gates and let a person promote or reject it.
        approve_burst: Let it change an unusual share of a relation; look at a dry run first.
    """
    settings = Settings.read()
    window = check_window(since, until, datetime.now(UTC).date())
    scope = Scope(check_relations(relations, synced_relations(settings)), check_subjects(subjects), *window)
    if dry_run:
        return _look(settings, scope, approve_burst=approve_burst)
    deadline = time.monotonic() + 60.0 * budget_minutes
    with Workspace.open(settings) as ws:
        register(ws)
        with ws.writer() as lease:
            ws.ledger.recover(lease, ws.files)
            decide.require_none_waiting(ws, lease)
            work = _Work(ws, lease, scope, deadline, approval=approval, approve_burst=approve_burst)
            return work.run(limit, batch_size)


@dataclass
class _Work:
    """A backfill at work, with the right to write."""

    ws: Workspace
    lease: Lease
    scope: Scope
    deadline: float
    approval: bool
    approve_burst: bool

    def run(self, limit: int, size: int) -> Backfill:
        """Pull, plan, edit batch after batch."""
        ws, lease = self.ws, self.lease
        with ws.feed() as feed:
            found = find(ws, feed, self.scope)
            first = tasks.probe(ws, feed, subjects=found[:PULL_PAGE]) if found else None
            at = first.at if first is not None else ws.reference_time(feed.lag(), None)
            run = ws.ledger.begin_run(
                lease,
                "backfill",
                reference_time=at,
                flow_run_id=flow_run.id,
                params={
                    **_params(self.scope),
                    "limit": limit,
                    "batch_size": size,
                    "approve_burst": self.approve_burst,
                    "approval": self.approval,
                    "read": sorted(ws.relations),
                },
            )
            with ws.run_closed(lease, run):
                done = self._run(run, feed, found, first, limit=limit, size=size)
        if done.batches and done.batches[-1].promoted and time.monotonic() < self.deadline:
            done = replace(done, rebuilt=rebuild.compact(ws, lease))
        return done

    def _run(
        self, run: int, feed: ChangeFeed, found: Sequence[str], first: Seen | None, *, limit: int, size: int
    ) -> Backfill:
        ws, lease = self.ws, self.lease
        pulled, looked_at = self._pull(run, feed, found, first)
        made = None
        if pulled is not None:
            narrow = replace(ws, relations=ws.relations.only(self.scope.relations))
            say("planning")
            made, _ = tasks.plan(narrow, lease, run, pulled, burst_approved=self.approve_burst)
            artifacts.plan(made, ws.relations)
        settled, stopped = self._edit(run, self._owed(found[:looked_at])[:limit], size)
        if looked_at < len(found):
            stopped = (
                f"the time was over after {looked_at} of {len(found)} items, which are read again from the "
                "first one on: allow more minutes, or name fewer items or a shorter window"
            )
        done = Backfill(run, looked_at, made, settled, len(self._owed(found)), stopped)
        state = settled[-1].state if settled else "nothing"
        counters = {
            "changes": made.counts if made else {},
            "subjects": looked_at,
            "batches": len(settled),
            "owed": done.left,
        }
        held = done.ending.name == "Held: burst"
        error = settled[-1].candidate.failures if state == batch.REJECTED else stopped
        ws.ledger.finish_run(lease, run, "held" if held else state, counters=counters, error=error or None)
        return done

    def _pull(
        self, run: int, feed: ChangeFeed, found: Sequence[str], first: Seen | None
    ) -> tuple[Pulled | None, int]:
        """Fetch and store page after page.

        All synced relations, so that no night takes an item for read that was read in part.
        """
        ws, lease = self.ws, self.lease
        pulled: Pulled | None = None
        labels: dict[str, Label] = {}
        objects: dict[str, Probe] = {}
        at = first.at if first is not None else None
        done = 0
        for start in range(0, len(found), PULL_PAGE):
            if start and time.monotonic() > self.deadline:
                break
            page = found[start : start + PULL_PAGE]
            # One reference time a run, whenever its pages are read.
            seen = first if start == 0 and first else tasks.probe(ws, feed, as_of=at, subjects=page)
            pulled = tasks.pull(ws, lease.model, feed, whole(seen), marked=start == 0)
            tasks.diff(ws, lease, run, pulled, move_cursor=False)
            labels |= pulled.labels
            objects |= pulled.objects
            done = start + len(page)
            report("pull", done, len(found))
        if pulled is None:
            return None, 0
        return replace(pulled, labels=labels, objects=objects), done

    def _owed(self, found: Sequence[str]) -> list[EditRequestRow]:
        """What is owed in this backfill's scope, also from an earlier start of it."""
        subjects, relations = set(found), set(self.scope.relations)
        return [
            row
            for row in self.ws.owed(self.lease.model)
            if row.subject in subjects and row.property in relations
        ]

    def _edit(
        self, run: int, owed: Sequence[EditRequestRow], size: int
    ) -> tuple[tuple[batch.Settled, ...], str]:
        settled: list[batch.Settled] = []
        parts = list(batch.batches(owed, size))
        for number, part in enumerate(parts, start=1):
            if settled and time.monotonic() > self.deadline:
                return tuple(settled), f"the time was over after {number - 1} of {len(parts)} batches"
            say(f"batch {number} of {len(parts)}")
            settled.append(
                batch.edit_batch(self.ws, self.lease, run, part, approval=self.approval, number=number)
            )
            report("batches", number, len(parts))
            if not settled[-1].promoted:
                break
        return tuple(settled), ""


def find(ws: Workspace, feed: ChangeFeed, scope: Scope) -> list[str]:
    """The items that a backfill looks at."""
    if scope.subjects:
        return list(scope.subjects)
    say("looking for items")
    chosen = ws.relations.only(scope.relations)
    return feed.discover(scope.since or FIRST_DAY, scope.until or datetime.now(UTC), chosen.values())


def whole(seen: Seen) -> Seen:
    """Fetch every item, also those whose revision is known: its new relations were never read."""
    present = {probe.subject for probe in seen.probes if probe.revision is not None}
    changed = [probe.subject for probe in seen.probes if probe.subject in present | set(seen.changed)]
    return replace(seen, changed=tuple(changed))


def _look(settings: Settings, scope: Scope, *, approve_burst: bool) -> Backfill:
    """The plan alone; nothing is written."""
    with untouched(settings) as readable, Workspace.open(readable) as ws, ws.feed() as feed:
        found = find(ws, feed, scope)
        if not found:
            return Backfill(None, 0, None)
        narrow = replace(ws, relations=ws.relations.only(scope.relations))
        seen = tasks.probe(narrow, feed, subjects=found)
        made = plan_of(narrow, feed, whole(seen), burst_approved=approve_burst)
        artifacts.plan(made, ws.relations, dry=True)
        return Backfill(None, len(found), made)


def _params(scope: Scope) -> dict[str, object]:
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in asdict(scope).items()
    }
