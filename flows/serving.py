"""`factsync up` and `factsync ui`: a Prefect server, and a worker, for one machine.

The server listens on the loopback address only and sends nothing out. Both are children of this process,
are started again when they end, and end with it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import deque
from typing import TYPE_CHECKING

from flows import local_prefect
from flows.errors import ServerStartError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

    from flows.settings import Settings

log = logging.getLogger(__name__)

POLL_S = 2.0
"""How often the worker asks for runs."""

HEARTBEAT_S = 30

SILENT_FOR_S = 180.0
"""A run without a sign of life for so long is over: six missed heartbeats."""

WATCH_S = 0.5
SWEEP_S = 15.0
"""How often runs whose process is gone are looked for."""

MOST_RESTARTS = 5
RESTART_WINDOW_S = 600.0


def worker_environment(settings: Settings, api_url: str) -> dict[str, str]:
    """What a worker and its runs need: our packages, the home, logs that reach the interface."""
    from flows.provision import ROOT  # noqa: PLC0415 - prefect reads its settings at import

    return {
        "PREFECT_API_URL": api_url,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "FACTSYNC_HOME": str(settings.home),
        "PREFECT_WORKER_QUERY_SECONDS": str(POLL_S),
        # A run says that it lives this often; the automation ends runs that fell silent.
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S),
        "PREFECT_LOGGING_LEVEL": "INFO",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "flows,kb,storage,editor",
    }


@contextlib.contextmanager
def up(settings: Settings, on_step: Callable[[str], None]) -> Iterator[Watch]:
    """A server with everything our flows need, and a worker, while the block lasts.

    Args:
        settings: the home.
        on_step: told what is being done.

    Yields:
        What watches over both; call `Watch.keep` to wait.

    Raises:
        ServerStartError: the port is taken, or a part does not start; its log is named.
    """
    api_url = local_prefect.api_address(settings)
    on_step("starting the Prefect server")
    with contextlib.ExitStack() as stack:
        watch = Watch(settings, on_step)
        stack.callback(watch.end)
        watch.server = local_prefect.start_server(settings)
        provision(settings, api_url, on_step)
        watch.start_worker()
        yield watch


def provision(settings: Settings, api_url: str, on_step: Callable[[str], None]) -> None:
    """Make pool, automation and deployments, and settle what an earlier worker left."""
    from prefect.client.orchestration import SyncPrefectClient  # noqa: PLC0415 - see worker_environment

    from flows import provision as made  # noqa: PLC0415 - likewise

    with SyncPrefectClient(api_url) as client:
        made.ensure_pool(client)
        made.ensure_automation(client, silent_for_s=SILENT_FOR_S)
        made.settle_runs(client, pending=True)
    on_step("making the deployments")
    made.deploy(api_url, {**local_prefect.environment(settings), **worker_environment(settings, api_url)})


class Watch:
    """The two children of `factsync up`, started again when they end by themselves.

    Attributes:
        server: The Prefect server.
        worker: The worker; None until it runs.
    """

    def __init__(self, settings: Settings, on_step: Callable[[str], None]) -> None:
        self._settings, self._on_step = settings, on_step
        self._restarts: deque[float] = deque()
        self.server: subprocess.Popen[bytes] | None = None
        self.worker: subprocess.Popen[bytes] | None = None

    def start_worker(self) -> None:
        """Start the worker."""
        api_url = local_prefect.api_address(self._settings)
        arguments = ["worker", "start", "--pool", "factsync", "--type", "process", "--name", "this machine"]
        environment = worker_environment(self._settings, api_url)
        self.worker = local_prefect.start_prefect(self._settings, arguments, "worker.log", environment)

    def keep(self, *, until: Callable[[], bool] = lambda: False) -> None:
        """Wait, and start again what ends.

        Args:
            until: asked twice a second; waiting ends when it is true.

        Raises:
            ServerStartError: something ended too often.
        """
        sweep_at = time.monotonic() + SWEEP_S
        while not until():
            time.sleep(WATCH_S)
            if time.monotonic() >= sweep_at:
                self._settle(pending=False)
                sweep_at = time.monotonic() + SWEEP_S
            if self.server is not None and self.server.poll() is not None:
                self._count("server", self.server.returncode)
                self.server = local_prefect.start_server(self._settings)
            if self.worker is not None and self.worker.poll() is not None:
                self._count("worker", self.worker.returncode)
                self._settle(pending=True)
                self.start_worker()

    def end(self) -> None:
        """End the worker, say so of the run it had, and end the server."""
        if self.worker is not None:
            # A run that its worker left behind would write on, with no server to tell.
            runs = local_prefect.children_of(self.worker.pid)
            local_prefect.stop(self.worker)
            local_prefect.stop_processes(runs)
            self._settle(pending=True)
        if self.server is not None:
            local_prefect.stop(self.server)

    def _settle(self, *, pending: bool) -> None:
        import httpx  # noqa: PLC0415 - see worker_environment
        from prefect.client.orchestration import SyncPrefectClient  # noqa: PLC0415 - likewise
        from prefect.exceptions import PrefectException  # noqa: PLC0415 - likewise

        from flows.provision import settle_runs  # noqa: PLC0415 - likewise

        api_url = local_prefect.api_address(self._settings)
        if not local_prefect.healthy(api_url, timeout_s=5.0):
            return  # the next sweep finds them
        try:
            with SyncPrefectClient(api_url) as client:
                settle_runs(client, pending=pending)
        except (httpx.HTTPError, PrefectException, OSError) as error:
            log.warning("Runs could not be looked for: %s", error)

    def _count(self, name: str, code: int | None) -> None:
        now = time.monotonic()
        self._restarts.append(now)
        while self._restarts and now - self._restarts[0] > RESTART_WINDOW_S:
            self._restarts.popleft()
        if len(self._restarts) > MOST_RESTARTS:
            raise ServerStartError(
                f"The Prefect {name} ended again (code {code}), {MOST_RESTARTS} times in ten minutes; "
                f"read {self._settings.prefect_dir / (name + '.log')}."
            )
        self._on_step(f"the {name} ended (code {code}); starting it again")
