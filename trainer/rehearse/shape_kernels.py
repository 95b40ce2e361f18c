"""Results of operators on fake tensors, without FakeTensorMode's look-up.

FakeTensorMode takes 80 µs for a call, mostly to make a key of all arguments and look it up, and a
rehearsal makes 14 000 calls. The operators in these tables get the same results at once. An
operator in place returns its first argument. One on equal tensors returns another like them. Others
return what their kernel for the device "meta" gives, or tensors of the listed shapes.
FakeTensorMode still handles operators that are not listed, and arguments other than fake CPU
tensors without known values (Adam's step counts have known values). A test compares the trace with
FakeTensorMode's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import bitsandbytes  # noqa: F401  its operators
import torch
from torch import Tensor
from torch._subclasses import FakeTensor, FakeTensorMode
from torch._subclasses.fake_tensor import in_kernel_invocation_manager
from torch.utils._python_dispatch import _get_current_dispatch_mode

import trainer.model.layers.frozen  # noqa: F401  its operators

Shape: TypeAlias = Sequence[int]

aten = torch.ops.aten
EMPTY = {aten.empty.memory_format, aten.empty_strided.default, aten.zeros.default}
IN_PLACE = {
    aten.add_.Tensor, aten.addcdiv_.default, aten.addcmul_.default, aten.copy_.default,
    aten.fill_.Scalar, aten.lerp_.Scalar, aten.mul_.Tensor, aten.normal_.default,
    aten.uniform_.default, aten.zero_.default,
}  # fmt: skip
LIKE = {
    aten.add.Tensor, aten.cos.default, aten.div.Scalar, aten.div.Tensor, aten.empty_like.default,
    aten.gelu.default, aten.gelu_backward.default, aten.mul.Scalar, aten.mul.Tensor,
    aten.neg.default, aten.pow.Tensor_Scalar, aten.relu.default, aten.rsqrt.default,
    aten.sigmoid.default, aten.silu.default, aten.silu_backward.default, aten.sin.default,
    aten.sqrt.default, aten.sub.Tensor, aten.threshold_backward.default, aten.zeros_like.default,
}  # fmt: skip
NEW = {aten.empty_like.default, aten.zeros_like.default}  # of any type
KERNELS = {  # in C++, or our own: where torch's for "meta" is in Python, the mode is as fast
    aten._to_copy.default, aten._unsafe_view.default, aten.as_strided.default, aten.bmm.default,
    aten.clone.default, aten.detach.default, aten.expand.default, aten.mm.default,
    aten.permute.default, aten.select.int, aten.slice.Tensor, aten.squeeze.dim, aten.t.default,
    aten.transpose.int, aten.unsqueeze.default, aten.view.default, aten.view.dtype,
    torch.ops.lisa_preflight.nf4_product.default, torch.ops.lisa_preflight.int8_product.default,
}  # fmt: skip


def _normed(x: Tensor, over: list[int], *rest: Any) -> list[Shape]:
    mean = (*x.shape[: -len(over)], *[1] * len(over))
    return [x.shape, mean, mean]


def _normed_back(gradient: Tensor, x: Tensor, *rest: Any) -> list[Shape]:
    *_, weight, bias, wanted = rest
    return [x.shape, weight.shape, bias.shape] if all(wanted) else []


def _reduced(x: Tensor, dims: list[int], keep: bool = False) -> list[Shape]:
    gone = {dim % x.dim() for dim in dims}
    if keep:
        shape = tuple(1 if dim in gone else size for dim, size in enumerate(x.shape))
    else:
        shape = tuple(size for dim, size in enumerate(x.shape) if dim not in gone)
    return [shape] if gone else []


def _broadcast(x: Tensor, other: Any) -> list[Shape]:
    return [torch.broadcast_shapes(x.shape, other.shape)] if isinstance(other, Tensor) else []


# The shapes of what contiguous tensors of one float type give, contiguous and of that type.
SHAPES: dict[Any, Callable[..., list[Shape]]] = {
    aten.add.Tensor: _broadcast, aten.div.Tensor: _broadcast, aten.mul.Tensor: _broadcast,
    aten.sub.Tensor: _broadcast, aten.mean.dim: _reduced, aten.sum.dim_IntList: _reduced,
    aten.native_layer_norm.default: _normed, aten.native_layer_norm_backward.default: _normed_back,
    aten.slice_backward.default: lambda gradient, sizes, *place: [tuple(sizes)],
}  # fmt: skip
# Adam's: they change values alone. The places of the gradient or of the values among arguments.
UPDATES = {
    aten._fused_adamw_.default: 0,
    torch.ops.bitsandbytes.optimizer_update_8bit_blockwise.default: 1,
    torch.ops.bitsandbytes.optimizer_update_32bit.default: 1,
}
NOTHING = ()  # what these give
CPU, META = torch.device("cpu"), torch.device("meta")


def known_result(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The operator's result for these arguments; None if FakeTensorMode has to compute it."""
    if func in IN_PLACE:
        return args[0] if _without_values(args[0]) else _counted(func, args)
    if func is aten._local_scalar_dense.default and _is_known(args[0]):
        with torch._C._DisableTorchDispatch():
            return args[0].constant.item()
    if func in LIKE and (alike := _like(func, args, kwargs)) is not None:
        return alike
    if func in SHAPES:
        return None if kwargs else _shaped(SHAPES[func], args)
    if func in KERNELS and kwargs.get("device", CPU) == CPU:
        return _of_kernel(func, args, kwargs)
    if func is aten.addmm.default and args[0].dtype == args[1].dtype:
        return _of_kernel(aten.mm.default, args[1:], {}) if _without_values(args[0]) else None
    if func in UPDATES:
        changed = args[UPDATES[func]]
        tensors = [changed] if isinstance(changed, Tensor) else changed
        return NOTHING if all(map(_without_values, tensors)) else None
    if func is aten.native_dropout.default and len(args) == 3 and _plain(args[0]):
        return _dropped(*args)
    if func is aten.linalg_vector_norm.default and len(args) <= 2 and not kwargs:
        return _made(args[0].fake_mode, (), (), args[0].dtype) if _without_values(args[0]) else None
    mode = _get_current_dispatch_mode() if func in EMPTY else None
    device = kwargs.get("device") or CPU
    if isinstance(mode, FakeTensorMode) and device in (CPU, META):
        with torch._C._DisableTorchDispatch():
            return _fake(mode, func(*args, **kwargs | {"device": META}), device)
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
    device = META if func is aten.detach.default and _on(args[0]) == META else CPU
    if not all(_without_values(value, device) for value in args if isinstance(value, Tensor)):
        return None
    mode = args[0].fake_mode
    kwargs.pop("device", None)
    with in_kernel_invocation_manager(mode):
        result = func(*args, **kwargs)
    return _fake(mode, result, device)


