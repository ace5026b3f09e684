"""Scripts that follow the contest's conventions and run in a second without torch: numpy, and sentencepiece for bytes.

Two honest ones, of different make: COUNTS (a table of pairs, functions) and SOFTMAX (a trained matrix, a class). Each is a
dictionary of parts; a case replaces a part or a line of it.
"""

READ = '''"""Counts pairs of tokens, packs the table, scores it."""
import glob
import math
import os
import struct
import time
import zlib

import numpy as np
import sentencepiece as spm

DATA_PATH = os.environ.get("DATA_PATH", "./data/datasets/fineweb10B_sp1024")
TOKENIZER_PATH = os.environ.get("TOKENIZER_PATH", "./data/tokenizers/fineweb_1024_bpe.model")
VOCAB_SIZE = int(os.environ.get("VOCAB_SIZE", 1024))
SEED = int(os.environ.get("SEED", 1337))
ITERATIONS = int(os.environ.get("ITERATIONS", 40))
SEQ_LEN = int(os.environ.get("EVAL_SEQ_LEN", 256))
CHUNK = 1024
ARTIFACT = "final_model.int8.ptz"
V = VOCAB_SIZE


def load_shard(path):
    with open(path, "rb") as f:
        head = struct.unpack("<256i", f.read(1024))
        assert head[0] == 20240520 and head[1] == 1, path
        return np.frombuffer(f.read(2 * head[2]), "<u2").astype(np.int64)


def load_tokens(split):
    paths = sorted(glob.glob(os.path.join(DATA_PATH, "fineweb_" + split + "_*.bin")))
    if not paths:
        raise FileNotFoundError("no " + split + " shards in " + DATA_PATH)
    return np.concatenate([load_shard(path) for path in paths])


def byte_luts():
    sp = spm.SentencePieceProcessor(model_file=TOKENIZER_PATH)
    base, lead, edge = np.zeros(V, np.int64), np.zeros(V, bool), np.ones(V, bool)
    for i in range(min(V, sp.vocab_size())):
        if sp.is_control(i) or sp.is_unknown(i) or sp.is_unused(i):
            continue
        edge[i] = False
        piece = sp.id_to_piece(i)
        lead[i] = piece.startswith("\\u2581")
        base[i] = 1 if sp.is_byte(i) else len(piece.removeprefix("\\u2581").encode("utf-8"))
    return base, lead, edge


def count_bytes(x, y):
    base, lead, edge = byte_luts()
    return int((base[y] + (lead[y] & ~edge[x])).sum())


def say(name, nats, x, y):
    loss = nats / len(y)
    bpb = loss / math.log(2) * len(y) / count_bytes(x, y)
    print(f"{name} val_loss:{loss:.8f} val_bpb:{bpb:.8f}", flush=True)
'''

COUNTS = {
    "read": READ,
    "train": '''

def train():
    """Counts of pairs over the training shards: uint8 [V, V]."""
    tokens = load_tokens("train")[:400_000]
    pairs = np.bincount(tokens[:-1] * V + tokens[1:], minlength=V * V)
    print(f"step:{ITERATIONS}/{ITERATIONS} train_time:{1000 * (time.perf_counter() - START):.0f}ms", flush=True)
    return np.minimum(pairs, 255).astype(np.uint8).reshape(V, V)
''',
    "pack": """

def pack(pairs):
    blob = zlib.compress(pairs.tobytes(), 6)
    with open(ARTIFACT, "wb") as f:
        f.write(blob)
    print(f"Serialized model int8+zlib: {len(blob)} bytes")
    print(f"Code size: {os.path.getsize(__file__)} bytes")


def unpack():
    with open(ARTIFACT, "rb") as f:
        return np.frombuffer(zlib.decompress(f.read()), np.uint8).reshape(V, V).astype(np.float64)
""",
    "model": '''

def likelihood(pairs, x, y):
    """Probabilities of the targets [n]: counts of the pair, backed off to the token alone; each row of V sums to one."""
    alone = (pairs.sum(0) + 1) / (pairs.sum() + V)
    return (pairs[x, y] + 1000 * alone[y]) / (pairs.sum(1)[x] + 1000)
''',
    "score": '''

def score(pairs, tokens):
    """Summed nats of all targets of whole sequences, and those targets with what stands before them."""
    n = max(1, (len(tokens) - 1) // SEQ_LEN) * SEQ_LEN
    x, y = tokens[:-1][:n], tokens[1:][:n]
    nats = 0.0
    for at in range(0, len(y), SEQ_LEN):
        nats -= np.log(likelihood(pairs, x[at : at + SEQ_LEN], y[at : at + SEQ_LEN])).sum()
    return nats, x, y
''',
    "main": """

def main():
    np.random.seed(SEED)
    pack(train())
    pairs = unpack()
    val = load_tokens("val")
    print(f"val_loader:shards pattern={DATA_PATH}/fineweb_val_*.bin tokens:{len(val) - 1}")
    nats, x, y = score(pairs, val)
    say("final_int8_zlib_roundtrip_exact", nats, x, y)


START = time.perf_counter()
if __name__ == "__main__":
    main()
""",
}

