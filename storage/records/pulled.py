"""What is read from Wikidata: items and statements."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from storage.records import Json


@dataclass(frozen=True, slots=True)
class EntityRow:
    """An item and what is known of it; None keeps what the ledger knows already.

    Attributes:
        id: `Q42`.
        label: Its label in `language`; empty where it is known to have none, which the ledger keeps as NULL.
        language: The label's language.
        revision: The item's revision.
        modified_at: When the item itself last changed, in Wikidata.
        redirect_to: The item it was merged into.
        deleted: True if the item is gone.
    """

    id: str
    label: str | None = None
    language: str | None = None
    revision: int | None = None
    modified_at: datetime | None = None
    redirect_to: str | None = None
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class StatementRow:
    """A statement as it was read.

    Attributes:
        id: The statement's GUID, normalised.
        subject: Its item.
        property: Its property.
        value_kind: item, time, quantity, string, ...
        value: The value's canonical text.
        rank: preferred, normal or deprecated.
        revision: Revision of the item it was read at.
        content_hash: Digest of all that a change of should count, without the revision.
        qualifiers: Start, end, point in time and the rest, as the caller's JSON.
        reference_count: How many references that name a source stand behind it.
        valid_from: Start of validity in Wikidata, as text, if stated.
        valid_to: End of validity in Wikidata, as text, if stated.
    """

    id: str
    subject: str
    property: str
    value_kind: str
    value: str
    rank: str
    revision: int
    content_hash: str
    qualifiers: Json = field(default_factory=dict)
    reference_count: int = 0
    valid_from: str | None = None
    valid_to: str | None = None


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What an ingest did, in statements.

    Attributes:
        inserted: Seen for the first time, or again after a deletion.
        changed: Known with other content.
        deleted: Missing from a group that was pulled completely.
        unchanged: As known.
        stale: Older than what the ledger knows already, and therefore left out.
        touched: Groups marked for review, over all models.
    """

    inserted: int
    changed: int
    deleted: int
    unchanged: int
    stale: int
    touched: int
