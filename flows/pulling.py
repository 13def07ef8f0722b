"""Ask the source what changed, and fetch just that. The network part of a night; nothing is written."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from kb import cursor as cursors
from kb.feed import FIRST_DAY
from kb.model import ValueKind

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    from kb.feed import ChangeFeed
    from kb.model import Label, Probe, Statement
    from kb.relations import Relations
    from kb.rows import Skipped
    from storage.records.pulled import EntityRow

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Seen:
    """What the probe found.

    Attributes:
        at: the run's reference time.
        lag: how far the source had followed Wikidata before the pull.
        cursor: where the last pull had read to.
        probes: one an item that is tracked or was discovered.
        changed: the items to fetch: new, edited, merged or deleted since they were last read.
    """

    at: datetime
    lag: datetime
    cursor: datetime | None
    probes: tuple[Probe, ...]
    changed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pulled:
    """What was fetched of the changed items.

    Attributes:
        seen: what the probe found, each item at the revision at which its statements were read.
        statements: all statements of the changed items for the synced relations.
        labels: of the changed items, of every item among the values, and of every object that the model holds
            or that waits: an object's label lives on its own item, whose edits no tracked subject's revision
            shows.
        cursor_to: where the read cursor may move, once this is stored.
        skipped: statements that could not be read.
        objects: what the probe says of objects, by id.
        unlabelled: items that were asked for their label, are there, and have none in the chain.
    """

    seen: Seen
    statements: tuple[Statement, ...]
    labels: Mapping[str, Label]
    cursor_to: datetime
    skipped: tuple[Skipped, ...] = ()
    objects: Mapping[str, Probe] = field(default_factory=dict)
    unlabelled: frozenset[str] = frozenset()

    @property
    def redirects(self) -> dict[str, str]:
        """Target by merged item, of all that was probed."""
        probes = (*self.seen.probes, *self.objects.values())
        return {one.subject: one.redirect_to for one in probes if one.redirect_to}

    @property
    def standing(self) -> set[str]:
        """Items that were probed and are merged into no other."""
        probes = (*self.seen.probes, *self.objects.values())
        return {one.subject for one in probes if one.revision is not None and not one.redirect_to}

    @property
    def object_modified(self) -> dict[str, datetime]:
        """When objects' own items were last edited."""
        return {one: probe.modified_at for one, probe in self.objects.items() if probe.modified_at}

    def pairs(self, relations: Relations) -> list[tuple[str, str]]:
        """The groups that were pulled completely: a known statement missing from one of them is gone.

        What could not be read may be what the ledger knows, so its group is left out.
        """
        unread = {(one.subject, one.property) for one in self.skipped}
        return [
            (subject, prop)
            for subject in self.seen.changed
            for prop in relations
            if unread.isdisjoint({(subject, prop), (subject, "")})
        ]


def probe(
    feed: ChangeFeed,
    relations: Relations,
    known: Mapping[str, EntityRow],
    *,
    at: datetime,
    lag: datetime,
    cursor: datetime | None,
    since: datetime | None,
    subjects: Sequence[str] = (),
    anew: bool = False,
    again: Collection[str] = (),
) -> Seen:
    """Find out which items must be fetched.

    Args:
        feed: the source.
        relations: what is synced.
        known: the tracked items, as last read.
        at: the reference time.
        lag: the source's own date.
        cursor: where the last pull had read to.
        since: where discovery begins without a cursor; None: at Wikidata's beginning.
        subjects: look at these only (a backfill by hand), and discover nothing.
        anew: fetch everything, as if nothing had been read yet.
        again: items to fetch even if they did not change.
    """
    start = (None if anew else cursors.window_start(cursor)) or since or FIRST_DAY
    # The window is half-open; the source's own second still belongs to it.
    found = list(subjects) or feed.discover(start, lag + timedelta(seconds=1), relations.values())
    probes = feed.probe({*found} if subjects else {*known, *found})
    changed = tuple(
        one.subject for one in probes if anew or one.subject in again or _moved(one, known.get(one.subject))
    )
    return Seen(at, lag, cursor, tuple(probes), changed)


def _moved(now: Probe, known: EntityRow | None) -> bool:
    if known is None:
        return not now.is_deleted
    if now.revision is None:  # gone or merged; the ledger keeps the last revision
        return (now.redirect_to, now.is_deleted) != (known.redirect_to, known.deleted)
    return (now.revision, now.redirect_to, now.is_deleted) != (
        known.revision,
        known.redirect_to,
        known.deleted,
    )


def pull(
    feed: ChangeFeed, relations: Relations, seen: Seen, *, objects: Collection[str], max_lag_hours: float
) -> Pulled:
    """Fetch statements and labels of what changed, and settle where the cursor may move.

    Args:
        feed: the source.
        relations: what is synced.
        seen: what the probe found.
        objects: items that the model names as objects, or that wait to be; their labels are looked at every
            night, and whether they were merged.
        max_lag_hours: a source further behind is refused.

    Raises:
        StaleSourceError: the source is too far behind.
        SourceWentBackError: another replica answered, with older content.
    """
    before = len(feed.skipped)
    statements = feed.statements(seen.changed, tuple(relations)) if seen.changed else []
    skipped = tuple(feed.skipped[before:])
    if skipped:
        told = ", ".join(f"{one.statement or 'all'} of {one.subject}" for one in skipped[:5])
        log.warning("%d statements could not be read and change nothing: %s", len(skipped), told)
    values = {one.value.canonical for one in statements if one.value.kind is ValueKind.ITEM}
    named = {*values, *objects}
    beside = feed.probe(named - {one.subject for one in seen.probes})
    probed = {one.subject: one for one in (*seen.probes, *beside) if one.subject in named}
    targets = {one.redirect_to for one in probed.values() if one.redirect_to}
    asked = {*seen.changed, *named, *targets}
    labels = feed.labels(asked)
    cursor_to = cursors.advance(seen.cursor, seen.lag, feed.lag(), seen.at, max_lag_hours=max_lag_hours)
    read = {one: feed.revisions[one] for one in seen.changed if one in feed.revisions}
    probes = tuple(_as_read(one, read.get(one.subject)) for one in seen.probes)
    pulled = Pulled(replace(seen, probes=probes), tuple(statements), labels, cursor_to, skipped, probed)
    return replace(pulled, unlabelled=frozenset((asked & pulled.standing) - labels.keys()))


def _as_read(probe: Probe, revision: int | None) -> Probe:
    """Return the version that an item counts as read at: that of its statements, not the one that was probed.

    They differ where another replica answered, or where documents are ahead of their index. The next probe
    finds the item changed then and reads it again, until both agree. When a newer version was made is not
    known: a prank in it must not pass for what has stood since the older one.
    """
    if revision is None or probe.revision is None or revision == probe.revision:
        return probe
    dated = probe.modified_at if revision < probe.revision else None
    return replace(probe, revision=revision, modified_at=dated)
