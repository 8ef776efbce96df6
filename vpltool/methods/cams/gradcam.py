"""GradCAM at the input of CLIP's last block (CLIP-ES, CVPR 2023, eq. 2 to 4).

All classes of a batch are done in one backward pass through the last block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vpltool import settings
from vpltool.core import blocks, grids
from vpltool.core.classes import allowed_rows
from vpltool.lazy import F, Tensor, no_grad, torch
from vpltool.methods.inputs import CamBatch
from vpltool.settings import setting

READS = ("tokens", "head")


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of GradCAM."""

    tau: float = setting(0.01, "Temperature of the class scores.", low=1e-6,
                         source="CLIP: logit scale 100")
    target: str = setting(
        "margin", "Score to differentiate: margin, or softmax as in CLIP-ES. Both give the same "
                  "map; the margin does not underflow.", choices=("margin", "softmax"))


def make_cams(batch: CamBatch, settings: Settings) -> list[Tensor]:
    """Make a map in [0, 1] of each class of each photo (K_i, h, w), float32.

    Each photo runs forward through the last block once; each (photo, class) pair is an entry of
    the batch of the backward pass. The target activation is the output of ln_1, the logits are
    z·p / τ over the photo's present classes and the background rows, z is the pooled photo. The
    score is the class's probability (`softmax`), or its logit minus the log-sum-exp of the others
    (`margin`). Both give the same map after min-max, but the margin has no factor y(1−y), which
    underflows if CLIP is certain.
    """
    head, tokens, present = batch.head, batch.tensors["tokens"], batch.present
    assert head is not None
    pairs = [(photo, int(index)) for photo, classes in enumerate(present) for index in classes]
    if not pairs:
        return [tokens.new_zeros((0, *batch.grid), dtype=torch.float32) for _ in present]
    photo_of = torch.tensor([photo for photo, _ in pairs], device=tokens.device)
    class_of = torch.tensor([index for _, index in pairs], device=tokens.device)
    counts = [len(classes) for classes in present]
    kept = _trace(head.block, tokens)
    allowed = allowed_rows(batch.class_index, present)[photo_of]
    with torch.enable_grad():
        output = kept.output[photo_of].requires_grad_(True)
        pooled = head.pooled(output)
        logits = (pooled @ batch.prototypes.to(pooled).T).float() / settings.tau
        score = _score(logits.masked_fill(~allowed, float("-inf")),
                       batch.class_index == class_of[:, None], settings.target)
        (gradient,) = torch.autograd.grad(score.sum(), output)
    # The weight of a channel is its mean gradient over the patches, CLS excluded.
    weights = _mean_patch_gradient(head.block, kept, photo_of, counts, gradient,
                                   head.prefix).float()
    maps = torch.cat([own @ normed[head.prefix :].float().T for own, normed in zip(
        weights.split(counts), kept.normed, strict=True)]).relu()
    # Twice, as in CLIP-ES: once for the layer, once for the mean over layers. If gradients are
    # small, 1e-7 lowers the maximum of the first result, and the second restores it.
    maps = grids.min_max(grids.min_max(maps.view(-1, *batch.grid)))
    return list(maps.split(counts))


def _score(logits: Tensor, own: Tensor, target: str) -> Tensor:
    """Return the score of each pair (P,) from its logits (P, rows) and the rows of its class."""
    score = logits.masked_fill(~own, float("-inf")).logsumexp(dim=-1)
    others = logits.masked_fill(own, float("-inf"))
    rivals = others.isfinite().any(dim=-1)
    # Without other rows there is no margin; the score is the class's own logit.
    others = torch.where(rivals[:, None], others, torch.zeros_like(others))
    margin = score - torch.where(rivals, others.logsumexp(dim=-1), score.new_zeros(()))
    # y = σ(margin). Through the logarithm, the gradient's factor 1 − y keeps its digits if y is
    # nearly 1; through a softmax it is only rounding noise below 1 − y = 1e-6.
    return F.logsigmoid(margin).exp() if target == "softmax" else margin


@dataclass(frozen=True)
class _Trace:
    """Results of a block's forward pass on B photos of N tokens, for `_mean_patch_gradient`."""

    normed: Tensor  # ln_1's output (B, N, width), GradCAM's target activation
    query: Tensor  # of each head (B, heads, N, head width)
    key: Tensor
    value: Tensor
    mixed: Tensor  # output of the heads, before the projection (B, heads, N, head width)
    middle: Tensor  # tokens after the residual of the attention (B, N, width)
    slope: Tensor  # derivative of the MLP's activation (B, N, hidden)
    output: Tensor  # the block's output (B, N, width)


