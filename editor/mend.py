"""MEND: a network that turns a fact's gradient into an edit (Mitchell et al., ICLR 2022, arXiv 2110.11309).

The gradient of a fact's loss in a matrix W is a sum of outer products, one a token (section 3.1):

    ∇_W L = Σ_t δ_t u_tᵀ

with u_t the matrix's input and δ_t the gradient at its output. A small network g maps each pair to another
pair, and the edit is (equation 2 and Algorithm 2)

    W̃ = W - a Σ_t δ̃_t ũ_tᵀ,        (ũ, δ̃) = g(u, δ).

With z the normalised pair, g is two residual layers of low rank, scaled and shifted per edited matrix, and
starts as the identity (equation 3):

    h = z + relu(s¹ ⊙ (U₁V₁z + b) + o¹),        g(z) = h + relu(s² ⊙ U₂V₂h + o²).

Training (Algorithm 1) minimises  c_e · NLL(some wording of the fact | W̃) + KL(p_W ‖ p_W̃) on other prompts.

| symbol | shape | meaning |
|---|---|---|
| u, δ | (tokens, d_k), (tokens, d) | per matrix |
| V | (rank, d_k + d) | and U (d_k + d, rank) |
| a | scalar | per edited matrix, learnt |

Differs:
- The written matrices of the last three blocks; the paper edits both matrices of each feed-forward part.
- Learning rate 10⁻⁴ for some hundred steps of several edits at once; the paper takes 10⁻⁶ and a hundred
  thousand steps of one. KL is read after the prompt's last token.
"""

from __future__ import annotations

import logging
import random
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from editor import delta as deltas
from editor.digests import digest_of
from editor.errors import NotTrainedError
from editor.losses import line, lines, next_token, nll
from editor.method import WeightMethod
from editor.requests import encode, render

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from jaxtyping import Float
    from torch import Tensor

    from editor.cases import Case
    from editor.losses import Line
    from editor.method import Resources
    from editor.model import LanguageModel
    from editor.progress import Progress
    from editor.requests import EditRequest

log = logging.getLogger(__name__)

MATRICES = 3
RANK = 128
"""Of the residual layers."""
EDIT_WEIGHT = 0.1
EDIT_RATE = 1e-4
TRAINING_RATE = 1e-4
TRAINING_STEPS = 300
AT_ONCE = 8
ROWS = 64
LEAST_RECORDS = 16
_FORM = "clamp"
"""Which network is kept: raised when its equations change, so that none of before is read."""

Factors = dict[int, tuple["Tensor", "Tensor"]]
"""By layer: left (d, n) and right (n, d_k) of a change."""


class GradientNetwork(nn.Module):
    """g of equation 3, shared by all edited matrices of one shape, and the step size of each.

    Args:
        d_k: width of u.
        d: width of δ.
        matrices: how many are edited.
    """

    def __init__(self, d_k: int, d: int, matrices: int) -> None:
        super().__init__()
        width = d_k + d
        self.d_k = d_k
        self.V = nn.ParameterList([nn.Parameter(torch.empty(RANK, width)) for _ in range(2)])
        self.U = nn.ParameterList([nn.Parameter(torch.zeros(width, RANK)) for _ in range(2)])
        self.b = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.ones(2, matrices, width))
        self.offset = nn.Parameter(torch.zeros(2, matrices, width))
        self.alpha = nn.Parameter(torch.full((matrices,), EDIT_RATE))
        self.mean = nn.Parameter(torch.zeros(matrices, width), requires_grad=False)
        self.deviation = nn.Parameter(torch.ones(matrices, width), requires_grad=False)
        for factor in self.V:
            nn.init.xavier_uniform_(factor)

    def normalise_by(self, number: int, pairs: Float[Tensor, "tokens width"]) -> None:
        """Take mean and deviation of (u, δ) of one matrix from samples."""
        self.mean[number] = pairs.mean(dim=0)
        self.deviation[number] = pairs.std(dim=0)

    def forward(
        self, u: Float[Tensor, "tokens d_k"], delta: Float[Tensor, "tokens d"], number: int
    ) -> tuple[Float[Tensor, "tokens d_k"], Float[Tensor, "tokens d"]]:
        """Return (ũ, δ̃) for matrix `number` (equation 3)."""
        z = (torch.cat([u, delta], dim=1) - self.mean[number]) / (self.deviation[number] + 1e-7)
        # relu by clamp: at its start everything here is 0, where relu's gradient is 0 and clamp's is 1.
        inner = z @ self.V[0].T @ self.U[0].T + self.b
        h = z + (self.scale[0, number] * inner + self.offset[0, number]).clamp(min=0)
        outer = h @ self.V[1].T @ self.U[1].T
        g = h + (self.scale[1, number] * outer + self.offset[1, number]).clamp(min=0)
        return g[:, : self.d_k], g[:, self.d_k :]


