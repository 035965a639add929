"""The operations in float64 PyTorch, and the comparison with the tolerances of the library's contract."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """An element passes within ``abs`` or ``rel * |expected|``; ``cos`` bounds the whole tensor."""

    abs: float
    rel: float
    cos: float | None = None


TOLERANCES = {
    "dense_decode.out": Tolerance(8e-4, 2.01 / 128, 5e-6),
    "sparse_decode.out": Tolerance(1e-3, 2.01 / 128, 5e-6),
    "decode.lse": Tolerance(1e-6, 8.01 / 65536),
    "sparse_prefill.out": Tolerance(8e-4, 3.01 / 128, 7e-6),
    "sparse_prefill.lse": Tolerance(1e-6, 2.01 / 65536),
    "mha": Tolerance(1e-3, 8.01 / 128, 7e-6),
    "mha.lse": Tolerance(1e-6, 2.01 / 65536),
}


def assert_matches(name: str, actual: Tensor, expected: Tensor) -> None:
    """Compare with a float64 result by the rule of the contract."""
    tolerance = TOLERANCES[name]
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)}, not {tuple(expected.shape)}"
    a = actual.detach().cpu().double()
    r = expected.detach().cpu().double()
    finite = r.isfinite()
    same = torch.where(finite, a.isfinite(), (a == r) | (a.isnan() & r.isnan()))
    assert same.all(), f"{name}: {int((~same).sum())} non-finite values differ, {_first(~same, a, r)}"
    a, r = a.where(finite, 0), r.where(finite, 0)
    difference = (a - r).abs()
    bad = (difference > tolerance.abs) & (difference > tolerance.rel * r.abs())
    assert not bad.any(), f"{name}: {int(bad.sum())} of {bad.numel()} values off, {_first(bad, a, r)}"
    norms = float((a * a).sum() + (r * r).sum())
    if tolerance.cos is not None and norms > 0:
        distance = 1 - 2 * float((a * r).sum()) / norms
        assert distance <= tolerance.cos, f"{name}: cosine distance {distance:.3g} > {tolerance.cos:.3g}"


def _first(bad: Tensor, a: Tensor, r: Tensor) -> str:
    if not bad.any():
        return "none"
    at = tuple(bad.nonzero()[0].tolist())
    return f"first at {at}: {a[at].item()}, expected {r[at].item()}"


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """``out``, ``lse`` and ``max_logits`` of q ``[... s d_qk]`` over k ``[... n d_qk]``, v ``[... n d_v]``.

    ``visible`` is bool ``[... s n]``. Differentiable, also where a query sees nothing.
    """
    logits = (scale * (q @ k.mT)).masked_fill(~visible, -torch.inf)
    lonely = ~visible.any(-1, keepdim=True)
    if logits.shape[-1] == 0:
        nothing = q.new_zeros(logits.shape[:-1])
        return q.new_zeros(*nothing.shape, v.shape[-1]), nothing + torch.inf, nothing - torch.inf
    finite = logits.masked_fill(lonely, 0)  # the derivative of a softmax of nothing but -inf is NaN
    weights = torch.softmax(finite, -1) * ~lonely
    lse = torch.logsumexp(finite, -1).masked_fill(lonely.squeeze(-1), torch.inf)
    return weights @ v, lse, logits.amax(-1)


def apply_sink(out: Tensor, lse: Tensor, sink: Tensor | None) -> Tensor:
    """``out * exp(lse) / (exp(lse) + exp(sink))``; a lonely query stays 0."""
    if sink is None:
        return out
    factor = torch.sigmoid(lse - sink.double()).masked_fill(lse == torch.inf, 0)
    return out * factor.unsqueeze(-1)


def dense_decode(
    q: Tensor,
    cache: Tensor,
    block_table: Tensor,
    cache_seqlens: Tensor,
    d_v: int,
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    """``out [batch s_q h_q d_v]`` and ``lse [batch h_q s_q]`` over the pages of each sequence."""
    page, h_kv = cache.shape[1:3]
    s_q, h_q = q.shape[1:3]
    outs, lses = [], []
    for b, length in enumerate(cache_seqlens.tolist()):
        blocks = block_table[b, : -(-length // page)].long()
        rows = cache[blocks].reshape(-1, h_kv, cache.shape[-1])[:length].double()
        rows = rows.transpose(0, 1).repeat_interleave(h_q // h_kv, 0)
        t, i = torch.arange(length), torch.arange(s_q).unsqueeze(1)
        visible = (t <= length - s_q + i) if causal else (t < length).expand(s_q, -1)
        out, lse, _ = attend(q[b].double().transpose(0, 1), rows, rows[..., :d_v], visible, scale)
        outs.append(out.transpose(0, 1))
        lses.append(lse)
    return torch.stack(outs), torch.stack(lses)


def chosen_rows(kv: Tensor, indices: Tensor, length: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows ``[... topk d]`` in float64 of kv ``[tokens d]`` and which of them count, ``[... topk]``.

    ``length`` broadcasts with ``indices [... topk]`` without its last dimension.
    """
    indices = indices.long()
    valid = (indices >= 0) & (indices < kv.shape[0])
    if length is not None:
        valid = valid & (torch.arange(indices.shape[-1]) < length.unsqueeze(-1))
    rows = kv[torch.where(valid, indices, 0)].double()
    return rows.where(valid.unsqueeze(-1), 0), valid


