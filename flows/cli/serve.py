"""Commands that serve: up, ui."""

from __future__ import annotations

import contextlib
import signal
import time
from typing import TYPE_CHECKING

import typer  # noqa: TC002 - typer reads the annotations

from flows import local_prefect
from flows.cli.main import app
from flows.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator


@app.command(epilog="Example: factsync up    (Ctrl-C ends it)")
def up(context: typer.Context) -> None:
    """Serve this machine: Prefect with its interface, a worker, the nightly schedule."""
    settings: Settings = context.obj
    local_prefect.configure(settings)
    from flows import serving
    from flows.cli import show

    out = show.console()
    with _until_interrupted(), serving.up(settings, lambda text: out.print(f"[dim]•[/] {text}")) as watch:
        out.print(f"Ready: {local_prefect.address(settings)}  (state in {settings.home}; Ctrl-C ends it)")
        out.print(f"  start a backfill   {local_prefect.address(settings)}/deployments")
        out.print("  nightly            as in prefect.yaml (shipped: 03:30 Europe/Berlin); pause it there")
        out.print(f"  logs               {settings.prefect_dir}")
        watch.keep()


@app.command(epilog="Example: factsync ui")
def ui(context: typer.Context) -> None:
    """Look at past runs: the Prefect server alone, without a worker."""
    settings: Settings = context.obj
    local_prefect.configure(settings)
    from flows.cli import show

    out = show.console()
    with _until_interrupted(), local_prefect.server(settings):
        out.print(f"Ready: {local_prefect.address(settings)}/runs  (Ctrl-C ends it)")
        while True:
            time.sleep(3600)


@contextlib.contextmanager
def _until_interrupted() -> Iterator[None]:
    """Let Ctrl-C and a polite kill end the block in order; neither is an error here."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, before)
