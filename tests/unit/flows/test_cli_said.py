"""What the command line says to a slip of the hand, and how it fits into 80 columns. No model is needed."""

import json
import re
from contextlib import nullcontext
from datetime import timedelta
from types import SimpleNamespace

import pytest
from rich.table import Table
from typer.testing import CliRunner

from flows.cli import checkpoints, curate, demo, evaluate, ledger, look, operate, run  # noqa: F401 - they register their commands
from flows.cli.main import app
from flows.errors import (
    CheckpointInputError,
    GateError,
    NothingLiveError,
    UnknownModelNameError,
    UnknownSubjectError,
)
from flows.sync import Night
from flows.workspace import Workspace, opened_model
from kb.errors import StoreError
from kb.store import LocalStore
from storage.records.planned import ChangeRow
from tests.unit.storage import steps

REASON = "perplexity 0.231 > 0.08: many edits at once; retention 0.912 < 0.97: older facts were lost by it"


def call(home, *arguments, columns=200):
    """Run a command in this process, on a console of so many columns."""
    variables = {"COLUMNS": str(columns), "TERMINAL_WIDTH": "200"}
    return CliRunner(env=variables).invoke(app, ["--home", str(home.home), *map(str, arguments)])


def live(home):
    """The live checkpoint's digest; None for the base."""
    with opened_model(home) as (ws, model):
        head = ws.ledger.head(model)
    return head and head.digest


@pytest.fixture
def rejected(waiting):
    """The same home after a fourth night, which was rejected for many reasons; its digest."""
    with opened_model(waiting) as (ws, _), ws.writer() as lease:
        last = ws.ledger.checkpoints(lease.model)[-1]
        ws.ledger.reject(lease, last.id, reason=REASON, requeue=True)
    return last.digest


@pytest.mark.parametrize("name", ["", " "])
@pytest.mark.parametrize(
    "words",
    [
        ("rollback",),
        ("export",),
        ("checkpoint", "materialize"),
        ("diff", "live"),
        ("ask",),
        ("explain",),
        ("promote",),
        ("reject",),
        ("reject", "--drop-relation"),
        ("reject", "--drop-subject", "Q2", "--drop-subject"),
        ("backfill", "--relation"),
        ("backfill", "--subject"),
        ("evaluate", "--data", "ledger", "--model"),
        ("evaluate", "--data", "ledger", "--relation"),
        ("evaluate", "--data"),
    ],
)
def test_an_unset_variable_chooses_nothing(waiting, words, name, monkeypatch):
    monkeypatch.setattr("flows.local_prefect.configure", lambda _: pytest.fail("it went on"))
    before = live(waiting)
    done = call(waiting, *words, name)
    assert done.exit_code == 2
    assert "it is empty; " in done.stderr
    assert live(waiting) == before


@pytest.mark.parametrize(
    "words", [("ask", "P"), ("explain", "P"), ("export",), ("checkpoint", "materialize"), ("status",)]
)
def test_a_look_into_a_mistyped_home_makes_none(home, words):
    missing = home.model_copy(update={"home": home.home / "mistyped"})
    assert isinstance(call(missing, *words).exception, UnknownModelNameError)
    assert not missing.home.exists()


def test_the_form_alone_goes_back_by_one_with_an_empty_field(nights):
    from flows.rollback import rollback

    with opened_model(nights) as (ws, model):
        _, second, _ = ws.ledger.lineage(model)
    rollback.fn(checkpoint="")
    assert live(nights) == second.digest


def test_a_rejected_checkpoint_differs_from_the_live_one(nights, rejected):
    found = json.loads(call(nights, "diff", "live", rejected, "--json").stdout)
    assert [(one["subject"], one["before"], one["after"]) for one in found["facts"]] == [
        ("Q2", None, "label Q20")
    ]
    assert call(nights, "rollback", "base").exit_code == 0
    found = json.loads(call(nights, "diff", "base", found["after"]["parent_digest"], "--json").stdout)
    assert [one["subject"] for one in found["facts"]] == ["Q1"], "what was rolled back too"


def test_what_was_never_live_is_told_so_before_its_files_are_looked_for(nights, rejected):
    done = call(nights, "rollback", rejected)
    assert isinstance(done.exception, CheckpointInputError)
    assert "it was rejected and was never live" in str(done.exception)
    assert done.exception.exit_code == 2


def test_a_candidate_is_promoted_not_rolled_back_to(nights):
    world = steps.World()
    world.set("Q2", "P6", "Q20")
    with opened_model(nights) as (ws, model):
        steps.sync(ws.ledger, ws.files, world, 4, verdict="leave")
        candidate = ws.ledger.checkpoints(model)[-1].digest
    assert "`factsync promote`" in str(call(nights, "rollback", candidate).exception)


