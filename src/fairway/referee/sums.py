"""Arithmetic on what logs print: implied bytes of the text, counts of tokens, sums of seconds, bytes of model and code."""

import io
import lzma
import math
import re
import tokenize
from keyword import iskeyword

from ..data.check import CANONICAL_BYTES, CANONICAL_CASEOPS_TOKENS, CANONICAL_TOKENS
from .logs import eval_seconds, same_figures
from .rules import OVERSHOOT
from .script import counted_code

LAUNCH_DAY_TOKENS, LAUNCH_DAY_BYTES = 63_779_840, 155_769_746  # the first export of the validation text, merged with it
WINDOW_TAIL = 8192  # tokens that cutting the stream to whole windows may drop
CONTEST_SIZED = 20_000_000  # tokens: no toy has as many
OTHER_TOKENIZER = 0.15  # two tokenizers of one size differ by less in tokens
LEAK_TOKENS, LEAK_SHARDS = 9_662_464, 1499  # #2127: validation cut at 10,000 documents, the rest trained on
SQUEEZED = 0.8  # of what LZMA makes of a text with one-letter names: no compressor seen gets lower
ARTIFACT_ENDINGS = (".ptz", ".br", ".zst", ".xz", ".lzma")


def judge_logs(findings, logs, claims):
    """M1, D4, D5, D7, T1, T2, T4 and T6 for every log. The track that submission.json names may have no time limit."""
    track = str(claims.values.get("track", ""))
    untimed = track if re.search(r"(?i)non|unlimited", track) else ""
    for log in logs:
        judge_text(findings, log)
        judge_scored_tokens(findings, log)
        judge_leak_marks(findings, log)
        judge_log_times(findings, log, untimed)
    judge_one_text(findings, logs)


def bytes_per_token(stage):
    """(low, high) bytes a token that nats and bpb imply, within what their digits leave open; None without both."""
    nats, bpb = (stage.nats, stage.bpb) if stage else (None, None)
    if nats is None or bpb is None or bpb <= bpb.unit or nats <= nats.unit:
        return None
    return (
        (nats - nats.unit) / math.log(2) / (bpb + bpb.unit),
        (nats + nats.unit) / math.log(2) / (bpb - bpb.unit),
    )


def judge_text(findings, log):
    """M1, D4 and D7: which text the headline's nats and bpb are of, and how much of it."""
    stage, limit = log.headline, findings.limit("M1")
    ratio, where = bytes_per_token(stage), f"{log.name}:{stage.line} {stage.name}" if stage else log.name
    tokens = (stage.tokens if stage else None) or log.val_tokens
    expected = canonical_tokens(log)
    judge_count(findings, log, ratio, expected)
    if ratio is None:
        return findings.untested("M1", f"{where}: no stage after training prints nats beside bpb")
    if tokens is None:
        return judge_ratio(findings, log, ratio, where)
    low, high = ratio[0] * tokens, ratio[1] * tokens
    wanted = wanted_bytes(log, tokens)
    if wanted is None:
        return judge_against_stages(findings, log, tokens, ratio, where)
    measured, evidence = round((low + high) / 2), f"{where}: {stage.nats.text} nats, {stage.bpb.text} bpb, {tokens:,} tokens"
    shown = f"{wanted[0]:,} to {wanted[1]:,} bytes" if wanted[0] != wanted[1] else f"{wanted[0]:,} bytes"
    if high >= wanted[0] * (1 - limit) and low <= wanted[1] * (1 + limit):
        return findings.say("M1", True, measured, shown, limit, evidence)
    if of_contest(log) and another_text(tokens, (low + high) / 2, ratio):
        reason = "the scored text is not the contest's (D4), so that its bytes are not known"
        return findings.say("M1", None, measured, shown, limit, f"{evidence}; {reason}")
    findings.say("M1", False, measured, shown, limit, f"{evidence}: off by {(measured / wanted[1] - 1):+.2%}")


def wanted_bytes(log, tokens):
    """(low, high) bytes that the validation text has: the contest's, what the log prints of its own text, or None."""
    if abs(tokens - LAUNCH_DAY_TOKENS) <= WINDOW_TAIL:
        return LAUNCH_DAY_BYTES, LAUNCH_DAY_BYTES
    if of_contest(log):
        return CANONICAL_BYTES
    return (log.val_bytes, log.val_bytes) if log.val_bytes else None


def of_contest(log):
    """Whether a log is of the contest's data, by the data's name (shards of any data are called fineweb_val) or its size."""
    named = any(re.search(r"fineweb\d+b|caseops", word) for word in log.seen)
    return named or (log.val_tokens or 0) >= CONTEST_SIZED


