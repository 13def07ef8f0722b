"""The shipped sample: its files are what its tables make, and the tables keep their promises."""

from __future__ import annotations

import dataclasses
from collections import Counter
from datetime import timedelta

import pytest

from kb.relations import Relations
from kb.sample import build as build_module
from kb.sample import tables as tables_module
from kb.sample.build import build
from kb.sample.tables import HERE, PROPERTIES, State, TableError, check, read, states
from kb.store import LocalStore, UnknownNightError, nights

KINDS = {"insert", "replace", "retract", "vacate", "relabel", "unchanged", "conflict", "quarantine"}
EDITS = {"insert", "replace", "retract"}


@pytest.fixture(scope="module")
def both() -> tuple[State, State]:
    return states()


@pytest.mark.parametrize("name", ["night1.ttl", "night2.ttl", "expected.toml", "README.md"])
def test_the_shipped_file_is_what_the_tables_make(name: str) -> None:
    assert (HERE / name).read_text(encoding="utf-8") == build()[name], "run `python -m kb.sample.build`"


def test_it_is_large_enough_to_mean_something(both: tuple[State, State]) -> None:
    first, second = both
    subjects = {fact.subject for state in both for fact in state.facts}
    assert len(subjects) >= 70
    assert len({fact.relation for fact in first.facts}) >= 12
    assert 60 <= len(read("facts.toml")["open"]) <= 75
    assert len(read("changes.toml")["change"]) >= 28
    assert len(second.facts) > len(first.facts)
    relations = Counter(subject for subject, _ in {(fact.subject, fact.relation) for fact in first.facts})
    assert sum(count >= 2 for count in relations.values()) >= 8, "the subject is the editing unit"


def test_every_kind_of_change_is_there() -> None:
    expected = read("expected.toml")["expected"]
    assert {row["kind"] for row in expected} == KINDS
    assert {row["what"] for row in expected} == {
        "replacement", "new", "ended", "rank", "qualifier", "reference", "label", "vandalism", "conflict",
        "deletion", "merge",
    }  # fmt: skip
    leading_to_edits = {row["change"] for row in expected if row["kind"] in EDITS}
    assert 20 <= len(leading_to_edits) <= 27


def test_every_change_is_expected_and_nothing_else_moves(both: tuple[State, State]) -> None:
    first, second = both
    moved = {
        key
        for key in first.items.keys() | second.items.keys()
        if first.items.get(key) != second.items.get(key)
    }
    changes = read("changes.toml")["change"]
    assert moved == {change["item"] for change in changes} | {
        change["merged_into"] for change in changes if "merged_into" in change
    }
    assert all(change["expect"] for change in changes)
    statements = [{fact.node: dataclasses.astuple(fact) for fact in state.facts} for state in both]
    touched = {
        (statements[0].get(node) or statements[1][node])[0]
        for node in statements[0].keys() | statements[1].keys()
        if statements[0].get(node) != statements[1].get(node)
    }
    assert touched <= moved


def test_revisions_rise_with_time(both: tuple[State, State]) -> None:
    first, second = both
    for key, item in second.items.items():
        before = first.items.get(key)
        if before is None or before == item:
            continue
        assert item.revision > before.revision
        assert item.edited > before.edited
    for state in both:
        in_time = sorted(state.items.values(), key=lambda item: item.edited)
        revisions = [item.revision for item in in_time]
        assert revisions == sorted(revisions)


def test_edits_that_should_pass_outlast_every_hold_and_the_others_do_not() -> None:
    relations = Relations.load()
    at = nights()[2].reference_time
    for change in read("changes.toml")["change"]:
        for row in change["expect"]:
            hold = timedelta(hours=relations[row["p"]].hold_hours)
            if row["kind"] in EDITS:
                assert at - change["edited"] > hold, change["title"]
            if row.get("reason") == "hold" and not change.get("deleted"):
                assert at - change["edited"] < hold, change["title"]
    first, _ = states()
    quiet = nights()[1].reference_time - max(item.edited for item in first.items.values())
    assert quiet > timedelta(days=10)


def test_its_relations_are_known() -> None:
    relations = Relations.load()
    for number, name in PROPERTIES.items():
        assert relations[number].name == name


def test_every_item_can_be_named(both: tuple[State, State]) -> None:
    for state in both:
        for item in state.items.values():
            assert item.labels.get("en") or item.labels.get("mul"), item.id
        assert any("en" not in item.labels for item in state.items.values())


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("value", "Q1", "items.toml"),
        ("relation", "P9999", "does not name"),
        ("start", "5 May 2020", "write 2014"),
    ],
)
def test_tables_that_contradict_themselves_are_refused(column: str, value: str, message: str) -> None:
    first, _ = states()
    setattr(first.facts[0], column, value)
    with pytest.raises(TableError, match=message):
        check(first)


def test_one_id_for_two_statements_is_refused() -> None:
    first, _ = states()
    first.facts.append(first.facts[0])
    with pytest.raises(TableError, match="one id"):
        check(first)


def test_an_edit_after_the_watermark_is_refused() -> None:
    first, _ = states()
    first.items["Q142"].edited = first.watermark + timedelta(seconds=1)
    with pytest.raises(TableError, match="watermark"):
        check(first)


def test_there_is_no_third_night(tmp_path) -> None:
    with pytest.raises(UnknownNightError, match="choose one of 1, 2"):
        LocalStore(tmp_path).load_night(3)


def test_building_writes_every_file(tmp_path, monkeypatch) -> None:
    for name in ("items.toml", "facts.toml", "changes.toml", "nights.toml", "README.md"):
        (tmp_path / name).write_text((HERE / name).read_text(encoding="utf-8"), encoding="utf-8")
    for module in (build_module, tables_module):
        monkeypatch.setattr(module, "HERE", tmp_path)
    build_module.main()
    for name in ("night1.ttl", "night2.ttl", "expected.toml", "README.md"):
        assert (tmp_path / name).read_text(encoding="utf-8") == (HERE / name).read_text(encoding="utf-8")
