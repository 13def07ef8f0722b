"""Nights over merged, renamed and pranked items: what the model comes to hold."""

import pytest

from kb.model import Value, WikiTime
from tests.unit.flows.world import DAY, OLD, World, item


@pytest.fixture
def world(tmp_path, monkeypatch):
    def made(relations, **settings):
        for name, value in {"relations": relations, **settings}.items():
            monkeypatch.setenv(f"FACTSYNC_{name.upper()}", value)
        return World(tmp_path)

    return made


def members(world, *values):
    world.put("Q1", "Ruritania", *((str(n), "P463", item(one)) for n, one in enumerate(values)), edited=OLD)


def test_a_value_reads_by_its_own_relation(world):
    """The same day is a day of birth and a year of founding."""
    now = world("P569,P571")
    born = Value.time(WikiTime("1990-05-07", 11))
    now.put("Q1", "Ada", ("a", "P569", born), edited=OLD)
    now.put("Q2", "Acme", ("a", "P571", born), edited=OLD)
    assert {(row[1], row[4]) for row in now.night()} == {("Q1", "7 May 1990"), ("Q2", "1990")}


def test_a_text_that_looks_like_an_item_is_not_taken_for_its_name(world):
    now = world("P6,P474")
    now.put("Q10", "Ann", edited=OLD)
    now.put("Q1", "Ruritania", ("a", "P474", Value.string("Q10")), edited=OLD)
    now.put("Q2", "Sylvania", ("a", "P6", item("Q10")), edited=OLD)
    assert [(row[1], row[4]) for row in now.night()] == [("Q2", "Ann")]


def test_a_value_of_many_that_was_merged_leaves_under_its_old_name(world):
    now = world("P463")
    for one in ("Q10", "Q20"):
        now.put(one, "The League", edited=OLD)
    members(now, "Q10")
    assert now.night() == [("insert", "Q1", "P463", "Q10", "The League")]
    now.merged["Q10"] = "Q20"
    members(now, "Q20")
    assert now.night() == []
    now.put("Q1", "Ruritania")
    assert [now.night() for _ in range(4)][-2:] == [[("retract", "Q1", "P463", "Q10", "")], []]
    assert now.live == {}


def test_two_values_that_became_one_both_leave(world):
    now = world("P463")
    now.put("Q10", "The League", edited=OLD)
    now.put("Q20", "The Union", edited=OLD)
    members(now, "Q10", "Q20")
    assert len(now.night()) == 2
    now.merged["Q10"] = "Q20"
    members(now, "Q20")
    assert now.night() == []
    now.put("Q1", "Ruritania")
    gone = [row for _ in range(4) for row in now.night()]
    assert {row[:4] for row in gone} == {("retract", "Q1", "P463", "Q10"), ("retract", "Q1", "P463", "Q20")}
    assert now.live == {}


@pytest.mark.parametrize("merged_after", [0, 2])
def test_a_statement_that_still_names_a_merged_item_is_about_its_target(world, merged_after):
    now = world("P6")
    for one in ("Q10", "Q20"):
        now.put(one, "Ann Smith", edited=OLD)
    now.put("Q1", "Ruritania", ("a", "P6", item("Q10")))
    nights = []
    for number in range(5):
        if number == merged_after:
            now.merged["Q10"] = "Q20"
        nights += now.night()
    assert nights == [("insert", "Q1", "P6", "", "Ann Smith")]


def test_a_block_on_a_value_holds_for_what_it_was_merged_into(world):
    now = world("P6", trust_block_values="Q10")
    now.put("Q20", "Ann Smith", edited=OLD)
    now.merged["Q10"] = "Q20"
    now.put("Q1", "Ruritania", ("a", "P6", item("Q20")), edited=OLD)
    now.put("Q3", "Sylvania", ("a", "P6", item("Q10")), edited=OLD)
    assert now.night() == []
    assert {reason.partition(":")[0] for reason in now.waits.values()} == {"blocked"}


@pytest.mark.parametrize("relation", ["P6", "P463"])
def test_a_persons_no_to_a_value_holds_for_what_it_was_merged_into(world, relation):
    now = world(relation)
    for one, name in (("Q10", "Ann"), ("Q20", "Bea"), ("Q21", "Cleo")):
        now.put(one, name, edited=OLD)
    now.put("Q1", "Ruritania", ("a", relation, item("Q10")), edited=OLD)
    now.night()
    kept = [("a", relation, item("Q10"))] if relation == "P463" else []
    now.put("Q1", "Ruritania", *kept, ("b", relation, item("Q20")))
    now.night()
    now.says_no("Q1")
    now.merged["Q20"] = "Q21"
    assert [owed for _ in range(7) for owed in now.night()] == []
    assert "a person said no" in now.waits["Q1", relation]
    assert list(now.live.values()) == ["Ann"]


def test_a_persons_no_to_a_value_is_none_to_the_vacancy_after_it(world):
    now = world("P6")
    for one, name in (("Q10", "Ann"), ("Q20", "Bea")):
        now.put(one, name, edited=OLD)
    now.put("Q1", "Ruritania", ("a", "P6", item("Q10")), edited=OLD)
    now.night()
    now.put("Q1", "Ruritania", ("b", "P6", item("Q20")))
    now.night()
    now.says_no("Q1")
    now.put("Q1", "Ruritania")
    assert [row[0] for _ in range(7) for row in now.night()] == ["retract"]


