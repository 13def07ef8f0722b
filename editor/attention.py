"""Attention by plain matrix products, where a processor's fused kernel is slow in its backward.

The fused kernel took a third of an optimiser step on rows of a dozen tokens. transformers' own plain form
repeats a key for all query heads that share it, and its gradients are summed up again: a twentieth of a step.
Here the heads that share a key are folded into the tokens that ask it (Ainslie et al., arXiv 2305.13245),
with g = heads / shared heads:

    Q (heads, tokens, w) -> (shared, g tokens, w)      softmax(Q Kᵀ · scaling + mask) V, K and V as they are
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Float
    from torch import Tensor, nn

    from editor.model import LanguageModel

_GROUPED = "factsync_grouped"


@contextmanager
def plain_attention(lm: LanguageModel) -> Iterator[None]:
    """Compute attention by two matrix products on a CPU, where the model's class lets it be chosen.

    Args:
        lm: the model.
    """
    before = lm.attention
    settable: bool = lm.model._can_set_attn_implementation()  # type: ignore[operator]  # noqa: SLF001 - no public one
    if lm.device.type != "cpu" or before == "eager" or not settable:
        yield
        return
    lm.model.set_attn_implementation(_GROUPED if _shares_keys(lm) else "eager")  # type: ignore[operator]
    try:
        yield
    finally:
        lm.model.set_attn_implementation(before)  # type: ignore[operator]


def _shares_keys(lm: LanguageModel) -> bool:
    """Whether query heads share keys, and scores go to the softmax as they are (Gemma 2 caps them)."""
    config: Any = lm.model.config
    shared = getattr(config, "num_key_value_heads", None)
    capped = getattr(config, "attn_logit_softcapping", None)
    return shared is not None and shared < config.num_attention_heads and capped is None


def _grouped(
    _module: nn.Module,
    query: Float[Tensor, "batch heads tokens w"],
    key: Float[Tensor, "batch shared all_tokens w"],
    value: Float[Tensor, "batch shared all_tokens w"],
    attention_mask: Float[Tensor, "batch 1 tokens all_tokens"] | None,
    scaling: float,
    **_kwargs: object,
) -> tuple[Float[Tensor, "batch tokens heads w"], None]:
    batch, heads, tokens, width = query.shape
    shared = key.shape[1]
    scores = (query * scaling).reshape(batch, shared, -1, width) @ key.transpose(2, 3)
    if attention_mask is not None:
        by_head = scores.view(batch, shared, heads // shared, tokens, -1)
        scores = (by_head + attention_mask[:, :, None]).view_as(scores)
    read = scores.softmax(dim=-1) @ value
    return read.view(batch, heads, tokens, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(_GROUPED, _grouped)
AttentionMaskInterface.register(_GROUPED, eager_mask)
