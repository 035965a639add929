"""torch.compile(fullgraph=True) and torch.export of every function that computes: the same bits."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import flash_mla
import pytest
import torch
from problems import DenseDecode, Selection, SparseDecode, Tensors, attn_sink
from torch import Tensor
from varlen_problem import VarlenAttention

DENSE = DenseDecode(seqlens=(70, 3), s_q=2, h_q=4, causal=True)
SPARSE = SparseDecode(s_q=2, h_q=4, main=Selection("fp8_v32", topk_length=(9, 64)), sink="finite")
SPARSE = replace(SPARSE, extra=Selection("fp8_v32", page=8, topk=10))
VARLEN = VarlenAttention(len_q=(20, 9), len_k=(20, 9), causal=True)


@dataclass(frozen=True)
class Function:
    """A function of tensors alone, and tensors for it."""

    run: Callable[..., tuple[Tensor, ...]]
    build: Callable[[], dict[str, Tensor]]


def named(tensors: Tensors) -> dict[str, Tensor]:
    """Those that are there."""
    return {name: x for name, x in vars(tensors).items() if x is not None}


def dense_new_style(**tensors: Tensor) -> tuple[Tensor, ...]:
    meta, num_splits = flash_mla.get_mla_metadata()
    layers = [
        flash_mla.flash_mla_with_kvcache(
            **tensors, **DENSE.options, tile_scheduler_metadata=meta, num_splits=num_splits
        )
        for _ in range(2)
    ]
    return layers[0][0] + layers[1][0], layers[0][1]


def dense_old_style(**tensors: Tensor) -> tuple[Tensor, ...]:
    meta, num_splits = flash_mla.get_mla_metadata(tensors["cache_seqlens"], 8, 1)
    return flash_mla.flash_mla_with_kvcache(
        **tensors, **DENSE.options, tile_scheduler_metadata=meta, num_splits=num_splits
    )


def dense_with_out(**tensors: Tensor) -> tuple[Tensor, ...]:
    return flash_mla.flash_mla_with_kvcache(**tensors, **DENSE.options, tile_scheduler_metadata=None)


def sparse(**tensors: Tensor) -> tuple[Tensor, ...]:
    meta, _ = flash_mla.get_mla_metadata()
    return flash_mla.flash_mla_with_kvcache(**tensors, **SPARSE.options, tile_scheduler_metadata=meta)


def fp8(**tensors: Tensor) -> tuple[Tensor, ...]:
    meta, num_splits = flash_mla.get_mla_metadata_dense_fp8(tensors["cache_seqlens"], 8, 1)
    return flash_mla.flash_mla_with_kvcache_fp8(
        **tensors, head_dim_v=512, tile_scheduler_metadata=meta, num_splits=num_splits, causal=True
    )


def prefill(**tensors: Tensor) -> tuple[Tensor, ...]:
    return flash_mla.flash_mla_sparse_fwd(**tensors, sm_scale=0.04)


def prefill_base2(**tensors: Tensor) -> tuple[Tensor, ...]:
    return flash_mla.flash_mla_sparse_fwd(**tensors, sm_scale=0.04, base2=True)


def varlen(**tensors: Tensor) -> tuple[Tensor, ...]:
    return VARLEN.call(**tensors)


def qkv_packed(qkv: Tensor, cu: Tensor) -> tuple[Tensor, ...]:
    return flash_mla.flash_attn_varlen_qkvpacked_func(qkv, cu, 20, 192, causal=True)


def kv_packed(q: Tensor, kv: Tensor, cu: Tensor) -> tuple[Tensor, ...]:
    return flash_mla.flash_attn_varlen_kvpacked_func(q, kv, cu, cu, 20, 20, 192, deterministic=True)


def fp8_tensors() -> dict[str, Tensor]:
    """Of a cache of plain e4m3 numbers, with one factor for all sequences."""
    x = named(DENSE.build())
    return x | {"k_cache": x["k_cache"].to(torch.float8_e4m3fn), "descale_k": torch.tensor([0.7])}


def prefill_tensors() -> dict[str, Tensor]:
    """With every optional argument."""
    indices = torch.randint(-2, 60, (6, 1, 30), dtype=torch.int32)
    lengths = torch.randint(0, 30, (6,), dtype=torch.int32)
    q, kv = torch.randn(6, 4, 576).bfloat16(), torch.randn(60, 1, 576).bfloat16()
    return {"q": q, "kv": kv, "indices": indices, "attn_sink": attn_sink("finite", 4), "topk_length": lengths}


def packed_tensors(names: str) -> dict[str, Tensor]:
    """``qkv``, or ``q`` and ``kv``, and where sequences begin."""
    x = VARLEN.build()
    if names == "qkv":
        return {"qkv": torch.cat([x.q, x.k, x.v], -1), "cu": x.cu_q}
    return {"q": x.q, "kv": torch.cat([x.k, x.v], -1), "cu": x.cu_q}


FUNCTIONS = {
    "dense, new style": Function(dense_new_style, lambda: named(DENSE.build())),
    "dense, old style": Function(dense_old_style, lambda: named(DENSE.build())),
    "dense, no schedule": Function(dense_with_out, lambda: named(DENSE.build())),
    "dense into out": Function(
        dense_with_out, lambda: named(DENSE.build()) | {"out": torch.empty(2, 2, 4, 512).bfloat16()}
    ),
    "sparse": Function(sparse, lambda: named(SPARSE.build())),
    "fp8": Function(fp8, fp8_tensors),
    "prefill": Function(prefill, prefill_tensors),
    "prefill, base 2": Function(prefill_base2, prefill_tensors),
    "varlen": Function(varlen, lambda: named(VARLEN.build())),
    "qkv packed": Function(qkv_packed, lambda: packed_tensors("qkv")),
    "kv packed": Function(kv_packed, lambda: packed_tensors("kv")),
}


class Module(torch.nn.Module):
    """A function as torch.export wants it."""

    def __init__(self, function: Callable[..., tuple[Tensor, ...]]) -> None:
        """Keep the function."""
        super().__init__()
        self.function = function

    def forward(self, tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Call it by name."""
        return self.function(**tensors)


