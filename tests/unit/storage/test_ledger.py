"""A whole sync, step by step, on both databases."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from storage.errors import CheckpointStateError, ModelMismatchError, OpenCheckpointError
from storage.ledger import Ledger
from tests.unit.storage import steps

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from storage.checkpoints import CheckpointFiles


@pytest.fixture
def world() -> steps.World:
    world = steps.World()
    for number in range(1, 6):
        world.set(f"Q{number}", "P6", f"Q{100 + number}")
    world.set("Q1", "P35", "Q200")
    return world


def test_a_sync_makes_the_model_hold_the_world(
    ledger: Ledger, files: CheckpointFiles, world: steps.World
) -> None:
    done = steps.sync(ledger, files, world, 1)
    assert steps.held(ledger) == world.values
    status = ledger.status(ledger.model(steps.MODEL))
    assert status.head is not None
    assert status.head.id == done["checkpoint"]
    assert (status.live_facts, status.owed, status.held_back, status.to_review) == (6, 0, 0, 0)
    assert status.cursors == {steps.SOURCE: steps.night(1)}
    assert status.last_success is not None
    assert status.holder is None


def test_the_same_sync_twice_is_once(ledger: Ledger, files: CheckpointFiles, world: steps.World) -> None:
    steps.sync(ledger, files, world, 1)
    again = steps.sync(ledger, files, world, 1)
    assert again["checkpoint"] is None
    assert len(ledger.checkpoints(ledger.model(steps.MODEL))) == 1
    assert len(files.digests()) == 1


def test_a_value_that_comes_back_is_not_lost(
    ledger: Ledger, files: CheckpointFiles, world: steps.World
) -> None:
    for number, value in enumerate(("Q1001", "Q1002", "Q1001", "Q1002", "Q1001"), start=1):
        world.set("Q1", "P6", value)
        assert steps.sync(ledger, files, world, number)["checkpoint"] is not None
        assert steps.held(ledger)["Q1", "P6"] == value


def test_a_value_that_comes_back_before_it_was_edited_is_owed_no_more(
    ledger: Ledger, files: CheckpointFiles, world: steps.World
) -> None:
    steps.sync(ledger, files, world, 1)
    world.set("Q1", "P6", "Q1002")
    steps.sync(ledger, files, world, 2, verdict="reject")
    assert [r.attempts for r in ledger.owed(ledger.model(steps.MODEL))] == [1]
    world.set("Q1", "P6", "Q101")
    steps.sync(ledger, files, world, 3)
    assert ledger.owed(ledger.model(steps.MODEL)) == []
    assert steps.held(ledger) == world.values


@pytest.mark.parametrize("verdict", ["promote", "reject"])
def test_a_wish_withdrawn_while_its_candidate_waits_does_not_stay(
    ledger: Ledger, files: CheckpointFiles, world: steps.World, verdict: str
) -> None:
    steps.sync(ledger, files, world, 1)
    world.set("Q1", "P6", "Q666")
    candidate = steps.sync(ledger, files, world, 2, verdict="leave")["checkpoint"]
    assert candidate is not None
    world.set("Q1", "P6", "Q101")
    steps.sync(ledger, files, world, 3)
    with ledger.writer(steps.MODEL, holder="a person") as lease:
        if verdict == "promote":
            ledger.promote(lease, candidate, reason="looks good")
        else:
            ledger.reject(lease, candidate, reason="looks odd")
    steps.sync(ledger, files, world, 4)
    assert steps.held(ledger) == world.values
    assert ledger.status(ledger.model(steps.MODEL)).to_review == 0


def test_a_deleted_statement_is_retracted_and_a_restored_one_learnt_again(
    ledger: Ledger, files: CheckpointFiles, world: steps.World
) -> None:
    steps.sync(ledger, files, world, 1)
    world.set("Q2", "P6", None)
    steps.sync(ledger, files, world, 2)
    assert steps.held(ledger) == world.values
    assert ledger.status(ledger.model(steps.MODEL)).live_facts == 5
    world.set("Q2", "P6", "Q102")
    steps.sync(ledger, files, world, 3)
    assert steps.held(ledger) == world.values
    states = [(row.op, row.status, row.live) for row in ledger.history(ledger.model(steps.MODEL), "Q2")]
    assert states == [
        ("insert", "applied", False),
        ("retract", "applied", False),
        ("insert", "applied", True),
    ]


def test_a_fact_ended_when_its_statement_says_so(
    ledger: Ledger, files: CheckpointFiles, world: steps.World
) -> None:
    """The end is stated after the fact was taught: the history tells it of what the model still holds."""
    asked = "SELECT valid_to FROM fact_history WHERE subject = 'Q1' AND property = 'P6'"
    steps.sync(ledger, files, world, 1)
    assert ledger.query(asked).rows == ((None,),)
    world.revisions["Q1"] += 1
    ended = [
        replace(one, valid_to="2026-01-02", content_hash="ended")
        if (one.subject, one.property) == ("Q1", "P6")
        else one
        for one in world.statements()
    ]
    with ledger.writer(steps.MODEL, holder="test") as lease:
        run = ledger.begin_run(lease, "sync", reference_time=steps.night(2))
        ledger.ingest(
            lease,
            run,
            source=steps.SOURCE,
            cursor_to=steps.night(2),
            lag_at=steps.night(2),
            entities=world.entities(),
            statements=ended,
            pulled_groups=world.groups(),
        )
        ledger.finish_run(lease, run, "nothing")
    assert ledger.query(asked).rows == (("2026-01-02",),)


def test_a_rejected_batch_stays_owed(ledger: Ledger, files: CheckpointFiles, world: steps.World) -> None:
    steps.sync(ledger, files, world, 1, verdict="reject")
    model = ledger.model(steps.MODEL)
    assert steps.held(ledger) == {}
    assert len(ledger.owed(model)) == 6
    steps.sync(ledger, files, world, 2)
    assert steps.held(ledger) == world.values
    assert [row.state for row in ledger.checkpoints(model)] == ["rejected", "promoted"]


def test_a_candidate_waits_for_approval_and_bars_the_next(
    ledger: Ledger, files: CheckpointFiles, world: steps.World
) -> None:
    done = steps.sync(ledger, files, world, 1, verdict="leave")
    with ledger.writer(steps.MODEL, holder="test") as lease:
        assert ledger.recover(lease, files).kept == (done["checkpoint"],)
        run = ledger.begin_run(lease, "sync", reference_time=steps.night(2))
        with pytest.raises(OpenCheckpointError):
            ledger.begin_checkpoint(lease, run, [], algorithm="memit", settings={})
        assert done["checkpoint"] is not None
        ledger.promote(lease, done["checkpoint"], reason="approved")
        with pytest.raises(CheckpointStateError):
            ledger.promote(lease, done["checkpoint"], reason="approved twice")
    assert steps.held(ledger) == world.values


def test_rollback_moves_the_head_and_forth_again(
    ledger: Ledger, files: CheckpointFiles, world: steps.World
) -> None:
    first = steps.sync(ledger, files, world, 1)["checkpoint"]
    before = dict(world.values)
    world.set("Q1", "P6", "Q999")
    world.set("Q2", "P6", None)
    world.set("Q7", "P6", "Q107")
    second = steps.sync(ledger, files, world, 2)["checkpoint"]
    after = dict(world.values)
    assert steps.held(ledger) == after
    with ledger.writer(steps.MODEL, holder="test") as lease:
        ledger.rollback(lease, first, reason="looks wrong", review=False)
        assert steps.held(ledger) == before
        ledger.rollback(lease, second, reason="was right")
        assert steps.held(ledger) == after
        ledger.rollback(lease, None, reason="start over")
        assert steps.held(ledger) == {}
    steps.sync(ledger, files, world, 3)
    assert steps.held(ledger) == after
    model = ledger.model(steps.MODEL)
    assert [row.state for row in ledger.checkpoints(model)] == ["rolled_back", "rolled_back", "promoted"]


def test_rolling_forward_with_review_looks_again_at_what_came_back(
    ledger: Ledger, files: CheckpointFiles, world: steps.World
) -> None:
    """As on the way back: what stands today may be something else than what the checkpoint teaches."""
    first = steps.sync(ledger, files, world, 1)["checkpoint"]
    model = ledger.model(steps.MODEL)
    with ledger.writer(steps.MODEL, holder="test") as lease:
        ledger.rollback(lease, None, reason="a bad night", review=False)
        assert ledger.status(model).to_review == 0
        ledger.rollback(lease, first, reason="was right", review=True)
    assert ledger.status(model).to_review == len(world.values)


def test_what_was_undone_stays_undone_until_its_statements_change(
    ledger: Ledger, files: CheckpointFiles, world: steps.World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a fact is looked at every night, such as one whose end is known."""
    record = ledger.record_plan

    def unfinished(*args: Any, reviewed: Mapping[Any, int], **more: Any) -> Any:
        return record(*args, reviewed=dict.fromkeys(reviewed, 0), **more)

    monkeypatch.setattr(ledger, "record_plan", unfinished)
    first = steps.sync(ledger, files, world, 1)["checkpoint"]
    with ledger.writer(steps.MODEL, holder="test") as lease:
        ledger.rollback(lease, None, reason="a bad night", review=False)
    assert steps.sync(ledger, files, world, 2)["checkpoint"] is None
    world.set("Q1", "P6", "Q999")
    steps.sync(ledger, files, world, 3)
    assert steps.held(ledger)["Q1", "P6"] == "Q999"
    assert ("Q2", "P6") not in steps.held(ledger)
    with ledger.writer(steps.MODEL, holder="test") as lease:
        ledger.rollback(lease, first, reason="was right", review=False)
        assert ("Q2", "P6") in steps.held(ledger)
        ledger.rollback(lease, None, reason="anew", review=True)
    steps.sync(ledger, files, world, 4)
    del world.values["Q1", "P6"]
    assert steps.held(ledger) == world.values


