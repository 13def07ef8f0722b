"""Models without a row in the table: taken where they run as their shapes say, refused by name where not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from editor import activations
from editor.errors import OutOfMemoryError, UnknownArchitectureError
from editor.model import LanguageModel
from tests.unit.editor import tiny

_MLA = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}


def taken(config: str, **more: Any) -> LanguageModel:
    """Take a tiny random model of a family that the table does not have."""
    torch.manual_seed(0)
    common = {**tiny.ARCHITECTURES["llama"][1], **more}
    made = AutoModelForCausalLM.from_config(getattr(transformers, config)(**common)).float()
    return LanguageModel.wrap(made, tiny.tokenizer())


@pytest.mark.parametrize(
    ("config", "more", "why"),
    [
        ("ModernBertDecoderConfig", {"cls_token_id": 1, "sep_token_id": 1}, "its logits are more than"),
        ("HyperCLOVAXConfig", {"use_post_norm": True}, "something that is no factor"),
        ("MambaConfig", {"state_size": 4}, "alone, ends in"),
        ("Lfm2Config", {"layer_types": ["conv", "full_attention"] * 2}, "alone, ends in"),
    ],
)
def test_a_model_that_runs_otherwise_is_refused(config: str, more: dict[str, Any], why: str) -> None:
    """A second part of the head, a norm of another name, states that are no keys and values."""
    with pytest.raises(UnknownArchitectureError, match=why) as caught:
        taken(config, **more)
    assert caught.value.model_type


def test_a_model_whose_tokens_meet_otherwise_is_refused() -> None:
    """What runs in two parts, the first as keys and values, must give what it gives in one."""
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(
        transformers.ArceeConfig(**tiny.ARCHITECTURES["llama"][1])
    ).float()

    def mixed(_module: object, _args: object, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        counts = torch.arange(1, states.shape[1] + 1)[:, None]
        mean = states.cumsum(dim=1) / counts
        return (mean, *output[1:]) if isinstance(output, tuple) else mean

    made.model.layers[3].register_forward_hook(mixed)
    with pytest.raises(UnknownArchitectureError, match="keys and values alone"):
        LanguageModel.wrap(made, tiny.tokenizer())


@pytest.mark.parametrize("seed", range(3))
def test_a_model_that_counts_padding_as_distance_is_refused(seed: int) -> None:
    """MPT's ALiBi goes by the slot of a key; Bloom's goes by the mask, and is taken."""
    torch.manual_seed(seed)
    odd = transformers.MptConfig(vocab_size=400, d_model=32, n_heads=4, n_layers=4, max_seq_len=128)
    with pytest.raises(UnknownArchitectureError, match="padding between tokens"):
        LanguageModel.wrap(AutoModelForCausalLM.from_config(odd).float(), tiny.tokenizer())
    even = transformers.BloomConfig(vocab_size=400, hidden_size=32, n_layer=4, n_head=4)
    LanguageModel.wrap(AutoModelForCausalLM.from_config(even).float(), tiny.tokenizer())


@pytest.mark.parametrize("words", [None, "DefaultCPUAllocator: can't allocate memory"])
def test_a_trial_that_finds_no_room_says_nothing_of_the_model(
    monkeypatch: pytest.MonkeyPatch, words: str | None
) -> None:
    def run_out(*_args: object, **_kwargs: object) -> None:
        raise MemoryError if words is None else RuntimeError(words)

    monkeypatch.setattr(activations, "run", run_out)
    with pytest.raises(OutOfMemoryError, match="take a larger device or a smaller model"):
        taken("ArceeConfig")


def test_a_factor_that_no_table_names_is_measured() -> None:
    """MiniCPM scales what a block adds by scale_depth over the root of the number of blocks."""
    lm = taken("MiniCPM3Config", scale_depth=1.0, **_MLA)
    assert lm.layers.multiplier == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("config", ["ArceeConfig", "HeliumConfig", "NemotronConfig"])
def test_a_model_that_runs_as_its_shapes_say_is_taken(config: str) -> None:
    """With nothing behind its matrices, and its forward as it was."""
    lm = taken(config)
    assert lm.layers.multiplier == 1.0
    assert not any("forward" in lm.layers.block(lm.model, layer).__dict__ for layer in range(4))
    assert not lm.layers.writer(lm.model, 0)._forward_hooks
