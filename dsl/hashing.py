"""Hashes of deep frozen values, computed once per object: programs and expressions are keys of many tables."""

from __future__ import annotations

from typing import Any, TypeVar

_Class = TypeVar("_Class", bound=type)
_NAME = "_hash"


def hashed_once(cls: _Class) -> _Class:
    """Class decorator for frozen dataclasses without slots: keep the hash in the object.

    It stays out of pickles, because hashes of texts differ between processes.
    """
    compute: Any = cls.__hash__

    def __hash__(self: Any) -> int:
        known: int | None = self.__dict__.get(_NAME)
        if known is None:
            known = self.__dict__[_NAME] = compute(self)
        return known

    def __getstate__(self: Any) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != _NAME}

    cls.__hash__ = __hash__  # type: ignore[assignment]
    cls.__getstate__ = __getstate__  # type: ignore[method-assign, assignment]
    return cls


__all__ = ["hashed_once"]