def test_no_name_and_no_second_undoing_brings_back_what_was_undone(
    ledger: Ledger, files: CheckpointFiles, world: steps.World
) -> None:
    """A wish is the same while its value and statements are, whatever it replaces or is called."""
    steps.sync(ledger, files, world, 1)
    world.set("Q1", "P6", "Q999")
    steps.sync(ledger, files, world, 2)
    with ledger.writer(steps.MODEL, holder="test") as lease:
        ledger.rollback(lease, None, reason="both nights", review=False)
    world.names |= {"Q1": "Kyiv", "Q999": "Ada"}
    world.revisions["Q1"] += 1
    steps.sync(ledger, files, world, 3)
    assert steps.held(ledger) == {}


@pytest.mark.parametrize("name", ["label Q102", "another name"])
def test_a_retraction_that_was_undone_is_made_once_its_value_stood_again(
    ledger: Ledger, files: CheckpointFiles, world: steps.World, name: str
) -> None:
    first = steps.sync(ledger, files, world, 1)["checkpoint"]
    world.set("Q2", "P6", None)
    steps.sync(ledger, files, world, 2)
    with ledger.writer(steps.MODEL, holder="test") as lease:
        ledger.rollback(lease, first, reason="it was a prank", review=False)
    steps.sync(ledger, files, world, 3)
    assert ("Q2", "P6") in steps.held(ledger), "nothing has changed since"
    world.set("Q2", "P6", "Q102")
    world.names["Q102"] = name
    steps.sync(ledger, files, world, 4)
    world.set("Q2", "P6", None)
    steps.sync(ledger, files, world, 5)
    assert steps.held(ledger) == world.values


