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
