"""A dry run says what the sync would do, also where the ledger owes it a look. No model is needed."""

import pytest

from flows import night
from flows.dry_run import dry_run
from flows.workspace import Workspace
from kb.store import LocalStore
from tests.integration.flows.conftest import environment_of, prepared
from tests.unit.storage import steps


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Settings of a home with night one loaded, for a model that nothing here loads."""
    for name, value in environment_of(tmp_path / "home", "none").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FACTSYNC_RELATIONS", "")
    monkeypatch.setenv("FACTSYNC_MODEL_NAME", steps.MODEL)
    return prepared()


def read(settings):
    """Pull and store, as a sync does, and die before the plan."""
    with Workspace.open(settings) as ws, ws.feed() as feed:
        ws.ledger.ensure_model(ws.model_name, settings.model, steps.BASE)
        with ws.writer() as lease:
            pulled = night.pull(ws, lease.model, feed, night.probe(ws, feed))
            run = night.begin(ws, lease, pulled.seen)
            night.record(ws, lease, run, pulled)


def planned(settings):
    """Go on where `read` died, as the next sync does; what is owed becomes live without an editor."""
    with Workspace.open(settings) as ws, ws.feed() as feed, ws.writer() as lease:
        pulled = night.pull(ws, lease.model, feed, night.probe(ws, feed))
        run = night.begin(ws, lease, pulled.seen)
        night.record(ws, lease, run, pulled)
        made, _ = night.plan(ws, lease, run, pulled)
        ws.ledger.promote(lease, steps.make_candidate(ws.ledger, lease, run, ws.files), reason="test")
        return made


def decided(plan):
    """What becomes of each fact."""
    return {(one.subject, one.property, one.slot): (one.kind, one.reason) for one in plan.changes}


def news(plan):
    """The same, without what stays as it is: a dry run looks at more of that than a sync."""
    return {scope: found for scope, found in decided(plan).items() if found[0].value != "unchanged"}


def test_what_was_read_and_never_planned_is_shown(settings):
    read(settings)
    shown = dry_run(settings)
    assert shown.edits
    assert decided(shown) == decided(planned(settings))


def test_a_merge_is_shown_before_it_is_read_and_before_it_is_planned(settings):
    read(settings)
    planned(settings)
    LocalStore(settings.store_dir).load_night(2)
    ahead = dry_run(settings)
    read(settings)
    shown = dry_run(settings)
    made = planned(settings)
    assert decided(shown) == decided(made)
    assert news(ahead) == news(made)


def test_another_model_of_the_same_ledger_has_looked_at_nothing_yet(settings):
    read(settings)
    first = planned(settings)
    other = settings.model_copy(update={"model_name": "other"})
    assert decided(dry_run(other)) == decided(first)
