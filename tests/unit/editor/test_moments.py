"""Second moments: equal to a plain pass, keyed by all they depend on, kept whole."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from editor import sums
from editor.errors import CorruptStateError, MomentsMismatchError
from editor.moments import Moments, MomentsKey
from tests.unit.editor import tiny

if TYPE_CHECKING:
    from pathlib import Path

    from editor.model import LanguageModel

TEXTS = [*tiny.CORPUS, "Paris is in France.", "The mayor"]


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_equals_a_plain_pass(name: str) -> None:
    """Batched, padded and stopped early, C is the mean of k kᵀ over all tokens of all texts."""
    lm = tiny.language_model(name)
    moments = Moments.compute(lm, TEXTS, (1, 2), tokens=10_000, enough=0)
    for layer in (1, 2):
        keys: list[torch.Tensor] = []
        handle = lm.layers.writer(lm.model, layer).register_forward_pre_hook(
            lambda _m, args, into=keys: into.append(args[0].reshape(-1, lm.layers.d_k))
        )
        with torch.no_grad():
            for text in TEXTS:
                lm.model(input_ids=torch.tensor([lm.tokenizer(text)["input_ids"]]))
        handle.remove()
        K = torch.cat(keys).double()
        torch.testing.assert_close(moments.layer(layer).double(), K.T @ K / len(K), rtol=1e-4, atol=1e-6)
    assert moments.key.tokens == len(K)


def test_stops_at_the_wanted_tokens(lm: LanguageModel) -> None:
    """The corpus is read in order and cut."""
    assert Moments.compute(lm, TEXTS, (1,), tokens=17).key.tokens == 17


def test_excess_of_normal_keys_is_known() -> None:
    """tr(C⁻¹ F) / d_k is N / (N - d_k - 1) for N normal keys: more than one, and less the more there are."""
    width, count = 40, 200
    generator = torch.Generator().manual_seed(0)

    def moment(keys: int) -> torch.Tensor:
        k = torch.randn(keys, width, generator=generator, dtype=torch.float64)
        return k.T @ k / keys

    found = [sums.excess_of(moment(count), moment(20_000)) for _ in range(20)]
    assert sum(found) / len(found) == pytest.approx(count / (count - width - 1) - 1, rel=0.1)


def test_too_few_tokens_are_told(lm: LanguageModel, caplog: pytest.LogCaptureFixture) -> None:
    """Fewer tokens than a key is wide leave C singular, and other text unknown."""
    with caplog.at_level(logging.WARNING):
        few = Moments.compute(lm, TEXTS, (1,), tokens=40)
    assert few.excess == math.inf
    assert "40 tokens are few for keys 80 wide: a change would touch other text far more" in caplog.text


def test_the_excess_is_that_of_the_layer_where_it_is_largest() -> None:
    """A pass goes on until the last layer has enough."""
    eye = torch.eye(4, dtype=torch.float64)
    key = MomentsKey("model", (1, 2), "corpus", 20, 0, "float32")
    matrices = {1: torch.stack([10 * eye, 11 * eye]), 2: torch.stack([10 * eye, 15 * eye])}
    counted = sums.Sums(key, matrices, [10, 10])
    assert counted.excess(torch.device("cpu")) == pytest.approx(0.5)
    assert not counted.suffice(0.2, torch.device("cpu"))


def test_excess_falls_with_text(lm: LanguageModel) -> None:
    """The more text was counted, the nearer the solve reckons with other text."""
    few, many = (Moments.compute(lm, None, (1, 2), tokens=tokens, enough=0).excess for tokens in (600, 6000))
    assert few is not None
    assert many is not None
    assert 0 < many < few


def test_it_stops_when_it_has_read_enough(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more of a corpus is read once other text is foreseen as well as asked for."""
    monkeypatch.setattr(sums, "_BATCH_TOKENS", 128)
    texts = 80 * TEXTS
    half, whole = (Moments.compute(lm, texts, (1,), tokens=4_000, enough=enough) for enough in (1.0, 0.0))
    assert half.excess is not None
    assert half.excess <= 1.0
    assert half.key.tokens < whole.key.tokens
    assert whole.key.tokens == 4_000
    assert Moments.compute(lm, None, (1,), tokens=4_000, enough=1.0).key.tokens >= 4_000


