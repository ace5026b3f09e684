"""Code out of its wrappers, without running it: texts that a script unpacks and executes, layer by layer.

The wrapper's syntax tree is walked with an evaluator of constants (literals.py). What it hands to `exec`, and whatever its
decoders give that is a program, is the next layer. ZIP applications and shell scripts that carry a program are opened too.
"""

import ast
import base64
import contextlib
import re
import tokenize
import warnings
from dataclasses import dataclass
from io import BytesIO

from ..artifact.squeeze import unsqueezed
from ..artifact.wrap import wrap
from ..problem import Problem
from .inflate import ARCHIVE_ERRORS, Oversize, zip_members
from .literals import MOST_A_LAYER, MOST_STEPS, Dotted, Evaluator, Opened, Unknown

MOST_LAYERS, MOST_PAYLOADS = 8, 64
MOST_SQUEEZED = 1 << 18  # bytes of text: some 15 s of work
SMALL_SHELL = 600  # nodes of the tree of a script that does little but unpack another
LARGEST_SOURCE, LARGEST_CODE = 64 << 20, 1 << 19  # bytes of a source; of it outside of long texts
TOO_LONG = "too much is worked out before anything runs; the rest is not looked at"
BYTECODE = ("marshal.loads", "marshal.load", "pickle.loads", "pickle.load", "dill.loads", "cloudpickle.loads")
HERE_DOC = re.compile(rb"<<-?\s*(['\"]?)(\w+)\1[^\n]*\n(.*?)\n\s*\2\s*(?:\n|$)", re.S)
BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True, eq=False)
class Unwrapped:
    """A script's source after all wrappers are off. `layers`: what was undone, the outermost first; `sizes`: bytes of the
    source at each step; `faults`: what could not be undone; `bombs`: what unpacks to a gigabyte and more; `broken`: what
    certainly fails when it is unpacked; `shells`: trees of the wrappers; `executed`: whether the innermost text goes to
    `exec` and is in no file."""

    layers: tuple
    text: str
    faults: tuple = ()
    sizes: tuple = ()
    bombs: tuple = ()
    broken: tuple = ()
    shells: tuple = ()
    executed: bool = False
    asked: tuple = ()


@dataclass(frozen=True)
class Payload:
    """A text that a wrapper unpacks: `value` str or bytes; `layers` that it came through; whether `exec` gets it."""

    value: object
    layers: tuple
    executed: bool


def unwrap(data, name="train_gpt.py", read=None):
    """The Unwrapped of a script's bytes. `read(name)` gives bytes of a file beside it, or None: payloads may lie there."""
    peeled = Peeling(name, read)
    text, executed = peeled.peel(data, 0)
    return Unwrapped(
        tuple(peeled.layers), text, tuple(dict.fromkeys(peeled.faults)), tuple(peeled.sizes), tuple(peeled.bombs),
        tuple(peeled.broken), tuple(peeled.shells), executed, tuple(dict.fromkeys(peeled.asked)),
    )  # fmt: skip


