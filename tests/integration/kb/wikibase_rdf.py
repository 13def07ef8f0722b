"""Entity JSON as Wikibase exports it to RDF, written from Wikibase's RDF dump format page, not from `kb`.

https://www.mediawiki.org/wiki/Wikibase/Indexing/RDF_Dump_Format. Only what the feed can ask for: labels,
versions, statements with rank, main value, qualifiers, reference nodes, value nodes, truthy triples,
redirects.
"""

from __future__ import annotations

import hashlib
import json
import re
from calendar import monthrange
from typing import Any

WD = "http://www.wikidata.org/entity/"
PROP = "http://www.wikidata.org/prop/"
SITE = "http://www.wikidata.org"
WB = "http://wikiba.se/ontology#"
XSD = "http://www.w3.org/2001/XMLSchema#"
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
RANKS = {"preferred": "PreferredRank", "normal": "NormalRank", "deprecated": "DeprecatedRank"}
COMMONS = "http://commons.wikimedia.org/wiki/Special:FilePath/"


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")


def typed(text: str, kind: str) -> str:
    return f'"{text}"^^<{XSD}{kind}>'


def digest(value: Any) -> str:
    return hashlib.md5(json.dumps(value, sort_keys=True).encode()).hexdigest()


def gregorian(time: dict[str, Any]) -> str:
    """Wikibase's JulianDateTimeValueCleaner: astronomical years from precision 9 on, Julian days converted.

    00 becomes 01, and a day past its month's end the last one.
    """
    sign, year, month, day = re.match(r"([+-])(\d+)-(\d\d)-(\d\d)", time["time"]).groups()
    y, m, d = int(sign + year), int(month), int(day)
    if y < 0 and time["precision"] >= 9:
        y += 1
    if time["calendarmodel"].endswith("Q1985786") and time["precision"] >= 11 and m and d:
        y, m, d = julian_day_to_gregorian(julian_day(y, m, d))
    if time["precision"] < 10:
        m = d = 1
    m = min(m, 12)
    if d > 28:
        d = min(d, monthrange(y % 400 + 2000, m)[1])
    stem = f"-{-y:04d}" if y < 0 else f"{y:04d}"
    return f"{stem}-{m or 1:02d}-{d or 1:02d}T00:00:00Z"


def julian_day(year: int, month: int, day: int) -> int:
    """Julian day number of a Julian date, by counting from 1 March of year -4800."""
    years = year + 4800 - (month <= 2)
    months = (month - 3) % 12
    return years * 365 + years // 4 + (months * 153 + 2) // 5 + day - 1 - 32082


