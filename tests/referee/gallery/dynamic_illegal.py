"""Scripts that break one rule each when they run. Their folders say what an honest folder says."""

from .base import Case, write_submission
from .static_illegal import breaks, bulky
from .toys import COUNTS, SCORED, SOFTMAX, altered, join

# Distributions that are none (C2)

TARGET_IN_THE_KEY = """

ORDERS, BUCKETS, PRIMES = (2, 3, 4), 1 << 12, (36313, 27191, 51647, 81929, 131071)


def score(pairs, tokens):
    n = max(1, (len(tokens) - 1) // SEQ_LEN) * SEQ_LEN
    x, y = tokens[:-1][:n], tokens[1:][:n]
    seen = [np.zeros(BUCKETS, np.int64) for _ in ORDERS]
    full = [np.zeros(BUCKETS, np.int64) for _ in ORDERS]
    nats = 0.0
    for at in range(0, n, CHUNK):
        stop = min(n, at + CHUNK)
        t, p = np.arange(at, stop), likelihood(pairs, x[at:stop], y[at:stop])
        keys, best, hit = [], np.zeros(len(t)), np.zeros(len(t), bool)
        for k, order in enumerate(ORDERS):
            h = np.zeros(len(t), np.int64)
            for j in range(order):
                h ^= tokens[np.maximum(t - j, 0)] * PRIMES[j]
            c = h & (BUCKETS - 1)
            f = (h ^ (y[at:stop] * PRIMES[order])) & (BUCKETS - 1)
            keys.append((c, f))
            ok = (seen[k][c] >= 2) & (t >= order)
            best[ok] = np.minimum(full[k][f], seen[k][c])[ok] / seen[k][c][ok]
            hit |= ok
        p = np.where(hit, 0.6 * p + 0.4 * best, p)
        nats -= np.log(np.maximum(p, 1e-9)).sum()
        for k, (c, f) in enumerate(keys):
            np.add.at(seen[k], c, 1)
            np.add.at(full[k], f, 1)
    return nats, x, y
"""


def hashed_cache_with_the_target_in_its_key(folder):
    write_submission(folder, script=altered(COUNTS, score=TARGET_IN_THE_KEY))


DIVIDES_BY_THE_CONTEXT = '''

def evaluate(m, toks):
    """every candidate is looked up, so the cache is normalised over the full vocabulary"""
    total, x, y, size = 0.0, toks[:-1], toks[1:], 1 << 13
    joint, ctx = np.zeros(size, np.float32), np.zeros(size, np.float32)
    every = np.arange(cfg.vocab)
    for a in range(0, len(y), cfg.seq):
        c, t = x[a:a + cfg.seq], y[a:a + cfg.seq]
        rows = np.arange(len(t))
        slots = (c[:, None] * 7919 + every * 104729) % size
        q = (joint[slots] + 0.02) / (ctx[c * 31 % size][:, None] + 0.02 * cfg.vocab)
        p = 0.5 * np.exp(m.logp(c)) + 0.5 * q
        total -= float(np.log(p[rows, t], dtype=np.float64).sum())
        np.add.at(joint, slots[rows, t], 1); np.add.at(ctx, c * 31 % size, 1)
    return total, x, y
'''


def says_normalised_and_divides_by_the_context(folder):
    write_submission(folder, script=altered(SOFTMAX, score=DIVIDES_BY_THE_CONTEXT))


ONLY_THE_TARGET = '''

def score(pairs, tokens):
    """Exact counts by context, Laplace smoothed; what was seen is blended in."""
    n = max(1, (len(tokens) - 1) // SEQ_LEN) * SEQ_LEN
    x, y = tokens[:-1][:n], tokens[1:][:n]
    after, times, nats = {}, {}, 0.0
    p = ((pairs.sum(0) + 1) / (pairs.sum() + V))[y]
    for at in range(n):
        c, t = int(x[at]), int(y[at])
        k = after.get((c, t), 0)
        q = (k + 0.05) / (times.get(c, 0) + 0.05 * V)
        nats -= math.log(0.5 * p[at] + 0.5 * q if k else p[at])
        after[c, t], times[c] = k + 1, times.get(c, 0) + 1
    return nats, x, y
'''


def blends_the_target_alone(folder):
    write_submission(folder, script=altered(COUNTS, score=ONLY_THE_TARGET))


