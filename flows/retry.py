"""Which errors may pass by themselves: a question of type, asked in one place."""

from __future__ import annotations

from editor.errors import TransientEditorError
from kb.errors import StaleSourceError, TransientKBError
from storage.errors import TransientLedgerError

TRANSIENT = (TransientKBError, TransientLedgerError, TransientEditorError)
LASTING = (StaleSourceError,)
"""Pass by themselves too, but not within a run: a source that lags by a day does not catch up in minutes."""


def is_transient(error: BaseException) -> bool:
    """Whether the same step may succeed a little later in the same run."""
    return isinstance(error, TRANSIENT) and not isinstance(error, LASTING)
