"""Dates as far as they are known.

They follow Wikibase's RDF export, so that rows from SPARQL and from JSON documents are equal: proleptic
Gregorian, astronomical years (44 BCE is year -43), cut to their precision (`2003`, `2003-05`, `2003-05-07`).
A day that Wikidata gives in the Julian calendar is kept as the Gregorian one that it is, and marked: it reads
as it was given.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from kb.errors import BadTermError

YEAR, MONTH, DAY = 9, 10, 11
JULIAN = "http://www.wikidata.org/entity/Q1985786"
"""The calendar model, by its own IRI on every Wikibase."""
_TIME = re.compile(r"([+-]?)(\d{1,16})-(\d{2})-(\d{2})(?:T[0-9:.]*(?:Z|[+-]\d\d:\d\d)?)?", re.ASCII)
_ISO = re.compile(r"(-?)(\d{4,16})(?:-(\d\d))?(?:-(\d\d))?", re.ASCII)
_NARROWEST = timedelta(microseconds=1)
_FIRST = datetime.min.replace(tzinfo=UTC)
_LAST = datetime.max.replace(tzinfo=UTC)


def last_day(year: int, month: int) -> int:
    """Days of a month, proleptic Gregorian."""
    thirty = {4, 6, 9, 11}
    if month in thirty:
        return 30
    if month != 2:  # noqa: PLR2004  (February)
        return 31
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    return 29 if leap else 28


@dataclass(frozen=True, slots=True)
class WikiTime:
    """A date as far as it is known.

    Attributes:
        iso: the date cut to its precision, such as ``2003``, ``2003-05`` or ``-0043-03-15``.
        precision: Wikibase's number: 11 day, 10 month, 9 year, 8 decade, 7 century, 6 millennium, down to 0.
        julian: whether the day was given in the Julian calendar.
    """

    iso: str
    precision: int
    julian: bool = False

    @classmethod
    def parse(cls, text: str, precision: int, *, julian: bool = False) -> WikiTime:
        """Read an RDF or JSON timestamp that is already proleptic Gregorian with astronomical years.

        A month or day of 00 (``+2003-00-00T00:00:00Z``) lowers the precision to what is known; hours are
        dropped.

        Raises:
            BadTermError: it is no timestamp.
        """
        match = _TIME.fullmatch(text.strip())
        if not match:
            raise BadTermError(f"{text!r} is not a Wikibase timestamp.", value=text)
        sign, digits, month_text, day_text = match.groups()
        year, month, day = int(sign + digits), int(month_text), int(day_text)
        return cls.of(year, month, day, precision, julian=julian)

    @classmethod
    def of(cls, year: int, month: int, day: int, precision: int, *, julian: bool = False) -> WikiTime:
        """Build from numbers; a month or day of 0 is unknown. Only days differ between the calendars.

        Raises:
            BadTermError: there is no such date.
        """
        known = min(max(precision, 0), DAY)
        if month == 0:
            known = min(known, YEAR)
        elif day == 0:
            known = min(known, MONTH)
        if known >= MONTH and not 1 <= month <= 12:  # noqa: PLR2004  (months)
            raise BadTermError(f"There is no month {month}.", value=str(month))
        if known >= DAY and not 1 <= day <= last_day(year, month):
            raise BadTermError(f"There is no day {day} in {year}-{month:02d}.", value=str(day))
        stem = f"-{-year:04d}" if year < 0 else f"{year:04d}"
        if known >= DAY:
            return cls(f"{stem}-{month:02d}-{day:02d}", known, julian)
        return cls(f"{stem}-{month:02d}" if known == MONTH else stem, known)

    @property
    def canonical(self) -> str:
        """The text by which dates are compared: ``iso/precision``, then ``/julian`` where that is so."""
        return f"{self.iso}/{self.precision}" + ("/julian" if self.julian else "")

    @classmethod
    def of_canonical(cls, text: str) -> WikiTime:
        """Read what `canonical` gives."""
        iso, precision, *calendar = text.split("/")
        return cls(iso, int(precision), bool(calendar))

    def as_given(self) -> tuple[int, int, int]:
        """`parts` in the calendar in which Wikidata gives the date."""
        return gregorian_to_julian(*self.parts()) if self.julian else self.parts()

    def parts(self) -> tuple[int, int, int]:
        """Year, month, day; 0 where unknown."""
        match = _ISO.fullmatch(self.iso)
        if not match:
            raise BadTermError(f"{self.iso!r} is not a cut ISO date.", value=self.iso)
        sign, year, month, day = match.groups()
        return int(sign + year), int(month or 0), int(day or 0)

    def earliest(self) -> datetime:
        """First instant of the span (UTC). Years that ``datetime`` cannot hold are clamped to its ends."""
        year, month, day = self.parts()
        if self.precision >= DAY:
            return _instant(year, month, day)
        if self.precision == MONTH:
            return _instant(year, month, 1)
        return _instant(self._years()[0], 1, 1)

    def latest(self) -> datetime:
        """Last instant of the span (UTC, to the microsecond), clamped likewise."""
        year, month, day = self.parts()
        if self.precision >= DAY:
            start = _instant(year, month, day)
            if start == _FIRST or start > _LAST - timedelta(days=1):  # the last day there is has no next one
                return start if start == _FIRST else _LAST
            return start + timedelta(days=1) - _NARROWEST
        if self.precision == MONTH:
            next_year, next_month = (year + 1, 1) if month == 12 else (year, month + 1)  # noqa: PLR2004
        else:
            next_year, next_month = self._years()[1] + 1, 1
        after = _instant(next_year, next_month, 1)
        return after if after in {_FIRST, _LAST} else after - _NARROWEST

    def _years(self) -> tuple[int, int]:
        """First and last year. The 20th century is 1901-2000, the 2010s are 2010-2019, as on Wikidata."""
        year = self.parts()[0]
        if self.precision >= YEAR:
            return year, year
        width = 10 ** (YEAR - self.precision)
        if self.precision in {6, 7} and year > 0:
            first = (year - 1) // width * width + 1
        else:
            first = year // width * width
        return first, first + width - 1


def _instant(year: int, month: int, day: int) -> datetime:
    if year < 1:
        return _FIRST
    if year > 9999:  # noqa: PLR2004  (the last year a datetime holds)
        return _LAST
    return datetime(year, month, day, tzinfo=UTC)


def julian_to_gregorian(year: int, month: int, day: int) -> tuple[int, int, int]:
    """Turn a Julian calendar date (astronomical year) into the proleptic Gregorian one, by Julian day number.

    Source: the integer formulas of Richards 2013, "Calendars", in the Explanatory Supplement to the
    Astronomical Almanac; Wikibase's RDF export does the same to dates of day precision.
    """
    a = _days(year, month, day) - 38
    b = (4 * a + 3) // 146097
    return _date(a - 146097 * b // 4, 100 * b)


def gregorian_to_julian(year: int, month: int, day: int) -> tuple[int, int, int]:
    """The inverse of `julian_to_gregorian`, by the same source."""
    y = year + 4800 - (14 - month) // 12
    return _date(_days(year, month, day) - y // 100 + y // 400 + 38, 0)


def _days(year: int, month: int, day: int) -> int:
    """Days of a Julian date since 1 March of year -4800."""
    shift = (14 - month) // 12
    y, m = year + 4800 - shift, month + 12 * shift - 3
    return day + (153 * m + 2) // 5 + 365 * y + y // 4 - 1


def _date(days: int, years: int) -> tuple[int, int, int]:
    """Year, month and day of so many days since 1 March of year -4800 + `years`, by Julian leap years."""
    d = (4 * days + 3) // 1461
    e = days - 1461 * d // 4
    f = (5 * e + 2) // 153
    return years + d - 4800 + f // 10, f + 3 - 12 * (f // 10), e - (153 * f + 2) // 5 + 1