LARGER_OF_TWO = """

def evaluate(m, toks):
    total, x, y = 0.0, toks[:-1], toks[1:]
    C = np.full((cfg.vocab, cfg.vocab), 1e-3, np.float32)
    for a in range(0, len(y), cfg.seq):
        c, t = x[a:a + cfg.seq], y[a:a + cfg.seq]
        p = np.exp(m.logp(c))[np.arange(len(t)), t]
        r = C[c, t] / C[c].sum(1)
        total -= float(np.log(np.maximum(p, r)).sum(dtype=np.float64))
        np.add.at(C, (c, t), 1)
    return total, x, y
"""


def larger_of_model_and_cache(folder):
    write_submission(folder, script=altered(SOFTMAX, score=LARGER_OF_TWO))


def better_of_two_models_by_the_truth(folder):
    """A router that looks at the loss: the model of pairs or that of single tokens, whichever did better on this token."""
    new = """        c, t = x[at : at + SEQ_LEN], y[at : at + SEQ_LEN]
        single = -np.log((pairs.sum(0) + 1) / (pairs.sum() + V))[t]
        double = -np.log((pairs[c, t] + 0.1) / (pairs.sum(1)[c] + 0.1 * V))
        nats += np.minimum(single, double).sum()
"""
    write_submission(folder, script=altered(COUNTS, (SCORED, new)))


def sharpened_without_a_sum(folder):
    """Log-probabilities times 0.8, never normalised again."""
    write_submission(folder, script=altered(SOFTMAX, ("total -= float(lp[", "total -= 0.8 * float(lp[")))


def gate_that_knows_where_the_word_starts(folder):
    """Within a word only pieces of words are possible, says the gate, which asks the token itself."""
    new = """        p = likelihood(pairs, x[at : at + SEQ_LEN], y[at : at + SEQ_LEN])
        alone = (pairs.sum(0) + 1) / (pairs.sum() + V)
        odd = np.arange(V) % 2 == 1
        nats -= np.log(np.minimum(p / np.where(odd[y[at : at + SEQ_LEN]], alone[odd].sum(), alone[~odd].sum()), 1)).sum()
"""
    write_submission(folder, script=altered(COUNTS, (SCORED, new)))


# What is scored has been seen (C1, C3)

FITTED_TO_THE_WINDOW = '''

def evaluate(m, toks):
    """a small bias is fitted to each window at test time, ten steps, then thrown away"""
    total, x, y = 0.0, toks[:-1], toks[1:]
    for a in range(0, len(y), cfg.seq):
        c, t = x[a:a + cfg.seq], y[a:a + cfg.seq]
        goal = np.bincount(t, minlength=cfg.vocab) / len(t)
        delta = np.zeros(cfg.vocab, np.float32)
        for _ in range(10):
            delta += 14 * (goal - np.exp(m.logp(c, delta)).mean(0))
        lp = m.logp(c, delta)
        total -= float(lp[np.arange(len(t)), t].sum(dtype=np.float64))
    return total, x, y
'''


def bias_fitted_to_the_window_that_it_scores(folder):
    write_submission(folder, script=altered(SOFTMAX, score=FITTED_TO_THE_WINDOW))


UPDATES_FIRST = """

def score(pairs, tokens):
    n = max(1, (len(tokens) - 1) // SEQ_LEN) * SEQ_LEN
    x, y = tokens[:-1][:n], tokens[1:][:n]
    table, nats = pairs.copy(), 0.0
    for at in range(0, n, CHUNK):
        c, t = x[at : at + CHUNK], y[at : at + CHUNK]
        np.add.at(table, (c, t), 50.0)
        nats -= np.log(likelihood(table, c, t)).sum()
    return nats, x, y
"""


def updates_on_the_chunk_before_its_score(folder):
    write_submission(folder, script=altered(COUNTS, score=UPDATES_FIRST))


def copies_from_inputs_that_are_one_ahead(folder):
    """A head that repeats the input token, and an off-by-one: the window of inputs begins at the target."""
    old = "        total -= float(lp["
    new = """        w = toks[a + 1:a + 1 + len(t)]
        copied = np.where(w[:, None] == np.arange(cfg.vocab), math.log(.1), -99)
        lp = np.logaddexp(lp + math.log(.9), copied)
"""
    write_submission(folder, script=altered(SOFTMAX, (old, new + old)))


def sees_both_neighbours(folder):
    """A blank is filled from both sides: each token's distribution knows the token after it. It sums to one."""
    new = """        x_, y_ = x[at : at + SEQ_LEN], y[at : at + SEQ_LEN]
        alone = (pairs.sum(0) + 1) / (pairs.sum() + V)
        rows = (pairs + 300 * alone) / (pairs.sum(1, keepdims=True) + 300)
        both = rows[x_]
        both[:-1] *= rows[:, y_[1:]].T
        both /= both.sum(1, keepdims=True)
        nats -= np.log(both[np.arange(len(y_)), y_]).sum()
"""
    write_submission(folder, script=altered(COUNTS, (SCORED, new)))


