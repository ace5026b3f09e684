"""Kernels that are compiled from their source, in a text that `exec` gets: Triton and torch.jit look it up and find none."""

import ast

from .facts import called_name, goes_on, source_of

# What may give a text that `exec` gets a source that can be looked up, or a file.
SOURCE_GIVERS = (
    "linecache", "tempfile", "runpy", "importlib", "write_text", "write_bytes", "getsource", "getsourcelines", "findsource",
    "getlines", "__loader__", "get_source", "JITFunction", "mkstemp", "NamedTemporaryFile", "_getlines", "patch", "settrace",
)  # fmt: skip
INSPECTED = ("getsource", "getsourcelines", "findsource")
READERS = ("triton.jit", "triton.runtime.jit", "triton.runtime.jit.jit", "torch.jit.script")


def judge_kernels(findings, script):
    """G6: kernels that are compiled from their source, in a text that `exec` gets and that stands in no file (#1523)."""
    if script.tree is None or not script.executed or names_in(script.shells) & set(SOURCE_GIVERS):
        return
    tree, doubts = script.others[0], []
    # A function's place in the text is looked up in the wrapper's file: beyond its end nothing is found.
    longest = max((one.body[-1].end_lineno for one in script.shells if one.body), default=0)
    for node in tree.nodes:
        kernel = source_reader(tree, node)
        if kernel and not tree.is_dead(node):
            reason = f"line {node.lineno} of the unpacked text: {kernel} looks up its function's source; exec() leaves none"
            # What comes after a kernel (the writing of the artifact) gives it no source; what comes before may.
            before = [one for one in script.tree.body if one.lineno < node.lineno]
            if runs_at_import(tree, node) and node.lineno > longest and not names_in(before) & set(SOURCE_GIVERS):
                return findings.say("G6", False, kernel, "a text in a file or in linecache", evidence=reason)
            doubts.append(reason)
    if doubts:
        findings.say("G6", None, "kernels", evidence=f"{doubts[0]}; whether this runs, --dynamic tells")


def names_in(trees):
    """All names that trees load, import or take from something."""
    found = set()
    for one in trees:
        for node in ast.walk(one):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found |= {node.module, *(alias.name for alias in node.names)}
            else:
                name = getattr(node, "attr", getattr(node, "id", None))
                # Who asks inspect for a source gives none; who puts another function in its place may.
                if name not in INSPECTED or isinstance(node.ctx, ast.Store):
                    found.add(name)
    return found


def source_reader(tree, node):
    """What looks up the source of a function of the text: a decorator's name, or a call of inspect; None for others."""
    if isinstance(node, ast.FunctionDef):
        for one in node.decorator_list:
            full = tree.full_name(source_of(one.func if isinstance(one, ast.Call) else one))
            if full in READERS:
                return full
    if isinstance(node, ast.Call) and called_name(node) in ("inspect.getsource", "inspect.getsourcelines", "getsource"):
        own = {one.name for one in tree.tree.body if isinstance(one, (ast.FunctionDef, ast.ClassDef))}
        if node.args and isinstance(node.args[0], ast.Name) and node.args[0].id in own:
            return "inspect.getsource"
    return None


def runs_at_import(tree, node):
    """Whether a definition or call is reached whenever the text runs, and nothing catches what it raises."""
    below = node
    for one in tree.above(node):
        if isinstance(one, ast.Try) and below in one.body:
            errors = [source_of(handler.type) if handler.type else "" for handler in one.handlers if goes_on(handler)]
            if any(text not in ("ImportError", "ModuleNotFoundError") for text in errors):
                return False
        elif isinstance(one, ast.stmt) and not isinstance(one, (ast.Expr, ast.Assign, ast.With)):
            return False
        below = one
    return True
