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

from collections.abc import Callable, Iterable
from typing import Any

import tvm_ffi

from flash_mla._library import Operation, ScalarField, TensorField, as_bf16, operations

__all__ = sorted(operations)


class _Shared:
    """The memory of a read-only array, for NumPy to take as a writable one: it exports no other by DLPack."""

    def __init__(self, array: Any) -> None:
        self.owner = array
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def _from_numpy(array: Any, place: str) -> Any:
    """A NumPy array as something with DLPack: NumPy exports none of the types of ml_dtypes."""
    import numpy

    kind = array.dtype.name
    if kind == "bfloat16":
        array = array.view("uint16")
    elif kind == "float8_e4m3fn":
        array = array.view("uint8")
    elif kind.startswith("float8"):
        raise TypeError(f"{place} must be uint8, int8 or float8_e4m3fn, got {kind}")
    if not array.flags.writeable:
        array = numpy.asarray(_Shared(array))
    return as_bf16(tvm_ffi.from_dlpack(array)) if kind == "bfloat16" else array


def _is_numpy(value: Any) -> bool:
    return type(value).__module__ == "numpy" and hasattr(value, "dtype")


def _read(value: Any, place: str) -> Any:
    """A tensor that the operation reads; ``place`` names it in errors."""
    return _from_numpy(value, place) if _is_numpy(value) else value


def _written(value: Any, place: str) -> Any:
    """A tensor that the operation writes."""
    if _is_numpy(value) and not value.flags.writeable:
        raise ValueError(f"{place} must be writable, got a read-only array")
    return _read(value, place)


def _read_list(values: Any, place: str) -> list[Any]:
    """Tensors that the operation reads."""
    if not isinstance(values, Iterable):
        raise TypeError(f"{place} must be a list of tensors, got {type(values).__name__}")
    return [_read(value, place) for value in values]


def _parameter(field: TensorField | ScalarField) -> str:
    if isinstance(field, ScalarField):
        return f"{field.name}={field.default!r}"
    return f"{field.name}=None" if field.role == "optional" else field.name


def _value(operation: str, field: TensorField | ScalarField) -> str:
    if isinstance(field, ScalarField):
        return field.name
    place = f"{field.name}, '{operation}: {field.name}'"
    if field.is_list:
        return f"_read_list({place})"
    return f"_written({place})" if field.is_written else f"_read({place})"


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
    values = [_value(operation.name, field) for field in fields]
    values = ", ".join([*values, "backend", "threads", "check_indices"])
    scope = {
        "_run": operation.run,
        "_read": _read,
        "_read_list": _read_list,
        "_written": _written,
        "__name__": __name__,
    }
    exec(f"def {operation.name}(*, {parameters}): _run({values})", scope)
    function = scope[operation.name]
    function.__doc__ = _documentation(operation)
    return function


globals().update({name: _function(operation) for name, operation in operations.items()})
