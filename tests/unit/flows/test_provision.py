"""Which runs are over although nobody said so."""

import os
import socket
import subprocess
import sys
import uuid

import pytest
from prefect.client.schemas.objects import FlowRun, State, StateType

from flows.provision import _verdict

RUN = uuid.UUID("8f3c7d9e-0d5e-4b5c-9d0e-2f4f3f8a1b2c")


def run(kind, pid):
    state = State(type=kind)
    return FlowRun(id=RUN, flow_id=uuid.uuid4(), state=state, state_type=kind, infrastructure_pid=pid)


@pytest.fixture
def ended():
    """The id of a process that is over."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_a_run_whose_process_is_gone_crashed(ended):
    for pid in (str(ended), f"{socket.gethostname()}:{ended}"):
        state = _verdict(run(StateType.RUNNING, pid))
        assert (state.type, state.name) == (StateType.CRASHED, "Process gone")


def test_a_cancelling_run_whose_process_is_gone_is_cancelled(ended):
    assert _verdict(run(StateType.CANCELLING, str(ended))).type is StateType.CANCELLED


def test_a_run_that_no_worker_started_goes_back():
    assert _verdict(run(StateType.PENDING, None)).type is StateType.SCHEDULED


def test_a_run_that_lives_is_left_alone():
    environment = {**os.environ, "PREFECT__FLOW_RUN_ID": str(RUN)}
    child = subprocess.Popen(["cat"], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        # An echo says that the child's own program runs; before that its environment cannot be read.
        child.stdin.write(b"ready\n")
        child.stdin.flush()
        assert child.stdout.readline() == b"ready\n"
        assert _verdict(run(StateType.RUNNING, str(child.pid))) is None
    finally:
        child.kill()
        child.communicate()


def test_an_id_that_was_given_out_again_is_not_the_run():
    state = _verdict(run(StateType.RUNNING, str(os.getpid())))
    assert state.type is StateType.CRASHED


def test_a_run_elsewhere_is_not_ours_to_judge(ended):
    assert _verdict(run(StateType.RUNNING, f"another-host:{ended}")) is None
    assert _verdict(run(StateType.RUNNING, None)) is None