def canonical_ratios():
    """Bytes a token of the contest's text under each tokenizer that is known."""
    middle = sum(CANONICAL_BYTES) / 2
    return [middle / count for count in (*CANONICAL_TOKENS.values(), *CANONICAL_CASEOPS_TOKENS.values())]


def another_text(tokens, size, ratio):
    """Whether a wrong number of bytes comes from another text rather than from wrong bytes: the tokens are as long as the
    contest's, or there is far less text than the contest's."""
    known = (*CANONICAL_TOKENS.values(), *CANONICAL_CASEOPS_TOKENS.values())
    if any(abs(tokens - one) <= WINDOW_TAIL for one in known):
        return False
    return size < 0.9 * CANONICAL_BYTES[0] or any(abs(sum(ratio) / 2 / one - 1) < 0.003 for one in canonical_ratios())


def canonical_tokens(log):
    """The contest's count of validation tokens for a log's tokenizer, or None where it is not known which that is."""
    sizes = {int(word) for text in log.seen for word in re.findall(r"(?:sp|fineweb_)(\d{3,6})", text)}
    sizes |= {int(text) for name, text in log.settings.items() if name.lower() == "vocab_size" and text.isdigit()}
    table = CANONICAL_CASEOPS_TOKENS if any("caseops" in word for word in log.seen) else CANONICAL_TOKENS
    return table.get(sizes.pop()) if len(sizes) == 1 else None


def judge_count(findings, log, ratio, expected):
    """D4, and D7 where much is left out: the count of validation tokens, or the bytes that it stands for."""
    tokens = log.val_tokens
    if tokens is None:
        return
    known = [*CANONICAL_TOKENS.values(), *CANONICAL_CASEOPS_TOKENS.values(), LAUNCH_DAY_TOKENS]
    wanted, evidence = expected or "a canonical count", f"{log.at('val_tokens')}: tokens of the validation text"
    if any(abs(tokens - one) <= WINDOW_TAIL for one in ([expected, LAUNCH_DAY_TOKENS] if expected else known)):
        return findings.say("D4", True, tokens, wanted, WINDOW_TAIL, f"{evidence}, by their count")
    low, high = (ratio[0] * tokens, ratio[1] * tokens) if ratio else (None, None)
    off = findings.limit("M1")
    if ratio and high >= CANONICAL_BYTES[0] * (1 - off) and low <= CANONICAL_BYTES[1] * (1 + off):
        return findings.say("D4", True, tokens, wanted, "", f"{evidence} of another tokenizer: its bytes are the contest's")
    if not of_contest(log):
        return findings.untested("D4", f"{evidence}: {tokens:,}, of data that is not the contest's")
    if ratio:
        other = another_text(tokens, (low + high) / 2, ratio)
    else:
        other = expected is not None and abs(tokens / expected - 1) > OTHER_TOKENIZER
    if not other:
        return findings.untested("D4", f"{evidence}: {tokens:,}, for which no canonical figure is known")
    findings.say("D4", False, tokens, wanted, WINDOW_TAIL, evidence)
    short = (low + high) / 2 < 0.99 * CANONICAL_BYTES[0] if ratio else tokens < expected
    if short:
        part = (low + high) / 2 / CANONICAL_BYTES[0] if ratio else tokens / expected
        findings.say("D7", False, tokens, wanted, WINDOW_TAIL, f"{evidence}: {part:.1%} of the contest's text")


def judge_ratio(findings, log, ratio, where):
    """M1 without a count of tokens: only whether tokens are as long as those of a known tokenizer."""
    middle, limit = sum(ratio) / 2, findings.limit("M1")
    near = [one for one in canonical_ratios() if ratio[1] >= one * (1 - limit) and ratio[0] <= one * (1 + limit)]
    if near:
        return findings.say(
            "M1", True, round(middle, 5), round(near[0], 5), limit, f"{where}: bytes a token; no count in the log"
        )
    findings.untested("M1", f"{where}: {middle:.5f} bytes a token, but the log does not say how many tokens")


def judge_against_stages(findings, log, tokens, ratio, where):
    """M1 over a text of its own that no log measures: all stages of a log must stand for tokens of one length."""
    limit = max(findings.limit("M1"), 2 * WINDOW_TAIL / tokens if tokens > WINDOW_TAIL else 1.0)
    others = [(one, bytes_per_token(one)) for one in log.after() if not same_figures(one, log.headline)]
    others = [(one, two) for one, two in others if two]
    apart = [one.name for one, two in others if two[0] > ratio[1] * (1 + limit) or two[1] < ratio[0] * (1 - limit)]
    if others and len(apart) == len(others):
        evidence = f"{where}: other bytes a token than {', '.join(apart)} over one text"
        return findings.say("M1", False, round(sum(ratio) / 2, 5), round(sum(others[-1][1]) / 2, 5), limit, evidence)
    findings.untested("M1", f"{where}: {sum(ratio) / 2 * tokens:,.0f} bytes of a text that is not the contest's")


