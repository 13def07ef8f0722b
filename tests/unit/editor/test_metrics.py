"""Metrics: batched figures equal a one-prompt-at-a-time oracle, and the paper's definitions."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from statistics import fmean

import pytest
import torch

from editor import generation, metrics
from editor.cases import Question, case_of
from editor.errors import DataFormatError
from editor.generation import References
from editor.metrics import Answer
from tests.unit.editor import tiny
from tests.unit.editor.conftest import requests_of


def cases(count: int = 4):
    near = (
        Question("The capital of Norway is", "Oslo", "Paris"),
        Question("Köln's mayor is", "Henriette Reker"),
    )
    return [
        case_of(request, relation=f"P{number % 2}", neighbourhood=near)
        for number, request in enumerate(requests_of(count))
    ]


def oracle(lm, prompt: str, text: str) -> tuple[float, int, int, str]:
    """One unpadded text: probability, tokens, matched tokens, and greedy decoding step by step."""
    ids, target = lm.tokenizer(prompt)["input_ids"], lm.tokenizer(f" {text}")["input_ids"]
    with torch.no_grad():
        logits = lm.model(input_ids=torch.tensor([[*ids, *target]])).logits[0, len(ids) - 1 : -1]
        logs = logits.log_softmax(dim=1)[range(len(target)), target]
        grown = list(ids)
        for _ in range(12):
            grown.append(int(lm.model(input_ids=torch.tensor([grown])).logits[0, -1].argmax()))
    matched = sum(a == b for a, b in zip(logits.argmax(dim=1).tolist(), target, strict=True))
    said = lm.tokenizer.decode(grown[len(ids) :], skip_special_tokens=True)
    return math.exp(float(logs.mean())), len(target), matched, said.strip().split("\n")[0].strip()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_every_answer_equals_the_oracle(name: str) -> None:
    """Probability, accuracy, exactness and what is said, prompt by prompt."""
    lm = tiny.language_model(name)
    answers = metrics.ask(lm, cases())
    assert {answer.probe for answer in answers} == {"efficacy", "paraphrase", "neighbourhood"}
    for answer in answers:
        p, tokens, matched, said = oracle(lm, answer.prompt, answer.answer)
        assert answer.p_answer == pytest.approx(p, rel=1e-4)
        assert (answer.tokens, answer.matched) == (tokens, matched)
        assert answer.exact == float(matched == tokens)
        if answer.rival is not None:
            assert answer.p_rival == pytest.approx(oracle(lm, answer.prompt, answer.rival)[0], rel=1e-4)
            assert answer.success == float(answer.p_answer > answer.p_rival)
        else:
            assert answer.success == matched / tokens
        if answer.said is not None:
            # Batches decode as many tokens as the longest answer needs; the oracle may say more.
            assert said.startswith(answer.said) or answer.said.startswith(said)


def test_summary_averages_within_a_record_first() -> None:
    """A record with many prompts weighs as much as one with few, and the score is the harmonic mean."""
    lm = tiny.language_model()
    asked = cases()
    answers = metrics.ask(lm, asked)
    found = metrics.summary(answers)
    plain = fmean(
        fmean(a.success for a in answers if a.case_id == case.case_id and a.probe == "efficacy")
        for case in asked
    )
    assert found["efficacy"] == pytest.approx(plain)
    magnitude = fmean(
        fmean(
            a.p_answer - (a.p_rival or 0)
            for a in answers
            if a.case_id == c.case_id and a.probe == "paraphrase"
        )
        for c in asked
    )
    assert found["paraphrase_magnitude"] == pytest.approx(magnitude)
    assert found["portability"] is None
    assert found["reference"] is None
    assert metrics.harmonic_mean([0.5, 1.0, 0.25]) == pytest.approx(3 / (2 + 1 + 4))
    assert metrics.harmonic_mean([0.5, 0.0]) == 0.0
    assert metrics.harmonic_mean([0.5, None]) is None
    assert metrics.harmonic_mean([]) is None


def test_relations_are_summed_apart() -> None:
    """Each relation's figures are those of its records alone."""
    lm = tiny.language_model()
    asked = cases()
    apart = metrics.by_relation(metrics.ask(lm, asked))
    alone = metrics.summary(metrics.ask(lm, [case for case in asked if case.relation == "P1"]))
    assert set(apart) == {"P0", "P1"}
    assert apart["P1"]["efficacy_magnitude"] == pytest.approx(alone["efficacy_magnitude"], rel=1e-4)


def test_a_shown_prompt_is_what_is_asked() -> None:
    """Retrieval changes what the model reads, not what is compared."""
    lm = tiny.language_model()
    answers = metrics.ask(lm, cases(1), shown=lambda prompt: f"Paris. {prompt}", probes=["efficacy"])
    assert all(
        answer.prompt.startswith("Paris. The") or answer.prompt.startswith("Paris. ") for answer in answers
    )
    assert {answer.probe for answer in answers} == {"efficacy"}
    assert answers[0].p_answer == pytest.approx(oracle(lm, answers[0].prompt, answers[0].answer)[0], rel=1e-4)


