"""The command line itself: what every command offers, and completion in a shell."""

import importlib
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from prefect.exceptions import ParameterTypeError
from typer import Typer
from typer.main import get_command

from editor.errors import CorruptStateError, EditorError, NonFiniteError, OutOfMemoryError
from flows.cli import curate, evaluate
from flows.cli.main import FAMILIES, app, main, package_exit_code
from flows.errors import UnknownSubjectError
from flows.settings import Settings
from kb.errors import BannedError, EndpointDownError, UnknownRelationError
from kb.model import Label
from kb.serving import StoreStartError
from storage.errors import (
    LedgerBusyError,
    LedgerConnectionLostError,
    LedgerUrlError,
    LockHeldError,
    QueryRefusedError,
    UnknownCheckpointError,
)
from tests.unit.storage import steps

READ_BY_PROGRAMS = (
    "plan",
    "sync",
    "status",
    "ask",
    "explain",
    "diff",
    "history",
    "rollback",
    "doctor",
    "sql",
)


def factsync(home, *arguments, **variables):
    """Run the command in a process of its own, in a user's empty home folder."""
    return subprocess.run(
        [sys.executable, "-c", "from flows.cli import main; main()", *arguments],
        env={
            **os.environ,
            "HOME": str(home),
            "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
            **variables,
        },
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", READ_BY_PROGRAMS)
def test_a_program_can_read_it(name):
    for family in FAMILIES:
        importlib.import_module(f"flows.cli.{family}")
    command = get_command(app).commands[name]
    assert any("--json" in option.opts for option in command.params)


def test_completion_is_installed_and_completes(tmp_path):
    done = factsync(tmp_path, "--install-completion", "bash")
    assert done.returncode == 0, done.stderr
    (script,) = (tmp_path / ".bash_completions").iterdir()
    assert str(script) in (tmp_path / ".bashrc").read_text()
    completing = {"COMP_WORDS": "factsync sync --app", "COMP_CWORD": "2"}
    name = next(word for word in script.read_text().split() if word.endswith("=complete_bash")).split("=")[0]
    offered = factsync(tmp_path, **completing, **{name: "complete_bash"})
    assert offered.stdout.split() == ["--approve-burst", "--approval"]


@pytest.mark.parametrize("arguments", [("demo",), ("replay", "pulls.jsonl")])
def test_what_plays_the_local_store_keeps_off_a_home_of_another_source(tmp_path, arguments):
    home = tmp_path / "live"
    source = {"FACTSYNC_ENDPOINT": "https://query.wikidata.org/sparql"}
    done = factsync(tmp_path, "--home", str(home), *arguments, **source)
    assert done.returncode == 2
    assert "query.wikidata.org" in done.stderr
    assert not home.exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LockHeldError("m", "someone", None), 4),
        (LedgerConnectionLostError("gone"), 3),
        (LedgerUrlError("odd"), 2),
        (UnknownCheckpointError("feedbeef"), 2),
        (LedgerBusyError("locked"), 1),
        (EndpointDownError("down", url="https://example.org", status=503), 3),
        (UnknownRelationError("none", property_id="P0"), 2),
        (BannedError("banned", url="https://example.org", until=steps.START), 3),
        (StoreStartError("no luck"), 3),
        (OutOfMemoryError("full"), 1),
        (NonFiniteError("nan"), 1),
        (CorruptStateError("torn"), 1),
        (EditorError("odd"), 2),
        (QueryRefusedError("it writes"), 2),
        (ParameterTypeError("odd"), 2),
        (PermissionError(), 1),
        (RuntimeError(), None),
    ],
)
def test_each_error_has_its_exit_code(error, code):
    assert package_exit_code(error) == code


def missing():
    """What a picture in a folder that is not there comes to."""
    open("nosuch/drift.png", "rb")  # noqa: SIM115, PTH123 - it cannot be opened


