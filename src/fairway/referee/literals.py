"""A tiny evaluator of constants in a stranger's source: what a text comes to, told from its syntax tree and never run.

It knows literals, names bound to them, joins, slices, simple functions of the file's own, and decoders as transformations of
data. Whatever else it meets is Unknown. Work, sizes and depth are bounded.
"""

import ast
import base64
import lzma
import zlib
from dataclasses import dataclass
from pathlib import PurePosixPath

from .inflate import ARCHIVE_ERRORS, Oversize, bounded, unpacked_pieces, xz_pieces, zip_members, zlib_pieces

MOST_A_LAYER, MOST_IN_ALL = 64 << 20, 128 << 20  # bytes that a decoder may give
MOST_STEPS, DEEPEST_CALL = 400_000, 12
MOST_WORK = 1 << 30  # characters and items of all values together
MOST_ITEMS = 4 << 20  # of a list
TEXT_CODECS = ("utf-8", "utf8", "ascii", "latin-1", "latin1", "l1", "iso-8859-1", "cp437", "cp1252", "utf-16", "utf-16-le")
DECODERS = {
    "base64.b64decode": "base64", "base64.standard_b64decode": "base64", "base64.urlsafe_b64decode": "base64",
    "base64.decodebytes": "base64", "binascii.a2b_base64": "base64", "base64.b85decode": "base85",
    "base64.z85decode": "base85", "base64.a85decode": "ascii85", "base64.b32decode": "base32", "base64.b16decode": "hex",
    "binascii.unhexlify": "hex", "binascii.a2b_hex": "hex", "bytes.fromhex": "hex", "bytearray.fromhex": "hex",
    "lzma.decompress": "lzma", "lzma.LZMADecompressor": "lzma", "zlib.decompress": "zlib", "zlib.decompressobj": "zlib",
    "bz2.decompress": "bz2", "bz2.BZ2Decompressor": "bz2", "gzip.decompress": "gzip", "gzip.open": "gzip",
    "gzip.GzipFile": "gzip", "lzma.open": "lzma", "lzma.LZMAFile": "lzma", "bz2.open": "bz2", "bz2.BZ2File": "bz2",
    "brotli.decompress": "brotli", "zstandard.decompress": "zstd", "zstandard.ZstdDecompressor": "zstd",
    "zstd.decompress": "zstd", "compression.zstd.decompress": "zstd", "compression.lzma.decompress": "lzma",
    "compression.zlib.decompress": "zlib", "compression.bz2.decompress": "bz2", "compression.gzip.decompress": "gzip",
}  # fmt: skip
PACKED_TEXT = ("base64", "base85", "ascii85", "base32", "hex")
SAFE_CALLS = {
    "bytes": bytes, "bytearray": bytes, "str": str, "len": len, "int": int, "chr": chr, "ord": ord, "tuple": tuple,
    "list": list, "reversed": lambda x: x[::-1], "memoryview": bytes, "min": min, "max": max, "sum": sum, "abs": abs,
    "int.from_bytes": int.from_bytes, "str.encode": str.encode, "bytes.decode": bytes.decode, "dict": dict, "zip": zip,
}  # fmt: skip
METHODS = {
    "strip", "lstrip", "rstrip", "split", "rsplit", "splitlines", "partition", "rpartition", "find", "index", "rfind",
    "rindex", "startswith", "endswith", "removeprefix", "removesuffix", "lower", "upper", "hex", "count", "tobytes",
    "items", "values", "keys", "get", "swapcase",
}  # fmt: skip


class Unknown(Exception):
    """Not a constant, or none that is followed."""


class Dotted(str):
    """The name of a module or of something in it."""


@dataclass(frozen=True, eq=False)
class Closure:
    """A function or lambda of the file's own."""

    node: object
    names: dict


@dataclass(frozen=True, eq=False)
class Bound:
    """A method of a value, not yet called; of a decoder: what it decodes, and how."""

    value: object
    method: str


