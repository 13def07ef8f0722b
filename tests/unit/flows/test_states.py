"""How errors become state names."""

from datetime import UTC, datetime

import pytest

from editor.errors import EditorError, TransientEditorError
from flows.cli.main import package_exit_code
from flows.errors import BackfillInputError, CandidateWaitsError, SettingsError
from flows.retry import is_transient
from flows.states import NAMES, Ending, failure_name, named_states
from kb.errors import KBError, StaleSourceError, TransientKBError
from storage.errors import LedgerError, LedgerUrlError, LockHeldError, UnknownCheckpointError

STALE = StaleSourceError("old", lag=datetime(2026, 9, 1, tzinfo=UTC), limit_hours=24.0)


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (LockHeldError("m", "someone", None), "Another writer"),
        (STALE, "Source too old"),
        (TransientKBError("gone"), "Source unreachable"),
        (KBError("odd"), "Source error"),
        (LedgerError("odd"), "Ledger error"),
        (TransientEditorError("full"), "Out of memory"),
        (EditorError("odd"), "Editor error"),
        (UnknownCheckpointError("feedbeef"), "Wrong input"),
        (LedgerUrlError("odd"), "Wrong input"),
        (CandidateWaitsError("x"), "A candidate waits"),
        (BackfillInputError("x"), "Wrong input"),
        (SettingsError("x"), "Wrong input"),
        (RuntimeError("x"), "Failed"),
    ],
)
def test_each_reason_has_its_name(error, name):
    assert failure_name(error) == name


def test_a_source_that_lags_is_not_asked_again_within_a_run():
    assert is_transient(TransientKBError("gone"))
    assert not is_transient(STALE)
    assert package_exit_code(STALE) == 3


def test_the_particular_comes_before_the_general():
    for index, (kind, _) in enumerate(NAMES):
        for later, _ in NAMES[index + 1 :]:
            assert not (issubclass(later, kind) and later is not kind), (kind, later)


class Result:
    """What a flow returns."""

    ending = Ending("Promoted", "fine")


def test_called_directly_a_flow_is_itself():
    result = Result()
    assert named_states(lambda: result)() is result


def test_run_by_a_worker_it_ends_in_a_named_state(monkeypatch):
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "8f3c7d9e-0d5e-4b5c-9d0e-2f4f3f8a1b2c")

    def gone():
        raise TransientKBError("no answer")

    def broken():
        raise RuntimeError

    state = named_states(Result)()
    assert (state.name, state.message, state.is_completed()) == ("Promoted", "fine", True)
    state = named_states(gone)()
    assert (state.name, state.message, state.is_failed()) == ("Source unreachable", "no answer", True)
    with pytest.raises(RuntimeError):
        named_states(broken)()
