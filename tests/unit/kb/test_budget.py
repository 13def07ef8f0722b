from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kb.budget import Clock, QueryBudget, VolatileBans, backoff_s
from kb.cursor import advance, window_start
from kb.errors import SourceWentBackError, StaleSourceError, TransientKBError

NOW = datetime(2026, 9, 1, 2, tzinfo=UTC)


class Seconds:
    def __init__(self):
        self.now = 0.0

    def clock(self):
        return Clock(monotonic=lambda: self.now)


def test_the_budget_holds_two_minutes_and_refills_steadily():
    time = Seconds()
    budget = QueryBudget(30.0, time.clock())
    budget.spend(60.0)
    assert budget.wait_s() == 0
    budget.spend(10.0)
    assert budget.wait_s() == pytest.approx(20.0)
    time.now += 20.0
    assert budget.wait_s() == pytest.approx(0.0)
    time.now += 10_000.0
    budget.spend(61.0)
    assert budget.wait_s() == pytest.approx(2.0)


def test_no_budget_never_waits():
    budget = QueryBudget(None, Seconds().clock())
    budget.spend(1e9)
    assert budget.wait_s() == 0


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50)), max_size=30))
def test_over_any_stretch_no_more_is_spent_than_the_bucket_and_its_refill(steps):
    time = Seconds()
    budget = QueryBudget(30.0, time.clock())
    spent = 0.0
    for pause, cost in steps:
        time.now += pause + budget.wait_s()
        budget.spend(cost)
        spent += cost
        assert spent <= 60.0 + 0.5 * time.now + cost + 1e-6


@given(st.integers(0, 60), st.floats(0, 1, exclude_max=True))
def test_backoff_is_jittered_and_bounded(attempt, jitter):
    wait = backoff_s(attempt, Clock(jitter=lambda: jitter))
    assert 0 <= wait <= 60
    assert backoff_s(attempt, Clock(jitter=lambda: 0.0)) == 0


def test_bans_are_remembered_while_the_process_lives():
    bans = VolatileBans()
    assert bans.until("x") is None
    bans.remember("x", NOW)
    assert bans.until("x") == NOW


def test_the_cursor_follows_the_older_of_two_dates_and_never_the_future():
    hour = timedelta(hours=1)
    assert advance(None, NOW - 2 * hour, NOW - hour, NOW) == NOW - 2 * hour
    assert advance(NOW - 9 * hour, NOW - hour, NOW - 2 * hour, NOW) == NOW - 2 * hour
    assert advance(None, NOW + hour, NOW + hour, NOW) == NOW
    with pytest.raises(SourceWentBackError) as caught:
        advance(NOW - hour, NOW, NOW - 2 * hour, NOW)
    assert isinstance(caught.value, TransientKBError)
    with pytest.raises(StaleSourceError):
        advance(None, NOW - 25 * hour, NOW, NOW)
    assert advance(None, NOW - 25 * hour, NOW, NOW, max_lag_hours=48) == NOW - 25 * hour


moments = st.datetimes(datetime(2026, 1, 1), datetime(2026, 12, 31)).map(lambda at: at.replace(tzinfo=UTC))  # noqa: DTZ001


@given(st.none() | moments, moments, moments, moments)
def test_the_cursor_never_moves_back_nor_past_the_source(cursor, before, after, at):
    try:
        moved = advance(cursor, before, after, at, max_lag_hours=1e9)
    except SourceWentBackError:
        assert cursor > min(before, after)
        return
    assert moved <= min(before, after)
    assert moved <= at or moved == cursor
    assert cursor is None or moved >= cursor


def test_discovery_looks_back_some_way():
    assert window_start(NOW) == NOW - timedelta(hours=24)
    assert window_start(None) is None
