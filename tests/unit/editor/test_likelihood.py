"""-log p of wanted tokens: equal to the plain chain of torch operations, in value and gradient."""

from __future__ import annotations

import pytest
import torch

from editor import likelihood
from editor.likelihood import WORD_END, negative_log_likelihood

VOCABULARY = 11


@pytest.fixture
def word_ends() -> torch.Tensor:
    return torch.arange(VOCABULARY) % 3 == 0


def _plainly(logits: torch.Tensor, labels: torch.Tensor, word_ends: torch.Tensor) -> torch.Tensor:
    logs = logits.log_softmax(dim=1)
    ended = -logs[:, word_ends].logsumexp(dim=1)
    return torch.where(labels == WORD_END, ended, -logs.gather(1, labels.clamp(min=0)[:, None])[:, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 1, 7])
@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_equals_the_plain_chain(
    monkeypatch: pytest.MonkeyPatch, word_ends: torch.Tensor, dtype: torch.dtype, rows: int, at_once: int
) -> None:
    monkeypatch.setitem(likelihood._BLOCK_BYTES, "cpu", 4 * VOCABULARY * at_once)
    torch.manual_seed(rows)
    logits = (8 * torch.randn(rows, VOCABULARY)).to(dtype).requires_grad_()
    labels = torch.randint(WORD_END, VOCABULARY, (rows,))
    weights = torch.rand(rows)
    exact = logits.detach().double().requires_grad_()

    found = negative_log_likelihood(logits, labels, word_ends)
    (gradient,) = torch.autograd.grad((found * weights).sum(), logits)
    expected = _plainly(exact, labels, word_ends)
    (plain,) = torch.autograd.grad((expected * weights).sum(), exact)

    assert torch.equal(logits.double(), exact), "they may have other readers"
    torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=1e-5)
    rounding = 1e-5 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(gradient.float(), plain.float(), atol=rounding, rtol=rounding)


def test_tokens_far_from_the_likeliest_keep_finite_losses_and_gradients(word_ends: torch.Tensor) -> None:
    logits = torch.full((2, VOCABULARY), -300.0)
    logits[:, 1] = 300.0  # no word end, and not wanted
    logits.requires_grad_()
    found = negative_log_likelihood(logits, torch.tensor([2, WORD_END]), word_ends)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    torch.testing.assert_close(found, torch.tensor([600.0, 600.0 - torch.tensor(4.0).log().item()]))
    assert gradient.isfinite().all()
    assert gradient[0, 2] == -1
    torch.testing.assert_close(gradient[1, word_ends], torch.full((4,), -0.25))
