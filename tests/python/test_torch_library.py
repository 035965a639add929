"""torch.library.opcheck of every operator ``torch.ops.flash_mla.*``."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from flash_mla import flash_mla_interface, ops
from fp8_formats import empty_cache
from problems import DenseDecode, Selection, SparseDecode, Tensors
from torch import Tensor
from varlen_problem import VarlenAttention

assert flash_mla_interface, "the import registers the operators"

DENSE = DenseDecode(seqlens=(70, 3), s_q=2, h_q=4)
SPARSE = SparseDecode(h_q=4, sink="finite", extra=Selection(page=8, topk=9))
VARLEN = VarlenAttention(len_q=(20, 9), len_k=(30, 9), h_q=4, h_kv=2)


def bf16(*shape: int) -> Tensor:
    return torch.randn(*shape).bfloat16()


def dense_decode() -> tuple:
    x = DENSE.build()
    out, lse = bf16(2, 2, 4, 512), torch.empty(2, 4, 2)
    return x.q, x.k_cache, x.block_table, x.cache_seqlens, None, None, None, None, out, lse, None, True, 0


def sparse_decode() -> tuple:
    x = SPARSE.build()
    extra = x.extra_k_cache, x.extra_indices_in_kvcache, x.extra_topk_length
    out, lse = bf16(2, 1, 4, 512), torch.empty(2, 4, 1)
    return x.q, x.k_cache, x.indices, x.topk_length, x.attn_sink, *extra, None, None, out, lse, 0.05, 0


def sparse_prefill() -> tuple:
    indices = torch.randint(-1, 50, (3, 1, 20), dtype=torch.int32)
    logits = torch.empty(3, 4), torch.empty(3, 4)
    return bf16(3, 4, 576), bf16(50, 1, 576), indices, None, None, bf16(3, 4, 512), *logits, 0.05


def varlen(x: Tensors) -> tuple[Tensor, ...]:
    return x.q, x.k, x.v, x.cu_q, x.cu_k


def mha_forward() -> tuple:
    return *varlen(VARLEN.build()), bf16(29, 4, 128), torch.empty(29, 4), None, True


def varlen_attention() -> tuple:
    q, k, v, *cu = varlen(VARLEN.build())
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), *cu, None, True, False


def backward_inputs() -> tuple:
    x = VARLEN.build()
    out, lse = VARLEN.run(x, torch.device("cpu"))
    return x.q, x.k, x.v, out, lse, torch.randn_like(out), x.cu_q, x.cu_k


def mha_backward() -> tuple:
    x = backward_inputs()
    return *x, *(torch.empty_like(t) for t in x[:3]), None, False, True


def varlen_attention_backward() -> tuple:
    return *backward_inputs(), None, False, True


def make_schedule() -> tuple:
    lengths = torch.tensor([70, 3], dtype=torch.int32)
    outputs = torch.empty(16, 8, dtype=torch.int32), torch.empty(3, dtype=torch.int32)
    return lengths, None, None, *outputs, 128, 0, 0, 0


def decode_schedule() -> tuple:
    lengths = torch.tensor([70, 3], dtype=torch.int32)
    return lengths, lengths, None, None, 2, 8, 1, 128, 0, 0


def merge_states() -> tuple:
    outs, lses = [bf16(2, 3, 4, 512) for _ in range(2)], [torch.randn(2, 4, 3) for _ in range(2)]
    return outs, lses, bf16(2, 3, 4, 512), torch.empty(2, 4, 3)


def quantize_kv() -> tuple:
    return bf16(3, 8, 1, 576), empty_cache("fp8_v32", 3, 8)


def dequantize_kv() -> tuple:
    kv, cache = quantize_kv()
    ops.quantize_kv(kv=kv, kv_cache=cache)
    return cache, torch.empty_like(kv)


def append_kv() -> tuple:
    slots = torch.tensor([3, -1, 20, 7, 0], dtype=torch.int64)
    return bf16(5, 512), bf16(5, 64), slots, empty_cache("fp8_v32", 3, 8)


EXAMPLES: dict[str, Callable[[], tuple]] = {
    build.__name__: build
    for build in (
        append_kv,
        decode_schedule,
        dense_decode,
        dequantize_kv,
        make_schedule,
        merge_states,
        mha_backward,
        mha_forward,
        quantize_kv,
        sparse_decode,
        sparse_prefill,
        varlen_attention,
        varlen_attention_backward,
    )
}


def moved(x: object, device: torch.device) -> object:
    """Tensors, also those in lists, to ``device``."""
    if isinstance(x, Tensor):
        return x.detach().to(device).requires_grad_(x.requires_grad)
    return [moved(item, device) for item in x] if isinstance(x, list) else x


def test_there_is_an_example_of_every_operator():
    schemas = torch._C._jit_get_all_schemas()
    registered = {
        schema.name.removeprefix("flash_mla::") for schema in schemas if "flash_mla::" in schema.name
    }
    assert registered == set(EXAMPLES) and set(ops.__all__) <= registered


@pytest.mark.parametrize("name", EXAMPLES)
def test_opcheck(device, name):
    example = tuple(moved(x, device) for x in EXAMPLES[name]())
    operator = getattr(torch.ops.flash_mla, name).default
    operator(*example)
    result = torch.library.opcheck(operator, example)
    assert set(result.values()) == {"SUCCESS"}


def test_opcheck_of_strided_inputs(device):
    problem = replace(VARLEN, strided=True)
    args = tuple(moved(x.requires_grad_(x.is_floating_point()), device) for x in varlen(problem.build()))
    torch.library.opcheck(torch.ops.flash_mla.varlen_attention.default, (*args, 0.1, True, True))
