"""Tiny random models of every architecture, and tokenizers of every kind, made on the spot."""

from __future__ import annotations

import json
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from editor.model import LanguageModel

CORPUS = [
    "The head of government of Germany is Olaf Scholz.",
    "The capital of France is Paris. Paris is a city in France.",
    "Ulf Kristersson's country is Sweden; the Swedish prime minister lives in Stockholm.",
    "The mayor of Köln is Henriette Reker, and São Paulo is a city in Brazil.",
    "Who leads Norway? The answer is Jonas Gahr Støre.",
]

_FALLBACK = {"llama": True, "gemma": False}
"""Kinds of tokenizer with bytes for unknown characters, and whether they put a space before a text."""

_COMMON: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_GPT: dict[str, Any] = {
    "vocab_size": 400,
    "n_embd": 32,
    "n_inner": 80,
    "n_layer": 4,
    "n_head": 4,
    "n_positions": 128,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_NEOX = {k: v for k, v in _COMMON.items() if k not in {"num_key_value_heads", "head_dim"}}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", _GPT),
    "gpt_bigcode": ("GPTBigCodeConfig", _GPT),
    "gpt_neo": (
        "GPTNeoConfig",
        {
            **_NEOX,
            "num_layers": 4,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 2]],
            "window_size": 64,
        },
    ),
    "gptj": ("GPTJConfig", {**_GPT, "rotary_dim": 4}),
    "codegen": ("CodeGenConfig", {**_GPT, "rotary_dim": 4}),
    "gpt_neox": ("GPTNeoXConfig", {**_NEOX, "rotary_pct": 0.5}),
    "gpt_neox_serial": ("GPTNeoXConfig", {**_NEOX, "rotary_pct": 0.5, "use_parallel_residual": False}),
    "opt": ("OPTConfig", {**_NEOX, "ffn_dim": 80, "word_embed_proj_dim": 16}),
    "llama": ("LlamaConfig", _COMMON),
    "llama_tied": ("LlamaConfig", {**_COMMON, "tie_word_embeddings": True}),
    "mistral": ("MistralConfig", {**_COMMON, "sliding_window": 64}),
    "qwen2": ("Qwen2Config", _COMMON),
    "qwen3": ("Qwen3Config", _COMMON),
    "gemma": ("GemmaConfig", _COMMON),
    "gemma2": ("Gemma2Config", {**_COMMON, "sliding_window": 64, "final_logit_softcapping": 5.0}),
    "gemma3": ("Gemma3TextConfig", {**_COMMON, "sliding_window": 64}),
    "phi": ("PhiConfig", {**_COMMON, "partial_rotary_factor": 0.5}),
    "phi3": ("Phi3Config", _COMMON),
    "falcon": (
        "FalconConfig",
        {**_NEOX, "ffn_hidden_size": 80, "alibi": False, "new_decoder_architecture": False},
    ),
    "falcon_alibi": ("FalconConfig", {**_NEOX, "ffn_hidden_size": 80, "alibi": True}),
    "olmo": ("OlmoConfig", _COMMON),
    "olmo2": ("Olmo2Config", _COMMON),
    "olmo3": ("Olmo3Config", {**_COMMON, "sliding_window": 64}),
    "glm": ("GlmConfig", _COMMON),
    "glm4": ("Glm4Config", _COMMON),
    "smollm3": ("SmolLM3Config", _COMMON),
    "ernie4_5": ("Ernie4_5Config", _COMMON),
    "seed_oss": ("SeedOssConfig", _COMMON),
    "cohere": ("CohereConfig", {**_COMMON, "logit_scale": 0.25}),
    "cohere2": ("Cohere2Config", {**_COMMON, "logit_scale": 0.25, "sliding_window": 64}),
    "granite": ("GraniteConfig", {**_COMMON, "logits_scaling": 3.0, "residual_multiplier": 0.5}),
    "stablelm": ("StableLmConfig", {**_COMMON, "partial_rotary_factor": 0.5}),
    "starcoder2": ("Starcoder2Config", _COMMON),
}


def tokenizer(kind: str = "bytes", *, bos: bool = False) -> PreTrainedTokenizerFast:
    """Train a small tokenizer, with or without BOS.

    Args:
        kind: "bytes" as GPT-2's, "pieces" as sentencepiece's, "llama" and "gemma" as these families' with
            bytes for unknown characters, "unigram" as T5's.
        bos: put "<s>" in front.
    """
    inner = _trained(kind)
    if bos:
        inner.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)]),
            ]
            if kind == "bytes"
            else [processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="<s>"
    )


def _trained(kind: str) -> Tokenizer:
    inner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    options: dict[str, Any] = {"special_tokens": ["<unk>", "<s>"], "show_progress": False}
    if kind == "bytes":
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        options["initial_alphabet"] = pre_tokenizers.ByteLevel.alphabet()
    else:
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        inner.decoder = decoders.Metaspace(prepend_scheme="first")
        options["initial_alphabet"] = sorted(set("▁" + "".join(CORPUS)))
    trainer = trainers.BpeTrainer(vocab_size=134 if kind in _FALLBACK else 390, **options)
    inner.train_from_iterator(CORPUS * 4, trainer)
    if kind in _FALLBACK:
        return _with_fallback(inner, dummy_prefix=_FALLBACK[kind])
    if kind == "unigram":
        # The library's own trainer makes another vocabulary at every run.
        ranks = sorted(inner.get_vocab().items(), key=lambda item: item[1])
        inner.model = models.Unigram([(piece, -1 - rank / 1000) for piece, rank in ranks], unk_id=0)
    return inner


def _with_fallback(trained: Tokenizer, *, dummy_prefix: bool) -> Tokenizer:
    """Give trained merges a token for each byte, and a normalizer in place of the pre-tokenizer."""
    vocab = trained.get_vocab()
    vocab |= {f"<0x{byte:02X}>": len(vocab) + byte for byte in range(256)}
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    inner = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    inner.add_special_tokens(["<unk>", "<s>"])
    spaces = normalizers.Replace(" ", "▁")
    words = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if dummy_prefix:
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
        inner.decoder = decoders.Sequence([*words, decoders.Strip(" ", 1, 0)])
    else:
        inner.normalizer = spaces
        inner.decoder = decoders.Sequence(words)
    return inner


def model(name: str = "llama", *, seed: int = 0) -> torch.nn.Module:
    """Build a tiny random model; weights are twice the usual size so that its states differ."""
    config_name, arguments = ARCHITECTURES[name]
    torch.manual_seed(seed)
    config = getattr(transformers, config_name)(**arguments)
    built = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2.0)
    return built.float()


def language_model(
    name: str = "llama", *, kind: str = "bytes", bos: bool = False, seed: int = 0
) -> LanguageModel:
    """Wrap a tiny random model with a small tokenizer."""
    return LanguageModel.wrap(model(name, seed=seed), tokenizer(kind, bos=bos), name=f"tiny {name}")
