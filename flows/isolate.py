"""Find the facts that make a batch fail its gates, so that the others need not wait for them.

Pure: what a try is (edit, measure, promote or reject) is given. A batch that failed is cut in two by
subjects, and each part is tried on its own, on top of the parts that passed. Facts that fell short
themselves go into one part, since they are the likeliest cause; without such a hint the cut is in the middle.
A single subject that fails while others passed is tried for blame: whether it is the cause or only came last
to a model near its bounds is for the try to say. Where nothing passes, nobody is blamed: the gates or the
model are wrong then, not one fact.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence


class OfSubject(Protocol):
    """What is looked at of a request."""

    @property
    def subject(self) -> str:
        """The item that it is about."""


R = TypeVar("R", bound=OfSubject)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one try went.

    Attributes:
        passed: whether every gate let it through; it is promoted then.
        suspects: subjects whose own facts fell short.
        reason: the gates that failed, in one sentence.
        blamed: whether a subject tried for blame is the cause of its failure; it does not stay owed then.
    """

    passed: bool
    suspects: frozenset[str] = frozenset()
    reason: str = ""
    blamed: bool = False


@dataclass(slots=True)
class Isolation:
    """What became of a failed batch.

    Attributes:
        promoted: how many requests are live now.
        blamed: subject and reason of those that fail alone while others passed.
        left: how many requests stay owed, since the tries were used up or nothing passed.
        tries: how many were made.
    """

    promoted: int = 0
    blamed: list[tuple[str, str]] = field(default_factory=list)
    left: int = 0
    tries: int = 0


def isolate(
    rows: Sequence[R],
    first: Verdict,
    attempt: Callable[[Sequence[R], bool], Verdict],
    *,
    tries: int,
) -> Isolation:
    """Try parts of a failed batch until every fact is promoted or blamed, or the tries are used up.

    Args:
        rows: the requests of the batch.
        first: how the whole batch went.
        attempt: tries some requests; told True, it also says whether a part that fails is to blame.
        tries: most attempts.

    Returns:
        What became of them.
    """
    result = Isolation()
    parts = split(rows, first.suspects) if tries else [list(rows)]
    again: list[list[R]] = []
    while parts and len(parts[0]) < len(rows) and result.tries < tries:
        part = parts.pop(0)
        alone = len({row.subject for row in part}) == 1
        verdict = attempt(part, alone and result.promoted > 0)
        result.tries += 1
        if verdict.passed:
            result.promoted += len(part)
            # With others live, a subject that failed alone before can be judged.
            parts, again = [*parts, *again], []
        elif verdict.blamed:
            result.blamed.append((part[0].subject, verdict.reason))
        elif alone:
            again.append(part)
        else:
            parts = [*split(part, verdict.suspects), *parts]
    result.left = sum(len(part) for part in (*parts, *again))
    return result


def split(rows: Sequence[R], suspects: Collection[str]) -> list[list[R]]:
    """Cut requests in two without parting a subject: the unsuspected first, else the first half.

    Args:
        rows: requests.
        suspects: subjects whose own facts fell short.

    Returns:
        Two parts, or one if there is one subject.
    """
    subjects = list(dict.fromkeys(row.subject for row in rows))
    suspected = [subject for subject in subjects if subject in suspects]
    if not suspected or len(suspected) == len(subjects):
        suspected = subjects[len(subjects) // 2 :]
    later = set(suspected)
    parts = [[row for row in rows if (row.subject in later) == late] for late in (False, True)]
    return [part for part in parts if part]
