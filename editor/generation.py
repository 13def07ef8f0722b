"""Text that a model writes of its own accord: does it repeat itself, and does it fit what it was taught?

- GE, generation entropy (Meng et al. 2022, arXiv 2202.05262, after Zhang et al. 2018): the mean of the
  weighted 2-gram and 3-gram entropies, in bits, weights 2/3 and 4/3; it falls when a model repeats itself.
  For a text with n-gram frequencies f:  H_n = -Σ f log₂ f,  GE = (2/3 H₂ + 4/3 H₃) / 2, here times 100.
- RS, reference score: cosine between tf-idf vectors of what was written about a subject and of reference
  texts about other subjects that have the written object, times 100.

Differs: words are runs of letters or digits and single marks (the reference uses NLTK's tokenizer and its
data), sampling is seeded, and document frequencies come from the given texts, not from all of Wikipedia.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from editor.batching import in_groups
from editor.errors import DataFormatError
from editor.requests import encode
from editor.sampling import continue_texts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from editor.cases import Case
    from editor.model import LanguageModel
    from editor.progress import Progress

_WORD = re.compile(r"\w+|[^\w\s]")
_ROWS = 64
_TOP_K = 5
_WEIGHTS = ((2, 2 / 3), (3, 4 / 3))


def words(text: str) -> list[str]:
    """Cut a text into words and marks."""
    return _WORD.findall(text)


def ngram_entropy(text: str) -> float:
    """Return the generation entropy of one text, in bits times 100; 0 for a text of fewer than two words."""
    found = words(text)
    total = 0.0
    for n, weight in _WEIGHTS:
        counts = Counter(zip(*(found[start:] for start in range(n)), strict=False))
        size = sum(counts.values())
        total -= weight * sum(count / size * math.log2(count / size) for count in counts.values())
    return 100.0 * total / len(_WEIGHTS)


def sample_texts(
    lm: LanguageModel,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    length: int = 100,
    progress: Progress | None = None,
) -> list[str]:
    """Sample one continuation a prompt among the five likeliest tokens, as the reference evaluation does.

    Args:
        lm: the model.
        prompts: openings.
        seed: equal seeds and prompts give equal text on one machine, while its memory suffices.
        length: tokens of a text, its opening included.
        progress: called with ("generation", done, total).

    Returns:
        The texts with their openings.
    """
    generator = torch.Generator(device=lm.device).manual_seed(seed)
    rows = [encode(lm.tokenizer, prompt)[0][: length - 1] for prompt in prompts]

    def grown(group: list[int]) -> list[list[int]]:
        before = generator.get_state()
        try:
            starts = [rows[i] for i in group]
            return continue_texts(lm, starts, length, generator=generator, top_k=_TOP_K)
        except BaseException:
            generator.set_state(before)
            raise

    texts: dict[int, str] = {}
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for group, found in in_groups(order, _ROWS * length, lambda _: length, grown):
        texts.update(zip(group, lm.tokenizer.batch_decode(found, skip_special_tokens=True), strict=True))
        if progress is not None:
            progress("generation", len(texts), len(order))
    return [texts[number] for number in range(len(rows))]


@dataclass(frozen=True, slots=True)
class References:
    """Texts to compare with, and how rare each word is in them.

    Attributes:
        by_target: texts by target item id.
        passages: texts that belong to no target; those that name it serve.
        rarity: ln((1 + n) / (1 + df)) + 1 by word.
    """

    by_target: Mapping[str, tuple[str, ...]]
    passages: tuple[str, ...]
    rarity: Mapping[str, float]

    @classmethod
    def of(
        cls, *, by_target: Mapping[str, Sequence[str]] | None = None, passages: Sequence[str] = ()
    ) -> References:
        """Count in how many texts each word stands.

        Args:
            by_target: texts by target item id.
            passages: texts about anything.

        Returns:
            The references.
        """
        kept = {target: tuple(texts) for target, texts in (by_target or {}).items()}
        everything = [*passages, *(text for texts in kept.values() for text in texts)]
        holding = Counter(word for text in everything for word in {w.casefold() for w in words(text)})
        count = len(everything)
        rarity = {word: math.log((1 + count) / (1 + df)) + 1 for word, df in holding.items()}
        return cls(kept, tuple(passages), rarity)

    @classmethod
    def load(cls, path: Path) -> References:
        """Read ``attribute_snippets.json`` of CounterFact, or a text file with one passage a line.

        Args:
            path: the file.

        Returns:
            The references.

        Raises:
            DataFormatError: neither.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataFormatError(
                f"The reference texts in {path} could not be read ({error}): name a file of text in UTF-8.",
                source=str(path),
            ) from error
        if path.suffix != ".json":
            return cls.of(passages=[line for line in text.splitlines() if line.strip()])
        try:
            by_target: dict[str, list[str]] = {}
            for entry in json.loads(text):
                by_target.setdefault(entry["target_id"], []).extend(
                    sample["text"] for sample in entry["samples"]
                )
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataFormatError(
                f"{path} is not in the layout of CounterFact's attribute_snippets.json ({error!r}): "
                "give that file, or a text file with one passage a line.",
                source=str(path),
            ) from error
        return cls.of(by_target=by_target)

    def texts_for(self, case: Case) -> tuple[str, ...]:
        """Return the texts that a case's target is compared with; none if there are none."""
        if case.target_id is not None and case.target_id in self.by_target:
            return self.by_target[case.target_id]
        name = re.compile(rf"(?<!\w){re.escape(case.request.target)}(?!\w)")
        return tuple(text for text in self.passages if name.search(text))

    def similarity(self, written: Sequence[str], references: Sequence[str]) -> float:
        """Return the tf-idf cosine of two groups of texts, times 100.

        Args:
            written: by the model.
            references: to compare with.

        Returns:
            Between 0 and 100; words that no reference has do not count.
        """
        a, b = self._vector(" ".join(written)), self._vector(" ".join(references))
        norm = math.sqrt(sum(x * x for x in a.values()) * sum(x * x for x in b.values()))
        return 100.0 * sum(x * b.get(word, 0.0) for word, x in a.items()) / norm if norm else 0.0

    def _vector(self, text: str) -> dict[str, float]:
        counts = Counter(word.casefold() for word in words(text))
        return {word: n * self.rarity[word] for word, n in counts.items() if word in self.rarity}
