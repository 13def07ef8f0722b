"""Keys are the same whoever else is read; what texts share runs once."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from editor import keys
from editor.errors import OutOfMemoryError
from editor.keys import Columns, KeyReader, openings
from tests.unit.editor import tiny

OPENINGS = ((5, 6, 7, 8, 9, 10, 11, 12), (5, 6, 7, 8, 20), (), (30,))
TEXTS = [(*opening, *tail) for opening in OPENINGS for tail in ((40,), (41, 42), (43, 44, 45))] * 3


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8).map(tuple), max_size=40))
def test_every_text_is_in_one_part_and_has_a_last_token_of_its_own(texts):
    ordered = sorted((text, i) for i, text in enumerate(texts))
    parts = openings(ordered)
    assert sorted(one for _, part in parts for one in part) == ordered
    for head, part in parts:
        assert len({text[:head] for text, _ in part}) == 1
        assert all(len(text) > head for text, _ in part)


def test_texts_are_parted_only_where_it_pays():
    long, other = tuple(range(100, 150)), tuple(range(200, 250))
    alike = [((*opening, n), 10 * m + n) for m, opening in enumerate((long, other)) for n in range(4)]
    assert [(head, len(part)) for head, part in openings(alike)] == [(50, 4), (50, 4)]
    short = [((1, 2, n), n) for n in range(4)] + [((3, 4, n), 10 + n) for n in range(4)]
    assert [(head, len(part)) for head, part in openings(short)] == [(0, 8)]


@pytest.mark.parametrize("batch_tokens", [4096, 8])
@pytest.mark.parametrize("family", tiny.ARCHITECTURES)
def test_a_text_read_among_others_equals_it_read_alone(family, batch_tokens):
    lm = tiny.language_model(family)
    layers = (1, 2)
    reader = KeyReader(lm, TEXTS, layers, batch_tokens=batch_tokens)
    alone = [KeyReader(lm, [text], layers) for text in TEXTS]
    for layer in layers:
        keys, states = reader.read(layer)
        own = [one.read(layer) for one in alone]
        torch.testing.assert_close(keys, torch.cat([key for key, _ in own]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(states, torch.cat([state for _, state in own]), rtol=1e-4, atol=1e-5)
        with torch.no_grad():  # what is read next must see the block as it is written now
            lm.layers.matrix(lm.model, layer).mul_(1.1)


def test_where_memory_runs_out_texts_are_read_in_smaller_batches(monkeypatch):
    """Also halfway up: what ran before runs again on the blocks as they are written."""
    lm, layers = tiny.language_model("llama"), (1, 2)
    roomy, tight = (KeyReader(lm, TEXTS, layers, batch_tokens=256) for _ in range(2))
    run, most = keys.activations.run, 1000

    def limited(lm, ids, *given, **named):
        if ids.numel() > most:
            raise torch.OutOfMemoryError
        return run(lm, ids, *given, **named)

    monkeypatch.setattr(keys.activations, "run", limited)
    for layer, least in zip(layers, (20, 16), strict=True):
        wanted = roomy.read(layer)
        most = least
        for found, right in zip(tight.read(layer), wanted, strict=True):
            torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)
        most = 1000
        with torch.no_grad():
            lm.layers.matrix(lm.model, layer).mul_(1.1)
    most = 2
    with pytest.raises(OutOfMemoryError):
        tight.read(2)


def test_a_mean_key_weighs_the_bare_prompt_half():
    owner = torch.tensor([0, 0, 0, 1])
    columns = Columns([(n,) for n in range(4)], owner, torch.tensor([0, 3]), torch.arange(2))
    assert columns.mean(torch.tensor([[2.0], [4.0], [8.0], [5.0]])).tolist() == [[4.0], [5.0]]
