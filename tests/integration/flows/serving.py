"""A real `factsync up` for the tests: its own home and port, a tiny model, and a trap for calls abroad."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

from flows.errors import UnknownModelNameError
from flows.settings import Settings
from flows.workspace import opened_model
from kb.store import LocalStore
from storage.doctor import examine
from tests.integration.flows.conftest import GATES, QUICK

ROOT = Path(__file__).resolve().parents[3]
READY_S = 400.0
RUN_S = 400.0
HERE = {"127.0.0.1", "localhost", "::1", "0.0.0.0", "unix", "None"}
"""Whom a process may call and not leave the machine."""


def free_port():
    """A port that nobody listens on."""
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Trap:
    """A proxy that lets nothing through and remembers who called."""

    def __init__(self):
        self.calls = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        while True:
            try:
                caller, _ = self._socket.accept()
            except OSError:
                return
            with caller:
                caller.settimeout(2)
                self.calls.append(caller.recv(200))

    def close(self):
        """Stop listening."""
        self._socket.close()


def prepared(home, model, *, relations="P6,P35", **memit):
    """A home with night one and gates that let everything through; returns its environment."""
    home.mkdir(parents=True)
    LocalStore(home / "store").load_night(1)
    (home / "memit.json").write_text(json.dumps({**QUICK, **memit}))
    return {
        "FACTSYNC_HOME": str(home),
        "FACTSYNC_MODEL": str(model),
        "FACTSYNC_RELATIONS": relations,
        "FACTSYNC_MOMENT_TOKENS": "1000",
        **{f"FACTSYNC_GATE_{name}": str(bound) for name, bound in GATES.items()},
    }


@dataclass
class Served:
    """A running `factsync up`."""

    process: subprocess.Popen
    url: str
    home: Path
    trap: Trap
    output: Path
    model: str

    @property
    def client(self):
        """A client of its server."""
        return SyncPrefectClient(f"{self.url}/api")

    def start(self, deployment, **parameters):
        """Start a run, without waiting for it."""
        with self.client as client:
            found = client.read_deployment_by_name(deployment)
            return client.create_flow_run_from_deployment(found.id, parameters=parameters)

    def wait(self, run, *, until=lambda state: state.is_final(), timeout_s=RUN_S):
        """Wait for a run's state."""
        deadline = time.monotonic() + timeout_s
        found = None
        while time.monotonic() < deadline:
            # A server that was killed is away for a moment.
            with suppress(httpx.HTTPError), self.client as client:
                found = client.read_flow_run(run.id)
                if until(found.state):
                    return found
            time.sleep(0.5)
        said = self.output.read_text() + (self.home / "prefect" / "worker.log").read_text()[-4000:]
        raise AssertionError(f"{run.name} is still {found and found.state.name} after {timeout_s} s\n{said}")

    def begun(self, run):
        """Wait until a run edits: its checkpoint is open in the ledger. Returns the run's process id."""
        started = self.wait(run, until=lambda state: state.is_running())
        deadline = time.monotonic() + RUN_S
        # Before the first run has registered its model there is nothing to look at.
        while True:
            with suppress(UnknownModelNameError):
                if self.status().open_checkpoint is not None:
                    break
            assert time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.05)
        return int(str(started.infrastructure_pid).rpartition(":")[2])

    @contextmanager
    def opened(self):
        """Its home, opened to look into the ledger."""
        settings = Settings.read(self.home).model_copy(update={"model": self.model})
        with opened_model(settings) as (ws, model):
            yield ws, model

    def status(self):
        """Where its model stands, by the ledger."""
        with self.opened() as (ws, model):
            return ws.ledger.status(model)

    def released(self):
        """Wait until nobody holds the model: a run that ends gives it back last."""
        deadline = time.monotonic() + 30
        while (holder := self.status().holder) is not None:
            assert time.monotonic() < deadline, f"{holder} still holds the model"
            time.sleep(0.1)

    def settled(self):
        """Assert that the ledger holds together and nothing stands open; returns its status."""
        with self.opened() as (ws, model):
            found = examine(ws.ledger, model, ws.files).findings
            # The files of a rejected checkpoint stay until the next run.
            wrong = [one for one in found if one.check != "orphans"]
            assert wrong == [], wrong
            running = ws.ledger.query("SELECT run_id FROM sync_runs WHERE state = 'running'").rows
            assert running == (), running
            return ws.ledger.status(model)

    def artifacts(self, run):
        """A run's artifacts by their keys."""
        with self.client as client:
            one = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
            return {found.key: found for found in client.read_artifacts(flow_run_filter=one)}

    def called(self):
        """Whom its processes called or asked the address of, beside this machine itself."""
        notes = (self.home / "calls.txt").read_text().splitlines()
        assert any(note.startswith("socket.connect") for note in notes), "nothing is watched"
        return {note for note in notes if note.split(" ", 1)[1] not in HERE}

    def child(self, name):
        """Process id of its `server` or `worker`."""
        word = name.encode()
        return next(
            pid for pid in self.children() if word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        )

    def children(self):
        """Process ids of its server and worker."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]


@contextmanager
def serving(values, home, log, command="up"):
    """Run `factsync up`, or `ui`, while the block lasts; it is ended by its own process id."""
    port = free_port()
    trap = Trap()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT")},
        **values,
        "FACTSYNC_PREFECT_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "HTTP_PROXY": trap.url,
        "HTTPS_PROXY": trap.url,
        "ALL_PROXY": trap.url,
        "NO_PROXY": "127.0.0.1,localhost",
        "PYTHONPATH": str(Path(__file__).parent / "watched"),
        "FACTSYNC_TEST_CALLS": str(home / "calls.txt"),
    }
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", "from flows.cli import main; main()", command],
            cwd=ROOT,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            # In a background job Ctrl-C is ignored from birth.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
        )
    served = Served(process, f"http://127.0.0.1:{port}", home, trap, log, values["FACTSYNC_MODEL"])
    try:
        deadline = time.monotonic() + READY_S
        while "Ready:" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.3)
        yield served
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(60)
        trap.close()
