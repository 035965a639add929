"""flash_mla.ops: every operation, through every kind of array, on every backend."""

import pytest
import torch
from flash_mla import ops
from fp8_formats import FP8_FORMATS, bytes_of_blocks, empty_cache
from operation_cases import OPERATION_CASES, OperationCase
from problems import embed, on_device
from torch import Tensor

ml_dtypes = pytest.importorskip("ml_dtypes")

NUMPY_TYPES = {torch.bfloat16: ml_dtypes.bfloat16, torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn}


def as_numpy(x: Tensor) -> object:
    """A NumPy array over the same memory."""
    if x.dtype not in NUMPY_TYPES:
        return x.numpy()
    integers = {2: torch.int16, 1: torch.uint8}[x.element_size()]
    return x.view(integers).numpy().view(NUMPY_TYPES[x.dtype])


class DlpackOnly:
    """An array of which nothing is known but the two functions of DLPack."""

    def __init__(self, x: Tensor) -> None:
        """Hide the tensor."""
        self._x = x

    def __dlpack__(self, **options: object) -> object:
        """As the protocol wants it."""
        return self._x.__dlpack__(**options)

    def __dlpack_device__(self) -> object:
        """As the protocol wants it."""
        return self._x.__dlpack_device__()


ARRAYS = {"torch": lambda x: x, "numpy": as_numpy, "DLPack": DlpackOnly}


@pytest.fixture(params=OPERATION_CASES)
def name(request: pytest.FixtureRequest) -> str:
    """Every operation."""
    return request.param


def test_there_is_a_case_of_every_operation():
    assert sorted(ops.__all__) == sorted(OPERATION_CASES)


@pytest.mark.parametrize("backend", [None, "cpu", "reference"])
@pytest.mark.parametrize("array", ARRAYS)
def test_result(name, array, backend):
    case = OPERATION_CASES[name]()
    if backend == "cpu" and name in ("make_schedule", "merge_states"):
        backend = None
    result = getattr(ops, name)(**case.arguments(ARRAYS[array]), backend=backend)
    assert result is None
    case.check()


def test_result_on_every_device(name, device):
    case = OPERATION_CASES[name]()
    arguments = case.arguments(lambda x: on_device(x, device))
    getattr(ops, name)(**arguments)
    case.outputs = {key: arguments[key].cpu() for key in case.outputs}
    case.check()


def test_the_reference_agrees_with_the_default(name):
    """Both must pass against float64, and what has no tolerance must have the same bits."""
    torch.manual_seed(3)
    default = OPERATION_CASES[name]()
    torch.manual_seed(3)
    pinned = OPERATION_CASES[name]()
    getattr(ops, name)(**default.arguments())
    getattr(ops, name)(**pinned.arguments(), backend="reference")
    pinned.check()
    for output, tensor in default.outputs.items():
        if output not in default.tolerances:
            torch.testing.assert_close(tensor, pinned.outputs[output], rtol=0, atol=0, equal_nan=True)


def test_jax_arrays_as_inputs():
    jax = pytest.importorskip("jax")
    case = OPERATION_CASES["merge_states"]()
    arguments = case.arguments()
    for key in case.inputs:
        arguments[key] = [jax.dlpack.from_dlpack(x) for x in arguments[key]]
    ops.merge_states(**arguments)
    case.check()


def test_read_only_numpy_inputs(name):
    """As np.asarray of a JAX array is, and a file mapped for reading."""
    case = OPERATION_CASES[name]()
    arguments = case.arguments(as_numpy)
    for key in case.inputs:
        for array in arguments.get(key, []) if isinstance(arguments.get(key), list) else [arguments.get(key)]:
            if array is not None:
                array.flags.writeable = False
    getattr(ops, name)(**arguments)
    case.check()


def test_a_read_only_output_is_an_error_that_names_it(name):
    case = OPERATION_CASES[name]()
    arguments = case.arguments(as_numpy)
    key = next(iter(case.outputs))
    arguments[key].flags.writeable = False
    with pytest.raises((ValueError, TypeError), match=rf"{name}.*\b{key}\b"):
        getattr(ops, name)(**arguments)


def test_padded_strides_of_all_floating_point_tensors(name):
    case = OPERATION_CASES[name]()

    def padded(x: object) -> object:
        if isinstance(x, list):
            return [padded(item) for item in x]
        return embed(x) if x is not None and x.is_floating_point() and x.ndim > 2 else x

    strided = OperationCase(
        {key: padded(x) for key, x in case.inputs.items()},
        {key: padded(x) for key, x in case.outputs.items()},
        case.expected,
        case.tolerances,
        case.scalars,
    )
    getattr(ops, name)(**strided.arguments(as_numpy))
    strided.check()


