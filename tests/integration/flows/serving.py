"""A real `factsync up` for the tests: its own home and port, a tiny model, and a trap for calls abroad."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from prefect.client.orchestration import SyncPrefectClient

ROOT = Path(__file__).resolve().parents[3]
READY_S = 180.0
RUN_S = 180.0


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


@dataclass
class Served:
    """A running `factsync up`."""

    process: subprocess.Popen
    url: str
    home: Path
    trap: Trap
    output: Path

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
        with self.client as client:
            while time.monotonic() < deadline:
                found = client.read_flow_run(run.id)
                if until(found.state):
                    return found
                time.sleep(0.5)
        said = self.output.read_text() + (self.home / "prefect" / "worker.log").read_text()[-4000:]
        raise AssertionError(f"{found.name} is still {found.state.name} after {timeout_s} s\n{said}")

    def children(self):
        """Process ids of its server and worker."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]


@contextmanager
def serving(values, home, log):
    """Run `factsync up` while the block lasts; it is ended by its own process id."""
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
    }
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", "from flows.cli import main; main()", "up"],
            cwd=ROOT,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            # In a background job Ctrl-C is ignored from birth.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
        )
    served = Served(process, f"http://127.0.0.1:{port}", home, trap, log)
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
