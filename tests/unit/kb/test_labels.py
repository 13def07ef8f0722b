from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kb.labels import choose, first_choices, shape_problem, shared, tidy
from kb.model import Label


@pytest.mark.parametrize(
    ("candidates", "choice"),
    [
        ({"en": "Ada", "mul": "A", "de": "D"}, ("Ada", "en")),
        ({"mul": "A", "en-gb": "B"}, ("A", "mul")),
        ({"en-ca": "C", "en-gb": "B", "en-au": "U"}, ("B", "en-gb")),
        ({"en-zz": "Z", "en-au": "U"}, ("U", "en-au")),
        ({"EN": "Ada"}, ("Ada", "en")),
        ({"en": "  ", "mul": "A"}, ("A", "mul")),
        ({"en": "A\ud800", "mul": "A"}, ("A", "mul")),
        ({"en": "A\x00", "en-\ud800": "A"}, None),
        ({"de": "D", "fr": "F"}, None),
        ({}, None),
    ],
)
def test_the_chain_never_takes_the_first_language_it_finds(candidates, choice):
    assert choose(candidates) == choice


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Kais Saied Asshole", "insult"),
        ("", "empty"),
        ("x" * 121, "too-long"),
        ("Ada\u202eecilA", "control-characters"),
        ("Ada\x00", "control-characters"),
        ("Q16120878", "an-id"),
        ("www.buy.example", "an-address"),
        ("ada@example.org", "an-address"),
        ("[[Ada]]", "markup"),
        ("<b>Ada</b>", "markup"),
        ("...", "no-letters"),
        ("Владимир", "other-script"),
        ("Adaaaaaa", "repeated-characters"),
        ("Ada!!", "repeated-characters"),
    ],
)
def test_shapes_that_are_no_names(text, problem):
    assert shape_problem(text) == problem


@pytest.mark.parametrize(
    "text",
    [
        "Angela Merkel",
        "Scunthorpe United F.C.",
        "4711",
        "Recep Tayyip Erdoğan",
        "Nguyễn Xuân Phúc",
        "Ħal Tarxien",
        "AC/DC",
        "S.p.A. Fiat",
        "'s-Hertogenbosch",
        "Tesla, Inc.",
        "Yahoo!",
        "Kais Saied",
        "Jóhanna Sigurðardóttir",
    ],
)
def test_shapes_that_are_names(text):
    assert shape_problem(text) is None


def test_a_place_adds_words_of_its_own():
    assert shape_problem("Prostu Romaniei") is None
    assert shape_problem("Prostu Romaniei", ["prostu"]) == "insult"


@given(st.text())
def test_any_text_has_a_verdict_and_tidying_twice_is_tidying_once(text):
    shape_problem(text)
    assert tidy(tidy(text)) == tidy(text)


def test_shared_labels():
    labels = [Label("Q1", "The Who", "en"), Label("Q2", "the who", "en"), Label("Q3", "Them", "en")]
    assert shared(labels) == {"Q1", "Q2"}
    assert shared([*labels, labels[2]]) == {"Q1", "Q2"}


def test_rows_become_one_label_an_entity():
    rows = [("Q2", "de", "D"), ("Q1", "en", "Bea"), ("Q1", "en", "Ada"), ("Q1", "mul", "M")]
    assert first_choices(rows) == {"Q1": Label("Q1", "Ada", "en")}


@pytest.mark.parametrize("text", ["Booking.com", "Salesforce.com, Inc.", "Amazon.com"])
def test_names_that_end_like_an_address_are_names(text):
    assert shape_problem(text) is None


def test_marks_that_come_along_with_a_copied_name_are_dropped():
    assert tidy("\ufeffJens Stolten\u00adberg\u200e ") == "Jens Stoltenberg"
    assert shape_problem(tidy("Ada\u202eecilA")) == "control-characters"
