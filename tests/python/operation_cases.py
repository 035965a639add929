"""One example of each operation of flash_mla.ops: inputs, outputs, and what must come out."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from fp8_formats import FP8_FORMATS, bytes_of_blocks, empty_cache
from prefill_problem import SparsePrefill
from problems import DenseDecode, Selection, SparseDecode
from torch import Tensor
from varlen_problem import VarlenAttention

from reference import assert_matches

BF16 = torch.bfloat16


@dataclass
class OperationCase:
    """Arguments of an operation; outputs are full of sevens before it runs."""

    inputs: dict[str, object]
    outputs: dict[str, Tensor]
    expected: dict[str, Tensor]
    tolerances: dict[str, str] = field(default_factory=dict)
    scalars: dict[str, object] = field(default_factory=dict)

    def arguments(self, convert: Callable[[Tensor], object] = lambda x: x) -> dict[str, object]:
        """All arguments, tensors as ``convert`` gives them."""
        tensors = {name: x for name, x in (self.inputs | self.outputs).items() if x is not None}
        converted = {
            name: [convert(item) for item in x] if isinstance(x, list) else convert(x)
            for name, x in tensors.items()
        }
        return converted | self.scalars

    def check(self) -> None:
        """Compare the outputs with float64, or where no tolerance is given the bits."""
        for name, expected in self.expected.items():
            actual = self.outputs[name]
            if name in self.tolerances:
                assert_matches(self.tolerances[name], actual, expected)
            else:
                assert actual.dtype == expected.dtype
                torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True, msg=name)


def sevens(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    """An output before the call."""
    return torch.full(shape, 7, dtype=dtype)


def dense_decode() -> OperationCase:
    problem = DenseDecode(s_q=2, h_q=6, h_kv=2, causal=True, softmax_scale=0.06)
    x = problem.build()
    inputs = {"q": x.q, "kv_cache": x.k_cache, "block_table": x.block_table, "cache_seqlens": x.cache_seqlens}
    out, lse = problem.expected(x)
    outputs = {"out": sevens(3, 2, 6, 512), "lse": sevens(3, 6, 2, dtype=torch.float32)}
    tolerances = {"out": "dense_decode.out", "lse": "decode.lse"}
    scalars = {"causal": True, "softmax_scale": 0.06}
    return OperationCase(inputs, outputs, {"out": out, "lse": lse}, tolerances, scalars)


def sparse_decode() -> OperationCase:
    main, extra = Selection("fp8_model1", topk_length=(0, 50)), Selection("fp8_model1", page=8, topk=9)
    problem = SparseDecode(s_q=2, h_q=5, main=main, extra=extra, sink="finite")
    x = problem.build()
    out, lse = problem.expected(x)
    names = {
        "k_cache": "kv_cache",
        "extra_k_cache": "extra_kv_cache",
        "extra_indices_in_kvcache": "extra_indices",
    }
    inputs = {names.get(name, name): tensor for name, tensor in vars(x).items()}
    outputs = {"out": sevens(2, 2, 5, 512), "lse": sevens(2, 5, 2, dtype=torch.float32)}
    tolerances = {"out": "sparse_decode.out", "lse": "decode.lse"}
    return OperationCase(inputs, outputs, {"out": out, "lse": lse}, tolerances)


def sparse_prefill() -> OperationCase:
    problem = SparsePrefill(h_q=3, lengths=True, sink="finite")
    x = problem.build()
    out, max_logits, lse = problem.expected(x)
    f32 = sevens(5, 3, dtype=torch.float32)
    outputs = {"out": sevens(5, 3, 512), "max_logits": f32, "lse": f32.clone()}
    tolerances = {name: f"sparse_prefill.{'out' if name == 'out' else 'lse'}" for name in outputs}
    expected = {"out": out, "max_logits": max_logits, "lse": lse}
    return OperationCase(vars(x), outputs, expected, tolerances, {"softmax_scale": problem.scale})


VARLEN = VarlenAttention(len_q=(20, 0, 9), len_k=(15, 4, 9), h_q=4, h_kv=2, causal=True)


def mha_forward() -> OperationCase:
    x = VARLEN.build()
    out, lse = VARLEN.expected(x)
    inputs = {"q": x.q, "k": x.k, "v": x.v, "cu_seqlens_q": x.cu_q, "cu_seqlens_k": x.cu_k}
    outputs = {"out": sevens(29, 4, 128), "lse": sevens(29, 4, dtype=torch.float32)}
    tolerances = {"out": "mha", "lse": "mha.lse"}
    return OperationCase(inputs, outputs, {"out": out, "lse": lse}, tolerances, {"causal": True})


def mha_backward() -> OperationCase:
    x = VARLEN.build()
    out, lse = VARLEN.expected(x)
    d_out = torch.randn(29, 4, 128).bfloat16()
    inputs = {"q": x.q, "k": x.k, "v": x.v, "cu_seqlens_q": x.cu_q, "cu_seqlens_k": x.cu_k}
    inputs |= {"out": out.bfloat16(), "lse": lse.float(), "d_out": d_out}
    expected = dict(
        zip(("d_q", "d_k", "d_v"), VARLEN.expected_gradients(x, d_out, out.bfloat16()), strict=True)
    )
    outputs = {name: sevens(*gradient.shape) for name, gradient in expected.items()}
    scalars = {"causal": True, "deterministic": True}
    return OperationCase(inputs, outputs, expected, dict.fromkeys(expected, "mha"), scalars)


def quantize_kv() -> OperationCase:
    kv = (torch.randn(3, 7, 1, 512) * torch.rand(3, 7, 1, 1) * 3).bfloat16()
    cache = empty_cache("fp8_model1", 3, 7, spare=1)
    written = FP8_FORMATS["fp8_model1"].quantize(kv.squeeze(2)).unflatten(1, (7, 1, 584))
    return OperationCase({"kv": kv}, {"kv_cache": cache}, {"kv_cache": written})


def dequantize_kv() -> OperationCase:
    cache = empty_cache("fp8_v32", 3, 7, spare=2)
    cache[:] = torch.randint(0, 256, cache.shape, dtype=torch.uint8)
    scales = torch.exp2(torch.randint(-20, 20, (3, 7, 1, 4)).float()) * (1 + torch.rand(3, 7, 1, 4))
    cache[..., 512:528] = scales.view(torch.uint8)
    expected = FP8_FORMATS["fp8_v32"].dequantize(bytes_of_blocks(cache), 7).unsqueeze(2)
    return OperationCase({"kv_cache": cache}, {"kv": sevens(3, 7, 1, 576)}, {"kv": expected})


def append_kv() -> OperationCase:
    kv_cache = sevens(4, 8, 1, 576)
    latent, rope = torch.randn(5, 512).bfloat16(), torch.randn(5, 64).bfloat16()
    slots = torch.tensor([31, -1, 9, 32, 0])
    expected = kv_cache.clone()
    for token, slot in ((0, 31), (2, 9), (4, 0)):
        expected[slot // 8, slot % 8, 0] = torch.cat([latent[token], rope[token]])
    inputs = {"latent": latent, "rope": rope, "slot_mapping": slots}
    return OperationCase(inputs, {"kv_cache": kv_cache}, {"kv_cache": expected})


def make_schedule() -> OperationCase:
    lengths = torch.tensor([100, 0, 5000], dtype=torch.int32)
    outputs = {"schedule": sevens(16, 8, dtype=torch.int32), "num_splits": sevens(4, dtype=torch.int32)}
    scalars = {"max_seqlen": 5120, "split_size": 1000}
    expected = {"num_splits": torch.tensor([0, 1, 2, 7], dtype=torch.int32)}
    return OperationCase({"cache_seqlens": lengths}, outputs, expected, scalars=scalars)


def merge_states() -> OperationCase:
    outs = [torch.randn(2, 3, 4, 512).bfloat16() for _ in range(3)]
    lses = [torch.randn(2, 4, 3) * 5 for _ in range(3)]
    lses[1][0, 2] = torch.inf
    for out, lse in zip(outs, lses, strict=True):
        lse[1, 3, 1] = torch.inf
        out[lse.transpose(1, 2) == torch.inf] = 0
    weights = torch.stack([lse.double().masked_fill(lse == torch.inf, -torch.inf) for lse in lses])
    lse = torch.logsumexp(weights, 0)
    factors = torch.exp(weights - lse).nan_to_num(0).transpose(2, 3).unsqueeze(-1)
    out = (factors * torch.stack(outs).double()).sum(0)
    outputs = {"out": sevens(2, 3, 4, 512), "lse": sevens(2, 4, 3, dtype=torch.float32)}
    expected = {"out": out, "lse": lse.masked_fill(lse == -torch.inf, torch.inf)}
    tolerances = {"out": "dense_decode.out", "lse": "decode.lse"}
    return OperationCase({"outs": outs, "lses": lses}, outputs, expected, tolerances)


OPERATION_CASES: dict[str, Callable[[], OperationCase]] = {
    build.__name__: build
    for build in (
        append_kv,
        dense_decode,
        dequantize_kv,
        make_schedule,
        merge_states,
        mha_backward,
        mha_forward,
        quantize_kv,
        sparse_decode,
        sparse_prefill,
    )
}
