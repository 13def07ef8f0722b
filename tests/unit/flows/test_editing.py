"""What a night edits: the subject is the unit, across nights too."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
import torch

from editor.requests import EditRequest
from editor.state import SubjectState
from flows.editing import assign, with_rivals
from storage.records.facts import HeldRow
from storage.records.planned import EditRequestRow

PROMPTS = ("The head of {} is",)


def held(subject, property_id, label):
    """A live fact."""
    return HeldRow(
        subject,
        property_id,
        "",
        "item",
        f"value of {label}",
        label,
        "insert",
        f"name of {subject}",
        PROMPTS,
        (),
        edit_id=1,
        request_id=1,
        checkpoint_id=1,
        checkpoint="c",
        held_since=datetime(2026, 1, 1, tzinfo=UTC),
    )


def owed(subject, property_id, op, target="", old=None):
    """An owed edit."""
    name = f"name of {subject}"
    return EditRequestRow(subject, property_id, "", op, name, target, PROMPTS, old_label=old)


def state(subject):
    """A stored state."""
    return SubjectState(subject, (f"{subject}/P6/",), {1: torch.zeros(1, 2)}, {1: torch.zeros(1, 2)}, "d")


LIVE = [held("Q1", "P6", "One"), held("Q1", "P35", "Two"), held("Q2", "P6", "Three")]
STATES = {subject: state(subject) for subject in ("Q1", "Q2")}


@pytest.mark.parametrize(
    ("row", "tonight", "companions"),
    [
        (owed("Q1", "P36", "insert", "Four"), ["Q1/P36/"], ["Q1/P6/", "Q1/P35/"]),
        (owed("Q1", "P6", "replace", "Four", "One"), ["Q1/P6/"], ["Q1/P35/"]),
        (owed("Q1", "P6", "retract", old="One"), [], ["Q1/P35/"]),
    ],
    ids=["a new fact of a known subject", "a replaced one", "a retracted one"],
)
def test_a_subject_comes_with_all_its_live_facts_and_its_old_state_leaves(row, tonight, companions):
    work = assign([row], LIVE, STATES)
    assert [one.fact_id for one in work.tonight] == tonight
    assert [one.fact_id for one in work.companions] == companions
    assert [one.subject_id for one in work.retired] == ["Q1"]
    assert [one.subject_id for one in work.live] == ["Q2"]
    assert [one.fact_id for one in work.watched] == ["Q2/P6/"]
    assert [one.target for one in work.retracted] == (["One"] if row.op == "retract" else [])


def test_a_fact_is_taken_out_in_the_words_it_was_taught_in():
    """The item may have another name today, and the relation other templates."""
    row = replace(owed("Q1", "P6", "retract", old="One"), subject_label="renamed", prompts=("{} obeys",))
    (gone,) = assign([row], LIVE, STATES).retracted
    assert (gone.subject, gone.prompts, gone.target) == ("name of Q1", PROMPTS, "One")


def test_a_new_subject_leaves_all_others_live():
    work = assign([owed("Q3", "P6", "insert", "Five")], LIVE, STATES)
    assert work.companions == work.retired == ()
    assert [one.subject_id for one in work.live] == ["Q1", "Q2"]
    assert [one.fact_id for one in work.watched] == ["Q1/P6/", "Q1/P35/", "Q2/P6/"]


def test_another_item_of_the_same_name_is_nothing_to_beat():
    fact = EditRequest(
        fact_id="f",
        subject_id="Q1",
        subject="Ruritania",
        prompts=PROMPTS,
        target="Ann Smith",
        old_target="Ann smith",
    )
    (asked,) = with_rivals([fact], {"f": "Rudolf V and nobody else."})
    assert asked.old_target == "Rudolf V"
    (asked,) = with_rivals([replace(fact, old_target="Ada")], {"f": "Rudolf V"})
    assert asked.old_target == "Ada"
