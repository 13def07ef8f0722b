"""Seventy real pulls as nightly syncs, against an oracle that shares no code with the package."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from kb.document_feed import DocumentFeed
from kb.documents import Document
from kb.errors import PullFileError
from kb.relations import Relations
from kb.replay import Rehearsal, play, read_pulls, rounds
from kb.replay_store import NightServer
from kb.trust import ChangeKind, Trust
from tests.integration.kb import oracle

SHARED = Path(os.environ.get("FACTSYNC_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))
PULLS = SHARED / "world_leaders_pulls.jsonl.gz"
needs_pulls = pytest.mark.skipif(not PULLS.exists(), reason=f"the real pulls are not at {PULLS}")

# (office, value or label) that pranks and flaps put into the pulls, from vandalism_and_flap_examples.json
PRANK_LABELS = {
    "Kais Saied Asshole",
    "Prostu Romaniei",
    "Dr ingashipola Lukas T",
    "Maia Ex",
    "Player of soccer",
}
PRANK_HOLDERS = {("Q586047", "Q63641"), ("Q19808845", "Q312026"), ("Q466956", "Q16297876")}


def in_memory(night):
    """The same night as documents: what the server's answers are held against."""
    by_subject = {}
    for one in night.statements:
        by_subject.setdefault(one.subject, []).append(one)
    probes = {one.subject: one for one in night.probes}
    documents = [
        Document(
            entity=entity,
            revision=probes[entity].revision if entity in probes else 0,
            modified_at=probes[entity].modified_at if entity in probes else None,
            labels={"en": night.labels[entity].text} if entity in night.labels else {},
            statements=tuple(by_subject.get(entity, ())),
        )
        for entity in by_subject.keys() | night.labels.keys()
    ]
    return DocumentFeed(documents, until=night.at)


def held(ledger):
    return {subject: slots[""].value.canonical for (subject, _), slots in ledger.held.items() if "" in slots}


def play_beside_the_oracle(feed_of):
    relations = Relations.load()
    ledger = Rehearsal(relations.only(("P1308",)), Trust())
    judge = oracle.Oracle()
    nights = play(read_pulls(PULLS), relations, Trust(), feed_of, ledger)
    for night, pull in zip(nights, oracle.pulls(PULLS), strict=True):
        expected = judge.night(pull)
        edits = {
            one.subject: (one.old.value.canonical if one.old else None, one.new.value.canonical)
            for one in night.edits()
        }
        assert edits == expected, f"night {night.number}"
        assert held(ledger) == {
            position: office.held for position, office in judge.offices.items() if office.held is not None
        }, f"night {night.number}"
        yield night


def assert_no_prank(night):
    for one in night.edits():
        assert one.kind in {ChangeKind.INSERT, ChangeKind.REPLACE}  # a flap never makes the model forget
        assert (one.subject, one.new.value.canonical) not in PRANK_HOLDERS


@needs_pulls
@pytest.mark.slow
def test_the_real_pulls_through_the_real_server_equal_the_oracle_night_by_night(tmp_path):
    with NightServer(tmp_path) as server:
        nights = list(play_beside_the_oracle(server.feed_of))
    assert len(nights) == 70
    for night in nights:
        assert_no_prank(night)


@needs_pulls
def test_the_real_pulls_as_documents_equal_the_oracle_night_by_night():
    relations = Relations.load()
    for night in play_beside_the_oracle(in_memory):
        assert_no_prank(night)
        assert night.stopped == ()
    ledger = Rehearsal(relations.only(("P1308",)), Trust())
    for night in play(read_pulls(PULLS), relations, Trust(), in_memory, ledger):
        texts = {fact[kind] for fact in ledger.facts() for kind in ("label", "subject_label")}
        assert not texts & PRANK_LABELS, f"night {night.number}"
        json.dumps(night.summary())
    facts = ledger.facts()
    assert len(facts) > 330
    known = {fact["subject"]: fact["value"] for fact in facts}
    assert known["Q586047"] == "Q897790"  # East Timor: Guterres, with Matthes beside him for 32 days
    assert known["Q466956"] == "Q306"  # Chile: Piñera until his successor has begun
    assert known["Q14911897"] == "Q16120878"
    assert known["Q687075"] == "Q4935873"  # Sweden


@needs_pulls
def test_the_server_and_the_documents_give_the_same_rows(tmp_path):
    nights = [one for one in rounds(read_pulls(PULLS)) if one.number in {1, 17, 58}]
    with NightServer(tmp_path) as server:
        for night in nights:
            subjects = [probe.subject for probe in night.probes]
            live, memory = server.feed_of(night), in_memory(night)
            assert live.statements(subjects, ["P1308"]) == memory.statements(subjects, ["P1308"])
            assert live.probe(subjects) == memory.probe(subjects)
            assert live.labels(subjects) == memory.labels(subjects)
            assert live.lag() == memory.lag()
            assert live.skipped == []


def pull(at, *rows):
    keys = ("position", "positionLabel", "officeholder", "officeholderLabel", "start_year", "end_year")
    return {"pulled_at": at, "rows": [dict(zip(keys, row, strict=True)) for row in rows]}


def write(path, *pulls, packed=False):
    data = "".join(json.dumps(one) + "\n" for one in pulls).encode()
    path.write_bytes(gzip.compress(data) if packed else data)
    return path


ADA = ("Q100", "Mayor", "Q1", "Ada", "2020", "")
BEA = ("Q100", "Mayor", "Q2", "Bea", "2022", "")


