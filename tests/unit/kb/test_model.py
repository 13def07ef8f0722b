from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kb.errors import BadEntityError, BadTermError
from kb.model import (
    Statement,
    Value,
    ValueKind,
    WikiTime,
    entity_id,
    gregorian_to_julian,
    id_order,
    julian_to_gregorian,
    statement_id,
)
from tests.unit.kb import made


@pytest.mark.parametrize("text", ["Q0", "Q", "42", "Q42 ", "X1", "Q-1", "Q٤٢", "Q1>", "", "Q1\n"])
def test_what_is_no_entity_id_is_refused(text):
    if text.strip() == "Q42" or text.strip() == "Q1":
        assert entity_id(text) == text.strip()
        return
    with pytest.raises(BadTermError):
        entity_id(text)


@pytest.mark.parametrize(
    "text", ["q42$d8404cda-25e4", "Q42-D8404CDA-25e4", "Q42$D8404CDA-25E4", "q42-d8404cda-25E4"]
)
def test_every_spelling_of_a_statement_id_is_one_key(text):
    assert statement_id(text) == "Q42$D8404CDA-25E4"


@pytest.mark.parametrize("text", ["Q42", "$abc", "", "Q42$", "abc$def"])
def test_what_is_no_statement_id_is_refused(text):
    with pytest.raises(BadTermError):
        statement_id(text)


@pytest.mark.parametrize(
    ("text", "precision", "iso", "known"),
    [
        ("+2003-00-00T00:00:00Z", 9, "2003", 9),
        ("+2003-00-00T00:00:00Z", 11, "2003", 9),
        ("2003-05-00T00:00:00Z", 11, "2003-05", 10),
        ("2003-05-07T00:00:00Z", 11, "2003-05-07", 11),
        ("2003-05-07T13:14:15Z", 14, "2003-05-07", 11),
        ("2003-05-07T00:00:00Z", 9, "2003", 9),
        ("+00000002013-02-12T00:00:00Z", 11, "2013-02-12", 11),
        ("-0043-03-15T00:00:00Z", 11, "-0043-03-15", 11),
        ("2024-02-29", 11, "2024-02-29", 11),
    ],
)
def test_dates_are_cut_to_what_is_known(text, precision, iso, known):
    assert WikiTime.parse(text, precision) == WikiTime(iso, known)


@pytest.mark.parametrize(
    "text", ["2023-02-29T00:00:00Z", "2003-13-01T00:00:00Z", "2003", "soon", "2003-05-32"]
)
def test_dates_that_do_not_exist_are_refused(text):
    with pytest.raises(BadTermError):
        WikiTime.parse(text, 11)


@pytest.mark.parametrize(
    ("iso", "precision", "first", "last"),
    [
        ("2003", 9, date(2003, 1, 1), date(2003, 12, 31)),
        ("2003-02", 10, date(2003, 2, 1), date(2003, 2, 28)),
        ("2003-12", 10, date(2003, 12, 1), date(2003, 12, 31)),
        ("2010", 8, date(2010, 1, 1), date(2019, 12, 31)),
        ("2000", 7, date(1901, 1, 1), date(2000, 12, 31)),
        ("1901", 7, date(1901, 1, 1), date(2000, 12, 31)),
        ("2000", 6, date(1001, 1, 1), date(2000, 12, 31)),
    ],
)
def test_a_span_is_as_long_as_its_precision(iso, precision, first, last):
    time = WikiTime(iso, precision)
    assert time.earliest().date() == first
    assert time.latest().date() == last


def test_years_outside_the_calendar_are_clamped():
    assert WikiTime("-3000", 9).earliest() == datetime.min.replace(tzinfo=UTC)
    assert WikiTime("20000", 9).latest() == datetime.max.replace(tzinfo=UTC)
    assert WikiTime("9999", 9).latest() == datetime.max.replace(tzinfo=UTC)
    assert WikiTime("9999-12-31", 11).latest() == datetime.max.replace(tzinfo=UTC)
    assert WikiTime("9999-12-31", 11).earliest() == datetime(9999, 12, 31, tzinfo=UTC)


@given(made.dates())
def test_a_span_begins_before_it_ends(time):
    assert time.earliest() <= time.latest()
    assert WikiTime.of(*time.parts(), time.precision, julian=time.julian) == time
    assert WikiTime.of_canonical(time.canonical) == time


@given(st.dates(min_value=date(1582, 10, 15), max_value=date(2100, 1, 1)))
def test_julian_dates_differ_by_the_days_the_reform_left_out(gregorian):
    year, month = gregorian.year, gregorian.month
    centuries = (year if month > 2 else year - 1) // 100
    shift = centuries - centuries // 4 - 2
    julian = gregorian - timedelta(days=shift)
    if julian.month != gregorian.month and 2 in {julian.month, gregorian.month}:
        return  # around the end of February the shift itself changes
    assert julian_to_gregorian(julian.year, julian.month, julian.day) == (year, month, gregorian.day)
    assert gregorian_to_julian(year, month, gregorian.day) == (julian.year, julian.month, julian.day)


def test_julian_dates_known_from_history():
    assert julian_to_gregorian(1582, 10, 5) == (1582, 10, 15)
    assert julian_to_gregorian(1564, 4, 26) == (1564, 5, 6)
    assert julian_to_gregorian(-43, 3, 15) == (-43, 3, 13)


@pytest.mark.parametrize(
    ("amount", "unit", "canonical"),
    [
        ("+84358845", None, "84358845"),
        ("+0.50", None, "0.5"),
        ("-0", None, "0"),
        ("1E3", None, "1000"),
        ("8849", "Q11573", "8849 Q11573"),
    ],
)
def test_equal_amounts_are_one_value(amount, unit, canonical):
    assert Value.quantity(amount, unit).canonical == canonical


@pytest.mark.parametrize("amount", ["NaN", "Infinity", "many", "", "1e400"])
def test_amounts_that_are_none_are_refused(amount):
    with pytest.raises(BadTermError):
        Value.quantity(amount, None)


def test_strings_are_composed_and_languages_lowered():
    assert Value.string("e\u0301").canonical == "\u00e9"
    assert Value.monolingual("Ja", "EN-GB").canonical == "Ja@en-gb"


@pytest.mark.parametrize("text", ["x\ud800y", "x\x00y"])
def test_what_no_ledger_can_keep_is_refused(text):
    for make in (
        Value.string,
        lambda text: Value.monolingual(text, "en"),
        lambda text: Value.monolingual("Ja", text),
        lambda text: statement_id(f"Q1${text}"),
    ):
        with pytest.raises(BadTermError):
            make(text)


@given(made.groups())
def test_json_round_trips_and_the_hash_ignores_the_revision(group):
    for one in group:
        again = Statement.from_json(one.to_json())
        assert again == one
        assert again.content_hash() == one.content_hash()
        moved = Statement.from_json(one.to_json().replace('"revision":7', '"revision":8'))
        assert moved.content_hash() == one.content_hash()
        assert moved.to_json() != one.to_json()


@given(st.text() | st.sampled_from(["{}", "[]", "null", '{"id":1}']))
def test_other_json_is_a_named_error(text):
    with pytest.raises(BadEntityError):
        Statement.from_json(text)


def test_ids_sort_by_number_and_values_know_whether_they_say_something():
    assert sorted(["Q10", "Q9", "P100"], key=id_order) == ["P100", "Q9", "Q10"]
    assert Value.item("Q1").is_known
    assert not Value.somevalue().is_known
    assert Value.novalue().kind is ValueKind.NOVALUE