def sparse_decode(
    q: Tensor,
    selections: list[tuple[Tensor, Tensor, Tensor | None]],
    d_v: int,
    scale: float,
    attn_sink: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention over selections: rows of a cache ``[tokens d_qk]``, indices, lengths ``[batch]``."""
    parts = [
        chosen_rows(kv, indices, None if length is None else length.unsqueeze(-1))
        for kv, indices, length in selections
    ]
    rows = torch.cat([rows for rows, _ in parts], -2)
    visible = torch.cat([valid for _, valid in parts], -1).unsqueeze(-2)
    out, lse, _ = attend(q.double(), rows, rows[..., :d_v], visible.expand(*q.shape[:3], -1), scale)
    return apply_sink(out, lse, attn_sink), lse.transpose(1, 2)


def sparse_prefill(
    q: Tensor,
    kv: Tensor,
    indices: Tensor,
    d_v: int,
    scale: float,
    attn_sink: Tensor | None = None,
    topk_length: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``out [s_q h_q d_v]``, ``max_logits`` and ``lse [s_q h_q]``."""
    h_kv = kv.shape[1]
    results = []
    for head in range(h_kv):
        rows, valid = chosen_rows(kv[:, head], indices[:, head], topk_length)
        group = q.double().unflatten(1, (h_kv, -1))[:, head]
        visible = valid.unsqueeze(1).expand(-1, group.shape[1], -1)
        results.append(attend(group, rows, rows[..., :d_v], visible, scale))
    out, lse, max_logits = (torch.cat(parts, 1) for parts in zip(*results, strict=True))
    return apply_sink(out, lse, attn_sink), max_logits, lse


def mha_forward(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    """``out [total_q h_q d_v]`` and ``lse [total_q h_q]``; float64 inputs may require gradients."""
    group = q.shape[1] // k.shape[1]
    outs, lses = [], []
    for b in range(len(cu_q) - 1):
        queries = q[cu_q[b] : cu_q[b + 1]].transpose(0, 1)
        keys, values = (x[cu_k[b] : cu_k[b + 1]].transpose(0, 1).repeat_interleave(group, 0) for x in (k, v))
        len_q, len_k = queries.shape[1], keys.shape[1]
        t, i = torch.arange(len_k), torch.arange(len_q).unsqueeze(1)
        visible = (t <= len_k - len_q + i) if causal else torch.ones(len_q, len_k, dtype=torch.bool)
        out, lse, _ = attend(queries, keys, values, visible, scale)
        outs.append(out.transpose(0, 1))
        lses.append(lse.transpose(0, 1))
    return torch.cat(outs), torch.cat(lses)
