"""Keys and states of many texts: only blocks up to the last edited one, only tokens up to the subject.

What texts have in common runs once: those that open alike ("The head of government of") share its keys and
values. After a block was written, the next measurement starts at the block above it from kept states, so five
edited layers cost one pass over the blocks below them plus 5 + 4 + 3 + 2 + 1 blocks, not five whole models.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import accumulate, groupby
from typing import TYPE_CHECKING

import torch
from transformers import DynamicCache

from editor import activations
from editor.allocator import give_back_freed_memory
from editor.batching import groups, with_smaller_batches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor

    from editor.model import LanguageModel
    from editor.requests import Unit

_FORWARD_TOKENS = 32
"""What one more forward costs, in tokens: texts are parted only where they share more than that."""


class KeyReader:
    """Measures keys and final states of fixed texts while the model below them changes layer by layer.

    Args:
        lm: the model.
        texts: token ids; the last token of each is where keys are read.
        layers: edited layers, ascending.
        batch_tokens: most tokens of one forward.
    """

    def __init__(
        self,
        lm: LanguageModel,
        texts: Sequence[Sequence[int]],
        layers: Sequence[int],
        *,
        batch_tokens: int = 4096,
    ) -> None:
        self._lm, self._last = lm, layers[-1]
        self._texts = [tuple(text) for text in texts]
        self._cut(batch_tokens)

    def _cut(self, batch_tokens: int) -> None:
        """Put the texts into batches, none of which has run."""
        lm, self._batch_tokens = self._lm, batch_tokens
        self._order: list[int] = []
        self._batches: list[_Batch] = []
        ordered = sorted((text, i) for i, text in enumerate(self._texts))
        for head, alike in openings(ordered):
            tails = sorted((text[head:], i) for text, i in alike)
            for group in groups(sorted(tails, key=_tokens), batch_tokens, _tokens):
                self._batches.append(_Batch(lm, alike[0][0][:head], [tail for tail, _ in group]))
                self._order += [i for _, i in group]

    @torch.no_grad()
    def read(self, layer: int) -> tuple[Float[Tensor, "n d_k"], Float[Tensor, "n d"]]:
        """Measure at one layer; call with ascending layers, after the layers below were written.

        Args:
            layer: the layer about to be written.

        Returns:
            Keys at `layer`, and states at the last edited layer, in the order of the texts.

        Raises:
            OutOfMemoryError: memory ran out at the smallest batch.
        """
        longest = max(map(len, self._texts), default=0)
        return with_smaller_batches(longest, self._batch_tokens, partial(self._read, layer))

    def _read(self, layer: int, *, batch_tokens: int) -> tuple[Tensor, Tensor]:
        if batch_tokens != self._batch_tokens:
            self._cut(batch_tokens)  # they run from the first block again: those below `layer` are final
        keys, states = [], []
        for batch in self._batches:
            key, state = batch.read(self._lm, layer, self._last)
            keys.append(key)
            states.append(state)
        back = torch.empty(len(self._order), dtype=torch.long)
        back[torch.tensor(self._order, dtype=torch.long)] = torch.arange(len(self._order))
        back = back.to(self._lm.device)
        found = torch.cat(keys)[back], torch.cat(states)[back]
        give_back_freed_memory()  # batches are of many sizes
        return found


Text = tuple[tuple[int, ...], int]
"""Token ids, and the place in the caller's order."""


def openings(texts: Sequence[Text]) -> list[tuple[int, Sequence[Text]]]:
    """Part sorted texts by what they open with, where running it once saves more than a forward costs.

    Args:
        texts: token ids and places, in lexical order.

    Returns:
        For each part, the number of tokens that its texts share and that run once, and the texts.
    """
    return _parted(texts)[1] if texts else []


def _parted(texts: Sequence[Text]) -> tuple[int, list[tuple[int, Sequence[Text]]]]:
    """Return the cheapest way to run sorted texts, in tokens, and the parts."""
    first, final = texts[0][0], texts[-1][0]  # sorted: what these two share, all do
    shared = next((at for at, (a, b) in enumerate(zip(first, final, strict=False)) if a != b), len(first))
    head = min(shared, min(len(text) for text, _ in texts) - 1)  # each has a last token of its own
    together = _FORWARD_TOKENS + head + sum(len(text) - head for text, _ in texts)
    if head < shared:
        return together, [(head, texts)]
    parted = [_parted(list(part)) for _, part in groupby(texts, key=lambda item: item[0][head])]
    apart = sum(cost for cost, _ in parted)
    if together <= apart:
        return together, [(head, texts)]
    return apart, [part for _, parts in parted for part in parts]


