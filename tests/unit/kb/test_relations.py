from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kb import relation_check, relation_view
from kb.errors import RelationsError, UnknownRelationError
from kb.model import Label, Value
from kb.relations import Relations

EXPECTED = [
    "P6",
    "P35",
    "P1308",
    "P169",
    "P488",
    "P1037",
    "P286",
    "P54",
    "P39",
    "P26",
    "P451",
    "P102",
    "P108",
    "P127",
    "P749",
    "P264",
    "P551",
    "P159",
    "P36",
    "P131",
    "P27",
    "P463",
    "P118",
    "P115",
    "P137",
    "P449",
    "P178",
    "P176",
    "P140",
    "P937",
    "P413",
    "P106",
    "P37",
    "P38",
    "P69",
    "P112",
    "P40",
    "P57",
    "P98",
    "P3320",
    "P1075",
]


def table(**changed):
    values = {
        "name": "mayor",
        "cardinality": "one_open",
        "edit": [
            "The mayor of {subject} is",
            "Who runs {subject}? It is",
            "In {subject} rules",
            "Papers say {subject} has",
        ],
        "heldback": ["As mayor {subject} has", "The town of {subject} is led by", "Ask in {subject} for"],
    }
    return values | changed


def test_the_shipped_relations_hold_together():
    relations = Relations.load()
    assert len(relations) >= 45
    assert set(EXPECTED) <= set(relations)
    kinds = {relation.datatype.value for relation in relations.values()}
    assert kinds == {"item", "time", "quantity", "string", "monolingual"}


def test_every_prompt_names_its_subject_once_and_stops_before_the_object():
    for relation in Relations.load().values():
        assert len(relation.edit_templates) >= 4
        assert len(relation.heldback_templates) >= 3
        assert any("?" in template for template in relation.edit_templates), relation.property
        assert not set(relation.edit_templates) & set(relation.heldback_templates)
        for prompt in relation.prompts("X{y}") + relation.heldback_prompts("X{y}"):
            assert prompt.count("X{y}") == 1
            assert prompt == prompt.strip()


def test_a_user_adds_and_changes_relations_without_code(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        """
        [P6]
        hold_hours = 5

        [P999]
        name = "mascot"
        cardinality = "multi"
        edit = [
          "The mascot of {subject} is",
          "What is the mascot of {subject}? It is",
          "Fans of {subject} cheer for",
          "It was said that {subject} has chosen",
        ]
        heldback = ["{subject} has as mascot", "For luck {subject} keeps", "The animal of {subject} is"]
        """
    )
    relations = Relations.load(path)
    assert relations["P6"].hold_hours == 5
    assert relations["P6"].name == "head of government"
    assert relations["P999"].is_multi()
    assert list(relations.only(("P999",))) == ["P999"]
    assert [one.property for one in relations.values() if not one.shipped] == ["P999"]


def test_a_wikibase_of_its_own_starts_empty(tmp_path):
    assert len(Relations.load(base=False)) == 0


