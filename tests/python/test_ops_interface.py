"""flash_mla.ops: signatures, documentation, and errors with their texts."""

import inspect
import os
import subprocess
import sys

import pytest
import torch
from flash_mla import ops
from operation_cases import OPERATION_CASES, OperationCase

WHERE_TO_RUN = {"backend": None, "threads": 0, "check_indices": False}


@pytest.fixture(params=OPERATION_CASES)
def name(request: pytest.FixtureRequest) -> str:
    """Every operation."""
    return request.param


def test_signature_and_documentation(name):
    function = getattr(ops, name)
    parameters = inspect.signature(function).parameters
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in parameters.values())
    assert {key: parameters[key].default for key in WHERE_TO_RUN} == WHERE_TO_RUN
    assert function.__name__ == name and function.__module__ == "flash_mla.ops"
    for parameter in parameters.keys() - WHERE_TO_RUN.keys():
        assert f"\n{parameter}: " in inspect.getdoc(function), parameter


def test_unknown_missing_and_positional_arguments(name):
    function, arguments = getattr(ops, name), OPERATION_CASES[name]().arguments()
    with pytest.raises(TypeError, match=f"{name}.*surprise"):
        function(**arguments, surprise=1)
    output = next(iter(OPERATION_CASES[name]().outputs))
    with pytest.raises(TypeError, match=f"{name}.*{output}"):
        function(**{key: x for key, x in arguments.items() if key != output})
    with pytest.raises(TypeError, match=name):
        function(*arguments.values())


def test_a_backend_that_does_not_exist(name):
    with pytest.raises(ValueError, match=rf"{name}: .*backend.*reference.*\"nope\""):
        getattr(ops, name)(**OPERATION_CASES[name]().arguments(), backend="nope")


@pytest.mark.parametrize("threads", [-1, 2**40, "two", 1.5])
def test_a_wrong_number_of_threads(name, threads):
    with pytest.raises((ValueError, TypeError), match="threads"):
        getattr(ops, name)(**OPERATION_CASES[name]().arguments(), threads=threads)


@pytest.mark.parametrize(
    "wrong", ["text", 3.5, b"bytes", object(), [1, 2], {"a": 1}], ids=lambda x: type(x).__name__
)
def test_what_is_no_tensor_is_named(name, wrong):
    case = OPERATION_CASES[name]()
    for key in case.inputs | case.outputs:
        with pytest.raises(TypeError, match=rf"{name}: {key}\b"):
            getattr(ops, name)(**(case.arguments() | {key: wrong}))


def test_a_wrong_type_says_what_came(name):
    case = OPERATION_CASES[name]()
    key = next(iter(case.outputs))
    wrong = case.outputs[key].clone().long()
    with pytest.raises(TypeError, match=rf"{name}: {key} must be .*, got i64 \[[\d, ]+\]"):
        getattr(ops, name)(**(case.arguments() | {key: wrong}))


def test_a_wrong_shape_says_what_came(name):
    case = OPERATION_CASES[name]()
    key = list(case.outputs)[-1]
    wrong = case.outputs[key].unsqueeze(0)
    shape = ", ".join(str(n) for n in wrong.shape)
    with pytest.raises(ValueError, match=rf"{name}: {key} must be .*, got \w+ \[{shape}\]"):
        getattr(ops, name)(**(case.arguments() | {key: wrong}))


def test_a_failed_call_writes_nothing(name):
    case = OPERATION_CASES[name]()
    before = {key: x.clone() for key, x in case.outputs.items()}
    wrong_key = list(case.inputs)[-1]
    with pytest.raises((ValueError, TypeError)):
        getattr(ops, name)(**(case.arguments() | {wrong_key: torch.zeros(2, 2, 2, 2, 2)}))
    for key, x in case.outputs.items():
        torch.testing.assert_close(x, before[key], rtol=0, atol=0, equal_nan=True)


def test_a_last_dimension_that_is_not_contiguous():
    arguments = OPERATION_CASES["dense_decode"]().arguments()
    arguments["q"] = torch.zeros(3, 2, 6, 1152).bfloat16()[..., ::2]
    with pytest.raises(ValueError, match=r"dense_decode: q .*(contiguous|stride)"):
        ops.dense_decode(**arguments)


def test_a_misaligned_tensor():
    arguments = OPERATION_CASES["dense_decode"]().arguments()
    arguments["q"] = torch.zeros(3 * 2 * 6 * 576 + 1).bfloat16()[1:].view(3, 2, 6, 576)
    with pytest.raises(ValueError, match=r"dense_decode: q .*16"):
        ops.dense_decode(**arguments)


def test_outputs_of_which_elements_share_memory():
    arguments = OPERATION_CASES["dense_decode"]().arguments()
    arguments["out"] = torch.zeros(1, 1, 1, 512).bfloat16().expand(3, 2, 6, 512)
    with pytest.raises(ValueError, match="dense_decode: out"):
        ops.dense_decode(**arguments)


INDEX_ERRORS = {
    "block_table": ("dense_decode", (0, 1), 99, r"block_table\[0, 1\] must be in \[0, \d+\), got 99"),
    "cache_seqlens": ("dense_decode", (1,), 10**6, r"cache_seqlens\[1\] must be in .*, got 1000000"),
    "indices": ("sparse_prefill", (2, 0, 0), 200, r"indices\[2, 0, 0\] must be in \[0, 200\) or -1, got 200"),
    "topk_length": ("sparse_prefill", (3,), 65, r"topk_length\[3\] must be in .*, got 65"),
    "cu_seqlens_k": ("mha_forward", (3,), 29, r"cu_seqlens_k\[3\] must be in .*, got 29"),
    "slot_mapping": ("append_kv", (3,), 32, r"slot_mapping\[3\] must be in \[0, 32\) or -1, got 32"),
}


def with_legal_values(name: str) -> OperationCase:
    """A case of which no index is out of range but on purpose."""
    case = OPERATION_CASES[name]()
    if name == "dense_decode":
        case.inputs["block_table"].clamp_(0, 3)
    if name == "sparse_prefill":
        case.inputs["indices"].clamp_(-1, 199)
        case.inputs["topk_length"].fill_(64)
    if name == "append_kv":
        case.inputs["slot_mapping"].clamp_(-1, 31)
    return case


@pytest.mark.parametrize("key", INDEX_ERRORS)
def test_checked_indices_name_position_and_value(key):
    name, at, value, text = INDEX_ERRORS[key]
    case = with_legal_values(name)
    getattr(ops, name)(**case.arguments(), check_indices=True)
    case.inputs[key][at] = value
    getattr(ops, name)(**case.arguments())
    with pytest.raises(ValueError, match=f"{name}: {text}"):
        getattr(ops, name)(**case.arguments(), check_indices=True)


def test_the_environment_turns_the_check_on():
    program = """
import torch, flash_mla
q, kv = torch.zeros(1, 1, 576).bfloat16(), torch.zeros(4, 1, 576).bfloat16()
try:
    flash_mla.flash_mla_sparse_fwd(q, kv, torch.tensor([[[-1, 3, 9]]], dtype=torch.int32), 1.0)
except ValueError as error:
    print(error)
"""
    environment = os.environ | {"FLASHMLA_CHECK": "1"}
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert result.stdout.strip() == "sparse_prefill: indices[0, 0, 2] must be in [0, 4) or -1, got 9"
