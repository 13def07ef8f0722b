"""The nightly sync: probe → pull → diff → plan → edit → check → promote."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime  # noqa: TC003 - Prefect reads the annotations at run time
from typing import TYPE_CHECKING, Annotated

from prefect import flow
from prefect.runtime import flow_run
from pydantic import Field

from flows import artifacts, batch, decide, heads, night, rebuild, tasks
from flows.errors import BurstError, GateError
from flows.gates import advice
from flows.models import register
from flows.progress import say
from flows.settings import Settings
from flows.states import Ending, beside, named_states
from flows.workspace import Workspace

if TYPE_CHECKING:
    from flows.planning import Plan
    from flows.rebuild import Rebuild
    from flows.writing import Candidate
    from storage.records.runs import Lease

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Night:
    """What a sync did.

    Attributes:
        run: its key in the ledger.
        at: the reference time.
        plan: what was decided, and why.
        candidate: the checkpoint it made; None if nothing was owed.
        promoted: whether that checkpoint is live now.
        waiting: why a checkpoint waits for a person, this run's or an earlier one's; empty if none does.
        rebuilt: the rebuild that followed by policy, if one did.
    """

    run: int
    at: datetime
    plan: Plan
    candidate: Candidate | None
    promoted: bool
    waiting: str = ""
    rebuilt: Rebuild | None = None

    @property
    def news(self) -> str:
        """What changed in the knowledge base; if nothing did, whether edits of earlier runs were made."""
        counts = ", ".join(f"{count} {kind}" for kind, count in self.plan.counts.items())
        return counts or ("nothing changed" if self.candidate is None else "nothing new, edits were owed")

    @property
    def held(self) -> str:
        """Why the burst guard let nothing be edited; empty if something was, or the guard has no say."""
        return self.plan.burst.held if self.candidate is None and not self.waiting else ""

    @property
    def beside(self) -> str:
        """What came beside a checkpoint, in sentences: a rebuild, and what the burst guard holds back."""
        return beside(self.rebuilt, "" if self.held else self.plan.burst.held)

    @property
    def ending(self) -> Ending:
        """How it ended, for the interface."""
        counts = self.news
        if self.promoted:
            digest = self.candidate.digest[:12] if self.candidate else ""
            return Ending("Promoted", f"{counts}; {digest} is live.{self.beside}")
        if self.waiting:
            return Ending("Waits for approval", f"{counts}. {self.waiting}{self.beside}")
        if self.candidate is not None:
            told = f"{self.candidate.failures}; {counts}.{self.beside}"
            return Ending("Rejected by a gate", told, ok=False)
        if self.held:
            return Ending("Held: burst", f"{self.held}; {counts}.", ok=False)
        return Ending("Nothing to do", f"{counts}.")


@flow(name="sync", flow_run_name="sync")
@named_states
def sync(
    as_of: datetime | None = None,
    limit: Annotated[int | None, Field(ge=1, le=100_000)] = None,
    approve_burst: bool = False,
    approval: bool = False,
) -> Night:
    """Bring the model up to date with the knowledge base.

    Running it twice does what running it once does; what a failed run left owed, the next one edits.

    Args:
        as_of: The moment to judge everything at. Empty: now (for the local sample, the moment it was taken).
        limit: Most edits in this run; the rest stays owed.
        approve_burst: Let through what the burst guard holds back; set it after looking at the plan.
        approval: Stop at a checkpoint that passed its gates, and let a person promote or reject it.
    """
    settings = Settings.read()
    with Workspace.open(settings) as ws:
        register(ws)
        with ws.writer() as lease:
            ws.ledger.recover(lease, ws.files)
            return _night(
                ws,
                lease,
                as_of,
                limit or settings.max_edits,
                approve_burst=approve_burst,
                approval=approval,
            )


def _night(
    ws: Workspace, lease: Lease, as_of: datetime | None, limit: int, *, approve_burst: bool, approval: bool
) -> Night:
    open_one = decide.expire(ws, lease)
    say("asking the knowledge base what changed")
    with ws.feed() as feed:
        seen = tasks.probe(ws, feed, as_of=as_of)
        pulled = tasks.pull(ws, lease.model, feed, seen)
    params = {
        "as_of": as_of and as_of.isoformat(),
        "limit": limit,
        "approve_burst": approve_burst,
        "approval": approval,
    }
    run = night.begin(ws, lease, seen, flow_run.id, params)
    with ws.run_closed(lease, run):
        say(f"comparing {len(pulled.statements)} statements with the ledger")
        tasks.diff(ws, lease, run, pulled)
        plan, _ = tasks.plan(ws, lease, run, pulled, burst_approved=approve_burst)
        artifacts.plan(plan, ws.relations)
        owed = ws.owed(lease.model)[:limit]
        counters = {"changes": plan.counts, "skipped": len(pulled.skipped), "owed": len(owed)}
        if open_one is not None:
            # What was planned stays owed; no other checkpoint can be made until somebody decides.
            waiting = heads.says_waiting(open_one)
            ws.ledger.finish_run(lease, run, "held", counters=counters, error=waiting)
            return Night(run, seen.at, plan, None, promoted=False, waiting=waiting)
        if not owed:
            state = "held" if plan.burst.stop else "nothing"
            ws.ledger.finish_run(lease, run, state, counters=counters)
            return Night(run, seen.at, plan, None, promoted=False)
        done = batch.edit_batch(ws, lease, run, owed, approval=approval)
        error = done.candidate.failures if done.state == batch.REJECTED else None
        if done.blamed or done.left:
            counters = {**counters, "failed_alone": dict(done.blamed), "left": done.left}
        ws.ledger.finish_run(lease, run, done.state, counters=counters, error=error)
    rebuilt = rebuild.compact(ws, lease) if done.promoted else None
    if done.promoted:
        artifacts.drift(ws, lease.model)
    waiting = ""
    if done.state == batch.CANDIDATE:
        waiting = (
            f"Checkpoint {done.candidate.digest[:12]} waits: run `factsync promote` or `factsync reject`."
        )
    return Night(run, seen.at, plan, done.candidate, done.promoted, waiting, rebuilt)


def require_promoted(night: Night) -> Night:
    """Turn a night that was rejected or held into an error, for callers that must not take it for a success.

    Raises:
        GateError: the candidate failed a gate.
        BurstError: the burst guard held the night.
    """
    if night.held:
        raise BurstError(
            f"The burst guard holds this night: {night.held}. Look at it with `factsync plan`, "
            "then let it through with `factsync sync --approve-burst`."
        )
    if night.candidate is not None and not night.promoted and not night.waiting:
        raise GateError(
            f"The night was rejected and yesterday's model stays: {night.candidate.failures}. "
            f"{batch.short_of(night.candidate)}{advice(night.candidate.gates)} "
            "The facts stay owed; the view recall_by_relation shows which relations fell short."
        )
    return night
