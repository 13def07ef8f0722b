"""Nothing leaves the machine: not from server, worker and runs, nor from either of Prefect's interfaces."""

import pytest

from tests.integration.flows.browsing import CHROMIUM, browser
from tests.integration.flows.serving import prepared
from tests.integration.flows.serving import serving as running

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]

ASKED_BY_V2 = {"sr-client-cfg.amplitude.com"}
"""Whom Prefect 3.8's second interface asks, on every page and with analytics off."""

PAGES = {
    "v1": ("/dashboard", "/runs", "/deployments", "/automations", "/settings"),
    "v2": ("/v2/dashboard", "/v2/runs", "/v2/deployments", "/v2/automations", "/v2/artifacts"),
}


@pytest.fixture(scope="module", params=["v1", "v2"])
def served(request, tmp_path_factory, tiny_model_folder):
    """Once as it is by default, once with the second interface chosen."""
    home = tmp_path_factory.mktemp("silence") / "home"
    values = prepared(home, tiny_model_folder)
    if request.param == "v2":
        values["FACTSYNC_UI"] = "v2"
    with running(values, home, home / "up.log") as found:
        found.chosen = request.param
        yield found


def look_around(interface, pages):
    for path in pages:
        interface.page.goto(interface.served.url + path)
        interface.page.wait_for_load_state("networkidle")


def test_neither_interface_asks_anyone_else(served):
    with browser(served) as interface:
        look_around(interface, ["/"])
        version = "v2" if "/v2" in interface.page.url else "v1"
        assert version == served.chosen
        look_around(interface, PAGES[version])
        if version == "v1":  # the other one is a click away
            interface.page.get_by_text("Switch to V2").first.click()
            interface.page.wait_for_url("**/v2/**")
        look_around(interface, PAGES["v1" if version == "v2" else "v2"])
    assert interface.abroad == set()


def test_what_the_pages_are_kept_from(served):
    """The trap works: a browser that overlooks what the pages forbid asks the vendor, from V2 alone."""
    with browser(served, obeys=False) as interface:
        look_around(interface, PAGES["v1"])
        interface.page.wait_for_timeout(2_000)
    assert interface.abroad == set()
    with browser(served, obeys=False) as interface:
        look_around(interface, PAGES["v2"])
        interface.page.wait_for_timeout(2_000)
    assert interface.abroad == ASKED_BY_V2


def test_server_worker_and_runs_call_nobody(served):
    run = served.wait(served.start("backfill/backfill", relations=["P6 head of government"], limit=2))
    assert run.state.name == "Promoted", run.state.message
    assert served.called() == set()
    assert served.trap.calls == []
