"""The content that every feed is asked for, as entity JSON: every kind of value, bound, rank, reference."""

from __future__ import annotations

from tests.integration.kb.wikibase_rdf import Exporter

UNTIL = "2026-08-31T23:00:00Z"
GREGORIAN, JULIAN = "http://www.wikidata.org/entity/Q1985727", "http://www.wikidata.org/entity/Q1985786"


def item(entity):
    return {
        "type": "wikibase-entityid",
        "value": {"entity-type": "item", "numeric-id": int(entity[1:]), "id": entity},
    }


def time(text, precision=11, calendar=GREGORIAN):
    return {"type": "time", "value": {"time": text, "precision": precision, "calendarmodel": calendar}}


def snak(data, prop="P6", datatype=None):
    if data in {"somevalue", "novalue"} if isinstance(data, str) else False:
        return {"snaktype": data, "property": prop}
    kinds = {"wikibase-entityid": "wikibase-item", "monolingualtext": "monolingualtext"}
    return {
        "snaktype": "value",
        "property": prop,
        "datavalue": data,
        "datatype": datatype or kinds.get(data["type"], data["type"]),
    }


URL = {"type": "string", "value": "http://www.example.org/source"}
REFERENCES = (
    (),
    ({"P248": [item("Q36578")]},),
    ({"P854": [URL]}, {"P248": [item("Q36578")], "P813": [time("+2020-01-02T00:00:00Z")]}),
    ({"P143": [item("Q328")]},),
    ({"P143": [item("Q328")], "P854": [URL]}, {"P813": [time("+2020-01-02T00:00:00Z")]}),
    ({"P248": ["somevalue"]}, {"P854": ["somevalue", URL]}, {"P248": ["novalue"]}),
    ({"P854": [URL]}, {"P854": [URL], "P143": ["novalue"]}, {"P143": ["somevalue"], "P854": [URL]}),
    ({"P248": [item("Q36578"), item("Q37312")], "P854": [URL]}, {}),
)
"""References of all kinds; `NAMED` of each tuple name a source."""
NAMED = (0, 1, 2, 0, 0, 1, 2, 1)


def reference(number, snaks):
    urls = {"P854": "url"}
    return {
        "hash": f"{number}{sorted(snaks)}{len(str(snaks))}".replace(" ", "").encode().hex(),
        "snaks": {prop: [snak(one, prop, urls.get(prop)) for one in ones] for prop, ones in snaks.items()}
        or [],
    }


def claim(entity, number, main, rank="normal", **qualifiers):
    return {
        "id": f"{entity}$0000-{number:04d}",
        "rank": rank,
        "type": "statement",
        "mainsnak": main,
        "qualifiers": {prop: [snak(one, prop) for one in ones] for prop, ones in qualifiers.items()},
        "references": [reference(number, kind) for kind in REFERENCES[number % len(REFERENCES)]],
    }


def document(entity, modified, claims, revision=1000, **labels):
    return {
        "id": entity,
        "type": "item",
        "lastrevid": revision,
        "modified": modified,
        "labels": {
            language.replace("_", "-"): {"language": language.replace("_", "-"), "value": text}
            for language, text in labels.items()
        },
        "claims": claims,
    }


