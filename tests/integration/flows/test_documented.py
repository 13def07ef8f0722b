"""The documentation's commands run, each one of each page, in a home as a reader has it."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.settings import get_current_settings

from editor import calibrate, mend
from editor.presets import MemitSettings
from flows.cli.main import main
from flows.settings import Settings
from flows.sync import sync
from flows.workspace import opened_model
from kb.store import LocalStore
from tests import counterfact
from tests.integration.flows.serving import prepared

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

ROOT = Path(__file__).resolve().parents[3]
BIN = Path(sys.executable).parent

RUN_ELSEWHERE = {
    "make demo": "CONTRIBUTING: by hand, before a release; its output is docs/demo.md",
    "make test": ".ci/run",
    "factsync up": "test_prefect_up.py",
    "factsync ui": "test_prefect_up.py",
    "datasette serve": "tests/integration/storage/test_documented.py",
    "prefect worker start": "`factsync up` starts it: test_prefect_up.py",
}
"""What serves until it is stopped, and what takes too long: the test that runs it."""

SMALL = {
    "3ed5090f": "{first}",
    "history Q183": "history {subject}",
    "--drop-subject Q183": "--drop-subject {carried}",
    "counterfact.json": "{records}",
    "EleutherAI/gpt-j-6b": "{model}",
    "Qwen/Qwen3-0.6B": "{model}",
    "FACTSYNC_DEVICE=cuda": "FACTSYNC_DEVICE=cpu",
    "--edits 500": "--edits 6",
    "--edits 100": "--edits 4",
    "--edits 10": "--edits 2",
    "--edits 50": "--edits 2",
    "--batches 10": "--batches 3",
    "~/": "{folder}/",
    "https://prefect.example.org/api": "{api}",
}
"""What a reader puts his own in for, and what a test makes smaller."""


def commands():
    """Every line of a shell block that is a command: page and line."""
    for page in sorted((ROOT / "docs").glob("*.md")):
        for language, block in re.findall(
            r"^```(\w*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE
        ):
            for line in block.splitlines() if language in {"bash", ""} else ():
                command = line.split("  #")[0].split(" # ")[0].strip().removeprefix(".venv/bin/")
                if re.match(r"([A-Z_]+=\S+ )*(make|factsync|prefect|datasette) ", command):
                    yield pytest.param(command, id=f"{page.stem}: {command[:60]}")


def _is(one, command):
    """Whether a line is such a command, whatever variables are set before it, in whatever home."""
    bare = re.sub(r"^([A-Z_]+=\S+ )+", "", command)
    return re.sub(r"^factsync --home \S+ ", "factsync ", bare).startswith(one)


def run_here():
    """The commands that no other test runs."""
    return [one for one in commands() if not any(_is(other, one.values[0]) for other in RUN_ELSEWHERE)]


@pytest.fixture(scope="module")
def homes(prefect_server, tmp_path_factory, tiny_model_folder):
    """Two homes after a first night, with news: edits are owed; and a candidate waits in the second."""
    folder = tmp_path_factory.mktemp("documented")
    values = prepared(folder / "synced", tiny_model_folder)
    values["FACTSYNC_RETENTION_SAMPLE"] = "2"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        sync(limit=4)
        sync(limit=4)
        LocalStore(folder / "synced" / "store").load_night(2)
        shutil.copytree(folder / "synced", folder / "waiting")
        patch.setenv("FACTSYNC_HOME", str(folder / "waiting"))
        sync(limit=4, approval=True)
    return folder, values


@pytest.fixture
def records(tmp_path):
    """Records in CounterFact's layout, of the relations that the page names."""
    path = tmp_path / "records.json"
    made = counterfact.records(24, (("P413", "The position of {} is"), ("P27", "{} is a citizen of")))
    path.write_text(json.dumps(made))
    return path


@pytest.mark.parametrize("command", run_here())
def test_a_documented_command_runs(command, homes, records, tmp_path, monkeypatch, capsys):  # noqa: PLR0917
    folder, values = homes
    waits = command.startswith(("factsync promote", "factsync reject"))
    shutil.copytree(folder / ("waiting" if waits else "synced"), tmp_path / "home")
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FACTSYNC_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mend.Mend, "steps", 2)
    few = MemitSettings(layers=(1, 2), moment_weight=1.0, steps=3, refine_steps=0, precision="float32")
    monkeypatch.setattr(calibrate, "preset_for", lambda _lm: few)
    known = {
        "first": _first(tmp_path / "home"),
        "subject": _edited(),
        "carried": _carried(),
        "records": str(records),
        "model": values["FACTSYNC_MODEL"],
        "folder": str(tmp_path),
        "api": get_current_settings().api.url,
    }
    for given, here in SMALL.items():
        command = re.sub(rf"{re.escape(given)}(?!\d)", here, command)
    words = shlex.split(os.path.expandvars(command.format(**known)))
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        monkeypatch.setenv(*words.pop(0).split("=", 1))
    if words[0] == "prefect":
        done = subprocess.run(
            [BIN / "prefect", *words[1:]],
            cwd=ROOT,
            env={**os.environ, "PREFECT_API_URL": known["api"]},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return
    if words[1] == "--home" and "calibrate" in words:  # another model's: the sample lies there too
        LocalStore(Path(words[2]) / "store").load_night(1)
    elif words[1] == "--home":
        shutil.copytree(tmp_path / "home", words[2])
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as left:
        main()
    said = capsys.readouterr()
    assert not left.value.code, said.out + said.err


def test_the_list_says_when_and_why_a_checkpoint_was_rolled_back(homes, tmp_path, monkeypatch, capsys):
    folder, values = homes
    shutil.copytree(folder / "synced", tmp_path / "home")
    for name, value in {**values, "FACTSYNC_HOME": str(tmp_path / "home")}.items():
        monkeypatch.setenv(name, value)
    for words in (["rollback", _first(tmp_path / "home"), "--reason", "a bad night"], ["checkpoint", "list"]):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["factsync", *words, "--json"])
        with pytest.raises(SystemExit):
            main()
    first, second = json.loads(capsys.readouterr().out)
    assert [(row["state"], row["reason"]) for row in (first, second)] == [
        ("promoted", "every gate passed"),
        ("rolled_back", "a bad night"),
    ]
    with opened_model(Settings.read()) as (ws, model):
        assert ws.ledger.checkpoint(model, second["id"]).reason == "every gate passed"


def _first(home):
    """The checkpoint of the first night."""
    folders = [path for path in (home / "checkpoints").iterdir() if path.is_dir()]
    return min(folders, key=lambda path: path.stat().st_mtime).name[:8]


def _edited():
    """An item that a night has edited."""
    with opened_model(Settings.read()) as (ws, model):
        return ws.ledger.live_facts(model)[0].subject


def _carried():
    """An item that the candidate carries, where one waits."""
    with opened_model(Settings.read()) as (ws, model):
        waiting = ws.ledger.status(model).open_checkpoint
        return ws.ledger.claimed(waiting.id)[0].subject if waiting else ""


def test_nothing_is_left_out():
    found = [param.values[0] for param in commands()]
    for one in RUN_ELSEWHERE:
        assert any(_is(one, command) for command in found), one
    assert len(found) > 30
