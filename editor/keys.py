"""Keys and states of many texts: only blocks up to the last edited one, only tokens up to the subject.

After a block was written, the next measurement starts at the block above it from kept states, so five edited
layers cost one pass over the blocks below them plus 5 + 4 + 3 + 2 + 1 blocks, not five whole models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from editor import activations

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor

    from editor.model import LanguageModel


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
        self._lm = lm
        self._last = layers[-1]
        self._order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        self._batches: list[_Batch] = []
        group: list[int] = []
        for i in self._order:
            if group and (len(group) + 1) * len(texts[i]) > batch_tokens:
                self._batches.append(_Batch(lm, [texts[j] for j in group]))
                group = []
            group.append(i)
        if group:
            self._batches.append(_Batch(lm, [texts[j] for j in group]))

    @torch.no_grad()
    def read(self, layer: int) -> tuple[Float[Tensor, "n d_k"], Float[Tensor, "n d"]]:
        """Measure at one layer; call with ascending layers, after the layers below were written.

        Args:
            layer: the layer about to be written.

        Returns:
            Keys at `layer`, and states at the last edited layer, in the order of the texts.
        """
        keys, states = [], []
        for batch in self._batches:
            key, state = batch.read(self._lm, layer, self._last)
            keys.append(key)
            states.append(state)
        back = torch.empty(len(self._order), dtype=torch.long)
        back[torch.tensor(self._order, dtype=torch.long)] = torch.arange(len(self._order))
        back = back.to(self._lm.device)
        return torch.cat(keys)[back], torch.cat(states)[back]


class _Batch:
    def __init__(self, lm: LanguageModel, texts: Sequence[Sequence[int]]) -> None:
        self._ids, self._mask, self._positions = activations.padded(texts, lm.device)
        self._ends = torch.tensor([len(text) - 1 for text in texts], device=lm.device)
        self._rows = torch.arange(len(texts), device=lm.device)
        self._start = 0
        self._input: Tensor | None = None

    def read(self, lm: LanguageModel, layer: int, last: int) -> tuple[Tensor, Tensor]:
        wanted = sorted({last, *([layer - 1] if layer > self._start else [])})
        with activations.record(lm, keys=[layer], states=wanted) as (keys, states):
            activations.run(
                lm,
                self._ids,
                self._mask,
                self._positions,
                start=self._start,
                states=self._input,
                stop_after=last,
            )
        if layer > self._start:
            # Blocks below `layer` are final: the next measurement starts here.
            self._input, self._start = states[layer - 1], layer
        key = keys[layer].reshape(*self._ids.shape, -1)
        return key[self._rows, self._ends], states[last][self._rows, self._ends]
