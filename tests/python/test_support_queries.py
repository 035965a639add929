"""is_flashmla_*_supported, and what is raised where an operation has no kernel."""

import re

import pytest
import torch
from flash_mla import flash_mla_with_kvcache, is_flashmla_dense_supported, is_flashmla_sparse_supported
from problems import DenseDecode, Selection, SparseDecode

QUERIES = [
    (is_flashmla_dense_supported, DenseDecode()),
    (is_flashmla_sparse_supported, SparseDecode(main=Selection("fp8_v32"))),
]


@pytest.mark.parametrize("query", [query for query, _ in QUERIES])
def test_the_cpu_is_supported(query):
    for device in ("cpu", torch.device("cpu")):
        assert query(device) == (True, None)


@pytest.mark.parametrize("query", [query for query, _ in QUERIES])
@pytest.mark.parametrize("device", ["cuda", "cuda:0", 0, None])
def test_a_device_that_is_not_there_has_a_reason(query, device):
    supported, reason = query(device)
    assert isinstance(supported, bool)
    assert reason is None if supported else isinstance(reason, str) and reason
    if not torch.cuda.is_available():
        assert supported == (device is None), "None stands for the CPU where there is no CUDA device"


@pytest.mark.parametrize(("query", "problem"), QUERIES)
def test_the_answer_is_what_a_call_does(device, query, problem):
    """Also the test of the text: where there is no kernel, the error names what is available."""
    supported, reason = query(device)
    args = problem.build().to(device)
    if supported:
        assert reason is None
        flash_mla_with_kvcache(**args, **problem.options, tile_scheduler_metadata=None)
        return
    why = reason.partition(": ")[2]
    with pytest.raises(NotImplementedError, match=re.escape(why)) as info:
        flash_mla_with_kvcache(**args, **problem.options, tile_scheduler_metadata=None)
    assert "cpu" in str(info.value), "names the backend that has it"


@pytest.mark.parametrize("device", ["tpu", 3.5, "cuda:x"])
@pytest.mark.parametrize("query", [query for query, _ in QUERIES])
def test_what_is_no_device_is_an_error(query, device):
    with pytest.raises((RuntimeError, TypeError, ValueError)):
        query(device)
