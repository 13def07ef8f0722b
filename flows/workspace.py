"""What a run works with: settings, ledger, checkpoint files, relations and a source of statements."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from flows.errors import SettingsError, UnknownModelNameError
from flows.params import synced_relations
from flows.source import opened_feed
from storage.checkpoints import CheckpointFiles
from storage.crash import silent
from storage.database import parse_url, sqlite_path
from storage.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flows.settings import Settings
    from kb.entity_data import EntityDataFeed
    from kb.feed import SparqlFeed
    from kb.relations import Relations
    from storage.crash import OnPoint
    from storage.records.planned import EditRequestRow
    from storage.records.runs import Lease, Model


@dataclass(frozen=True, slots=True)
class Workspace:
    """One home, opened.

    Attributes:
        settings: as read.
        ledger: the truth about the model.
        files: the checkpoint folders.
        relations: what a model may learn, as selected.
    """

    settings: Settings
    ledger: Ledger
    files: CheckpointFiles
    relations: Relations

    @classmethod
    @contextlib.contextmanager
    def open(cls, settings: Settings) -> Iterator[Workspace]:
        """Open a home, migrating its ledger if it is older than the code.

        Raises:
            LedgerError: the ledger is newer than the code, or cannot be opened.
            RelationsError: the relations file does not hold together.
            UnknownRelationError: a selected relation is not described.
            SettingsError: the source is another Wikibase, and there is no relations file.
        """
        settings.home.mkdir(parents=True, exist_ok=True)
        relations = synced_relations(settings)
        on_point = crash_hook(settings.crash_at)
        ledger = Ledger.open(settings.resolved_ledger_url, on_point=on_point)
        try:
            yield cls(
                settings, ledger, CheckpointFiles(settings.checkpoints_dir, on_point=on_point), relations
            )
        finally:
            ledger.close()

    @property
    def model_name(self) -> str:
        """The model's name in the ledger."""
        return self.settings.resolved_model_name

    @property
    def model(self) -> Model | None:
        """The model as the ledger knows it; None if no sync has run for it."""
        return next((one for one in self.ledger.models() if one.name == self.model_name), None)

    @property
    def source(self) -> str:
        """The name of the read cursor: one an endpoint."""
        return self.settings.endpoint

    def owed(self, model: Model) -> list[EditRequestRow]:
        """The pending requests that a run may edit, oldest first.

        Settings may have changed since they were queued: those of a relation that is synced no more, or that
        a block list forbids, stay in the queue and are left alone.
        """
        trust = self.settings.trust
        return [
            row
            for row in self.ledger.owed(model)
            if row.property in self.relations and not trust.blocks(row.subject, row.property, row.value)
        ]

    def writer(self) -> contextlib.AbstractContextManager[Lease]:
        """The right to write the model, for one run."""
        return self.ledger.writer(
            self.model_name, f"factsync on {socket.gethostname()}, process {os.getpid()}"
        )

    @contextlib.contextmanager
    def run_closed(self, lease: Lease, run: int) -> Iterator[None]:
        """Close a run as failed if an error ends the block, and let the error go on.

        Whatever stood open is settled by the next run's recovery; the run itself says why it ended.
        """
        try:
            yield
        except BaseException as error:
            self.ledger.finish_run(lease, run, "failed", error=f"{type(error).__name__}: {error}")
            raise

    def feed(self) -> contextlib.AbstractContextManager[SparqlFeed | EntityDataFeed]:
        """A source of statements for one run: see `flows.source.opened_feed`.

        What is set for editing is looked at first, since asking a source takes minutes.

        Raises:
            SettingsError: no model could be edited with what is set.
        """
        if self.settings.device or self.settings.memit_file.exists():
            # torch, which commands that edit nothing do without.
            from flows.recipe import require_settings  # noqa: PLC0415

            require_settings(self.settings)
        return opened_feed(self.settings, self.relations)

    def reference_time(self, lag: datetime, as_of: datetime | None) -> datetime:
        """The one moment that a run judges everything at.

        Given, or else now; for the local store, whose content stands still, the moment it was taken.

        Raises:
            SettingsError: a given moment has no time zone.
        """
        if as_of is not None:
            if as_of.tzinfo is None:
                raise SettingsError("The reference time needs a time zone, such as 2026-09-01T02:00:00Z.")
            return as_of.astimezone(UTC)
        return lag if self.settings.is_embedded else datetime.now(UTC)


@contextlib.contextmanager
def opened_model(settings: Settings) -> Iterator[tuple[Workspace, Model]]:
    """Open a home to look at its model.

    Raises:
        UnknownModelNameError: no sync has run here for this model.
    """
    path = sqlite_path(parse_url(settings.resolved_ledger_url))
    if path is not None and not path.exists():
        raise _unknown(settings)
    with Workspace.open(settings) as ws:
        model = ws.model
        if model is None:
            raise _unknown(settings)
        yield ws, model


def _unknown(settings: Settings) -> UnknownModelNameError:
    where, other = f"in {settings.home}", "name another home with --home"
    if settings.ledger_url:
        url = parse_url(settings.resolved_ledger_url).render_as_string(hide_password=True)
        where, other = f"with the ledger {url}", "correct FACTSYNC_LEDGER_URL"
    return UnknownModelNameError(
        f"No sync has run {where} for the model {settings.resolved_model_name!r}: "
        f"run `factsync sync`, or {other}."
    )


def crash_hook(crash_at: str | None) -> OnPoint:
    """For the crash tests: end this very process, without any clean-up, at a named point."""
    return partial(_crash, crash_at) if crash_at else silent


def _crash(crash_at: str, name: str) -> None:
    if name == crash_at:
        os.kill(os.getpid(), signal.SIGKILL)
