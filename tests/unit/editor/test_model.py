"""Loading: every way it can go wrong is named; a digest tells models apart."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from accelerate import disk_offload
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from editor.digests import weights_digest
from editor.errors import (
    ModelLoadError,
    ModelNotFoundError,
    NotCausalLMError,
    OutOfMemoryError,
    QuantisedModelError,
    ShardedModelError,
    TokenizerMismatchError,
)
from editor.model import LanguageModel, from_gguf
from tests.unit.editor import tiny

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny model saved as a Hugging Face folder."""
    tiny.model("llama").save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change_config(folder: Path, **changes: object) -> None:
    """Rewrite entries of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_folder_loads_with_the_digest_of_its_weights(folder: Path) -> None:
    """Loading gives the saved weights, in float32 and without gradients."""
    lm = LanguageModel.load(folder, device="cpu")
    assert lm.digest == weights_digest(tiny.model("llama"))
    assert lm.layers.count == 4
    assert (lm.layers.d, lm.layers.d_k) == (32, 80)
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())


def test_digests_tell_models_apart() -> None:
    """One changed bit changes the digest."""
    model = tiny.model("llama_tied")
    before = weights_digest(model)
    with torch.no_grad():
        next(model.parameters())[5, 5] += 1e-3
    assert weights_digest(model) != before


@pytest.mark.parametrize("name", ["/no/such/folder", "./no-such", "."])
def test_a_missing_folder_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is missing or holds no model."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError, match="hub name") as caught:
        LanguageModel.load(name)
    assert caught.value.source == name


def test_an_unreachable_hub_name_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network a hub name is told apart from a folder."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFoundError, match="neither a local folder nor a hub model"):
        LanguageModel.load("factsync-tests/no-such-model")


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    """A masked model is no causal one."""
    config = BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=99
    )
    BertForMaskedLM(config).save_pretrained(tmp_path)
    with pytest.raises(NotCausalLMError, match="not a causal language model"):
        LanguageModel.load(tmp_path)


def test_quantised_weights_are_refused(folder: Path) -> None:
    """Quantised weights cannot take an additive change."""
    quantisation = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    change_config(folder, quantization_config=quantisation)
    with pytest.raises(QuantisedModelError, match="use the full-precision model") as caught:
        LanguageModel.load(folder)
    assert caught.value.data == {"source": str(folder), "quantisation": quantisation}


def test_offloaded_weights_are_refused(tmp_path: Path) -> None:
    """They lie on no device while nothing runs: an edit would go nowhere."""
    model = disk_offload(tiny.model("llama"), str(tmp_path), execution_device=torch.device("cpu"))
    with pytest.raises(ShardedModelError, match="lie on meta: load the whole model on one device"):
        LanguageModel.wrap(model, tiny.tokenizer())


def test_a_broken_config_is_named(folder: Path) -> None:
    """A config that cannot be read."""
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelLoadError, match=r"could not be read .*: restore its config\.json"):
        LanguageModel.load(folder)


def test_missing_weights_are_named(folder: Path) -> None:
    """A folder without its weights."""
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="complete"):
        LanguageModel.load(folder)


def test_a_folder_that_lacks_a_weight_is_refused(folder: Path) -> None:
    """It would load with a random matrix in its place, another at every load."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.2.mlp.down_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"lacks 1 of its weights \(model\.layers\.2\.mlp\.down_proj"):
        LanguageModel.load(folder)


@pytest.mark.parametrize("damage", ["cut", "narrower"])
def test_damaged_weights_are_named(folder: Path, damage: str) -> None:
    """A file that ends early, or a config of another width."""
    file = folder / "model.safetensors"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-1000])
    else:
        change_config(folder, intermediate_size=64)
    with pytest.raises(ModelLoadError, match="could not be read"):
        LanguageModel.load(folder)


def _too_large(*_args: object, **_kwargs: object) -> None:
    torch.empty(2**58, dtype=torch.uint8)  # torch's own words for it


def _no_memory(*_args: object, **_kwargs: object) -> None:
    raise MemoryError


@pytest.mark.parametrize("fails", [_too_large, _no_memory])
@pytest.mark.parametrize("owner", [AutoModelForCausalLM, torch.nn.Module])
def test_weights_that_find_no_room_are_not_called_damaged(
    folder: Path, monkeypatch: pytest.MonkeyPatch, owner: type, fails: Callable[..., None]
) -> None:
    """While they are read, and while they go to their device: another machine may hold them."""
    monkeypatch.setattr(owner, "from_pretrained" if owner is AutoModelForCausalLM else "to", fails)
    with pytest.raises(OutOfMemoryError, match=r"do not fit .*: take a larger device or a smaller model"):
        LanguageModel.load(folder, device="cpu")


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused() -> None:
    """The numbers are in the error."""
    made = tiny.tokenizer()
    made.add_tokens([f"extra{i}" for i in range(50)])
    with pytest.raises(TokenizerMismatchError) as caught:
        LanguageModel.wrap(tiny.model(), made)
    assert caught.value.model_tokens == 400


def test_a_tokenizer_that_makes_the_model_stammer_is_told(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Sure of itself, and surprised by everyday English beyond what chance would be."""
    LanguageModel.load(folder, device="cpu")
    assert not caplog.records
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] *= 30
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    LanguageModel.load(folder, device="cpu")
    assert "less likely than chance" in caplog.text
    assert "6.0" in caplog.text  # ln 400


def test_a_slow_tokenizer_is_refused() -> None:
    """Without offsets the subject's end cannot be known."""

    class Slow(PreTrainedTokenizerFast):
        is_fast = False

    slow = Slow(tokenizer_object=tiny.tokenizer()._tokenizer)
    with pytest.raises(TokenizerMismatchError, match="fast tokenizer"):
        LanguageModel.wrap(tiny.model(), slow)


def test_gguf_conversion_leaves_nothing_half_made(tmp_path: Path) -> None:
    """A missing or broken GGUF file is named; no folder appears, no scratch remains."""
    with pytest.raises(ModelNotFoundError):
        from_gguf(tmp_path / "no.gguf", tmp_path / "out")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF nonsense")
    with pytest.raises(ModelLoadError):
        from_gguf(tmp_path / "bad.gguf", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.gguf"]


def test_gguf_conversion_keeps_another_models_folder(tmp_path: Path) -> None:
    """A folder made from something else is not overwritten."""
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelLoadError, match="holds another model"):
        from_gguf(tmp_path / "m.gguf", tmp_path / "out")
