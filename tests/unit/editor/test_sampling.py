"""Text from the model itself: seeded, as long as asked for, and what each row would say alone."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tokenizers import processors

from editor import sampling
from editor.sampling import continue_texts, sample_prefixes, sampled
from tests.unit.editor import tiny

if TYPE_CHECKING:
    from editor.model import LanguageModel


def test_sampling_is_seeded_and_long_enough(lm: LanguageModel) -> None:
    """Equal seeds give equal text; at least as many tokens as asked for."""
    one, again, other = (list(chain(*sampled(lm, 300, seed=seed))) for seed in (1, 1, 2))
    assert one == again != other
    assert sum(map(len, one)) >= 300


def test_text_goes_on_behind_its_own_words() -> None:
    """Some tokenizers end every text with a token, behind which another text would begin."""
    tokenizer = tiny.tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <s>", special_tokens=[("<s>", 1)]
    )
    lm = tiny.language_model("llama")
    ended = replace(lm, tokenizer=tokenizer)
    assert tokenizer("The")["input_ids"][-1] == 1
    assert list(sampled(ended, 300, seed=1)) == list(sampled(lm, 300, seed=1))
    assert sample_prefixes(ended, 5, seed=1) == sample_prefixes(lm, 5, seed=1)


def test_later_batches_do_not_depend_on_earlier_ones(lm: LanguageModel) -> None:
    """What was sampled before may be passed over: the rest is the same."""
    first, *rest = sampled(lm, 40_000, seed=1)
    assert len(rest) > 1
    assert list(sampled(lm, 40_000, seed=1, start=len(first))) == rest


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma2", "falcon_alibi"])
def test_greedy_continuation_equals_one_at_a_time(name: str) -> None:
    """Rows of unlike lengths, continued together with kept keys, say what each says alone."""
    lm = tiny.language_model(name)
    starts = [lm.tokenizer(text)["input_ids"] for text in ("Paris", "The capital of France is", "Who leads")]
    longest = max(map(len, starts))
    together = continue_texts(lm, starts, longest + 6, generator=None)
    for start, row in zip(starts, together, strict=True):
        ids = list(start)
        with torch.no_grad():
            for _ in range(6):
                ids.append(int(lm.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        assert row == ids


def test_a_continuation_runs_once_for_each_of_its_tokens(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would follow the last token is not asked."""
    run, runs = sampling.activations.run, []

    def counted(*given: Any, **named: Any) -> Any:
        runs.append(given)
        return run(*given, **named)

    monkeypatch.setattr(sampling.activations, "run", counted)
    continue_texts(lm, [[1, 2, 3]], 8, generator=None)
    assert len(runs) == 5


def test_prefixes_are_seeded_texts_without_places(lm: LanguageModel) -> None:
    """Prefixes end in a full stop and never hold a brace."""
    one = sample_prefixes(lm, 7, seed=3)
    assert one == sample_prefixes(lm, 7, seed=3)
    assert len(one) == 7
    assert all(text.endswith(".") and "{" not in text and "}" not in text for text in one)


def test_freed_memory_is_given_back_while_text_grows(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and values outgrow their blocks at every token, so what they leave may not pile up."""
    given: list[int] = []
    monkeypatch.setattr(sampling, "give_back_freed_memory", lambda: given.append(1))
    continue_texts(lm, [[1, 2], [3, 4]], 42, generator=None)
    assert len(given) == 40 / sampling._KEPT_STEPS


def test_tokens_are_drawn_by_their_probability() -> None:
    """Frequencies are those of the softmax; what has no probability is never drawn, wherever it stands."""
    inf = float("inf")
    logits = torch.tensor([-inf, 1.0, 0.0, -inf, 2.0, -1.0, -inf])
    drawn = sampling._choose(logits.expand(20_000, -1), torch.Generator().manual_seed(0))
    found = drawn.bincount(minlength=7) / len(drawn)
    assert torch.equal(found == 0, logits == -inf)
    torch.testing.assert_close(found, logits.softmax(dim=0), atol=0.012, rtol=0)
