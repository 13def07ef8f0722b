"""Prefect's interface in a real browser, as a person uses it, and whom the browser calls meanwhile."""

import re
import shutil
from contextlib import contextmanager
from urllib.parse import urlsplit

from playwright.sync_api import expect, sync_playwright

from tests.integration.flows.serving import Trap

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OF_THE_BROWSER = ("google.com", "googleapis.com", "gvt1.com")
"""Whom Chromium itself asks, whatever page is open."""


class Interface:
    """One page of the first interface.

    Attributes:
        page: the browser's.
        abroad: hosts that a page asked for, beside this machine.
    """

    def __init__(self, served, page):
        self.served, self.page, self.abroad = served, page, set()
        page.set_default_timeout(60_000)
        page.context.on("request", lambda request: self._note(request.url))
        page.on("websocket", lambda socket: self._note(socket.url))

    def _note(self, url):
        if not url.startswith(
            ("about:", self.served.url, self.served.url.replace("http", "ws"), "data:", "blob:")
        ):
            self.abroad.add(urlsplit(url).hostname)

    def form(self, deployment):
        """Open the form of a deployment's custom run."""
        with self.served.client as client:
            found = client.read_deployment_by_name(deployment)
        self.page.goto(f"{self.served.url}/deployments/deployment/{found.id}/run")
        self.page.locator(".schema-form-property").first.wait_for()

    def field(self, name):
        """A field of the form."""
        label = self.page.get_by_text(f"{name} (Optional)", exact=True)
        return self.page.locator(".schema-form-property").filter(has=label)

    def write(self, name, text):
        """Write into a field."""
        self.field(name).locator("textarea, input").first.fill(str(text))

    def switch(self, name):
        """Turn a switch on."""
        self.field(name).get_by_role("switch").click()
        expect(self.field(name).get_by_role("switch")).to_have_attribute("aria-checked", "true")

    def choose(self, name, text):
        """Choose from a list."""
        self.field(name).get_by_role("button", name="No items selected").press("ArrowDown")  # it opens
        self.page.get_by_role("option").filter(has_text=text).click()
        self.page.get_by_text("Parameters", exact=True).first.click()  # and closes

    def submit(self):
        """Submit the form; returns the run it made."""
        button = self.page.get_by_role("button", name="Submit")
        answer = None
        # A server on SQLite that is busy says so (503), and a person presses again.
        while answer is None or answer.status == 503:
            with self.page.expect_response(re.compile("/create_flow_run$"), timeout=120_000) as waited:
                button.click()
            answer = waited.value
        assert answer.status == 201, answer.text()
        with self.served.client as client:
            return client.read_flow_run(answer.json()["id"])

    def watch(self, run):
        """Open a run's page."""
        self.page.goto(f"{self.served.url}/runs/flow-run/{run.id}")

    def shows(self, state):
        """Wait until a run's page shows this state."""
        self.page.get_by_text(state, exact=True).first.wait_for(timeout=180_000)

    def ended(self, run, state):
        """Wait for the end of a run, and see it on the run's page."""
        # Drawing the run's moving graph takes more of a processor than the run.
        self.page.goto("about:blank")
        self.served.wait(run)
        self.watch(run)
        self.shows(state)

    def tab(self, name):
        """Change to a tab of a run's page."""
        self.page.get_by_text(name, exact=True).first.click()


@contextmanager
def browser(served, *, obeys=True):
    """A browser without a past; what it sends abroad ends in a trap.

    Args:
        served: whose interface to open.
        obeys: False lets it overlook what a page forbids itself.
    """
    trap = Trap()
    with sync_playwright() as play:
        chromium = play.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", f"--proxy-server={trap.url}"]
        )
        try:
            context = chromium.new_context(viewport={"width": 1400, "height": 1700}, bypass_csp=not obeys)
            interface = Interface(served, context.new_page())
            yield interface
            interface.abroad |= {
                host for host in map(_host, trap.calls) if host and not host.endswith(OF_THE_BROWSER)
            }
        finally:
            chromium.close()
            trap.close()


def _host(call):
    """Whom a request to a proxy is for; nothing if the connection was only opened."""
    found = re.match(rb"[A-Z]+ (?:https?://)?([^/: ]+)", call)
    return found and found[1].decode()
