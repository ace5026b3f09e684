"""A short program as one executable file: compressed text, and the lines that unpack and run it.

The text runs in the file's own module (`__main__`) and stands in `linecache` under the file's name, so that
`inspect.getsource` finds it: kernels that are compiled from their source need that, and so do tracebacks.
"""

import base64
import inspect

from ..problem import Problem
from .minify import minify
from .squeeze import predictions, squeezed, unsqueezed

UNPACK = """
import base64, linecache, math

{functions}
text = unsqueezed({payload}, {size}).decode()
linecache.cache[__file__] = 0, None, text.splitlines(1), __file__
exec(compile(text, __file__, "exec"))
"""
PLACES = {"base85": "base64.b85decode(PAYLOAD)", "latin-1": "PAYLOAD.encode('l1')"}


def wrap(text, form="base85"):
    """The file's bytes: `text` compressed, as ASCII ("base85") or as raw bytes in a string literal ("latin-1").

    Problem for another form. Where the literal stands, so that a traceback does not show it, is a line of its own.
    """
    if form not in PLACES:
        raise Problem(f"no form {form!r} of a program: take one of {', '.join(PLACES)}")
    data = text.encode()
    packed = squeezed(data)
    functions = "\n".join(map(inspect.getsource, (predictions, unsqueezed)))
    unpack = minify(UNPACK.format(functions=functions, payload=PLACES[form], size=len(data)))
    before, after = "\n".join(part for _, part in unpack).split("PAYLOAD")
    if form == "base85":
        return f'{before}"{base64.b85encode(packed).decode()}"{after}'.encode()
    return f'#coding:l1\n{before}"""{escaped(packed)}"""{after}'.encode("latin-1")


def escaped(data):
    """Bytes as the inside of a triple-quoted literal of a latin-1 source: what the tokenizer would change is written out."""
    text = data.decode("latin-1").replace("\\", "\\\\").replace("\r", "\\r").replace('"', '\\"')
    for digit in "01234567":
        text = text.replace(f"\0{digit}", f"\\000{digit}")
    return text.replace("\0", "\\0")
