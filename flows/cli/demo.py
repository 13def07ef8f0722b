"""`factsync demo`: two nights of the shipped sample, with a Prefect server, on the bundled model."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.panel import Panel

from flows import local_prefect
from flows.cli import show
from flows.planning import READING_ORDER
from kb.store import LocalStore, nights

if TYPE_CHECKING:
    from flows.settings import Settings
    from flows.sync import Night


def run_demo(settings: Settings) -> None:
    """Run night one and night two, and end with what a person wants to know.

    A home in which the demo ran before says so quickly: running a sync twice equals running it once.

    Raises:
        GateError: a night failed a gate; raised after everything was shown.
        BurstError: the burst guard held one.
    """
    from flows.sync import require_promoted

    out = show.console()
    began = time.monotonic()
    settings = settings.model_copy(update={"prefect_port": local_prefect.free_port(settings.prefect_port)})
    with local_prefect.server(settings) as api_url:
        out.print(
            f"Prefect runs at {api_url.removesuffix('/api')} meanwhile; all state is in {settings.home}."
        )
        done = [(number, night) for number in sorted(nights()) if (night := _night(settings, number))]
    for number, night in done:
        out.print()
        kinds = READING_ORDER[:-1] if number > 1 else ("replace", "retract", "conflict", "quarantine")
        title = f"Night {number}: what changed in Wikidata"
        changes = show.changes_table(night.plan, title=title, kinds=kinds)
        if changes.row_count:
            out.print(changes)
        if night.candidate is not None:
            out.print(show.candidate_table(night.candidate, title=f"Night {number}: what was edited"))
        out.print(f"Night {number}: {show.night_summary(night)}")
    out.print()
    out.print(
        show.metrics_table(
            [(f"night {number}", night.candidate) for number, night in done],
            title="Recall before and after, and what was left alone",
        )
    )
    ran = [night for _, night in done]
    out.print(Panel.fit(_where(settings, ran, time.monotonic() - began), title="Where things are"))
    for night in ran:
        require_promoted(night)


def _night(settings: Settings, number: int) -> Night | None:
    """One night; None where the home has read a later one already: a source does not go back."""
    from flows.sync import sync
    from flows.workspace import Workspace

    night = LocalStore(settings.store_dir).load_night(number)
    show.console().print(f"\n[bold]Night {number}[/] ({night.reference_time:%d %B %Y, %H:%M} UTC)")
    with Workspace.open(settings) as ws:
        read_to = ws.ledger.cursor(ws.source)
    if read_to is not None and night.reference_time < read_to:
        show.console().print(f"This home has read to {read_to:%d %B %Y, %H:%M} UTC already: left out.")
        return None
    with show.bars():
        return sync()


def _where(settings: Settings, done: list[Night], seconds: float) -> str:
    live = next(
        (night.candidate.digest for night in reversed(done) if night.candidate and night.promoted),
        "as before",
    )
    return "\n".join(
        (
            f"live checkpoint  {live}",
            f"ledger           {show.ledger_url(settings)}",
            f"delta files      {settings.checkpoints_dir}",
            f"Prefect UI       factsync ui   (then http://{local_prefect.HOST}:{settings.prefect_port})",
            'try              factsync ask "The head of government of Germany is"',
            "                 factsync history Q183 · factsync status · factsync checkpoint list",
            f"this took        {seconds / 60:.1f} minutes",
        )
    )
