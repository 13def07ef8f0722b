"""Bad input: one clear sentence, the documented exit code, and nothing written."""

import json
import socket
import sqlite3
import sys

import pytest
from transformers import BertConfig, BertModel

from flows.cli.main import main
from kb.store import LocalStore

TEMPLATES = [
    "{subject} is led by",
    "Who leads {subject}? It is",
    "They said that {subject} is led by",
    "In {subject} the leader is",
]


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process: exit code, output, error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["factsync", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        return left.value.code or 0, said.out, " ".join(said.err.split())

    return call


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_public_endpoint_needs_a_contact(settings, run, monkeypatch):
    monkeypatch.setenv("FACTSYNC_ENDPOINT", "https://query.wikidata.org/sparql")
    code, _, error = run("plan")
    assert code == 2
    assert "contact" in error


def test_an_endpoint_that_is_down(settings, run, monkeypatch):
    monkeypatch.setenv("FACTSYNC_ENDPOINT_ATTEMPTS", "1")
    monkeypatch.setenv("FACTSYNC_ENDPOINT", f"http://127.0.0.1:{closed_port()}/sparql")
    code, _, error = run("plan")
    assert code == 3
    assert "Error:" in error
    assert not (settings.home / "ledger.db").exists()


def test_an_empty_store(environment, run):
    code, _, error = run("plan")
    assert code == 2
    assert "Error:" in error


def test_an_unknown_relation(settings, run, monkeypatch):
    monkeypatch.setenv("FACTSYNC_RELATIONS", "P6,P99999")
    code, _, error = run("plan")
    assert code == 2
    assert "P99999" in error


def test_a_template_without_the_subject(settings, run, monkeypatch, tmp_path):
    mine = tmp_path / "relations.toml"
    own = {"name": "mine", "cardinality": "one_open", "edit": ["The head of government is", *TEMPLATES]}
    own["heldback"] = TEMPLATES[1:]
    text = "\n".join(f"{key} = {json.dumps(value)}" for key, value in own.items())
    mine.write_text(f"[P6]\n{text}\n")
    monkeypatch.setenv("FACTSYNC_RELATIONS_FILE", str(mine))
    code, _, error = run("plan")
    assert code == 2
    assert "{subject}" in error
    assert run("relations", "check", str(mine))[0] == 1


@pytest.mark.usefixtures("prefect_server")
def test_a_model_folder_that_is_not_there(settings, run, monkeypatch, tmp_path):
    monkeypatch.setenv("FACTSYNC_MODEL", str(tmp_path / "nowhere"))
    code, _, error = run("sync")
    assert code == 2
    assert "nowhere" in error


@pytest.mark.usefixtures("prefect_server")
def test_a_model_that_predicts_no_next_token(settings, run, monkeypatch, tmp_path):
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    BertModel(BertConfig(**small, intermediate_size=8, vocab_size=9)).save_pretrained(tmp_path / "bert")
    monkeypatch.setenv("FACTSYNC_MODEL", str(tmp_path / "bert"))
    code, _, error = run("sync")
    assert code == 2
    assert "not a causal language model" in error


@pytest.mark.usefixtures("prefect_server")
def test_a_ledger_that_is_newer_than_the_code(settings, run):
    assert run("sync", "--limit", "1")[0] == 0
    with sqlite3.connect(settings.home / "ledger.db") as ledger:
        ledger.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    code, _, error = run("status")
    assert code == 1
    assert "update factsync" in error


@pytest.mark.usefixtures("prefect_server")
def test_a_night_over_the_burst_guard(one_night, run, monkeypatch):
    LocalStore(one_night[0].store_dir).load_night(2)
    monkeypatch.setenv("FACTSYNC_BURST_TOTAL", "1")
    code, out, error = run("sync")
    assert code == 5
    assert "Held by the burst" in out
    assert "--approve-burst" in error


@pytest.mark.usefixtures("prefect_server")
def test_looking_commands(settings, run, tmp_path):
    assert run("status")[0] == 2
    code, out, _ = run("sync", "--limit", "3", "--json")
    assert code == 0
    assert json.loads(out)["promoted"]
    status = json.loads(run("status", "--json")[1])
    assert status["live_facts"] == 3
    rows = json.loads(run("sql", "SELECT subject, target FROM live_facts ORDER BY subject", "--json")[1])
    assert len(rows) == 3
    history = json.loads(run("history", rows[0]["subject"], "--json")[1])
    assert history[0]["new_label"] == rows[0]["target"]
    assert run("history", "Q999999999")[0] == 2
    assert run("sql", "DELETE FROM edit")[0] == 2
    assert run("doctor")[0] == 0
    asked = json.loads(run("ask", "The head of government of Germany is", "--json")[1])
    assert set(asked) == {"prompt", "base", "live"}
    assert json.loads(run("checkpoint", "list", "--json")[1])[0]["state"] == "promoted"
    assert run("checkpoint", "materialize", "live", str(tmp_path / "out"))[0] == 0
    assert run("checkpoint", "materialize", "live", str(tmp_path / "out"))[0] == 2
    assert run("checkpoint", "materialize", "feedbeef", str(tmp_path / "other"))[0] == 2
    assert run("promote", "live")[0] == 2


@pytest.mark.usefixtures("prefect_server")
def test_what_is_held_back_can_be_let_go(settings, run):
    assert run("sync", "--limit", "1000")[0] == 0
    LocalStore(settings.store_dir).load_night(2)
    assert run("sync")[0] == 0
    held = json.loads(run("quarantine", "list", "--json")[1])
    waiting = next(row for row in held if row["reason"].startswith("hold"))
    assert run("quarantine", "release", waiting["id"])[0] == 0
    assert run("quarantine", "release", "99999")[0] == 2
    assert run("sync")[0] == 0
    assert waiting["id"] not in {row["id"] for row in json.loads(run("quarantine", "list", "--json")[1])}


def test_every_command_has_an_example():
    from typer.main import get_command

    from flows.cli import app

    def leaves(command, path=()):
        for name, child in getattr(command, "commands", {}).items():
            yield from leaves(child, (*path, name))
        if not getattr(command, "commands", {}):
            yield path, command

    for path, command in leaves(get_command(app)):
        assert (command.epilog or "").startswith("Example: factsync"), path
