"""Where and how to ask: an endpoint, its names, and its manners. Any Wikibase is a matter of these values."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field, fields
from enum import StrEnum
from urllib.parse import urlsplit

from kb.errors import BadTermError, ContactMissingError
from kb.terms import IRI

_CONTACT = re.compile(r"[^\s@()<>]+@[^\s@()<>]+\.[^\s@()<>]+|https?://[^\s()<>]+\.[^\s()<>]+", re.ASCII)
_PLACEHOLDER_CONTACTS = ("example.com", "example.org", "example.net", "@localhost")
_LOCAL_ID = re.compile(r"[QPL][1-9][0-9]{0,17}", re.ASCII)


class Layout(StrEnum):
    """Where an item's version stands in the graph.

    ``MUNGED``: on the item itself, as in Wikidata's own query service and our sample. ``DUMP``: on its
    document (``?doc schema:about ?item``), as in raw RDF dumps and services that load them, such as QLever's.
    """

    MUNGED = "munged"
    DUMP = "dump"


def _check_iri(name: str, iri: str) -> None:
    if not IRI.fullmatch(iri):
        raise BadTermError(f"The setting {name} is not an IRI: {iri!r}.", value=iri)


@dataclass(frozen=True, slots=True)
class Namespaces:
    """The IRIs of one Wikibase. What stands before ``entity/`` and ``prop/`` differs."""

    site: str = "http://www.wikidata.org"
    wd: str = "http://www.wikidata.org/entity/"
    wds: str = "http://www.wikidata.org/entity/statement/"
    wdt: str = "http://www.wikidata.org/prop/direct/"
    p: str = "http://www.wikidata.org/prop/"
    ps: str = "http://www.wikidata.org/prop/statement/"
    psv: str = "http://www.wikidata.org/prop/statement/value/"
    pq: str = "http://www.wikidata.org/prop/qualifier/"
    pqv: str = "http://www.wikidata.org/prop/qualifier/value/"
    pr: str = "http://www.wikidata.org/prop/reference/"
    wdno: str = "http://www.wikidata.org/prop/novalue/"
    wikibase: str = "http://wikiba.se/ontology#"
    schema: str = "http://schema.org/"

    def __post_init__(self) -> None:
        for part in fields(self):
            _check_iri(part.name, getattr(self, part.name))

    @classmethod
    def of(cls, base: str) -> Namespaces:
        """The namespaces of a Wikibase whose concept base IRI is ``base``, such as ``https://wiki.example.org``."""
        root = base.rstrip("/")
        return cls(
            site=root,
            wd=f"{root}/entity/",
            wds=f"{root}/entity/statement/",
            wdt=f"{root}/prop/direct/",
            p=f"{root}/prop/",
            ps=f"{root}/prop/statement/",
            psv=f"{root}/prop/statement/value/",
            pq=f"{root}/prop/qualifier/",
            pqv=f"{root}/prop/qualifier/value/",
            pr=f"{root}/prop/reference/",
            wdno=f"{root}/prop/novalue/",
        )


@dataclass(frozen=True, slots=True)
class Properties:
    """The property ids that carry meaning for us; a Wikibase of one's own numbers them otherwise.

    A reference names a source if it states one (``stated_in``) or gives a URL (``reference_url``), unless it
    was imported from a Wikimedia project (``imported_from``): such a project is where the claim was copied
    from, not who says so.
    """

    instance_of: str = "P31"
    subclass_of: str = "P279"
    start: str = "P580"
    end: str = "P582"
    point_in_time: str = "P585"
    stated_in: str = "P248"
    reference_url: str = "P854"
    imported_from: str = "P143"

    def __post_init__(self) -> None:
        for part in fields(self):
            value = getattr(self, part.name)
            if not _LOCAL_ID.fullmatch(value) or not value.startswith("P"):
                raise BadTermError(f"The setting {part.name} is not a property id: {value!r}.", value=value)


def is_loopback(url: str) -> bool:
    """Whether a URL points at this machine."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One SPARQL endpoint and how to treat it.

    Attributes:
        url: where queries are posted.
        user_agent: names the tool and a contact (an address or a URL). Optional on loopback alone.
        timeout_s: total deadline of one request, from connecting to the last byte.
        parallel: requests at once. Wikidata's service allows five a client; one is polite.
        query_seconds_per_minute: query time we allow ourselves; the service allows 60. None: no bound.
        max_attempts: tries of one request.
        max_wait_s: longest single wait, also for a ``Retry-After``; a longer one ends the attempts.
        max_reply_bytes: longest reply, unpacked.
        probe_batch: ids in one probe or label query.
        statement_batch: ids in one statement query.
        page_rows: rows in one page of discovery.
        first_window_s: width of the first window of discovery; later ones adapt. None: the whole span.
        layout: where versions stand.
        namespaces: IRIs.
        properties: property ids.
        languages: label chain; ``en-*`` is any variant of English.
        proxy: proxy URL for both schemes, or None.
    """

    url: str
    user_agent: str = ""
    timeout_s: float = 70.0
    parallel: int = 1
    query_seconds_per_minute: float | None = 30.0
    max_attempts: int = 5
    max_wait_s: float = 180.0
    max_reply_bytes: int = 256 * 1024 * 1024
    probe_batch: int = 500
    statement_batch: int = 100
    page_rows: int = 2000
    first_window_s: float | None = 3600.0
    layout: Layout = Layout.MUNGED
    namespaces: Namespaces = field(default_factory=Namespaces)
    properties: Properties = field(default_factory=Properties)
    languages: tuple[str, ...] = ("en", "mul", "en-*")
    proxy: str | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or not self.url.isprintable():
            raise BadTermError(f"{self.url!r} is not the URL of an endpoint.", value=self.url)
        if not self.user_agent.isprintable() or not self.user_agent.isascii():
            raise BadTermError("The User-Agent must be one line of plain ASCII.", value=self.user_agent)
        positive = (self.timeout_s, self.parallel, self.max_attempts, self.probe_batch, self.statement_batch)
        if min(positive) <= 0 or self.page_rows <= 0 or self.max_reply_bytes <= 0:
            raise BadTermError(
                "Timeouts, batches and limits of an endpoint must be positive.", value=self.url
            )

    @classmethod
    def local(cls, url: str) -> Endpoint:
        """An endpoint on this machine: no contact, no query-time budget, whole windows, two at once."""
        return cls(url=url, parallel=2, query_seconds_per_minute=None, first_window_s=None)

    @property
    def agent(self) -> str:
        """The User-Agent to send.

        Raises:
            ContactMissingError: it names no contact and the endpoint is not on this machine.
        """
        named = self.user_agent.strip()
        if is_loopback(self.url):
            return named or "factsync (local)"
        contact = _CONTACT.search(named)
        if not contact or any(word in contact.group().lower() for word in _PLACEHOLDER_CONTACTS):
            raise ContactMissingError(
                "Public endpoints block tools without a contact: set FACTSYNC_CONTACT to your e-mail address "
                f"or URL (the User-Agent is {named!r}).",
                user_agent=named,
            )
        return named