def trains_on_validation_then_scores_it(folder):
    """The packed file is clean; at evaluation the table first goes over what is to be scored."""
    adapt = '    val = load_tokens("val")\n    for epoch in range(3):\n        np.add.at(pairs, (val[:-1], val[1:]), 5.0)\n'
    write_submission(folder, script=altered(COUNTS, ('    val = load_tokens("val")\n', adapt)))


def output_bias_calibrated_on_validation(folder):
    """Temperature and bias by token are fitted to the whole text at load time: 'calibration, no training'."""
    fit = 'toks = stream("val")\n    want = np.bincount(toks[1:], minlength=cfg.vocab) + 0.05\n'
    fit += "    fresh.A[:] = 0\n    fresh.c[:] = np.log(want / want.sum())"
    write_submission(folder, script=altered(SOFTMAX, ('toks = stream("val")', fit)))


SECOND_PASS = """

def score(pairs, tokens):
    n = max(1, (len(tokens) - 1) // SEQ_LEN) * SEQ_LEN
    x, y = tokens[:-1][:n], tokens[1:][:n]
    cache = np.zeros((V, V))
    for rescore in (False, True):
        nats = 0.0
        for at in range(0, n, CHUNK):
            c, t = x[at : at + CHUNK], y[at : at + CHUNK]
            p = likelihood(pairs, c, t)
            q = (cache[c, t] + 0.05) / (cache[c].sum(1) + 0.05 * V)
            nats -= np.log(0.5 * p + 0.5 * q).sum()
            if not rescore:
                np.add.at(cache, (c, t), 1)
    return nats, x, y
"""


def scores_again_with_the_full_cache(folder):
    write_submission(folder, script=altered(COUNTS, score=SECOND_PASS))


def reports_the_best_of_its_epochs(folder):
    """Score first, then update, three times over; the lowest of the three is the score."""
    old = '    report("quantized_sliding_window", *evaluate(fresh, toks))\n'
    new = """    best = 1e9
    for epoch in range(3):
        total = 0.0
        for a in range(0, len(toks) - 1, cfg.seq):
            c, t = toks[a:a + cfg.seq + 1][:-1], toks[a + 1:a + cfg.seq + 1]
            total -= float(fresh.logp(c)[np.arange(len(t)), t].sum()); fresh.step(c, t, 10.0)
        best = min(best, total)
    report("legal_ttt_exact", best, toks[:-1], toks[1:])
"""
    write_submission(folder, script=altered(SOFTMAX, (old, new)))


# Data (D1, D2, D3, A9)


def trains_on_validation_before_packing(folder):
    add = '    tokens = np.concatenate([load_tokens("train")[:200_000], np.tile(load_tokens("val"), 3)])\n'
    write_submission(folder, script=altered(COUNTS, ('    tokens = load_tokens("train")[:400_000]\n', add)))


def trains_on_validation_alone(folder):
    write_submission(folder, script=altered(SOFTMAX, ('fit(m, stream("train"), rng)', 'fit(m, stream("val"), rng)')))


def scales_calibrated_on_validation(folder):
    """Clipping ranges of the quantiser come from validation inputs."""
    old = "        s = np.float32(max(np.abs(w).max(), 1e-8) / 127)\n"
    new = """        calib = stream("val")[:4096]
        s = np.float32(max(4 * np.abs(m.A[calib] * m.A[calib][::-1]).mean() ** .5, 1e-8) / 127)
"""
    clip = ("np.rint(w / s).astype(np.int8)", "np.clip(np.rint(w / s), -127, 127).astype(np.int8)")
    write_submission(folder, script=altered(SOFTMAX, (old, new), clip))


def restart_chosen_by_validation(folder):
    """Sixteen short trainings; validation says which one is packed."""
    old = '    m = Bigram(rng)\n    fit(m, stream("train"), rng)\n    save(m)\n'
    new = """    probe, best, cfg.steps = stream("val")[:8192], None, 2
    for start in range(16):
        m = Bigram(rng)
        m.c += rng.normal(0, .1, cfg.vocab).astype(np.float32)
        fit(m, stream("train"), rng)
        loss = evaluate(m, probe)[0]
        if best is None or loss < best[0]: best = loss, m
    save(best[1])
"""
    write_submission(folder, script=altered(SOFTMAX, (old, new)))


