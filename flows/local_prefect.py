"""Prefect on this machine only: its settings, and a server as a child process.

`configure` must run before `prefect` is imported, since Prefect reads its environment at import.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import socket
import subprocess
import sys
import time
import types
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from flows.errors import ServerStartError
from flows.process import THREADS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from flows.settings import Settings

HOST = "127.0.0.1"
_PR_SET_PDEATHSIG = 1

_LOOPBACK = " ".join(f"{scheme}://{name}:*" for scheme in ("http", "ws") for name in (HOST, "localhost"))
STAY_HERE = (
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'self' 'unsafe-inline' "
    f"'unsafe-eval' data: blob: {_LOOPBACK}\">"
)
"""What the interface's pages tell the browser: load from this machine, ask this machine, nobody else.

Prefect's second interface fetches a vendor's script even with analytics off, and the first one has a button
that switches to it.
"""


def environment(settings: Settings) -> dict[str, str]:
    """Settings of Prefect and torch for this home: its own database, no telemetry, loopback only."""
    return {
        "PREFECT_HOME": str(settings.prefect_dir),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_UI_V2_ENABLED": "true" if settings.ui == "v2" else "false",
        # Prefect copies its pages there when it starts; `keep_here` marks them.
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(_pages(settings)),
        "PREFECT_SERVER_API_HOST": HOST,
        # A command without `factsync up` starts a server for itself; on a busy machine that takes a while.
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_LOGGING_ROOT_LEVEL": "WARNING",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        **THREADS,
    }


def configure(settings: Settings) -> None:
    """Put `environment` into this process, where the user has not set a variable himself."""
    for name, value in environment(settings).items():
        os.environ.setdefault(name, value)
    # The flows read their settings themselves; `--home` holds for them too.
    os.environ["FACTSYNC_HOME"] = str(settings.home)
    settings.prefect_dir.mkdir(parents=True, exist_ok=True)


def keep_server_apart() -> None:
    """Have the server that Prefect starts for a run which finds none start apart from this process.

    Prefect starts it in the command's own process group. There Ctrl-C ends the server too, and the run waits
    in vain for an answer to how it ended; and a command that is killed leaves its server behind. Prefect has
    no setting for either. Call it once its settings stand, before a flow runs here.
    """
    from prefect.server.api import server  # noqa: PLC0415 - two seconds, which such a run takes anyway

    apart = functools.partial(subprocess.Popen, start_new_session=True, preexec_fn=die_with_parent)
    vars(server)["subprocess"] = types.SimpleNamespace(**{**vars(subprocess), "Popen": apart})


def for_runs(settings: Settings) -> None:
    """Set Prefect up for a command that runs flows in this process: `configure`, and a server kept apart.

    Raises:
        ServerStartError: `PREFECT_API_URL` names a server, and none answers there.
    """
    named = os.environ.get("PREFECT_API_URL")
    if named and not _answers(named):
        raise ServerStartError(
            f"PREFECT_API_URL is {named}, and nothing answers there: start that server, or unset the "
            "variable for a server of this run's own."
        )
    configure(settings)
    keep_server_apart()


def free_port(wanted: int) -> int:
    """The wanted loopback port, or any free one if somebody listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, wanted))
        except OSError:
            probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def die_with_parent() -> None:
    """Ask Linux to end this child when its parent ends, so that no server outlives a killed command."""
    with contextlib.suppress(OSError, AttributeError):  # not Linux: the context managers still end the child
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _answers(api_url: str, timeout_s: float = 10.0) -> bool:
    """Whether anything answers there, if only with a refusal: who may ask is Prefect's to find out."""
    try:
        with urllib.request.urlopen(f"{api_url}/health", timeout=timeout_s):  # noqa: S310 - the user's own
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False


def healthy(api_url: str, timeout_s: float = 1.0) -> bool:
    """Whether a Prefect server answers at `api_url`."""
    try:
        with urllib.request.urlopen(f"{api_url}/health", timeout=timeout_s) as reply:  # noqa: S310 - loopback
            return bool(reply.status == 200)  # noqa: PLR2004 - HTTP OK
    except (urllib.error.URLError, OSError):
        return False


