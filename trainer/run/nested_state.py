"""A nested state of training as tensors and JSON, and back."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def flat(state: Any, path: str = "") -> tuple[dict[str, Tensor], Any]:
    """A nested state as tensors by path, and the same nesting with paths instead of tensors.

    It may hold dictionaries (their keys become text), lists, tensors, and values of JSON.
    """
    if isinstance(state, Tensor):
        return {path: state.detach().cpu().contiguous().clone()}, {"tensor": path}
    if isinstance(state, dict | list | tuple):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        tensors: dict[str, Tensor] = {}
        rest = []
        for key, value in items:
            found, shape = flat(value, f"{path}/{key}")
            tensors |= found
            rest.append((str(key), shape))
        return tensors, dict(rest) if isinstance(state, dict) else [shape for _, shape in rest]
    return {}, state


def nested(tensors: dict[str, Tensor], rest: Any) -> Any:
    """The state that `flat` took apart."""
    if isinstance(rest, dict):
        if rest.keys() == {"tensor"} and isinstance(rest["tensor"], str):
            return tensors[rest["tensor"]]
        return {key: nested(tensors, value) for key, value in rest.items()}
    return [nested(tensors, value) for value in rest] if isinstance(rest, list) else rest
