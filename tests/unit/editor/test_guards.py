"""Guard prompts are built from shipped names and the templates given."""

from __future__ import annotations

from editor import guards
from editor.requests import render


def test_pairs_render_and_leave_out() -> None:
    """Every pair renders; names left out stay out whatever their case; a template given twice counts once."""
    made = guards.pairs(
        {"country": ["The capital of {} is", "The capital of {} is"], "odd": ["{}"]}, without=["DENMARK"]
    )
    names = [subject for _, subject in made]
    assert "Denmark" not in names
    assert len(names) == len(set(names)) == len(guards.subjects()["country"]) - 1
    assert all(subject in render(template, subject)[0] for template, subject in made)
