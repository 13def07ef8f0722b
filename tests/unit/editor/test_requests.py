"""Tokenisation: where the subject ends and what the target is, for every kind of tokenizer."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editor.errors import (
    EmptyTargetError,
    PromptTooLongError,
    SubjectConflictError,
    SubjectNotInPromptError,
    TargetTooLongError,
)
from editor.requests import EditRequest, encode_prompt, encode_target, plan, render
from editor.wordings import contexts, thinned
from tests.unit.editor import tiny

KINDS = [(kind, bos) for kind in ("bytes", "pieces", "llama", "gemma", "unigram") for bos in (False, True)]
TEMPLATES = [
    "{}",
    "The mayor of {} is",
    "{}'s leader is",
    "The Paris of {} is",
    "Paris is not {}, and Paris is",
    "Who leads {}?",
    "The {}ian leader is",
]
UNSEEN = "Łódź"
SUBJECTS = ["Germany", "São Paulo", "Köln", "Ulf Kristersson", "Paris", "U.S."]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind[0]}{'-bos' if kind[1] else ''}")
def tokenizer(request: pytest.FixtureRequest) -> object:
    """Every kind of tokenizer."""
    kind, bos = request.param
    return tiny.tokenizer(kind, bos=bos)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("subject", SUBJECTS)
def test_lookup_covers_the_subjects_last_character(tokenizer: object, template: str, subject: str) -> None:
    """The text up to and with the lookup token holds the subject; without that token it does not."""
    prompt = encode_prompt(tokenizer, template, subject)
    text, stop = render(template, subject)
    decode = tokenizer.decode  # type: ignore[attr-defined]

    def plain(ids: tuple[int, ...]) -> str:
        return decode(list(ids), skip_special_tokens=True).strip()

    wanted = text[:stop].strip()
    assert plain(prompt.ids[: prompt.lookup + 1]).startswith(wanted)
    assert not plain(prompt.ids[: prompt.lookup]).startswith(wanted)


@pytest.mark.parametrize("template", TEMPLATES)
def test_lookup_ends_unseen_characters(tokenizer: object, template: str) -> None:
    """What follows the lookup token is what follows the subject, be its end bytes or an unknown token."""
    prompt = encode_prompt(tokenizer, template, UNSEEN)
    text, stop = render(template, UNSEEN)
    decode = tokenizer.decode  # type: ignore[attr-defined]
    assert decode(list(prompt.ids[prompt.lookup + 1 :])).strip() == text[stop:].strip()
    assert decode(list(prompt.ids[prompt.lookup :])).strip() != text[stop:].strip()


@pytest.mark.parametrize(("kind", "bos"), KINDS)
def test_a_subject_may_end_inside_a_token(kind: str, bos: bool) -> None:
    """The token that holds its last character is looked up, whatever else stands in it."""
    made = tiny.tokenizer(kind, bos=bos)
    token = "Germany is" if kind == "llama" else "any is"  # that kind puts a space before an added token
    made.add_tokens([token])
    prompt = encode_prompt(made, "The mayor of {} is", "Germany")

    def plain(ids: tuple[int, ...]) -> str:
        return made.decode(list(ids), skip_special_tokens=True).strip()

    assert plain(prompt.ids[prompt.lookup :]) == token
    assert (
        f"{plain(prompt.ids[: prompt.lookup])} {token}".replace("Germ any", "Germany")
        == "The mayor of Germany is"
    )


def test_the_place_of_the_template_counts_not_the_first_occurrence(tokenizer: object) -> None:
    """A subject that also stands elsewhere in the prompt is found in its own place."""
    prompt = encode_prompt(tokenizer, "Paris is not {}, it is Paris", "Paris")
    before = tokenizer.decode(list(prompt.ids[: prompt.lookup + 1]), skip_special_tokens=True)  # type: ignore[attr-defined]
    assert before == "Paris is not Paris"


def test_target_follows_its_prompt(tokenizer: object) -> None:
    """Prompt and target tokens are those of the joint text, with no special token between."""
    decode = tokenizer.decode  # type: ignore[attr-defined]
    for subject in [*SUBJECTS, UNSEEN]:
        prompt = encode_prompt(tokenizer, "The mayor of {} is", subject)
        target = encode_target(tokenizer, f"The mayor of {subject} is", " Henriette Reker ")
        assert decode(target).strip() == "Henriette Reker"
        text = decode([*prompt.ids, *target], skip_special_tokens=True)
        assert subject == UNSEEN or text == f"The mayor of {subject} is Henriette Reker"


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("kind", ["bytes", "llama", "gemma"])
def test_unseen_characters_of_a_target_are_its_bytes(kind: str, bos: bool) -> None:
    """With bytes to fall back on, no character of subject or target is lost."""
    made = tiny.tokenizer(kind, bos=bos)
    prompt = encode_prompt(made, "{} is", UNSEEN)
    target = encode_target(made, f"{UNSEEN} is", UNSEEN)
    assert made.decode([*prompt.ids, *target], skip_special_tokens=True) == f"{UNSEEN} is {UNSEEN}"
    assert made.decode(target).strip() == UNSEEN


@pytest.mark.parametrize(("kind", "bos"), KINDS)
def test_a_token_across_the_border_leaves_the_target_its_own_tokens(kind: str, bos: bool) -> None:
    """One space stands before the target, also where the tokenizer puts one before every text."""
    made = tiny.tokenizer(kind, bos=bos)
    plain = encode_target(made, "The capital is", "Paris")
    made.add_tokens(["is Par"])
    assert encode_target(made, "The capital is", "Paris") == plain


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="{}"), min_size=1, max_size=20))
def test_any_subject_is_found_or_refused(subject: str) -> None:
    """Whatever the subject's text, its last character lies in the lookup token, or a named error says so."""
    made = tiny.tokenizer("bytes")
    try:
        prompt = encode_prompt(made, "The mayor of {} is", subject)
    except SubjectNotInPromptError:
        assert not subject.strip()
        return
    text, stop = render("The mayor of {} is", subject)
    offsets = made(text, return_offsets_mapping=True)["offset_mapping"]
    start, end = offsets[prompt.lookup]
    assert start < stop <= end


