"""Statements and relations made for tests, and hypothesis strategies for them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from hypothesis import strategies as st

from kb.model import DAY, Bound, Rank, Statement, Value, WikiTime
from kb.relations import Cardinality, Relation

AT = datetime(2026, 9, 1, 2, tzinfo=UTC)


def relation(cardinality: str = "one_open", **changed: Any) -> Relation:
    values: dict[str, Any] = {
        "property": "P6",
        "name": "head of government",
        "cardinality": Cardinality(cardinality),
        "ended": "vacate",
        "hold_hours": 48,
        "edit_templates": ("The head of government of {subject} is",),
        "heldback_templates": ("{subject} is led by",),
    }
    return Relation(**values | changed)


def day(text: str) -> WikiTime:
    """`2020`, `2020-05` or `2020-05-07`, at the precision that is written."""
    return WikiTime(text, 8 + len(text.split("-")) if not text.startswith("-") else 9)


def until(text: str) -> Bound:
    return Bound("value", day(text))


def statement(item: str = "Q1", number: int = 1, **changed: Any) -> Statement:
    values: dict[str, Any] = {
        "id": f"Q100$A{number}",
        "subject": "Q100",
        "property": "P6",
        "value": Value.item(item),
        "rank": Rank.NORMAL,
        "reference_count": 1,
        "revision": 7,
    }
    return Statement(**values | changed)


def dates() -> st.SearchStrategy[WikiTime]:
    def build(year: int, month: int, one: int, precision: int, julian: bool) -> WikiTime:
        return WikiTime.of(year, month, one, precision, julian=julian)

    near = st.builds(
        build,
        st.integers(2023, 2029),
        st.integers(1, 12),
        st.integers(1, 28),
        st.integers(7, DAY),
        st.booleans(),
    )
    far = st.builds(
        build,
        st.integers(-3000, 12000),
        st.integers(1, 12),
        st.integers(1, 28),
        st.integers(0, DAY),
        st.booleans(),
    )
    return near | far


def bounds() -> st.SearchStrategy[Bound | None]:
    return (
        st.none()
        | st.sampled_from([Bound("somevalue"), Bound("novalue"), Bound("value")])
        | st.builds(Bound, st.just("value"), dates())
    )


def values() -> st.SearchStrategy[Value]:
    items = st.sampled_from(["Q1", "Q2", "Q3"]).map(Value.item)
    return items | st.sampled_from([Value.somevalue(), Value.novalue()])


def groups(largest: int = 6) -> st.SearchStrategy[list[Statement]]:
    """Statements of one subject and property, ids unique."""
    one = st.builds(
        statement,
        value=values(),
        rank=st.sampled_from(Rank),
        start=bounds(),
        end=bounds(),
        point_in_time=st.none() | dates(),
        reference_count=st.integers(0, 2),
    )
    return st.lists(one, max_size=largest).map(
        lambda rows: [replace(row, id=f"Q100$A{number}") for number, row in enumerate(rows)]
    )
