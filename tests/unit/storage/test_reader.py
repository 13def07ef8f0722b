"""What the program asks the ledger: heads, lineages, past moments, histories."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import or_, select

from storage.errors import CheckpointStateError, UnknownCheckpointError, UnknownModelError
from storage.ledger import Ledger
from storage.records.checkpoints import EditRow
from storage.schema.checkpoints import Edit, Holding
from storage.schema.planned import EditRequest, Fact
from tests.unit.storage import steps
from tests.unit.storage.steps import night

if TYPE_CHECKING:
    from collections.abc import Iterator

    from storage.checkpoints import CheckpointFiles


@pytest.fixture
def nights(ledger_url: str, files: CheckpointFiles) -> Iterator[Ledger]:
    """Three nights by the clock: Q1 changes every night, Q2 is deleted in the third."""
    clock = {"now": night(0)}
    world = steps.World()
    world.set("Q2", "P6", "Q20")
    with Ledger.open(ledger_url, clock=lambda: clock["now"]) as ledger:
        for number in (1, 2, 3):
            clock["now"] = night(number)
            world.set("Q1", "P6", f"Q1{number}")
            if number == 3:
                world.set("Q2", "P6", None)
            steps.sync(ledger, files, world, number)
        clock["now"] = night(4)
        yield ledger


def at(ledger: Ledger, day: float) -> dict[str, str]:
    moment = night(0) + timedelta(days=day)
    held = (
        select(Fact.subject, EditRequest.value)
        .select_from(Holding)
        .join(Fact, Fact.id == Holding.fact_id)
        .join(Edit, Edit.id == Holding.edit_id)
        .join(EditRequest, EditRequest.id == Edit.request_id)
        .where(Holding.held_from <= moment, or_(Holding.held_to.is_(None), Holding.held_to > moment))
    )
    with ledger.engine.connect() as connection:
        return {row.subject: row.value for row in connection.execute(held)}


def test_the_past_can_be_asked(nights: Ledger) -> None:
    assert at(nights, 0.5) == {}
    assert at(nights, 1) == {"Q1": "Q11", "Q2": "Q20"}
    assert at(nights, 2.5) == {"Q1": "Q12", "Q2": "Q20"}
    assert at(nights, 3.5) == {"Q1": "Q13"}
    model = nights.model(steps.MODEL)
    heads = [nights.head_at(model, night(number)) for number in (0, 1, 2, 3)]
    assert [head and head.id for head in heads] == [None, *(row.id for row in nights.lineage(model))]


def test_each_checkpoint_holds_what_its_own_line_wrote(nights: Ledger) -> None:
    """Whatever the clock says of it, and though a rollback took it off the head's line."""
    model = nights.model(steps.MODEL)
    line = [row.id for row in nights.lineage(model)]

    def held(checkpoint: int) -> dict[str, str]:
        return {row.subject: row.value for row in nights.live_facts(model, checkpoint=checkpoint)}

    expected = [{"Q1": "Q11", "Q2": "Q20"}, {"Q1": "Q12", "Q2": "Q20"}, {"Q1": "Q13"}]
    assert [held(checkpoint) for checkpoint in line] == expected
    with nights.writer(steps.MODEL, holder="a person") as lease:
        nights.rollback(lease, line[0], reason="looks wrong", review=False)
    assert [held(checkpoint) for checkpoint in line] == expected


def test_a_rollback_is_part_of_the_past(nights: Ledger) -> None:
    model = nights.model(steps.MODEL)
    first = nights.lineage(model)[0]
    with nights.writer(steps.MODEL, holder="a person") as lease:
        nights.rollback(lease, first.id, reason="looks wrong", review=False)
    assert at(nights, 3.5) == {"Q1": "Q13"}
    assert at(nights, 4) == {"Q1": "Q11", "Q2": "Q20"}
    assert at(nights, 2.5) == {"Q1": "Q12", "Q2": "Q20"}
    head = nights.head_at(model, night(5))
    assert head is not None
    assert (head.id, head.state) == (first.id, "promoted")


def test_each_checkpoint_is_told_the_last_rollback_that_took_it_off(nights: Ledger) -> None:
    model = nights.model(steps.MODEL)
    first, second, third = (row.id for row in nights.lineage(model))
    assert nights.undone(model) == {}
    with nights.writer(steps.MODEL, holder="a person") as lease:
        nights.rollback(lease, first, reason="looks wrong", review=False)
        nights.rollback(lease, second, reason="was right", review=False)
        nights.rollback(lease, None, reason="start over", review=False)
    why = {key: reason for key, (_, reason) in nights.undone(model).items()}
    assert why == {first: "start over", second: "start over", third: "looks wrong"}


