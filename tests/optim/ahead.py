"""Kernels compiled ahead of time, without a card: in a process of its own, since the interpreter replaces the compiler."""

import os
import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def compile_ahead(script, tmp_path):
    """Runs a script that calls `compiled`. Returns its exit code and what it wrote to standard error."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": f"{TESTS}:{environment.get('PYTHONPATH', '')}"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    return done.returncode, done.stderr


def compiled(kernel, types, constants, aligned, card, **options):
    """(PTX, registers a thread, bytes spilled a thread, bytes of shared memory) of a kernel for compute capability `card`.

    `types` and `constants` are by parameter name, in the order of the signature together; `aligned` names the parameters
    that are multiples of 16.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fairway.kernels.launch import triton_kernel

    names = kernel.__code__.co_varnames[: kernel.__code__.co_argcount]
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    values = {(names.index(name),): value for name, value in constants.items()}
    divisible = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(triton_kernel(kernel), signature, values, divisible)
    made = triton.compile(source, target=GPUTarget("cuda", card, 32), options=options)
    cubin = Path(os.environ["TRITON_CACHE_DIR"]) / "one.cubin"
    cubin.write_bytes(made.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    said = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.search(rf"{word}:(\d+)", said)[1]) for word in ("REG", "STACK", "LOCAL"))
    return made.asm["ptx"], registers, stack + local, made.metadata.shared


def narrow_loads(ptx):
    """How many loads of a kernel take two bytes, where neighbours side by side would take sixteen at once."""
    return len(re.findall(r"ld\.global(?:\.\w+)*\.b16", ptx))
