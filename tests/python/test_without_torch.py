"""The package where PyTorch is not installed: flash_mla.ops works, the other functions say what they need."""

import subprocess
import sys

import pytest

WITHOUT_TORCH = """
import sys
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec

def find_no_torch(name, path=None, target=None):
    return None if name.partition(".")[0] == "torch" else find_spec(name, path, target)

PathFinder.find_spec = find_no_torch
import flash_mla
"""


def run(program: str) -> str:
    """What a program prints in an interpreter without PyTorch."""
    command = [sys.executable, "-c", WITHOUT_TORCH + program]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_import_and_version():
    version = run("print(flash_mla.__version__)")
    assert version.count(".") >= 2 and version.replace(".", "").isalnum()


def test_the_names_are_listed():
    names = run("print(*dir(flash_mla))").split()
    assert "ops" in names and "__version__" in names


def test_operations_run_on_numpy():
    pytest.importorskip("ml_dtypes")
    program = """
import ml_dtypes, numpy as np
from flash_mla import ops
random = np.random.default_rng(0)
kv = random.standard_normal((2, 4, 1, 576)).astype(ml_dtypes.bfloat16)
cache = np.zeros((2, 4, 1, 656), np.uint8)
ops.quantize_kv(kv=kv, kv_cache=cache)
back = np.zeros_like(kv)
ops.dequantize_kv(kv_cache=cache, kv=back)
error = np.abs(back.astype(np.float32) - kv.astype(np.float32))
assert error.max() > 0 and (error <= np.abs(kv.astype(np.float32)) / 8 + 2e-2).all()
assert (back[..., 512:] == kv[..., 512:]).all()
assert "torch" not in sys.modules
print("done")
"""
    assert run(program) == "done"


@pytest.mark.parametrize(
    "name",
    [
        "flash_attn_varlen_func",
        "flash_attn_varlen_kvpacked_func",
        "flash_attn_varlen_qkvpacked_func",
        "flash_mla_sparse_fwd",
        "flash_mla_with_kvcache",
        "flash_mla_with_kvcache_fp8",
        "get_mla_metadata",
        "get_mla_metadata_dense_fp8",
        "is_flashmla_dense_supported",
        "is_flashmla_sparse_supported",
        "FlashMLASchedMeta",
    ],
)
def test_functions_of_pytorch_say_that_they_need_it(name):
    program = f"""
try:
    flash_mla.{name}()
except ImportError as error:
    print(error)
try:
    from flash_mla import {name}
    {name}()
except ImportError as error:
    print(error)
"""
    texts = run(program).splitlines()
    assert len(texts) == 2
    for text in texts:
        assert name in text and ("PyTorch" in text or "torch" in text)


def test_a_name_that_does_not_exist_is_an_attribute_error():
    assert run("print(hasattr(flash_mla, 'flash_mla_with_everything'))") == "False"
