from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kb.diff import Known, changes, guard
from kb.model import Label, Value
from kb.semantics import verdict
from kb.sightings import observe
from kb.trust import ChangeKind, Held, Pending, Reason, Trust
from tests.unit.kb import made
from tests.unit.kb.made import AT, relation, statement
from tests.unit.kb.slots import HOUR, LABELS, OLD, TRUST, diff, holds, only, waits


def test_a_new_fact_is_inserted_and_names_its_statements():
    change = only(statement())
    assert change.kind is ChangeKind.INSERT
    assert change.sources == (("Q100$A1", 7),)


def test_a_successor_replaces_and_a_held_value_is_unchanged():
    change = only(statement("Q2"), held=[holds("Q1")])
    assert (change.kind, change.old.value.canonical, change.new.value.canonical) == (
        ChangeKind.REPLACE,
        "Q1",
        "Q2",
    )
    assert only(statement("Q1"), held=[holds("Q1")]).kind is ChangeKind.UNCHANGED


def test_a_change_of_label_alone_edits_nothing():
    vandalised = LABELS | {"Q1": Label("Q1", "Ada Asshole", "en")}
    change = only(statement("Q1"), held=[holds("Q1")], labels=vandalised)
    assert change.kind is ChangeKind.RELABEL
    renamed = LABELS | {"Q100": Label("Q100", "Player of soccer", "en")}
    assert only(statement("Q1"), held=[holds("Q1")], labels=renamed).kind is ChangeKind.RELABEL


def test_a_second_open_holder_is_a_conflict_however_long_it_stands():
    for pending in ([], [waits("Q2", hours=900, sightings=12)]):
        change = only(statement("Q1", 1), statement("Q2", 2), held=[holds("Q1")], pending=pending)
        assert change.kind is ChangeKind.CONFLICT
        assert change.old is not None
        assert not change.kind.is_edit


@pytest.mark.parametrize(
    ("modified_hours", "pending", "released"),
    [
        (1, [], False),
        (47, [], False),
        (48, [], True),  # one pull and a modification date as old as the hold
        (1, [waits("Q2", hours=47)], False),
        (1, [waits("Q2", hours=48)], True),  # two pulls
        (1, [waits("Q3", hours=48)], False),  # of another value
        (1, [waits("Q2", hours=48, sightings=0)], False),  # interrupted
        (None, [], False),
        (None, [waits("Q2", hours=48)], True),
    ],
)
def test_the_hold(modified_hours, pending, released):
    modified_at = None if modified_hours is None else AT - modified_hours * HOUR
    change = only(statement("Q2"), held=[holds("Q1")], pending=pending, modified_at=modified_at)
    assert (change.kind is ChangeKind.REPLACE) is released
    if not released:
        assert change.held_back_for() is Reason.HOLD
        assert change.releases_at > AT


def test_an_old_first_sighting_is_not_enough_without_a_second():
    trust = Trust(min_sightings=3)
    change = only(
        statement("Q2"), held=[holds("Q1")], pending=[waits("Q2", hours=90)], modified_at=AT, trust=trust
    )
    assert change.held_back_for() is Reason.HOLD
    assert "seen 2 of 3 times" in change.reason


def test_what_went_and_came_back_waits_longer():
    back = waits("Q2", hours=72, previous_values=("Q2",))
    change = only(statement("Q2"), held=[holds("Q1")], pending=[back], modified_at=AT - 72 * HOUR)
    assert change.held_back_for() is Reason.FLIP
    week = waits("Q2", hours=168, previous_values=("Q2",))
    assert (
        only(statement("Q2"), held=[holds("Q1")], pending=[week], modified_at=AT).kind is ChangeKind.REPLACE
    )


def test_what_went_and_came_back_never_waits_shorter_than_the_relation_holds():
    back = waits("Q2", hours=200, previous_values=("Q2",))
    slow = relation(hold_hours=400)
    change = only(statement("Q2"), held=[holds("Q1")], pending=[back], modified_at=AT, rel=slow)
    assert (change.held_back_for(), change.releases_at) == (Reason.FLIP, AT + 200 * HOUR)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ({"Q2": None}, Reason.LABEL_MISSING),
        ({"Q100": None}, Reason.LABEL_MISSING),
        ({"Q2": "Bea Asshole"}, Reason.LABEL_SHAPE),
        ({"Q2": "Q2"}, Reason.LABEL_SHAPE),
        ({"Q100": "Player of soccer"}, Reason.SUBJECT_RELABELLED),
    ],
)
def test_labels_that_no_model_should_learn(labels, reason):
    given_labels = dict(LABELS)
    for entity, text in labels.items():
        given_labels.pop(entity)
        if text:
            given_labels[entity] = Label(entity, text, "en")
    change = only(statement("Q2"), held=[holds("Q1")], labels=given_labels)
    assert change.held_back_for() is reason


