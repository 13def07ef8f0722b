"""Time edits on models of published shapes with random weights: nothing is downloaded.

    python -m benchmarks.gpu --shape gpt-j-6b --edits 1000
    python -m benchmarks.gpu --shape gpt-j-6b --edits 10000
    python -m benchmarks.gpu --shape llama-3-8b --edits 1000
    python -m benchmarks.gpu --shape llama-3-8b --edits 10000
    python -m benchmarks.gpu --shape tiny --edits 4 --device cpu        (what the tests run)

Prints one JSON object: edits a second, share of the device's peak FLOP/s, peak memory. Random weights give no
knowledge and no meaningful target states; the work is that of a real edit in which no subject ends early.

Time and operations are of whole edits: keys, target states, solves and refinement. Operations are those of
matrix products, forward and backward, on padding too. Left out are factorisations, what is solved with them
or added in place, a CPU's fused attention, and the other text that refinement looks at, two pieces a step
however many edits there are; so the share is a lower bound. They are counted in a smaller
edit before the clock starts (`_flops`), since counting slows it down.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from editor import drift, memit
from editor.model import LanguageModel
from editor.moments import Moments, MomentsKey
from editor.presets import PRESETS, MemitSettings
from editor.requests import EditRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

# Dense bf16 peak in FLOP/s, from the vendors' data sheets.
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}
COUNTED = 64
"""In about how many edits operations are counted."""
TEXTS, TEXT_TOKENS = 16, 64
"""Other text that refinement looks at: as long as the product's, two a step (`editor.drift`)."""
WORDS = (
    "the", "head", "of", "government", "country", "person", "city", "club", "answer", "is", "was", "leads",
    "north", "south", "east", "west", "old", "new",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shape:
    """A model to build.

    Attributes:
        config: class of its config.
        arguments: of the config.
        settings: how to edit.
    """

    config: str
    arguments: dict[str, int]
    settings: MemitSettings


SHAPES = {
    "gpt-j-6b": Shape(
        "GPTJConfig",
        {"n_embd": 4096, "n_layer": 28, "n_head": 16, "rotary_dim": 64, "vocab_size": 50400},
        PRESETS["gpt-j-6b"],
    ),
    "llama-3-8b": Shape(
        "LlamaConfig",
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
        },
        PRESETS["llama-3-8b"],
    ),
    "tiny": Shape(
        "LlamaConfig",
        {
            "hidden_size": 32,
            "intermediate_size": 80,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 400,
        },
        MemitSettings(layers=(0, 1), moment_weight=1.0, steps=3),
    ),
}


def build(shape: Shape, device: str, dtype: torch.dtype) -> LanguageModel:
    """Make a random model of a shape on a device, and a word tokenizer for it."""
    config = getattr(transformers, shape.config)(**shape.arguments)
    with torch.device(device):
        torch.set_default_dtype(dtype)
        try:
            model = AutoModelForCausalLM.from_config(config)
        finally:
            torch.set_default_dtype(torch.float32)
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=390, special_tokens=["<unk>"], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    return LanguageModel.wrap(model, PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>"))


def requests(count: int) -> list[EditRequest]:
    """Make distinct subjects with targets of several tokens."""
    return [
        EditRequest(
            fact_id=str(i),
            subject_id=str(i),
            subject=f"{WORDS[i % len(WORDS)]} {i}",
            prompts=("the head of {} is", "{} government is"),
            target=f"{WORDS[(i * 7) % len(WORDS)]} {WORDS[(i * 3 + 1) % len(WORDS)]}",
        )
        for i in range(count)
    ]


def measure(name: str, edits: int, device: str, dtype: torch.dtype, steps: int | None) -> dict[str, object]:
    """Time one batch of edits.

    Args:
        name: which shape.
        edits: how many.
        device: where.
        dtype: of the weights.
        steps: optimiser steps of a target state; the preset's by default.

    Returns:
        The figures.
    """
    shape = SHAPES[name]
    lm = build(shape, device, dtype)
    settings = replace(
        shape.settings, stop_loss=0.0, refine_stop_loss=0.0, steps=steps or shape.settings.steps
    )
    key = MomentsKey(lm.digest, settings.layers, "identity", 0, 0, str(dtype))
    ids = torch.arange(TEXTS * TEXT_TOKENS).remainder(300) + 1
    texts = drift.measured(lm, ids.view(TEXTS, TEXT_TOKENS).tolist(), settings.layers[-1])
    identity = {layer: torch.eye(lm.layers.d_k) for layer in settings.layers}
    moments = Moments(key, identity, texts=texts)
    cuda = torch.device(device).type == "cuda"
    facts = requests(edits)
    sample = facts[:: max(1, edits // COUNTED)]
    work = edits * _flops(lm, sample, settings, replace(moments, texts=None)) / len(sample)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    start = time.perf_counter()
    memit.edit(lm, facts, settings=settings, moments=moments)
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    peak_memory = (
        torch.cuda.max_memory_allocated()
        if cuda
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # of the process so far, in KiB
    )
    device_name = torch.cuda.get_device_name() if cuda else "cpu"
    peak = next((value for part, value in PEAKS.items() if part in device_name), None)
    return {
        "shape": name,
        "device": device_name,
        "dtype": str(dtype),
        "edits": edits,
        "steps": settings.steps,
        "seconds": round(seconds, 3),
        "edits_per_s": round(edits / seconds, 3),
        "tflop_per_edit": round(work / edits / 1e12, 6),
        "tflop_per_s": round(work / seconds / 1e12, 6),
        "share_of_peak": round(work / seconds / peak, 4) if peak else None,
        "peak_memory_gib": round(peak_memory / 2**30, 2),
    }


def _flops(lm: LanguageModel, facts: Sequence[EditRequest], settings: MemitSettings, moments: Moments) -> int:
    """Edit, and count the floating-point operations of it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the counter does not see what runs in other threads (`editor.lanes`)
    try:
        with FlopCounterMode(display=False) as counter:
            memit.edit(lm, facts, settings=settings, moments=moments)
    finally:
        torch.set_num_threads(threads)
    return int(counter.get_total_flops())


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="gpt-j-6b")
    parser.add_argument("--edits", type=int, default=1000)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    asked = parser.parse_args()
    figures = measure(asked.shape, asked.edits, asked.device, getattr(torch, asked.dtype), asked.steps)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