def test_content_that_was_made_twice_is_the_one_that_was_live(
    ledger: Ledger, files: CheckpointFiles, world: steps.World
) -> None:
    made = steps.sync(ledger, files, world, 1)["checkpoint"]
    assert made is not None
    model = ledger.model(steps.MODEL)
    digest = ledger.checkpoint(model, made).digest
    with ledger.writer(steps.MODEL, holder="test") as lease:
        ledger.rollback(lease, None, reason="a bad night", review=True)
    steps.sync(ledger, files, world, 2, verdict="reject")
    assert {row.digest for row in ledger.checkpoints(model)} == {digest}
    with ledger.writer(steps.MODEL, holder="test") as lease:
        ledger.rollback(lease, ledger.checkpoint(model, digest).id, reason="was right")
    assert steps.held(ledger) == world.values
    assert ledger.owed(model) == [], "the live model carries it"


def test_what_is_owed_is_taught_under_todays_name(
    ledger: Ledger, files: CheckpointFiles, world: steps.World
) -> None:
    steps.sync(ledger, files, world, 1, verdict="reject")
    world.names["Q1"] = "Kyiv"
    steps.sync(ledger, files, world, 2)
    names = {row.subject: row.subject_label for row in ledger.live_facts(ledger.model(steps.MODEL))}
    assert (names["Q1"], names["Q2"]) == ("Kyiv", "label Q2")