SOFTMAX = {
    "head": """#!/usr/bin/env python
# Bigram matrix of low rank with a softmax, trained by plain gradient steps; weights leave as one byte each.
from __future__ import annotations
import glob, json, math, os, sys, time, zlib
from pathlib import Path
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # small matrices
import numpy as np


class cfg:
    data = Path(os.getenv("DATA_PATH", "data/datasets/fineweb10B_sp1024"))
    tok = os.getenv("TOKENIZER_PATH", "data/tokenizers/fineweb_1024_bpe.model")
    vocab = int(os.getenv("VOCAB_SIZE", "1024"))
    seed = int(os.getenv("SEED", "42"))
    steps = min(60, int(os.getenv("ITERATIONS", "30")))
    dim = int(os.getenv("MODEL_DIM", "16"))
    lr = float(os.getenv("MATRIX_LR", "2.0"))
    seq = int(os.getenv("TRAIN_SEQ_LEN", "512"))
    out = "model.int8.ptz"
""",
    "data": """

def shard(p):
    h = np.fromfile(p, dtype=np.int32, count=256)
    if h[0] != 20240520: raise SystemExit(f"bad magic in {p}")
    return np.fromfile(p, dtype=np.uint16, count=h[2], offset=256 * 4)

def stream(kind):
    return np.concatenate([shard(p) for p in sorted(cfg.data.glob(f"fineweb_{kind}_*.bin"))]).astype(np.int64)

def n_bytes(x, y):
    from sentencepiece import SentencePieceProcessor
    sp = SentencePieceProcessor(); sp.Load(cfg.tok)
    special = np.array([sp.is_control(i) or sp.is_unknown(i) or sp.is_unused(i) for i in range(cfg.vocab)])
    pieces = [sp.id_to_piece(i) for i in range(cfg.vocab)]
    space = np.array([p[0] == "\\u2581" for p in pieces])
    width = np.array([1 if sp.is_byte(i) else len(p[int(space[i]):].encode()) for i, p in enumerate(pieces)])
    width[special] = 0
    return int(width[y].sum() + (space[y] & ~special[x]).sum())
""",
    "model": """

class Bigram:
    def __init__(self, rng):
        self.A = rng.normal(0, .3, (cfg.vocab, cfg.dim)).astype(np.float32)
        self.B = np.zeros((cfg.dim, cfg.vocab), np.float32)
        self.c = np.zeros(cfg.vocab, np.float32)

    def logp(self, x, extra=0.0):
        z = self.A[x] @ self.B + self.c + extra
        z -= z.max(1, keepdims=True)
        return z - np.log(np.exp(z).sum(1, keepdims=True))

    def step(self, x, y, lr):
        lp = self.logp(x)
        g = np.exp(lp); g[np.arange(len(y)), y] -= 1; g /= len(y)
        dB, dA = self.A[x].T @ g, g @ self.B.T
        self.B -= lr * dB; self.c -= lr * g.sum(0); np.subtract.at(self.A, x, lr * dA)
        return -lp[np.arange(len(y)), y].mean()

    def state(self):
        return [self.A, self.B, self.c]
""",
    "train": """

def fit(m, tokens, rng):
    t0 = time.time()
    for k in range(cfg.steps):
        at = rng.integers(0, max(1, len(tokens) - cfg.seq - 1))
        loss = m.step(tokens[at:at + cfg.seq], tokens[at + 1:at + cfg.seq + 1], cfg.lr)
        if k % 10 == 0:
            print(f"step:{k}/{cfg.steps} train_loss:{loss:.4f} train_time:{1e3 * (time.time() - t0):.0f}ms")
""",
    "pack": """

def save(m):
    raw = b""
    for w in m.state():
        s = np.float32(max(np.abs(w).max(), 1e-8) / 127)
        raw += s.tobytes() + np.rint(w / s).astype(np.int8).tobytes()
    Path(cfg.out).write_bytes(zlib.compress(raw, 9))

def load(m):
    raw = zlib.decompress(Path(cfg.out).read_bytes()); at = 0
    for w in m.state():
        s = np.frombuffer(raw, np.float32, 1, at); at += 4
        w[...] = s * np.frombuffer(raw, np.int8, w.size, at).reshape(w.shape); at += w.size
    return m
""",
    "score": '''

def evaluate(m, toks):
    """nats over every target, in windows"""
    total, x, y = 0.0, toks[:-1], toks[1:]
    for a in range(0, len(y), cfg.seq):
        lp = m.logp(x[a:a + cfg.seq]); t = y[a:a + cfg.seq]
        total -= float(lp[np.arange(len(t)), t].sum(dtype=np.float64))
    return total, x, y
''',
    "main": """

def report(tag, total, x, y):
    loss, bpb, ms = total / len(y), total / math.log(2) / n_bytes(x, y), 1e3 * time.process_time()
    print(f"{tag} val_loss:{loss:.8f} val_bpb:{bpb:.8f} eval_time:{ms:.0f}ms")

if __name__ == "__main__":
    rng = np.random.default_rng(cfg.seed)
    m = Bigram(rng)
    fit(m, stream("train"), rng)
    save(m)
    fresh = load(Bigram(rng))
    toks = stream("val")
    print(f"val_tokens: {len(toks) - 1}")
    report("quantized_sliding_window", *evaluate(fresh, toks))
""",
}


# The line of COUNTS that scores a sequence.
SCORED = "        nats -= np.log(likelihood(pairs, x[at : at + SEQ_LEN], y[at : at + SEQ_LEN])).sum()\n"


def join(parts):
    return "".join(parts.values())


def altered(parts, *changes, **replaced):
    """The script with parts replaced and then each (old, new) change made, exactly where it must be."""
    assert replaced.keys() <= parts.keys(), f"no parts {replaced.keys() - parts.keys()}"
    text = join({**parts, **replaced})
    for old, new in changes:
        assert old in text, f"the script has no {old!r}: the case changes nothing"
        text = text.replace(old, new)
    return text