@contextmanager
def probed(lm: LanguageModel, layers: Sequence[int]) -> Iterator[tuple[dict[int, Tensor], dict[int, Tensor]]]:
    """Keep what enters the written matrices, and let gradients be taken at what leaves them.

    Args:
        lm: the model.
        layers: which.

    Yields:
        By layer: inputs, and zeros that were added to the outputs.
    """
    inputs: dict[int, Tensor] = {}
    zeros: dict[int, Tensor] = {}

    def hook_of(layer: int) -> object:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            inputs[layer] = args[0].detach()
            zeros[layer] = torch.zeros_like(output, requires_grad=True)
            return output + zeros[layer]

        return hook

    with ExitStack() as stack:
        for layer in layers:
            handle = lm.layers.writer(lm.model, layer).register_forward_hook(hook_of(layer))  # type: ignore[arg-type]
            stack.callback(handle.remove)
        yield inputs, zeros


def factors_of_gradient(
    lm: LanguageModel, rows: Sequence[Line], layers: Sequence[int]
) -> dict[int, tuple[Float[Tensor, "tokens d_k"], Float[Tensor, "tokens d"]]]:
    """Return u and δ of the summed loss of some lines, by layer; tokens without a gradient are left out.

    Args:
        lm: the model.
        rows: lines.
        layers: whose written matrix.

    Returns:
        Pairs with Σ δ uᵀ = ∇_W Σ_rows NLL.
    """
    found: dict[int, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in layers}
    for start in range(0, len(rows), ROWS):
        with torch.enable_grad(), probed(lm, layers) as (inputs, zeros):
            loss = nll(lm, rows[start : start + ROWS]).sum()
            gradients = torch.autograd.grad(loss, [zeros[layer] for layer in layers])
        for layer, gradient in zip(layers, gradients, strict=True):
            delta = gradient.reshape(-1, gradient.shape[-1])
            used = (delta != 0).any(dim=1)
            u = inputs[layer].reshape(len(delta), -1)
            found[layer].append((u[used].float(), delta[used].float()))
    return {
        layer: (torch.cat([u for u, _ in parts]), torch.cat([delta for _, delta in parts]))
        for layer, parts in found.items()
    }


def edit_of(network: GradientNetwork, pairs: Mapping[int, tuple[Tensor, Tensor]]) -> Factors:
    """Return -a Σ δ̃ ũᵀ by layer, as two factors."""
    changes: Factors = {}
    for number, (layer, (u, delta)) in enumerate(pairs.items()):
        new_u, new_delta = network(u, delta, number)
        changes[layer] = (-network.alpha[number] * new_delta.T, new_u)
    return changes


@contextmanager
def as_if(lm: LanguageModel, changes: Factors) -> Iterator[None]:
    """Run the model as if the written matrices were changed, with gradients to the factors."""

    def hook_of(left: Tensor, right: Tensor) -> object:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output + (args[0] @ right.T) @ left.T

        return hook

    with ExitStack() as stack:
        for layer, (left, right) in changes.items():
            handle = lm.layers.writer(lm.model, layer).register_forward_hook(hook_of(left, right))  # type: ignore[arg-type]
            stack.callback(handle.remove)
        yield


