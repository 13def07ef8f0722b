"""Coverage-guided fuzzing of the parsers and of what is put into queries, with atheris.

    pip install atheris        # in an environment of its own; it is no dependency
    python -m benchmarks.fuzz document -max_total_time=600
    python -m benchmarks.fuzz rows|terms|time -max_total_time=600 corpus/

A target takes bytes and must end in a result or in one of kb's own errors; whatever else escapes ends the run
and leaves the input in a file. Arguments after the target are libFuzzer's. Seeds: any entity documents.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import atheris

with atheris.instrument_imports(include=["kb"]):
    from kb import terms
    from kb.documents import Document, DocumentReader, read_lines, time_of
    from kb.endpoint import Endpoint, Namespaces
    from kb.errors import BadEntityError, BadTermError
    from kb.rows import StatementReader, probes
    from kb.sparql import Node

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = Namespaces()
ENDPOINT = Endpoint.local("http://127.0.0.1:1/")
PREDICATES = (
    NAMES.wikibase + "rank", NAMES.ps + "P6", NAMES.psv + "P571", NAMES.pq + "P580", NAMES.pqv + "P582",
    NAMES.schema + "version", "http://www.w3.org/ns/prov#wasDerivedFrom",
    "http://www.w3.org/1999/02/22-rdf-syntax-ns#type",
)  # fmt: skip


def document(data: bytes) -> None:
    """Any bytes are a document or a named error; statements read are whole ones."""
    for one in read_lines([data]):
        if isinstance(one, Document):
            for statement in one.statements:
                if type(statement).from_json(statement.to_json()) != statement:
                    raise AssertionError(statement)
    try:
        DocumentReader().read_text(data)
    except BadEntityError:
        return


def rows(data: bytes) -> None:
    """Any result rows give statements or reasons."""
    given = atheris.FuzzedDataProvider(data)

    def node() -> Node:
        kind = given.PickValueInList(["uri", "literal", "bnode"])
        text = given.PickValueInList(
            [given.ConsumeUnicode(24), NAMES.wd + given.ConsumeUnicode(6), "+2020-01-01T00:00:00Z"]
        )
        return Node(kind, text, given.PickValueInList(["", "en"]), given.PickValueInList(["", terms_type()]))

    def terms_type() -> str:
        return "http://www.w3.org/2001/XMLSchema#" + given.PickValueInList(["dateTime", "decimal", "integer"])

    made = []
    for _ in range(given.ConsumeIntInRange(0, 8)):
        row = {"item": Node("uri", NAMES.wd + "Q1"), "object": node()}
        if given.ConsumeBool():
            row["statement"] = Node("uri", NAMES.wds + "Q1-" + given.ConsumeUnicode(4))
            row["claim"] = Node(
                "uri", NAMES.p + given.PickValueInList(["P6", "P571", given.ConsumeUnicode(3)])
            )
            row["predicate"] = Node("uri", given.PickValueInList(list(PREDICATES)))
            if given.ConsumeBool():
                row["node"] = Node("uri", "http://v/" + given.ConsumeUnicode(2))
                row["part"] = Node(
                    "uri",
                    NAMES.wikibase
                    + given.PickValueInList(["timeValue", "timePrecision", "quantityAmount", "quantityUnit"]),
                )
        made.append(row)
    StatementReader(ENDPOINT).read(made)
    probes(
        [{**row, "predicate": row.get("predicate", Node("uri", PREDICATES[5]))} for row in made],
        ["Q1"],
        ENDPOINT,
    )


def bound(data: bytes) -> None:
    """Nothing put into a query leaves its place."""
    given = atheris.FuzzedDataProvider(data)
    text = given.ConsumeUnicode(200)
    try:
        term = terms.iri(text)
        if set(term[1:-1]) & set('<>"{}|^`\\ \n\t\r'):
            raise AssertionError(term)
    except BadTermError:
        pass
    try:
        inner = terms.literal(text)[1:-1].replace("\\\\", "").replace('\\"', "")
        if '"' in inner or "\n" in inner or "\r" in inner:
            raise AssertionError(inner)
    except BadTermError:
        pass
    try:
        local = terms.entities(NAMES.wd, [text]).removeprefix("<" + NAMES.wd).removesuffix(">")
        if not (local.isascii() and local.isalnum()):
            raise AssertionError(local)
        terms.languages([text])
    except BadTermError:
        pass


def time(data: bytes) -> None:
    """Any time value is a date or refused, and a date has a span in order."""
    given = atheris.FuzzedDataProvider(data)
    text = given.PickValueInList(["+", "-", ""]) + "-".join(
        str(given.ConsumeIntInRange(0, 10**digits)).zfill(digits)
        for digits in (given.ConsumeIntInRange(1, 17), 2, 2)
    )
    value = {
        "time": given.PickValueInList([text + "T00:00:00Z", given.ConsumeUnicode(40)]),
        "precision": given.ConsumeIntInRange(-1, 16),
        "calendarmodel": NAMES.wd + given.PickValueInList(["Q1985727", "Q1985786"]),
    }
    try:
        found = time_of(value)
    except (BadTermError, ValueError):
        return
    if found.earliest() > found.latest():
        raise AssertionError(found)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "document": document,
    "rows": rows,
    "terms": bound,
    "time": time,
}


def main() -> int:
    """Fuzz one target until libFuzzer's own limits."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        print(f"name a target: {', '.join(TARGETS)}")
        return 2
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
