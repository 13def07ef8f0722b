"""Target states, and their residual spread over layers: what AlphaEdit and ROME share with the paper's MEMIT.

As the reference code of MEMIT (Meng et al. 2023, arXiv 2210.07229, Algorithm 1) has it: one key a subject,
half of it from the bare prompt and half the mean over random contexts; keys and residual measured again
after each layer was written.

| symbol | shape | meaning |
|---|---|---|
| K | (d_k, n) | keys at the layer, one a subject |
| R | (d, n) | (z - h) / (layers that remain) |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from editor import delta as deltas
from editor import targets
from editor.batching import tokens_at_once
from editor.errors import NonFiniteError
from editor.keys import Columns, KeyReader
from editor.presets import PAPER_KL_TEMPLATE
from editor.requests import plan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from editor.model import LanguageModel
    from editor.presets import MemitSettings
    from editor.progress import Progress
    from editor.requests import EditRequest

    Write = Callable[[int, Tensor, Tensor], Tensor]


def spread(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    settings: MemitSettings,
    write: Write,
    *,
    prefixes: Sequence[str] = (),
    progress: Progress | None = None,
) -> None:
    """Find target states and write them layer by layer.

    Args:
        lm: the model; its weights change.
        requests: the facts; those of one subject share one target state.
        settings: layers, and how target states are found.
        write: gives Δ (d, d_k) for a layer, K (d_k, n) and R (d, n), in float64.
        prefixes: random contexts.
        progress: called with (stage, done, total).

    Raises:
        RequestError: a request cannot be carried out as written.
        NonFiniteError: a loss or a change is not finite.
    """
    units = plan(
        lm,
        requests,
        prefixes=prefixes,
        kl_template=PAPER_KL_TEMPLATE,
        max_target_tokens=settings.max_target_tokens,
    )
    columns = Columns.of(units, lm.device, mean=True)
    reader = KeyReader(lm, columns.texts, settings.layers, batch_tokens=8 * tokens_at_once(lm, settings))
    keys, states = reader.read(settings.layers[0])
    anchors = columns.own(states)

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress("targets", done, total)

    found = targets.optimise(lm, units, anchors, settings, progress=report)
    wanted = anchors + found.shifts  # eq. 16: z = h + δ
    for number, layer in enumerate(settings.layers):
        if number:
            keys, states = reader.read(layer)
        K = columns.mean(keys)
        R = (wanted - columns.own(states)) / (len(settings.layers) - number)  # eq. 20
        weight = lm.layers.matrix(lm.model, layer)
        with torch.no_grad():
            R = lm.layers.before_norm(lm.model, layer, K @ weight.float().T, R)
        change = write(layer, K.T.double(), R.T.double())
        if not torch.isfinite(change).all():
            raise NonFiniteError("The weight change is not finite: nothing was written.", where="spread")
        deltas.add(weight, change.float())
        if progress is not None:
            progress("write", number + 1, len(settings.layers))
