"""Who is guarded, and who is asked about: of the shipped relations, and of a user's own."""

import json

import pytest

from editor import guards
from flows.neighbours import Neighbour, asked, guarded
from kb.relation_check import KINDS
from kb.relations import Relations

EDIT = [
    "The anthem of {subject} is",
    "What does {subject} sing? It sings",
    "In {subject} all know",
    "Choirs of {subject} sing",
]
HELDBACK = ["As its anthem {subject} has", "Bands of {subject} play", "Before a match {subject} hears"]


@pytest.fixture
def loaded(tmp_path):
    """Load a user's file of one whole relation, with some keys more."""

    def load(prop, *, base=True, **more):
        table = {"name": "anthem", "cardinality": "functional", "edit": EDIT, "heldback": HELDBACK, **more}
        path = tmp_path / "own.toml"
        path.write_text(
            f"[{prop}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
        )
        return Relations.load(path, base=base)

    return load


def test_the_checker_knows_the_editors_kinds():
    assert set(KINDS) == set(guards.subjects())


def test_a_relation_of_a_users_own_is_guarded_and_asked_about(loaded):
    relations = loaded("P9001", kind=["city", "person"], neighbours=["Lisbon", "Oslo"])
    own = {subject for template, subject in guarded(relations) if template == "The anthem of {} is"}
    names = guards.subjects()
    assert "Lisbon" in names["city"], "who is asked about is not guarded"
    assert own & set(names["city"]) == set(names["city"]) - {"Lisbon"}
    assert own - set(names["city"]) <= set(names["person"])
    assert "Serena Williams" in own
    found = asked(relations, ["P9001"], {"Oslo"})
    assert found == (Neighbour("P9001", "The anthem of Lisbon is"),)


def test_it_leaves_the_guards_of_the_shipped_ones_as_they_are(loaded):
    shipped = Relations.load()
    with_own = loaded("P9001", kind="country", neighbours=["Wales"])
    templates = {template.replace("{subject}", "{}") for template in EDIT}
    found = guarded(with_own)
    assert [pair for pair in found if pair[0] not in templates] == guarded(shipped)
    assert len(found) > len(guarded(shipped))
    assert asked(with_own, shipped, ()) == asked(shipped, shipped, ())


def test_without_either_it_is_edited_without_either(loaded):
    relations = loaded("P9001")
    assert guarded(relations) == guarded(Relations.load())
    assert asked(relations, ["P9001"], ()) == ()


def test_a_users_file_says_it_in_place_of_what_ships(loaded):
    relations = loaded("P36", kind="club", neighbours=["Wales"]).only(("P36",))
    clubs = guards.subjects()["club"]
    assert {subject for _, subject in guarded(relations)} <= set(clubs)
    assert [one.prompt for one in asked(relations, ["P36"], ())] == ["The anthem of Wales is"]


def test_another_wikibases_p6_is_not_wikidatas(loaded):
    relations = loaded("P6", base=False)
    assert guarded(relations) == []
    assert asked(relations, ["P6"], ()) == ()
