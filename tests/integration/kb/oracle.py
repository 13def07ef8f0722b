"""The rules of a nightly sync once more, in plain Python over the raw rows of a pull file.

Written from the rules as stated in words, sharing no code with `kb`: years, ids and labels are plain numbers
and texts here. One office has one holder at a time.
"""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime, timedelta
from typing import Any

HOLD = timedelta(hours=48)
FLIP_HOLD = timedelta(days=7)
MEMORY = timedelta(days=30)
RELABEL_HOLD = timedelta(days=60)


def pulls(path: Any) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        found = [json.loads(line) for line in file if line.strip()]
    return sorted(found, key=lambda pull: datetime.fromisoformat(pull["pulled_at"]))


def open_holders(rows: list[dict[str, str]], year: int) -> dict[str, set[str]]:
    """Holders by office. A year that still runs has not ended anything; one to come has begun nothing."""
    found: dict[str, set[str]] = {}
    for row in rows:
        begun = not row["start_year"] or int(row["start_year"]) <= year
        over = bool(row["end_year"]) and int(row["end_year"]) < year
        if begun and not over:
            found.setdefault(row["position"], set()).add(row["officeholder"])
    return found


class Office:
    """What one office looked like so far."""

    def __init__(self) -> None:
        self.held: str | None = None
        self.held_name = ""  # how the office read when it was last edited
        # what the list said last: a holder, "" for nobody, None before its first clear answer
        self.seen: str | None = None
        self.seen_since: datetime | None = None
        self.sightings = 0
        self.seen_label = ""
        self.gone: dict[str, datetime] = {}
        self.rows: Any = None
        self.moved: datetime | None = None
        self.watched = False


class Oracle:
    """Plays the pulls; ``held`` is what a model should hold after each."""

    def __init__(self) -> None:
        self.offices: dict[str, Office] = {}

    def night(self, pull: dict[str, Any]) -> dict[str, tuple[str | None, str]]:
        """Play one pull; gives the edits by office: the holder left and the holder written."""
        at = datetime.fromisoformat(pull["pulled_at"])
        rows = pull["rows"]
        names = {}
        ordered = sorted(rows, key=lambda row: (row["positionLabel"], row["officeholderLabel"]), reverse=True)
        for row in ordered:
            names[row["position"]] = row["positionLabel"]
            names[row["officeholder"]] = row["officeholderLabel"]
        names = {entity: name for entity, name in names.items() if name and name != entity}
        holders = open_holders(rows, at.astimezone(UTC).year)
        for position in {row["position"] for row in rows}:
            self.offices.setdefault(position, Office())
        edits = {}
        for position, office in self.offices.items():
            mine = sorted(
                {
                    (row["officeholder"], row["start_year"], row["end_year"])
                    for row in rows
                    if row["position"] == position
                }
            )
            if office.rows != (mine, names.get(position)):
                office.rows, office.moved = (mine, names.get(position)), at
            edit = self.decide(position, office, holders.get(position, set()), names, at)
            if edit is not None:
                edits[position] = edit
        return edits

    def decide(
        self, position: str, office: Office, open_: set[str], names: dict[str, str], at: datetime
    ) -> tuple[str | None, str] | None:
        office.gone = {holder: when for holder, when in office.gone.items() if at - when <= MEMORY}
        before = (office.seen, office.seen_since, office.sightings, office.seen_label)
        gone_before = dict(office.gone)
        self.look(office, open_, names, at)
        if len(open_) != 1:
            return None  # nobody: wait for a successor; several: a conflict
        (holder,) = open_
        if holder == office.held or holder not in names or position not in names:
            return None
        seen, since, sightings, label = before
        run = seen == holder and sightings > 0
        first = min(at, office.moved, since if run else at)
        renamed = office.held is not None and office.held_name != names[position]
        if renamed and at < (since if run else at) + RELABEL_HOLD:
            return None
        window = FLIP_HOLD if holder in gone_before else HOLD
        count = 1 + (sightings if run else 0) + (at - office.moved >= window)
        if at - first < window or count < 2 or (run and label and label != names[holder]):
            return None
        left, office.held, office.held_name = office.held, holder, names[position]
        return left, holder

    @staticmethod
    def look(office: Office, open_: set[str], names: dict[str, str], at: datetime) -> None:
        """Remember what the list says tonight."""
        if len(open_) > 1:
            office.sightings, office.seen_since = 0, at
            office.watched = True
            return
        now = next(iter(open_), "")
        if office.sightings > 0 and office.seen == now:
            office.sightings += 1
            office.seen_label = names.get(now, "")
            return
        if office.sightings > 0 and office.seen is not None:
            office.gone[office.seen] = at
        elif not office.watched and office.held is not None and office.held != now:
            office.gone[office.held] = at
        office.seen, office.seen_since, office.sightings, office.seen_label = now, at, 1, names.get(now, "")
        office.watched = True
