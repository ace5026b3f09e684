"""Scripts that break no rule, and look as if they did. Their folders say what an honest folder says."""

import base64
import lzma
import zlib

from .base import Case, write_submission
from .toys import COUNTS, SCORED, SOFTMAX, altered, join


def counts_of_pairs(folder):
    write_submission(folder, script=join(COUNTS))


def softmax_by_gradient(folder):
    write_submission(folder, script=join(SOFTMAX))


def sliding_windows(folder):
    """Windows of 256 at a stride of 64: three quarters of each window are context that was scored before."""
    new = """    done = 0
    for start in range(0, len(y), 64):
        stop = min(start + SEQ_LEN, len(y))
        if stop > done:
            p = likelihood(pairs, x[start:stop], y[start:stop])
            nats -= np.log(p[done - start :]).sum()
            done = stop
"""
    old = "    for at in range(0, len(y), SEQ_LEN):\n" + SCORED
    write_submission(folder, script=altered(COUNTS, (old, new)))


ADAPTS = '''

def score(pairs, tokens):
    """Score a chunk, then count it."""
    n = max(1, (len(tokens) - 1) // SEQ_LEN) * SEQ_LEN
    x, y = tokens[:-1][:n], tokens[1:][:n]
    state, nats = pairs.copy(), 0.0
    for at in range(0, n, CHUNK):
        c, t = x[at : at + CHUNK], y[at : at + CHUNK]
        nats -= np.log(likelihood(state, c, t)).sum()
        np.add.at(state, (c, t), 2.0)
    return nats, x, y
'''


def counts_what_it_has_scored(folder):
    write_submission(folder, script=altered(COUNTS, score=ADAPTS))


EPOCHS = '''

def evaluate(m, toks):
    """score-first test-time training: three epochs of gradient steps on a chunk whose loss stands; not on the last"""
    total, x, y, chunk = 0.0, toks[:-1], toks[1:], 4 * cfg.seq
    for a in range(0, len(y), chunk):
        for b in range(a, min(a + chunk, len(y)), cfg.seq):
            lp = m.logp(x[b:b + cfg.seq]); t = y[b:b + cfg.seq]
            total -= float(lp[np.arange(len(t)), t].sum(dtype=np.float64))
        if a + chunk < len(y):
            for epoch in range(3):
                for b in range(a, a + chunk, cfg.seq):
                    m.step(x[b:b + cfg.seq], y[b:b + cfg.seq], 0.5)
    return total, x, y
'''


def three_epochs_over_scored_chunks(folder):
    write_submission(folder, script=altered(SOFTMAX, score=EPOCHS))


TILT = '''

def score(pairs, tokens):
    """A hint from the prefix alone, and p'(v) = p(v) e^(b [v = hint]) / Z with Z = 1 + p(hint) (e^b - 1)."""
    n = max(1, (len(tokens) - 1) // SEQ_LEN) * SEQ_LEN
    x, y = tokens[:-1][:n], tokens[1:][:n]
    p = likelihood(pairs, x, y)
    last, hint = np.full(1 << 14, -1), np.full(n, -1)
    for at in range(1, n):
        key = (int(x[at]) * 36313 ^ int(x[at - 1]) * 27191) & 16383
        hint[at] = last[key]
        last[key] = y[at]
    known, beta = hint >= 0, 1.5
    of_hint = np.where(known, likelihood(pairs, x, np.maximum(hint, 0)), 0)
    gain = np.where(known & (hint == y), beta, 0) - np.log1p(of_hint * (math.exp(beta) - 1))
    return -(np.log(p) + gain).sum(), x, y
'''


def tilt_with_its_sum(folder):
    write_submission(folder, script=altered(COUNTS, score=TILT))


BACKOFF = '''

def score(pairs, tokens):
    """Exact counts of two orders over what is scored, each a distribution, mixed by weights that know only the context."""
    n = max(1, (len(tokens) - 1) // SEQ_LEN) * SEQ_LEN
    x, y = tokens[:-1][:n], tokens[1:][:n]
    times, after, nats = {}, {}, 0.0
    p = likelihood(pairs, x, y)
    for at in range(n):
        mixed, t = p[at], int(y[at])
        for order in (1, 2):
            key = (order, *map(int, x[max(0, at - order + 1) : at + 1]))
            seen = times.get(key, 0)
            mixed = (after.get((key, t), 0) + 30 * mixed) / (seen + 30)
            times[key], after[key, t] = seen + 1, after.get((key, t), 0) + 1
        nats -= math.log(mixed)
    return nats, x, y
'''


