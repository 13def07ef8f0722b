"""What a plan makes of a group: where a person's word counts, and where it does not."""

from dataclasses import replace
from datetime import timedelta

import pytest

from flows import translate
from flows.planning import make_plan, requests
from kb.model import Label, Value, ValueKind
from kb.relations import Relations
from kb.trust import Trust
from storage.records.facts import HeldRow
from storage.records.planned import Group, PendingRow
from storage.records.pulled import EntityRow
from tests.unit.kb import made
from tests.unit.storage.steps import night

RELATIONS = Relations.load()


def deleted_tonight(kind, decision):
    """Q183's head of government lost its statements tonight; something waited, and a person had a word."""
    labels = {"label": "Angela Merkel", "subject_label": "Germany"}
    held = HeldRow(
        "Q183", "P6", "", ValueKind.ITEM.value, "Q567", op="insert", prompts=(), heldback=(), edit_id=1,
        request_id=1, checkpoint_id=1, checkpoint="c", held_since=night(0), **labels,
    )  # fmt: skip
    waits = PendingRow(
        1, "Q183", "P6", "", kind, "because", value_kind=None, value=None, label=None,
        first_seen_at=night(1), last_seen_at=night(1), sightings=1, previous_values=(), releases_at=None,
        decision=decision,
    )  # fmt: skip
    entity = EntityRow("Q183", "Germany", "en", revision=2, modified_at=night(2) - timedelta(hours=1))
    return Group("Q183", "P6", entity, statements=(), held=(held,), pending=(waits,), labels={})


def burst(*, approved):
    """The plan of a night with one edit, where none may pass unseen."""
    return make_plan(
        [deleted_tonight("quarantine", "approved")],
        RELATIONS,
        Trust(burst_floor=0, burst_share=0.01),
        night(2),
        held_per_relation={"P6": 1},
        redirects={},
        burst_approved=approved,
    )


def test_a_group_stays_marked_until_its_dates_have_come():
    """No edit of the item tells that a term is over."""
    term = translate.statement_row(made.statement(end=made.until("2031-05-01")))
    entity = EntityRow(term.subject)
    group = Group(term.subject, "P6", entity, statements=(term,), held=(), pending=(), labels={}, marks=3)

    def marks(at):
        plan = make_plan([group], RELATIONS, Trust(), at, held_per_relation={}, redirects={})
        return plan.reviewed[term.subject, "P6"]

    assert marks(night(2)) == 0
    assert marks(night(2) + timedelta(days=3000)) == 3


def test_a_name_that_another_followed_item_bears_is_shared_also_where_that_one_rests():
    new = translate.statement_row(made.statement())
    entity = EntityRow(new.subject, "John Smith", "en", revision=1, modified_at=night(-30))
    objects = {new.value: EntityRow(new.value, "Ada", "en")}
    group = Group(new.subject, "P6", entity, statements=(new,), held=(), pending=(), labels=objects)

    def comes_to(*tracked):
        plan = make_plan(
            [group], RELATIONS, Trust(), night(2), held_per_relation={}, redirects={}, tracked=tracked
        )
        (change,) = plan.changes
        return change.kind.value, change.reason.partition(":")[0]

    assert comes_to(Label(new.subject, "John Smith", "en"))[0] == "insert"
    assert comes_to(Label("Q77", "john smith", "en")) == ("quarantine", "shared-label")


def test_of_a_fact_held_under_both_names_of_a_merged_item_the_old_one_is_retracted():
    """Nobody would keep it up to date: the item has no statements any more."""
    standing = translate.statement_row(made.statement())
    held = deleted_tonight("quarantine", None).held[0]
    same = {"value": standing.value, "label": "Ada", "subject_label": "Foo Inc."}
    target = EntityRow(standing.subject, "Foo Inc.", "en", revision=1, modified_at=night(-30))
    merged = EntityRow("Q99", "Foo Inc.", "en", revision=2, redirect_to=target.id, modified_at=night(-30))
    kept = Group(
        target.id, "P6", target, statements=(standing,), held=(replace(held, subject=target.id, **same),),
        pending=(), labels={standing.value: EntityRow(standing.value, "Ada", "en")},
    )  # fmt: skip
    left = Group(
        merged.id, "P6", merged, statements=(), held=(replace(held, subject=merged.id, **same),),
        pending=(), labels={},
    )  # fmt: skip
    gone = replace(deleted_tonight("quarantine", None).pending[0], subject=merged.id, sightings=3)
    left = replace(left, pending=(replace(gone, first_seen_at=night(-3)),))
    made_of = make_plan(
        [kept, left], RELATIONS, Trust(), night(2), held_per_relation={}, redirects={merged.id: target.id}
    )
    kinds = {change.subject: change.kind.value for change in made_of.changes}
    assert kinds == {target.id: "unchanged", merged.id: "retract"}
    (gone,) = requests(made_of, RELATIONS)
    assert (gone.subject, gone.op, made_of.holders) == (merged.id, "retract", {})


def planned(kind, decision):
    """The one change that comes of it, and why."""
    made = make_plan(
        [deleted_tonight(kind, decision)],
        RELATIONS,
        Trust(),
        night(2),
        held_per_relation={"P6": 1},
        redirects={},
    )
    (change,) = made.changes
    return change.kind.value, change.reason.partition(":")[0]


def test_a_retraction_that_a_person_released_is_made():
    assert planned("quarantine", None) == ("quarantine", "hold")
    assert planned("quarantine", "approved")[0] == "retract"


def test_a_word_on_a_conflict_is_none_on_the_retraction_after_it():
    assert planned("conflict", "approved") == ("quarantine", "hold")


def test_a_burst_that_a_person_approved_stops_nothing():
    assert (burst(approved=False).burst.stop, len(burst(approved=False).edits)) == (True, 0)
    through = burst(approved=True)
    assert (through.burst.stop, len(through.edits)) == (False, 1)
    assert through.burst.reasons


@pytest.mark.parametrize("stated", ["Q55", "Q56"])
def test_an_object_that_was_merged_changes_nothing_before_and_after_the_statement_follows(stated):
    """Q55 is held; Wikidata merged it into Q56, and some day names Q56 in the statement too."""
    row = translate.statement_row(made.statement(value=Value.item(stated)))
    entity = EntityRow(row.subject, "Foo Inc.", "en", revision=1, modified_at=night(-30))
    held = replace(
        deleted_tonight("quarantine", None).held[0],
        subject=row.subject,
        value="Q55",
        label="Ann Smith",
        subject_label="Foo Inc.",
    )
    labels = {"Q56": EntityRow("Q56", "Ann Smith", "en")}
    group = Group(row.subject, "P6", entity, statements=(row,), held=(held,), pending=(), labels=labels)

    def kind(redirects):
        plan = make_plan([group], RELATIONS, Trust(), night(2), held_per_relation={}, redirects=redirects)
        (change,) = plan.changes
        return change.kind.value

    assert kind({"Q55": "Q56"}) == "unchanged"
    assert kind({}) == ("unchanged" if stated == "Q55" else "replace")
