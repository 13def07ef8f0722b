"""The benchmark of many nights, on a tiny model and made-up data: it resumes, and its numbers add up."""

import csv
import json
from dataclasses import replace

import pytest

from benchmarks import night_data, night_log, night_plots, nights
from editor.presets import MemitSettings

QUICK = MemitSettings(layers=(1, 2), moment_weight=1.0, steps=3, precision="float32")
OFFICES = ("Mayor of Aford", "Mayor of Beham", "Mayor of Cester", "Mayor of Dworth", "Mayor of Eley", "Reeve")


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    with (folder / "officeholder_replacements.csv").open("w", newline="") as file:
        names = ("subject_id", "subject", "old", "new", "new_id", "change_date")
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for number, office in enumerate(OFFICES):
            for year in (2001, 2002, 2003)[: 1 + number % 3]:
                new = f"Ada {chr(65 + number)}{'xyz'[year - 2001]}olt"
                values = (
                    f"Q{number}",
                    office,
                    "Bea Old",
                    new,
                    f"Q{number}{year}",
                    f"{year}-0{number + 1}-01",
                )
                writer.writerow(dict(zip(names, values, strict=True)))
        twin = ("Q77", "Reeve", "Bea Old", "Cleo New", "Q78", "2003-01-01")
        writer.writerow(dict(zip(names, twin, strict=True)))
    records = [
        {
            "case_id": number,
            "requested_rewrite": {
                "subject": office,
                "prompt": "{} works in",
                "target_new": {"str": "Rome"},
                "target_true": {"str": "Paris"},
            },
            "paraphrase_prompts": [f"The town of {office} is"],
            "clean_paraphrase_prompts": [],
            "neighborhood_prompts": ["The mayor of Fham works in"],
        }
        for number, office in enumerate(OFFICES)
    ]
    (folder / "counterfact_dev.json").write_text(json.dumps(records))
    return folder


@pytest.fixture
def bench(tiny_model_folder, data, tmp_path):
    return nights.Bench(
        str(tiny_model_folder), tmp_path / "out", data, 1000, QUICK, fluency=("It rained all day long.",)
    )


def test_batches_resume_where_they_were_killed(bench, monkeypatch):
    whole = nights.batches(bench, "memit", count=3, size=2)
    assert [row["edits"] for row in whole.rows] == [2, 4, 6]
    other = replace(bench, out=bench.out.parent / "again")
    keep = night_log.Log.add

    def dies(log, row, method):
        keep(log, row, method)
        raise KeyboardInterrupt

    monkeypatch.setattr(night_log.Log, "add", dies)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            nights.batches(other, "memit", count=3, size=2)
    monkeypatch.undo()
    again = nights.batches(other, "memit", count=3, size=2)
    timeless = [
        [{k: v for k, v in row.items() if k != "s_per_edit"} for row in log.rows] for log in (whole, again)
    ]
    assert timeless[0] == timeless[1]
    assert {"efficacy", "neighbourhood", "paraphrase"} <= again.rows[-1]["all"].keys()
    with pytest.raises(SystemExit, match="name another --out"):
        nights.batches(other, "memit", count=2, size=3)


def test_more_batches_go_on_from_those_there_are(bench):
    some = nights.batches(bench, "memit", count=2, size=2)
    more = nights.batches(bench, "memit", count=3, size=2)
    assert more.rows[:2] == some.rows
    assert [row["edits"] for row in more.rows if "all" in row] == [4, 6]


def test_what_batches_taught_is_rebuilt_at_larger_weights(bench):
    nights.batches(bench, "memit", count=2, size=2)
    log = nights.rebuilt(bench, factors=(1.0, 50.0))
    same, lighter = log.rows
    assert same["reused"] == lighter["reused"] == 4
    assert lighter["norm"] < same["norm"]
    assert nights.rebuilt(bench, factors=(1.0, 50.0)).rows == log.rows, "nothing is measured twice"


