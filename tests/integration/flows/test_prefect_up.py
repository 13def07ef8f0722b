"""`factsync up` as a person meets it: a real server and a real worker."""

import json
import os
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prefect.states import Cancelling

from flows import provision, serving
from flows.settings import Settings
from tests.integration.flows.serving import prepared
from tests.integration.flows.serving import serving as running

# One `factsync up` for the module: start, deploy and a run's own start cost most of the time.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(tmp_path_factory, tiny_model_folder):
    home = tmp_path_factory.mktemp("served") / "home"
    with running(prepared(home, tiny_model_folder), home, home / "up.log") as found:
        yield found


def test_the_next_nights_are_scheduled(served):
    """A server that cannot store scheduled runs looks well and starts no night: SQLAlchemy 2.1 did that."""
    deadline = time.monotonic() + 60
    with served.client as client:
        nightly = client.read_deployment_by_name("sync/nightly")
        while not [
            run
            for run in client.read_flow_runs()
            if run.deployment_id == nightly.id and run.state is not None and run.state.is_scheduled()
        ]:
            log = (served.home / "prefect" / "server.log").read_text()
            assert time.monotonic() < deadline, log[-3000:]
            time.sleep(1)


def test_everything_is_there_and_making_it_again_changes_no_decision(served, monkeypatch):
    with served.client as client:
        nightly = client.read_deployment_by_name("sync/nightly")
        (schedule,) = nightly.schedules
        assert (schedule.slug, schedule.active) == ("nightly", True)
        assert client.read_work_pool(provision.POOL).concurrency_limit == 1
        (automation,) = client.read_automations_by_name(provision.SILENT_RUN)
        client.update_deployment_schedule(nightly.id, schedule.id, active=False)
        client.pause_automation(automation.id)
    monkeypatch.setenv("FACTSYNC_HOME", str(served.home))
    monkeypatch.setenv("FACTSYNC_PREFECT_PORT", served.url.rpartition(":")[2])
    serving.provision(Settings.read(), f"{served.url}/api", lambda _: None)
    with served.client as client:
        (schedule,) = client.read_deployment_by_name("sync/nightly").schedules
        assert not schedule.active
        (automation,) = client.read_automations_by_name(provision.SILENT_RUN)
        assert not automation.enabled


def test_a_wrong_choice_is_refused_before_a_run_exists(served):
    with served.client as client:
        backfill = client.read_deployment_by_name("backfill/backfill")
    request = urllib.request.Request(
        f"{served.url}/api/deployments/{backfill.id}/create_flow_run",
        json.dumps({"parameters": {"relations": ["P9999 nothing"]}}).encode(),
        {"Content-Type": "application/json"},
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == 409
    assert "is not one of" in refused.value.read().decode()


def test_input_that_makes_no_sense_ends_in_a_state_that_says_so(served):
    run = served.wait(served.start("backfill/backfill", since="2999-01-01"))
    assert (run.state.name, run.state.type.value) == ("Wrong input", "FAILED")
    assert "in the future" in run.state.message


def test_a_candidate_is_made_read_and_promoted(served):
    run = served.wait(
        served.start("backfill/backfill", relations=["P6 head of government"], limit=6, approval=True)
    )
    assert run.state.name == "Waits for approval", run.state.message
    shown = served.artifacts(run)
    assert {"changes", "recall", "gates", "checkpoint"} <= shown.keys()
    assert len(json.loads(shown["recall"].data)) == 6
    assert "factsync promote" in shown["checkpoint"].data
    run = served.wait(served.start("promote/promote", decided_by="Ada"))
    assert run.state.name == "Promoted", run.state.message
    assert "by Ada" in run.state.message
    run = served.wait(served.start("reject/reject"))
    assert (run.state.name, run.state.is_failed()) == ("Wrong input", True)


def test_a_killed_run_and_a_killed_worker_leave_nothing_running(served):
    run = served.start("backfill/backfill", relations=["P35 head of state"], limit=6)
    child = served.begun(run)
    worker = served.child("worker")
    os.kill(worker, signal.SIGKILL)
    os.kill(child, signal.SIGKILL)
    ended = served.wait(run)
    assert (ended.state.type.value, ended.state.name) == ("CRASHED", "Process gone")
    # The worker is back, and the next run settles what the killed ones left.
    again = served.wait(served.start("backfill/backfill", relations=["P35 head of state"], limit=6))
    assert again.state.name == "Promoted", again.state.message
    assert worker not in served.children()
    served.settled()


def test_server_and_worker_killed_at_once_come_back(served):
    run = served.start("backfill/backfill", relations=["P35 head of state"], limit=2)
    served.begun(run)
    killed = [served.child("server"), served.child("worker")]
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    assert served.wait(run).state.is_crashed()
    assert not set(killed) & set(served.children())
    again = served.wait(served.start("backfill/backfill", relations=["P35 head of state"], limit=2))
    assert again.state.name == "Promoted", again.state.message
    served.settled()


def test_a_cancelled_run_ends_and_the_ledger_is_settled(served):
    run = served.start("backfill/backfill", relations=["P6 head of government"], batch_size=2, limit=20)
    served.wait(run, until=lambda state: state.is_running())
    began = time.monotonic()
    with served.client as client:
        client.set_flow_run_state(run.id, Cancelling())
    ended = served.wait(run)
    assert ended.state.is_cancelled(), ended.state
    assert time.monotonic() - began < 60
    again = served.wait(served.start("backfill/backfill", relations=["P6 head of government"], limit=2))
    assert again.state.name == "Promoted", again.state.message


def test_the_interface_alone(tmp_path, tiny_model_folder):
    home = tmp_path / "home"
    with running(prepared(home, tiny_model_folder), home, tmp_path / "ui.log", command="ui") as found:
        # As a browser asks: other programs get no page where there is no file of that name.
        page = urllib.request.Request(f"{found.url}/runs", headers={"Accept": "text/html"})
        with urllib.request.urlopen(page) as reply:
            assert reply.status == 200
        assert len(found.children()) == 1


def test_nothing_called_abroad_and_the_end_takes_both_along(served):
    assert served.trap.calls == []
    run = served.start("backfill/backfill", relations=["P6 head of government"], batch_size=2, limit=20)
    started = served.wait(run, until=lambda state: state.is_running())
    children = served.children()
    assert len(children) == 2
    children.append(int(str(started.infrastructure_pid).rpartition(":")[2]))
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(60) == 0
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < deadline
        time.sleep(0.2)