def judge_one_text(findings, logs):
    """M1 across logs: the same tokens stand for the same bytes."""
    groups, limit = {}, findings.limit("M1")
    for log in logs:
        if log.val_tokens and (ratio := bytes_per_token(log.headline)):
            groups.setdefault(log.val_tokens, []).append((log.name, ratio))
    for tokens, rows in groups.items():
        low, high = max(rows, key=lambda row: row[1][0]), min(rows, key=lambda row: row[1][1])
        if low[1][0] > high[1][1] * (1 + limit):
            shown = [f"{sum(row[1]) / 2:.5f} bytes a token in {row[0]}" for row in (low, high)]
            findings.say("M1", False, shown[0], shown[1], limit, f"{tokens:,} tokens in both logs")


def judge_scored_tokens(findings, log):
    """D7 by the log's own count of what it scored."""
    scored = (log.headline.tokens if log.headline else None) or log.scored_tokens
    if scored is None or log.val_tokens is None:
        return
    evidence = f"{log.at('scored_tokens')}: tokens scored of {log.val_tokens:,}"
    findings.say("D7", abs(scored - log.val_tokens) <= WINDOW_TAIL, scored, log.val_tokens, WINDOW_TAIL, evidence)


def judge_leak_marks(findings, log):
    """D5: marks of the data preparation that trained on validation documents. Evidence for people, no proof."""
    marks = []
    if log.val_tokens is not None and abs(log.val_tokens - LEAK_TOKENS) <= WINDOW_TAIL:
        marks.append(f"{log.val_tokens:,} validation tokens, as of 10,000 documents")
    if log.train_shards == LEAK_SHARDS:
        marks.append(f"{LEAK_SHARDS} training shards")
    if any(re.search(r"datasets[/\\]+datasets", word) for word in log.seen):
        marks.append("a doubled datasets/datasets path")
    if marks:
        evidence = f"{log.name}: marks of #2127, where training held 80 % of the validation documents; hashes would prove it"
        findings.say("D5", None, "; ".join(marks), "none", "", evidence)


def judge_log_times(findings, log, untimed):
    """T1, T2, T4 and T6. `untimed`: the track's name where it has no time limit."""

    def within(rule, seconds, evidence):
        limit = findings.policy.rules[rule].default
        if untimed:
            return findings.say(rule, None, round(seconds, 3), "", "", f"{evidence}; track {untimed} has no time limit")
        holds = seconds <= limit + OVERSHOOT
        findings.say(rule, holds, round(seconds, 3), f"at most {limit:g} s", OVERSHOOT, evidence)

    if log.train_seconds is not None:
        within("T1", log.train_seconds, log.at("train_seconds"))
        total, parts = log.train_seconds, [f"training {log.train_seconds:.2f} s"]
        packed = findings.limit("T2") == "packed"
        for name, seconds in (("calibration", log.hessian_seconds), ("packing", log.pack_seconds if packed else None)):
            if seconds is not None:
                total += seconds
                parts.append(f"{name} {seconds:.2f} s")
        evidence = f"{log.at('train_seconds')}: {' + '.join(parts)}"
        if len(parts) == 1:
            findings.untested("T2", f"{evidence}; no time of calibration in the log")
        else:
            within("T2", total, evidence)
    own, everything = eval_seconds(log)
    before = sum(seconds for seconds, _ in log.prepared.values())
    if own is not None:
        parts = f"{own:.1f} s scoring" + (f" + {before:.1f} s before it" if before else "")
        within("T4", own + before, f"{log.name}:{log.headline.line} {log.headline.name}: {parts}")
    if everything:
        shown = " + ".join(f"{seconds:.1f}" for seconds in [*everything, before] if seconds)
        within("T6", sum(everything) + before, f"{log.name}: {shown} s after training")


def judge_sizes(findings, folder, logs, script):
    """A1, A2 and A3: bytes of model and code for every log, under three readings of the code. `script`: a Script or None."""
    counted = counted_code(folder, script) if script else {}
    least = least_code(script) if script else None
    for log in logs:
        code, readings = code_readings(findings, log, script, counted, least)
        judge_size(findings, log, code, readings)
        if script:
            judge_counted(findings, log, script, counted, code)
    judge_artifact_file(findings, folder, logs, script)