@pytest.mark.parametrize("template", ["no place", "{} and {}", ""])
def test_templates_without_one_place_are_refused(template: str) -> None:
    """Exactly one place for the subject."""
    with pytest.raises(SubjectNotInPromptError) as caught:
        render(template, "Germany")
    assert caught.value.template == template


@pytest.mark.parametrize("target", ["", "   ", "\n"])
def test_empty_targets_are_refused(target: str) -> None:
    """Nothing but white space is no target."""
    with pytest.raises(EmptyTargetError, match=re.escape(repr(target))):
        encode_target(tiny.tokenizer(), "The mayor of Paris is", target)


def _request(**changes: object) -> EditRequest:
    base: dict[str, object] = {
        "fact_id": "f",
        "subject_id": "s",
        "subject": "Paris",
        "prompts": ("The mayor of {} is", "{}'s mayor is"),
        "target": "Henriette Reker",
    }
    return EditRequest(**{**base, **changes})  # type: ignore[arg-type]


def test_long_targets_are_refused() -> None:
    """The error carries the target, its tokens and the limit."""
    lm = tiny.language_model()
    with pytest.raises(TargetTooLongError) as caught:
        plan(lm, [_request(target="Henriette Reker " * 10)], max_target_tokens=8)
    assert caught.value.limit == 8
    assert caught.value.fact_id == "f"


def test_prompts_longer_than_the_model_takes_are_refused() -> None:
    """By name, before a lookup behind the last position."""
    lm = tiny.language_model("gpt2")
    with pytest.raises(PromptTooLongError, match="takes 128") as caught:
        plan(lm, [_request(prompts=(f"{'The old mayor said ' * 60}{{}} is",))])
    assert caught.value.limit == 128


def test_white_space_around_a_subject_is_no_part_of_it() -> None:
    """It is not in the prompts, and what goes by the name finds it."""
    assert _request(subject=" Köln\u00a0") == _request(subject="Köln")


def test_facts_of_one_subject_share_columns() -> None:
    """Texts that are alike up to the subject make one key column."""
    lm = tiny.language_model()
    facts = [
        _request(),
        _request(fact_id="g", prompts=("The capital of {} is", "{}'s capital is"), target="Paris"),
    ]
    (unit,) = plan(lm, facts)
    assert unit.fact_ids == ("f", "g")
    assert len(unit.rows) == 4
    assert len(unit.columns) == 3
    assert [row.guard for row in unit.rows] == [True, False, False, False]
    for row in unit.rows:
        assert unit.columns[row.column] == row.ids[: row.lookup + 1]


def test_a_fact_asked_for_twice_is_refused() -> None:
    """One request a fact."""
    with pytest.raises(SubjectConflictError):
        plan(tiny.language_model(), [_request(), _request()])


