"""A person at Prefect's interface starts a backfill, reads it, decides, cancels; the ledger agrees."""

import os
import time
from pathlib import Path

import pytest

from tests.integration.flows.browsing import CHROMIUM, browser
from tests.integration.flows.serving import prepared
from tests.integration.flows.serving import serving as running

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]

CANCELLED_S = 30.0
"""How long a run may go on after somebody cancelled it."""


@pytest.fixture(scope="module")
def served(tmp_path_factory, tiny_model_folder):
    home = tmp_path_factory.mktemp("browser") / "home"
    with running(prepared(home, tiny_model_folder), home, home / "up.log") as found:
        yield found


@pytest.fixture
def screens(tmp_path):
    """Where pictures go; CI keeps those of the folder that `FACTSYNC_SCREENSHOTS` names."""
    folder = Path(os.environ.get("FACTSYNC_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def interface(served):
    """A browser; at the end, nothing that it asked for was elsewhere."""
    with browser(served) as found:
        yield found
    assert found.abroad == set()


def test_a_dry_run_from_the_form(served, interface, screens):
    interface.form("backfill/backfill")
    interface.choose("relations", "head of state")
    interface.switch("dry_run")
    interface.page.screenshot(path=screens / "backfill-form.png", full_page=True)
    run = interface.submit()
    assert run.parameters["relations"] == ["P35 head of state"]
    assert run.parameters["dry_run"] is True
    interface.ended(run, "Dry run")
    interface.tab("Artifacts")
    interface.page.get_by_text("What a run would do").first.wait_for()
    interface.page.screenshot(path=screens / "backfill-run.png", full_page=True)
    assert not (served.home / "ledger.db").exists()


def candidate(interface, screens, relation, name):
    """Start a backfill that stops at a candidate, and read its artifacts."""
    interface.form("backfill/backfill")
    interface.choose("relations", relation)
    interface.write("limit", 6)
    interface.switch("approval")
    run = interface.submit()
    assert run.parameters["limit"] == 6
    interface.ended(run, "Waits for approval")
    interface.tab("Artifacts")
    for title in ("What changed, and what becomes of it", "Recall before and after", "Gates"):
        interface.page.get_by_text(title).first.wait_for()
    interface.page.screenshot(path=screens / f"{name}-artifacts.png", full_page=True)
    return run


def live_facts(served):
    """How many facts are live; none before the first run made a ledger."""
    return served.settled().live_facts if (served.home / "ledger.db").exists() else 0


def read(interface, artifact, text, picture):
    """Open an artifact's page and find a text on it."""
    interface.page.goto(f"{interface.served.url}/artifacts/artifact/{artifact.id}")
    interface.page.get_by_text(text).first.wait_for()
    interface.page.screenshot(path=picture, full_page=True)


def test_a_candidate_is_read_and_promoted(served, interface, screens):
    run = candidate(interface, screens, "head of government", "promote")
    waits = served.status().open_checkpoint
    assert waits.state == "candidate"
    assert served.status().head is None
    shown = served.artifacts(run)
    read(interface, shown["changes"], "a fact the model does not hold", screens / "changes.png")
    read(interface, shown["recall"], "The head of government of", screens / "recall.png")
    read(interface, shown["gates"], "Every gate passed", screens / "gates.png")
    read(interface, shown["checkpoint"], "factsync promote", screens / "checkpoint.png")

    interface.form("promote/promote")
    interface.write("checkpoint", waits.digest[:12])
    interface.write("decided_by", "Ada")
    interface.write("note", "read the recall table")
    interface.page.screenshot(path=screens / "promote-form.png", full_page=True)
    interface.ended(interface.submit(), "Promoted")
    found = served.settled()
    assert found.head.digest == waits.digest
    assert found.head.reason == "approved by Ada: read the recall table"
    assert found.live_facts == 6
    assert found.open_checkpoint is None


def test_a_candidate_is_turned_down_in_part(served, interface, screens):
    live = live_facts(served)
    candidate(interface, screens, "head of state", "reject")
    before = served.status()
    with served.opened() as (ws, _):
        carried = ws.ledger.claimed(before.open_checkpoint.id)
    dropped = carried[0].subject
    part = sum(1 for one in carried if one.subject == dropped)
    assert (len(carried), part) == (6, 1)

    interface.form("reject/reject")
    interface.field("drop_subjects").get_by_role("button", name="Add item").click()
    interface.field("drop_subjects").locator("textarea, input").first.fill(dropped)
    interface.write("decided_by", "Ada")
    interface.page.screenshot(path=screens / "reject-form.png", full_page=True)
    interface.ended(interface.submit(), "Rejected")
    found = served.settled()
    # The live model is as it was; what the candidate carried is owed again, but for the dropped one.
    assert found.head == before.head
    assert found.live_facts == live
    assert found.open_checkpoint is None
    assert found.owed == before.owed + len(carried) - part
    with served.opened() as (ws, model):
        assert dropped not in {
            one.subject for one in ws.ledger.owed(model) if one.property == carried[0].property
        }
        assert ws.ledger.query("SELECT DISTINCT subject FROM failed_edits").rows == ((dropped,),)


def test_a_run_is_cancelled_while_it_edits(served, interface, screens):
    live = live_facts(served)
    interface.form("backfill/backfill")
    interface.choose("relations", "head of government")
    interface.write("batch_size", 1)  # a checkpoint a fact: it goes on for longer than a page takes to load
    run = interface.submit()
    served.begun(run)
    interface.watch(run)
    interface.shows("Running")
    interface.page.screenshot(path=screens / "running.png", full_page=True)
    interface.page.get_by_role("button", name="Cancel", exact=True).first.click()
    dialog = interface.page.get_by_role("dialog")
    dialog.wait_for()
    interface.page.screenshot(path=screens / "cancel.png")
    began = time.monotonic()
    dialog.get_by_role("button", name="Confirm").click()
    ended = served.wait(run)
    served.released()
    assert time.monotonic() - began < CANCELLED_S
    assert ended.state.is_cancelled(), ended.state
    interface.shows("Cancelled")
    interface.page.screenshot(path=screens / "cancelled.png", full_page=True)
    assert served.status().last_run.state == "failed"
    # What was promoted before stays; what was begun is owed again once the next run settles it.
    again = served.wait(served.start("backfill/backfill", relations=["P6 head of government"], limit=2))
    assert again.state.name == "Promoted", again.state.message
    found = served.settled()
    assert found.live_facts >= live + 2
    assert found.open_checkpoint is None
