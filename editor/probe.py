"""Does a model that was found by its shape run as this package takes it to? Asked once, when it is taken.

Shapes say where the written matrices are, not what else there is: a part of the head that no table names, a
norm or a factor behind the matrix, states that pass between tokens beside keys and values. A few tokens tell:

    logits(states after the last block) = the model's own logits,
    the same where the tokens before come as keys and values        (`editor.chunks`),
    the same where padding stands between them and those after,
    h(y + v) - h(y) = m · v                                         (`LayerMap.before_norm`),

h being the first block's output where its matrix gives y, and m the factor that was measured so. A model with
a row in `editor.layers.ARCHITECTURES` is not asked: tests build and edit one of each.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad
from transformers import DynamicCache

from editor import activations
from editor.batching import of_memory
from editor.errors import OutOfMemoryError, UnknownArchitectureError
from editor.layers import ARCHITECTURES, LayerMap, logits_of
from editor.precision import lowered

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor, nn

    from editor.model import LanguageModel

_BEFORE, _AFTER = 4, 5
_GAP = 32
"""Tokens of padding: a tiny MPT is off by 14 to 23 % behind them, and by 2 to 4 behind two."""
_TOLERANCE = 0.02
"""Largest difference, as a share of what is compared; weights in bfloat16 make a quarter of it."""


def as_it_runs(lm: LanguageModel) -> LayerMap:
    """Return where the matrices of a model are, with m as measured where its family is not known.

    Raises:
        UnknownArchitectureError: the model does not run as this package takes it to.
        OutOfMemoryError: there is no room to run a few tokens.
    """
    if lm.layers.family in ARCHITECTURES:
        return lm.layers
    try:
        with torch.no_grad():
            return replace(lm.layers, multiplier=_tried(lm))
    except UnknownArchitectureError:
        raise
    except Exception as error:  # of a model's own code, which is not run as it was meant to be
        if of_memory(error):
            raise OutOfMemoryError(
                f"There is no room to run a few tokens of {lm.name!r}: take a larger device or a smaller "
                "model."
            ) from error
        raise _refusal(lm, f"part of it, alone, ends in {type(error).__name__} ({error})") from error


def _tried(lm: LanguageModel) -> float:
    """Return m."""
    ids = torch.arange(2, 2 + _BEFORE + _AFTER, device=lm.device)[None]
    mask, positions = torch.ones_like(ids), ids - 2
    own = lm.model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    if _apart(logits_of(lm.model, activations.run(lm, ids, mask, positions)), own):
        raise _refusal(lm, "its logits are more than its output embeddings make of its last states")
    if _apart(_in_two_parts(lm, ids, mask, positions), own[:, _BEFORE:]):
        raise _refusal(lm, "tokens do not reach later ones by keys and values alone")
    # Batches leave gaps behind shorter starts: a model that counts slots (ALiBi) takes them for distance.
    if _apart(_in_two_parts(lm, ids, mask, positions, gap=_GAP), own[:, _BEFORE:]):
        raise _refusal(lm, "padding between tokens changes what it makes of them")
    with lowered(lm, "auto"):
        _in_two_parts(lm, ids, mask, positions)
    if lm.layers.post_norm:
        return lm.layers.multiplier
    v, gained = _with_more(lm, ids, mask, positions, times=1.0)
    m = float(gained @ v / (v @ v))
    twice, as_much = _with_more(lm, ids, mask, positions, times=2.0)  # a norm gives no more for it
    if abs(m) < _TOLERANCE or _apart(gained, m * v) or _apart(as_much, m * twice):
        raise _refusal(lm, "what its matrix adds reaches the stream through something that is no factor")
    return 1.0 if abs(m - 1) < _TOLERANCE else m


def _in_two_parts(lm: LanguageModel, ids: Tensor, mask: Tensor, positions: Tensor, *, gap: int = 0) -> Tensor:
    """Return the last tokens' logits, run above the middle block with those before as keys and values.

    Behind those before, so many tokens of padding stand.
    """
    start = lm.layers.count // 2
    states = activations.run(lm, ids, mask, positions, stop_after=start - 1)
    (first, then), (at, later), (early, late) = (
        torch.split(whole, [_BEFORE, _AFTER], dim=1) for whole in (ids, positions, states)
    )
    first, seen, at = (pad(whole, (0, gap)) for whole in (first, mask[:, :_BEFORE], at))
    early, mask = pad(early, (0, 0, 0, gap)), torch.cat([seen, mask[:, _BEFORE:]], dim=1)
    cache = DynamicCache()
    activations.run(lm, first, seen, at, start=start, states=early, cache=cache)
    stored = {
        layer: (cache.layers[layer].keys, cache.layers[layer].values)
        for layer in range(start, lm.layers.count)
    }
    cache = activations.cache_of(lm, stored)
    return logits_of(lm.model, activations.run(lm, then, mask, later, start=start, states=late, cache=cache))


def _with_more(
    lm: LanguageModel, ids: Tensor, mask: Tensor, positions: Tensor, *, times: float
) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    """Return v, so many times as long as h(y), and h(y + v) - h(y) at the last token."""
    plain = activations.run(lm, ids, mask, positions, stop_after=0)[0, -1].float()
    v = plain.flip(0) * times

    def adding(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
        output = output.clone()
        output[..., -1, :] += v.to(output.dtype)
        return output

    handle = lm.layers.writer(lm.model, 0).register_forward_hook(adding)
    try:
        moved = activations.run(lm, ids, mask, positions, stop_after=0)[0, -1].float()
    finally:
        handle.remove()
    return v, moved - plain


def _apart(found: Tensor, wanted: Tensor) -> bool:
    return not float((found - wanted).float().norm()) <= _TOLERANCE * float(wanted.float().norm())


def _refusal(lm: LanguageModel, why: str) -> UnknownArchitectureError:
    return UnknownArchitectureError(
        f"A model of type {lm.layers.family!r} has the shapes of one that can be edited, but {why}: take "
        "another model, or add what is special about its family to editor/layers.py.",
        model_type=lm.layers.family,
    )
