"""What operators give for fake tensors, without looking it up.

Of 80 µs that FakeTensorMode takes for a call, most makes a key of all arguments and looks it up; a
rehearsal makes 18 000 calls. What is in these tables gives the same at once: an operator in place
its first argument, one of equal tensors another like them, the others what their kernel for the
device "meta" gives. Whatever is not listed, or has other arguments than fake CPU tensors without
known values, stays with the mode; Adam's counts of steps are such values. A test compares the trace
with one that the mode made alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor, FakeTensorMode
from torch._subclasses.fake_tensor import in_kernel_invocation_manager
from torch.utils._python_dispatch import _get_current_dispatch_mode

import trainer.model.layers.frozen  # noqa: F401  its operators

aten = torch.ops.aten
EMPTY = {aten.empty.memory_format, aten.empty_strided.default}
IN_PLACE = {
    aten.add_.Tensor, aten.addcdiv_.default, aten.addcmul_.default, aten.copy_.default,
    aten.fill_.Scalar, aten.lerp_.Scalar, aten.mul_.Tensor, aten.normal_.default,
    aten.uniform_.default, aten.zero_.default,
}  # fmt: skip
LIKE = {
    aten.add.Tensor, aten.div.Tensor, aten.empty_like.default, aten.gelu.default, aten.mul.Scalar,
    aten.mul.Tensor, aten.neg.default, aten.pow.Tensor_Scalar, aten.relu.default,
    aten.rsqrt.default, aten.silu.default, aten.sqrt.default, aten.sub.Tensor,
    aten.zeros_like.default,
}  # fmt: skip
KERNELS = {  # in C++, or our own: where torch's for "meta" is in Python, the mode is as fast
    aten._to_copy.default, aten._unsafe_view.default, aten.as_strided.default, aten.bmm.default,
    aten.clone.default, aten.detach.default, aten.expand.default, aten.mm.default,
    aten.permute.default, aten.select.int, aten.slice.Tensor, aten.squeeze.dim, aten.t.default,
    aten.transpose.int, aten.unsqueeze.default, aten.view.default,
    torch.ops.lisa_preflight.nf4_product.default, torch.ops.lisa_preflight.int8_product.default,
}  # fmt: skip
NOTHING = ()  # what Adam gives: it changes values alone
CPU, META = torch.device("cpu"), torch.device("meta")


def known_result(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the operator gives for these arguments; None where FakeTensorMode has to say so."""
    if func in IN_PLACE:
        return args[0] if _without_values(args[0]) else _counted(func, args)
    if func is aten._local_scalar_dense.default and _is_known(args[0]):
        with torch._C._DisableTorchDispatch():
            return args[0].constant.item()
    if func in LIKE:
        return _like(args, kwargs)
    if func in KERNELS and kwargs.get("device", CPU) == CPU:
        return _of_kernel(func, args, kwargs)
    if func is aten.addmm.default and not kwargs and args[0].dtype == args[1].dtype:
        return _of_kernel(aten.mm.default, args[1:], kwargs) if _without_values(args[0]) else None
    if func is aten._fused_adamw_.default and all(map(_without_values, args[0])):
        return NOTHING
    if func is aten.linalg_vector_norm.default and len(args) <= 2 and not kwargs:
        return _made(args[0].fake_mode, (), (), args[0].dtype) if _without_values(args[0]) else None
    mode = _get_current_dispatch_mode() if func in EMPTY else None
    if isinstance(mode, FakeTensorMode) and kwargs.get("device") in (CPU, None):
        with torch._C._DisableTorchDispatch():
            return FakeTensor(mode, func(*args, **kwargs | {"device": META}), CPU)
    return None


def _counted(func: Any, args: tuple[Any, ...]) -> FakeTensor | None:
    """A known value with a number added, as Adam counts its steps."""
    count, number = args[0], args[1] if len(args) == 2 else None
    if func is not aten.add_.Tensor or not _is_known(count) or not isinstance(number, int):
        return None
    with torch._C._DisableTorchDispatch():
        count.constant.add_(number)
    return count


def _of_kernel(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> FakeTensor | None:
    if not all(_without_values(value) for value in args if isinstance(value, Tensor)):
        return None
    mode = args[0].fake_mode
    kwargs.pop("device", None)
    with in_kernel_invocation_manager(mode):
        result = func(*args, **kwargs)
    return FakeTensor(mode, result, CPU)


def _like(args: tuple[Any, ...], kwargs: dict[str, Any]) -> FakeTensor | None:
    """Another tensor like the first, if all are alike: contiguous, of one shape and float type."""
    first, *others = args
    if not (_plain(first) and first.is_floating_point()):
        return None
    if kwargs.get("dtype", first.dtype) != first.dtype or kwargs.get("device", CPU) != CPU:
        return None
    for other in others:
        if isinstance(other, Tensor):
            alike = other.shape == first.shape and other.dtype == first.dtype
            if not (alike and _plain(other)):
                return None
    return _made(first.fake_mode, first.shape, first.stride(), first.dtype)


def _made(
    mode: FakeTensorMode, shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype
) -> FakeTensor:
    with torch._C._DisableTorchDispatch():
        place = torch.empty_strided(shape, stride, dtype=dtype, device=META)
    return FakeTensor(mode, place, CPU)


def _plain(tensor: Tensor) -> bool:
    return _without_values(tensor) and tensor.is_contiguous()


def _is_known(tensor: Tensor) -> bool:
    return type(tensor) is FakeTensor and tensor.constant is not None


def _without_values(tensor: Tensor) -> bool:
    return type(tensor) is FakeTensor and tensor.constant is None and tensor.fake_device == CPU
