"""Plain attention is the model's own, in value and gradient, whatever the family."""

from __future__ import annotations

import pytest
import torch

from editor.attention import plain_attention
from tests.unit.editor import tiny

WITH_OWN_KEYS = {
    *("gpt2", "gpt_neo", "gptj", "codegen", "gpt_neox", "gpt_neox_serial", "opt", "falcon", "falcon_alibi")
}
CAPPED = {"gemma2"}


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_equals_the_models_own_attention(name: str) -> None:
    """Padded rows of unlike length give the same states and the same gradient of what enters."""
    lm = tiny.language_model(name)
    ids = torch.randint(2, 390, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(9) < torch.tensor([[9], [7], [5]])).long()
    weights = torch.rand(3, 9, 400, generator=torch.Generator().manual_seed(1)) * mask[:, :, None]

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        entering = lm.model.get_input_embeddings()(ids).detach().requires_grad_()
        logits = lm.model(inputs_embeds=entering, attention_mask=mask).logits
        (gradient,) = torch.autograd.grad((logits * weights).sum(), entering)
        return logits[mask.bool()], gradient

    before = lm.attention
    own = run()
    with plain_attention(lm):
        assert (lm.attention == "factsync_grouped") == (name not in WITH_OWN_KEYS | CAPPED)
        plain = run()
    assert lm.attention == before
    torch.testing.assert_close(plain, own, rtol=1e-4, atol=1e-4)