def julian_day_to_gregorian(number: int) -> tuple[int, int, int]:
    """By stepping through whole 400-, 100-, 4- and 1-year cycles from 1 March of year 0."""
    days = number - 1721120  # 1 March of year 0, proleptic Gregorian
    cycles, days = divmod(days, 146097)
    centuries = min(days // 36524, 3)
    days -= centuries * 36524
    fours, days = divmod(days, 1461)
    ones = min(days // 365, 3)
    days -= ones * 365
    months = (days * 5 + 2) // 153
    day = days - (months * 153 + 2) // 5 + 1
    year = cycles * 400 + centuries * 100 + fours * 4 + ones
    return (year + (months >= 10), (months + 2) % 12 + 1, day)


class Exporter:
    """Collects N-Triples lines."""

    def __init__(self, layout: str) -> None:
        self.layout = layout
        self.lines: list[str] = []

    def add(self, subject: str, predicate: str, obj: str) -> None:
        self.lines.append(f"<{subject}> <{predicate}> {obj} .")

    def finish(self, until: str) -> str:
        if self.layout == "munged":
            self.add(SITE, "http://schema.org/dateModified", typed(until, "dateTime"))
        else:
            self.add(WB + "Dump", WB + "updatesCompleteUntil", typed(until, "dateTime"))
        return "\n".join(self.lines) + "\n"

    def redirect(self, source: str, target: str) -> None:
        self.add(WD + source, "http://www.w3.org/2002/07/owl#sameAs", f"<{WD}{target}>")

    def entity(self, raw: dict[str, Any]) -> None:
        subject = WD + raw["id"]
        holder = subject
        if self.layout == "dump":
            holder = f"https://www.wikidata.org/wiki/Special:EntityData/{raw['id']}"
            self.add(holder, "http://schema.org/about", f"<{subject}>")
        self.add(holder, "http://schema.org/version", typed(str(raw.get("lastrevid", 0)), "integer"))
        if "modified" in raw:
            self.add(holder, "http://schema.org/dateModified", typed(raw["modified"], "dateTime"))
        for one in (raw.get("labels") or {}).values():
            self.add(
                subject,
                "http://www.w3.org/2000/01/rdf-schema#label",
                f"{quoted(one['value'])}@{one['language']}",
            )
        for prop, claims in (raw.get("claims") or {}).items():
            best = "preferred" if any(one["rank"] == "preferred" for one in claims) else "normal"
            for claim in claims:
                self.claim(subject, prop, claim, truthy=claim["rank"] == best)

    def claim(self, subject: str, prop: str, claim: dict[str, Any], *, truthy: bool) -> None:
        iri = WD + "statement/" + claim["id"].replace("$", "-")
        self.add(subject, PROP + prop, f"<{iri}>")
        self.add(iri, RDF + "type", f"<{WB}Statement>")
        if truthy:
            self.add(iri, RDF + "type", f"<{WB}BestRank>")
        self.add(iri, WB + "rank", f"<{WB}{RANKS[claim['rank']]}>")
        self.snak(iri, claim["mainsnak"], prop, "statement/")
        if truthy and claim["mainsnak"]["snaktype"] == "value":
            term = self.term(claim["mainsnak"])
            if term is not None:
                self.add(subject, f"{PROP}direct/{prop}", term)
        for qualifier, snaks in (claim.get("qualifiers") or {}).items():
            for snak in snaks:
                self.snak(iri, snak, qualifier, "qualifier/")
        for reference in claim.get("references") or []:
            node = f"{SITE}/reference/{reference['hash']}"
            self.add(iri, "http://www.w3.org/ns/prov#wasDerivedFrom", f"<{node}>")
            for source, snaks in (reference.get("snaks") or {}).items():
                for snak in snaks:
                    self.snak(node, snak, source, "reference/")

    def snak(self, iri: str, snak: dict[str, Any], prop: str, where: str) -> None:
        if snak["snaktype"] == "novalue":
            self.add(iri, RDF + "type", f"<{PROP}novalue/{prop}>")
            return
        if snak["snaktype"] == "somevalue":
            self.add(iri, PROP + where + prop, f"<{SITE}/.well-known/genid/{digest([iri, prop, where])}>")
            return
        term = self.term(snak)
        if term is None:
            return
        self.add(iri, PROP + where + prop, term)
        value = snak["datavalue"]["value"]
        node = f"{SITE}/value/{digest(value)}"
        if snak["datavalue"]["type"] == "time":
            self.add(iri, f"{PROP}{where}value/{prop}", f"<{node}>")
            self.add(node, WB + "timeValue", term)
            self.add(node, WB + "timePrecision", typed(str(value["precision"]), "integer"))
            self.add(node, WB + "timeCalendarModel", f"<{value['calendarmodel']}>")
        elif snak["datavalue"]["type"] == "quantity":
            self.add(iri, f"{PROP}{where}value/{prop}", f"<{node}>")
            self.add(node, WB + "quantityAmount", term)
            unit = WD + "Q199" if value["unit"] == "1" else value["unit"]
            self.add(node, WB + "quantityUnit", f"<{unit}>")

    def term(self, snak: dict[str, Any]) -> str | None:  # noqa: PLR0911  (one return a datatype)
        data, declared = snak["datavalue"], snak.get("datatype", "")
        value = data["value"]
        if data["type"] == "wikibase-entityid":
            letter = {"item": "Q", "property": "P"}.get(value["entity-type"])
            return f"<{WD}{value.get('id') or letter + str(value['numeric-id'])}>"
        if data["type"] == "time":
            return typed(gregorian(value), "dateTime")
        if data["type"] == "quantity":
            return typed(value["amount"], "decimal")
        if data["type"] == "monolingualtext":
            return f"{quoted(value['text'])}@{value['language']}"
        if data["type"] == "globecoordinate":
            point = f"Point({value['longitude']} {value['latitude']})"
            return f'"{point}"^^<http://www.opengis.net/ont/geosparql#wktLiteral>'
        if declared in {"geo-shape", "tabular-data"}:
            return f"<http://commons.wikimedia.org/data/main/{value.replace(' ', '_')}>"
        if declared == "commonsMedia":
            return f"<{COMMONS}{re.sub(r'[^A-Za-z0-9.]', '_', value)}>"
        if declared == "url":
            return f"<{value}>"
        return quoted(value) if data["type"] == "string" else None
