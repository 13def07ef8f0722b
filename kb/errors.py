"""Everything that can go wrong on the knowledge side.

The tree; what subclasses ``TransientKBError`` may be tried again later without a change by a person::

    KBError
    ├── TransientKBError
    │   ├── EndpointUnreachableError   no connection, or it broke before a reply
    │   ├── EndpointDownError          5xx
    │   ├── EndpointTimeoutError       the deadline passed, ours or the service's (ask for less)
    │   ├── TruncatedReplyError        the body ended early (ask for less)
    │   ├── NotSparqlReplyError        200 with something that is no SPARQL result
    │   ├── ThrottledError             429, with the wait the service asked for
    │   ├── SourceWentBackError        the source's own clock ran backwards
    │   └── StaleSourceError           the source lags more than we accept
    ├── BannedError                    403 with an end; nothing is sent until then
    ├── ForbiddenError                 401 or 403 without a ban
    ├── EndpointMovedError             3xx: urllib would drop the query while following it
    ├── EndpointNotFoundError          404, 405, 410
    ├── BadQueryError                  400, 413, 414: our query is wrong for this service
    ├── ReplyTooLargeError             more bytes than we are willing to hold
    ├── EmptySourceError               the source names no date of its own
    ├── ContactMissingError            a User-Agent without a contact
    ├── BadTermError                   a value that must not enter a query
    ├── BadEntityError                 an entity document or a row that cannot be read
    ├── RelationsError                 relations.toml does not hold together
    │   └── UnknownRelationError
    ├── PullFileError                  a file of pulls that cannot be replayed
    └── StoreError                     the local store did not start or load
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime


class KBError(Exception):
    """Base of every error of this package."""


class TransientKBError(KBError):
    """May succeed when tried again later, with nothing changed."""


class EndpointError(KBError):
    """Something an endpoint did. ``url`` says which one."""

    def __init__(self, message: str, *, url: str) -> None:
        super().__init__(message)
        self.url = url


class EndpointUnreachableError(EndpointError, TransientKBError):
    """No connection could be made, or it broke before a reply."""


class EndpointDownError(EndpointError, TransientKBError):
    """The endpoint answered 5xx."""

    def __init__(self, message: str, *, url: str, status: int, retry_after_s: float | None = None) -> None:
        super().__init__(message, url=url)
        self.status = status
        self.retry_after_s = retry_after_s


class EndpointTimeoutError(EndpointError, TransientKBError):
    """The deadline passed: ours, or the service's own. A smaller question may succeed."""

    def __init__(self, message: str, *, url: str, timeout_s: float) -> None:
        super().__init__(message, url=url)
        self.timeout_s = timeout_s


class TruncatedReplyError(EndpointError, TransientKBError):
    """The reply ended before its end. A smaller question may succeed."""

    def __init__(self, message: str, *, url: str, received_bytes: int) -> None:
        super().__init__(message, url=url)
        self.received_bytes = received_bytes


class NotSparqlReplyError(EndpointError, TransientKBError):
    """A success status with something that is not the SPARQL result asked for (a proxy's HTML page, say)."""

    def __init__(self, message: str, *, url: str, content_type: str, start: str) -> None:
        super().__init__(message, url=url)
        self.content_type = content_type
        self.start = start


class ThrottledError(EndpointError, TransientKBError):
    """The service asked us to slow down and our attempts are spent."""

    def __init__(self, message: str, *, url: str, retry_after_s: float | None) -> None:
        super().__init__(message, url=url)
        self.retry_after_s = retry_after_s


class BannedError(EndpointError):
    """The service refuses this client until ``until``. Nothing is sent before that."""

    def __init__(self, message: str, *, url: str, until: datetime) -> None:
        super().__init__(message, url=url)
        self.until = until


class ForbiddenError(EndpointError):
    """The service refuses this client (401, 403) and names no end."""

    def __init__(self, message: str, *, url: str, status: int) -> None:
        super().__init__(message, url=url)
        self.status = status


class EndpointMovedError(EndpointError):
    """The endpoint redirects. Following it would lose the body of the POST, so the URL must be changed."""

    def __init__(self, message: str, *, url: str, status: int, location: str) -> None:
        super().__init__(message, url=url)
        self.status = status
        self.location = location


class EndpointNotFoundError(EndpointError):
    """No SPARQL endpoint lives at this URL (404, 405, 410)."""

    def __init__(self, message: str, *, url: str, status: int) -> None:
        super().__init__(message, url=url)
        self.status = status


class BadQueryError(EndpointError):
    """The service rejected the query text itself."""

    def __init__(self, message: str, *, url: str, query: str, reply: str) -> None:
        super().__init__(message, url=url)
        self.query = query
        self.reply = reply


class ReplyTooLargeError(EndpointError):
    """The reply is larger than the configured bound, packed or unpacked."""

    def __init__(self, message: str, *, url: str, limit_bytes: int) -> None:
        super().__init__(message, url=url)
        self.limit_bytes = limit_bytes


class EmptySourceError(EndpointError):
    """The source does not say how fresh it is, so no cursor can be moved safely."""


class SourceWentBackError(TransientKBError):
    """The source's date is before the one it gave earlier: a replica that lags behind."""

    def __init__(self, message: str, *, before: datetime, after: datetime) -> None:
        super().__init__(message)
        self.before = before
        self.after = after


class StaleSourceError(TransientKBError):
    """The source lags behind Wikidata by more than we accept."""

    def __init__(self, message: str, *, lag: datetime, limit_hours: float) -> None:
        super().__init__(message)
        self.lag = lag
        self.limit_hours = limit_hours


class ContactMissingError(KBError):
    """A User-Agent without an address or URL, which public services block."""

    def __init__(self, message: str, *, user_agent: str) -> None:
        super().__init__(message)
        self.user_agent = user_agent


class BadTermError(KBError):
    """A value that may not be put into a query: a malformed id, IRI or name."""

    def __init__(self, message: str, *, value: str) -> None:
        super().__init__(message)
        self.value = value


class BadEntityError(KBError):
    """An entity document, or a part of one, that cannot be read. ``reason`` is a stable short word."""

    def __init__(self, message: str, *, entity: str, reason: str) -> None:
        super().__init__(message)
        self.entity = entity
        self.reason = reason


class RelationsError(KBError):
    """A relations file that does not hold together. ``problems`` lists every fault found."""

    def __init__(self, message: str, *, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class UnknownRelationError(RelationsError):
    """A property that no relations file describes."""

    def __init__(self, message: str, *, property_id: str) -> None:
        super().__init__(message)
        self.property_id = property_id


class PullFileError(KBError):
    """A file of pulls that cannot be replayed. ``line`` counts from 1."""

    def __init__(self, message: str, *, path: str, line: int) -> None:
        super().__init__(message)
        self.path = path
        self.line = line


class StoreError(KBError):
    """The local store did not start, load or answer."""