@pytest.mark.parametrize("page", [1, 5, 64])
@pytest.mark.parametrize("kv_format", FP8_FORMATS)
def test_quantized_bytes_follow_the_rule(kv_format, page):
    layout = FP8_FORMATS[kv_format]
    kv = torch.randn(4, page, 1, layout.d_qk) * torch.exp2(
        torch.randint(-30, 12, (4, page, 1, layout.d_qk)).float()
    )
    kv[1, 0] = 0
    kv[2, 0, 0, ::2] *= 1e-6
    kv = kv.bfloat16()
    cache = empty_cache(kv_format, 4, page, spare=1)
    memory = torch.empty(0, dtype=torch.uint8).set_(cache.untyped_storage())
    ops.quantize_kv(kv=kv, kv_cache=cache)
    assert torch.equal(bytes_of_blocks(cache), layout.quantize(kv.squeeze(2)))
    cache[:] = 0xFF
    assert (memory == 0xFF).all(), "wrote between blocks"


@pytest.mark.parametrize("kv_format", FP8_FORMATS)
def test_every_code_reads_as_it_should(kv_format):
    layout = FP8_FORMATS[kv_format]
    cache = empty_cache(kv_format, 2, 32)
    cache[:] = torch.randint(0, 256, cache.shape, dtype=torch.uint8)
    if kv_format == "fp8_v32":
        cache[..., 512:528] = (torch.rand(2, 32, 1, 4) + 1e-3).view(torch.uint8)
    kv = torch.empty(2, 32, 1, layout.d_qk, dtype=torch.bfloat16)
    ops.dequantize_kv(kv_cache=cache, kv=kv)
    expected = layout.dequantize(bytes_of_blocks(cache), 32).unsqueeze(2)
    assert len(cache.unique()) == 256
    torch.testing.assert_close(kv, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("integers", [torch.int32, torch.int64])
@pytest.mark.parametrize("kv_format", [*FP8_FORMATS, "bf16", "f16"])
def test_appended_tokens_are_those_that_are_quantized_in_place(kv_format, integers):
    """Slots outside of the cache are skipped; of the other tokens nothing changes."""
    fp8 = kv_format in FP8_FORMATS
    dtype = torch.float16 if kv_format == "f16" else torch.bfloat16
    d_qk = FP8_FORMATS[kv_format].d_qk if fp8 else 576
    rows = torch.randn(3, 6, 1, d_qk).to(dtype)
    slots = torch.tensor([17, -1, 4, 18, 0, -(2**31), 9], dtype=integers)
    new = torch.randn(7, d_qk).to(dtype)
    expected_rows = rows.clone()
    for token, slot in enumerate(slots.tolist()):
        if 0 <= slot < 18:
            expected_rows.view(18, d_qk)[slot] = new[token]
    cache, expected = rows, expected_rows
    if fp8:
        cache, expected = (empty_cache(kv_format, 3, 6, spare=1) for _ in range(2))
        ops.quantize_kv(kv=rows, kv_cache=cache)
        ops.quantize_kv(kv=expected_rows, kv_cache=expected)
    ops.append_kv(latent=new[:, :-64], rope=new[:, -64:], slot_mapping=slots, kv_cache=cache)
    assert torch.equal(cache.view(torch.uint8), expected.view(torch.uint8))


def test_merging_the_halves_of_a_sequence_gives_the_whole():
    case = OPERATION_CASES["dense_decode"]()
    arguments = case.arguments() | {"causal": False}
    lengths = case.inputs["cache_seqlens"]
    whole = torch.empty(3, 2, 6, 512, dtype=torch.bfloat16), torch.empty(3, 6, 2)
    ops.dense_decode(**(arguments | {"out": whole[0], "lse": whole[1]}))
    halves = []
    for start in (0, 1):
        out, lse = torch.empty(3, 2, 6, 512, dtype=torch.bfloat16), torch.empty(3, 6, 2)
        part = torch.clamp(lengths - 64, min=0) if start else torch.clamp(lengths, max=64)
        table = case.inputs["block_table"][:, start:]
        ops.dense_decode(
            **(arguments | {"out": out, "lse": lse, "block_table": table, "cache_seqlens": part})
        )
        halves.append((out, lse))
    outs, lses = (list(parts) for parts in zip(*halves, strict=True))
    merged = torch.empty(3, 2, 6, 512), torch.empty(3, 6, 2)
    ops.merge_states(outs=outs, lses=lses, out=merged[0], lse=merged[1])
    torch.testing.assert_close(merged[0], whole[0].float(), rtol=2.01 / 128, atol=2e-3)
    torch.testing.assert_close(merged[1], whole[1], rtol=1e-4, atol=1e-6)