def code_readings(findings, log, script, counted, least):
    """(bytes of code that count under the policy, or None; {reading: bytes}). Says A3."""
    cap, model = findings.limit("A1"), model_size(log)
    claimed = log.counted_code()
    shipped = sum(counted.values()) or None
    readings = {"claimed": claimed, "shipped": shipped, "unpacked": script.unpacked_size if script else None}
    readings = {name: size for name, size in readings.items() if size}
    evidence = log.at("compressed_code_bytes") if log.compressed_code_bytes else log.name
    if findings.limit("A3") == "shipped":
        if shipped is None:
            return claimed, readings
        fits = None if model is None else model + shipped <= cap
        findings.say(
            "A3", fits, readings, f"files as shipped, at most {cap - (model or 0)}", "", f"{evidence}: bytes of code"
        )
        return shipped, readings
    if log.compressed_code_bytes is None or least is None:
        if claimed or shipped:
            findings.say("A3", True if shipped == claimed else None, readings, "", "", f"{evidence}: bytes of code")
        return (script.size if script else claimed), readings
    plausible = log.compressed_code_bytes >= SQUEEZED * least
    what = f"{evidence}: LZMA makes {least} bytes of this text with names of one letter"
    findings.say("A3", plausible, readings, f"at least {math.ceil(SQUEEZED * least)}", "", what)
    return (log.compressed_code_bytes if plausible else script.size), readings


def model_size(log):
    """Bytes of the compressed model: as printed, or the total without the code."""
    if log.model_bytes is None and log.total_bytes and log.code_bytes:
        return log.total_bytes - log.code_bytes[-1][0]
    return log.model_bytes


def judge_size(findings, log, code, readings):
    """A1 for one log: what counts under the policy, and what the log itself adds up."""
    cap, model = findings.limit("A1"), model_size(log)
    if model is None and log.total_bytes is None:
        return
    size = None if model is None or code is None else model + code
    sums = {name: model + one for name, one in readings.items()} if model is not None else {}
    shown = ", ".join(f"{name} {one:,}" for name, one in sums.items())
    evidence = (
        f"{log.at('model_bytes')}: {f'model {model:,} bytes; ' if model else ''}with code {shown or 'of unknown size'}"
    )
    if log.total_bytes and log.total_bytes > cap:
        said = f"{log.at('total_bytes')}: the log's own total; {evidence}"
        return findings.say("A1", False, log.total_bytes, f"at most {cap}", 0, said)
    if size is None:
        size, evidence = log.total_bytes, f"{log.at('total_bytes')}: the log's own total"
    if size is None:
        fits = False if model > cap else None
        return findings.say("A1", fits, model, f"at most {cap}", 0, f"{evidence}: no size of the code")
    findings.say("A1", size <= cap, size, f"at most {cap}", 0, evidence)


def judge_counted(findings, log, script, counted, code):
    """A2 for one log: the files beside the script that run are counted too."""
    cap, model = findings.limit("A1"), model_size(log)
    beside = {name: size for name, size in counted.items() if name != script.name}
    if not beside or model is None:
        return
    full = model + max(sum(counted.values()), code or 0)
    evidence = f"{log.name}: model {model:,} with {', '.join(f'{name} {size:,}' for name, size in counted.items())}"
    holds = full <= cap or (None if (log.counted_code() or 0) >= sum(counted.values()) else False)
    findings.say("A2", holds, full, f"at most {cap}", 0, evidence)


def judge_artifact_file(findings, folder, logs, script):
    """A1 by the file on the disk, where the folder has one."""
    cap, printed = findings.limit("A1"), {log.model_bytes for log in logs}
    for entry in folder.entries:
        if entry.kind == "file" and entry.name.lower().endswith(ARTIFACT_ENDINGS) and entry.size not in printed:
            size = entry.size + (script.size if script else 0)
            findings.say("A1", size <= cap, size, f"at most {cap}", 0, f"{entry.name} on the disk, with the script")


def least_code(script):
    """Bytes that LZMA makes of a script's text without comments and docstrings and with every name one letter: what no
    minifier gets far below. None where the text cannot be cut into words."""
    words, before = [], tokenize.NEWLINE
    try:
        for word in tokenize.generate_tokens(io.StringIO(script.text).readline):
            if word.type in (tokenize.COMMENT, tokenize.NL):
                continue
            if word.type != tokenize.STRING or before not in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
                words.append("a" if word.type == tokenize.NAME and not iskeyword(word.string) else word.string)
            before = word.type
    except (SyntaxError, ValueError, RecursionError, tokenize.TokenError):
        return None
    return len(lzma.compress("".join(words).encode(errors="replace"), format=lzma.FORMAT_ALONE, preset=9))