def test_an_unknown_relation_says_what_to_do():
    with pytest.raises(UnknownRelationError, match=r"add a table \[P31337\]"):
        Relations.load()["P31337"]


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        (
            {"edit": ["The mayor is", "b {subject} c", "d {subject} e", "f {subject} g"]},
            "not exactly one {subject}",
        ),
        ({"edit": ["Of {subject} and {subject} is"] * 4}, "not exactly one {subject}"),
        ({"edit": ["{object} rules {subject} with"] * 4}, "a brace other than {subject}"),
        ({"edit": ["The mayor of {subject} is "] * 4}, "stray white space"),
        ({"edit": ["The mayor of {subject}"] * 4}, "the subject right before the object"),
        ({"edit": ["The mayor of {subject} is who?"] * 4}, "over before the object"),
        ({"edit": ["{subject} has as mayor"] * 4}, "no word before the subject"),
        ({"edit": ["The job of {subject} is a"] * 4}, "an article"),
        ({"edit": ["The mayor of {subject} is"] * 4}, "stands twice"),
        ({"edit": ["The mayor of {subject} is"]}, "needs at least 4 templates"),
        ({"edit": [f"The mayor {word} {{subject}} is" for word in "abcd"]}, "begin alike"),
        ({"edit": [1, 2, 3, 4]}, "no text"),
        ({"heldback": []}, "needs at least 3 templates"),
        ({"cardinality": "many"}, "not one of functional, one_open, multi"),
        ({"ended": "keep"}, "not one of retract, vacate, vacant, former"),
        ({"ended": "vacant"}, "vacant_text must say"),
        ({"ended": "former"}, "former_text must say"),
        ({"ended": "former", "former_text": "nobody"}, "exactly one {object}"),
        ({"ended": "vacant", "vacant_text": "x", "cardinality": "multi"}, "is retracted"),
        ({"hold_hours": -1}, "between 0 and a year"),
        ({"hold_hours": "48"}, "wrong type"),
        ({"hold_hours": True}, "wrong type"),
        ({"classes": ["human"]}, "no class id"),
        ({"colour": "red"}, "unknown key"),
        ({"cardinality": "multi", "series": True}, "a series keeps one value"),
        ({"kind": "planet"}, "kind is 'planet', not one of country, company"),
        ({"kind": ["person", ["club"]]}, "kind is ['club'], not one of"),
        ({"kind": 5}, "kind has the wrong type"),
        ({"datatype": "time", "render": "number"}, "render is 'number', which no value of datatype 'time'"),
        ({"render": "year"}, "render is 'year', which no value of datatype 'item'"),
        ({"neighbours": "Oslo"}, "neighbours has the wrong type"),
        ({"neighbours": ["Oslo", " "]}, "no label"),
        ({"neighbours": [5]}, "no label"),
    ],
)
def test_what_is_wrong_is_named(changed, problem):
    assert any(problem in one for one in relation_check.problems({"P1": table(**changed)}))
    with pytest.raises(RelationsError):
        Relations.of({"P1": table(**changed)})


def test_every_problem_is_listed_and_lacks_are_named():
    found = relation_check.problems({"P1": {}, "mayor": table(), "P2": table()})
    assert "P1: lacks name, cardinality, edit, heldback." in found
    assert any("not a property id" in one for one in found)
    assert any("is also one of mayor" in one for one in found)


@pytest.mark.parametrize("text", ["[P6", "P6 = 1", "version = 2", '[P6]\nname = "\xff"', "\x00"])
def test_a_broken_file_is_a_named_error(tmp_path, text):
    path = tmp_path / "broken.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(RelationsError):
        Relations.load(path)


def test_a_missing_file_is_a_named_error(tmp_path):
    with pytest.raises(RelationsError, match="cannot be read"):
        Relations.load(tmp_path / "none.toml")


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


OPTIONAL = ("classes", "unit_names", "series", "datatype", "kind", "neighbours")


@given(st.dictionaries(st.sampled_from([*table(), *OPTIONAL]), json_like))
def test_any_table_is_either_right_or_a_named_error(changed):
    try:
        Relations.of({"P1": table(**changed)})
    except RelationsError as error:
        if not error.problems:
            raise


def test_kinds_and_neighbours_are_read():
    relation = Relations.of({"P1": table(kind="club", neighbours=["Ajax"])})["P1"]
    assert (relation.kinds, relation.neighbours) == (("club",), ("Ajax",))
    assert Relations.of({"P1": table(kind=["club", "person"])})["P1"].kinds == ("club", "person")


def test_notes_are_of_what_a_user_added_and_forgot():
    shipped = Relations.load()
    known = {**shipped, **Relations.of({"P9001": table()})}
    (bare,) = relation_view.notes(known, ())
    assert bare.startswith("P9001 (mayor) has no kind and no neighbours")
    assert list(relation_view.notes(known, ["P6", "P9001"])) == [bare]
    (left_out,) = relation_view.notes(known, ["P6"])
    assert left_out == "P9001 (mayor) is not synced: FACTSYNC_RELATIONS leaves it out."
    for more in ({"kind": "person"}, {"neighbours": ["Oslo"]}):
        assert list(relation_view.notes(Relations.of({"P9001": table(**more)}), ())) == []


def test_the_preview_shows_what_would_be_said():
    relation = Relations.load()["P6"]
    labels = {"Q1": Label("Q1", "Ada", "en")}
    lines = relation_view.preview(relation, Label("Q183", "Germany", "en"), Value.item("Q1"), labels)
    assert ("edit", "The head of government of Germany is Ada") in lines
    assert lines[-1][0] == "held back"
    assert relation_view.preview(relation, Label("Q183", "Germany", "en"), None, {})[0][1].endswith("is …")
    assert relation_view.rows({"P6": relation})[0]["templates"] == "5 + 3"
