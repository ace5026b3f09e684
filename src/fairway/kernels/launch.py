"""From a plain function to a Triton kernel at its first launch: where Triton is not installed, its file can still be read.

A kernel is a function of a file named `*_triton.py`. It says `tl` for triton.language, which nobody imports, and
`tl.constexpr` behind the parameters that are constants; such a file begins with `from __future__ import annotations`.
"""

from functools import cache
from types import FunctionType


@cache
def triton_kernel(function):
    """`function` as a Triton kernel, compiled for each set of argument types as it is launched: kernel[grid](...)."""
    import triton
    import triton.language

    scope = {**function.__globals__, "tl": triton.language}
    kernel = FunctionType(function.__code__, scope, function.__name__, function.__defaults__)
    kernel.__module__, kernel.__annotations__ = function.__module__, function.__annotations__
    return triton.jit(kernel)
