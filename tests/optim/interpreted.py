"""What Triton's interpreter needs for products of bfloat16: it keeps them as 16-bit integers, and would multiply these."""

import numpy as np


def multiply_bfloat16(monkeypatch):
    """Lets the interpreter's dot widen bfloat16 to float32 first, which is exact."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    dot = InterpreterBuilder.create_dot

    def widened(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", lambda self, a, b, *rest: dot(self, widened(a), widened(b), *rest))
