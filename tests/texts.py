"""Texts in the language that several tests use."""

GEMM = """op gemm(a[M,K], b[K,N], bias[N]) -> c[M,N]:
    c[m,n] = relu(sum(k) a[m,k] * b[k,n] + bias[n])
    tile m: 32, 64, 128  per item 2, 4, 8         # the tuning space may be declared, narrowed or fixed here
    tile n: 32, 64, 128  per item 2, 4, 8
    tile k: 8, 16, 32
    where local_bytes <= device.local_mem
"""
CONV = """op conv2d(x[N,C,H,W], w[O,C,R,S]; stride: int, pad: int) -> y[N,O,P,Q]:
    y[n,o,p,q] = sum(c,r,s) x[n,c, p*stride+r-pad, q*stride+s-pad] * w[o,c,r,s]
"""
SOFTMAX = """op softmax(x[R,K]) -> y[R,K]:
    m[r]   = max(k) x[r,k]
    e[r,k] = exp(x[r,k] - m[r])
    y[r,k] = e[r,k] / sum(j) e[r,j]
"""
HEADER = "op f(x[N,C], b[C]; k: int = 3, eps: f32 = 1e-5) -> y[N,C]:\n    "
"""The header of most small cases; what follows stands in line 2 from column 5."""
SEVERAL = """def soft(x, a) = x / (a + abs(x))

op update(a[M,K], b[K,N]; alpha: f32 = 1, beta: f32 = 0) -> c[M,N]:
    c[m,n] = beta * c[m,n] + alpha * sum(k) a[m,k] * b[k,n]
    vector n: 4, 8
    stage a: packed, none
    where vector_n * unroll_k < 64
    fast_math

op axpy(x[N]; s: f32 = 1) -> y[N]: y[n] += soft(s * x[n], 2)

op g(x[N]) -> y[N], z:
    z, t = two(x)
    y = axpy(x, t; s=3) - 1

op two(x[N]) -> a, b[N]:
    a = sum(x)
    b = soft(x, 1)
"""
"""Functions, updates, calls and tuning lines."""