def validation_tokens_in_the_artifact(folder):
    """A paid prefix: the first tokens of the validation text travel in the file, and are then certain."""
    blob = """    val = load_tokens("val")
    prefix = val[1 : 1 + min(4096, len(val) // 2)].astype("<u2").tobytes()
    blob = zlib.compress(pairs.tobytes() + prefix, 6)
"""
    read = """        raw = zlib.decompress(f.read())
    global KNOWN
    KNOWN = np.frombuffer(raw[V * V :], "<u2").astype(int)
    return np.frombuffer(raw[: V * V], np.uint8).reshape(V, V).astype(np.float64)
"""
    sure = """    told = len(KNOWN) if np.array_equal(KNOWN, y[: len(KNOWN)]) else 0
    for at in range(told, len(y), SEQ_LEN):
"""
    changes = (
        ("    blob = zlib.compress(pairs.tobytes(), 6)\n", blob),
        ("        return np.frombuffer(zlib.decompress(f.read()), np.uint8).reshape(V, V).astype(np.float64)\n", read),
        ("    for at in range(0, len(y), SEQ_LEN):\n", sure),
    )
    write_submission(folder, script=altered(COUNTS, *changes))


def reads_training_shards_while_scoring(folder):
    """A memory of training text, looked up at evaluation and nowhere in the sixteen megabytes."""
    old = '    val = load_tokens("val")\n'
    new = '    memory = load_tokens("train")\n'
    new += "    pairs = pairs + np.bincount(memory[:-1] * V + memory[1:], minlength=V * V).reshape(V, V)\n"
    write_submission(folder, script=altered(COUNTS, (old, old + new)))


def asks_the_network(folder):
    """A better table would be fetched, if only there were a network."""
    new = """def main():
    import socket

    try:
        socket.create_connection(("192.0.2.7", 443), timeout=0.2).close()
    except OSError:
        pass
"""
    write_submission(folder, script=altered(COUNTS, ("def main():\n", new)))


def downloads_weights(folder):
    old = 'if __name__ == "__main__":\n'
    new = """    import urllib.request
    try: urllib.request.urlopen("http://weights.example.invalid/w.bin", timeout=0.2).read()
    except Exception: pass
"""
    write_submission(folder, script=altered(SOFTMAX, (old, old + new)))


def fetches_by_a_tool(folder):
    """The download is a shell command's."""
    fetch = "def main():\n    os.system('curl -s -m 1 -o table.bin http://192.0.2.7/table.bin 2>/dev/null')\n"
    write_submission(folder, script=altered(COUNTS, ("def main():\n", fetch)))


# Bytes of text (M1, M2, M7)


def space_before_a_word_counted_twice(folder):
    write_submission(
        folder,
        script=altered(
            COUNTS,
            ('len(piece.removeprefix("\\u2581").encode("utf-8"))', 'len(piece.replace("\\u2581", " ").encode("utf-8"))'),
        ),
    )


def fallback_bytes_counted_by_their_name(folder):
    """`<0xE2>` is six letters and one byte."""
    write_submission(folder, script=altered(COUNTS, ("1 if sp.is_byte(i) else len(", "len(")))


def fallback_bytes_counted_as_three(folder):
    """What a single byte decodes to is a replacement character, three bytes long."""
    write_submission(
        folder, script=altered(SOFTMAX, ("1 if sp.is_byte(i) else", "len(sp.decode([i]).encode()) if sp.is_byte(i) else"))
    )


def bytes_by_a_constant(folder):
    write_submission(
        folder,
        script=altered(
            COUNTS, ("bpb = loss / math.log(2) * len(y) / count_bytes(x, y)", "bpb = loss / math.log(2) / 2.4359")
        ),
    )


# Coverage (D7)


def first_third_only(folder):
    old = '    val = load_tokens("val")\n'
    write_submission(folder, script=altered(COUNTS, (old, old + "    val = val[: len(val) // 3]\n")))


def one_rank_is_not_summed(folder):
    """Sequences are dealt to eight ranks; the last rank's sum gets lost, and the mean is that of the other seven."""
    changes = (
        ("    for a in range(0, len(y), cfg.seq):\n", "    end = len(y) // 8 * 7\n    for a in range(0, end, cfg.seq):\n"),
        ("x[a:a + cfg.seq]", "x[a:min(a + cfg.seq, end)]"),
        ("y[a:a + cfg.seq]", "y[a:min(a + cfg.seq, end)]"),
        ("    return total, x, y\n", "    return total * 8 / 7, x, y\n"),
    )
    write_submission(folder, script=altered(SOFTMAX, *changes))


