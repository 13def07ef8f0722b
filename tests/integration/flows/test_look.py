"""Commands that explain and compare, over two real nights of a tiny model."""

import json
import sys

import pytest

from flows.cli.main import main

pytestmark = pytest.mark.usefixtures("prefect_server")


def said(monkeypatch, capsys, *arguments):
    """What a command prints as JSON."""
    monkeypatch.setattr(sys, "argv", ["factsync", *arguments, "--json"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0
    return json.loads(capsys.readouterr().out)


def test_what_is_behind_an_answer(two_nights, monkeypatch, capsys):
    found = said(monkeypatch, capsys, "explain", "Someone said the head of government of FRANCE is")
    assert {fact["label"] for fact in found["facts"]} == {"France"}
    by_relation = {fact["property"]: fact for fact in found["facts"]}
    government = by_relation["P6"]
    assert government["target"] == "Michel Barnier"
    assert government["p_live"] != government["p_base"]
    statement, revision = government["sources"][0]
    assert statement.startswith("Q142$")
    assert revision > 0
    assert found["facts"] == sorted(found["facts"], key=lambda fact: -fact["p_live"])
    # A name is found as a whole word.
    assert said(monkeypatch, capsys, "explain", "Franceland is nowhere")["facts"] == []


def test_what_lies_between_two_checkpoints(two_nights, monkeypatch, capsys):
    first, second = (night.candidate.digest for night in two_nights[1:])
    found = said(monkeypatch, capsys, "diff", first[:16], "live")
    assert (found["before"]["digest"], found["after"]["digest"]) == (first, second)
    changed = {
        (fact["subject"], fact["property"]): (fact["before"], fact["after"]) for fact in found["facts"]
    }
    assert changed["Q142", "P6"] == ("Gabriel Attal", "Michel Barnier")
    assert None in {after for _, after in changed.values()}, "a retraction"
    assert None in {before for before, _ in changed.values()}, "a new fact"
    assert found["metrics"]["perplexity"][0] > 0
    back = said(monkeypatch, capsys, "diff", "live", first)
    assert {(one["before"], one["after"]) for one in back["facts"]} == {
        pair[::-1] for pair in changed.values()
    }
    everything = said(monkeypatch, capsys, "diff", "base", "live")
    assert {fact["before"] for fact in everything["facts"]} == {None}
    assert said(monkeypatch, capsys, "diff", "live", "live")["facts"] == []
