"""The command line itself: what every command offers, and completion in a shell."""

import importlib
import os
import subprocess
import sys

import pytest
from prefect.exceptions import ParameterTypeError
from typer import Typer
from typer.main import get_command

from flows.cli.main import FAMILIES, app, main, package_exit_code
from kb.errors import EndpointDownError, UnknownRelationError
from storage.errors import (
    LedgerBusyError,
    LedgerConnectionLostError,
    LedgerUrlError,
    LockHeldError,
    UnknownCheckpointError,
)

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
