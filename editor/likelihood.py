"""-log p of wanted tokens over a large vocabulary, a block of rows at a time.

With x the logits of a row, w the token it wants or E the tokens that end a word,

    -log p(w)          = lse(x) - x_w            lse(x) = log Σ_v exp x_v
    -log Σ_E p(v)      = lse(x) - lse(x_E)

and the gradient is softmax(x) less the softmax over what is wanted. For it only the logits are kept, in the
precision they came in: a cast, a log-softmax and a choice would keep three float32 copies of them. A block in
float32 fits a processor's cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

WORD_END = -1
"""The label of a row where any token will do that ends the word."""

_BLOCK_BYTES = {"cpu": 2**20, "cuda": 2**28}


def negative_log_likelihood(
    logits: Float[Tensor, "rows vocab"], labels: Int[Tensor, " rows"], word_ends: Bool[Tensor, " vocab"]
) -> Float[Tensor, " rows"]:
    """Return -log p of what each row wants, in nats and float32.

    Args:
        logits: of any floating dtype.
        labels: wanted token, or `WORD_END`.
        word_ends: tokens that end a word.
    """
    found: Tensor = _NegativeLogLikelihood.apply(logits, labels, word_ends)  # type: ignore[no-untyped-call]
    return found


class _NegativeLogLikelihood(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, word_ends: Tensor) -> Tensor:  # type: ignore[override]  # noqa: ANN401
        whole, wanted = torch.empty(2, len(logits), device=logits.device)
        for block in _blocks(logits):
            rows, label = logits[block].float(), labels[block]
            ended = label == WORD_END
            wanted[block] = rows.gather(1, label.clamp(min=0)[:, None])[:, 0]
            wanted[block][ended] = _ends(rows[ended], word_ends).logsumexp(dim=1)
            whole[block] = rows.logsumexp(dim=1)
        ctx.save_for_backward(logits, labels, word_ends, whole, wanted)
        nats: Tensor = whole - wanted
        return nats

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]  # noqa: ANN401
        logits, labels, word_ends, whole, wanted = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for block in _blocks(logits):
            rows = logits[block].to(torch.float32, copy=True)  # the logits may have other readers
            label, weight = labels[block], weights[block, None]
            ended = label == WORD_END
            own = (_ends(rows[ended], word_ends) - wanted[block][ended, None]).exp_() * weight[ended]
            rows.sub_(whole[block, None]).exp_().mul_(weight)
            rows.scatter_add_(1, label.clamp(min=0)[:, None], -weight.masked_fill(ended[:, None], 0.0))
            rows[ended] -= own
            gradient[block] = rows
        return gradient, None, None


def _blocks(logits: Tensor) -> list[slice]:
    width = logits.shape[1] * 4
    size = max(1, _BLOCK_BYTES.get(logits.device.type, _BLOCK_BYTES["cuda"]) // width)
    return [slice(start, start + size) for start in range(0, len(logits), size)]


def _ends(rows: Tensor, word_ends: Tensor) -> Tensor:
    return rows.masked_fill_(~word_ends, -torch.inf)