def refused():
    """What Prefect makes of a digest that is none."""
    raise ParameterTypeError(
        "Flow run received invalid parameters:\n - checkpoint: too odd\n - block.0: too low"
    )


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (missing, 1, "Error: nosuch/drift.png: No such file or directory. Check the path"),
        (refused, 2, "Error: checkpoint: too odd; block.0: too low. `--help` says"),
    ],
)
def test_what_others_raise_is_one_sentence(monkeypatch, capsys, command, code, said):
    monkeypatch.setattr(Typer, "__call__", lambda _: command())
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == code
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize(
    "arguments", [("sync", "--limit", "200000"), ("calibrate", "--block", "-1"), ("sync", "--limit", "0")]
)
def test_numbers_out_of_range_are_refused_at_once(monkeypatch, capsys, arguments):
    monkeypatch.setattr(sys, "argv", ["factsync", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert "Invalid value" in capsys.readouterr().err


OWN = """
[P9001]
name = "anthem"
cardinality = "functional"
edit = ["The anthem of {subject} is", "What sings {subject}? It is", "In {subject} is", "Now {subject} hears"]
heldback = ["As anthem {subject} has", "Bands of {subject} play", "Before a match {subject} hears"]
"""


def test_a_check_notes_what_a_relation_of_ones_own_lacks(tmp_path):
    own = tmp_path / "own.toml"
    own.write_text(OWN)
    home = {"FACTSYNC_HOME": str(tmp_path), "COLUMNS": "200"}
    done = factsync(tmp_path, "relations", "check", str(own), **home)
    assert done.returncode == 0, done.stderr
    assert "note   P9001 (anthem) has no kind and no neighbours" in done.stdout
    assert "The relations hold together." in done.stdout
    left_out = factsync(tmp_path, "relations", "check", str(own), FACTSYNC_RELATIONS="P6", **home)
    assert "note   P9001 (anthem) is not synced: FACTSYNC_RELATIONS leaves it out." in left_out.stdout
    own.write_text(OWN + 'kind = "country"\n')
    assert "note" not in factsync(tmp_path, "relations", "check", str(own), **home).stdout
    own.write_text(OWN + 'kind = "planet"\nneighbours = [" "]\n')
    wrong = factsync(tmp_path, "relations", "check", FACTSYNC_RELATIONS_FILE=str(own), **home)
    assert wrong.returncode == 1
    assert wrong.stdout.count("wrong  P9001") == 2


def test_another_wikibase_lists_its_own_relations(tmp_path):
    home = {"FACTSYNC_HOME": str(tmp_path), "FACTSYNC_WIKIBASE": "https://wiki.example.net"}
    for command in ("check", "list"):
        done = factsync(tmp_path, "relations", command, **home)
        assert done.returncode == 2
        assert "FACTSYNC_RELATIONS_FILE" in done.stderr
    (tmp_path / "own.toml").write_text(OWN)
    home["FACTSYNC_RELATIONS_FILE"] = str(tmp_path / "own.toml")
    done = factsync(tmp_path, "relations", "list", "--json", **home)
    assert [row["property"] for row in json.loads(done.stdout)] == ["P9001"]


@pytest.fixture
def asked(home, monkeypatch):
    """Have a source stand in that knows a label of Q183, and note what it is asked."""
    asked = []

    def statements(*given):
        asked.append(given)
        return []

    def labels(ids):
        return {one: Label(one, "Germany", "en") for one in ids if one == "Q183"}

    endpoint = SimpleNamespace(languages=("de", "mul"))
    feed = SimpleNamespace(statements=statements, labels=labels, lag=lambda: steps.START, endpoint=endpoint)
    monkeypatch.setattr("flows.source.opened_feed", lambda *_: nullcontext(feed))
    return asked


def test_a_preview_of_any_relation_that_is_described_opens_no_ledger(home, asked, capsys, monkeypatch):
    monkeypatch.setenv("FACTSYNC_RELATIONS", "P35")
    settings = Settings.read()
    curate.preview(SimpleNamespace(obj=settings), " p6", "q183")
    assert asked == [(["Q183"], ["P6"])]
    assert "Germany" in capsys.readouterr().out
    assert not (settings.home / "ledger.db").exists()


def test_a_subject_without_a_label_is_told_the_chain_that_was_asked(home, asked):
    with pytest.raises(UnknownSubjectError, match="no label in the chain de, mul;"):
        curate.preview(SimpleNamespace(obj=home), "P6", "Q404")


@pytest.mark.parametrize("given", [None, "kept"])
def test_another_model_is_evaluated_on_this_homes_facts(home, monkeypatch, given):
    asked = []
    monkeypatch.setattr("flows.evaluate.evaluate", lambda settings, *_: asked.append(settings))
    monkeypatch.setattr("flows.report.write", lambda *_: None)
    monkeypatch.setattr("flows.report.as_json", lambda _: {})
    home.model_name = given
    ours = home.resolved_model_name
    context = SimpleNamespace(obj=home)
    evaluate.evaluate(context, "ledger", model="org/other-model", as_json=True)
    (settings,) = asked
    assert (settings.model, settings.resolved_model_name) == ("org/other-model", ours)


def test_settings_are_shown_as_they_are_written(tmp_path):
    given = {
        "FACTSYNC_HOME": str(tmp_path),
        "FACTSYNC_RELATIONS": "P6,P35",
        "FACTSYNC_WIKIBASE_PROPERTIES": '{"start": "P5"}',
        "FACTSYNC_LEDGER_URL": "postgresql+psycopg://ann:secret@host/db",
    }
    shown = factsync(tmp_path, "settings", **given).stdout
    assert "secret" not in shown
    (tmp_path / "factsync.env").write_text(shown.replace("***", "secret"))
    again = factsync(tmp_path, "settings", FACTSYNC_HOME=str(tmp_path))
    assert again.stdout == shown, again.stderr
    for line in ("FACTSYNC_RELATIONS=P6,P35", 'FACTSYNC_WIKIBASE_PROPERTIES={"start": "P5"}'):
        assert line in shown