def _trace(block: blocks.Block, tokens: Tensor) -> _Trace:
    """Run a block on tokens (B, N, width), and keep what its gradients need."""
    with torch.no_grad():
        normed = block.ln_1(tokens)
        query, key, value = block.heads(normed)
        mixed = block.attend(query, key, value)
        middle = tokens + block.gamma_1 * block.out(mixed.transpose(1, 2).flatten(2))
        hidden = block.fc(block.ln_2(middle))
    with torch.enable_grad():
        hidden.requires_grad_(True)
        active = blocks.ACTIVATIONS[block.shape.activation](hidden)
        (slope,) = torch.autograd.grad(active.sum(), hidden)
    with torch.no_grad():
        output = middle + block.gamma_2 * block.proj(active)
    return _Trace(normed, query, key, value, mixed, middle, slope, output)


@no_grad
def _mean_patch_gradient(block: blocks.Block, kept: _Trace, photo_of: Tensor, counts: Sequence[int],
                         gradient: Tensor, prefix: int) -> Tensor:
    """Return the gradient (P, width) of P pairs at ln_1's output, averaged over the patches.

    It is what a hook at ln_1 would see: without the residual path. Autograd computes the gradient
    at every token, with a forward and a backward pass for each class. Here gradients are averaged
    at query, key and value, before these weights are applied: a pair costs the backward pass of the
    MLP and one product with the attention instead of five. The photos of the pairs (P,) ascend;
    the gradient at the block's output (P, N, width) must be zero at the class token, as it is if
    only patches are pooled.
    """
    hidden = (gradient * block.gamma_2) @ block.proj.weight * kept.slope[photo_of]
    with torch.enable_grad():
        middle = kept.middle[photo_of].requires_grad_(True)
        # A sum has the gradient 1. Given another one, torch first imports sympy: 0.4 s a command.
        (through,) = torch.autograd.grad((block.ln_2(middle) * (hidden @ block.fc.weight)).sum(),
                                         middle)
    mixed = ((gradient + through) * block.gamma_1) @ block.out.weight
    pairs, tokens, width = mixed.shape
    mixed = mixed.view(pairs, tokens, block.shape.heads, -1).transpose(1, 2)
    parts = [_attention_gradient(kept.query[photo], kept.key[photo], kept.value[photo],
                                 kept.mixed[photo], own, prefix)
             for photo, own in enumerate(mixed.split(list(counts))) if len(own)]
    return torch.cat(parts) @ block.qkv.weight / (tokens - prefix)


def _attention_gradient(query: Tensor, key: Tensor, value: Tensor, mixed: Tensor,
                        gradient: Tensor, prefix: int) -> Tensor:
    """Return the sum over the patches of the gradients at query, key and value, for one photo.

    With S = softmax(scale·q kᵀ) and g the gradient at o = S v, the gradient at the logits is
    ds_ji = S_ji (g_j·v_i − g_j·o_j). Its column sums are the weights of the keys. Its rows sum to
    zero, so their sums without the class token's column, the weights of the queries, are that
    column, negated; without a class token, the gradients at the keys sum to zero. q, k, v and o are
    (heads, N, d), g is (K, heads, N, d); the result (K, 3·heads·d) has the order of `qkv`'s rows.
    """
    pairs, heads, tokens, size = gradient.shape
    scale = size**-0.5
    weights = (query * scale) @ key.transpose(-2, -1)
    torch.softmax(weights, dim=-1, out=weights)
    share = (gradient * mixed).sum(dim=-1)
    # One product for all pairs: each has its own columns, the last of which is g_j·o_j.
    columns = torch.cat([gradient, share[..., None]], dim=-1).permute(1, 2, 0, 3)
    carried = weights.transpose(-2, -1) @ columns.reshape(heads, tokens, pairs * (size + 1))
    carried = carried.view(heads, tokens, pairs, size + 1)
    into_value = carried[..., :size]
    of_key = torch.einsum("hnpd,hnd->phn", into_value, value) - carried[..., size].permute(2, 0, 1)
    into_query = torch.einsum("phn,hnd->phd", of_key, key) * scale
    into_key = torch.zeros_like(into_query)
    if prefix:
        of_class = weights[..., 0] * (torch.einsum("phnd,hd->phn", gradient, value[:, 0]) - share)
        into_key = torch.einsum("phn,hnd->phd", of_class, query) * -scale
    return torch.cat([into_query, into_key, into_value[:, prefix:].sum(dim=1).transpose(0, 1)],
                     dim=1).reshape(pairs, -1)
