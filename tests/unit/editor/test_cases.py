"""Records: every layout is read, every bad record is named with its line."""

from __future__ import annotations

import builtins
import json
import sys
from typing import TYPE_CHECKING

import pytest

from editor import datasets
from editor.cases import read_case
from editor.errors import BadRecordError, DataFormatError, DataNotFoundError, MissingLibraryError

if TYPE_CHECKING:
    from pathlib import Path

COUNTERFACT = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "{} is located in",
        "relation_id": "P131",
        "subject": "Lagos Cathedral",
        "target_new": {"str": "Paris", "id": "Q90"},
        "target_true": {"str": "Lagos", "id": "Q8673"},
    },
    "paraphrase_prompts": ["It rained. Lagos Cathedral lies in"],
    "neighborhood_prompts": ["Lagos Airport is located in"],
    "generation_prompts": ["Lagos Cathedral is near", "Lagos Cathedral was built"],
}
TRACING = {
    "relation": "{} is located in",
    "relation_prefix": "",
    "relation_suffix": " is located in",
    "relation_id": "P131",
    "target_false_id": "Q90",
    "target_true": " Lagos",
    "target_false": " Paris",
    "subject": "Lagos Cathedral",
}
ZSRE = {
    "subject": "Air France Flight 447",
    "src": "When was Air France Flight 447?",
    "rephrase": "When did Air France Flight 447 occur?",
    "alt": "12 July 1944",
    "answers": ["1 June 2009"],
    "loc": "nq question: when does isle of dogs come out in us",
    "loc_ans": "March 23, 2018",
}
FACT = {"subject": "Berlin", "prompts": ["The mayor of {} is"], "target": "Kai Wegner", "relation": "P6"}


def test_counterfact_asks_the_new_object_against_the_true_one():
    case = read_case(COUNTERFACT, 0)
    assert (case.case_id, case.relation, case.target_id) == ("7", "P131", "Q90")
    assert (case.request.target, case.request.old_target) == ("Paris", "Lagos")
    assert (case.paraphrases[0].answer, case.paraphrases[0].rival) == ("Paris", "Lagos")
    assert (case.neighbourhood[0].answer, case.neighbourhood[0].rival) == ("Lagos", "Paris")
    assert len(case.generation) == 2


def test_tracing_layout_is_the_same_fact():
    case, full = read_case(TRACING, 7), read_case(COUNTERFACT, 0)
    assert case.request.prompts == full.request.prompts
    assert (case.request.target, case.request.old_target) == ("Paris", "Lagos")
    assert case.relation == "P131"


def test_zsre_writes_the_true_answer_and_the_layout_with_hops_the_alternative():
    case = read_case(ZSRE, 3)
    assert case.request.prompts == ("When was {}?",)
    assert (case.request.target, case.request.old_target) == ("1 June 2009", None)
    assert case.neighbourhood[0].prompt.endswith("us?")
    hop = {"New Question": "What else happened then?", "New Answer": "A battle"}
    other = read_case({**ZSRE, "portability": hop}, 3)
    assert other.request.target == "12 July 1944"
    assert other.portability[0].answer == "A battle"


def test_own_layout_carries_a_request():
    case = read_case({**FACT, "heldback": ["Who leads {}?"], "old_target": "Franziska Giffey"}, 1)
    assert case.relation == "P6"
    assert case.paraphrases[0].prompt == "Who leads Berlin?"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], "is not an object"),
        ({"x": 1}, "none of the keys"),
        ({"requested_rewrite": {"prompt": "{} in"}}, "has no 'target_new'"),
        ({"requested_rewrite": "x"}, "wrong kind"),
        ({**ZSRE, "subject": "Air Canada"}, "does not name its subject"),
        ({**ZSRE, "rephrase": " "}, "no text in `rephrase`"),
        ({**ZSRE, "answers": []}, "wrong kind"),
        ({**FACT, "prompts": ["no place"]}, "exactly one"),
        ({**FACT, "prompts": []}, "has no prompt"),
        ({**FACT, "target": None}, "no text in `target`"),
        ({**FACT, "old_target": ""}, "no text in `old_target`"),
        ({**FACT, "old_target": 1944}, "no text in `old_target`"),
        ({**COUNTERFACT, "generation_prompts": ["Lagos is near", 7]}, "no text in `generation_prompts`"),
        ({**COUNTERFACT, "generation_prompts": "Lagos is near"}, "no list in `generation_prompts`"),
        ({**COUNTERFACT, "paraphrase_prompts": "Lagos lies in"}, "no list in `paraphrase_prompts`"),
    ],
)
def test_a_bad_record_says_what_is_wrong(record, message):
    with pytest.raises(BadRecordError, match=message):
        read_case(record, 0)


def test_a_bad_record_is_reported_with_its_line_and_left_out(tmp_path, caplog):
    path = tmp_path / "facts.json"
    path.write_text(json.dumps([FACT, {"x": 1}, {**FACT, "subject": "Rome", "fact_id": "b"}], indent=1))
    found = datasets.load(path)
    (skipped,) = found.skipped
    assert len(found.cases) == 2
    assert path.read_text().splitlines()[skipped.line - 1].strip() == "{"
    assert '"x": 1' in path.read_text().splitlines()[skipped.line]
    assert f"line {skipped.line}" in caplog.text