def test_some_of_the_text_is_kept(lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was read, in pieces that no single token makes, the first of them, and over a file too."""
    monkeypatch.setattr(sums, "_TEXT_TOKENS", 3)
    read = [tuple(lm.tokenizer(text)["input_ids"]) for text in TEXTS]
    pieces = [row[first : first + 3] for row in read for first in range(0, len(row), 3)]
    wanted = [piece for piece in pieces if len(piece) > 1]
    assert len(wanted) < len(pieces)
    moments = Moments.compute(lm, TEXTS, (1,), tokens=10_000, enough=0)
    assert moments.texts is not None
    assert list(moments.texts.rows) == wanted
    assert moments.texts.states.shape == (sum(map(len, wanted)), lm.layers.d)
    moments.save(tmp_path / "m.safetensors")
    kept = Moments.load(tmp_path / "m.safetensors").texts
    assert kept is not None
    assert (kept.rows, kept.layer) == (moments.texts.rows, moments.texts.layer)
    assert torch.equal(kept.states, moments.texts.states)
    monkeypatch.setattr(sums, "_MOST_TEXTS", 5)
    few = Moments.compute(lm, TEXTS, (1,), tokens=10_000, enough=0).texts
    assert few is not None
    assert list(few.rows) == wanted[:5]


@pytest.mark.parametrize("texts", [None, 40 * TEXTS], ids=["sampled", "corpus"])
def test_what_is_interrupted_goes_on(
    lm: LanguageModel, tmp_path: Path, texts: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second call counts the rows that the first did not, and comes to the same to the bit."""
    monkeypatch.setattr(sums, "_BATCH_TOKENS", 128)
    part, counted = tmp_path / "m.part", []
    whole = Moments.compute(lm, texts, (1, 2), tokens=20_000, enough=0)
    add = sums.Sums.add

    def interrupted(self: sums.Sums, *args: object) -> None:
        if part.exists():
            raise KeyboardInterrupt
        add(self, *args)  # type: ignore[arg-type]

    def counting(self: sums.Sums, *args: object) -> None:
        counted.append(self.rows)
        add(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(sums.Sums, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Moments.compute(lm, texts, (1, 2), tokens=20_000, enough=0, part=part)
    monkeypatch.setattr(sums.Sums, "add", counting)
    again = Moments.compute(lm, texts, (1, 2), tokens=20_000, enough=0, part=part)
    assert min(counted) > 0
    assert again.key == whole.key
    assert again.excess == whole.excess
    assert again.texts is not None
    assert whole.texts is not None
    assert again.texts.rows == whole.texts.rows
    assert all(torch.equal(again.layer(layer), whole.layer(layer)) for layer in (1, 2))


@pytest.mark.parametrize("kept", ["of another model", "damaged"])
def test_a_part_that_does_not_serve_is_passed_over(lm: LanguageModel, tmp_path: Path, kept: str) -> None:
    """What was kept of another pass, or cannot be read, is not gone on from."""
    part = tmp_path / "m.part"
    other = MomentsKey("other", (1,), "", 0, 0, "torch.float32")
    begun = sums.Sums.nothing(other, lm.layers.d_k)
    begun.rows = 1000
    begun.save(part)
    if kept == "damaged":
        part.write_bytes(b"nonsense")
    plain = Moments.compute(lm, TEXTS, (1,), tokens=50)
    assert torch.equal(Moments.compute(lm, TEXTS, (1,), tokens=50, part=part).layer(1), plain.layer(1))


def test_key_tells_everything_apart(lm: LanguageModel) -> None:
    """Corpus, tokens, seed, layers, prompts, model and tokenizer each change the key."""
    other = tiny.language_model("llama", seed=1)
    otherwise = replace(lm, tokenizer=tiny.tokenizer(bos=True))
    prompts = [("The mayor of {} is", "Paris")]
    keys = {
        Moments.compute(lm, TEXTS, (1,), tokens=40).key,
        Moments.compute(lm, TEXTS[1:], (1,), tokens=40).key,
        Moments.compute(lm, TEXTS, (1,), tokens=41).key,
        Moments.compute(lm, TEXTS, (1, 2), tokens=40).key,
        Moments.compute(lm, TEXTS, (1,), tokens=40, guards=prompts).key,
        Moments.compute(lm, TEXTS, (1,), tokens=40, guards=prompts, guard_share=2.0).key,
        Moments.compute(lm, None, (1,), tokens=120, seed=1).key,
        Moments.compute(lm, None, (1,), tokens=120, seed=2).key,
        Moments.compute(other, TEXTS, (1,), tokens=40).key,
        Moments.compute(otherwise, TEXTS, (1,), tokens=40).key,
        Moments.compute(otherwise, None, (1,), tokens=120, seed=2).key,
    }
    assert len(keys) == 11


def test_guards_keep_what_the_unedited_model_has(lm: LanguageModel) -> None:
    """One key a distinct text; its value is what the unedited matrix gives."""
    pairs = [("The mayor of {} is", "Paris"), ("{}", "Köln"), ("{}", "Köln")]
    guards = Moments.compute(lm, TEXTS, (1, 2), tokens=50, guards=pairs).guards
    assert guards is not None
    assert guards.subjects == ("Paris", "Köln")
    for layer in (1, 2):
        expected = guards.keys[layer] @ lm.layers.matrix(lm.model, layer).T
        torch.testing.assert_close(guards.values[layer], expected, rtol=1e-4, atol=1e-5)


def test_saved_and_loaded(lm: LanguageModel, tmp_path: Path) -> None:
    """What comes back is what was saved, key and all, and no scratch file remains."""
    moments = Moments.compute(lm, TEXTS, (1, 2), tokens=50, guards=[("The mayor of {} is", "Paris")])
    moments.save(tmp_path / "m.safetensors")
    again = Moments.load(tmp_path / "m.safetensors")
    assert again.key == moments.key
    assert again.excess == moments.excess
    assert all(torch.equal(again.layer(layer), moments.layer(layer)) for layer in (1, 2))
    assert again.guards is not None
    assert moments.guards is not None
    assert again.guards.subjects == ("Paris",)
    assert all(torch.equal(again.guards.keys[layer], moments.guards.keys[layer]) for layer in (1, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize("content", [None, b"", b"nonsense"])
def test_damaged_files_are_named(tmp_path: Path, content: bytes | None) -> None:
    """A missing or damaged file says how to go on."""
    path = tmp_path / "m.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CorruptStateError, match="compute them anew"):
        Moments.load(path)


def test_another_model_or_missing_layers_are_refused(lm: LanguageModel) -> None:
    """Stale moments never reach a solve."""
    moments = Moments.compute(lm, TEXTS, (1,), tokens=50)
    with pytest.raises(MomentsMismatchError) as caught:
        moments.require(lm, (1, 2))
    assert caught.value.missing == [2]
    with pytest.raises(MomentsMismatchError):
        moments.require(tiny.language_model("llama", seed=1), (1,))