@dataclass(eq=False)
class Opened:
    """A file that is open in the script: its bytes, whether it is read as text, and where it is read."""

    data: bytes
    is_text: bool = False
    place: int = 0

    def read(self, size=-1):
        end = len(self.data) if size is None or size < 0 else self.place + size
        piece, self.place = self.data[self.place : end], min(end, len(self.data))
        return piece.decode() if self.is_text else piece

    def seek(self, place, origin=0):
        self.place = max(0, place + (0, self.place, len(self.data))[origin])
        return self.place

    def readlines(self):
        return self.read().splitlines(True)

    def readline(self):
        end = self.data.find(b"\n", self.place)
        return self.read(len(self.data) - self.place if end < 0 else end + 1 - self.place)


class Decoding:
    """What decoders gave: by value the names of the layers that it came through, and what has been used up by others."""

    def __init__(self):
        self.layers, self.used, self.spent, self.done = {}, set(), 0, {}
        self.faults, self.bombs, self.broken = [], [], []

    def decode(self, kind, data, options, place):
        """The bytes that `data` is packed from; Unknown, with a fault, where it cannot be had."""
        key = kind, data, repr(options)
        if key not in self.done:
            self.done[key] = self.decoded(kind, data, options, place)
        if self.done[key] is None:
            raise Unknown
        return self.derived(self.done[key], data, layer=kind)

    def decoded(self, kind, data, options, place):
        """As `decode`; None where it cannot be had."""
        if self.bombs:
            return None
        try:
            if kind not in PACKED_TEXT and not isinstance(data, bytes):
                raise ValueError("it is no bytes")
            result = unpack_text(kind, data, options) if kind in PACKED_TEXT else unpack(kind, data, options)
        except Oversize as error:
            (self.bombs if error.bomb else self.faults).append(f"line {place}: {kind} data {error}")
            return None
        except (TypeError, OverflowError, *ARCHIVE_ERRORS) as error:
            self.faults.append(f"line {place}: {kind} data cannot be unpacked: {str(error)[:200] or type(error).__name__}")
            # A decoder that is asked piece by piece may stop early, and one that is not there may be so elsewhere.
            if not options.get("piecewise") and not isinstance(error, (NotImplementedError, MemoryError)):
                self.broken.append((place, self.faults[-1]))
            return None
        self.spent += len(result)
        if self.spent > MOST_IN_ALL:
            self.faults.append(f"line {place}: all that is packed is more than {MOST_IN_ALL:,} bytes")
            return None
        return result

    def derived(self, result, *sources, layer=None):
        """Notes that a text comes from others, and through which layers."""
        packed = [one for one in sources if isinstance(one, (str, bytes)) and one in self.layers]
        if isinstance(result, (str, bytes)) and (layer or packed):
            longest = max((self.layers[one] for one in packed), key=len, default=())
            self.used.update(one for one in packed if one != result)
            if result not in self.layers or layer:
                self.layers[result] = longest + ((layer,) if layer else ())
        return result


def unpack_text(kind, data, options):
    """Bytes from a text of base 16 to 85."""
    if kind == "hex":
        return bytes.fromhex(data if isinstance(data, str) else data.decode())
    if kind == "base64":
        others = b"-_" if options.get("urlsafe") else options.get("altchars", options.get("first"))
        return base64.b64decode(data, others if isinstance(others, (str, bytes)) else None)
    if kind == "ascii85":
        return base64.a85decode(data, adobe=bool(options.get("adobe")))
    if kind == "base85" and options.get("z85"):
        raise NotImplementedError("the alphabet of ZeroMQ is not read")
    return base64.b85decode(data) if kind == "base85" else base64.b32decode(data)


def unpack(kind, data, options):
    """Bytes from compressed ones, MOST_A_LAYER at most."""
    first, filters = options.get("first"), options.get("filters")
    if kind == "lzma":
        pieces = xz_pieces([data], options.get("format", first if isinstance(first, int) else lzma.FORMAT_AUTO), filters)
    elif kind == "zlib":
        pieces = zlib_pieces([data], options.get("wbits", first if isinstance(first, int) else zlib.MAX_WBITS))
    else:
        pieces = unpacked_pieces(kind, [data])
    return bounded(pieces, MOST_A_LAYER)