class Peeling:
    """Takes layer after layer off a script, and remembers what it met."""

    def __init__(self, name, read):
        self.name, self.read = name, read
        self.layers, self.faults, self.sizes, self.bombs = [], [], [], []
        self.broken, self.shells, self.asked = [], [], []

    def peel(self, data, depth):
        """(text, whether `exec` gets it) of the innermost source of a layer's bytes or text."""
        if depth > MOST_LAYERS:
            self.faults.append(f"more than {MOST_LAYERS} layers")
            return source_text(data), True
        if isinstance(data, bytes) and (inner := self.container(data)) is not None:
            return self.peel(inner, depth + 1)[0], False
        text = source_text(data)
        self.sizes.append(len(data) if isinstance(data, bytes) else len(data.encode("utf-8", "replace")))
        if len(text) > LARGEST_SOURCE:
            self.faults.append(f"a source of more than {LARGEST_SOURCE:,} characters is not read")
            return text, False
        tree, _ = parsed(data)
        if tree is None:
            return text, False
        inner = squeezed_text(data, self.faults) if isinstance(data, bytes) else None
        if inner is not None:
            self.layers += ["base85", "squeeze"] if b"b85decode" in data else ["squeeze"]
            self.shells.append(tree)
            return self.peel(inner, depth + 1)[0], False
        return self.payloads(data, text, tree, depth)

    def container(self, data):
        """The source inside a ZIP application, a packed file or a shell script; None for plain source."""
        start = data[:4096]
        if start.startswith(b"PK\3\4") or (start.startswith(b"#!") and b"PK\3\4" in start):
            try:
                members = zip_members(data, MOST_A_LAYER, lambda one: one.endswith(".py"))
            except (Oversize, *ARCHIVE_ERRORS) as error:
                bomb = isinstance(error, Oversize) and error.bomb
                (self.bombs if bomb else self.faults).append(f"the ZIP archive {error}")
                return None
            self.layers.append("zip")
            self.sizes.append(len(data))
            main = sorted(members, key=lambda one: (one != "__main__.py", one))
            return b"\n".join(members[one] for one in main)
        first = start.partition(b"\n")[0]
        if first.startswith(b"#!") and b"python" not in first and re.search(rb"(sh|env)\b", first):
            found = max(HERE_DOC.findall(data), key=lambda one: len(one[2]), default=None)
            if found:
                self.layers.append("shell")
                self.sizes.append(len(data))
                return found[2] + b"\n"
        return None

    def payloads(self, data, text, tree, depth):
        """The source with the texts that it unpacks in place of, or below, its own."""
        walk = Walk(data if isinstance(data, bytes) else text.encode("utf-8", "replace"), tree, self.name, self.read)
        found = walk.payloads()
        self.faults += walk.faults + walk.evaluator.decoding.faults
        self.bombs += walk.evaluator.decoding.bombs
        self.broken += walk.broken()
        self.asked += walk.evaluator.asked
        if not found:
            return text, False
        self.shells.append(tree)
        inner = []
        for one in found:
            self.layers += one.layers or (("exec",) if depth == 0 or len(found) == 1 else ())
            inner.append((self.peel(one.value, depth + 1), one.executed))
        executed = any(by_exec or deeper for (_, deeper), by_exec in inner)
        texts = [one for (one, _), _ in inner]
        if sum(1 for _ in ast.walk(tree)) > SMALL_SHELL:
            texts.insert(0, text)
        return "\n".join(texts), executed


