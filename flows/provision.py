"""What a Prefect server needs to run our flows, made idempotently: pool, automation, deployments.

Everything here may run any number of times. What a person decided in between stays: a paused schedule, a
paused pool, a switched-off automation.

``python -m flows.provision`` makes the automation on the server that ``PREFECT_API_URL`` names; `factsync up`
needs no such step.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

from flows.errors import ServerStartError
from flows.serving import SILENT_FOR_S

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient

log = logging.getLogger(__name__)

POOL = "factsync"
"""The work pool that prefect.yaml names."""

ROOT = Path(__file__).resolve().parent.parent
"""The checkout: prefect.yaml lies here, and the flows are imported from here."""

SILENT_RUN = "factsync: end runs that fell silent"
_OPEN = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]


def ensure_pool(client: SyncPrefectClient) -> None:
    """Make the process work pool, or bring it up to date: one run at a time on this machine.

    One, because every flow that matters writes the model, which has one writer; the others wait in the
    queue, where a person sees them.
    """
    template = ProcessWorker.get_default_base_job_template()
    try:
        client.read_work_pool(POOL)
    except ObjectNotFound:
        pool = WorkPoolCreate(
            name=POOL,
            type="process",
            base_job_template=template,
            concurrency_limit=1,
            description="Runs of factsync on this machine, one at a time.",
        )
        client.create_work_pool(pool)
        return
    client.update_work_pool(POOL, WorkPoolUpdate(base_job_template=template, concurrency_limit=1))


def ensure_automation(client: SyncPrefectClient, *, silent_for_s: float) -> None:
    """Make the automation that ends a run whose process died without a word, or bring it up to date.

    Args:
        client: of the server.
        silent_for_s: A run that sent no sign of life for so long is Crashed. The ledger does not care:
            its own lock and its own recovery decide.
    """
    wanted = AutomationCore(
        name=SILENT_RUN,
        description="A run says every half minute that it lives; its process died without a word.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            # Any word from the run: its last event bears the name of its final state, and ours have names of
            # their own ("Rejected by a gate").
            expect={"prefect.flow-run.*"},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=silent_for_s),
        ),
        actions=[
            ChangeFlowRunState(
                name="Fell silent",
                state=StateType.CRASHED,
                message="No sign of life from its process; the next run settles what it left.",
            )
        ],
    )
    known = client.read_automations_by_name(SILENT_RUN)
    if not known:
        client.create_automation(wanted)
        return
    client.update_automation(known[0].id, wanted.model_copy(update={"enabled": known[0].enabled}))


def deploy(api_url: str, environment: Mapping[str, str]) -> None:
    """Make or update the deployments of prefect.yaml. Paused schedules stay paused: they have slugs.

    Raises:
        ServerStartError: a deployment was refused; Prefect's own words are quoted.
    """
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
        cwd=ROOT,
        env={**os.environ, **environment, "PREFECT_API_URL": api_url},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()[-12:]
        raise ServerStartError("`prefect deploy --all` failed:\n" + "\n".join(said))


def settle_runs(client: SyncPrefectClient, *, pending: bool) -> int:
    """End the runs of our pool whose process on this machine is gone.

    A worker that is killed leaves its run "Running" for good, and one that it had only taken over "Pending".
    The first is Crashed now; the second goes back into the queue.

    Args:
        client: of the server.
        pending: also give back what was only taken over; while no worker runs.

    Returns:
        How many runs were settled.
    """
    runs = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_OPEN))),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL])),
    )
    settled = 0
    for run in runs:
        if run.state_type is StateType.PENDING and not pending:
            continue
        state = _verdict(run)
        # A process that ended in order said so before it was gone: look again.
        if state is not None and client.read_flow_run(run.id).state_type in _OPEN:
            log.warning("Run %s: %s", run.name, state.message)
            client.set_flow_run_state(run.id, state, force=True)
            settled += 1
    return settled


def _verdict(run: FlowRun) -> State[None] | None:
    host, _, pid = (run.infrastructure_pid or "").rpartition(":")
    if not pid and run.state_type is StateType.PENDING:
        return State(type=StateType.SCHEDULED, name="Scheduled", message="The worker that took it ended.")
    if host not in {"", socket.gethostname()} or not pid.isdigit() or _alive(int(pid), run.id):
        return None
    if run.state_type is StateType.CANCELLING:
        return State(type=StateType.CANCELLED, message="Its process is gone.")
    return State(
        type=StateType.CRASHED,
        name="Process gone",
        message="Its process ended without a word; the next run settles what it left.",
    )


def _alive(pid: int, run: UUID) -> bool:
    """Whether this process is still the one of that run: ids are given out again."""
    try:
        return str(run).encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return False
    except OSError:
        return True
    try:  # not Linux
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def main() -> None:
    """Make the automation, and say so."""
    with get_client(sync_client=True) as client:
        ensure_automation(client, silent_for_s=SILENT_FOR_S)
        print(f"{client.api_url} has the automation '{SILENT_RUN}'.")  # noqa: T201 - a command's answer


if __name__ == "__main__":
    main()
