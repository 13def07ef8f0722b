"""What the forms refuse, in sentences."""

from datetime import UTC, date, datetime

import pytest

from flows.errors import BackfillInputError
from flows.params import (
    check_relations,
    check_subjects,
    check_window,
    choice,
    property_of,
    relation_schema,
)
from kb.relations import Relations

RELATIONS = Relations.load().only(("P6", "P35"))
TODAY = date(2026, 11, 23)


def test_a_choice_reads_well_and_names_its_property():
    assert choice("P6", "head of government") == "P6 head of government"
    assert property_of("P6 head of government") == property_of(" p6 ") == "P6"


def test_the_schema_lists_what_is_synced():
    enum = relation_schema(RELATIONS)["items"]["enum"]
    assert enum == ["P6 head of government", "P35 head of state"]


def test_no_choice_means_all():
    assert check_relations([], RELATIONS) == ("P6", "P35")
    assert check_relations(["P35 head of state", "P35"], RELATIONS) == ("P35",)


def test_a_relation_that_is_not_synced_is_refused():
    with pytest.raises(BackfillInputError, match="P36 is not among the relations synced here"):
        check_relations(["P36 capital"], RELATIONS)


def test_subjects_are_items():
    assert check_subjects(["q183", " Q183 ", "", "Q64"]) == ("Q183", "Q64")
    for wrong in ("Germany", "P6", "Q0", "Q1 OR 1=1"):
        with pytest.raises(BackfillInputError, match="no Wikidata item"):
            check_subjects([wrong])


def test_a_window_is_whole_days_in_utc():
    assert check_window(None, None, TODAY) == (None, None)
    since, until = check_window(date(2026, 1, 1), date(2026, 2, 1), TODAY)
    assert (since, until) == (datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC))


@pytest.mark.parametrize("until", [date(2026, 1, 1), date(2025, 12, 31)])
def test_a_window_that_ends_before_it_begins_is_refused(until):
    with pytest.raises(BackfillInputError, match="not after its begin"):
        check_window(date(2026, 1, 1), until, TODAY)


def test_a_window_in_the_future_is_refused():
    with pytest.raises(BackfillInputError, match="in the future"):
        check_window(date(2026, 11, 24), None, TODAY)
