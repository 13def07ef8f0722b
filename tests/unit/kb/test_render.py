from __future__ import annotations

import pytest
from hypothesis import given

from kb.diff import Known, changes
from kb.documents import time_of
from kb.model import JULIAN, Label, Value, ValueKind, WikiTime
from kb.render import date_text, reading
from kb.semantics import verdict
from kb.trust import ChangeKind, Held, Reason, Trust
from tests.unit.kb import made
from tests.unit.kb.made import AT, relation, statement

LABELS = {"Q100": Label("Q100", "Ruritania", "en"), "Q1": Label("Q1", "Ada", "en")}


@pytest.mark.parametrize(
    ("iso", "precision", "text"),
    [
        ("2003-05-07", 11, "7 May 2003"),
        ("2003-05", 10, "May 2003"),
        ("2003", 9, "2003"),
        ("2010", 8, "the 2010s"),
        ("2000", 7, "the 20th century"),
        ("1001", 6, "the 2nd millennium"),
        ("0112", 7, "the 2nd century"),
        ("1100", 7, "the 11th century"),
        ("-0043", 9, "44 BC"),
        ("-0043", 7, "the 1st century BC"),
        ("-10000", 5, None),
    ],
)
def test_dates_read_as_far_as_they_are_known(iso, precision, text):
    assert date_text(WikiTime(iso, precision)) == text


@pytest.mark.parametrize(
    ("given", "known_as", "text"),
    [
        ("+1616-04-23T00:00:00Z", "1616-05-03/11/julian", "23 April 1616"),
        ("-0044-03-15T00:00:00Z", "-0043-03-13/11/julian", "15 March 44 BC"),
        ("+1700-12-25T00:00:00Z", "1701-01-05/11/julian", "25 December 1700"),
    ],
)
def test_a_julian_day_is_compared_as_the_gregorian_one_and_reads_as_it_was_given(given, known_as, text):
    time = time_of({"time": given, "precision": 11, "calendarmodel": JULIAN})
    value = Value.time(time)
    assert value.canonical == known_as
    assert reading(value, relation(render="date"), {}) == text
    assert reading(value, relation(render="year"), {}) == text.split(" ", 2)[2]
    assert time.earliest().date().isoformat() == known_as[:10] or time.iso.startswith("-")


@given(made.dates())
def test_every_date_has_a_reading_or_none(time):
    text = date_text(time)
    assert text is None or text.strip() == text != ""


@pytest.mark.parametrize(
    ("value", "changed", "text"),
    [
        (Value.item("Q1"), {}, "Ada"),
        (Value.item("Q2"), {}, None),
        (Value.quantity("84358845", None), {}, "84,358,845"),
        (Value.quantity("-1234.50", None), {}, "-1,234.5"),
        (Value.quantity("8849", "Q11573"), {}, None),
        (Value.quantity("8849", "Q11573"), {"unit_names": (("Q11573", "metres"),)}, "8,849 metres"),
        (Value.time(WikiTime("1949-05-23", 11)), {"render": "year"}, "1949"),
        (Value.time(WikiTime("1940", 8)), {"render": "year"}, None),
        (Value.time(WikiTime("1949-05-23", 11)), {"render": "date"}, "23 May 1949"),
        (Value.string("+49"), {}, "+49"),
        (Value.monolingual("Ruritania", "en"), {}, "Ruritania"),
        (Value.monolingual("Ruritanien", "de"), {}, None),
        (Value.somevalue(), {}, None),
    ],
)
def test_values_read_by_the_relations_rules(value, changed, text):
    assert reading(value, relation(**changed), LABELS) == text


def plan(value, held=(), **changed):
    rel = relation("functional", datatype=value.kind, **changed)
    decided = verdict([statement(value=value)], rel, AT, subject="Q100")
    known = Known(held=held, labels=LABELS, modified_at=AT.replace(year=2020))
    (change,) = changes(decided, known, AT, rel, Trust())
    return change


def test_a_value_without_a_reading_is_held_back():
    assert plan(Value.quantity("8849", "Q11573")).held_back_for() is Reason.LABEL_MISSING
    assert plan(Value.quantity("8849", None)).kind is ChangeKind.INSERT


def test_a_finer_date_that_reads_the_same_is_no_edit():
    old = Held("Q100", "P6", "", Value.time(WikiTime("1949", 9)), "1949", "Ruritania")
    assert plan(Value.time(WikiTime("1949-05-23", 11)), [old], render="year").kind is ChangeKind.UNCHANGED
    assert plan(Value.time(WikiTime("1950", 9)), [old], render="year").kind is ChangeKind.REPLACE


def test_of_several_languages_the_first_of_the_chain_counts():
    rel = relation(datatype=ValueKind.MONOLINGUAL)
    rows = [
        statement(number=number, value=Value.monolingual(text, language))
        for number, (text, language) in enumerate(
            [("Königreich", "de"), ("Kingdom", "en"), ("Regnum", "mul")]
        )
    ]
    (fact,) = verdict(rows, rel, AT).facts
    assert fact.value.canonical == "Kingdom@en"
    other = verdict(rows[:1], rel, AT)
    assert (other.facts, other.vacant, other.flags) == ((), False, ("other-language",))
