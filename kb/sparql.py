"""Asking a SPARQL endpoint politely, and believing only whole, well-formed answers.

How a request travels is in `kb.http`; what each fault becomes is in ``errors.py``; the faults themselves
(HTML with 200, truncated JSON with 200, 429 storms, bans, drips, redirects) are played by a real server in
the tests.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, NoReturn, TypeVar
from urllib.parse import urljoin, urlsplit

from kb.budget import BanMemory, Clock, QueryBudget, VolatileBans, backoff_s
from kb.errors import (
    BadQueryError,
    BannedError,
    EndpointDownError,
    EndpointMovedError,
    EndpointNotFoundError,
    EndpointTimeoutError,
    EndpointUnreachableError,
    ForbiddenError,
    NotSparqlReplyError,
    ThrottledError,
    TruncatedReplyError,
)
from kb.http import Reply, exchange, get

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kb.endpoint import Endpoint
    from kb.errors import EndpointError

T = TypeVar("T")
_LOG = logging.getLogger(__name__)
_BANNED = re.compile(r"banned until\s+(\d{4}-\d\d-\d\dT[0-9:.]+(?:Z|[+-]\d\d:?\d\d)?)", re.IGNORECASE)
_TIMEOUT_WORDS = ("TimeoutException", "QueryTimeoutException", "Query timeout", "query was cancelled")
_JSON_TYPES = {"application/sparql-results+json", "application/json"}
_REDIRECTS = {301, 302, 303, 307, 308}
_MOST_REDIRECTS = 4
_WORTH_ASKING_AGAIN = (EndpointDownError, ThrottledError, EndpointUnreachableError, NotSparqlReplyError)
_DEFAULT_BAN = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class Node:
    """One bound value of a result row. ``kind`` is "uri", "literal" or "bnode"."""

    kind: str
    text: str
    language: str = ""
    datatype: str = ""


Row = dict[str, Node]


class Transport:
    """Sends queries to one endpoint, within its limits.

    Thread-safe: at most ``endpoint.parallel`` queries run at once, and all share budget, waits and ban.
    """

    def __init__(
        self, endpoint: Endpoint, *, clock: Clock | None = None, bans: BanMemory | None = None
    ) -> None:
        """Refuses an endpoint without a contact.

        Raises:
            ContactMissingError: the User-Agent names none.
        """
        self.endpoint = endpoint
        self.agent = endpoint.agent
        self.clock = clock or Clock()
        self._bans: BanMemory = bans or VolatileBans()
        self._budget = QueryBudget(endpoint.query_seconds_per_minute, self.clock)
        self._slots = threading.BoundedSemaphore(endpoint.parallel)
        self._pause_lock = threading.Lock()
        self._paused_until = 0.0

    def select(self, query: str, variables: Sequence[str]) -> list[Row]:
        """Run a SELECT and return its rows.

        Args:
            query: SPARQL 1.1 text.
            variables: the variables that the result must declare, no more and no fewer.

        Returns:
            The rows, in the service's order; unbound variables are absent from a row.

        Raises:
            EndpointError: one of its kinds, after the attempts are spent. Timeouts and truncated replies are
                raised at once: asking the same again rarely helps, asking for less does.
        """
        return self._persist(lambda: self._ask(query, variables), _WORTH_ASKING_AGAIN)

    def fetch(self, url: str) -> bytes | None:
        """Get a JSON document below the endpoint's URL.

        Args:
            url: of the document. Redirects are followed within the endpoint's host.

        Returns:
            Its bytes; None if there is none (404, 410).

        Raises:
            EndpointError: one of its kinds, after the attempts are spent. Timeouts and truncated replies are
                tried again too: there is no less to ask for.
        """
        again = (*_WORTH_ASKING_AGAIN, EndpointTimeoutError, TruncatedReplyError)
        return self._persist(lambda: self._get(url), again)

    def _persist(self, ask: Callable[[], T], again: tuple[type[EndpointError], ...]) -> T:
        attempt = 0
        while True:
            self._refuse_if_banned()
            try:
                with self._slots:
                    self._wait_for_turn()
                    return ask()
            except again as error:
                attempt += 1
                wait_s = getattr(error, "retry_after_s", None)
                if wait_s is None:
                    wait_s = backoff_s(attempt, self.clock)
                elif wait_s <= self.endpoint.max_wait_s:
                    # Retry-After binds all queries of this client; a little jitter parts the parallel ones
                    wait_s += backoff_s(0, self.clock)
                    self._pause(wait_s)
                if attempt >= self.endpoint.max_attempts or wait_s > self.endpoint.max_wait_s:
                    raise
                _LOG.info(
                    "Attempt %d on %s failed (%s); waiting %.1f s.", attempt, self.endpoint.url, error, wait_s
                )
                self.clock.sleep(wait_s)

    def _pause(self, seconds: float) -> None:
        with self._pause_lock:
            self._paused_until = max(self._paused_until, self.clock.monotonic() + seconds)

    def _wait_for_turn(self) -> None:
        while True:
            with self._pause_lock:
                pause_s = self._paused_until - self.clock.monotonic()
            wait_s = max(self._budget.wait_s(), pause_s)
            if wait_s <= 0:
                return
            self.clock.sleep(wait_s)
            self._refuse_if_banned()

    def _refuse_if_banned(self) -> None:
        until = self._bans.until(self.endpoint.url)
        if until is not None and self.clock.now() < until:
            raise self._banned(until)

    def _banned(self, until: datetime) -> BannedError:
        return BannedError(
            f"{self.endpoint.url} refuses this client until {until:%Y-%m-%d %H:%M} UTC; "
            "nothing is sent before. Run again after that, with fewer parallel queries.",
            url=self.endpoint.url,
            until=until,
        )

    def _get(self, url: str) -> bytes | None:
        here = urlsplit(self.endpoint.url)
        for _ in range(_MOST_REDIRECTS):
            begun = self.clock.monotonic()
            try:
                reply = get(self.endpoint, url)
            finally:
                self._budget.spend(self.clock.monotonic() - begun)
            if reply.status in {404, 410}:
                return None
            target = urljoin(url, reply.headers.get("Location") or url)
            moved = reply.status in _REDIRECTS and target != url
            if not moved or urlsplit(target)[:2] != here[:2]:
                break
            url = target
        if reply.status not in {200, 204}:
            self._raise_for(reply, url)
        if not reply.body.strip():
            raise TruncatedReplyError(
                f"{url} answered with nothing; it may answer a moment later.",
                url=self.endpoint.url,
                received_bytes=0,
            )
        self._refuse_cut_or_foreign(reply)
        return reply.body

    def _refuse_cut_or_foreign(self, reply: Reply) -> None:
        content_type = reply.headers.get_content_type()
        if content_type not in _JSON_TYPES:
            raise self._not_sparql(content_type, reply.body, f"content type {content_type}")
        try:
            json.loads(reply.body)
        except UnicodeDecodeError as error:
            raise self._not_sparql(content_type, reply.body, "bytes that are no UTF-8") from error
        except (ValueError, RecursionError) as error:
            raise TruncatedReplyError(
                f"The reply of {self.endpoint.url} is no whole JSON ({len(reply.body)} bytes).",
                url=self.endpoint.url,
                received_bytes=len(reply.body),
            ) from error

    def _ask(self, query: str, variables: Sequence[str]) -> list[Row]:
        begun = self.clock.monotonic()
        try:
            reply = exchange(self.endpoint, query)
        finally:
            self._budget.spend(self.clock.monotonic() - begun)
        if reply.status != 200:  # noqa: PLR2004  (OK)
            self._raise_for(reply, query)
        return self._rows(reply, variables)

    def _raise_for(self, reply: Reply, query: str) -> NoReturn:
        url, status = self.endpoint.url, reply.status
        # Blazegraph's page of an error begins with the query that was asked, all of it.
        text = reply.body.decode("utf-8", "replace").replace(query, "", 1)
        retry_after_s = self._retry_after_s(reply.headers.get("Retry-After"))
        if status == 429:  # noqa: PLR2004
            raise ThrottledError(
                f"{url} asks us to slow down; run again later or with fewer parallel queries.",
                url=url,
                retry_after_s=retry_after_s,
            )
        if status in {401, 403}:
            self._raise_forbidden(text, status, retry_after_s)
        if 300 <= status < 400:  # noqa: PLR2004
            location = reply.headers.get("Location", "")
            raise EndpointMovedError(
                f"{url} redirects to {location or 'nowhere'}; set the endpoint to the new URL.",
                url=url,
                status=status,
                location=location,
            )
        if status in {404, 405, 410}:
            raise EndpointNotFoundError(
                f"No SPARQL endpoint at {url} (HTTP {status}).", url=url, status=status
            )
        if status in {408, 504} or any(word in text for word in _TIMEOUT_WORDS):
            raise EndpointTimeoutError(
                f"{url} ended the query at its own deadline; ask for less.",
                url=url,
                timeout_s=self.endpoint.timeout_s,
            )
        if status >= 500:  # noqa: PLR2004
            raise EndpointDownError(
                f"{url} is failing (HTTP {status}); try again later.",
                url=url,
                status=status,
                retry_after_s=retry_after_s,
            )
        raise BadQueryError(
            f"{url} rejected the query (HTTP {status}): {' '.join(text.split())[:200]}",
            url=url,
            query=query,
            reply=text,
        )

    def _raise_forbidden(self, text: str, status: int, retry_after_s: float | None) -> NoReturn:
        match = _BANNED.search(text)
        if match or "banned" in text.lower():
            now = self.clock.now()
            until = now + (timedelta(seconds=retry_after_s) if retry_after_s is not None else _DEFAULT_BAN)
            if match:
                try:
                    named = datetime.fromisoformat(match[1])
                except ValueError:
                    named = until
                until = named if named.tzinfo else named.replace(tzinfo=UTC)
            self._bans.remember(self.endpoint.url, until)
            raise self._banned(until)
        raise ForbiddenError(
            f"{self.endpoint.url} refuses this client (HTTP {status}); check the User-Agent's contact.",
            url=self.endpoint.url,
            status=status,
        )

    def _retry_after_s(self, header: str | None) -> float | None:
        """Seconds of a Retry-After header in either of its forms (RFC 9110, 10.2.3); None if unreadable."""
        if header is None:
            return None
        text = header.strip()
        if text.isascii() and text.isdigit():
            return float(text)
        try:
            at = parsedate_to_datetime(text)
        except (ValueError, TypeError):
            return None
        at = at if at.tzinfo else at.replace(tzinfo=UTC)
        return max(0.0, (at - self.clock.now()).total_seconds())

    def _rows(self, reply: Reply, variables: Sequence[str]) -> list[Row]:
        content_type = reply.headers.get_content_type()
        try:
            text = reply.body.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._not_sparql(content_type, reply.body, "bytes that are no UTF-8") from error
        if content_type not in _JSON_TYPES:
            raise self._not_sparql(content_type, reply.body, f"content type {content_type}")
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            if any(word in text for word in _TIMEOUT_WORDS):
                raise EndpointTimeoutError(
                    f"{self.endpoint.url} ended the query at its own deadline, in its reply; ask for less.",
                    url=self.endpoint.url,
                    timeout_s=self.endpoint.timeout_s,
                ) from error
            raise TruncatedReplyError(
                f"The reply of {self.endpoint.url} is no whole JSON ({len(reply.body)} bytes); "
                "a smaller question may succeed.",
                url=self.endpoint.url,
                received_bytes=len(reply.body),
            ) from error
        try:
            names = raw["head"]["vars"]
            bindings = raw["results"]["bindings"]
            if sorted(names) != sorted(variables):
                raise self._not_sparql(content_type, reply.body, f"variables {names!r}")
            return [{name: _node(value) for name, value in row.items()} for row in bindings]
        except (KeyError, TypeError, AttributeError) as error:
            raise self._not_sparql(content_type, reply.body, "JSON of another shape") from error

    def _not_sparql(self, content_type: str, body: bytes, what: str) -> NotSparqlReplyError:
        return NotSparqlReplyError(
            f"{self.endpoint.url} answered with {what} instead of the result asked for; "
            "a proxy may stand in between, or the URL may be wrong.",
            url=self.endpoint.url,
            content_type=content_type,
            start=body[:200].decode("utf-8", "replace"),
        )


def _node(raw: dict[str, str]) -> Node:
    kind = raw["type"]
    if kind == "typed-literal":  # the working draft's name, still sent by some services
        kind = "literal"
    if kind not in {"uri", "literal", "bnode"} or not isinstance(raw["value"], str):
        raise TypeError
    return Node(kind, raw["value"], raw.get("xml:lang", ""), raw.get("datatype", ""))