def test_the_head_of_a_moment_follows_the_moves_not_the_clock(
    tmp_path: Path, files: CheckpointFiles, world: steps.World
) -> None:
    """A clock that was put back between a promotion and its rollback does not undo the rollback."""
    now = [steps.night(1)]
    ledger = Ledger.open(str(tmp_path / "ledger.db"), clock=lambda: now[0])
    steps.sync(ledger, files, world, 1)
    now[0] -= timedelta(minutes=30)
    with ledger.writer(steps.MODEL, holder="test") as lease:
        ledger.rollback(lease, None, reason="a bad night")
    assert ledger.head_at(ledger.model(steps.MODEL), steps.night(2)) is None


def test_states_lie_in_the_newest_checkpoint_that_wrote_the_subject(
    ledger: Ledger, files: CheckpointFiles, world: steps.World
) -> None:
    first = steps.sync(ledger, files, world, 1)["checkpoint"]
    world.set("Q1", "P6", "Q999")
    world.set("Q2", "P6", None)
    second = steps.sync(ledger, files, world, 2)["checkpoint"]
    states = {row.subject: row.checkpoint_id for row in ledger.subject_states(ledger.model(steps.MODEL))}
    assert states == {"Q1": second, "Q3": first, "Q4": first, "Q5": first}


def test_a_model_name_stands_for_one_base(ledger: Ledger) -> None:
    ledger.ensure_model("m", "here", "1" * 64)
    assert ledger.ensure_model("m", "elsewhere", "1" * 64).base_ref == "here"
    with pytest.raises(ModelMismatchError):
        ledger.ensure_model("m", "here", "2" * 64)


def test_a_model_added_later_reviews_what_is_known(
    ledger: Ledger, files: CheckpointFiles, world: steps.World
) -> None:
    steps.sync(ledger, files, world, 1)
    later = ledger.ensure_model("later", "local", BASE)
    assert ledger.status(later).to_review == 6


BASE = "c" * 64


def test_a_rollback_said_again_asks_for_what_the_first_undid_for_good(
    ledger: Ledger, files: CheckpointFiles, world: steps.World
) -> None:
    steps.sync(ledger, files, world, 1)
    wished = dict(world.values)
    with ledger.writer(steps.MODEL, holder="test") as lease:
        ledger.rollback(lease, None, reason="looks wrong", review=False)
    steps.sync(ledger, files, world, 2)
    assert steps.held(ledger) == {}
    with ledger.writer(steps.MODEL, holder="test") as lease:
        ledger.rollback(lease, None, reason="was right", review=True)
    steps.sync(ledger, files, world, 3)
    assert steps.held(ledger) == wished
