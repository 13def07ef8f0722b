"""A rebuild: all live facts again, from the base model, as one checkpoint through the same gates.

Stored target states are taken where what they depend on is unchanged, so it costs a small part of the edits.
It applies new editing settings to old facts (a larger λ gives perplexity back), refines facts that slipped,
and makes a long lineage one change. Nights refine the few older facts that slipped most; a rebuild asks all,
so the policy (`compact`) runs one every twenty nights unless it is set otherwise (benchmarks/RESULTS.md).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from prefect import flow
from prefect.runtime import flow_run

from editor.errors import EditorError
from flows import batch, decide, policy, tasks
from flows.errors import FlowError
from flows.models import register
from flows.progress import report, say
from flows.settings import Settings
from flows.states import Ending, named_states
from flows.workspace import Workspace
from storage.errors import LedgerError, StaleLeaseError

if TYPE_CHECKING:
    from flows.writing import Candidate
    from storage.records.runs import Lease

log = logging.getLogger(__name__)

SAME = "the live checkpoint is this very rebuild"


@dataclass(frozen=True, slots=True)
class Rebuild:
    """What a rebuild did.

    Attributes:
        run: its key in the ledger; None if nothing is live.
        reused: subjects whose stored state was taken.
        refined: those of them whose state was then refined.
        optimised: subjects that were edited anew.
        write_s: seconds of the editor, without loading and asking.
        candidate: the checkpoint; None if there was nothing to make.
        state: of the run, in the ledger's words.
        why: why there was nothing to make.
    """

    run: int | None
    reused: int = 0
    refined: int = 0
    optimised: int = 0
    write_s: float = 0.0
    candidate: Candidate | None = None
    state: str = "nothing"
    why: str = "no fact is live"

    @property
    def ending(self) -> Ending:
        """How it ended."""
        if self.candidate is None:
            return Ending("Nothing to do", f"{self.why[:1].upper()}{self.why[1:]}.")
        what = (
            f"{self.reused} stored subjects ({self.refined} refined) and {self.optimised} found anew, "
            f"written in {self.write_s:.1f} s"
        )
        digest = self.candidate.digest[:12]
        if self.state == batch.SUCCEEDED:
            return Ending("Promoted", f"{digest} is live: {what}.")
        if self.state == batch.CANDIDATE:
            return Ending("Waits for approval", f"Promote or reject {digest}: {what}.")
        return Ending("Rejected by a gate", f"{self.candidate.failures}; {what}.", ok=False)


@flow(name="rebuild")
@named_states
def rebuild(anew: bool = False, refine: bool = False, approval: bool = False) -> Rebuild:
    """Make a checkpoint of all live facts from the base model, in one solve.

    The same gates decide about it as about a night, over every live fact. What is owed stays owed.

    Args:
        anew: Find every target state anew, also where the stored one would do. As slow as all edits were.
        refine: Ask all live facts and refine those that the rebuilt weights do not say. New editing settings
            do it in any case.
        approval: Stop at a checkpoint that passed its gates, and let a person promote or reject it.
    """
    with Workspace.open(Settings.read()) as ws:
        register(ws)
        with ws.writer() as lease:
            ws.ledger.recover(lease, ws.files)
            decide.require_none_waiting(ws, lease)
            return run(ws, lease, anew=anew, refine=refine, approval=approval)


def run(
    ws: Workspace,
    lease: Lease,
    *,
    anew: bool = False,
    refine: bool = False,
    approval: bool = False,
    why: str = "by hand",
) -> Rebuild:
    """Rebuild, check, decide; one run of the ledger.

    Args:
        ws: the home.
        lease: the right to write.
        anew: find every target state anew.
        refine: refine what the rebuilt weights do not say.
        approval: leave the decision to a person.
        why: for the ledger.
    """
    if not ws.ledger.live_facts(lease.model):
        return Rebuild(None)
    params = {"why": why, "anew": anew, "refine": refine, "approval": approval}
    number = ws.ledger.begin_run(
        lease, "rebuild", reference_time=datetime.now(UTC), flow_run_id=flow_run.id, params=params
    )
    with ws.run_closed(lease, number):
        done = _run(ws, lease, number, anew=anew, refine=refine, approval=approval)
    counters = {
        "reused": done.reused,
        "refined": done.refined,
        "optimised": done.optimised,
        "write_s": round(done.write_s, 2),
    }
    failed = done.candidate.failures if done.candidate and done.state == batch.REJECTED else None
    ws.ledger.finish_run(lease, number, done.state, counters=counters, error=failed)
    return done


def _run(ws: Workspace, lease: Lease, number: int, *, anew: bool, refine: bool, approval: bool) -> Rebuild:
    say("writing all live facts into the base model")
    made = tasks.remake(ws, lease, number, anew=anew, refine=refine, progress=report)
    counts = (made.reused, made.refined, made.optimised, made.write_s)
    lineage = ws.ledger.lineage(lease.model)
    if made.edited.digest in {row.digest for row in lineage}:
        # An earlier one: what nights brought since then has left again. A lineage holds a content once.
        short = made.edited.digest[:12]
        live = lineage[-1].digest == made.edited.digest
        why = SAME if live else f"{short} is this very rebuild; `factsync rollback {short}` makes it live"
        ws.ledger.reject(lease, made.edited.intent.id, reason=why)
        return Rebuild(number, *counts, why=why)
    say("asking the rebuilt model what it knows")
    candidate = tasks.check(ws, lease, made.edited, report)
    settled = batch.settle(ws, lease, candidate, 0, approval=approval)
    return Rebuild(number, *counts, candidate, settled.state)


def compact(ws: Workspace, lease: Lease) -> Rebuild | None:
    """Rebuild if the policy says so; one that fails or that a gate rejects leaves the model of the night."""
    why = policy.wanted(ws, lease)
    if not why:
        return None
    say(f"a rebuild is due: {why}")
    try:
        done = run(ws, lease, refine=True, why=why)
    except StaleLeaseError:
        raise
    except (EditorError, FlowError, LedgerError, OSError) as error:
        log.warning("The rebuild that was due failed: %s", error)
        return Rebuild(None, state="failed", why=f"it failed, and the night's model stays ({error})")
    if done.candidate is not None and done.state != batch.SUCCEEDED:
        log.warning("The rebuild that was due is not live: %s", done.ending.message)
    return done
