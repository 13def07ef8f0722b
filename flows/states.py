"""How a run ended, in the words a person reads in the interface.

Called as a function, a flow returns its result or raises. Run by a worker it ends in a state whose name says
why: "Rejected by a gate", "Source unreachable", "Another writer". Nothing in the ledger depends on it.
"""

from __future__ import annotations

import functools
import inspect
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, ParamSpec, Protocol, TypeVar, cast

from prefect.client.schemas.objects import State, StateType
from prefect.runtime import deployment

from editor.errors import EditorError, TransientEditorError
from flows import artifacts
from flows.errors import CandidateWaitsError, FlowError
from kb.errors import (
    BannedError,
    KBError,
    RelationsError,
    StaleSourceError,
    TransientKBError,
    UnknownRelationError,
)
from storage.errors import (
    CorruptCheckpointError,
    DiskFullError,
    LedgerBusyError,
    LedgerConnectionLostError,
    LedgerError,
    LedgerUrlError,
    LockHeldError,
    MissingCheckpointError,
    OpenCheckpointError,
    StaleLeaseError,
    UnknownCheckpointError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
R = TypeVar("R", bound="Outcome")

log = logging.getLogger(__name__)

NAMES: tuple[tuple[type[BaseException], str], ...] = (
    (LockHeldError, "Another writer"),
    (StaleLeaseError, "Overtaken by another writer"),
    (OpenCheckpointError, "A candidate waits"),
    (CorruptCheckpointError, "Damaged checkpoint"),
    (MissingCheckpointError, "Damaged checkpoint"),
    (DiskFullError, "Disk full"),
    (LedgerBusyError, "Ledger unreachable"),
    (LedgerConnectionLostError, "Ledger unreachable"),
    (UnknownCheckpointError, "Wrong input"),
    (LedgerUrlError, "Wrong input"),
    (LedgerError, "Ledger error"),
    (BannedError, "Banned by the source"),
    (UnknownRelationError, "Wrong input"),
    (RelationsError, "Wrong input"),
    (StaleSourceError, "Source too old"),
    (TransientKBError, "Source unreachable"),
    (KBError, "Source error"),
    (TransientEditorError, "Out of memory"),
    (EditorError, "Editor error"),
    (CandidateWaitsError, "A candidate waits"),
    (FlowError, "Wrong input"),
)
"""State names of failures, the particular before the general; docs/operate.md lists them."""


class Outcome(Protocol):
    """What a flow of ours returns."""

    @property
    def ending(self) -> Ending:
        """How it ended."""
        ...


@dataclass(frozen=True, slots=True)
class Ending:
    """A run's end.

    Attributes:
        name: of the state.
        message: one sentence.
        ok: False if somebody should look.
    """

    name: str
    message: str
    ok: bool = True


def beside(rebuilt: Outcome | None, held: str) -> str:
    """What came beside a run's own work, in sentences.

    Args:
        rebuilt: the rebuild that followed by policy, if one did.
        held: what the burst guard holds back; empty if nothing.
    """
    after = f" Rebuild: {rebuilt.ending.message}" if rebuilt is not None else ""
    return after + (f" Held by the burst guard: {held}." if held else "")


def failure_name(error: BaseException) -> str:
    """The state name of an error of ours; "Failed" for any other."""
    return next((name for kind, name in NAMES if isinstance(error, kind)), "Failed")


def named_states(function: Callable[P, R]) -> Callable[P, R]:
    """Let a flow that a worker runs end in a state that says why; called directly it is itself.

    Only named errors become named states: anything else stays a failure with its traceback.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if deployment.id is None:
            return function(*args, **kwargs)
        with artifacts.shown_in_the_interface():
            try:
                ending = function(*args, **kwargs).ending
            except tuple(kind for kind, _ in NAMES) as error:
                log.exception("The run failed")
                ending = Ending(failure_name(error), str(error), ok=False)
        kind = StateType.COMPLETED if ending.ok else StateType.FAILED
        # Prefect takes a returned state for the run's own; only a worker sees it.
        return cast("R", State(type=kind, name=ending.name, message=ending.message))

    # Prefect reads the parameters' types from the function it holds, in that function's own module.
    run.__signature__ = inspect.signature(function, eval_str=True)  # type: ignore[attr-defined]
    return run
