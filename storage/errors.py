"""What can go wrong in the ledger, as one tree.

LedgerError
├── LedgerOpenError
│   ├── LedgerNewerThanCodeError    the database was migrated by a newer factsync
│   ├── LedgerOutdatedError         the database needs a migration and none was allowed
│   ├── LedgerUrlError              not a database that can hold a ledger
│   └── MigrationError              a migration failed and was rolled back
├── ModelMismatchError              a model name is known with another base
├── UnknownModelError               no model of that name
├── LockHeldError                   another process is the writer
├── StaleLeaseError                 this process was the writer, and no longer is
├── CursorPastLagError              a cursor would pass what the source had delivered
├── UnknownStatementError           a plan rests on a statement that was never ingested
├── ConflictStandsError             a person cannot decide a conflict
├── CheckpointError
│   ├── UnknownCheckpointError      no such row
│   ├── CheckpointStateError        the step does not fit the checkpoint's state
│   ├── OpenCheckpointError         another checkpoint of the model waits for a decision
│   ├── MissingCheckpointError      the row exists, its files do not
│   ├── CorruptCheckpointError      the files are not what their digest says
│   └── UnsafeFileError             a file that must not be stored in or loaded from a checkpoint
├── ForeignCheckpointsError         the folder of checkpoints belongs to another ledger
├── LedgerReadOnlyError             the database cannot be written
├── DiskFullError                   no room for the ledger or for a checkpoint
├── QueryRefusedError               a query of the read-only shell was refused or failed
└── TransientLedgerError            worth another try
    ├── LedgerBusyError             locked by another writer for longer than the time limit
    └── LedgerConnectionLostError   the connection went away; the transaction did not happen
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime


class LedgerError(Exception):
    """Base of everything that storage raises on purpose."""


class TransientLedgerError(LedgerError):
    """The same call may succeed a little later."""


class LedgerOpenError(LedgerError):
    """The ledger could not be opened."""


class LedgerNewerThanCodeError(LedgerOpenError):
    """The database carries a revision that this code does not know.

    Attributes:
        revision: The unknown revision.
    """

    def __init__(self, revision: str) -> None:
        self.revision = revision
        super().__init__(
            f"The ledger is at revision {revision}, which this factsync does not know: "
            "update factsync, or open a ledger made by this version."
        )


class LedgerOutdatedError(LedgerOpenError):
    """The database is behind the code and migrating was not allowed.

    Attributes:
        found: Revision of the database, None for an empty one.
        wanted: Revision of the code.
    """

    def __init__(self, found: str | None, wanted: str) -> None:
        self.found = found
        self.wanted = wanted
        super().__init__(
            f"The ledger is at revision {found or 'none'} and this factsync needs {wanted}: "
            "open it once with migrations allowed (any writing command does)."
        )


class LedgerUrlError(LedgerOpenError):
    """The address names no database that can hold a ledger."""


class MigrationError(LedgerOpenError):
    """A migration failed; the database is as it was before."""


class ModelMismatchError(LedgerError):
    """A model of this name is in the ledger with another base.

    Attributes:
        name: The model's name.
        known: Digest of the base in the ledger.
        given: Digest of the base that was offered.
    """

    def __init__(self, name: str, known: str, given: str) -> None:
        self.name = name
        self.known = known
        self.given = given
        super().__init__(
            f"Model {name!r} was registered with base {known[:12]}, not {given[:12]}: "
            "use the original base, or register the new one under another name."
        )


class UnknownModelError(LedgerError):
    """No model of this name is in the ledger."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"The ledger knows no model {name!r}: run a sync first, or check the name.")


class LockHeldError(LedgerError):
    """Another process is the writer of this model.

    Attributes:
        model: Name of the model.
        holder: Who holds the lock, in its own words.
        since: When it took it, if known.
    """

    def __init__(self, model: str, holder: str, since: datetime | None) -> None:
        self.model = model
        self.holder = holder
        self.since = since
        when = f" since {since:%Y-%m-%d %H:%M:%S} UTC" if since else ""
        super().__init__(
            f"Model {model!r} is being written by {holder}{when}: wait until it has finished, or stop it."
        )


class StaleLeaseError(LedgerError):
    """This process lost its lease; nothing of the refused step was written.

    Attributes:
        model: Name of the model.
        epoch: The epoch of the lost lease.
        current: The epoch in the ledger now.
    """

    def __init__(self, model: str, epoch: int, current: int) -> None:
        self.model = model
        self.epoch = epoch
        self.current = current
        super().__init__(
            f"The lease {epoch} on model {model!r} was taken over (now {current}): "
            "another writer went on from here; start a new run."
        )


