"""What the forms refuse, in sentences."""

from datetime import UTC, date, datetime

import pytest

from flows.calibrate import _facts
from flows.errors import BackfillInputError, SettingsError
from flows.params import (
    check_relations,
    check_subjects,
    check_window,
    choice,
    known_relations,
    property_of,
    relation_schema,
    synced_relations,
    wikidata_relations,
)
from flows.settings import Settings
from flows.workspace import Workspace
from kb.relations import Relations

RELATIONS = Relations.load().only(("P6", "P35"))
TODAY = date(2026, 11, 23)
WIKI = "https://wiki.example.net"
OWN = """
[P6]
name = "name day"
cardinality = "functional"
edit = ["The name day of {subject} is", "When is {subject} born? On", "In {subject} is", "Say {subject} was"]
heldback = ["Born was {subject} on", "Of {subject} the day is", "The cake of {subject} says"]
"""


@pytest.fixture
def wikibase(tmp_path):
    """A home that syncs another Wikibase, whose P6 is not Wikidata's."""
    path = tmp_path / "own.toml"
    path.write_text(OWN)
    return Settings(home=tmp_path, wikibase=WIKI, relations_file=path)


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


def test_the_refusal_says_all_that_is_needed():
    """Where a list is set, a description alone leaves the relation unsynced."""
    with pytest.raises(BackfillInputError) as refused:
        check_relations(["P9999"], RELATIONS)
    assert "described in the file of FACTSYNC_RELATIONS_FILE; where FACTSYNC_RELATIONS is set" in str(refused)
    assert "must name it too" in str(refused)


def test_another_wikibase_has_its_own_relations_alone(wikibase):
    assert list(known_relations(wikibase)) == list(synced_relations(wikibase)) == ["P6"]
    assert synced_relations(wikibase)["P6"].name == "name day"
    with Workspace.open(wikibase) as ws:
        assert list(ws.relations) == ["P6"]


def test_another_wikibase_without_relations_is_named(tmp_path):
    settings = Settings(home=tmp_path / "home", wikibase=WIKI)
    with pytest.raises(SettingsError, match=f"not those of {WIKI}.*FACTSYNC_RELATIONS_FILE"):
        synced_relations(settings)
    with pytest.raises(SettingsError, match="FACTSYNC_RELATIONS_FILE"), Workspace.open(settings):
        pass


def test_wikidatas_facts_are_told_in_wikidatas_relations(wikibase):
    """A calibration's trial facts are Wikidata's, whatever the home's P6 is."""
    (fact,) = _facts({"P6": {"Sweden": "Ulf Kristersson"}}, wikidata_relations(wikibase))
    assert fact.prompts[0] == "The head of government of {} is"
    here = wikibase.model_copy(update={"wikibase": None})
    (fact,) = _facts({"P6": {"Sweden": "Ulf Kristersson"}}, wikidata_relations(here))
    assert fact.prompts[0] == "The name day of {} is"


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
