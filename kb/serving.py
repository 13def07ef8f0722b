"""One oxigraph server process and its keeper: start it, wait for it, and never leave it behind.

The server ends when it is stopped or when this process ends, however that happens: its keeper, a small shell
script, waits on a pipe that only we hold open. (``PR_SET_PDEATHSIG`` would tie it to the thread that started
it, and a flow's threads come and go.)
"""

from __future__ import annotations

import http.client
import logging
import os
import signal
import socket
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING, Final

from kb.errors import StoreError

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)

_HOST: Final = "127.0.0.1"
_LISTENING: Final = "Listening for requests"
_POLL_S: Final = 0.05
_STOP_S: Final = 5.0
_SAID_BYTES: Final = 64 * 1024
ENVIRONMENT: Final = {"PATH": os.defpath, "RUST_BACKTRACE": "0"}  # a reason is one line, not a stack

# Starts "$@", ends it when our end of the pipe on standard input closes, kills it at SIGUSR1, and leaves with
# its exit status. The signals can only ever reach that child: until `wait` returns, nobody else can have its
# process id. A trapped signal ends `wait` early, hence the loop.
_KEEPER: Final = """
exec 3<&0
trap 'kill -KILL "$server"' USR1
"$@" </dev/null 3<&- &
server=$!
( cat <&3 >/dev/null; kill -TERM "$server" ) 2>/dev/null &
watch=$!
wait "$server"
status=$?
while kill -0 "$server" 2>/dev/null; do
    wait "$server"
    status=$?
done
kill "$watch" 2>/dev/null
exit "$status"
"""


class StorePortTakenError(StoreError):
    """Another program listens on the port that was asked for."""


class StoreStartError(StoreError):
    """The server ended at once, or did not answer in time."""


class Server:
    """One oxigraph process behind its keeper."""

    def __init__(self, binary: Path, state: Path, port: int, query_timeout_s: int) -> None:
        self.port = port
        self.url = f"http://{_HOST}:{port}/query"
        self._errors = tempfile.TemporaryFile(mode="w+b")  # noqa: SIM115 - closed by stop()
        serve = [str(binary), "serve-read-only", "--location", str(state), "--bind", f"{_HOST}:{port}"]
        self._process = subprocess.Popen(  # noqa: S603 - our own script and arguments
            ["/bin/sh", "-c", _KEEPER, "keeper", *serve, "--timeout-s", str(query_timeout_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            env=ENVIRONMENT,
            start_new_session=True,  # Ctrl-C is ours to handle, and the group is ours to end
        )

    def wait_until_healthy(self, timeout_s: float) -> None:
        """Return once the server answers a query.

        Raises:
            StorePortTakenError: Somebody else has the port.
            StoreStartError: The server ended, or did not answer within ``timeout_s`` seconds.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            # We ask only after the server itself says it has the port: else another program may answer.
            healthy = _LISTENING in self._said() and _answers(self.port)
            if self._process.poll() is not None:
                why = reason(self._said())
                if "in use" in why.lower():
                    raise StorePortTakenError(f"Port {self.port} is taken; choose another or leave it out.")
                raise StoreStartError(
                    f"The server of the local store ended at once ({why}); load the store again."
                )
            if healthy:
                return
            if time.monotonic() > deadline:
                raise StoreStartError(
                    f"The server of the local store did not answer within {timeout_s:g} s; "
                    "try again when the machine has less to do."
                )
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """End the server and its keeper, by force if they linger, and reap them."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        for insist in (self._kill_server, self._kill_group):
            try:
                self._process.wait(_STOP_S)
                break
            except subprocess.TimeoutExpired:
                logger.warning("the server of the local store does not end; it is killed")
                insist()
        self._process.wait()
        self._errors.close()

    def _kill_server(self) -> None:
        self._process.send_signal(signal.SIGUSR1)

    def _kill_group(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)  # our own session: the keeper and what it started

    def _said(self) -> str:
        # Not seek and read: the server shares our place in the file and would write over its own words.
        return os.pread(self._errors.fileno(), _SAID_BYTES, 0).decode(errors="replace")


def claim_port(port: int | None) -> int:
    """The port to use: the given one if nobody listens there, else a free one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
        try:
            probe.bind((_HOST, port or 0))
        except OSError as error:
            raise StorePortTakenError(
                f"Port {port} cannot be used ({error.strerror}); choose another or leave it out."
            ) from error
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection(_HOST, port, timeout=1.0)
    try:
        connection.request(
            "GET", "/query?query=ASK%7B%7D", headers={"Accept": "application/sparql-results+json"}
        )
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def reason(said: str) -> str:
    """The line of oxigraph's words that tells what went wrong."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line.removeprefix("Error: ") for line in lines if line.startswith("Error")]
    return (errors or lines or ["it gave no reason"])[0].rstrip(".")
