"""Algorithm 1 of MEMIT (Meng et al., ICLR 2023, arXiv 2210.07229): target states, spread over the layers.

    z = h + δ                                            at the last edited layer             (eq. 16)

and from the first edited layer up, each measured after those below it were written:

    K of the texts up to the subject's end                                                    (eq. 19)
    V = W K + R,  R = (z - h) / (layers that remain)                                          (eq. 20)
    W + Δ gives V for K                                  as the caller solves it; MEMIT's is eq. 14

A layer's keys do not depend on its own matrix: once all is written they are what they were.

| symbol | shape | meaning |
|---|---|---|
| h, z | (d, n) | states at the last edited layer, as they are and as wanted |
| δ | (d, subjects) | shifts |
| W, Δ | (d, d_k) | the layer's matrix and its change |
| K | (d_k, n) | keys, one a subject or one a context (`MemitSettings.keys`) |
| V, R | (d, n) | what W is to give for them, and what that is more than W K |

Differs: a mean key is the bare prompt's by half, as in the reference code; R is what W must add, where its
block scales or normalises what W gives (`LayerMap.before_norm`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from editor import delta as deltas
from editor import targets
from editor.batching import tokens_at_once
from editor.errors import NonFiniteError
from editor.keys import Columns, KeyReader

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from editor.model import LanguageModel
    from editor.presets import MemitSettings
    from editor.progress import Progress
    from editor.requests import Unit

    Write = Callable[[int, Float[Tensor, "d_k n"], Float[Tensor, "d n"], Float[Tensor, "d n"]], object]


@dataclass(frozen=True, slots=True)
class Spread:
    """What was written.

    Attributes:
        anchors: h of each unit's first text before the write, (units, d).
        found: δ, and how it was found.
        keys: by layer, of each unit, (m, d_k), on the CPU.
        values: by layer, of each unit, (m, d), on the CPU.
        left: of each unit, the share of ‖z - h‖ that the write left, (m, 1).
    """

    anchors: Float[Tensor, "units d"]
    found: targets.Targets
    keys: Mapping[int, tuple[Float[Tensor, "m d_k"], ...]]
    values: Mapping[int, tuple[Float[Tensor, "m d"], ...]]
    left: tuple[Float[Tensor, "m 1"], ...]


def spread(
    lm: LanguageModel,
    units: Sequence[Unit],
    settings: MemitSettings,
    write: Write,
    *,
    search: targets.Search = targets.optimise,
    progress: Progress | None = None,
) -> Spread:
    """Find target states on the weights as they are, and write them layer by layer.

    Args:
        lm: the model; its weights change.
        units: tokenised subjects, at least one; each has one target state.
        settings: layers, one key a context or a mean one, and how target states are found.
        write: writes a layer, given K, V and R.
        search: finds target states.
        progress: called with (stage, done, total).

    Returns:
        What was written.

    Raises:
        NonFiniteError: a loss or a change is not finite.
        OutOfMemoryError: memory ran out at the smallest batch.
    """
    columns = Columns.of(units, lm.device, mean=settings.keys == "mean")
    reader = KeyReader(lm, columns.texts, settings.layers, batch_tokens=8 * tokens_at_once(lm, settings))
    keys, states = reader.read(settings.layers[0])
    anchors, before = states[columns.first].float(), columns.own(states)
    report = partial(progress, "targets") if progress else None
    found = search(lm, units, anchors, settings, progress=report)
    z = before + found.shifts[columns.owner]  # eq. 16
    kept_keys, kept_values = {}, {}
    for number, layer in enumerate(settings.layers):
        if number:
            keys, states = reader.read(layer)
        K = columns.mean(keys)  # eq. 19; rows here, as all below
        R = (z - columns.own(states)) / (len(settings.layers) - number)  # eq. 20
        V = (K.double() @ lm.layers.matrix(lm.model, layer).double().T).float()
        with torch.no_grad():
            R = lm.layers.before_norm(lm.model, layer, V, R)
        V = V + R
        write(layer, K.T, V.T, R.T)  # eq. 14
        kept_keys[layer], kept_values[layer] = columns.by_unit(K.cpu()), columns.by_unit(V.cpu())
        if progress is not None:
            progress("write", number + 1, len(settings.layers))
    _, states = reader.read(settings.layers[-1])
    missing, wanted = ((z - now).norm(dim=1, keepdim=True) for now in (columns.own(states), before))
    # Of a fact that the model said before, nothing was wanted.
    left = columns.by_unit(torch.where(wanted > 0, missing / wanted, 0.0))
    return Spread(anchors, found, kept_keys, kept_values, left)


def add(lm: LanguageModel, layer: int, change: Float[Tensor, "d d_k"]) -> None:
    """Add Δ to a layer's matrix.

    Raises:
        NonFiniteError: it is not finite; the matrix is as it was.
    """
    if not torch.isfinite(change).all():
        raise NonFiniteError("The weight change is not finite: nothing was written.", where="spread")
    deltas.add(lm.layers.matrix(lm.model, layer), change.float())