def test_an_export_of_the_base_names_the_way_to_an_earlier_checkpoint(nights, tmp_path):
    assert call(nights, "rollback", "base").exit_code == 0
    for words in (("export", "--out", tmp_path / "m"), ("checkpoint", "materialize", "live", tmp_path / "m")):
        error = call(nights, *words).exception
        assert isinstance(error, NothingLiveError)
        assert "The base model is live" in str(error)
        assert "`factsync export ID`" in str(error)


def test_the_base_itself_is_no_checkpoint_to_write(nights, tmp_path):
    for words in (("export", "base", "--out", tmp_path / "m"), ("checkpoint", "materialize", "base")):
        error = call(nights, *words).exception
        assert isinstance(error, CheckpointInputError)
        assert "load local itself" in str(error)


@pytest.mark.parametrize("form", [(), ("--format", "hf"), ("--format", "gguf-ready")])
def test_only_an_adapter_has_a_rank(nights, tmp_path, form):
    done = call(nights, "export", *form, "--rank", "3", "--out", tmp_path / "m")
    assert done.exit_code == 2
    assert "Invalid value for '--rank'" in done.stderr
    assert "--format peft" in done.stderr
    assert not (tmp_path / "m").exists()


def test_a_folder_in_the_place_of_live_is_told_the_whole_command(nights):
    error = call(nights, "checkpoint", "materialize", "--as-of", "2026-01-03", "./m1").exception
    assert isinstance(error, CheckpointInputError)
    assert "`factsync checkpoint materialize live ./m1 --as-of 2026-01-03T00:00:00`" in str(error)


@pytest.mark.parametrize("name", ["night3", ""])
def test_a_load_of_no_file_names_the_samples(home, name):
    error = call(home, "kb", "load", name).exception
    assert isinstance(error, StoreError)
    assert "night1, night2" in str(error)


def test_a_dump_is_loaded_from_several_files_with_iris_that_are_none(home, tmp_path):
    parts = [tmp_path / "one.nt", tmp_path / "two.nt"]
    for number, part in enumerate(parts):
        part.write_text(f"<http://a.test/{number}> <http://a.test/p> <http://a.test/{{x}}> .\n")
    assert "`factsync kb load --lenient`" in str(call(home, "kb", "load", *parts).exception)
    done = call(home, "kb", "load", "--lenient", *parts)
    assert "holds one.nt, two.nt." in done.output


def test_an_empty_store_names_the_command_that_fills_it(home):
    from flows.dry_run import dry_run

    with pytest.raises(StoreError, match="`factsync kb load night1`"):
        dry_run(home)


def test_a_history_of_nobody_says_what_to_write(nights):
    error = call(nights, "history", "foo").exception
    assert isinstance(error, UnknownSubjectError)
    assert "write an id such as Q183 or a label" in str(error)
    done = call(nights, "history", "")
    assert done.exit_code == 2
    assert "write an id such as Q183 or a label" in done.stderr


def words_of(text):
    """The words of a table, without its lines."""
    return set(re.sub(r"[─-╿]", " ", text).split())


def test_checkpoints_are_listed_in_80_columns(nights, rejected):
    said = call(nights, "checkpoint", "list", columns=80).stdout
    assert max(map(len, said.splitlines())) <= 80
    with opened_model(nights) as (ws, model):
        rows = ws.ledger.checkpoints(model)
    for row in rows:
        assert {row.digest[:12], row.state, *f"{row.decided_at:%Y-%m-%d %H:%M}".split()} <= words_of(said)
    assert set(REASON.split()) <= words_of(said), "no word of a reason is broken"
    assert "A wider terminal, or --json, shows stands on, live facts, size too." in " ".join(said.split())
    assert "stands on" in call(nights, "checkpoint", "list", columns=160).stdout


def test_a_history_fits_into_80_columns(nights):
    said = call(nights, "history", "Q1", columns=80).stdout
    assert max(map(len, said.splitlines())) <= 80
    with opened_model(nights) as (ws, model):
        made = {row.digest[:12] for row in ws.ledger.lineage(model)}
    assert made <= words_of(said)
    assert {"operation", "P(new)"} <= words_of(call(nights, "history", "Q1", columns=160).stdout)


def night_of(*, promoted=True, failures="", edited=True):
    """A night that edited something, unless it was empty."""
    plan = SimpleNamespace(counts={}, burst=SimpleNamespace(held=""), edits=[])
    candidate = SimpleNamespace(digest="d" * 64, failures=failures, gates=(), marks=None) if edited else None
    return Night(1, steps.START, plan, candidate, promoted=promoted and edited)