def train(
    lm: LanguageModel,
    cases: Sequence[Case],
    layers: Sequence[int],
    *,
    steps: int = TRAINING_STEPS,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[GradientNetwork, list[float]]:
    """Learn to edit (Algorithm 1).

    Args:
        lm: the unedited model.
        cases: records to learn from; never those that are measured.
        layers: whose written matrices are edited.
        steps: of Adam.
        seed: of the network's start and of the order.
        progress: called with ("training", done, steps).

    Returns:
        The network, and the loss of each step.

    Raises:
        NotTrainedError: fewer than sixteen records.
    """
    if len(cases) < LEAST_RECORDS:
        raise NotTrainedError(
            f"MEND learns to edit from other records, and {len(cases)} are left of at least {LEAST_RECORDS}: "
            "edit fewer, or give a larger data set.",
            records=len(cases),
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = GradientNetwork(lm.layers.d_k, lm.layers.d, len(layers)).to(lm.device)
    shuffled = random.Random(seed)  # noqa: S311 - no secret
    sampled = shuffled.sample(list(cases), min(len(cases), 4 * AT_ONCE))
    pairs = factors_of_gradient(lm, lines(lm, [case.request for case in sampled]), layers)
    with torch.no_grad():
        for number, (u, delta) in enumerate(pairs.values()):
            network.normalise_by(number, torch.cat([u, delta], dim=1))
    adam = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=TRAINING_RATE)
    losses: list[float] = []
    for step in range(steps):
        batch = shuffled.sample(list(cases), min(AT_ONCE, len(cases)))
        loss = _training_loss(lm, network, batch, layers, shuffled)
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        adam.step()
        losses.append(float(loss.detach()))
        if progress is not None:
            progress("training", step + 1, steps)
    return network, losses


def _training_loss(
    lm: LanguageModel,
    network: GradientNetwork,
    batch: Sequence[Case],
    layers: Sequence[int],
    shuffled: random.Random,
) -> Tensor:
    """Return c_e L_e + L_loc of one step (equations 4 and 5)."""
    pairs = factors_of_gradient(lm, lines(lm, [case.request for case in batch]), layers)
    equal = [_some_wording(lm, case, shuffled) for case in batch]
    kept = [encode(lm.tokenizer, q.prompt)[0] for case in batch for q in case.neighbourhood[:2]]
    with torch.no_grad():
        before = next_token(lm, kept) if kept else None
    with as_if(lm, edit_of(network, pairs)):
        loss = EDIT_WEIGHT * nll(lm, equal).mean()
        if before is not None:
            after = next_token(lm, kept)
            loss = loss + (before.exp() * (before - after)).sum(dim=1).mean()
    return loss


def _some_wording(lm: LanguageModel, case: Case, shuffled: random.Random) -> Line:
    """Return the fact in a wording that is drawn, the edit's own among them."""
    request = case.request
    prompts = [render(template, request.subject)[0] for template in request.prompts]
    prompts += [question.prompt for question in (*case.paraphrases, *case.clean_paraphrases)]
    return line(lm, shuffled.choice(prompts), request.target)


class Mend(WeightMethod):
    """MEND with a network trained on the model at hand, before the first batch."""

    steps = TRAINING_STEPS

    def __init__(self, lm: LanguageModel, resources: Resources) -> None:
        super().__init__(lm, resources)
        count = lm.layers.count
        self.layers = tuple(range(max(0, count - MATRICES), count))
        self._network: GradientNetwork | None = None

    def written(self) -> list[str]:
        """Return the matrices of the last blocks."""
        return [self.lm.layers.weight_name(layer) for layer in self.layers]

    def teach(self, requests: Sequence[EditRequest], progress: Progress | None) -> None:
        """Turn the gradients of one batch into an edit (Algorithm 2)."""
        network = self._trained(progress)
        pairs = factors_of_gradient(self.lm, lines(self.lm, requests), self.layers)
        with torch.no_grad():
            for layer, (left, right) in edit_of(network, pairs).items():
                matrix = self.lm.layers.matrix(self.lm.model, layer)
                deltas.add(matrix, left @ right)

    def prepare(self, *, progress: Progress | None = None) -> None:
        """Train the network, or read it."""
        self._trained(progress)

    def resume(self, weights: dict[str, Tensor], state: bytes) -> None:
        """Go on from weights; the network must have been learnt on the unedited model."""
        self._trained(None)
        super().resume(weights, state)

    def _trained(self, progress: Progress | None) -> GradientNetwork:
        """Return the network: kept from before, from the folder, or trained now."""
        if self._network is None:
            cases, seed = self.resources.training, self.resources.seed
            learnt_from = [asdict(case) for case in cases]
            key = digest_of([_FORM, self.lm.digest, list(self.layers), learnt_from, self.steps, seed, RANK])
            folder = self.resources.folder
            path = None if folder is None else folder / f"mend-{key[:20]}.safetensors"
            if path is not None and path.exists():
                self._network = self._loaded(path)
            else:
                self._network, losses = train(
                    self.lm, cases, self.layers, steps=self.steps, seed=seed, progress=progress
                )
                log.info("MEND's loss fell from %.3f to %.3f", losses[0], losses[-1])
                if path is not None:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    scratch = path.with_suffix(".part")
                    save_file({n: p.detach().cpu() for n, p in self._network.named_parameters()}, scratch)
                    scratch.replace(path)
        return self._network

    def _loaded(self, path: Path) -> GradientNetwork:
        network = GradientNetwork(self.lm.layers.d_k, self.lm.layers.d, len(self.layers))
        network.load_state_dict(load_file(path))
        return network.to(self.lm.device)