def backoff_by_exact_counts(folder):
    """Looks ahead in no way: a count is raised after its probability was taken."""
    write_submission(folder, script=altered(COUNTS, score=BACKOFF))


WHOLE_VOCABULARY = '''

def evaluate(m, toks):
    """a hashed cache with the target in the key, looked up for every candidate and divided by its own sum"""
    total, x, y, size = 0.0, toks[:-1], toks[1:], 1 << 13
    full, every = np.zeros(size, np.float32), np.arange(cfg.vocab)
    for a in range(0, len(y), cfg.seq):
        c, t = x[a:a + cfg.seq], y[a:a + cfg.seq]
        slots = (c[:, None] * 7919 ^ every * 104729) % size
        q = full[slots] + .5
        q /= q.sum(1, keepdims=True)
        rows = np.arange(len(t))
        p = .7 * np.exp(m.logp(c))[rows, t].astype(np.float64) + .3 * q[rows, t]
        total -= float(np.log(p).sum())
        np.add.at(full, slots[rows, t], 1)
    return total, x, y
'''


def hashed_cache_over_the_whole_vocabulary(folder):
    write_submission(folder, script=altered(SOFTMAX, score=WHOLE_VOCABULARY))


def hashed_pairs_of_inputs(folder):
    """The embedding of (previous, current) input tokens by a hash with an exclusive or."""
    shift = "def slot(x):\n    return np.append(x[:1], x[1:] * 36313 ^ x[:-1] * 27191) % cfg.vocab\n\n\nclass Bigram:"
    features = ("self.A[x] @ self.B", "(self.A[x] + 0.2 * self.A[slot(x)]) @ self.B")
    write_submission(folder, script=altered(SOFTMAX, ("class Bigram:", shift), features))


def quantised_by_training_text_after_training(folder):
    """Clipping ranges from training tokens after the last step, before the file is written."""
    old = "        s = np.float32(max(np.abs(w).max(), 1e-8) / 127)\n"
    new = (
        '        calib = stream("train")[:4096]\n        reach = np.abs(m.A[calib]).max() if w is m.A else np.abs(w).max()\n'
    )
    new += "        s = np.float32(max(reach, 1e-8) / 127)\n"
    clip = ("np.rint(w / s).astype(np.int8)", "np.clip(np.rint(w / s), -127, 127).astype(np.int8)")
    write_submission(folder, script=altered(SOFTMAX, (old, new), clip))


def long_sequences_cut_the_tail(folder):
    write_submission(folder, script=altered(COUNTS, ('"EVAL_SEQ_LEN", 256', '"EVAL_SEQ_LEN", 1024')))


def wrapped_in_base85(folder):
    packed = base64.b85encode(lzma.compress(join(COUNTS).encode())).decode()
    write_submission(folder, script=f'import lzma as L,base64 as B\nexec(L.decompress(B.b85decode("{packed}")))\n')


def wrapped_and_run_from_a_temporary_file(folder):
    packed = base64.b64encode(zlib.compress(join(SOFTMAX).encode(), 9)).decode()
    script = f"import base64, os, runpy, tempfile, zlib\nsource = zlib.decompress(base64.b64decode('{packed}'))\n"
    script += "fd, path = tempfile.mkstemp('.py')\nos.write(fd, source)\nos.close(fd)\n"
    script += "try:\n    runpy.run_path(path, run_name='__main__')\nfinally:\n    os.remove(path)\n"
    write_submission(folder, script=script)


def never_the_same_twice(folder):
    """No seed: each run trains other weights."""
    write_submission(folder, script=altered(SOFTMAX, ("np.random.default_rng(cfg.seed)", "np.random.default_rng()")))


def validation_loss_while_training(folder):
    """Every ten steps the validation loss is printed, and nothing comes of it."""
    old = "        if k % 10 == 0:\n"
    new = """            nats, before, after = evaluate(m, stream("val"))
            v, b = nats / len(after), nats / math.log(2) / n_bytes(before, after)
            print(f"step:{k}/{cfg.steps} val_loss:{v:.4f} val_bpb:{b:.4f}")
"""
    write_submission(folder, script=altered(SOFTMAX, (old, old + new)))


