"""Which tokens end a word: "Rishi Sunak" is not said by a model that goes on to "Rishi Sunakara".

A target's own tokens say nothing about what follows them, and an edited state that makes them likely often
goes on inside the last word. So target states may also be asked to end it (`MemitSettings.end_weight`), and
recall reports whether the model does. What follows is left to the model: the probability of all tokens that
end the word counts, not that of one.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from jaxtyping import Bool
    from torch import Tensor

_NEW_WORD = ("Ġ", "▁", "Ċ", " ", "\n", "<0x0A>")
"""How byte-level and sentencepiece vocabularies begin a token that follows white space."""

_JOINING = "-‐‑·_\ufffd"  # noqa: RUF001 - hyphens that names are written with; \ufffd is part of a character


def word_ends(tokenizer: Any, size: int) -> Bool[Tensor, " vocab"]:  # noqa: ANN401 - many classes
    """Return which tokens cannot continue the word before them.

    Args:
        tokenizer: any tokenizer of `transformers`.
        size: width of the model's logits; what the tokenizer does not know ends a word.

    Returns:
        True for tokens that begin with white space or punctuation, and for special tokens.
    """
    special = set(tokenizer.all_special_ids)
    known = min(size, len(tokenizer))
    names = tokenizer.convert_ids_to_tokens(list(range(known)))
    texts = tokenizer.batch_decode([[i] for i in range(known)])
    ends = torch.ones(size, dtype=torch.bool)
    for i, (name, text) in enumerate(zip(names, texts, strict=True)):
        if i in special or name is None or name.startswith(_NEW_WORD) or not text:
            continue
        # Marks are written onto the letter before them: vowels in Devanagari and Thai, accents elsewhere.
        marks = unicodedata.category(text[0]).startswith("M")
        ends[i] = not (text[0].isalnum() or marks or text[0] in _JOINING)
    return ends