@pytest.fixture
def played(home, monkeypatch):
    """Have Prefect, the store and the nights of a replay or a demo stand in for the real ones."""

    def set_up(*nights):
        left = iter(nights)
        asked = []
        monkeypatch.setattr("flows.local_prefect.for_runs", asked.append)
        monkeypatch.setattr("flows.local_prefect.configure", asked.append)
        monkeypatch.setattr("flows.local_prefect.server", lambda _: nullcontext("http://127.0.0.1/api"))
        monkeypatch.setattr("kb.store.LocalStore.load", lambda *_: None)
        monkeypatch.setattr("kb.replay.read_pulls", lambda _: ())
        rounds = [
            SimpleNamespace(number=one, at=steps.START, turtle=str) for one in range(1, len(nights) + 1)
        ]
        monkeypatch.setattr("kb.replay.rounds", lambda _: rounds)
        monkeypatch.setattr("flows.sync.sync", lambda **_: next(left))
        monkeypatch.setattr("flows.cli.demo._night", lambda *_: next(left))
        monkeypatch.setattr("flows.cli.show.metrics_table", lambda *_, **__: "")
        monkeypatch.setattr("flows.cli.show.candidate_table", lambda *_, **__: "")
        monkeypatch.setattr("flows.cli.show.changes_table", lambda *_, **__: Table())
        return asked

    return set_up


REJECTED = "exact 0.000 (bound 0.800): FAILED"


def test_a_replay_says_which_nights_stayed_out_of_the_model(nights, played):
    asked = played(night_of(), night_of(promoted=False, failures=REJECTED), night_of(edited=False))
    done = call(nights, "replay", "pulls.jsonl")
    assert len(asked) == 1
    assert isinstance(done.exception, GateError)
    assert done.exception.exit_code == 5
    assert "out of the model: 2. " in str(done.exception)
    assert f"rejected ({REJECTED})" in done.stdout
    played(night_of(), night_of(edited=False))
    done = call(nights, "replay", "pulls.jsonl", "--json")
    assert done.exit_code == 0
    first, second, facts = map(json.loads, done.stdout.splitlines())
    assert (first["promoted"], second["summary"]) == (True, "nothing changed. Nothing to edit.")
    assert [one["subject"] for one in facts["facts"]] == ["Q1"]


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("hold: it must stand 48 h", "is approved; the next sync acts on it."),
        (
            "burst: 30 of 40 facts of P6 would change",
            "is approved, and still held back until this is over: burst",
        ),
    ],
)
def test_who_approves_is_told_what_no_approval_passes(nights, reason, said):
    waits = ChangeRow(kind="quarantine", subject="Q7", property="P6", slot="", reason=reason, new_value="Q70")
    with opened_model(nights) as (ws, model), ws.writer() as lease:
        run = ws.ledger.begin_run(lease, "sync", reference_time=steps.night(9))
        ws.ledger.record_plan(
            lease, run, [waits], [], reviewed={("Q7", "P6"): 0}, flip_memory=steps.FLIP_MEMORY
        )
        ws.ledger.finish_run(lease, run, "nothing")
        (row,) = (one for one in ws.ledger.pending(model) if one.subject == "Q7")
    done = call(nights, "quarantine", "release", row.id)
    assert f"{row.id} {said}" in done.stdout


def test_a_demo_leaves_out_a_night_that_its_home_is_past(home, monkeypatch):
    """A source that goes back is a replica that lags: the second demo of a home would wait for it in vain."""
    monkeypatch.setattr("flows.sync.sync", lambda: "ran")
    assert [demo._night(home, number) for number in (1, 2)] == ["ran", "ran"]
    read_to = LocalStore(home.store_dir).load_night(2).reference_time - timedelta(minutes=3)
    with Workspace.open(home) as ws:
        ws.ledger.ensure_model(ws.model_name, "local", steps.BASE)
        with ws.writer() as lease:
            run = ws.ledger.begin_run(lease, "sync", reference_time=read_to)
            ws.ledger.ingest(
                lease,
                run,
                source=ws.source,
                cursor_to=read_to,
                entities=[],
                statements=[],
                pulled_groups=[],
            )
            ws.ledger.finish_run(lease, run, "nothing")
    assert [demo._night(home, number) for number in (1, 2)] == [None, "ran"]


def test_a_demo_with_a_rejected_night_is_no_success(home, played, monkeypatch):
    monkeypatch.setattr("flows.batch.short_of", lambda _: "")
    played(night_of(), night_of(promoted=False, failures=REJECTED))
    done = call(home, "demo")
    assert isinstance(done.exception, GateError)
    assert "Where things are" in done.stdout
    played(night_of(), night_of(edited=False))
    assert call(home, "demo").exit_code == 0
