"""Images in memory: (batch, channel, positions...) with channels next to one another."""

from __future__ import annotations

from tilewright.dsl.program import contiguous_strides

IMAGE_RANKS = (3, 4, 5)
"""Ranks that images along one to three dimensions have."""


def channels_last_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of (N, C, positions...) with channels next to one another."""
    moved = contiguous_strides((shape[0], *shape[2:], shape[1]))
    return (moved[0], moved[-1], *moved[1:-1])
