"""Devices that do not exist, for tests that generate code and run nothing."""

from __future__ import annotations

from dataclasses import replace

from tilewright.dsl.target import Shape, Target

CPU = Target(
    shape=Shape.CPU,
    compute_units=4,
    vector_bytes=32,
    vector_registers=16,
    max_work_group=4096,
    local_memory=32 << 10,
    has_real_local_memory=False,
    sub_group=1,
    fma="fma(a, b, c)",
    has_f16=False,
    has_f64=True,
)
GPU = replace(
    CPU,
    shape=Shape.GPU,
    compute_units=64,
    vector_bytes=16,
    vector_registers=128,
    max_work_group=1024,
    local_memory=48 << 10,
    has_real_local_memory=True,
    sub_group=32,
)