def test_a_checkpoint_is_found_by_key_digest_or_beginning(nights: Ledger) -> None:
    model = nights.model(steps.MODEL)
    for row in nights.checkpoints(model):
        assert row.digest is not None
        for name in (row.id, row.digest, row.digest[:12]):
            assert nights.checkpoint(model, name) == row
    for name in (999, "f" * 64, "", "x"):
        with pytest.raises(UnknownCheckpointError):
            nights.checkpoint(model, name)


def test_a_lineage_can_start_anywhere(nights: Ledger) -> None:
    model = nights.model(steps.MODEL)
    whole = nights.lineage(model)
    assert [row.parent for row in whole] == [None, whole[0].id, whole[1].id]
    assert [row.parent_digest for row in whole] == [None, whole[0].digest, whole[1].digest]
    assert nights.lineage(model, whole[1].id) == whole[:2]
    assert nights.lineage(model, 999) == []


def test_a_history_names_the_statements_and_what_is_live(nights: Ledger) -> None:
    rows = nights.history(nights.model(steps.MODEL), "Q1")
    assert [(row.new_value, row.live, row.sources) for row in rows] == [
        ("Q11", False, (("Q1$P6", 1),)),
        ("Q12", False, (("Q1$P6", 2),)),
        ("Q13", True, (("Q1$P6", 3),)),
    ]
    assert nights.history(nights.model(steps.MODEL), "Q99") == []


def test_named_groups_are_read_known_or_not(nights: Ledger) -> None:
    groups = list(nights.groups(nights.model(steps.MODEL), [("Q9", "P6"), ("Q1", "P6")], page_size=1))
    assert [(g.subject, [s.value for s in g.statements], [h.value for h in g.held]) for g in groups] == [
        ("Q1", ["Q13"], ["Q13"]),
        ("Q9", [], []),
    ]


def test_an_unknown_model_is_said_to_be_unknown(ledger: Ledger) -> None:
    with pytest.raises(UnknownModelError, match="nobody"):
        ledger.model("nobody")
    with pytest.raises(UnknownModelError), ledger.writer("nobody", holder="test"):
        pass


def test_only_what_was_planned_is_recorded_and_applied(ledger: Ledger, files: CheckpointFiles) -> None:
    ledger.ensure_model(steps.MODEL, "local", steps.BASE)
    world = steps.World()
    world.set("Q1", "P6", "Q10")
    world.set("Q2", "P6", "Q20")
    with ledger.writer(steps.MODEL, holder="test") as lease:
        run = ledger.begin_run(lease, "sync", reference_time=night(1))
        steps.ingest(ledger, lease, run, world, 1)
        steps.plan(ledger, lease, run)
        owed = ledger.owed(lease.model)
        intent = ledger.begin_checkpoint(
            lease, run, [r.id or 0 for r in owed], algorithm="memit", settings={}
        )
        assert ledger.claimed(intent.id) == [*intent.requests]
        digest = files.put({"delta.safetensors": b"1"}, {})
        candidate = {"digest": digest, "path": digest, "size_bytes": 1, "files": {}, "metrics": {}}
        with pytest.raises(CheckpointStateError, match="not planned"):
            ledger.record_candidate(lease, intent.id, **candidate, edits=[EditRow("Q9", "P6", "")])  # type: ignore[arg-type]
        edits = [EditRow("Q1", "P6", ""), EditRow("Q2", "P6", "")]
        ledger.record_candidate(lease, intent.id, **candidate, edits=edits)  # type: ignore[arg-type]
        ledger.promote(lease, intent.id, reason="good enough")
        assert ledger.owed(lease.model) == []
    assert steps.held(ledger) == world.values
    assert ledger.status(lease.model).live_facts == 2


def test_a_rebuild_carries_all_states_and_no_edits(ledger: Ledger, files: CheckpointFiles) -> None:
    world = steps.World()
    world.set("Q1", "P6", "Q10")
    world.set("Q2", "P6", "Q20")
    steps.sync(ledger, files, world, 1)
    with ledger.writer(steps.MODEL, holder="test") as lease:
        run = ledger.begin_run(lease, "rebuild", reference_time=night(2))
        intent = ledger.begin_checkpoint(lease, run, [], algorithm="memit", settings={}, from_base=True)
        digest = files.put({"delta.safetensors": b"all"}, {"parent": intent.parent_digest})
        ledger.record_candidate(
            lease, intent.id, digest=digest, path=digest, size_bytes=3, files={}, metrics={}, edits=[],
            subjects=["Q1", "Q2"],
        )  # fmt: skip
        ledger.promote(lease, intent.id, reason="compaction")
        ledger.finish_run(lease, run, "succeeded")
    model = ledger.model(steps.MODEL)
    assert steps.held(ledger) == world.values
    assert {row.checkpoint for row in ledger.subject_states(model)} == {digest}
    assert [(row.from_base, row.live_facts) for row in ledger.lineage(model)] == [(False, 2), (True, 2)]
