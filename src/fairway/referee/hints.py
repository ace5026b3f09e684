"""What a reader of a script should look at: dependencies, paths of data, networks, constants. No verdicts: patterns failed
in public in both directions."""

import ast
import re
import sys

from .facts import assigned, is_code_call, source_of

HINT = "a hint for the reader; --dynamic measures"
MOST_REQUIREMENTS = 1 << 20
ALWAYS_THERE = ("torch", "numpy", "sentencepiece", "triton")  # what every place where such scripts run has
NETWORK = (
    "requests", "urllib.request", "urllib3", "httpx", "aiohttp", "http.client", "ftplib", "socket", "boto3", "paramiko",
    "huggingface_hub", "datasets", "wandb", "gdown", "smtplib", "websocket", "websockets",
)  # fmt: skip
FETCHERS = r"\b(?:curl|wget|git clone|pip3? install|apt(?:-get)? install|hf download|gsutil|aws s3)\b"
INSTALLS = r"git\+\S+|--find-links\s*\S*|--extra-index-url\s*\S*|https?://\S+\.whl"
ELSEWHERE = r"-f\b|--find-links|--index-url|-i\b|--extra-index-url|-e\b|--editable|\.|/|git\+|https?:"


def judge_dependencies(findings, folder, script):
    """A7: packages beyond the standard library, and those without a fallback; installs from elsewhere."""
    wanted = {}
    for module, guarded in script.imports.items():
        top = module.split(".")[0]
        if top not in sys.stdlib_module_names:
            wanted[top] = wanted.get(top, True) and guarded
    versions, elsewhere = requirements(folder)
    for tree in script.others:
        for node in tree.nodes:
            if isinstance(node, ast.Call) and is_code_call(tree, node) and not tree.is_dead(node):
                elsewhere += re.findall(INSTALLS, " ".join(sorted(tree.texts(node, 1))))
    bare = sorted(name for name, guarded in wanted.items() if not guarded and name not in ALWAYS_THERE)
    measured = {name: versions.get(name.lower().replace("_", "-"), "") for name in sorted(wanted)}
    parts = [f"without fallback: {', '.join(bare)}"] if bare else []
    parts += [f"not from the package index: {', '.join(elsewhere[:5])}"] if elsewhere else []
    if script.tree is not None:
        findings.say("A7", not parts, measured, evidence="; ".join(parts) or "all others have a fallback, or are everywhere")


def requirements(folder):
    """({package: version text}, [lines that install from elsewhere]) of requirements.txt."""
    versions, elsewhere = {}, []
    text = folder.text("requirements.txt", MOST_REQUIREMENTS) if folder.has("requirements.txt") else ""
    for line in text.splitlines():
        line = line.partition(" #")[0].strip()
        if re.match(ELSEWHERE, line) or "@" in line:
            elsewhere.append(line)
        elif found := re.match(r"([\w.-]+)(?:\[[^\]]*\])?\s*(.*)", line):
            versions[found[1].lower().replace("_", "-")] = found[2]
    return versions, elsewhere


def give_hints(findings, script):
    """D1, D2, D3, M7: lines that somebody should read. Never a verdict."""
    if script.tree is None:
        return
    tree = script.others[0]
    places = {"val": set(), "train": set()}
    for node in tree.nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 200:
            for word, lines in places.items():
                if re.search(rf"(?i){word}.*\.bin|(?:^|_){word}_", node.value):
                    lines.add(node.lineno)
    for rule, word in (("D1", "val"), ("D2", "train")):
        if places[word]:
            lines = ", ".join(map(str, sorted(places[word])[:10]))
            findings.say(rule, None, f"{word} files named in lines {lines}", evidence=HINT)
    network = sorted(one for one in script.imports if one in NETWORK or one.split(".")[0] in NETWORK)
    started = [one for one in tree.nodes if isinstance(one, ast.Call) and is_code_call(tree, one)]
    network += sorted({word for one in started for text in tree.texts(one, 1) for word in re.findall(FETCHERS, text)})
    if network:
        findings.say("D3", None, network, evidence=f"modules and commands that can reach a network: {HINT}")
    for line, figure in constant_bytes(tree)[:3]:
        findings.say("M7", None, figure, evidence=f"line {line}: bits per byte by a constant: {HINT}")


def constant_bytes(tree):
    """[(line, number)] of values called bpb that are made with a number in place of a count of bytes."""
    found = []
    for node in tree.nodes:
        if not isinstance(node, (ast.Assign, ast.AnnAssign)) or node.value is None:
            continue
        names = " ".join(map(source_of, assigned(node))).lower()
        if "bpb" not in names and "bits_per_byte" not in names:
            continue
        for one in ast.walk(node.value):
            if isinstance(one, ast.BinOp) and isinstance(one.op, (ast.Div, ast.Mult)):
                numbers = [number_of(tree, part) for part in (one.left, one.right)]
                # ln 2 and its like are smaller; 8 bits are a byte.
                found += [(node.lineno, x) for x in numbers if x is not None and 1.5 < abs(x) < 20 and x not in (2, 8, 10)]
    return found


def number_of(tree, node):
    """A literal number, or that of a name that is bound to one and nothing else; None for others."""
    if isinstance(node, ast.Name) and len(tree.bound.get(node.id, ())) == 1:
        node = tree.bound[node.id][0]
    return float(node.value) if isinstance(node, ast.Constant) and type(node.value) in (int, float) else None