def test_a_label_that_moved_between_two_pulls_waits_for_a_third():
    change = only(statement("Q2"), held=[holds("Q1")], pending=[waits("Q2", label="Beatrice")])
    assert change.held_back_for() is Reason.LABEL_UNSETTLED
    assert (
        only(statement("Q2"), held=[holds("Q1")], pending=[waits("Q2", label="Bea")]).kind
        is ChangeKind.REPLACE
    )


def test_a_shared_subject_label_is_held_and_an_allowed_subject_is_not():
    assert only(statement(), shared={"Q100"}).held_back_for() is Reason.SHARED_LABEL
    allowed = Trust(allow_subjects=frozenset({"Q100"}))
    assert only(statement(), shared={"Q100"}, modified_at=AT, trust=allowed).kind is ChangeKind.INSERT


@pytest.mark.parametrize(
    "trust",
    [
        Trust(block_subjects=frozenset({"Q100"})),
        Trust(block_properties=frozenset({"P6"})),
        Trust(block_values=frozenset({"Q1"})),
    ],
)
def test_block_lists(trust):
    assert only(statement(), trust=trust).held_back_for() is Reason.BLOCKED


def test_a_person_can_let_go_what_waits_but_not_what_has_no_text():
    trust = Trust(released=frozenset({("Q100", "P6", "", "Q1")}))
    assert only(statement(), modified_at=AT, trust=trust).kind is ChangeKind.INSERT
    assert (
        only(statement(), labels={"Q100": LABELS["Q100"]}, trust=trust).held_back_for()
        is Reason.LABEL_MISSING
    )


def test_facts_with_too_few_references_can_be_held_back():
    bare = statement(reference_count=0)
    assert only(bare).kind is ChangeKind.INSERT
    assert only(bare, trust=Trust(min_references=1)).held_back_for() is Reason.UNREFERENCED
    one = statement(reference_count=1)
    assert only(one, trust=Trust(min_references=1)).held_back_for() is None
    assert only(one, trust=Trust(min_references=2)).held_back_for() is Reason.UNREFERENCED
    assert "1 of 2" in only(one, trust=Trust(min_references=2)).reason


def test_a_merged_object_is_the_same_fact():
    change = only(statement("Q2"), held=[holds("Q1", label="Bea")], redirects={"Q1": "Q2"})
    assert change.kind is ChangeKind.UNCHANGED
    many = relation("multi", ended="retract")
    (change,) = diff(statement("Q2"), held=[holds("Q1", "Q1", "Bea")], redirects={"Q1": "Q2"}, rel=many)
    assert (change.kind, change.slot) == (ChangeKind.UNCHANGED, "Q2")


def test_the_burst_guard():
    def edits(count, kind=ChangeKind.REPLACE):
        one = replace(only(statement("Q2"), held=[holds("Q1")]), kind=kind)
        return [replace(one, subject=f"Q{number + 1000}") for number in range(count)]

    assert not guard(edits(50), {"P6": 60}, TRUST).stop
    assert guard(edits(51), {"P6": 60}, TRUST).properties.keys() == {"P6"}
    assert not guard(edits(51), {"P6": 1000}, TRUST).stop
    assert not guard(edits(500, ChangeKind.INSERT), {}, TRUST).stop
    assert guard(edits(500, ChangeKind.INSERT), {"P6": 100}, TRUST).stop
    assert not guard(edits(500, ChangeKind.QUARANTINE), {"P6": 100}, TRUST).stop
    assert guard(edits(11), {"P6": 1000}, Trust(burst_total=10)).reasons
    assert not guard(edits(11), {"P6": 1000}, Trust(burst_total=11)).stop
    both = [*edits(60), *(replace(one, property="P35") for one in edits(100))]
    assert guard(both, {"P6": 60, "P35": 1000}, TRUST).properties.keys() == {"P6"}
    # Too many in all: a burst of one relation does not let the others through.
    everything = guard(both, {"P6": 60, "P35": 1000}, replace(TRUST, burst_total=150))
    assert everything.properties.keys() == {"P6", "P35"}
    assert "facts of P6" in everything.properties["P6"]
    assert "in one night" in everything.properties["P35"]


labels_drawn = st.dictionaries(
    st.sampled_from(["Q100", "Q1", "Q2", "Q3"]),
    st.sampled_from(["Ada", "Bea", "Cleo", "Ada Asshole", "Ruritania"]),
).map(lambda texts: {entity: Label(entity, text, "en") for entity, text in texts.items()})