def test_the_papers_contexts() -> None:
    """Prefixes multiply the templates; the KL prompt gets a row of its own."""
    (unit,) = plan(tiny.language_model(), [_request()], prefixes=("One.", "Two."), kl_template="{} is a")
    assert len(unit.rows) == 2 * 3 + 1
    assert unit.rows[-1].guard
    assert unit.rows[-1].labels == ()


WORDS = st.lists(st.sampled_from(["the", "mayor", "of", "is,", "now"]), max_size=6)


@given(before=WORDS, after=WORDS, share=st.floats(0, 1), seed=st.text(max_size=5))
def test_thinning_leaves_words_out_and_keeps_the_subject(before, after, share, seed) -> None:
    """What is left stands in its order; one seed thins alike; without a share nothing changes."""
    template = " ".join([*before, "{}'s", *after])
    left = thinned(template, share, seed)
    assert left.split().count("{}'s") == 1
    assert len(left.split()) > 1 or left == template
    words = iter(template.split())
    assert all(word in words for word in left.split())
    assert thinned(template, share, seed) == left
    assert thinned(template, 0.0, seed) == template
    assert thinned(template, 1.0, seed) == template, "a subject alone asks for nothing"


@given(prompts=st.lists(WORDS.map(lambda words: " ".join([*words, "{} is"])), min_size=1, max_size=5))
def test_templates_are_taught_as_they_stand_and_again_with_holes(prompts) -> None:
    """What is asked comes first; nothing twice; without a share nothing is added."""
    taught, whole = contexts(prompts, word_dropout=0.5), list(dict.fromkeys(prompts))
    assert taught[: len(whole)] == whole
    assert len(set(taught)) == len(taught)
    assert set(taught) == {*prompts, *(thinned(prompt, 0.5, "") for prompt in prompts)}
    assert contexts(prompts) == whole


def test_a_wording_that_asks_for_two_facts_of_a_subject_teaches_neither() -> None:
    """Holes may leave two relations the same words; the templates themselves are always taught."""
    capital = _request(prompts=("The capital of {} is",))
    coast = replace(capital, fact_id="coast", target="Ada", prompts=("The coast of {} is",))
    lm = tiny.language_model()
    assert thinned(capital.prompts[0], 0.5, "") == thinned(coast.prompts[0], 0.5, "") == "{} is"
    assert [len(unit.rows) for unit in plan(lm, [capital], word_dropout=0.5)] == [2]
    (both,) = plan(lm, [capital, coast], word_dropout=0.5)
    (whole,) = plan(lm, [capital, coast])
    assert both.rows == whole.rows


def test_several_objects_of_one_relation_keep_their_holes_and_share_what_can_be_likely() -> None:
    """None can be likelier than one over their number after the same words: their loss has a floor."""
    capital = _request(prompts=("The capital of {} is",))
    lm = tiny.language_model()
    (alone,) = plan(lm, [capital], word_dropout=0.5)
    several = [replace(capital, fact_id=name, target=name) for name in ("Ada", "Bea", "Cleo")]
    (unit,) = plan(lm, several, word_dropout=0.5)
    assert {row.asked for row in unit.rows} == {row.asked for row in alone.rows}
    assert len(unit.rows) == 3 * len(alone.rows)
    assert unit.floor == pytest.approx(
        sum(math.log(3) / len(row.labels) for row in unit.rows) / len(unit.rows)
    )
    (other,) = plan(lm, [capital, replace(capital, fact_id="coast", prompts=("The coast of {} is",))])
    assert alone.floor == other.floor == 0.0


def test_every_prefix_draws_its_own_holes() -> None:
    """The bare template stays whole, as it is what is asked."""
    request = _request(prompts=("The present holder of the office of mayor of {} is called",))
    bare, *prefixed = plan(tiny.language_model(), [request], prefixes=tuple("ABCDE"), word_dropout=0.5)[
        0
    ].rows
    assert plan(tiny.language_model(), [request])[0].rows[0].ids == bare.ids
    whole = plan(tiny.language_model(), [request], prefixes=tuple("ABCDE"))[0].rows[1:]
    assert all(len(thin.ids) < len(full.ids) for thin, full in zip(prefixed, whole, strict=True))
    assert len({thin.ids[1:] for thin in prefixed}) > 1
    assert {thin.labels for thin in prefixed} == {bare.labels}