class Evaluator:
    """Values of expressions in one source. `names`: what is bound so far; `own`: the source's own bytes; `read(name)`: the
    bytes of a file beside it, or None. `asked` lists the files that it opens as (name, line)."""

    def __init__(self, own, name, read=None):
        self.own, self.name, self.read = own, name, read
        self.names = {"__file__": PurePosixPath(name), "__name__": "__main__"}
        self.decoding, self.asked, self.known_parts = Decoding(), [], {}
        self.steps = self.work = self.depth = self.nested = 0

    def value(self, node):
        """What an expression comes to; Unknown where that cannot be told. Of one statement each part is looked at once,
        since files are read on; `nested` says that parts stand for several values."""
        if not self.nested and id(node) in self.known_parts:
            if isinstance(self.known_parts[id(node)], Unknown):
                raise Unknown
            return self.known_parts[id(node)]
        try:
            result = self.computed(node)
        except Unknown as unknown:
            if not self.nested:
                self.known_parts[id(node)] = unknown
            raise
        if not self.nested:
            self.known_parts[id(node)] = result
        return result

    def computed(self, node):
        """As `value`, worked out."""
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise Unknown
        method = getattr(self, f"of_{type(node).__name__}", None)
        if method is None:
            raise Unknown
        try:
            result = method(node)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, MemoryError, RecursionError) as error:
            raise Unknown from error
        if isinstance(result, (str, bytes, list, tuple)):
            self.work += len(result)
            if len(result) > MOST_A_LAYER or self.work > MOST_WORK:
                raise Unknown
        return result

    def of_Constant(self, node):
        return node.value

    def of_Name(self, node):
        return self.names[node.id] if node.id in self.names else Dotted(node.id)

    def of_NamedExpr(self, node):
        self.names[node.target.id] = self.value(node.value)
        return self.names[node.target.id]

    def of_Tuple(self, node):
        return tuple(map(self.value, node.elts))

    def of_List(self, node):
        return list(map(self.value, node.elts))

    def of_Dict(self, node):
        return {self.value(key): self.value(one) for key, one in zip(node.keys, node.values, strict=True)}

    def of_Lambda(self, node):
        return Closure(node, self.names)

    def of_Slice(self, node):
        return slice(*(part and self.value(part) for part in (node.lower, node.upper, node.step)))

    def of_Subscript(self, node):
        value = self.value(node.value)
        if isinstance(value, Dotted):
            # What a program is started with: its own name comes first.
            if value == "sys.argv" and self.value(node.slice) == 0:
                return self.names["__file__"]
            raise Unknown
        return self.decoding.derived(value[self.value(node.slice)], value)

    def of_JoinedStr(self, node):
        parts = [self.value(one.value if isinstance(one, ast.FormattedValue) else one) for one in node.values]
        if any(isinstance(one, ast.FormattedValue) and one.format_spec for one in node.values):
            raise Unknown
        return self.decoding.derived("".join(map(plain_text, parts)), *parts)

    def of_UnaryOp(self, node):
        value = self.value(node.operand)
        if isinstance(node.op, ast.USub) and isinstance(value, int):
            return -value
        raise Unknown

    def of_BinOp(self, node):
        left, right = self.value(node.left), self.value(node.right)
        if isinstance(left, Dotted) or isinstance(right, Dotted):
            raise Unknown
        if isinstance(node.op, ast.Div):
            return PurePosixPath(left) / right
        if isinstance(node.op, ast.Add):
            return self.decoding.derived(left + right, left, right)
        if isinstance(node.op, ast.Mult):
            sizes = [len(one) if isinstance(one, (str, bytes, list, tuple)) else one for one in (left, right)]
            if all(isinstance(one, int) and abs(one) < 1 << 40 for one in sizes) and sizes[0] * sizes[1] <= MOST_A_LAYER:
                return left * right
        numbers = isinstance(left, int) and isinstance(right, int) and abs(left) < 1 << 64 and abs(right) < 1 << 64
        if numbers and isinstance(node.op, (ast.Sub, ast.Mod, ast.BitXor, ast.BitAnd, ast.BitOr, ast.FloorDiv)):
            return {
                ast.Sub: int.__sub__, ast.Mod: int.__mod__, ast.BitXor: int.__xor__, ast.BitAnd: int.__and__,
                ast.BitOr: int.__or__, ast.FloorDiv: int.__floordiv__,
            }[type(node.op)](left, right)  # fmt: skip
        if numbers and isinstance(node.op, (ast.LShift, ast.RShift)) and 0 <= right < 64:
            return left << right if isinstance(node.op, ast.LShift) else left >> right
        raise Unknown

    def of_ListComp(self, node):
        if len(node.generators) != 1 or node.generators[0].ifs:
            raise Unknown
        one, found, before = node.generators[0], [], dict(self.names)
        items = self.value(one.iter)
        if isinstance(items, Dotted):
            raise Unknown
        self.nested += 1
        try:
            for item in items:
                self.bind(one.target, item)
                found.append(self.value(node.elt))
        finally:
            self.names, self.nested = before, self.nested - 1
        return found

    of_GeneratorExp = of_ListComp

    def bind(self, target, value):
        """Binds the names of an assignment's target."""
        if isinstance(target, ast.Name):
            self.names[target.id] = value
        elif isinstance(target, (ast.Tuple, ast.List)) and isinstance(value, (tuple, list, str, bytes)):
            if len(target.elts) != len(value):
                raise Unknown
            for one, item in zip(target.elts, value, strict=True):
                self.bind(one, item)
        else:
            raise Unknown

    def of_Attribute(self, node):
        value = self.value(node.value)
        if isinstance(value, Dotted):
            if value == "lzma" and node.attr.startswith(("FORMAT_", "FILTER_", "CHECK_", "MODE_", "MF_")):
                return getattr(lzma, node.attr)
            if value == "zlib" and node.attr == "MAX_WBITS":
                return zlib.MAX_WBITS
            return Dotted(f"{value}.{node.attr}")
        if isinstance(value, PurePosixPath) and node.attr in ("parent", "name", "stem"):
            return getattr(value, node.attr)
        return Bound(value, node.attr)

    def of_Call(self, node):
        function = self.value(node.func)
        arguments = [self.value(one) for one in node.args]
        options = {one.arg: self.value(one.value) for one in node.keywords if one.arg}
        if len(options) != len(node.keywords):
            raise Unknown
        if any(isinstance(one, Dotted) for one in arguments) and function not in ("getattr", "builtins.getattr"):
            raise Unknown
        if isinstance(function, Closure):
            return self.enter(function, arguments, options)
        if isinstance(function, Bound):
            return self.method(function.value, function.method, arguments, options, node.lineno)
        if not isinstance(function, Dotted):
            raise Unknown
        return self.known(function.removeprefix("builtins."), arguments, options, node.lineno)

    def known(self, name, arguments, options, place):
        """The result of a function of the standard library."""
        first = arguments[0] if arguments else None
        if name in DECODERS:
            return self.decoder(name, arguments, options, place)
        if name in ("__import__", "importlib.import_module"):
            return Dotted(first)
        if name == "getattr" and isinstance(first, Dotted):
            return Dotted(f"{first}.{arguments[1]}")
        if name in ("open", "io.open", "codecs.open"):
            mode = options.get("mode", arguments[1] if len(arguments) > 1 else "r")
            return self.opened(first, place, "b" not in mode)
        if name in ("io.BytesIO", "io.StringIO"):
            return Opened(first if isinstance(first, bytes) else first.encode(), isinstance(first, str))
        if name in ("os.path.join", "pathlib.Path", "Path", "pathlib.PurePath"):
            return PurePosixPath(*arguments)
        if name in ("os.path.abspath", "os.path.realpath", "os.fspath", "os.path.normpath"):
            return PurePosixPath(first)
        if name in ("os.path.dirname", "os.path.basename"):
            return PurePosixPath(first).parent if name.endswith("dirname") else PurePosixPath(first).name
        if name in ("zipfile.ZipFile", "bytes", "bytearray") and isinstance(first, Opened):
            return first
        if name == "codecs.decode" and len(arguments) == 2:
            return self.method(first, "decode", arguments[1:], options, place)
        if name == "compile" or (name == "str" and isinstance(first, bytes) and len(arguments) == 2):
            return first if name == "compile" else self.method(first, "decode", arguments[1:], {}, place)
        if name == "range" and len(range(*arguments)) <= MOST_A_LAYER >> 6:
            return range(*arguments)
        if (isinstance(first, int) and name in ("bytes", "bytearray", "memoryview") and first > MOST_A_LAYER) or (
            name in ("list", "tuple", "sum", "min", "max", "dict") and len(first) > MOST_ITEMS
        ):
            raise Unknown
        if name in SAFE_CALLS and not any(isinstance(one, (Dotted, Closure, Bound, Opened)) for one in arguments):
            result = SAFE_CALLS[name](*arguments, **options)
            return self.decoding.derived(list(result) if name == "zip" else result, *arguments)
        raise Unknown

    def decoder(self, name, arguments, options, place):
        """What a decoder gives for its data, or the decoder, where it is an object that is asked later."""
        kind, first = DECODERS[name], arguments[0] if arguments else None
        extra = options | ({"first": arguments[1]} if len(arguments) > 1 else {})
        extra |= {"urlsafe": True} if "urlsafe" in name else {"z85": True} if "z85" in name else {}
        if name.endswith(("Decompressor", "decompressobj")):
            extra = options | ({"first": first} if isinstance(first, int) else {})
            return Bound(None, (kind, tuple((extra | {"piecewise": True}).items())))
        if name.endswith((".open", "File")):
            held = first if isinstance(first, Opened) else options.get("fileobj")
            held = held if isinstance(held, Opened) else self.opened(first, place)
            text = "t" in options.get("mode", arguments[1] if len(arguments) > 1 else "r")
            return Opened(self.decoding.decode(kind, held.data, {}, place), text)
        return self.decoding.decode(kind, first, extra, place)

    def opened(self, path, place, is_text=False):
        """A file that the script opens to read: its own, or one beside it."""
        path = str(path)
        if path == self.name:
            return Opened(self.own, is_text)
        self.asked.append((path, place))
        data = self.read(path) if self.read else None
        if data is None:
            raise Unknown
        return Opened(data, is_text)

    def method(self, value, name, arguments, options, place):
        """The result of a method of a value."""
        if value is None and isinstance(name, tuple):
            raise Unknown
        if isinstance(value, Bound) and isinstance(value.method, tuple):
            kind, extra = value.method
            if name in ("decompress", "process", "stream_reader"):
                data = arguments[0].data if isinstance(arguments[0], Opened) else arguments[0]
                result = self.decoding.decode(kind, data, dict(extra), place)
                return Opened(result) if name == "stream_reader" else result
            raise Unknown
        if isinstance(value, Opened):
            return self.file_method(value, name, arguments)
        if isinstance(value, PurePosixPath):
            if name in ("read_bytes", "read_text", "open"):
                file = self.opened(value, place, name == "read_text" or (name == "open" and "b" not in (*arguments, "r")[0]))
                return file if name == "open" else file.read()
            if name in ("resolve", "absolute", "as_posix", "expanduser"):
                return value
            return value / arguments[0] if name == "joinpath" else PurePosixPath(getattr(value, name)(*arguments))
        if isinstance(value, (str, bytes)):
            return self.decoding.derived(self.text_method(value, name, arguments, options, place), value, *arguments)
        if isinstance(value, (list, tuple, dict)) and name in METHODS:
            return getattr(value, name)(*arguments)
        raise Unknown

    def file_method(self, file, name, arguments):
        """The result of a method of an open file, or of an open archive."""
        if name == "read" and arguments and isinstance(arguments[0], str):
            members = zip_members(file.data, MOST_A_LAYER, lambda one: one == arguments[0])
            return self.decoding.derived(members[arguments[0]], layer="zip")
        if name in ("read", "seek", "readlines", "readline"):
            return getattr(file, name)(*arguments)
        if name == "getvalue":
            return file.data
        raise Unknown

    def text_method(self, value, name, arguments, options, place):
        """The result of a method of a text or of bytes."""
        if name in ("encode", "decode"):
            codec = options.get("encoding", arguments[0] if arguments else "utf-8").lower().replace("_", "-")
            errors = options.get("errors", arguments[1] if len(arguments) > 1 else "strict")
            packers = {"hex": "hex", "hex-codec": "hex", "base64": "base64", "zlib": "zlib", "zip": "zlib", "bz2": "bz2"}
            if name == "decode" and codec in packers:
                return self.decoding.decode(packers[codec], value, {}, place)
            if codec not in TEXT_CODECS or errors not in ("strict", "ignore", "replace", "surrogateescape"):
                raise Unknown
            return value.encode(codec, errors) if name == "encode" else value.decode(codec, errors)
        if name == "join":
            parts = list(arguments[0])
            if any(isinstance(one, Dotted) for one in parts):
                raise Unknown
            if sum(map(len, parts)) + len(value) * len(parts) > MOST_A_LAYER:
                raise Unknown
            return value.join(parts)
        if name == "replace":
            if len(value) + (value.count(arguments[0]) + 1) * len(arguments[1]) > MOST_A_LAYER:
                raise Unknown
            return value.replace(*arguments)
        if name == "translate":
            table = arguments[0]
            if any(isinstance(one, str) and len(one) > 8 for one in (table.values() if isinstance(table, dict) else ())):
                raise Unknown
            return value.translate(table)
        if name in METHODS and (len(value) <= MOST_ITEMS or "split" not in name):
            return getattr(value, name)(*arguments, **options)
        raise Unknown

    def enter(self, closure, arguments, options):
        """The result of a simple function of the file's own: assignments, then a return."""
        arguments_of = closure.node.args
        names = [one.arg for one in (*arguments_of.posonlyargs, *arguments_of.args)]
        if self.depth >= DEEPEST_CALL or len(arguments) > len(names) or arguments_of.vararg or arguments_of.kwarg:
            raise Unknown
        before, self.depth, self.nested = self.names, self.depth + 1, self.nested + 1
        try:
            defaults = [self.value(one) for one in arguments_of.defaults]
            given = dict(zip(names[len(names) - len(defaults) :], defaults, strict=True))
            given |= dict(zip(names, arguments, strict=False)) | options
            if set(given) != set(names):
                raise Unknown
            self.names = closure.names | given
            if isinstance(closure.node, ast.Lambda):
                return self.value(closure.node.body)
            for statement in closure.node.body:
                if isinstance(statement, ast.Return) and statement.value:
                    return self.value(statement.value)
                if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
                    self.bind(statement.targets[0], self.value(statement.value))
                elif isinstance(statement, (ast.Import, ast.ImportFrom)):
                    self.imported(statement)
                elif not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
                    raise Unknown
            raise Unknown
        finally:
            self.names, self.depth, self.nested = before, self.depth - 1, self.nested - 1

    def imported(self, statement):
        """Binds what an import statement binds."""
        for one in statement.names:
            if isinstance(statement, ast.Import):
                self.names[one.asname or one.name.split(".")[0]] = Dotted(one.name if one.asname else one.name.split(".")[0])
            elif statement.module:
                self.names[one.asname or one.name] = Dotted(f"{statement.module}.{one.name}")


def plain_text(value):
    """What an f-string shows of a value that it was given."""
    if not isinstance(value, (str, int, PurePosixPath)) or isinstance(value, Dotted):
        raise Unknown
    return str(value)
