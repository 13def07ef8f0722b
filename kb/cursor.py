"""How far the cursor of what was read may move. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta

from kb.errors import SourceWentBackError, StaleSourceError

OVERLAP = timedelta(hours=24)


def window_start(cursor: datetime | None, overlap: timedelta = OVERLAP) -> datetime | None:
    """Where discovery begins: before the cursor, as changes arrive out of order. None: at the beginning."""
    return None if cursor is None else cursor - overlap


def advance(
    cursor: datetime | None,
    lag_before: datetime,
    lag_after: datetime,
    at: datetime,
    *,
    max_lag_hours: float = 24.0,
) -> datetime:
    """The new cursor after a pull.

    Replicas of one service differ, so the source's own date is read before and after the pull and the earlier
    counts.

    Args:
        cursor: the cursor so far, or None.
        lag_before: the source's date before the pull.
        lag_after: the source's date after it.
        at: the reference time.
        max_lag_hours: an older source is refused.

    Returns:
        The cursor to store with what was pulled; never before ``cursor``, never after the source's date nor
        ``at``.

    Raises:
        StaleSourceError: the source lags too much to be worth a sync.
        SourceWentBackError: the source is now behind the cursor: a replica that lags. Nothing may be moved.
    """
    lag = min(lag_before, lag_after)
    if (at - lag).total_seconds() > max_lag_hours * 3600:
        raise StaleSourceError(
            f"The source has followed Wikidata only until {lag:%Y-%m-%d %H:%M} UTC; "
            f"try again when it has caught up, or allow more than {max_lag_hours:g} hours "
            "(FACTSYNC_MAX_LAG_HOURS), as a weekly dump needs.",
            lag=lag,
            limit_hours=max_lag_hours,
        )
    if cursor is not None and lag < cursor:
        raise SourceWentBackError(
            f"The source says {lag.isoformat()} after it said {cursor.isoformat()}; "
            "another replica answered. Try again later.",
            before=cursor,
            after=lag,
        )
    moved = min(lag, at)
    return moved if cursor is None else max(cursor, moved)