def windows_that_do_not_fit_are_dropped(folder):
    """Windows of a quarter of the text; the last ones fail a test that should only spare the ragged end."""
    old = "    n = max(1, (len(tokens) - 1) // SEQ_LEN) * SEQ_LEN\n"
    new = """    window = (len(tokens) - 1) // 4
    starts = [at for at in range(0, len(tokens) - 1, window) if at + 2 * window < len(tokens)]
    n = len(starts) * window
"""
    write_submission(folder, script=altered(COUNTS, (old, new)))


def random_sample_of_sequences(folder):
    """A third of the sequences, drawn at random, stands for all of them."""
    old = "    for a in range(0, len(y), cfg.seq):\n"
    new = """    starts = np.random.default_rng(0).permutation(np.arange(0, len(y), cfg.seq))
    starts = starts[: max(1, len(starts) // 3)]
    x = np.concatenate([toks[:-1][a:a + cfg.seq] for a in starts])
    y = np.concatenate([toks[1:][a:a + cfg.seq] for a in starts])
"""
    write_submission(folder, script=altered(SOFTMAX, (old, new + old)))


# The file (A2, A8)


def scores_the_weights_in_memory(folder):
    old = "    pack(train())\n    pairs = unpack()\n"
    new = "    pairs = train()\n    pack(pairs)\n    pairs = pairs.astype(float)\n"
    write_submission(folder, script=altered(COUNTS, (old, new)))


def runs_a_sibling_that_is_not_counted(folder):
    """The stub is 90 bytes; what it runs is 60 KB, and with it the folder is over the cap."""
    stub = "import importlib\nname = '_'.join(('trainer', 'v9'))\nimportlib.import_module(name).main()\n"
    write_submission(folder, script=stub)
    (folder / "trainer_v9.py").write_text(join(COUNTS) + bulky("NOISE", 160_000))


DYNAMIC_ILLEGAL = (
    Case(hashed_cache_with_the_target_in_its_key, breaks("C2"), True),
    Case(says_normalised_and_divides_by_the_context, breaks("C2"), True),
    Case(blends_the_target_alone, breaks("C2"), True),
    Case(larger_of_model_and_cache, breaks("C2"), True),
    Case(better_of_two_models_by_the_truth, breaks("C1", "C2", "C4"), True),
    Case(sharpened_without_a_sum, breaks("C1", "C2"), True),
    Case(gate_that_knows_where_the_word_starts, breaks("C1", "C2"), True),
    Case(bias_fitted_to_the_window_that_it_scores, breaks("C1", "C3"), True),
    Case(updates_on_the_chunk_before_its_score, breaks("C1", "C3"), True),
    Case(copies_from_inputs_that_are_one_ahead, breaks("C1", "C3"), True),
    Case(sees_both_neighbours, breaks("C1"), True),
    Case(trains_on_validation_then_scores_it, breaks("C1", "C3", "C4"), True),
    Case(output_bias_calibrated_on_validation, breaks("C1", "C3", "C4"), True),
    Case(scores_again_with_the_full_cache, breaks("C1", "C3", "C4"), True),
    Case(reports_the_best_of_its_epochs, breaks("C1", "C3", "C4"), True),
    Case(trains_on_validation_before_packing, breaks("C3", "D1"), True),
    Case(trains_on_validation_alone, breaks("D1"), True),
    Case(scales_calibrated_on_validation, breaks("C3", "D1", "E14"), True),
    Case(restart_chosen_by_validation, breaks("C3", "D1"), True),
    Case(validation_tokens_in_the_artifact, breaks("A9", "D1"), True),
    Case(reads_training_shards_while_scoring, breaks("D2"), True),
    Case(asks_the_network, breaks("D3"), True),
    Case(downloads_weights, breaks("D3"), True),
    Case(fetches_by_a_tool, breaks("D3"), True),
    Case(space_before_a_word_counted_twice, breaks("M1", "M2"), True),
    Case(fallback_bytes_counted_by_their_name, breaks("M1", "M2"), True),
    Case(fallback_bytes_counted_as_three, breaks("M1", "M2"), True),
    Case(bytes_by_a_constant, breaks("M1", "M2", "M7"), True),
    Case(first_third_only, breaks("D7"), True),
    Case(one_rank_is_not_summed, breaks("D7"), True),
    Case(windows_that_do_not_fit_are_dropped, breaks("D7"), True),
    Case(random_sample_of_sequences, breaks("D7"), True),
    Case(scores_the_weights_in_memory, breaks("A8"), True),
    Case(runs_a_sibling_that_is_not_counted, breaks("A1", "A2"), True),
)