class CursorPastLagError(LedgerError):
    """A cursor may never pass what its source had delivered."""

    def __init__(self, source: str, cursor_to: datetime, lag_at: datetime) -> None:
        self.source = source
        self.cursor_to = cursor_to
        self.lag_at = lag_at
        super().__init__(
            f"The cursor of {source!r} would move to {cursor_to.isoformat()}, past the source's own "
            f"{lag_at.isoformat()}: move it to the source's time at most."
        )


class UnknownStatementError(LedgerError):
    """A request names a statement that was never ingested."""

    def __init__(self, statement: str) -> None:
        self.statement = statement
        super().__init__(
            f"No statement {statement} is in the ledger: ingest what was pulled before planning."
        )


class ConflictStandsError(LedgerError):
    """A conflict has no value that a person could let through.

    Attributes:
        pending: Its id among what is held back.
    """

    def __init__(self, pending: int) -> None:
        self.pending = pending
        super().__init__(
            f"{pending} is a conflict, and only Wikidata can decide it: correct it there, or wait until all "
            "but one of its values have ended."
        )


class CheckpointError(LedgerError):
    """Something is wrong with a checkpoint.

    Attributes:
        checkpoint: Its id in the ledger or its digest.
    """

    def __init__(self, checkpoint: int | str, message: str) -> None:
        self.checkpoint = checkpoint
        super().__init__(message)


class UnknownCheckpointError(CheckpointError):
    """No such checkpoint row."""

    def __init__(self, checkpoint: int | str) -> None:
        super().__init__(
            checkpoint,
            f"The ledger knows no checkpoint {checkpoint}: list them with `factsync checkpoint list`.",
        )


class CheckpointStateError(CheckpointError):
    """The step does not fit the checkpoint's state.

    Attributes:
        state: The state it is in.
        step: What was tried.
    """

    def __init__(self, checkpoint: int | str, state: str, step: str) -> None:
        self.state = state
        self.step = step
        super().__init__(checkpoint, f"Checkpoint {checkpoint} is {state}; it cannot be {step}.")


class OpenCheckpointError(CheckpointError):
    """Another checkpoint of this model waits for a decision."""

    def __init__(self, checkpoint: int | str, state: str) -> None:
        self.state = state
        super().__init__(
            checkpoint,
            f"Checkpoint {checkpoint} is still {state}: promote or reject it before making another.",
        )


class MissingCheckpointError(CheckpointError):
    """The files of a checkpoint are not there."""

    def __init__(self, checkpoint: str, path: str) -> None:
        self.path = path
        super().__init__(
            checkpoint,
            f"The files of checkpoint {checkpoint[:12]} are missing at {path}: restore them from a copy.",
        )


class CorruptCheckpointError(CheckpointError):
    """The files of a checkpoint are not what its digest says; nothing was loaded.

    Attributes:
        path: The file at fault.
    """

    def __init__(self, checkpoint: str, path: str, why: str) -> None:
        self.path = path
        super().__init__(
            checkpoint,
            f"Checkpoint {checkpoint[:12]} is damaged ({path}: {why}): restore it from a copy or roll back.",
        )


class UnsafeFileError(CheckpointError):
    """Only safetensors and JSON files belong in a checkpoint."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(
            name,
            f"The file name {name!r} is not allowed in a checkpoint: use a plain .safetensors or .json name.",
        )


class ForeignCheckpointsError(LedgerError):
    """The folder of checkpoints belongs to another ledger; nothing in it was touched.

    Attributes:
        root: The folder.
        owner: Id of the ledger it belongs to, None if it names none.
        ledger: Id of the ledger at hand.
    """

    def __init__(self, root: str, owner: str | None, ledger: str) -> None:
        self.root = root
        self.owner = owner
        self.ledger = ledger
        whose = f"ledger {owner}" if owner else "a ledger that it does not name"
        super().__init__(
            f"The folder {root} holds the checkpoints of {whose}, not of this ledger {ledger}: "
            "check the ledger's URL, or move the folder away to begin anew."
        )


class LedgerReadOnlyError(LedgerError):
    """The database, or the folder it lies in, cannot be written."""


class DiskFullError(LedgerError):
    """There is no room left; nothing half-written remains."""


class QueryRefusedError(LedgerError):
    """A query of the read-only shell was refused, or failed."""


class LedgerBusyError(TransientLedgerError):
    """Another writer kept the database locked for longer than the time limit."""


class LedgerConnectionLostError(TransientLedgerError):
    """The connection to the database went away; the transaction did not happen."""