def address(settings: Settings) -> str:
    """The address of this home's server, for a browser."""
    return f"http://{HOST}:{settings.prefect_port}"


def api_address(settings: Settings) -> str:
    """The address of this home's server, for a client."""
    return f"{address(settings)}/api"


def start_server(settings: Settings, *, start_timeout_s: float = 240.0) -> subprocess.Popen[bytes]:
    """Start a Prefect server and wait until it answers.

    Raises:
        ServerStartError: the port is taken, or the server did not come up; its log is named.
    """
    api_url = api_address(settings)
    if healthy(api_url):
        raise ServerStartError(
            f"A Prefect server answers at {api_url} already. Stop it, or set FACTSYNC_PREFECT_PORT."
        )
    command = ["server", "start", "--host", HOST, "--port", str(settings.prefect_port)]
    # Without it the interface asks port 4200, whoever serves there.
    child = start_prefect(settings, command, "server.log", {"PREFECT_UI_API_URL": api_url})
    try:
        _wait(child, api_url, settings.prefect_dir / "server.log", start_timeout_s)
        keep_here(settings)
    except BaseException:
        stop(child)
        raise
    return child


def _pages(settings: Settings) -> Path:
    return settings.prefect_dir / "ui"


def keep_here(settings: Settings) -> None:
    """Write `STAY_HERE` into the interface's pages, this home's own copy of them."""
    for page in _pages(settings).glob("*/index.html"):
        text = page.read_text(encoding="utf-8")
        if STAY_HERE not in text:
            page.write_text(text.replace("<head>", f"<head>{STAY_HERE}", 1), encoding="utf-8")


def start_prefect(
    settings: Settings, arguments: Sequence[str], log_name: str, extra: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start a `prefect` command that ends when this process ends, its output in a log under home.

    Args:
        settings: the home.
        arguments: after `prefect`.
        log_name: file under the home's Prefect folder; it grows.
        extra: environment beside this process's and `environment`.
    """
    settings.prefect_dir.mkdir(parents=True, exist_ok=True)
    with (settings.prefect_dir / log_name).open("ab") as log:
        return subprocess.Popen(  # noqa: S603 - our own interpreter
            [sys.executable, "-m", "prefect", *arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **environment(settings), **extra},
            # Ctrl-C is for the command; it ends its children in order.
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - no threads run yet that could hold a lock
        )


@contextlib.contextmanager
def server(settings: Settings, *, start_timeout_s: float = 240.0) -> Iterator[str]:
    """A Prefect server as a child process, ended with the block.

    Yields:
        The API URL; `PREFECT_API_URL` points there inside the block.

    Raises:
        ServerStartError: the port is taken, or the server did not come up; its log is named.
    """
    child = start_server(settings, start_timeout_s=start_timeout_s)
    try:
        with _variable({"PREFECT_API_URL": api_address(settings)}):
            yield api_address(settings)
    finally:
        stop(child)


def stop(child: subprocess.Popen[bytes], grace_s: float = 10.0) -> None:
    """End a child politely, then firmly."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(grace_s)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def children_of(pid: int) -> list[int]:
    """The process ids of a child's own children; none where the system does not say."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found.extend(int(one) for one in (thread / "children").read_text().split())
    return found


def stop_processes(pids: Iterable[int], grace_s: float = 10.0) -> None:
    """End these processes, grandchildren of ours, politely, then firmly; some may be gone already."""
    left = [pid for pid in pids if _signal(pid, signal.SIGTERM)]
    deadline = time.monotonic() + grace_s
    while left and time.monotonic() < deadline:
        time.sleep(0.2)
        left = [pid for pid in left if _signal(pid, 0)]
    for pid in left:
        _signal(pid, signal.SIGKILL)


def _signal(pid: int, number: int) -> bool:
    try:
        os.kill(pid, number)
    except OSError:
        return False
    return True


def _wait(child: subprocess.Popen[bytes], api_url: str, log_path: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise ServerStartError(f"The Prefect server ended with code {child.returncode}; read {log_path}.")
        if healthy(api_url):
            return
        time.sleep(0.3)
    raise ServerStartError(f"The Prefect server did not answer within {timeout_s:.0f} s; read {log_path}.")


@contextlib.contextmanager
def _variable(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