class Walk:
    """One pass over a source's statements in their order: constants are bound, texts that get executed are collected."""

    def __init__(self, own, tree, name, read):
        self.tree, self.faults, self.sinks = tree, [], {}
        self.evaluator = Evaluator(own, name, read)
        self.evaluator.names["__doc__"] = ast.get_docstring(tree, clean=False)

    def payloads(self):
        """[Payload]: what `exec` gets, and programs that decoders gave and no other decoder took."""
        self.statements(self.tree.body)
        for function in [node for node in ast.walk(self.tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]:
            kept = dict(self.evaluator.names)
            for one in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs):
                self.evaluator.names.pop(one.arg, None)
            self.statements(function.body)
            self.evaluator.names = kept
        decoding = self.evaluator.decoding
        found = {value: Payload(value, decoding.layers.get(value, ()), by) for value, by in self.sinks.items() if value}
        for value, layers in decoding.layers.items():
            if value not in found and value not in decoding.used and is_program(value):
                found[value] = Payload(value, layers, False)
        if len(found) > MOST_PAYLOADS:
            self.faults.append(f"only the first {MOST_PAYLOADS} of {len(found)} unpacked texts are looked at")
        return list(found.values())[:MOST_PAYLOADS]

    def statements(self, body):
        """Walks statements; all branches are taken, the last one wins."""
        for one in body:
            if self.evaluator.steps > MOST_STEPS:
                if TOO_LONG not in self.faults:
                    self.faults.append(TOO_LONG)
                return
            self.evaluator.known_parts.clear()
            if isinstance(one, (ast.Import, ast.ImportFrom)):
                self.evaluator.imported(one)
            elif isinstance(one, ast.FunctionDef):
                self.evaluator.names[one.name] = self.evaluator.of_Lambda(one)
            elif isinstance(one, (ast.Assign, ast.AnnAssign)):
                targets = one.targets if isinstance(one, ast.Assign) else [one.target]
                self.assign(targets, self.explore(one.value) if one.value else None)
            elif isinstance(one, ast.AugAssign):
                self.assign([one.target], self.explore(ast.copy_location(joined(one), one)))
            elif isinstance(one, ast.With):
                for item in one.items:
                    self.assign([item.optional_vars] if item.optional_vars else [], self.explore(item.context_expr))
                self.statements(one.body)
            elif isinstance(one, ast.For):
                self.loop(one)
            elif isinstance(one, BLOCKS):
                for _, part in ast.iter_fields(one):
                    if isinstance(part, ast.expr):
                        self.explore(part)
                    elif isinstance(part, list) and part and isinstance(part[0], ast.stmt):
                        self.statements(part)
                    elif isinstance(part, list) and part and isinstance(part[0], ast.ExceptHandler):
                        for handler in part:
                            self.statements(handler.body)
            else:
                for part in ast.iter_child_nodes(one):
                    if isinstance(part, ast.expr):
                        self.explore(part)

    def loop(self, one):
        """A loop over few constants is walked through; of any other, once, with names that are not known."""
        items = self.explore(one.iter)
        if not isinstance(items, (list, tuple, range)) or len(items) > 64:
            items = [None]
        for item in items:
            self.assign([one.target], item)
            self.statements(one.body)
        self.statements(one.orelse)

    def assign(self, targets, value):
        """Binds targets to a value, or takes their names out of what is known where there is none."""
        for target in targets:
            try:
                if value is None:
                    raise Unknown
                self.evaluator.bind(target, value)
            except Unknown:
                for name in ast.walk(target):
                    if isinstance(name, ast.Name):
                        self.evaluator.names.pop(name.id, None)

    def explore(self, node):
        """The value of an expression or None; whatever is executed in it is remembered."""
        found = None
        with contextlib.suppress(Unknown):
            found = self.evaluator.value(node)
        # What decoders give inside of what is not known counts as well.
        for part in ast.walk(node):
            if isinstance(part, ast.Call):
                self.sink(part)
                with contextlib.suppress(Unknown):
                    self.evaluator.value(part)
        return found

    def sink(self, node):
        """Remembers what a call executes, where it is one of those that do."""
        with contextlib.suppress(Unknown):
            called = self.evaluator.value(node.func)
            name = called.removeprefix("builtins.") if isinstance(called, Dotted) else ""
            if name in BYTECODE and (name.startswith("marshal") or not self.reads_a_file(node)):
                self.faults.append(f"line {node.lineno}: {name} carries bytecode or objects, which are not read")
            if name in ("exec", "compile") and node.args:
                self.execute(node, name)

    def execute(self, node, name):
        """Remembers the text that `exec` or `compile` gets, and whether it has no file of its own."""
        try:
            value = self.evaluator.value(node.args[0])
        except Unknown:
            value = None
        decoding = self.evaluator.decoding
        if not isinstance(value, (str, bytes)) or isinstance(value, Dotted):
            if name == "exec" and not decoding.faults and not decoding.bombs:
                self.faults.append(f"line {node.lineno}: runs a text that is unpacked by code of its own, which is not run")
        elif name == "exec" or is_program(value):
            self.sinks[value] = self.sinks.get(value, True) and (name == "exec" or not self.has_file(node))

    def has_file(self, node):
        """Whether a call of `compile` names a file that is not the script's own: its text may stand there."""
        try:
            place = str(self.evaluator.value(node.args[1]))
            return place not in (self.evaluator.name, "") and not place.startswith("<")
        except (Unknown, IndexError):
            return True

    def reads_a_file(self, node):
        """Whether a call's argument is a file, not data of the script's own."""
        try:
            return not isinstance(self.evaluator.value(node.args[0]), (str, bytes, Opened))
        except (Unknown, IndexError):
            return True

    def broken(self):
        """Decoders that certainly fail: in statements of the top level that always run, on names that are bound once."""
        found = []
        stored = [one.id for one in ast.walk(self.tree) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)]
        for line, text in self.evaluator.decoding.broken:
            for one in self.tree.body:
                plain = isinstance(one, (ast.Expr, ast.Assign)) and one.lineno <= line <= one.end_lineno
                if plain and all(stored.count(name.id) <= 1 for name in ast.walk(one) if isinstance(name, ast.Name)):
                    found.append(text)
                    break
        return found


