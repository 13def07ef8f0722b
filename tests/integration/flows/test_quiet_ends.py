"""How a command ends that a person ended, or that a named error ended: in a sentence, and soon."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL

from flows.cli.main import _worth_a_look
from kb.errors import KBError
from storage.records.runs import Recovery
from tests.integration.flows.serving import ROOT, prepared

BEGUN = "finding target states"


@contextmanager
def command(values, *arguments):
    """Run the command line in a process group of its own, as a terminal does."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "FACTSYNC"))},
        **values,
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", "from flows.cli import main; main()", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # In a background job Ctrl-C is ignored from birth.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=60)


def until_edits(process):
    """Read what a sync says until it edits."""
    said = []
    for line in process.stderr:
        said.append(line)
        if BEGUN in line:
            return
    raise AssertionError("".join(said))


def ended(values, *arguments):
    """Run a command to its end: exit code, output, error."""
    with command(values, *arguments) as process:
        out, error = process.communicate(timeout=240)
        return process.returncode, out, error


def servers_of(process):
    """Process ids of the servers that a command has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    found = [int(pid) for pid in children if b"uvicorn" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert found, "no server of its own"
    return found


def gone(pids, within_s=20):
    """Whether these processes end."""
    deadline = time.monotonic() + within_s
    while any(Path(f"/proc/{pid}").exists() and _running(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _running(pid):
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ctrl_c_in_the_midst_of_a_sync(tmp_path, tiny_model_folder):
    """The server that the command started is in its process group no more, and answers to the end."""
    values = prepared(tmp_path / "home", tiny_model_folder, steps=40)
    with command(values, "sync", "--limit", "20") as process:
        until_edits(process)
        servers = servers_of(process)
        at = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=60)
        assert time.monotonic() - at < 20
        assert process.returncode == 130, error
    assert "Nothing is lost" in error
    assert len(error.splitlines()) <= 5, error
    assert gone(servers)
    # The next one settles it, and says so in words.
    code, _, error = ended(values, "sync", "--limit", "2")
    assert code == 0, error
    assert "1 checkpoint half built" in " ".join(error.split())
    assert "Recovery(" not in error


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_ends_with_the_command_that_started_it(tmp_path, tiny_model_folder, number):
    values = prepared(tmp_path / "home", tiny_model_folder, steps=40)
    with command(values, "sync", "--limit", "20") as process:
        until_edits(process)
        servers = servers_of(process)
        process.send_signal(number)
        assert gone([process.pid])
        assert gone(servers)


def _unknown_setting(home, values):
    (home / "memit.json").write_text(json.dumps({"moment_wieght": 1.0}))
    return "moment_wieght"


def _no_model(home, values):
    values["FACTSYNC_MODEL"] = str(home / "nowhere")
    return "nowhere"


def _unknown_relation(home, values):
    values["FACTSYNC_RELATIONS"] = "P6,P99999"
    return "P99999"


@pytest.mark.parametrize("wrong", [_unknown_setting, _no_model, _unknown_relation])
def test_a_named_error_is_one_sentence(tmp_path, tiny_model_folder, prefect_server, wrong):
    values = prepared(tmp_path / "home", tiny_model_folder)
    values["PREFECT_API_URL"] = PREFECT_API_URL.value()
    named = wrong(tmp_path / "home", values)
    code, _, error = ended(values, "sync")
    assert code == 2, error
    assert "Traceback" not in error
    said = [line for line in error.splitlines() if line.strip() and not line.startswith(("•", "  …"))]
    assert len(said) == 1, error
    assert named in said[0]


def test_verbose_shows_where_it_went_wrong(tmp_path, tiny_model_folder, prefect_server):
    values = prepared(tmp_path / "home", tiny_model_folder)
    values["PREFECT_API_URL"] = PREFECT_API_URL.value()
    _no_model(tmp_path / "home", values)
    code, _, error = ended(values, "--verbose", "sync")
    assert code == 2, error
    assert "Traceback" in error


def record(name, message, error=None):
    found = (type(error), error, None) if error is not None else None
    return logging.LogRecord(name, logging.ERROR, __file__, 1, message, (), found)


@pytest.mark.parametrize(
    ("shown", "told"),
    [
        (False, record("prefect.flow_runs", "Encountered exception", KBError("P1"))),
        (False, record("prefect.task_runs", "Finished in state Failed('…')")),
        (False, record("prefect.flow_runs", "Crash detected! …")),
        (True, record("prefect.flow_runs", "Encountered exception", ZeroDivisionError())),
        (True, record("prefect.task_runs", "something else")),
        (True, record("flows.rebuild", "A rebuild failed", KBError("P1"))),
    ],
)
def test_what_prefect_says_of_named_errors_is_for_its_server(shown, told):
    assert _worth_a_look(told) is shown


def test_a_recovery_in_words():
    left = Recovery(orphans=("a", "b"))
    assert left
    assert not left.crash
    assert str(left) == "2 folders that no checkpoint needs removed"
    crashed = Recovery(abandoned=(3,), requeued=40, crashed_runs=(7,))
    assert crashed.crash
    assert str(crashed) == "1 run that had not ended, 1 checkpoint half built, 40 edits back in the queue"
