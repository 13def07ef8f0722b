from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kb.model import Bound, Rank, Value, ValueKind, WikiTime
from kb.semantics import phase, resolve, resolve_value, time_decides, verdict
from tests.unit.kb import made
from tests.unit.kb.made import AT, relation, statement, until

ONE = relation("one_open")
MULTI = relation("multi")


def held(*statements, rel=ONE, at=AT):
    return [fact.value.canonical for fact in verdict(statements, rel, at, subject="Q100").facts]


def test_an_open_statement_holds():
    result = verdict([statement(start=until("2024-05-07"))], ONE, AT)
    (fact,) = result.facts
    assert (fact.value.canonical, fact.slot, fact.valid_from, fact.sources) == (
        "Q1",
        "",
        "2024-05-07",
        (("Q100$A1", 7),),
    )


@pytest.mark.parametrize(
    ("end", "open_"),
    [
        (None, True),
        (Bound("novalue"), True),
        (Bound("somevalue"), False),
        (Bound("value", None), False),
        (until("2026-08-31"), False),
        (until("2026-09-01"), True),  # the day has not passed
        (until("2026-09-02"), True),
        (until("2026-08"), False),
        (until("2026-09"), True),
        (until("2026"), True),  # the year has not passed
        (until("2025"), False),
        (Bound("value", WikiTime("2020", 8)), True),  # nor have the 2020s
        (Bound("value", WikiTime("2010", 8)), False),
    ],
)
def test_when_an_end_has_come(end, open_):
    assert (phase(statement(end=end), AT) == "open") is open_


@pytest.mark.parametrize(
    ("start", "open_"),
    [
        (None, True),
        (Bound("somevalue"), True),
        (Bound("novalue"), True),
        (Bound("value", None), True),
        (until("2026-09-01"), True),
        (until("2026-09-02"), False),
        (until("2026-10"), False),
        (until("2026"), True),
        (until("2027"), False),
    ],
)
def test_when_a_start_has_come(start, open_):
    assert (phase(statement(start=start), AT) == "open") is open_


def test_a_start_has_come_at_its_very_first_moment():
    begins = datetime(2026, 9, 2, tzinfo=UTC)
    for one in (statement(start=until("2026-09-02")), statement(point_in_time=made.day("2026-09-02"))):
        assert phase(one, begins) == "open"
        assert phase(one, begins - timedelta(microseconds=1)) == "future"


def test_a_preferred_statement_that_ended_loses_to_an_open_normal_one():
    old = statement("Q1", 1, rank=Rank.PREFERRED, end=until("2017-06-30"))
    new = statement("Q2", 2, start=until("2017-07-01"))
    result = verdict([old, new], ONE, AT)
    assert [fact.value.canonical for fact in result.facts] == ["Q2"]
    assert "preferred-not-open" in result.flags


def test_an_open_preferred_statement_wins():
    assert held(statement("Q1", 1), statement("Q2", 2, rank=Rank.PREFERRED)) == ["Q2"]


def test_deprecated_statements_never_count():
    result = verdict([statement(rank=Rank.DEPRECATED)], ONE, AT)
    assert result.vacant
    assert "all-deprecated" in result.flags


def test_two_open_values_are_a_conflict_and_two_statements_of_one_value_are_not():
    result = verdict([statement("Q1", 1), statement("Q2", 2)], ONE, AT)
    assert result.facts == ()
    assert result.conflict == "2 open values: Q1, Q2"
    same = verdict([statement("Q1", 1), statement("Q1", 2)], ONE, AT)
    assert [source for source, _ in same.facts[0].sources] == ["Q100$A1", "Q100$A2"]


def test_of_several_statements_of_one_value_the_best_referenced_and_the_latest_start_count():
    """In whichever order they stand."""
    later = statement("Q1", 1, reference_count=1, start=until("2024-05-07"))
    sourced = statement("Q1", 2, reference_count=2, start=until("2018"))
    for one, two in ((later, sourced), (replace(sourced, id=later.id), replace(later, id=sourced.id))):
        (fact,) = verdict([one, two], ONE, AT).facts
        assert (fact.references, fact.valid_from) == (2, "2024-05-07")


def test_a_multi_valued_relation_keeps_all():
    result = verdict([statement("Q1", 1), statement("Q2", 2)], MULTI, AT)
    assert [(fact.slot, fact.value.canonical) for fact in result.facts] == [("Q1", "Q1"), ("Q2", "Q2")]


def test_a_future_start_waits():
    old = statement("Q1", 1, start=until("2018-03-11"))
    new = statement("Q2", 2, start=until("2026-10-11"))
    assert held(old, new) == ["Q1"]
    assert held(old, new, at=datetime(2026, 10, 11, 2, tzinfo=UTC)) == []  # now two are open


def test_unknown_is_neither_a_fact_nor_a_vacancy_and_novalue_is_a_vacancy():
    unknown = verdict([statement(value=Value.somevalue())], ONE, AT)
    assert (unknown.facts, unknown.vacant) == ((), False)
    nobody = verdict([statement(value=Value.novalue())], ONE, AT)
    assert (nobody.facts, nobody.vacant) == ((), True)
    both = verdict([statement("Q1", 1), statement(number=2, value=Value.somevalue())], ONE, AT)
    assert both.conflict == "2 open values: Q1, unknown"