def assert_same(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """The same bits and types."""
    for a, r in zip(actual, expected, strict=True):
        assert a.dtype == r.dtype and torch.equal(a, r)


@pytest.fixture(params=FUNCTIONS.values(), ids=FUNCTIONS.keys())
def function(request: pytest.FixtureRequest) -> Function:
    """Every function."""
    torch._dynamo.reset()
    return request.param


def test_compiled(device, function):
    """Backend aot_eager traces all that the default one does, with autograd and functionalization."""
    tensors = {name: x.to(device) for name, x in function.build().items()}
    expected = tuple(x.clone() for x in function.run(**tensors))
    compiled = torch.compile(function.run, fullgraph=True, backend="aot_eager")
    assert_same(compiled(**tensors), expected)
    assert_same(compiled(**tensors), expected)


def test_exported(device, function):
    tensors = {name: x.to(device) for name, x in function.build().items()}
    expected = tuple(x.clone() for x in function.run(**tensors))
    program = torch.export.export(Module(function.run), (tensors,))
    assert any("flash_mla" in str(node.target) for node in program.graph.nodes), (
        "the operation is in the graph"
    )
    assert_same(program.module()(tensors), expected)


def test_compiled_by_the_default_backend(device):
    torch._dynamo.reset()
    tensors = {name: x.to(device) for name, x in named(DENSE.build()).items()}
    expected = dense_old_style(**tensors)
    assert_same(torch.compile(dense_old_style, fullgraph=True)(**tensors), expected)


@pytest.mark.parametrize("deterministic", [False, True])
def test_compiled_training_step_gives_the_same_gradients(device, deterministic):
    torch._dynamo.reset()

    def step(q: Tensor, k: Tensor, v: Tensor, cu: Tensor) -> Tensor:
        out, _ = VARLEN.call(q, k, v, cu, cu, deterministic=deterministic)
        return out.float().square().sum()

    x = VARLEN.build().to(device)
    leaves = [x[name].requires_grad_() for name in ("q", "k", "v")]
    expected = torch.autograd.grad(step(*leaves, x["cu_q"]), leaves)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert_same(torch.autograd.grad(compiled(*leaves, x["cu_q"]), leaves), expected)


def test_compiled_once_for_any_sizes(device):
    torch._dynamo.reset()
    compiled = torch.compile(dense_new_style, fullgraph=True, backend="aot_eager", dynamic=True)
    for seqlens, s_q in [((70, 3), 2), ((9, 200, 64), 3), ((1, 2, 3, 4, 5), 4)]:
        tensors = replace(DENSE, seqlens=seqlens, s_q=s_q).build().to(device)
        assert_same(compiled(**tensors), dense_new_style(**tensors))


def test_exported_with_a_batch_of_any_size(device):
    batch = torch.export.Dim("batch", min=2, max=64)
    dynamic = {"q": {0: batch}, "k_cache": {0: torch.export.Dim.AUTO}, "cache_seqlens": {0: batch}}
    dynamic["block_table"] = {0: batch, 1: torch.export.Dim.AUTO}
    tensors = DENSE.build().to(device)
    dynamic = {"tensors": {name: dynamic[name] for name in tensors}}
    program = torch.export.export(Module(dense_new_style), (tensors,), dynamic_shapes=dynamic)
    other = replace(DENSE, seqlens=(1, 200, 64, 9)).build().to(device)
    assert_same(program.module()(other), dense_new_style(**other))


def test_a_wrong_shape_is_an_error_while_tracing_too(device):
    torch._dynamo.reset()
    tensors = DENSE.build().to(device)
    tensors["q"] = tensors["q"][..., :568]
    with pytest.raises(Exception, match="kv_cache"):
        torch.compile(dense_with_out, fullgraph=True, backend="aot_eager")(**tensors)
