"""What a plan leaves in the ledger: reasons, what waits, what is owed."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event

from storage.errors import CheckpointStateError, ConflictStandsError, UnknownStatementError
from storage.records.planned import ChangeRow, EditRequestRow, PlanReport
from tests.unit.storage import steps
from tests.unit.storage.steps import night, statement

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from storage.ledger import Ledger
    from storage.records.runs import Lease


class Desk:
    """Plans for one fact, night after night."""

    def __init__(self, ledger: Ledger, lease: Lease) -> None:
        self.ledger = ledger
        self.lease = lease
        self.number = 0
        self.flip_memory = steps.FLIP_MEMORY

    def night(self, *, ended: bool = True) -> int:
        self.number += 1
        run = self.ledger.begin_run(self.lease, "sync", reference_time=night(self.number))
        if ended:
            self.ledger.finish_run(self.lease, run, "nothing")
        return run

    def see(self, value: str | None, revision: int, run: int) -> None:
        self.ledger.ingest(
            self.lease,
            run,
            source=steps.SOURCE,
            cursor_to=None,
            entities=[],
            statements=[] if value is None else [statement("Q1", "P6", value, revision)],
            pulled_groups=[("Q1", "P6")],
        )

    def record(
        self, run: int, changes: Sequence[ChangeRow], requests: Sequence[EditRequestRow] = ()
    ) -> PlanReport:
        """Record a plan that looked at the one group just now."""
        (group,) = self.ledger.groups(self.lease.model, [("Q1", "P6")])
        return self.ledger.record_plan(
            self.lease,
            run,
            changes,
            requests,
            reviewed={("Q1", "P6"): group.marks},
            flip_memory=self.flip_memory,
        )

    def wish(self, value: str, revision: int, run: int) -> PlanReport:
        self.see(value, revision, run)
        return self.record(run, [change("insert", value)], [request(value, revision)])

    def hold(self, value: str | None, run: int, kind: str = "quarantine") -> PlanReport:
        return self.record(run, [change(kind, value)])

    def owed(self) -> list[tuple[str | None, int]]:
        return [(row.value, row.sources[0][1]) for row in self.ledger.owed(self.lease.model)]

    def states(self) -> list[tuple[str, str]]:
        return list(self.ledger.query("SELECT value, state FROM edit_request ORDER BY id").rows)  # type: ignore[arg-type]


def change(kind: str, value: str | None) -> ChangeRow:
    return ChangeRow(
        kind, "Q1", "P6", reason=f"because {kind}", new_value_kind="item", new_value=value, new_label=value
    )


def request(value: str, revision: int, op: str = "insert") -> EditRequestRow:
    return EditRequestRow(
        "Q1", "P6", "", op, "One", value, ("{} is led by",), value_kind="item", value=value,
        sources=(("Q1$P6", revision),),
    )  # fmt: skip


@pytest.fixture
def desk(ledger: Ledger) -> Iterator[Desk]:
    ledger.ensure_model(steps.MODEL, "local", steps.BASE)
    with ledger.writer(steps.MODEL, holder="test") as lease:
        yield Desk(ledger, lease)


def test_recording_a_plan_twice_is_recording_it_once(desk: Desk) -> None:
    run = desk.night()
    assert desk.wish("Q10", 1, run) == PlanReport({"insert": 1}, 1, 0, 0, 0, 0)
    assert desk.wish("Q10", 1, run) == PlanReport({"insert": 1}, 0, 1, 0, 0, 0)
    assert desk.owed() == [("Q10", 1)]
    assert desk.ledger.query("SELECT count(*) FROM change").rows == ((1,),)
    assert steps.to_review(desk.ledger, desk.lease.model) == []


def test_a_newer_wish_replaces_the_older(desk: Desk) -> None:
    desk.wish("Q10", 1, desk.night())
    assert desk.wish("Q11", 2, desk.night()).superseded == 1
    assert desk.owed() == [("Q11", 2)]
    # Back to the first value at a new revision: a third wish. At its very first revision: the first one
    # again.
    desk.wish("Q10", 3, desk.night())
    assert desk.owed() == [("Q10", 3)]
    desk.wish("Q10", 1, desk.night())
    assert desk.owed() == [("Q10", 1)]
    assert [state for _, state in desk.states()] == ["pending", "superseded", "superseded"]


def test_a_wish_that_is_wished_no_more_is_withdrawn(desk: Desk) -> None:
    desk.wish("Q10", 1, desk.night())
    run = desk.night()
    desk.see(None, 2, run)
    report = desk.record(run, [])
    assert (report.superseded, desk.owed()) == (1, [])


def test_a_wish_that_is_held_back_now_is_withdrawn(desk: Desk) -> None:
    desk.wish("Q10", 1, desk.night())
    assert desk.hold("Q11", desk.night()).superseded == 1
    assert desk.owed() == []


def test_a_request_rests_on_statements_that_were_ingested(desk: Desk) -> None:
    with pytest.raises(UnknownStatementError):
        desk.record(desk.night(), [], [request("Q10", 1)])
    assert desk.owed() == []


def test_a_retraction_may_rest_on_a_statement_that_is_gone(desk: Desk) -> None:
    desk.see("Q10", 1, desk.night())
    run = desk.night()
    desk.see(None, 2, run)
    gone = EditRequestRow("Q1", "P6", "", "retract", "One", "", (), sources=(("Q1$P6", 1),))
    desk.record(run, [change("retract", None)], [gone])
    assert desk.ledger.owed(desk.lease.model)[0].sources == (("Q1$P6", 1),)


def test_a_request_rests_on_the_version_that_stands_or_else_on_the_last(desk: Desk) -> None:
    for revision, value in enumerate(("Q10", "Q11", "Q12"), start=1):
        desk.wish(value, revision, desk.night())
    run = desk.night()
    desk.see(None, 4, run)
    gone = EditRequestRow("Q1", "P6", "", "retract", "One", "", (), sources=(("Q1$P6", 3),))
    desk.record(run, [change("retract", None)], [gone])
    behind = desk.ledger.query(
        "SELECT r.value, s.value FROM request_source x JOIN edit_request r ON r.id = x.request_id"
        " JOIN statement s ON s.id = x.statement_id ORDER BY r.id"
    ).rows
    assert list(behind) == [("Q10", "Q10"), ("Q11", "Q11"), ("Q12", "Q12"), (None, "Q12")]


def test_a_pull_is_a_sighting_and_the_same_night_twice_is_one(desk: Desk) -> None:
    first = desk.night()
    desk.hold("Q10", first)
    desk.hold("Q10", first)
    desk.hold("Q10", desk.night())
    (pending,) = desk.ledger.pending(desk.lease.model)
    assert (pending.sightings, pending.first_seen_at, pending.last_seen_at) == (2, night(1), night(2))
    assert (pending.reason, pending.previous_values) == ("because quarantine", ())


def test_a_value_that_gives_way_while_it_waits_is_remembered(desk: Desk) -> None:
    for value in ("Q10", "Q11", None, "Q10"):
        desk.hold(value, desk.night())
    (pending,) = desk.ledger.pending(desk.lease.model)
    assert (pending.value, pending.sightings, pending.previous_values) == ("Q10", 1, ("Q10", "Q11", ""))
    assert pending.first_seen_at == night(4)
    resolutions = desk.ledger.query("SELECT resolution FROM quarantine ORDER BY quarantine_id").rows
    assert [row[0] for row in resolutions] == ["replaced", "replaced", "replaced", None]


def test_what_waited_is_released_or_withdrawn(desk: Desk) -> None:
    desk.hold("Q10", desk.night())
    assert desk.wish("Q10", 1, desk.night()).released == 1
    desk.hold("Q12", desk.night())
    desk.record(desk.night(), [change("unchanged", "Q10")])
    resolutions = desk.ledger.query("SELECT value, resolution FROM quarantine ORDER BY quarantine_id").rows
    assert list(resolutions) == [("Q10", "released"), ("Q12", "withdrawn")]
    assert desk.ledger.pending(desk.lease.model) == []


def test_a_conflict_that_ends_leaves_no_vacancy_behind(desk: Desk) -> None:
    desk.hold(None, desk.night(), kind="conflict")
    desk.hold(None, desk.night())
    (pending,) = desk.ledger.pending(desk.lease.model)
    assert (pending.kind, pending.previous_values) == ("quarantine", ())


@pytest.mark.parametrize(("kind", "resolution"), [("quarantine", "released"), ("conflict", "withdrawn")])
def test_what_ends_is_the_vacancy_that_waited_and_not_a_conflict(
    desk: Desk, kind: str, resolution: str
) -> None:
    desk.hold(None, desk.night(), kind=kind)
    desk.record(desk.night(), [change("retract", None)])
    assert desk.ledger.query("SELECT resolution FROM quarantine").rows == ((resolution,),)


def test_what_waits_is_reviewed_every_night_and_carries_a_persons_word(desk: Desk) -> None:
    desk.hold("Q10", desk.night())
    (pending,) = desk.ledger.pending(desk.lease.model)
    assert desk.ledger.decide(desk.lease, pending.id, "approved", by="Kim")
    assert not desk.ledger.decide(desk.lease, pending.id + 1, "approved", by="Kim")
    (group,) = steps.to_review(desk.ledger, desk.lease.model)
    assert [(row.kind, row.decision) for row in group.pending] == [("quarantine", "approved")]


def test_a_conflict_takes_no_persons_word(desk: Desk) -> None:
    desk.hold(None, desk.night(), kind="conflict")
    (pending,) = desk.ledger.pending(desk.lease.model)
    with pytest.raises(ConflictStandsError, match="only Wikidata"):
        desk.ledger.decide(desk.lease, pending.id, "approved", by="Kim")
    (pending,) = desk.ledger.pending(desk.lease.model)
    assert pending.decision is None


@pytest.mark.parametrize("between", ["another value", "a conflict", "nothing"])
@pytest.mark.parametrize(("word", "kept"), [("blocked", "blocked"), ("approved", None)])
def test_a_persons_no_outlasts_a_night_that_says_otherwise(
    desk: Desk, between: str, word: str, kept: str | None
) -> None:
    desk.hold("Q10", desk.night())
    (pending,) = desk.ledger.pending(desk.lease.model)
    desk.ledger.decide(desk.lease, pending.id, word, by="Kim")
    run = desk.night()
    if between == "another value":
        desk.hold("Q11", run)
        assert [row.decision for row in desk.ledger.pending(desk.lease.model)] == [None]
    elif between == "a conflict":
        desk.hold(None, run, kind="conflict")
        assert [row.decision for row in desk.ledger.pending(desk.lease.model)] == [None]
    else:
        desk.record(run, [change("unchanged", "Q11")])
    desk.hold("Q10", desk.night())
    (pending,) = desk.ledger.pending(desk.lease.model)
    assert (pending.value, pending.decision) == ("Q10", kept)
    by = desk.ledger.query("SELECT decided_by FROM held_back WHERE resolved_at IS NULL").rows
    assert list(by) == [("Kim" if kept else None,)]


def test_a_no_that_was_taken_back_is_not_said_again(desk: Desk) -> None:
    desk.hold("Q10", desk.night())
    (pending,) = desk.ledger.pending(desk.lease.model)
    desk.ledger.decide(desk.lease, pending.id, "blocked", by="Kim")
    desk.hold("Q11", desk.night())
    desk.hold("Q10", desk.night())
    (pending,) = desk.ledger.pending(desk.lease.model)
    assert pending.decision == "blocked"
    desk.ledger.decide(desk.lease, pending.id, "approved", by="Lee")
    desk.hold("Q11", desk.night())
    desk.hold("Q10", desk.night())
    (pending,) = desk.ledger.pending(desk.lease.model)
    assert pending.decision is None


@pytest.mark.parametrize(("old", "decision"), [("Q10", "blocked"), ("Q11", None)])
def test_a_no_to_a_retraction_is_about_the_value_that_stood_then(
    desk: Desk, old: str, decision: str | None
) -> None:
    desk.record(desk.night(), [replace(change("quarantine", None), old_value="Q10")])
    (pending,) = desk.ledger.pending(desk.lease.model)
    desk.ledger.decide(desk.lease, pending.id, "blocked", by="Kim")
    desk.record(desk.night(), [change("unchanged", "Q10")])
    desk.record(desk.night(), [replace(change("quarantine", None), old_value=old)])
    (pending,) = desk.ledger.pending(desk.lease.model)
    assert pending.decision == decision


def test_a_newer_wish_overtakes_one_that_is_being_tried(desk: Desk) -> None:
    desk.wish("Q10", 1, desk.night())
    run = desk.night(ended=False)
    (tried,) = desk.ledger.owed(desk.lease.model)
    intent = desk.ledger.begin_checkpoint(desk.lease, run, [tried.id or 0], algorithm="memit", settings={})
    desk.wish("Q11", 2, run)
    assert desk.ledger.reject(desk.lease, intent.id, reason="recall too low") == 0
    assert desk.states() == [("Q10", "superseded"), ("Q11", "pending")]


def test_a_failed_request_is_not_queued_again_by_the_same_wish(desk: Desk) -> None:
    desk.wish("Q10", 1, desk.night())
    run = desk.night(ended=False)
    (tried,) = desk.ledger.owed(desk.lease.model)
    intent = desk.ledger.begin_checkpoint(desk.lease, run, [tried.id or 0], algorithm="memit", settings={})
    desk.ledger.reject(desk.lease, intent.id, reason="never works", failed=[tried.id or 0])
    assert desk.states() == [("Q10", "failed")]
    assert desk.wish("Q10", 1, run).known == 1
    assert desk.owed() == []
    with pytest.raises(CheckpointStateError):
        desk.ledger.begin_checkpoint(desk.lease, run, [tried.id or 0], algorithm="memit", settings={})


def test_reviewing_many_groups_asks_few_questions(desk: Desk) -> None:
    run = desk.night()
    desk.ledger.ingest(
        desk.lease,
        run,
        source=steps.SOURCE,
        cursor_to=None,
        entities=[],
        statements=[statement(f"Q{number}", "P6", f"Q{number + 1}", 1) for number in range(300)],
        pulled_groups=[],
    )
    asked = []
    event.listen(desk.ledger.engine, "before_cursor_execute", lambda *args: asked.append(args[2]))
    groups = steps.to_review(desk.ledger, desk.lease.model, page_size=100)
    assert len(groups) == 300
    assert [(g.subject, g.property) for g in groups] == sorted((g.subject, g.property) for g in groups)
    questions = [sql for sql in asked if sql.startswith("SELECT")]
    assert len(questions) <= 1 + 4 * 5


@pytest.mark.parametrize(("memory_days", "remembered"), [(2, ("Q10",)), (1, ())])
def test_a_value_that_went_is_remembered_after_its_hold_was_settled(
    desk: Desk, memory_days: int, remembered: tuple[str, ...]
) -> None:
    desk.flip_memory = timedelta(days=memory_days)
    run = desk.night()
    desk.see("Q10", 1, run)
    desk.hold("Q10", run)
    run = desk.night()
    desk.see("Q11", 2, run)
    # Tonight nothing waits: what waited is settled.
    desk.record(run, [change("unchanged", "Q11")])
    run = desk.night()
    desk.see("Q10", 3, run)
    desk.hold("Q10", run)
    (pending,) = desk.ledger.pending(desk.lease.model)
    assert pending.previous_values == remembered