@given(
    made.groups(),
    st.lists(st.sampled_from(["Q1", "Q2", "Q3"]), max_size=1),
    labels_drawn,
    st.integers(0, 100),
    st.sampled_from(["one_open", "multi"]),
)
def test_no_edit_without_labels_hold_or_agreement(group, held, labels, modified_hours, cardinality):
    rel = relation(cardinality, ended="retract")
    rows = [holds(item, item if rel.is_multi() else "") for item in held]
    decided = verdict(group, rel, AT, subject="Q100")
    known = Known(held=rows, labels=labels, modified_at=AT - modified_hours * HOUR)
    planned = changes(decided, known, AT, rel, TRUST)
    assert len({change.slot for change in planned}) == len(planned)
    for change in planned:
        if change.kind.is_edit:
            assert modified_hours >= 48
            assert decided.conflict is None
            assert (change.old.value if change.old else None) != (change.new.value if change.new else None)
        if change.kind in {ChangeKind.INSERT, ChangeKind.REPLACE}:
            assert {"Q100", change.new.value.canonical} <= labels.keys()
            assert "Asshole" not in labels[change.new.value.canonical].text
    assert changes(decided, known, AT, rel, TRUST) == planned


@given(made.groups(), st.sampled_from(["one_open", "multi"]))
def test_a_sync_after_a_sync_changes_nothing(group, cardinality):
    rel = relation(cardinality, ended="retract")
    decided = verdict(group, rel, AT, subject="Q100")
    first = changes(decided, Known(labels=LABELS, modified_at=OLD), AT, rel, TRUST)
    rows = [
        Held(
            "Q100", "P6", change.slot, change.new.value, LABELS[change.new.value.canonical].text, "Ruritania"
        )
        for change in first
        if change.kind.is_edit
    ]
    second = changes(decided, Known(held=rows, labels=LABELS, modified_at=OLD), AT, rel, TRUST)
    assert {change.kind for change in second} <= {ChangeKind.UNCHANGED, ChangeKind.CONFLICT}


@given(
    st.lists(st.sampled_from(["Q1", "Q2", "Q3", "both", "none"]), min_size=1, max_size=12), st.integers(1, 60)
)
def test_nothing_is_edited_in_that_stood_shorter_than_the_hold(nights, gap_hours):
    """Whatever a slot does night by night, an edit's value was there, alone, for the whole hold before it."""
    rel = relation("one_open", ended="retract")
    held: list[Held] = []
    pending: list[Pending] = []
    moved = AT
    for number, night in enumerate(nights):
        at = AT + number * gap_hours * HOUR
        if number and nights[number - 1] != night:
            moved = at
        rows = {"both": [statement("Q1", 1), statement("Q2", 2)], "none": []}.get(night) or (
            [] if night == "none" else [statement(night)]
        )
        rows = [statement("Q1", 1), statement("Q2", 2)] if night == "both" else rows
        decided = verdict(rows, rel, at, subject="Q100")
        known = Known(held=held, pending=pending, labels=LABELS, modified_at=moved)
        planned = changes(decided, known, at, rel, TRUST)
        for change in planned:
            if change.kind.is_edit:
                assert (at - moved) >= timedelta(hours=48)
                held = (
                    []
                    if change.new is None
                    else [Held("Q100", "P6", "", change.new.value, LABELS[night].text, "Ruritania")]
                )
            seen = observe(pending[0] if pending else None, change, at, LABELS, TRUST)
            pending = [seen] if seen else []


def test_sightings_count_runs_and_remember_what_went():
    first = only(statement("Q2"), held=[holds("Q1")], modified_at=AT)
    one = observe(None, first, AT, LABELS, TRUST)
    assert (one.value, one.sightings, one.previous_values, one.label) == (Value.item("Q2"), 1, ("Q1",), "Bea")
    two = observe(one, first, AT + HOUR, LABELS, TRUST)
    assert (two.sightings, two.first_seen_at) == (2, AT)
    back = only(statement("Q1"), held=[holds("Q1")])
    three = observe(two, back, AT + 2 * HOUR, LABELS, TRUST)
    assert (three.value, three.previous_values) == (Value.item("Q1"), ("Q1", "Q2"))
    conflict = only(statement("Q1", 1), statement("Q2", 2), held=[holds("Q1")])
    four = observe(three, conflict, AT + 3 * HOUR, LABELS, TRUST)
    assert four.sightings == 0
    forgotten = observe(four, back, AT + timedelta(days=40), LABELS, TRUST)
    assert forgotten is None