@pytest.mark.parametrize("method", ["memit-reference", "alphaedit", "encore"])
def test_other_methods_run_the_same_batches(bench, method):
    log = nights.batches(bench, method, count=2, size=2)
    assert log.rows[-1]["norm"] > 0
    assert "| " + method in night_plots.show(bench.out)
    assert (bench.out / "batches.png").stat().st_size > 1000


def test_nights_replace_earlier_facts_and_are_rebuilt(bench):
    log = nights.many_nights(bench, count=3, size=2, every=2)
    assert sum(row["edits"] for row in log.rows) == 6
    assert [row["night"] for row in log.rows if "rebuilt" in row] == [2, 4]
    assert log.rows[-1]["rebuilt"]["live"] == 4
    end = log.end
    assert end["live"] == 4
    assert 0 <= end["superseded_preferred"] <= 1
    assert end["rebuild"]["share_of_edits"] > 0
    # The rebuild after the last night refined what it did not say, so its own figure is the one to meet.
    assert end["rebuild"]["perplexity"] == pytest.approx(log.rows[-1]["rebuilt"]["perplexity"], rel=0.02)
    shown = night_plots.show(bench.out)
    assert "rebuilt in" in shown
    assert "rebuilt after night 2" in shown


def test_what_nights_taught_is_taken_out(bench):
    taught = nights.many_nights(bench, count=3, size=2, every=0)
    (row,) = nights.retracted(bench, count=9).rows
    assert row["before"] != row["base"]
    assert row["after"] == pytest.approx(row["base"], rel=1e-3), "with all gone it is the base model again"
    assert row["norm"] < 1e-3 * taught.rows[-1]["norm"]
    (again,) = nights.retracted(bench, count=9).rows
    assert again["seconds"] == row["seconds"], "nothing is measured twice"


def test_many_facts_of_one_subject_as_a_unit_and_apart(bench):
    log = nights.many_facts(bench, subjects=3, facts=3)
    assert [row["unit"] for row in log.rows] == ["subject", "fact"]
    assert "| subject |" in night_plots.show(bench.out)


def test_changes_of_office_tell_what_replaces_what(data):
    stream = night_data.changes_of_office(data / "officeholder_replacements.csv", 6, replaced=2)
    assert len(stream) == 6
    assert sum(late for _, late in stream) == 2
    assert "Reeve" not in {fact.subject for fact, _ in stream}, "two offices share that name"
    parts = night_data.nights(stream, 4)
    assert max(len(part) for part in parts) <= 4
    for part in parts:
        assert len({fact.fact_id for fact, _ in part}) == len(part)
    with pytest.raises(ValueError, match="too few offices"):
        night_data.changes_of_office(data / "officeholder_replacements.csv", 60, replaced=20)


def test_a_fact_that_changes_twice_in_a_night_waits_for_the_next(data):
    first = night_data.many_facts(data / "officeholder_replacements.csv", 1, 2)
    parts = night_data.nights([(first[0], False), (first[0], True), (first[1], False)], 2)
    assert [[late for _, late in part] for part in parts] == [[False, False], [True]]


def test_the_cost_of_late_nights():
    rows = [{"s_per_edit": value} for value in (9.0, 1.0, 1.0, 1.0, 1.0, 1.2, 1.2, 5.0)]
    assert night_plots.cost_ratio(rows) == pytest.approx(1.2)
    assert night_plots.cost_ratio(rows[:4]) is None


def test_the_development_data_holds_a_thousand_changes(shared_data):
    stream = night_data.changes_of_office(shared_data / "officeholder_replacements.csv", 1000, replaced=333)
    assert sum(late for _, late in stream) == 333
    assert {len(part) for part in night_data.nights(stream, 25)} == {25}
    assert len(night_data.many_facts(shared_data / "officeholder_replacements.csv", 50, 10)) == 500
