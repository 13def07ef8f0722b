"""What a checkpoint can be published as. Loads nothing, so that the command line's help is quick."""

from __future__ import annotations

from enum import StrEnum


class Format(StrEnum):
    """What to make of a checkpoint."""

    HF = "hf"
    PEFT = "peft"
    GGUF_READY = "gguf-ready"


class Dtype(StrEnum):
    """Precision of what is published, in torch's words."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