def answer(said: str, text: str) -> Answer:
    return Answer("a", "P6", "efficacy", "p", text, None, 0.5, None, 2, 1, said)


@pytest.mark.parametrize(
    ("said", "text", "right"),
    [
        ("Olaf Scholz, of course", "Olaf Scholz", 1.0),
        ("olaf scholz", "Olaf Scholz", 1.0),
        ("Olaf Scholzer", "Olaf Scholz", 0.0),
        ("the Olaf Scholz", "Olaf Scholz", 0.0),
        ("", "Olaf Scholz", 0.0),
    ],
)
def test_greedy_begins_with_the_answers_words(said: str, text: str, right: float) -> None:
    """Word for word: a longer word is another word."""
    assert answer(said, text).greedy == right


def test_entropy_by_hand() -> None:
    """Four words: three 2-grams and two 3-grams, all different."""
    expected = 100 * (2 / 3 * math.log2(3) + 4 / 3 * math.log2(2)) / 2
    assert generation.ngram_entropy("one two three four") == pytest.approx(expected)
    assert generation.ngram_entropy("one") == 0.0
    assert generation.ngram_entropy("la la la la la la") == 0.0
    assert generation.words("Paris, 1999.") == ["Paris", ",", "1999", "."]


def test_reference_score_by_hand(tmp_path) -> None:
    """Tf-idf cosine: 100 for the same words, 0 for none in common, and rare words weigh more."""
    references = References.of(passages=["Paris is a city", "Rome is a city", "Köln has a mayor"])
    assert references.similarity(["Paris is a city"], ["Paris is a city"]) == pytest.approx(100.0)
    assert references.similarity(["mayor Köln"], ["Paris is"]) == 0.0
    assert references.similarity(["nothing known"], ["Paris is"]) == 0.0
    n = 3
    w = {word: math.log((1 + n) / (1 + df)) + 1 for word, df in {"paris": 1, "is": 2}.items()}
    expected = 100 * w["paris"] ** 2 / (w["paris"] * math.sqrt(w["paris"] ** 2 + w["is"] ** 2))
    assert references.similarity(["Paris"], ["is Paris"]) == pytest.approx(expected)

    asked = cases(2)
    assert References.of(passages=["In Paris.", "Parisian"]).texts_for(asked[1]) == ("In Paris.",)
    for target, text in (("Washington, D.C.", "In Washington, D.C. it rains."), ("!Kung", "The !Kung.")):
        marked = replace(asked[1], request=replace(asked[1].request, target=target))
        assert References.of(passages=[text, f"x{target}x"]).texts_for(marked) == (text,)
    path = tmp_path / "snippets.json"
    path.write_text(json.dumps([{"relation_id": "P6", "target_id": "Q90", "samples": [{"text": "a text"}]}]))
    assert References.load(path).by_target == {"Q90": ("a text",)}
    path.write_text("{}[")
    with pytest.raises(DataFormatError, match="attribute_snippets"):
        References.load(path)
    with pytest.raises(DataFormatError, match=r"could not be read .*: name a file of text"):
        References.load(tmp_path / "missing.txt")


def test_writing_is_seeded_and_measured() -> None:
    """The same seed writes the same text; the figures are those of the texts."""
    lm = tiny.language_model()
    references = References.of(passages=list(tiny.CORPUS))
    first = metrics.write(lm, cases(3), references=references, seed=3)
    again = metrics.write(lm, cases(3), references=references, seed=3)
    other = metrics.write(lm, cases(3), references=references, seed=4)
    assert first == again
    assert first != other
    assert first[0].entropy == pytest.approx(generation.ngram_entropy(first[0].texts[0]))
    assert first[0].texts[0].startswith("The capital of Germany is")
    found = metrics.summary([], first)
    assert found["entropy"] == pytest.approx(fmean(piece.entropy for piece in first))
    assert found["reference"] is not None


def test_sampling_keeps_to_the_five_likeliest() -> None:
    """Every sampled token is among the five likeliest after the ones before it."""
    lm = tiny.language_model()
    (text_ids,) = generation.continue_texts(
        lm,
        [lm.tokenizer("Paris is")["input_ids"]],
        20,
        generator=torch.Generator().manual_seed(0),
        top_k=5,
    )
    start = len(lm.tokenizer("Paris is")["input_ids"])
    with torch.no_grad():
        logits = lm.model(input_ids=torch.tensor([text_ids])).logits[0]
    for at in range(start, len(text_ids)):
        assert text_ids[at] in logits[at - 1].topk(5).indices.tolist()


def test_capability_is_a_share() -> None:
    """A tiny random model answers about as chance would."""
    assert 0.0 <= metrics.capability(tiny.language_model()) < 0.8
