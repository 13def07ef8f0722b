"""What becomes of a value that is held and stated no more: waited for, taken back, or written over."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kb.diff import guard
from kb.model import Label, Rank, Value
from kb.replay import Rehearsal
from kb.trust import ChangeKind, Reason, Trust
from tests.unit.kb.made import AT, relation, statement, until
from tests.unit.kb.slots import HOUR, LABELS, TRUST, diff, holds, only, waits


def test_an_end_without_a_successor_waits_or_retracts_as_the_relation_says():
    ended = statement("Q1", end=until("2020"))
    assert only(ended, held=[holds()]).kind is ChangeKind.VACATE
    assert only(ended, held=[holds()], rel=relation(ended="retract")).kind is ChangeKind.RETRACT
    assert diff(ended) == []


@pytest.mark.parametrize(
    ("rel", "text"),
    [
        (relation(ended="vacant", vacant_text="nobody at present"), "nobody at present"),
        (relation(ended="former", former_text="nobody since {object}"), "nobody since Ada"),
    ],
)
def test_an_end_may_be_written_as_what_is_true(rel, text):
    ended = statement("Q1", end=until("2020"))
    change = only(ended, held=[holds()], rel=rel)
    assert change.kind is ChangeKind.SUPPRESS
    assert change.kind.is_edit
    assert rel.ended_text("Ada") == text
    fresh = only(ended, held=[holds()], rel=rel, modified_at=AT - HOUR)
    assert (fresh.kind, fresh.would_be) == (ChangeKind.QUARANTINE, ChangeKind.SUPPRESS)


@pytest.mark.parametrize(
    "rel",
    [
        relation(),
        relation(ended="vacant", vacant_text="nobody at present"),
        relation(ended="former", former_text="nobody since {object}"),
    ],
)
def test_a_value_that_was_removed_or_deprecated_is_taken_back_whatever_ended_before(rel):
    before = statement("Q1", 1, end=until("2015"))

    def becomes(*stand):
        return only(before, *stand, held=[holds("Q2")], rel=rel).kind

    assert becomes() is ChangeKind.RETRACT
    for end in (None, until("2020")):
        assert becomes(statement("Q2", 2, rank=Rank.DEPRECATED, end=end)) is ChangeKind.RETRACT
    assert becomes(statement("Q2", 2, end=until("2020"))) is not ChangeKind.RETRACT


def test_a_value_that_gave_way_to_no_value_has_ended():
    nobody = replace(statement("Q1", 1), value=Value.novalue())
    assert only(nobody, held=[holds("Q2")]).kind is ChangeKind.VACATE


def test_a_merged_value_has_ended_under_either_id():
    for now in ("Q1", "Q2"):
        ended = statement(now, end=until("2020"))
        assert only(ended, held=[holds("Q1")], redirects={"Q1": "Q2"}).kind is ChangeKind.VACATE


@pytest.mark.parametrize(
    ("labels", "more", "reason"),
    [
        ({"Q100": Label("Q100", "Ruritania Asshole", "en")}, {}, Reason.LABEL_SHAPE),
        ({"Q100": Label("Q100", "Player of soccer", "en")}, {}, Reason.SUBJECT_RELABELLED),
        ({}, {"shared": {"Q100"}}, Reason.SHARED_LABEL),
        (None, {}, Reason.LABEL_MISSING),
    ],
)
def test_a_suppression_is_written_under_the_subjects_name_and_passes_its_gates(labels, more, reason):
    rel = relation(ended="vacant", vacant_text="nobody at present")
    ended = statement("Q1", end=until("2020"))
    known = (
        {name: label for name, label in LABELS.items() if name != "Q100"}
        if labels is None
        else LABELS | labels
    )
    change = only(ended, held=[holds()], rel=rel, labels=known, **more)
    assert (change.kind, change.reason.partition(":")[0]) == (ChangeKind.QUARANTINE, reason.value)
    taken_back = only(ended, held=[holds()], rel=relation(ended="retract"), labels=known, **more)
    assert taken_back.kind is ChangeKind.RETRACT


def test_what_is_suppressed_stays_so_until_a_successor_stands_or_the_statements_go():
    rel = relation(ended="vacant", vacant_text="nobody at present")
    empty = replace(holds(), value=Value.novalue(), label="nobody at present")
    ended = statement("Q1", end=until("2020"))
    assert only(ended, held=[empty], rel=rel).kind is ChangeKind.UNCHANGED
    assert only(statement("Q2", 2), ended, held=[empty], rel=rel).kind is ChangeKind.REPLACE
    assert only(held=[empty], rel=rel).kind is ChangeKind.RETRACT


def test_a_rehearsal_holds_what_is_suppressed():
    rel = relation(ended="former", former_text="nobody since {object}")
    change = only(statement("Q1", end=until("2020")), held=[holds()], rel=rel)
    rehearsal = Rehearsal({"P6": rel}, TRUST, {("Q100", "P6"): {"": holds()}})
    rehearsal._apply(change, LABELS)
    (held,) = rehearsal.facts()
    assert (held["value"], held["label"]) == ("novalue", "nobody since Ada")


def test_suppressions_count_for_the_burst_guard():
    rel = relation(ended="vacant", vacant_text="nobody at present")
    change = only(statement("Q1", end=until("2020")), held=[holds()], rel=rel)
    assert guard([change] * 60, {"P6": 100}, Trust()).stop


def test_a_deletion_retracts_after_the_hold():
    first = only(held=[holds()], modified_at=AT)
    assert (first.kind, first.would_be) == (ChangeKind.QUARANTINE, ChangeKind.RETRACT)
    later = only(held=[holds()], modified_at=AT - 50 * HOUR, pending=[waits(None, hours=50)])
    assert later.kind is ChangeKind.RETRACT


def test_an_unknown_value_leaves_the_model_alone():
    assert only(statement(value=Value.somevalue()), held=[holds()]).kind is ChangeKind.UNCHANGED


def test_multi_valued_slots_stand_alone():
    many = relation("multi", ended="retract")
    found = {
        change.slot: change.kind
        for change in diff(
            statement("Q2", 1),
            statement("Q3", 2),
            held=[holds("Q1", "Q1"), holds("Q2", "Q2", "Bea")],
            rel=many,
        )
    }
    assert found == {"Q1": ChangeKind.RETRACT, "Q2": ChangeKind.UNCHANGED, "Q3": ChangeKind.INSERT}


def test_one_of_several_values_that_ends_is_taken_back_whatever_the_relation_waits_for():
    """A successor is waited for where there is one holder."""
    ended = statement("Q1", end=until("2020"))
    assert only(ended, held=[holds("Q1", "Q1")], rel=relation("multi")).kind is ChangeKind.RETRACT


def test_an_unknown_value_keeps_all_of_several_only_where_none_is_known():
    """Beside a known value it does not say that the one that went is what is unknown."""
    unknown = statement(number=1, value=Value.somevalue())
    becomes = {
        number: [one.kind for one in diff(*stated, held=[holds("Q1", "Q1")], rel=relation("multi"))]
        for number, stated in enumerate([[unknown], [unknown, statement("Q2", 2)]])
    }
    assert becomes == {0: [ChangeKind.UNCHANGED], 1: [ChangeKind.RETRACT, ChangeKind.INSERT]}
