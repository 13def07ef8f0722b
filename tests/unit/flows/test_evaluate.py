"""An evaluation: what is asked for is checked, what is finished is kept, what was killed goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from editor import mend, methods
from editor.errors import DataFormatError
from flows import evaluate, models, report
from flows.asked import Asked, cut
from flows.cli.main import app
from flows.errors import EvaluationInputError
from flows.settings import Settings
from tests.counterfact import records

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def data(tmp_path) -> Path:
    """Forty records of two relations in CounterFact's layout, and a bad one."""
    made = records(40, (("P6", "The mayor of {} is"), ("P190", "{} is twinned with")))
    path = tmp_path / "records.json"
    path.write_text(json.dumps([*made, {"requested_rewrite": {}}]))
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A home whose second moments are measured once."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def settings(home, tiny_model_folder, monkeypatch) -> Settings:
    """A home with a tiny model and few moments."""
    monkeypatch.setattr(mend.Mend, "steps", 2)
    monkeypatch.setattr(evaluate, "PART", 3)
    # Measured for real in tests/unit/editor; it takes seconds an experiment.
    monkeypatch.setattr(evaluate.metrics, "capability", lambda _lm: 0.5)
    memit = {"layers": [1, 2], "moment_weight": 0.1, "steps": 3, "turns": 1, "refine_steps": 0}
    (home / "memit.json").write_text(json.dumps(memit))
    return Settings(home=home, model=str(tiny_model_folder), moment_tokens=1000)


def asked(data: Path, **more: object) -> Asked:
    passages = data.with_suffix(".txt")
    passages.write_text("The river was low that summer.\nNobody came to the second meeting.\n")
    return replace(Asked(data=str(data), methods=("ft-l",), edits=(4,), texts=2, passages=passages), **more)


@pytest.mark.slow
def test_every_method_is_evaluated_and_the_model_comes_back(settings, data, tmp_path) -> None:
    """One row a method, all metrics that can be measured, and every method starts from the same model."""
    names = tuple(methods.METHODS)
    found = evaluate.evaluate(settings, asked(data, methods=names), tmp_path / "out")
    assert [one["method"] for one in found.results] == list(names)
    assert found.about["skipped"] == 1
    assert found.skipped == ("line 1: the record has no 'target_new'; left out",)
    for one in found.results:
        assert 0 <= one["metrics"]["efficacy"] <= 1
        assert one["metrics"]["entropy"] > 0
        assert set(one["by_relation"]) == {"P6", "P190"}
    again = evaluate.evaluate(settings, asked(data, methods=names[::-1]), tmp_path / "other")
    first = {one["method"]: one for one in found.results}
    for one in again.results:
        assert one["metrics"] == first[one["method"]]["metrics"], one["method"]