def scores_in_a_process_of_its_own(folder):
    """The script starts itself again to score: a fresh process that has only the file."""
    old = "    pack(train())\n    pairs = unpack()\n"
    new = '    import subprocess\n    import sys\n    if "--score" not in sys.argv:\n        pack(train())\n'
    new += (
        '        sys.exit(subprocess.call([sys.executable, os.path.abspath(__file__), "--score"]))\n    pairs = unpack()\n'
    )
    write_submission(folder, script=altered(COUNTS, (old, new)))


def sequences_dealt_to_four_processes(folder):
    """Ranks score every fourth sequence, so the order is not the text's; nothing goes from one to another."""
    old = "    for at in range(0, len(y), SEQ_LEN):\n" + SCORED
    new = "    from multiprocessing import get_context\n\n    with get_context('fork').Pool(2) as pool:\n"
    new += "        nats = sum(pool.starmap(part, [(pairs, x, y, rank) for rank in range(4)]))\n"
    more = "\n\ndef part(pairs, x, y, rank):\n    return sum(\n"
    more += "        -np.log(likelihood(pairs, x[at : at + SEQ_LEN], y[at : at + SEQ_LEN])).sum()\n"
    more += "        for at in range(rank * SEQ_LEN, len(y), 4 * SEQ_LEN)\n    )\n\n\ndef main():\n"
    write_submission(folder, script=altered(COUNTS, (old, new), ("\n\ndef main():\n", more)))


def shards_are_hashed_before_training(folder):
    """The log says which text is validation: its digest, taken before the first step."""
    old = "    np.random.seed(SEED)\n"
    new = """    import hashlib

    for path in sorted(glob.glob(os.path.join(DATA_PATH, "*.bin"))):
        with open(path, "rb") as f:
            print(os.path.basename(path), hashlib.sha256(f.read()).hexdigest()[:16])
"""
    write_submission(folder, script=altered(COUNTS, (old, old + new)))


def writes_checkpoints_and_reads_them(folder):
    """Weights in full precision are saved and read while training; the score is the packed file's."""
    new = """    np.save("checkpoint.npy", train())
    pack(np.load("checkpoint.npy"))
    os.remove("checkpoint.npy")
"""
    write_submission(folder, script=altered(COUNTS, ("    pack(train())\n", new)))


def a_poor_model(folder):
    """Scores worse than a guess: counts with hardly any smoothing."""
    write_submission(
        folder, script=altered(COUNTS, ("+ 1000 * alone[y]", "+ 0.5 * alone[y]"), ("sum(1)[x] + 1000", "sum(1)[x] + 0.5"))
    )


def two_scores_of_which_the_last_counts(folder):
    """Before and after packing, both printed with their bits."""
    old = "    save(m)\n"
    new = '    toks = stream("val")\n    report("pre-quantization post-ema", *evaluate(m, toks))\n'
    write_submission(folder, script=altered(SOFTMAX, (old, old + new)))


def asks_for_kernels_and_goes_without(folder):
    """An accelerator's library is used where there is one."""
    new = """try:
    import flash_attn_interface
except ImportError:
    flash_attn_interface = None


class cfg"""
    write_submission(folder, script=altered(SOFTMAX, ("\n\nclass cfg", new)))


DYNAMIC_LEGAL = tuple(
    Case(build, dynamic=True)
    for build in (
        counts_of_pairs,
        softmax_by_gradient,
        sliding_windows,
        counts_what_it_has_scored,
        three_epochs_over_scored_chunks,
        tilt_with_its_sum,
        backoff_by_exact_counts,
        hashed_cache_over_the_whole_vocabulary,
        hashed_pairs_of_inputs,
        quantised_by_training_text_after_training,
        long_sequences_cut_the_tail,
        wrapped_in_base85,
        wrapped_and_run_from_a_temporary_file,
        never_the_same_twice,
        validation_loss_while_training,
        scores_in_a_process_of_its_own,
        sequences_dealt_to_four_processes,
        shards_are_hashed_before_training,
        writes_checkpoints_and_reads_them,
        a_poor_model,
        two_scores_of_which_the_last_counts,
        asks_for_kernels_and_goes_without,
    )
)
