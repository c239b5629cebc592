"""Tune an OpenCL kernel that tilewright did not write: transposing a matrix by tiles in local memory.

python examples/foreign_kernel.py
"""

import numpy as np

from tilewright.autotune import Output, tune_kernel

SOURCE = """
__kernel void transpose(__global const float *a, __global float *b, const int rows, const int columns) {
    __local float tile[TILE][TILE + PADDING];
    const int x = get_group_id(0) * TILE, y = get_group_id(1) * TILE;
    const int i = get_local_id(0);
    for (int j = get_local_id(1); j < TILE; j += LINES)
        if (x + i < columns && y + j < rows)
            tile[j][i] = a[(y + j) * columns + x + i];
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int j = get_local_id(1); j < TILE; j += LINES)
        if (y + i < rows && x + j < columns)
            b[(x + j) * rows + y + i] = tile[i][j];
}
"""


def main() -> None:
    rows, columns = 1000, 1500
    result = tune_kernel(
        SOURCE,
        {"TILE": (4, 8, 16, 32), "LINES": (1, 2, 4, 8, 16, 32), "PADDING": (0, 1)},
        lambda rng: {
            "a": rng.standard_normal((rows, columns)).astype(np.float32),
            "b": Output((columns, rows)),
            "rows": rows,
            "columns": columns,
        },
        reference=lambda a, rows, columns: a.T,
        constraints=["LINES <= TILE"],
        global_size=("round_up(columns, TILE)", "ceil_div(rows, TILE) * LINES"),
        local_size=("TILE", "LINES"),
        tolerance=0.0,
        budget="30s",
    )
    print(result)
    for measured in result.fastest(3):
        print(f"{1e6 * (measured.seconds or 0):8.1f} µs  {measured.configuration}")
    if result.launch is not None:
        print(result.launch.source)


if __name__ == "__main__":
    main()