def joined(statement):
    """`a += b` as the sum that it is."""
    target = statement.target
    left = ast.copy_location(ast.Name(target.id, ast.Load()), target) if isinstance(target, ast.Name) else target
    return ast.BinOp(left, statement.op, statement.value)


def is_program(value):
    """Whether a text is Python that defines or imports something, or a ZIP archive of it."""
    if len(value) < 12:
        return False
    if isinstance(value, bytes) and value.startswith(b"PK\3\4"):
        return True
    tree, _ = parsed(value)
    kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    return tree is not None and any(isinstance(one, kinds) for one in tree.body)


def source_text(data):
    """A source as text, by the encoding that it states; what is none becomes U+FFFD."""
    if isinstance(data, str):
        return data
    try:
        encoding, _ = tokenize.detect_encoding(BytesIO(data).readline)
    except (SyntaxError, UnicodeError):
        encoding = "utf-8"
    return data.decode(encoding, "replace").replace("\r\n", "\n").replace("\r", "\n")


def parsed(source):
    """(tree, None), or (None, the error) of a source in bytes or text. What is nested too deep is a RecursionError."""
    if len(source) > LARGEST_CODE and code_length(source) > LARGEST_CODE:
        return None, MemoryError(f"more than {LARGEST_CODE:,} characters of code, which are not parsed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(source), None
        except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
            return None, error


def code_length(source):
    """About how many characters of a source are outside of its long texts."""
    text = source if isinstance(source, str) else source.decode("latin-1")
    texts = re.finditer(r""""{3}[^"]{9999,}"{3}|'{3}[^']{9999,}'{3}|"[^"\n]{9999,}"|'[^'\n]{9999,}'""", text)
    return len(text) - sum(one.end() - one.start() for one in texts)


def squeezed_text(data, faults):
    """The text of a program in this project's own wrapper, by the project's own decoder; None where it is none of those."""
    if b"linecache" not in data or b"65536" not in data:
        return None
    shape, literal, size = wrapper_shape(data)
    form = "base85" if isinstance(literal, str) and b"b85decode" in data else "latin-1"
    try:
        known = wrapper_shape(wrap("pass\n", form))[0]
        if shape is None or shape != known:
            return None
        packed = base64.b85decode(literal) if form == "base85" else literal.encode("latin-1")
        if size > MOST_SQUEEZED:
            faults.append(f"states {size:,} bytes of text, of which no more than {MOST_SQUEEZED:,} are unpacked")
            return None
        return bytes(unsqueezed(packed, size))
    except (Problem, ValueError, IndexError, StopIteration, RuntimeError) as error:
        faults.append(f"the squeezed text cannot be unpacked: {error}")
        return None


def wrapper_shape(data):
    """(dump of the tree without the packed text and its size, the packed text, its size) of a program whose wrapper passes
    both to one call; (None, None, 0) for others."""
    tree, _ = parsed(data)
    for call in ast.walk(tree) if tree else ():
        if isinstance(call, ast.Call) and len(call.args) == 2 and isinstance(call.args[1], ast.Constant):
            texts = [one for one in ast.walk(call.args[0]) if isinstance(one, ast.Constant) and isinstance(one.value, str)]
            text, size = max(texts, key=lambda one: len(one.value), default=None), call.args[1].value
            if text and type(size) is int and size >= 0:
                literal, text.value, call.args[1].value = text.value, "", 0
                try:
                    return ast.dump(tree), literal, size
                except RecursionError:
                    return None, None, 0
    return None, None, 0
