"""Cutting the queue into batches."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from flows.batch import batches


@dataclass(frozen=True)
class Row:
    """What `batches` looks at of a request."""

    id: int
    subject: str


QUEUES = st.lists(st.sampled_from("ABCDEFG"), max_size=40).map(
    lambda subjects: [Row(number, subject) for number, subject in enumerate(subjects)]
)


@given(QUEUES, st.integers(1, 12))
def test_nothing_is_lost_and_no_subject_is_parted(queue, size):
    parts = list(batches(queue, size))
    assert sorted(row.id for part in parts for row in part) == [row.id for row in queue]
    for subject in {row.subject for row in queue}:
        assert sum(any(row.subject == subject for row in part) for part in parts) == 1


@given(QUEUES, st.integers(1, 12))
def test_a_batch_is_larger_than_asked_only_for_one_subject(queue, size):
    for part in batches(queue, size):
        assert len(part) <= size or len({row.subject for row in part}) == 1


@given(QUEUES)
def test_the_oldest_come_first(queue):
    parts = list(batches(queue, 3))
    assert [part[0].id for part in parts] == sorted(part[0].id for part in parts)