def test_nothing_at_all_is_a_vacancy_that_names_its_cause():
    result = verdict([], ONE, AT, subject="Q100")
    assert result.vacant
    assert result.flags == ("no-statements",)


def test_a_series_takes_the_latest_point_in_time_not_after_the_reference():
    series = relation("functional", series=True, datatype=ValueKind.QUANTITY)
    rows = [
        statement(number=1, value=Value.quantity("10", None), point_in_time=made.day("2020")),
        statement(number=2, value=Value.quantity("30", None), point_in_time=made.day("2027")),
        statement(number=3, value=Value.quantity("20", None), point_in_time=made.day("2025-01-01")),
        statement(number=4, value=Value.quantity("5", None)),
    ]
    assert held(*rows, rel=series) == ["20"]


def test_a_value_of_another_kind_is_a_conflict():
    assert verdict([statement(value=Value.string("Q1"))], ONE, AT).conflict == "string where item is expected"


def test_one_group_at_a_time():
    with pytest.raises(ValueError, match="one subject"):
        verdict([statement(), statement(number=2, subject="Q5")], ONE, AT)
    with pytest.raises(ValueError, match="one subject"):
        verdict([], ONE, AT)


def test_start_after_end_is_flagged():
    assert "start-after-end" in verdict([statement(start=until("2020"), end=until("2010"))], ONE, AT).flags


def test_redirects_are_followed_to_their_end():
    assert resolve_value(Value.item("Q1"), {"Q1": "Q2", "Q2": "Q3"}) == Value.item("Q3")
    assert resolve("Q1", {"Q1": "Q2", "Q2": "Q1"}) == "Q2"  # a ring ends somewhere


moments = st.datetimes(datetime(2020, 1, 1), datetime(2032, 1, 1)).map(lambda at: at.replace(tzinfo=UTC))  # noqa: DTZ001


@given(made.groups(), moments, st.randoms(use_true_random=False), st.sampled_from([ONE, MULTI]))
def test_order_does_not_matter(group, at, rng, rel):
    shuffled = list(group)
    rng.shuffle(shuffled)
    assert verdict(group, rel, at, subject="Q100") == verdict(shuffled, rel, at, subject="Q100")


@given(made.groups(), moments, st.sampled_from([ONE, MULTI]))
def test_facts_are_open_best_ranked_known_and_sourced(group, at, rel):
    result = verdict(group, rel, at, subject="Q100")
    by_id = {one.id: one for one in group}
    open_ = [one for one in group if one.rank is not Rank.DEPRECATED and phase(one, at) == "open"]
    preferred = any(one.rank is Rank.PREFERRED for one in open_)
    for fact in result.facts:
        assert fact.sources
        for source, _ in fact.sources:
            one = by_id[source]
            assert one in open_
            assert one.value == fact.value
            assert fact.value.is_known
            assert (one.rank is Rank.PREFERRED) is preferred
    assert len({fact.slot for fact in result.facts}) == len(result.facts)
    assert len(result.facts) <= 1 or rel is MULTI
    assert not (result.vacant and (result.facts or result.conflict))
    if not open_:
        assert result.vacant


@given(made.groups(), moments)
def test_deprecated_statements_change_nothing(group, at):
    without = [one for one in group if one.rank is not Rank.DEPRECATED]
    full, thin = (verdict(rows, ONE, at, subject="Q100") for rows in (group, without))
    assert (full.facts, full.conflict, full.vacant) == (thin.facts, thin.conflict, thin.vacant)


@given(made.groups(), moments, st.integers(1, 4000), st.sampled_from([ONE, MULTI]))
def test_where_nothing_is_to_begin_or_end_a_verdict_stays(group, at, days, rel):
    now, later = (verdict(group, rel, moment, subject="Q100") for moment in (at, at + timedelta(days=days)))
    assert now == later or time_decides(group, at)


def test_a_scheduled_end_and_a_start_to_come_are_for_time_to_decide():
    assert time_decides([statement(end=until("2026-10-11"))], AT)
    assert time_decides([statement(start=until("2026-10-11"))], AT)
    assert not time_decides([statement(start=until("2018-03-11"), end=Bound("novalue"))], AT)
    assert not time_decides([statement(end=until("2026-10-11"), rank=Rank.DEPRECATED)], AT)


@given(made.groups(), moments)
def test_once_ended_always_ended(group, at):
    for one in group:
        if phase(one, at) == "ended":
            assert phase(one, at + timedelta(days=400)) == "ended"


@given(made.groups(), moments)
def test_one_open_agrees_with_multi_where_one_value_is_left(group, at):
    one = verdict(group, ONE, at, subject="Q100")
    many = verdict(group, MULTI, at, subject="Q100")
    if one.facts:
        assert [fact.value for fact in many.facts] == [one.facts[0].value]
    assert one.vacant == many.vacant
    if one.conflict is None and not one.facts:
        assert many.facts == ()


@given(made.groups(), moments)
def test_closing_every_statement_leaves_a_vacancy(group, at):
    closed = [replace(one, end=Bound("somevalue")) for one in group]
    assert verdict(closed, ONE, at, subject="Q100").vacant
