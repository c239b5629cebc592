"""Write an op, run it, look at its kernel, tune it.

python examples/quickstart.py
"""

import numpy as np

import tilewright as tw

SOFTMAX = """
op softmax(x[R,K]) -> y[R,K]:
    m[r]   = max(k) x[r,k]
    e[r,k] = exp(x[r,k] - m[r])
    s[r]   = sum(k) e[r,k]
    y[r,k] = e[r,k] / s[r]
"""


def main() -> None:
    softmax = tw.op(SOFTMAX)
    x = np.random.default_rng(0).standard_normal((512, 1000), np.float32)

    y = softmax(x)  # NumPy in, NumPy out, on the default device
    print("rows sum to 1:", np.allclose(y.sum(axis=1), 1))

    print(softmax.source(x))  # the OpenCL C behind it

    report = softmax.tune(x, evaluations=20)  # what is found is kept for this device
    print(f"{1e3 * report.before:.2f} ms before tuning, {1e3 * report.after:.2f} ms after")

    on_device = tw.asarray(x)  # stays on the device, and so do results computed from it
    print(softmax(softmax(on_device)))


if __name__ == "__main__":
    main()
