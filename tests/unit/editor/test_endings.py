"""Which tokens end a word, in vocabularies of every kind."""

import pytest

from editor.endings import word_ends
from tests.unit.editor import tiny


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_the_end_of_a_word_is_where_the_next_token_leaves_it(kind: str) -> None:
    """In a text, tokens inside a word continue it; those after a space, and punctuation, do not."""
    tokenizer = tiny.tokenizer(kind)
    ends = word_ends(tokenizer, 400)
    for text in tiny.CORPUS:
        encoded = tokenizer(text, return_offsets_mapping=True)
        for token, (start, stop) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            first = text[start:stop][:1]
            # A piece's offsets may leave out the space before it.
            after_space = start == 0 or first == " " or text[start - 1] == " "
            if start > 0:
                assert bool(ends[token]) == (after_space or not first.isalnum()), (text, text[start:stop])


class Marks:
    """A vocabulary of five tokens, of scripts that write vowels and tones as marks."""

    all_special_ids = ()
    texts = ("ा", "ั", "\u0301", "ñ", "!")

    def __len__(self) -> int:
        return len(self.texts)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.texts[i] for i in ids]

    def batch_decode(self, rows: list[list[int]]) -> list[str]:
        return [self.texts[i] for (i,) in rows]


def test_marks_go_on_with_the_letter_before_them() -> None:
    assert word_ends(Marks(), 5).tolist() == [False, False, False, False, True]


def test_hyphens_and_broken_characters_go_on_and_the_rest_of_the_logits_ends() -> None:
    """A name's hyphen and half a character are inside the word; padding of the logits is not."""
    tokenizer = tiny.tokenizer()
    ends = word_ends(tokenizer, 400)
    assert not ends[tokenizer.convert_tokens_to_ids("-")]
    assert not ends[tokenizer.convert_tokens_to_ids("Ã")]
    assert ends[tokenizer.convert_tokens_to_ids(".")]
    assert ends[tokenizer.eos_token_id]
    assert ends[len(tokenizer) :].all()
    assert len(ends) == 400