def test_one_record_a_line(tmp_path):
    path = tmp_path / "facts.jsonl"
    path.write_text(f"{json.dumps(FACT)}\n\nnot json\n{json.dumps(FACT)}\n")
    found = datasets.load(path)
    assert len(found.cases) == 2
    assert [str(one) for one in found.skipped] == [
        "line 3: the record is not JSON (Expecting value); left out"
    ]


def test_a_record_may_hold_what_ends_lines_elsewhere(tmp_path):
    """JSON lets a string hold U+2028 as it is."""
    path = tmp_path / "facts.jsonl"
    lines = [json.dumps({**FACT, "note": end}, ensure_ascii=False) for end in ("a\u2028b", "a\x85b")]
    path.write_text("\r\n".join(lines), encoding="utf-8")
    found = datasets.load(path)
    assert (len(found.cases), found.skipped) == (2, ())


@pytest.mark.parametrize("text", [json.dumps([FACT], indent=1), json.dumps(FACT)])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path, text):
    """Windows editors put one before all else."""
    path = tmp_path / "facts.json"
    path.write_text(text, encoding="utf-8-sig")
    found = datasets.load(path)
    assert (len(found.cases), found.skipped) == (1, ())


def test_two_records_of_one_name(tmp_path):
    path = tmp_path / "facts.json"
    path.write_text(json.dumps([COUNTERFACT, COUNTERFACT]))
    assert "name of an earlier one" in datasets.load(path).skipped[0].reason


def test_files_that_cannot_be_used(tmp_path):
    with pytest.raises(DataNotFoundError, match="no file"):
        datasets.load(tmp_path / "missing.json")
    (tmp_path / "broken.json").write_text('[{"x": 1},\n{"x" 2}]')
    with pytest.raises(DataFormatError, match="line 2"):
        datasets.load(tmp_path / "broken.json")
    (tmp_path / "cut.json").write_text(json.dumps([FACT, FACT]).rsplit(", {", 1)[0] + ",\n")
    with pytest.raises(DataFormatError, match="ends before its list does"):
        datasets.load(tmp_path / "cut.json")
    (tmp_path / "empty.json").write_text("[]")
    with pytest.raises(DataFormatError, match="no record"):
        datasets.load(tmp_path / "empty.json")


def test_the_hub_package_is_asked_for_by_name(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "datasets":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "datasets", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingLibraryError, match="pip install"):
        datasets.load("azhx/counterfact")


def test_a_hub_that_cannot_be_reached_is_named(monkeypatch):
    hub = pytest.importorskip("datasets")

    def offline(*_args, **_kwargs):
        raise ConnectionError("offline")

    monkeypatch.setattr(hub, "load_dataset", offline)
    with pytest.raises(DataNotFoundError, match="could not be read from the hub"):
        datasets.load("azhx/counterfact")


def test_a_hub_data_set_is_read_row_by_row(monkeypatch):
    hub = pytest.importorskip("datasets")
    rows = hub.Dataset.from_list([TRACING, {**TRACING, "subject": ""}])
    monkeypatch.setattr(hub, "load_dataset", lambda *_args, **_kwargs: rows)
    found = datasets.load("NeelNanda/counterfact-tracing")
    assert len(found.cases) == 1
    assert found.skipped[0].line == 2


def dataset(*relations: str) -> datasets.Dataset:
    records = [
        (n, {**FACT, "fact_id": str(n), "subject": f"City {n}", "relation": relation})
        for n, relation in enumerate(relations, start=1)
    ]
    return datasets.read(records, name="facts", digest="0")


def test_a_subject_is_chosen_once_and_relations_in_equal_shares():
    found = dataset("P6", "P6", "P6", "P36", "P36", "P17")
    names = [case.relation for case in datasets.choose(found, 4, relations=("P6", "P36"))]
    assert names == ["P6", "P36", "P6", "P36"]
    again = datasets.read([(1, FACT), (2, {**FACT, "fact_id": "b"})], name="facts", digest="0")
    with pytest.raises(DataFormatError, match="1 usable"):
        datasets.choose(again, 2)
    with pytest.raises(DataFormatError, match="of P17"):
        datasets.choose(found, 2, relations=("P17",))


def test_a_draw_is_seeded():
    found = dataset(*["P6"] * 30)
    assert datasets.choose(found, 5, seed=1) == datasets.choose(found, 5, seed=1)
    assert datasets.choose(found, 5, seed=1) != datasets.choose(found, 5, seed=2)
    assert datasets.choose(found, 5) == found.cases[:5]


@pytest.mark.parametrize(("name", "count"), [("counterfact_dev.json", 2000), ("zsre_dev.json", 600)])
def test_the_development_data_is_read_whole(shared_data: Path, name: str, count: int):
    found = datasets.load(shared_data / name)
    assert len(found.cases) + len(found.skipped) == count
    assert len(found.skipped) < count // 50