def _tokens(text: Text) -> int:
    return len(text[0])


class _Batch:
    """Texts with one opening.

    Args:
        lm: the model.
        head: the opening; may be empty.
        tails: what follows in each text.
    """

    def __init__(self, lm: LanguageModel, head: Sequence[int], tails: Sequence[Sequence[int]]) -> None:
        ids, mask, positions = activations.padded(tails, lm.device)
        opening = torch.ones(len(tails), len(head), dtype=mask.dtype, device=lm.device)
        self._tails = _Run(ids, torch.cat([opening, mask], dim=1), positions + len(head))
        self._head = _Run(*activations.padded([head], lm.device)) if head else None
        self._ends = torch.tensor([len(tail) - 1 for tail in tails], device=lm.device)
        self._rows = torch.arange(len(tails), device=lm.device)

    def read(self, lm: LanguageModel, layer: int, last: int) -> tuple[Tensor, Tensor]:
        cache = None
        if self._head is not None:
            cache = DynamicCache()
            start = self._head.start
            self._head.to(lm, layer, last, cache)
            stored = {
                one: tuple(part.expand(len(self._rows), -1, -1, -1) for part in (own.keys, own.values))
                for one, own in enumerate(cache.layers)
                if start <= one <= last
            }
            cache = activations.cache_of(lm, stored)
        key, state = self._tails.to(lm, layer, last, cache)
        key = key.reshape(*self._tails.ids.shape, -1)
        return key[self._rows, self._ends], state[self._rows, self._ends]


class _Run:
    """Rows that run up to the last edited block, again and again from higher blocks."""

    def __init__(self, ids: Tensor, mask: Tensor, positions: Tensor) -> None:
        self.ids, self._mask, self._positions = ids, mask, positions
        self.start = 0
        self._input: Tensor | None = None

    def to(
        self, lm: LanguageModel, layer: int, last: int, cache: DynamicCache | None
    ) -> tuple[Tensor, Tensor]:
        """Run to the last block; returns keys at `layer` and states at `last` of all tokens."""
        below = [layer - 1] if layer > self.start else []
        with activations.record(lm, keys=[layer], states=below) as (keys, states):
            reached = activations.run(
                lm,
                self.ids,
                self._mask,
                self._positions,
                start=self.start,
                states=self._input,
                stop_after=last,
                cache=cache,
            )
        if below:
            # Blocks below `layer` are final: the next measurement starts here.
            self._input, self.start = states[layer - 1], layer
        return keys[layer], reached


@dataclass(frozen=True, slots=True)
class Columns:
    """Which key columns belong to which unit.

    Attributes:
        texts: token ids of all columns, unit after unit.
        text_owner: unit of each text.
        first: index of each unit's first text.
        owner: unit of each column: of each text, or with averaged keys one a unit.
    """

    texts: list[tuple[int, ...]]
    text_owner: Tensor
    first: Tensor
    owner: Tensor

    @classmethod
    def of(cls, units: Sequence[Unit], device: torch.device, *, mean: bool) -> Columns:
        """Gather the columns of some units; with `mean`, one a unit."""
        counts = [len(unit.columns) for unit in units]
        owner = [number for number, count in enumerate(counts) for _ in range(count)]
        own = torch.tensor(owner, dtype=torch.long, device=device)
        return cls(
            [column for unit in units for column in unit.columns],
            own,
            torch.tensor([0, *accumulate(counts)][: len(units)], dtype=torch.long, device=device),
            torch.arange(len(units), device=device) if mean else own,
        )

    def by_unit(self, rows: Float[Tensor, "columns d"]) -> tuple[Float[Tensor, "m d"], ...]:
        """Return the rows of each unit, as views."""
        return torch.split(rows, torch.bincount(self.owner).tolist())

    def own(self, rows: Float[Tensor, "texts d"]) -> Float[Tensor, "columns d"]:
        """Return a state a column: a unit's averaged column has that of its first text."""
        return rows.float() if self.owner is self.text_owner else rows[self.first].float()

    def mean(self, rows: Float[Tensor, "texts d_k"]) -> Float[Tensor, "columns d_k"]:
        """Return a key a column; averaged as the reference does: half the bare one, half the others' mean."""
        if self.owner is self.text_owner:
            return rows.float()
        own, sizes = rows[self.first].float(), torch.bincount(self.text_owner)
        total = torch.zeros_like(own).index_add(0, self.text_owner, rows.float())
        others = (total - own) / (sizes - 1).clamp(min=1)[:, None]
        return torch.where(sizes[:, None] > 1, 0.5 * own + 0.5 * others, own)
