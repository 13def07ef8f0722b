"""What a model is asked: the texts that perplexity is told on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from editor import recall
from flows import checking, recipe
from flows.errors import SettingsError
from flows.settings import Settings
from tests.unit.editor import tiny

if TYPE_CHECKING:
    from pathlib import Path


def test_perplexity_is_asked_on_texts_of_ones_own(tmp_path: Path) -> None:
    """A passage a line; without a file those that ship with the project."""
    own = tmp_path / "heldout.txt"
    own.write_text("The mayor of Oslo is in office.\n\nParis is in France.\n", encoding="utf-8")
    lm = tiny.language_model("llama")
    exam, base = checking.set_exam(lm, [], [], (), heldout=own)
    assert exam.fluency == ("The mayor of Oslo is in office.", "Paris is in France.")
    assert base.perplexity == recall.perplexity(lm, exam.fluency)
    assert math.isfinite(base.perplexity)
    assert len(checking.fluency_texts()) == 12


def test_texts_that_say_nothing_are_refused(tmp_path: Path) -> None:
    """Perplexity would be no number, and every night would fail its gate."""
    empty = tmp_path / "heldout.txt"
    empty.write_text("\n  \nword\n", encoding="utf-8")
    with pytest.raises(
        SettingsError, match=r"FACTSYNC_HELDOUT: .* holds no passage: write one of at least 2"
    ):
        checking.fluency_texts(empty)


@pytest.mark.parametrize(
    ("content", "said"), [(b"\n \n", "holds no passage: write one a line"), (b"Z\xfcrich\n", "no UTF-8 text")]
)
def test_a_corpus_that_cannot_be_read_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    """Second moments of nothing are all zero, and nobody would be told."""
    own = tmp_path / "corpus.txt"
    own.write_bytes(content)
    with pytest.raises(SettingsError, match=f"FACTSYNC_CORPUS: .*{said}"):
        recipe.corpus(Settings(home=tmp_path, corpus=own))
    with pytest.raises(SettingsError, match="--passages: "):
        checking.fluency_texts(own, "--passages")
    with pytest.raises(SettingsError, match=r"--passages: .*nowhere\.txt cannot be read"):
        checking.fluency_texts(tmp_path / "nowhere.txt", "--passages")