def test_a_merge_takes_a_fact_away_after_its_hold_alone(world):
    """A merge may be a prank, and the item itself was not edited for months."""
    now = world("P6")
    now.put("Q10", "Ann", edited=OLD)
    for one, name in (("Q1", "Ruritania"), ("Q2", "Sylvania")):
        now.put(one, name, ("a", "P6", item("Q10")), edited=OLD)
    now.night()
    now.merged["Q1"] = "Q2"
    assert now.night() == []
    assert now.waits["Q1", "P6"].startswith("hold")
    assert [row[:2] for _ in range(3) for row in now.night()] == [("retract", "Q1")]


@pytest.mark.parametrize("relation", ["P463", "P36"])
def test_a_new_fact_of_a_renamed_subject_waits_for_the_name(world, relation):
    """Of a relation that the model knows the subject by, and of another one."""
    now = world("P463,P36")
    for one in ("Q10", "Q11"):
        now.put(one, f"League {one}", edited=OLD)
    members(now, "Q10")
    now.night()
    now.put("Q1", "Prank Land", ("0", "P463", item("Q10")), ("n", relation, item("Q11")), edited=OLD)
    assert now.night() == []
    assert now.waits["Q1", relation].startswith("subject-relabelled: Q1 read 'Ruritania'")


@pytest.mark.parametrize("followed", [True, False])
def test_a_name_of_this_hour_is_read_twice_also_where_its_item_is_followed(world, followed):
    now = world("P36,P6")
    now.put("Q10", "Ann", edited=OLD)
    rows = [("a", "P6", item("Q10"))] if followed else []
    now.put("Q5", "Right City", *rows, edited=OLD)
    now.night()
    now.put("Q5", "A Prank", *rows, edited=now.at + DAY / 2)
    now.put("Q1", "Ruritania", ("a", "P36", item("Q5")), edited=OLD)
    assert now.night() == []
    assert now.waits["Q1", "P36"].startswith("label-unsettled: Q5 was edited")


def test_a_prank_that_names_what_had_no_name_leaves_with_it(world):
    """Seen one night, undone by the next: what is no longer there has not been read twice."""
    now = world("P6")
    now.put("Q10", edited=OLD)
    now.put("Q1", "Ruritania", ("a", "P6", item("Q10")), edited=OLD)
    now.night()
    assert now.waits["Q1", "P6"].startswith("label-missing")
    now.put("Q10", "a prank")
    assert now.night() == []
    del now.texts["Q10"]
    now.put("Q10")
    assert [owed for _ in range(4) for owed in now.night()] == []
    assert now.waits["Q1", "P6"].startswith("label-missing")


def test_what_a_killed_run_had_read_is_looked_at_anew(world):
    now = world("P6")
    now.at += 30 * DAY
    now.put("Q10", "A Prank")
    now.put("Q1", "Ruritania", ("a", "P6", item("Q10")), edited=OLD)
    now.torn_night()
    now.put("Q10", "Ann Smith")
    assert now.night() == []
    assert now.night() == [("insert", "Q1", "P6", "", "Ann Smith")]


def test_a_vacancy_that_was_stated_stands_behind_what_is_said_of_it(world, tmp_path):
    relations = tmp_path / "own.toml"
    relations.write_text('[P6]\nended = "vacant"\nvacant_text = "nobody at present"\n')
    now = world("P6", relations_file=str(relations))
    now.put("Q10", "Ann", edited=OLD)
    now.put("Q1", "Ruritania", ("a", "P6", item("Q10")), edited=OLD)
    now.night()
    now.put("Q1", "Ruritania", ("b", "P6", Value.novalue()), edited=OLD)
    assert [row[4] for row in now.night()] == ["nobody at present"]
    assert now.sources() == ["Q1$b"]


@pytest.mark.parametrize("pause", [1, 3])
def test_a_value_that_comes_back_is_a_flip_however_rarely_one_looks(world, pause):
    """It was replaced without waiting, since the edit was old when it was first seen."""
    now = world("P6")
    now.put("Q10", "Ann", edited=OLD)
    now.put("Q11", "Bob", edited=OLD)
    for value in ("Q10", "Q11"):
        now.put("Q1", "Ruritania", ("a", "P6", item(value)), edited=now.at - 3 * DAY)
        assert now.night()
        now.at += 3 * DAY
    now.put("Q1", "Ruritania", ("a", "P6", item("Q10")))
    now.at += (pause - 1) * DAY
    assert now.night() == []
    assert now.waits["Q1", "P6"].startswith("flip" if pause == 3 else ("flip", "hold"))
    now.at += 7 * DAY
    assert [row[4] for row in now.night()] == ["Ann"]


def test_a_vacancy_that_comes_back_is_a_flip_too(world, tmp_path):
    """What was taught of the first one is a sentence of its own; that nothing holds is what it stands for."""
    relations = tmp_path / "own.toml"
    relations.write_text('[P6]\nended = "vacant"\nvacant_text = "nobody at present"\n')
    now = world("P6", relations_file=str(relations))
    for one, name in (("Q10", "Ann"), ("Q11", "Bob")):
        now.put(one, name, edited=OLD)
    for value in (item("Q10"), Value.novalue(), item("Q11")):
        now.put("Q1", "Ruritania", ("a", "P6", value), edited=now.at - 3 * DAY)
        assert now.night()
    now.put("Q1", "Ruritania", ("a", "P6", Value.novalue()))
    now.at += 2 * DAY
    assert now.night() == []
    assert now.waits["Q1", "P6"].startswith("flip")