def world():
    """Every kind of value, bound and rank the feed must carry."""
    heads = [
        claim(
            "Q100",
            1,
            snak(item("Q1")),
            "preferred",
            P580=[time("+2001-01-00T00:00:00Z", 10)],
            P582=[time("+2005-00-00T00:00:00Z", 9)],
        ),
        claim("q100", 2, snak(item("Q2")), P580=[time("+2005-05-07T00:00:00Z")], P582=["novalue"]),
        claim("Q100", 3, snak(item("Q3")), P580=["somevalue"], P582=["somevalue"]),
        claim(
            "Q100",
            4,
            snak(item("Q4")),
            "deprecated",
            P585=[time("+2004-02-29T00:00:00Z"), time("+2003-02-00T00:00:00Z", 10)],
        ),
        claim("Q100", 5, snak("somevalue"), P580=[time("+1752-09-02T00:00:00Z", 11, JULIAN)]),
        claim("Q100", 6, snak("novalue"), P580=[time("-0044-03-15T00:00:00Z", 11, JULIAN)]),
        claim(
            "Q100",
            7,
            snak(item("Q1")),
            P580=[time("-0500-00-00T00:00:00Z", 7), time("+1900-00-00T00:00:00Z", 7)],
        ),
        claim(
            "Q100",
            8,
            snak(item("Q2")),
            P582=[time("+2010-00-00T00:00:00Z", 8), time("+2012-00-00T00:00:00Z", 9), "somevalue"],
        ),
    ]
    values = {
        "P571": [
            claim("Q100", 20, snak(time("+1949-05-23T00:00:00Z"), "P571")),
            claim("Q100", 21, snak(time("-0753-00-00T00:00:00Z", 9), "P571")),
        ],
        "P1082": [
            claim(
                "Q100",
                22,
                snak({"type": "quantity", "value": {"amount": "+84358845", "unit": "1"}}, "P1082"),
                P585=[time("+2022-12-31T00:00:00Z")],
            ),
            claim(
                "Q100",
                23,
                snak(
                    {
                        "type": "quantity",
                        "value": {"amount": "+12.50", "unit": "http://www.wikidata.org/entity/Q712226"},
                    },
                    "P1082",
                ),
            ),
        ],
        "P1448": [
            claim(
                "Q100",
                24,
                snak(
                    {
                        "type": "monolingualtext",
                        "value": {"text": 'The "Free" \\ State\nof Ruritania', "language": "en"},
                    },
                    "P1448",
                ),
            )
        ],
        "P474": [claim("Q100", 25, snak({"type": "string", "value": "+49"}, "P474", "external-id"))],
        "P856": [
            claim(
                "Q100", 26, snak({"type": "string", "value": "http://www.example.org/a?b=c"}, "P856", "url")
            )
        ],
        "P18": [
            claim(
                "Q100", 27, snak({"type": "string", "value": "Flag of Ruritania.svg"}, "P18", "commonsMedia")
            )
        ],
        "P625": [
            claim(
                "Q100",
                28,
                snak(
                    {"type": "globecoordinate", "value": {"longitude": 1.5, "latitude": 2.5}},
                    "P625",
                    "globe-coordinate",
                ),
            )
        ],
    }
    club = [claim("Q5", 30, snak(item("Q301"), "P54")), claim("Q5", 31, snak(item("Q302"), "P54"))]
    human = claim("Q5", 32, snak(item("Q5000"), "P31"))
    return [
        document("Q100", "2026-08-31T10:00:00Z", {"P6": heads, **values}, en="Ruritania", de="Ruritanien"),
        document(
            "Q101",
            "2026-08-01T10:00:00Z",
            {"P6": [claim("Q101", 1, snak(item("Q1")))]},
            mul="Old News",
            fr="Vieux",
        ),
        document("Q102", "2026-08-31T11:00:00Z", {}, en_gb="Nothing", fr="Rien"),
        document("Q1", "2026-08-31T12:00:00Z", {}, fr="Seulement"),
        document("Q5", "2026-08-31T09:00:00Z", {"P54": club, "P31": [human]}, en="Player", en_ca="Joueur"),
        document(
            "Q6",
            "2026-06-01T09:00:00Z",
            {
                "P54": [claim("Q6", 36, snak(item("Q301"), "P54"))],
                "P31": [claim("Q6", 37, snak(item("Q5000"), "P31"))],
            },
            en="Other",
        ),
        document(
            "Q301",
            "2026-08-31T09:00:00Z",
            {"P31": [claim("Q301", 33, snak(item("Q9001"), "P31"))]},
            en="Club",
        ),
        document(
            "Q302",
            "2026-08-31T09:00:00Z",
            {"P31": [claim("Q302", 34, snak(item("Q9002"), "P31"))]},
            en="Nation",
        ),
        document(
            "Q9002",
            "2026-08-31T09:00:00Z",
            {"P279": [claim("Q9002", 35, snak(item("Q9003"), "P279"))]},
            en="national U21",
        ),
    ]


REDIRECTS = [("Q900", "Q100")]
"""Items that were merged, and into which."""


def export(documents, layout, redirects=()):
    exporter = Exporter(layout)
    for one in documents:
        exporter.entity(one)
    for source, target in redirects:
        exporter.redirect(source, target)
    return exporter.finish(UNTIL)