class KilledError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize(("at", "method"), [(1, "ft-l"), (5, "memit"), (4, "alphaedit")])
def test_a_killed_evaluation_goes_on(request, tmp_path, monkeypatch, at: int, method: str) -> None:
    """Wherever it ends, the next run takes what is kept and finds the numbers of an undisturbed one."""
    settings, data = request.getfixturevalue("settings"), request.getfixturevalue("data")
    wanted = asked(data, methods=(method,), edits=(4,), batches=2)
    straight = evaluate.evaluate(settings, wanted, tmp_path / "straight")
    calls = 0
    real = evaluate.metrics.ask

    def ask(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == at:
            raise KilledError
        return real(*args, **kwargs)

    monkeypatch.setattr(evaluate.metrics, "ask", ask)
    with pytest.raises(KilledError):
        evaluate.evaluate(settings, wanted, tmp_path / "killed")
    before = calls
    resumed = evaluate.evaluate(settings, wanted, tmp_path / "killed")
    asked_again = calls - before
    for one, other in zip(straight.results, resumed.results, strict=True):
        assert one["metrics"] == other["metrics"]
        assert one["by_relation"] == other["by_relation"]
        assert one["sequence"] == other["sequence"]
    assert asked_again == 5 - (at - 1), "what was answered before is not asked again"
    calls = 1000
    evaluate.evaluate(settings, wanted, tmp_path / "killed")
    assert calls == 1000, "what is finished is not asked again"


def test_batches_follow_the_first(settings, data, tmp_path) -> None:
    """After every batch the first one is asked again; after the last, everything."""
    found = evaluate.evaluate(settings, asked(data, edits=(6,), batches=3), tmp_path / "out")
    base, one = found.results
    assert (base["batches"], one["batches"]) == (1, 3)
    assert [entry["edits"] for entry in one["sequence"]] == [2, 4, 6]
    pages = report.write(found, tmp_path / "out")
    rows = pq.read_table(pages.answers).to_pylist()
    after = [
        {row["cohort"] for row in rows if row["method"] == "ft-l" and row["after_batch"] == number}
        for number in (1, 2, 3)
    ]
    assert after == [{1}, {1, 2}, {1, 2, 3}]


def test_mixtures_are_compared_with_their_relations(settings, data, tmp_path) -> None:
    """Equal shares in the mixture, each relation alone beside it."""
    wanted = asked(data, edits=(2, 4), relations=("P6", "P190"), mix=True)
    found = evaluate.evaluate(settings, wanted, tmp_path / "out")
    kinds = {(one["relations"], one["edits"]) for one in found.results}
    assert kinds == {(name, n) for name in ("P6", "P190", "P6 + P190") for n in (2, 4)}
    page = report.page(found)
    assert "Mixtures of relations" in page


def test_pages_need_nothing_else(settings, data, tmp_path) -> None:
    """One HTML file without links, the raw rows, and the same text for the same results."""
    found = evaluate.evaluate(
        settings, asked(data, methods=("ft-l", "retrieval"), edits=(1, 3)), tmp_path / "o"
    )
    pages = report.write(found, tmp_path / "o")
    text = pages.html.read_text()
    assert "<svg" in text
    assert not [part for part in ("<script", "<link", "src=", "@import") if part in text]
    assert text == report.page(found)
    assert found.about["model_digest"] in text
    assert found.about["data_digest"] in text
    rows = pq.read_table(pages.answers)
    assert {"method", "edits", "batches", "seed", "p_answer", "said"} <= set(rows.column_names)
    assert rows.num_rows == (1 + 3) * 3 * 3
    assert pq.read_table(pages.writings).num_rows == (1 + 2) * 3
    summary = pages.markdown.read_text()
    widths = {line.count("|") for line in summary.splitlines() if line.startswith("|")}
    assert len(widths) == 1
    assert json.loads(pages.results.read_text())["results"][0]["method"] == "none"


def test_numbers_depend_on_the_seed_alone(settings, data, tmp_path) -> None:
    """The same seed gives the same records and numbers; another seed others."""
    one = evaluate.evaluate(settings, asked(data, seed=3, shuffle=True), tmp_path / "a")
    two = evaluate.evaluate(settings, asked(data, seed=3, shuffle=True), tmp_path / "b")
    three = evaluate.evaluate(settings, asked(data, seed=4, shuffle=True), tmp_path / "c")
    assert [r["key"] for r in one.results] == [r["key"] for r in two.results]
    assert one.results[0]["metrics"] == two.results[0]["metrics"]
    assert one.results[0]["metrics"] != three.results[0]["metrics"]


def test_what_second_moments_rest_on_is_part_of_the_key(settings, data, tmp_path) -> None:
    """Another text under the corpus's name, or other templates to guard, make other numbers."""
    what, lm = asked(data), models.load_base(settings)
    corpus, own = tmp_path / "corpus.txt", tmp_path / "own.toml"

    def keys(**given: object) -> list[str]:
        with_them = settings.model_copy(update=given)
        found = evaluate._data(with_them, what, lm)
        bench = evaluate._bench(with_them, what, lm, found, tmp_path)
        return [one.key for one in evaluate._experiments(with_them, what, found, bench)]

    seen = [keys()]
    for text in ("The river was low.\n", "The river was high.\n"):
        corpus.write_text(text)
        seen.append(keys(corpus=corpus))
    edit = json.dumps([f"{number}: {{subject}} is led by" for number in range(4)])
    own.write_text(f"[P6]\nedit = {edit}\n")
    seen.append(keys(relations_file=own))
    assert len({tuple(one) for one in seen}) == len(seen)
    assert keys() == seen[0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"methods": ("romee",)}, "no method 'romee'"),
        ({"methods": ()}, "no method given"),
        ({"edits": (0,)}, "from 1 on"),
        ({"batches": 0}, "from 1 on"),
        ({"texts": -1}, "from 0 on"),
        ({"batches": 9}, "9 batches"),
        ({"mix": True, "relations": ("P6",)}, "at least twice"),
    ],
)
def test_bad_input_is_named(settings, data, tmp_path, more: dict, message: str) -> None:
    """Before the model is loaded, in one sentence."""
    with pytest.raises(EvaluationInputError, match=message):
        evaluate.evaluate(settings, asked(data, **more), tmp_path)


def test_missing_files_and_records_are_named(settings, data, tmp_path) -> None:
    """What cannot be read, and how many records there are."""
    with pytest.raises(EvaluationInputError, match="no file"):
        evaluate.evaluate(settings, asked(data, passages=tmp_path / "no.txt"), tmp_path)
    with pytest.raises(DataFormatError, match="40 usable"):
        evaluate.evaluate(settings, asked(data, edits=(41,)), tmp_path)


def test_batches_differ_by_one_at_most() -> None:
    """No record is lost or taken twice."""
    for count in range(1, 30):
        for batches in range(1, count + 1):
            parts = cut(list(range(count)), batches)
            assert [n for part in parts for n in part] == list(range(count))
            sizes = sorted(len(part) for part in parts)
            assert sizes[0] >= 1
            assert sizes[-1] - sizes[0] <= 1
            assert all(a <= b for a, b in pairwise(sizes))


def test_the_command_prints_one_object(settings, data, tmp_path, monkeypatch) -> None:
    """`--json` is one JSON object; without it, a table and where the report lies."""
    import importlib

    importlib.import_module("flows.cli.evaluate")
    passages = data.with_suffix(".txt")
    passages.write_text("The river was low that summer.\n")
    monkeypatch.setenv("FACTSYNC_MODEL", settings.model)
    monkeypatch.setenv("FACTSYNC_MOMENT_TOKENS", "1000")
    home = ["--home", str(settings.home)]
    command = [*home, "evaluate", "--data", str(data), "--method", "ft-l", "--edits", "2", "--texts", "1"]
    command += ["--passages", str(passages)]
    printed = CliRunner().invoke(app, [*command, "--json"])
    assert printed.exit_code == 0, printed.output
    found = json.loads(printed.stdout)
    assert [one["method"] for one in found["results"]] == ["none", "ft-l"]
    shown = CliRunner().invoke(app, command)
    assert "report.html" in shown.stdout.replace("\n", "")
    assert (settings.home / "evaluation" / "summary.md").exists()
