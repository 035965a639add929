"""Wrong arguments of every function, at random but seeded: an error of the promised kinds, never an abort."""

import random
from collections.abc import Callable

import flash_mla
import pytest
import torch
from prefill_problem import SparsePrefill
from problems import DenseDecode, Selection, SparseDecode, garbage
from torch import Tensor
from varlen_problem import VarlenAttention

ROUNDS = 120
DENSE = DenseDecode(seqlens=(9, 3), h_q=2, page=8)


def dense() -> dict[str, object]:
    return vars(DENSE.build()) | {"head_dim_v": 512, "tile_scheduler_metadata": None, "softmax_scale": None}


def dense_old_style() -> dict[str, object]:
    arguments = dense()
    schedule, num_splits = flash_mla.get_mla_metadata(arguments["cache_seqlens"], 2, 1)
    return arguments | {"tile_scheduler_metadata": schedule, "num_splits": num_splits, "causal": True}


def sparse() -> dict[str, object]:
    extra = Selection(page=4, topk=3, topk_length=(1, 3))
    problem = SparseDecode(h_q=2, main=Selection(topk=5, topk_length=(4, 0)), extra=extra, sink="finite")
    return vars(problem.build()) | problem.options | {"tile_scheduler_metadata": None}


def fp8() -> dict[str, object]:
    x = vars(DENSE.build())
    x |= {
        "k_cache": x["k_cache"].to(torch.float8_e4m3fn),
        "descale_q": torch.ones(2),
        "descale_k": torch.ones(1),
    }
    return x | {"head_dim_v": 512, "tile_scheduler_metadata": None, "num_splits": None}


def prefill() -> dict[str, object]:
    problem = SparsePrefill(s_q=2, h_q=2, topk=5, s_kv=9, sink="finite", lengths=True)
    return vars(problem.build()) | {"sm_scale": 0.1, "d_v": 512, "base2": False}


def varlen() -> dict[str, object]:
    x = VarlenAttention(len_q=(3, 4), len_k=(3, 4), h_q=2).build()
    return {"q": x.q, "k": x.k, "v": x.v, "cu_seqlens_qo": x.cu_q, "cu_seqlens_kv": x.cu_k} | {
        "max_seqlen_qo": 4,
        "max_seqlen_kv": 4,
        "dropout_p": 0.0,
        "softmax_scale": 0.1,
        "causal": True,
        "deterministic": False,
    }


def qkv_packed() -> dict[str, object]:
    x = varlen()
    qkv = torch.cat([x["q"], x["k"], x["v"]], -1)
    return {"qkv": qkv, "cu_seqlens": x["cu_seqlens_qo"], "max_seqlen": 4, "head_dim_qk": 192, "causal": True}


def kv_packed() -> dict[str, object]:
    x = varlen()
    kv = torch.cat([x.pop("k"), x.pop("v")], -1)
    return x | {"kv": kv, "head_dim_qk": 192}


def metadata() -> dict[str, object]:
    cache_seqlens = torch.tensor([3, 9], dtype=torch.int32)
    return {"cache_seqlens": cache_seqlens, "num_q_tokens_per_head_k": 4, "num_heads_k": 1}


def sparse_metadata() -> dict[str, object]:
    return metadata() | {"num_heads_q": 4, "is_fp8_kvcache": True, "topk": 64}


CALLS: dict[str, tuple[Callable[..., object], Callable[[], dict[str, object]]]] = {
    "dense": (flash_mla.flash_mla_with_kvcache, dense),
    "dense, old style": (flash_mla.flash_mla_with_kvcache, dense_old_style),
    "sparse": (flash_mla.flash_mla_with_kvcache, sparse),
    "fp8": (flash_mla.flash_mla_with_kvcache_fp8, fp8),
    "prefill": (flash_mla.flash_mla_sparse_fwd, prefill),
    "varlen": (flash_mla.flash_attn_varlen_func, varlen),
    "qkv packed": (flash_mla.flash_attn_varlen_qkvpacked_func, qkv_packed),
    "kv packed": (flash_mla.flash_attn_varlen_kvpacked_func, kv_packed),
    "metadata": (flash_mla.get_mla_metadata, metadata),
    "sparse metadata": (flash_mla.get_mla_metadata, sparse_metadata),
    "fp8 metadata": (flash_mla.get_mla_metadata_dense_fp8, metadata),
}


def wrong_tensor(x: Tensor, choice: random.Random) -> object:
    """Another type, shape, device or stride than that of ``x``, or other values, or no tensor."""
    types = [torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64]
    types += [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]
    changes = [
        lambda: x.to(choice.choice(types)),
        lambda: x.unsqueeze(choice.randrange(x.ndim + 1)),
        lambda: x[0],
        lambda: x[..., :-1],
        lambda: x[:0],
        lambda: x[..., :0],
        lambda: torch.cat([x, x]),
        lambda: x.to("meta"),
        lambda: x.transpose(0, -1),
        lambda: torch.empty(*x.shape[:-1], x.shape[-1] * 2, dtype=x.dtype)[..., ::2],
        lambda: torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape),
        lambda: x.flip(0).T if x.ndim == 2 else x.flatten(),
        lambda: torch.zeros(1, dtype=x.dtype).expand(x.shape),
        lambda: garbage(*x.shape).to(x.dtype),
        lambda: torch.tensor(1, dtype=x.dtype),
        lambda: x.tolist(),
        lambda: x.view(torch.int16).numpy() if x.dtype == torch.bfloat16 else "text",
        lambda: None,
        lambda: object(),
    ]
    return choice.choice(changes)()


