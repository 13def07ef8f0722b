"""Recall: batched figures equal a one-prompt-at-a-time oracle."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from editor import recall
from editor.requests import encode, encode_target
from editor.sampling import continue_texts
from tests.unit.editor import tiny
from tests.unit.editor.conftest import requests_of

PAIRS = [
    ("The capital of France is", "Paris"),
    ("Who leads Norway? The answer is", "Jonas Gahr Støre"),
    ("Paris", "Olaf Scholz"),
]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "cohere"])
def test_likelihoods_equal_one_at_a_time(name: str) -> None:
    """Probability and exactness as the whole model gives them for one unpadded text."""
    lm = tiny.language_model(name)
    for (prompt, text), rated in zip(PAIRS, recall.likelihoods(lm, PAIRS), strict=True):
        ids = lm.tokenizer(prompt)["input_ids"]
        target = lm.tokenizer(f" {text}")["input_ids"]
        with torch.no_grad():
            logits = lm.model(input_ids=torch.tensor([[*ids, *target]])).logits[0, len(ids) - 1 : -1]
        logs = logits.log_softmax(dim=1)[torch.arange(len(target)), torch.tensor(target)]
        assert rated.tokens == len(target)
        assert rated.probability == pytest.approx(math.exp(float(logs.mean())), rel=1e-4)
        assert rated.exact == (logits.argmax(dim=1).tolist() == target)


def test_a_name_that_goes_on_is_not_whole() -> None:
    """What greedy decoding says is exact; whole only if the next token leaves the word."""
    lm = tiny.language_model()
    prompt = "The capital of Germany is"
    seen = set()
    for count in range(1, 12):
        ids = lm.tokenizer(prompt)["input_ids"]
        said = continue_texts(lm, [ids], len(ids) + count + 1, generator=None)[0]
        rated = recall.rate(lm, [(said[:-1], len(ids) - 1, said[len(ids) : -1])])[0]
        assert rated.exact
        assert rated.ended == bool(lm.word_ends[said[-1]])
        assert not recall.rate(lm, [(said[:-2], len(ids) - 1, said[len(ids) : -1])])[0].ended
        seen.add(rated.ended)
    assert seen == {True, False}


def test_check_reports_every_prompt() -> None:
    """Edit prompts and held-back prompts come back apart and in order; exactness is what greedy says."""
    lm = tiny.language_model()
    fact = requests_of(1)[0]
    greedy = recall.completions(lm, ["The capital of Germany is"], tokens=3)[0]
    said = replace(fact, target=greedy or "x", old_target=None)
    results = recall.check(lm, [fact, said])
    assert [len(result.prompts) for result in results] == [3, 3]
    assert [len(result.heldback) for result in results] == [1, 1]
    assert results[0].success == (results[0].p_new > (results[0].p_old or 0.0))
    assert results[1].p_old is None
    assert results[1].success == results[1].exact


def test_an_answer_ends_where_the_model_ends_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it goes on with belongs to no prompt; an end at once is no answer."""
    lm = tiny.language_model()
    (end, *_), (paris,) = lm.tokenizer.all_special_ids, encode(lm.tokenizer, " Paris")[:1]
    (city,) = encode(lm.tokenizer, "The city")[:1]
    monkeypatch.setattr(
        recall,
        "continue_texts",
        lambda _lm, starts, *_args, **_kwargs: [
            [*start, *said, end, *city] for start, said in zip(starts, (paris, []), strict=True)
        ],
    )
    assert recall.completions(lm, ["The capital of France is"] * 2) == ["Paris", ""]


def test_perplexity_equals_the_plain_definition() -> None:
    """Exp of the mean negative log-likelihood over all tokens but the first of each text."""
    lm = tiny.language_model("gpt2")
    total, count = 0.0, 0
    for text in tiny.CORPUS:
        ids = torch.tensor([lm.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            logs = lm.model(input_ids=ids).logits[0, :-1].log_softmax(dim=1)
        total -= float(logs.gather(1, ids[0, 1:, None]).sum())
        count += ids.shape[1] - 1
    assert recall.perplexity(lm, tiny.CORPUS) == pytest.approx(math.exp(total / count), rel=1e-4)
    assert math.isnan(recall.perplexity(lm, []))


def test_ranks_are_places_in_the_next_token_distribution() -> None:
    """A text's rank is how many tokens its first token stands behind, and one."""
    lm = tiny.language_model("llama")
    prompt = "The capital of France is"
    ids = lm.tokenizer(prompt)["input_ids"]
    with torch.no_grad():
        logits = lm.model(input_ids=torch.tensor([ids])).logits[0, -1]
    texts = ["Paris", "Stockholm", "Olaf"]
    for text, rated in zip(texts, recall.likelihoods(lm, [(prompt, one) for one in texts]), strict=True):
        first = encode_target(lm.tokenizer, prompt, text)[0]
        assert rated.rank == 1 + int((logits > logits[first]).sum())
        assert rated.rank == 1 or not rated.exact
