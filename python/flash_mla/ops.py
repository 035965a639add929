"""The operations of the C++ library under their own names, for tensors of any framework that speaks DLPack.

Each function takes keyword arguments: tensors, the outputs too, then numbers and switches as the
operation declares them, and finally where to run:

Args:
    backend: name of the backend that must run the operation, for example ``"reference"``; by default the
        first that supports the case.
    threads: CPU threads; 0 takes OpenMP's default. Results have the same bits for any number.
    check_indices: raise ``ValueError`` for an index outside its range instead of masking it.

Outputs are written in place and nothing is returned. Bad arguments raise ``ValueError`` or ``TypeError``,
a case that no backend has ``NotImplementedError``, all before anything is written. NumPy arrays may have
the types of ``ml_dtypes``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flash_mla._library import Operation, ScalarField, TensorField, as_bf16, operations

__all__ = sorted(operations)


def _plain(array: Any) -> Any:
    """A NumPy array as something with DLPack: NumPy exports none of the types of ml_dtypes."""
    import tvm_ffi

    if array.dtype.name == "bfloat16":
        return as_bf16(tvm_ffi.from_dlpack(array.view("uint16")))
    return array.view("uint8") if array.dtype.name.startswith("float8") else array


def _tensor(value: Any) -> Any:
    if type(value).__module__ == "numpy" and hasattr(value, "dtype"):
        return _plain(value)
    return value


def _parameter(field: TensorField | ScalarField) -> str:
    if isinstance(field, ScalarField):
        return f"{field.name}={field.default!r}"
    return f"{field.name}=None" if field.role == "optional" else field.name


def _value(field: TensorField | ScalarField) -> str:
    if isinstance(field, ScalarField):
        return field.name
    return f"[_tensor(each) for each in {field.name}]" if field.is_list else f"_tensor({field.name})"


def _documentation(operation: Operation) -> str:
    lines = [f"{operation.summary[0].upper()}{operation.summary[1:]}.", ""]
    for field in operation.tensors:
        what = "list of tensors" if field.is_list else "tensor"
        lines += [
            f"{field.name}: {what}, {field.role}, {field.types.replace('|', ' or ')} {field.shape}",
            f"    {field.meaning}",
        ]
    for scalar in operation.scalars:
        lines += [f"{scalar.name}: {scalar.type}, default {scalar.default}", f"    {scalar.meaning}"]
    lines += ["", "A name as a type stands for the type of that argument."]
    return "\n".join(lines)


def _function(operation: Operation) -> Callable[..., None]:
    fields = (*operation.tensors, *operation.scalars)
    parameters = ", ".join([*map(_parameter, fields), "backend=None", "threads=0", "check_indices=False"])
    values = ", ".join([*map(_value, fields), "backend", "threads", "check_indices"])
    scope = {"_run": operation.run, "_tensor": _tensor, "__name__": __name__}
    exec(f"def {operation.name}(*, {parameters}): _run({values})", scope)
    function = scope[operation.name]
    function.__doc__ = _documentation(operation)
    return function


globals().update({name: _function(operation) for name, operation in operations.items()})
