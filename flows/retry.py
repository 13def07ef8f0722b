"""Which errors may pass by themselves: a question of type, asked in one place."""

from __future__ import annotations

from editor.errors import TransientEditorError
from kb.errors import TransientKBError
from storage.errors import TransientLedgerError

TRANSIENT = (TransientKBError, TransientLedgerError, TransientEditorError)


def is_transient(error: BaseException) -> bool:
    """Whether the same step may succeed later."""
    return isinstance(error, TRANSIENT)
