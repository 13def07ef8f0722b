"""Shared by all tests: where the development data lies, and no hub."""

import os
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers whose threads spin for each other's core take several times as long.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

hypothesis.settings.register_profile("without a clock", deadline=None)
hypothesis.settings.load_profile("without a clock")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of development data, which is not part of the project."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("FACTSYNC_SHARED_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no development data at {folder}; set FACTSYNC_SHARED_DATA")
    return folder


@pytest.fixture(scope="session")
def smollm2_folder(tmp_path_factory) -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, converted once a session."""
    from editor.model import default_gguf, from_gguf

    return from_gguf(default_gguf(), tmp_path_factory.mktemp("models") / "SmolLM2-135M-Instruct")


@pytest.fixture(scope="session")
def tiny_model_folder(smollm2_folder, tmp_path_factory) -> Path:
    """A Llama of random weights, small enough to edit in seconds, with SmolLM2's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny") / "tiny-llama"
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=96,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