def run(path, trust=None):
    relations = Relations.load()
    ledger = Rehearsal(relations.only(("P1308",)), trust or Trust())
    return list(play(read_pulls(path), relations, trust or Trust(), in_memory, ledger)), ledger


@pytest.mark.parametrize("packed", [True, False])
def test_pulls_are_played_in_order_of_time(tmp_path, packed):
    path = write(
        tmp_path / "p.jsonl",
        pull("2022-01-09T00:00:00+00:00", BEA),
        pull("2022-01-01T02:00:00+02:00", ADA),
        pull("2022-01-03T00:00:00", ADA),
        pull("2022-01-06T00:00:00Z", BEA),
        packed=packed,
    )
    nights, ledger = run(path)
    assert [[one.kind.value for one in night.changes] for night in nights] == [
        ["quarantine"],
        ["insert"],
        ["quarantine"],
        ["replace"],
    ]
    assert ledger.facts() == [
        {"subject": "Q100", "subject_label": "Mayor", "property": "P1308", "value": "Q2", "label": "Bea"}
    ]


def test_statement_ids_outlive_corrected_years(tmp_path):
    corrected = ("Q100", "Mayor", "Q1", "Ada", "2019", "")
    days = pull("2022-01-01T00:00:00Z", ADA), pull("2022-01-02T00:00:00Z", corrected)
    path = write(tmp_path / "p.jsonl", *days)
    first, second = rounds(read_pulls(path))
    assert first.statements[0].id == second.statements[0].id
    assert (first.statements[0].revision, second.statements[0].revision) == (1, 2)


def test_a_holder_who_leaves_the_list_has_ended_and_the_office_waits(tmp_path):
    path = write(
        tmp_path / "p.jsonl",
        *(pull(f"2022-01-0{day}T00:00:00Z", *([ADA] if day < 5 else [])) for day in range(1, 10)),
    )
    nights, ledger = run(path)
    assert [night.changes[0].kind.value for night in nights[4:]] == ["vacate"] * 5
    assert ledger.facts()[0]["value"] == "Q1"


def test_a_flap_of_five_days_edits_nothing_twice(tmp_path):
    days = [[ADA], [ADA], [ADA], [ADA], [], [], [ADA], [ADA, BEA], [ADA]]
    pulls = [pull(f"2022-01-{2 * n + 1:02d}T00:00:00Z", *rows) for n, rows in enumerate(days)]
    path = write(tmp_path / "p.jsonl", *pulls)
    nights, _ = run(path)
    assert sum(len(night.edits()) for night in nights) == 1


def test_odd_rows_are_counted_and_cost_nothing_else(tmp_path):
    odd = [
        ("", "", "Q1", "Ada", "", ""),
        ("Q101", "Judge", "_:b1", "", "", ""),
        ("Q102", "Warden", "Q1", "Ada", "soon", "later"),
        ("Q103", "Q103", "Q1", "Ada", "2020", ""),
        ("nonsense", "x", "y", "z", "", ""),
    ]
    path = write(tmp_path / "p.jsonl", *(pull(f"2022-01-0{day}T00:00:00Z", ADA, *odd) for day in (1, 4)))
    nights, ledger = run(path)
    assert [night.skipped for night in nights] == [2, 2]
    assert [fact["subject"] for fact in ledger.facts()] == ["Q100"]
    assert nights[1].reasons["label-missing"] == 1


def test_the_burst_guard_stops_a_night_and_the_next_one_too(tmp_path):
    offices = [(f"Q{n}", f"Office {n}", "Q1", "Ada", "2020", "") for n in range(1000, 1100)]
    changed = [(office, name, "Q2", "Bea", "2021", "") for office, name, *_ in offices]
    path = write(
        tmp_path / "p.jsonl",
        *(pull(f"2022-01-{day:02d}T00:00:00Z", *offices) for day in (1, 4)),
        *(pull(f"2022-01-{day:02d}T00:00:00Z", *changed) for day in (7, 10, 13)),
    )
    nights, ledger = run(path)
    assert [len(night.edits()) for night in nights] == [0, 100, 0, 0, 0]
    assert nights[3].stopped == ("100 of 100 facts of P1308 would change; the limit is 50",)
    assert nights[4].summary()["reasons"] == {"burst": 100}
    assert nights[1].line() == "night   2  2022-01-04 00:00  100 insert"
    assert nights[2].line() == "night   3  2022-01-07 00:00  100 quarantine (held back: 100 hold)"
    assert nights[4].line().endswith("STOPPED: 100 of 100 facts of P1308 would change; the limit is 50")
    assert {fact["value"] for fact in ledger.facts()} == {"Q1"}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"{}\n", 1),
        (b'{"pulled_at": "2022-01-01", "rows": []}\nnot json\n', 2),
        (b"[1]\n", 1),
        (b"\xff\xfe", 0),
    ],
)
def test_a_file_that_is_none_names_its_line(tmp_path, text, line):
    path = tmp_path / "p.jsonl"
    path.write_bytes(text)
    with pytest.raises(PullFileError) as caught:
        read_pulls(path)
    assert caught.value.line == line


def test_a_missing_or_torn_file_is_a_named_error(tmp_path):
    with pytest.raises(PullFileError):
        read_pulls(tmp_path / "none")
    torn = tmp_path / "torn.gz"
    whole = gzip.compress(json.dumps(["x"] * 1000).encode())
    damaged = bytearray(whole)
    damaged[12] ^= 0xFF
    for content in (whole[:20], bytes(damaged)):
        torn.write_bytes(content)
        with pytest.raises(PullFileError):
            read_pulls(torn)
