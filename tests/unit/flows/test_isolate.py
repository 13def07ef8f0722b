"""A failing batch is cut until the facts that cause it stand alone; the rest is promoted."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.batch import at_fault
from flows.gates import Gate, Metrics, judge
from flows.isolate import Verdict, isolate, split
from flows.settings import GateThresholds


@dataclass(frozen=True)
class Row:
    """What is looked at of a request."""

    id: int
    subject: str


def rows(*subjects: str) -> list[Row]:
    return [Row(number, subject) for number, subject in enumerate(subjects)]


class Model:
    """Promotes what holds no bad subject; with `hints`, names the bad ones."""

    def __init__(self, bad: set[str], *, hints: bool) -> None:
        self.bad, self.hints = bad, hints
        self.live: list[Row] = []
        self.failed: list[Row] = []

    def attempt(self, part: list[Row], blame: bool) -> Verdict:
        wrong = frozenset(row.subject for row in part if row.subject in self.bad)
        if not wrong:
            self.live.extend(part)
            return Verdict(True)
        if blame:
            self.failed.extend(part)
        suspects = wrong if self.hints else frozenset()
        return Verdict(False, suspects, "exact 0.100 (bound 0.600): FAILED", blamed=blame)


@given(
    st.lists(st.sampled_from("ABCDEFGHIJ"), min_size=2, max_size=20),
    st.sets(st.sampled_from("ABCDEFGHIJ"), max_size=4),
    st.booleans(),
)
def test_the_good_are_promoted_and_the_bad_are_blamed(subjects, bad, hints):
    batch = rows(*subjects)
    model = Model(bad, hints=hints)
    first = model.attempt(batch, False)
    if first.passed:
        return
    found = isolate(batch, first, model.attempt, tries=1000)
    good = [row for row in batch if row.subject not in bad]
    assert sorted(row.id for row in model.live) == sorted(row.id for row in good)
    assert found.promoted == len(good)
    blamed = {subject for subject, _ in found.blamed}
    if good:
        assert blamed == {row.subject for row in batch} & bad
        assert found.left == 0
    else:
        assert not blamed, "where nothing passes, nobody is blamed"
        assert found.left == len(batch)
    assert sorted(row.id for row in model.failed) == sorted(row.id for row in batch if row.subject in blamed)


@given(st.integers(0, 5), st.sets(st.sampled_from("ABCDEFGHIJ"), min_size=1, max_size=4))
def test_no_more_tries_than_allowed_and_nothing_is_lost(tries, bad):
    batch = rows(*"ABCDEFGHIJ")
    model = Model(bad, hints=False)
    found = isolate(batch, model.attempt(batch, False), model.attempt, tries=tries)
    assert found.tries <= tries
    assert found.promoted + len(found.blamed) + found.left == len(batch)


def test_a_model_near_its_bounds_blames_nobody():
    """Room for four more subjects, whichever come: the rest stays owed."""
    batch = rows(*"ABCDEFGHIJ")
    live: list[Row] = []

    def attempt(part: list[Row], blame: bool) -> Verdict:
        if len(live) + len(part) > 4:
            return Verdict(False, reason="perplexity 0.081 (bound 0.080): FAILED")
        live.extend(part)
        return Verdict(True)

    found = isolate(batch, attempt(batch, False), attempt, tries=1000)
    assert (found.promoted, found.left, found.blamed) == (4, 6, [])


def gates(*, perplexity: float, retention: float | None = 1.0) -> tuple[Gate, ...]:
    metrics = Metrics(
        efficacy=1.0,
        exact=1.0,
        heldback=1.0,
        heldback_exact=1.0,
        efficacy_before=0.0,
        exact_before=0.0,
        retention=retention,
        retention_exact=retention,
        neighbours=1.0,
        neighbours_same=1.0,
        perplexity=20.0 * (1.0 + perplexity),
        perplexity_base=20.0,
    )
    return tuple(judge(metrics, GateThresholds()))


@pytest.mark.parametrize(
    ("before", "after", "fault"),
    [
        (gates(perplexity=0.079), gates(perplexity=0.081), False),
        (gates(perplexity=0.01), gates(perplexity=0.081), True),
        (gates(perplexity=0.079), gates(perplexity=float("nan")), True),
        (gates(perplexity=0.01, retention=0.951), gates(perplexity=0.011, retention=0.949), False),
        (gates(perplexity=0.01, retention=None), gates(perplexity=0.011, retention=0.9), True),
    ],
)
def test_who_comes_last_to_a_full_model_is_not_at_fault(before, after, fault):
    """One subject is, where it alone took more than a tenth of what the gate gives away."""
    marks = SimpleNamespace(tonight=())
    candidate, last = (SimpleNamespace(gates=found, marks=marks) for found in (after, before))
    assert at_fault(candidate, last) is fault


def test_a_hint_saves_tries():
    batch = rows(*"ABCDEFGHIJKLMNOP")
    counts = []
    for hints in (True, False):
        model = Model({"P"}, hints=hints)
        counts.append(isolate(batch, model.attempt(batch, False), model.attempt, tries=100).tries)
    assert counts[0] == 2
    assert counts[1] > 4


def test_one_subject_alone_is_not_blamed():
    batch = rows("A", "A")
    model = Model({"A"}, hints=True)
    found = isolate(batch, model.attempt(batch, False), model.attempt, tries=9)
    assert (found.tries, found.left, found.blamed) == (0, 2, [])


def test_a_cut_keeps_subjects_whole():
    parts = split(rows("A", "B", "A", "C"), {"C"})
    assert [[row.subject for row in part] for part in parts] == [["A", "B", "A"], ["C"]]
    parts = split(rows("A", "B", "A", "C"), set())
    assert [[row.subject for row in part] for part in parts] == [["A", "A"], ["B", "C"]]
    assert split(rows("A", "A"), {"A"}) == [rows("A", "A")]
