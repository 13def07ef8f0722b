"""A failing batch is cut until the facts that cause it stand alone; the rest is promoted."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from flows.isolate import Verdict, isolate, split


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
        return Verdict(False, wrong if self.hints else frozenset(), "exact 0.100 (bound 0.600): FAILED")


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
