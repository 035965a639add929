"""Attention kernels for multi-head latent attention, with the functions of DeepSeek's package of this name.

:mod:`flash_mla.ops` has the operations of the C++ library for tensors of any framework; the functions
here take PyTorch tensors.
"""

import importlib.util

from flash_mla import ops
from flash_mla._library import __version__

if importlib.util.find_spec("torch") is not None:
    from flash_mla.flash_mla_interface import (
        FlashMLASchedMeta,
        flash_attn_varlen_func,
        flash_attn_varlen_kvpacked_func,
        flash_attn_varlen_qkvpacked_func,
        flash_mla_sparse_fwd,
        flash_mla_with_kvcache,
        flash_mla_with_kvcache_fp8,
        get_mla_metadata,
        get_mla_metadata_dense_fp8,
        is_flashmla_dense_supported,
        is_flashmla_sparse_supported,
    )

__all__ = [
    "FlashMLASchedMeta",
    "__version__",
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
    "ops",
]


def __getattr__(name: str) -> object:
    if name in __all__:
        raise ImportError(f"flash_mla.{name} takes PyTorch tensors, and PyTorch is not installed")
    raise AttributeError(f"module 'flash_mla' has no attribute {name!r}")
