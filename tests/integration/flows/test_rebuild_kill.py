"""A rebuild whose process is killed at named points: the next one ends as if nothing had been."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys

import pytest

from flows.rebuild import rebuild
from flows.settings import Settings
from flows.sync import sync
from flows.workspace import opened_model
from kb.store import LocalStore
from storage.doctor import examine
from tests.integration.flows.conftest import environment_of, prepared

pytestmark = [pytest.mark.usefixtures("prefect_server"), pytest.mark.slow, pytest.mark.timeout(3000)]

POINTS = (
    "begin_run.after_commit",
    "begin_checkpoint.after_commit",
    "files.half_written",
    "files.renamed",
    "record_candidate.before_commit",
    "record_candidate.after_commit",
    "promote.head",
    "promote.after_commit",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_model_folder):
    """Two nights of a small model, kept as a folder that every death starts from."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("rebuild") / "home"
        for name, value in environment_of(folder, tiny_model_folder).items():
            patch.setenv(name, value)
        settings = prepared()
        sync()
        LocalStore(settings.store_dir).load_night(2)
        sync()
    return folder


def killed_at(point):
    """Rebuild in a process of its own that is killed at a point."""
    child = subprocess.Popen(
        [sys.executable, "-c", "from flows.cli.main import main; main()", "rebuild"],
        env={**os.environ, "FACTSYNC_CRASH_AT": point, "PREFECT_API_URL": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return child.wait(timeout=600)
    finally:
        # Its servers outlive a process that had no time to end them.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


def outcome(settings):
    """What is live, which digest holds it, and what the doctor finds."""
    with opened_model(settings) as (ws, model):
        report = examine(ws.ledger, model, ws.files)
        return ws.ledger.live_facts(model), ws.ledger.head(model).digest, report.findings


def test_killed_anywhere_it_ends_as_if_it_never_had_been(home, tmp_path, monkeypatch, tiny_model_folder):
    ends = {}
    for point in ("", *POINTS):
        folder = tmp_path / (point or "unharmed")
        shutil.copytree(home, folder)
        for name, value in environment_of(folder, tiny_model_folder).items():
            monkeypatch.setenv(name, value)
        if point:
            assert killed_at(point) == -signal.SIGKILL, point
        rebuild()
        ends[point] = outcome(Settings.read())
        shutil.rmtree(folder)
    assert ends[""][2] == ()
    assert {point for point, end in ends.items() if end != ends[""]} == set()
