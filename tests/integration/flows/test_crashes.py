"""The crash matrix: whatever is killed, no run stays "running" and the next one settles the ledger."""

import os
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prefect.states import Scheduled

from tests.integration.flows.serving import prepared
from tests.integration.flows.serving import serving as running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RELATIONS = ["P6 head of government", "P35 head of state"]
KILL, TERM = signal.SIGKILL, signal.SIGTERM

CRASHED, PROMOTED = "CRASHED", "Promoted"

MATRIX = [
    # The worker sees its child end, and says so.
    (("run",), KILL, CRASHED),
    (("run",), TERM, CRASHED),
    # A run ends at its next line of log, which nobody reads any more; or the worker takes it along.
    (("worker",), KILL, CRASHED),
    (("worker",), TERM, CRASHED),
    # A run writes the ledger, not the server: it goes on without.
    (("server",), KILL, PROMOTED),
    (("server",), TERM, PROMOTED),
]
"""Who gets which signal while a run edits, and how that run ends."""


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_model_folder):
    """A home whose edits take a few seconds, and its environment."""
    home = tmp_path_factory.mktemp("crashes") / "home"
    return home, prepared(home, tiny_model_folder, steps=40)


@pytest.fixture(scope="module")
def served(home):
    folder, values = home
    with running(values, folder, folder / "up.log") as found:
        yield found


def edit(served, limit=4):
    return served.start("backfill/backfill", relations=RELATIONS, limit=limit)


def recovered(served, before):
    """The next run promotes, nothing stands open, and nothing that was live is lost."""
    again = served.wait(edit(served, limit=1))
    assert again.state.name == PROMOTED, again.state.message
    found = served.settled()
    assert found.live_facts > before.live_facts
    assert found.open_checkpoint is None
    with served.client as client:
        assert [run.name for run in client.read_flow_runs() if run.state.is_running()] == []


@pytest.mark.parametrize(("who", "number", "ends"), MATRIX, ids=lambda one: getattr(one, "name", str(one)))
def test_a_signal_while_a_run_edits(served, who, number, ends):
    # The first run makes the ledger.
    before = served.status() if (served.home / "ledger.db").exists() else None
    if before is None:
        assert served.wait(edit(served, limit=1)).state.name == PROMOTED
        before = served.status()
    run = edit(served)
    child = served.begun(run)
    for name in who:
        os.kill(child if name == "run" else served.child(name), number)
    ended = served.wait(run)
    assert ends in {ended.state.type.value, ended.state.name}, (ended.state, ended.state.message)
    if ends == PROMOTED:
        assert served.settled().live_facts == before.live_facts + 4
    recovered(served, before)


def test_a_week_of_late_nights_is_one_night_of_work(served):
    """The runs that were missed start one after another; the first does the work."""
    missed = [datetime.now(UTC) - timedelta(days=days) for days in range(7, 0, -1)]
    before = served.settled()
    with served.client as client:
        nightly = client.read_deployment_by_name("sync/nightly")
        late = [
            client.create_flow_run_from_deployment(nightly.id, state=Scheduled(scheduled_time=at))
            for at in missed
        ]
    ended = [served.wait(run, timeout_s=400) for run in late]
    names = sorted(run.state.name for run in ended)
    assert names == ["Nothing to do"] * 6 + [PROMOTED], [run.state for run in ended]
    worked = next(run for run in ended if run.state.name == PROMOTED)
    others = [run for run in ended if run is not worked]
    assert all(worked.end_time < run.start_time for run in others)
    after = served.settled()
    assert after.owed == 0
    assert after.live_facts > before.live_facts
    with served.opened() as (ws, model):
        made = [row for row in ws.ledger.checkpoints(model) if row.created_at > missed[-1]]
    assert made[-1].digest == after.head.digest
    # No model was loaded and no weight touched: asking the source is all there was.
    for run in others:
        assert set(served.artifacts(run)) <= {"changes", "progress-pull"}
        assert run.total_run_time < worked.total_run_time


def test_everything_is_killed_at_once_and_started_again(home, served):
    """A power cut, but for the disk: `factsync up`, server, worker and run."""
    folder, values = home
    # Nothing is owed any more: go back, and let the backfill wish everything again.
    rolled = served.wait(served.start("rollback/rollback", checkpoint="base", again=True))
    assert rolled.state.name == "Rolled back", rolled.state.message
    before = served.status()
    run = edit(served)
    pids = [served.process.pid, *served.children(), served.begun(run)]
    for pid in pids:
        os.kill(pid, KILL)
    served.process.wait(10)
    deadline = time.monotonic() + 10
    while any(_lives(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with running(values, folder, folder / "up-again.log") as again:
        ended = again.wait(run)
        assert (ended.state.type.value, ended.state.name) == ("CRASHED", "Process gone")
        recovered(again, before)


def _lives(pid):
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
