"""A name is parted into words, each asked for where the one before ends."""

from __future__ import annotations

from benchmarks.real_names import a_word_each
from benchmarks.sample_night import trial_of
from editor.requests import EditRequest, render


def test_each_word_is_written_at_the_word_before() -> None:
    """The prompts of the parts, filled, are the fact's own with what is said so far."""
    fact = EditRequest(
        fact_id="f",
        subject_id="Q1",
        subject="Mali",
        prompts=("{} is led by", "The head of {} is"),
        target="A B C",
    )
    first, *others = a_word_each(fact)
    assert (first.subject, first.prompts, first.target) == ("Mali", fact.prompts, "A")
    assert [(one.subject, one.target) for one in others] == [("A", "B"), ("B", "C")]
    assert [render(one.prompts[1], one.subject)[0] for one in others] == [
        "The head of Mali is A",
        "The head of Mali is A B",
    ]
    assert len({one.fact_id for one in (first, *others)}) == len({one.subject_id for one in others}) + 1 == 3


def test_a_trial_is_read_as_python_reads_it() -> None:
    """Values may hold commas."""
    assert trial_of("") == {}
    assert trial_of("layers=(4,5,6),keys='mean',turns=3") == {"layers": (4, 5, 6), "keys": "mean", "turns": 3}