def wrong_number(choice: random.Random) -> object:
    """What is no number that makes sense, mostly."""
    values = [None, -1, 0, 1, 7, 513, 2**31, 2**63, -(2**63), 1.5, "x", float("nan"), float("inf")]
    return choice.choice([*values, [], True, object()])


def shown(x: object) -> str:
    """Short, for a message."""
    if not isinstance(x, Tensor):
        return f"{type(x).__name__} {x!r:.40}"
    return f"{x.dtype} {list(x.shape)} with strides {x.stride()} on {x.device}"


def promised(error: Exception) -> bool:
    return isinstance(error, (ValueError, TypeError, NotImplementedError))


@pytest.mark.parametrize("name", CALLS)
def test_only_the_promised_errors(name):
    function, build = CALLS[name]
    choice = random.Random(name)
    errors, broken = 0, []
    for number in range(ROUNDS):
        torch.manual_seed(number)
        arguments = build()
        changed = choice.sample(sorted(arguments), choice.choice([1, 1, 2]))
        for key in changed:
            x = arguments[key]
            arguments[key] = wrong_tensor(x, choice) if isinstance(x, Tensor) else wrong_number(choice)
        try:
            function(**arguments)
        except Exception as error:
            errors += 1
            if not promised(error):
                wrong = {key: shown(arguments[key]) for key in changed}
                broken.append(f"{wrong}: {type(error).__name__}: {error}")
    assert errors > ROUNDS // 4, "the changes must do harm"
    assert not broken, f"{len(broken)} errors of other kinds:\n" + "\n".join(sorted(broken))


@pytest.mark.parametrize("name", [name for name in CALLS if "metadata" not in name])
def test_every_tensor_but_one_on_another_device(name):
    function, build = CALLS[name]
    tensors = [key for key, x in build().items() if isinstance(x, Tensor)]
    for key in tensors:
        arguments = build()
        arguments[key] = arguments[key].to("meta")
        with pytest.raises((ValueError, TypeError, NotImplementedError)):
            function(**arguments)


@pytest.mark.parametrize("name", CALLS)
def test_rubbish_in_index_tensors_is_masked(name):
    """Any integer at all, and no memory outside of the tensors is touched."""
    function, build = CALLS[name]
    for number in range(20):
        torch.manual_seed(number)
        arguments = build()
        scheduled = {"tile_scheduler_metadata", "num_splits"}
        if scheduled & {key for key, x in arguments.items() if isinstance(x, Tensor)}:
            arguments |= dict.fromkeys(scheduled)
        for key, x in arguments.items():
            if isinstance(x, Tensor) and x.dtype == torch.int32:
                arguments[key] = garbage(*x.shape)
        function(**arguments)


@pytest.mark.parametrize("width", [-1, 0, 577, 2**40])
@pytest.mark.parametrize("name", ["dense", "sparse", "fp8", "prefill"])
def test_width_of_values_is_checked_before_out_is_allocated(name, width):
    function, build = CALLS[name]
    key = "d_v" if name == "prefill" else "head_dim_v"
    with pytest.raises(ValueError, match=rf"^\w+: .*({key}|out|d_v)"):
        function(**(build() | {key: width}))


def test_an_output_that_requires_grad_is_refused(device):
    args = DenseDecode(seqlens=(64,)).build().to(device)
    out = torch.zeros(1, 1, args["q"].shape[2], 512, dtype=torch.bfloat16, device=device, requires_grad=True)
    with pytest.raises(ValueError, match="out is written and must not require grad"):
        flash_mla.flash_mla_with_kvcache(**args, head_dim_v=512, tile_scheduler_metadata=None, out=out)


def test_autograd_notices_that_an_output_was_overwritten(device):
    args = DenseDecode(seqlens=(64,)).build().to(device)
    weight = torch.ones(512, dtype=torch.bfloat16, device=device, requires_grad=True)
    out = torch.empty(1, 1, args["q"].shape[2], 512, dtype=torch.bfloat16, device=device)
    loss = 0
    for _ in range(2):
        flash_mla.flash_mla_with_kvcache(**args, head_dim_v=512, tile_scheduler_metadata=None, out=out)
        loss = loss + (weight * out).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float8_e5m2, torch.bool])
def test_other_numbers_of_one_byte_are_no_e4m3(device, dtype):
    args = DenseDecode(seqlens=(64,)).build().to(device)
    cache = torch.zeros(args["k_cache"].shape, dtype=torch.uint8, device=device).view(dtype)
    with pytest.raises(TypeError, match="k_cache must be float8_e4m3fn"):
        flash_mla.flash_mla_with_kvcache_fp8(
            **(args | {"k_cache": cache}), head_dim_v=512, tile_scheduler_metadata=None, num_splits=None
        )
