"""Fourteen nights, half of them broken: in the end the model holds what fourteen good nights give."""

import contextlib
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from flows.settings import Settings
from flows.sync import sync
from flows.workspace import opened_model
from kb.errors import KBError
from kb.store import LocalStore
from storage.doctor import examine
from storage.errors import LockHeldError

pytestmark = [pytest.mark.usefixtures("prefect_server"), pytest.mark.slow, pytest.mark.timeout(1500)]

FIRST = datetime(2026, 9, 1, 2, tzinfo=UTC)
NEWS = 8
"""The night from which on the source says what the sample's second night says."""


def killed_at(point):
    """A night whose process ends without any clean-up at a named point of the ledger or the files."""

    def night(_settings, at, _monkeypatch):
        code = "from flows.cli.main import main; main()"
        arguments = ["sync", "--as-of", f"{at:%Y-%m-%dT%H:%M:%S}", "--approve-burst"]
        child = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            env={**os.environ, "FACTSYNC_CRASH_AT": point, "PREFECT_API_URL": ""},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            assert child.wait(timeout=300) == -signal.SIGKILL
        finally:
            # Its servers outlive a process that had no time to end them.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)

    return night


def without_source(settings, at, _monkeypatch):
    """A night on which the knowledge base is gone."""
    away = settings.store_dir.with_suffix(".away")
    settings.store_dir.rename(away)
    with pytest.raises(KBError):
        sync(as_of=at)
    away.rename(settings.store_dir)


def beside_another_writer(settings, at, _monkeypatch):
    """A night on which somebody else holds the model."""
    with opened_model(settings) as (ws, _), ws.writer(), pytest.raises(LockHeldError):
        sync(as_of=at)


def rejected(_settings, at, monkeypatch):
    """A night that no gate lets through: the small random model says nothing word for word."""
    with monkeypatch.context() as patch:
        patch.setenv("FACTSYNC_GATE_EXACT", "1")
        patch.setenv("FACTSYNC_ISOLATE_TRIES", "0")
        sync(as_of=at, approve_burst=True)


def interrupted(_settings, at, monkeypatch):
    """A night that somebody stops while the edited model is asked."""

    def stop(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("flows.checking.sit_exam", stop)
        # Where nothing is owed nobody is asked, and the night ends well.
        with contextlib.suppress(KeyboardInterrupt):
            sync(as_of=at, approve_burst=True)


def good(_settings, at, _monkeypatch):
    """A night on which nothing fails."""
    sync(as_of=at, approve_burst=True)


BROKEN = {
    1: killed_at("ingest.inserted"),
    2: killed_at("files.renamed"),
    3: beside_another_writer,
    5: without_source,
    8: rejected,
    9: killed_at("promote.head"),
    10: interrupted,
    12: killed_at("record_plan.requests"),
}


def fortnight(settings, monkeypatch, broken):
    """Live through fourteen nights; return what is live and owed after them."""
    for number in range(1, 15):
        LocalStore(settings.store_dir).load_night(1 if number < NEWS else 2)
        night = broken.get(number, good)
        night(settings, FIRST + timedelta(days=number - 1), monkeypatch)
    with opened_model(settings) as (ws, model):
        found = examine(ws.ledger, model, ws.files).findings
        assert found == ()
        assert ws.ledger.query("SELECT COUNT(*) FROM sync_runs WHERE state = 'running'").rows == ((0,),)
        live = {(row.subject, row.property, row.slot, row.value) for row in ws.ledger.live_facts(model)}
        return live, len(ws.ledger.owed(model))


def test_broken_nights_come_to_the_same_as_good_ones(settings, tmp_path, monkeypatch):
    survived = fortnight(settings, monkeypatch, BROKEN)
    monkeypatch.setenv("FACTSYNC_HOME", str(tmp_path / "calm"))
    calm = Settings.read()
    calm.home.mkdir()
    calm.memit_file.write_bytes(settings.memit_file.read_bytes())
    assert survived == fortnight(calm, monkeypatch, {})
    assert survived[1] == 0
    assert survived[0]