def _like(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> FakeTensor | None:
    """Another tensor like the first, if all are alike: contiguous, of one shape and float type."""
    first, *others = args
    if not (_plain(first) and first.is_floating_point()) or kwargs.get("device", CPU) != CPU:
        return None
    dtype = kwargs.get("dtype", first.dtype)
    if dtype != first.dtype and func not in NEW:
        return None
    for other in others:
        if isinstance(other, Tensor):
            alike = other.shape == first.shape and other.dtype == first.dtype
            if not (alike and _plain(other)):
                return None
    return _made(first.fake_mode, first.shape, first.stride(), dtype)


def _dropped(x: Any, share: float, train: bool | None) -> tuple[FakeTensor, FakeTensor] | None:
    """Dropout's result and mask; outside of training, or with probability 0, no mask is drawn."""
    if not (train and 0 < share < 1):
        return None
    mode, shape = x.fake_mode, x.shape
    return _made(mode, shape, None, x.dtype), _made(mode, shape, None, torch.bool)


def _shaped(shapes: Callable[..., list[Shape]], args: tuple[Any, ...]) -> Any:
    tensors = [value for value in args if isinstance(value, Tensor)]
    dtype = tensors[0].dtype
    if not dtype.is_floating_point or not all(t.dtype == dtype and _plain(t) for t in tensors):
        return None
    mode, found = args[0].fake_mode, shapes(*args)
    made = tuple(_made(mode, shape, None, dtype) for shape in found)
    return made if len(made) > 1 else next(iter(made), None)


def _made(
    mode: FakeTensorMode, shape: Shape, stride: Shape | None, dtype: torch.dtype
) -> FakeTensor:
    """A tensor on the CPU; without a stride it is contiguous."""
    with torch._C._DisableTorchDispatch():
        if stride is None:
            place = torch.empty(shape, dtype=dtype, device=META)
        else:
            place = torch.empty_strided(shape, stride, dtype=dtype, device=META)
    return _fake(mode, place, CPU)


def _fake(mode: FakeTensorMode, place: Tensor, device: torch.device) -> FakeTensor:
    """As FakeTensor's constructor makes it, which sets fifteen more attributes one by one."""
    tensor = Tensor._make_subclass(
        FakeTensor, place, False, dispatch_device=True, device_for_backend_keys=device
    )
    vars(tensor).update(_attributes(mode, device))
    return tensor


@lru_cache(maxsize=2)
def _attributes(mode: FakeTensorMode, device: torch.device) -> dict[str, Any]:
    """What every fake tensor of the mode has on that device."""
    with torch._C._DisableTorchDispatch():
        return vars(FakeTensor(mode, torch.empty(0, device=META), device))


def _plain(tensor: Tensor) -> bool:
    return _without_values(tensor) and tensor.is_contiguous()


def _is_known(tensor: Tensor) -> bool:
    return type(tensor) is FakeTensor and tensor.constant is not None


def _on(tensor: Any) -> torch.device | None:
    return tensor.fake_device if type(tensor) is FakeTensor else None


def _without_values(tensor: Any, device: torch.device = CPU) -> bool:
    return _on(tensor) == device and tensor.constant is None
