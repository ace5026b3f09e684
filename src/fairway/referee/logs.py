"""What a training log says: read line by line, by what figures are called and not by a list of known lines.

A stage is any line that carries bits per byte or nats; what stands before the figure is its name. Progress inside a stage
("chunk 20/947", "40 %") and comparisons ("delta", "record") are none. Where a log repeats itself the later line wins.
"""

import json
import re
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation

LINE_CUT, MOST_STAGES, MOST_SETTINGS = 4000, 4000, 2000
MOST_HEAD_LINES = 20_000  # where settings are looked for
COARSE = 0.0005  # figures of fewer digits are not told apart by rounding

CLOCK = (
    r"^(?:\[?\d{4}-\d\d-\d\d[ T][\d:.,]+(?:Z|[+-]\d\d:?\d\d)?\]?|\[?\d\d:\d\d:\d\d[\d.,]*\]?|[IWE]\d{4} \S+ \d+ \S+\])"
    r"[\s|:-]*"
)
# Ranks; the level of a logger, its name before it or, where no figure follows, after it.
SPEAKER = (
    r"^(?:\[(?:rank)?\s*\d+\]|\[?rank\s*\d+\]?"
    r"|(?:[\w.]{1,40} - )?\[?(?:INFO|DEBUG|WARNING)\]?"
    r"(?: - [\w.]{1,40} - (?!(?i:val|bpb|loss|nats))|:[\w.]{1,40}:(?=\S))?)[\s|:-]*"
)
COLOUR = r"\x1b\[[0-9;]*[A-Za-z]"
# name : number unit; a name begins where no name is going on, so that a long line is searched once.
PAIR = (
    r"(?<![\w./+-])([A-Za-z_][\w./+-]*)(?:\s*\([^()]{0,40}\))?\s*[:=]\s*"
    r"([-+]?(?:\d[\d,_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(?:(ms|secs?|seconds|s|m|min|bytes)(?!\s*[:=]))?(?![\w.])"
)
BARE = r"(?i)(?<![\w./+-])((?:val[_ ])?bpb|val[_ ]loss)\s+(?:of\s+|is\s+)?(\d+\.\d+)(?![\w.])()"
# A score in words; only both of them on one line are one.
SAID_BITS = r"(?i)(?<![\w.+-])(\d+\.\d+)\s*(?:bits?[ /]+(?:per[ /]+)?byte|bpb)\b"
SAID_NATS = r"(?i)(?<![\w.+-])(\d+\.\d+)\s*nats?\b"
STEP = r"(?i)^(?:\W*(?:step|iter|iteration)s?\s*[:=#]?\s*\d+|\d+\s*/\s*\d+)\b"
PROGRESS = (
    r"(?i)\d+\s*/\s*\d+|\d\s*%|(?:chunk|batch|doc|window)s?\s*[\[:#=]?\s*\d+(?!\w)"
    r"|\b(?:running|cumulative|progress)\b"
)
COMPARED = (
    r"(?i)(?<![a-z])(?:gap|gain|delta|diff|difference|penalty|improvement|degradation|std|expected|target|claimed|sota"
    r"|baseline|record|reference|previous|prev|prior|best|vs|budget|limit)(?![a-z])"
)
BETTER = r"(?i)\b(?:better|worse|lower|higher|saved)\b"
DIAGNOSTIC = r"(?i)(?<![a-z])(?:diagnostics?|diag|debug|pre-?_?quant\w*|unquanti[sz]ed|raw)(?![a-z])"
TAKES = (
    r"(?i)(?:\b(?:in|took|after)|time|elapsed|seconds|[:=(])\s*[:=]?\s*"
    r"(\d[\d,]*(?:\.\d+)?)\s*(ms|s|secs?|seconds)\b(?!\s*[:=])"
)
PLANNED = r"(?i)reserv|budget|\bcap\b|limit|effective|remaining|\best\b|estimat"
HESSIAN = r"(?i)hessian|calibrat"
PACKING = r"(?i)quanti[sz]|gptq|compress|seriali[sz]|\bpack|brotli|zstd|lzma|lrzip|\bprun"
TIMED = r"hessian|calibrat|quanti|gptq|compress|serial|pack|brotli|zstd|lzma|lrzip|prun|precomput|hint|tilt|train"
PREPARED = r"(?i)precomput|\bhints?\b|tilt"
WHOLE_SETTING = r"^\s*([A-Za-z_]\w{1,60})\s*[:=]\s*(\S.{0,200})$"
SETTING = r"(?<![\w./+-])([A-Za-z_]\w{1,60})[:=](\S{1,200})"
MODEL_BYTES = (
    r"(?i)(?:serialized|compressed|quantized|packed)[ _]+(?:model|artifact|weights)([^:=\d]*(?:int\d[^:=]*)?)[:=]"
    r"\s*(\d[\d,_]*)\s*(?:bytes|b\b|$)"
)
SCHEME = r"(?i)int\d|\bq\d|quant|zlib|zstd|brotli|lzma|\bxz\b|pack|compress|gptq|ternary|\w\+\w"
NAMED_MODEL_BYTES = r"(?i)(?<![\w])(?:model|artifact|blob|compressed_model)_bytes\s*[:=]\s*(\d[\d,_]*)"
TOTAL_BYTES = r"(?i)total[ _]+(?:submission|artifact|bytes)(?:[ _]+size)?([^:=]*)[:=]\s*(\d[\d,_]*)"
CODE_BYTES = r"(?i)(?<![\w])code(?:[ _]+(?:size|bytes))([^:=\d]*)[:=]\s*(\d[\d,_]*)"
# What a count is called, and where its number stands; of several on one line the last counts.
COUNTS = (
    ("val_tokens", r"(?i)(?<![\w])val(?:idation)?[_ ]tokens\s*[:=]\s*(\d[\d,_]*)"),
    ("val_tokens", r"(?i)val_loader\b.{0,400}\btokens\s*[:=]\s*(\d[\d,_]*)"),
    ("val_tokens", r"(?i)(?<![\w.,/])(\d[\d,_]*)\s+val(?:idation)?[_ ]tokens\b(?!\s*[:=])"),
    ("val_bytes", r"(?i)(?<![\w])(?:(?:total_)?(?:val|eval|text|scored)_bytes(?:_total)?)\s*[:=]\s*(\d[\d,_]*)"),
    ("scored_tokens", r"(?i)(?<![\w])(?:(?:target|scored|evaluated)_tokens|tokens_scored)\s*[:=]\s*(\d[\d,_]*)"),
)
PARAMETERS = ("parameters", "model_params", "num_params", "total_params")
TRAINED = (
    r"(?i)\btrain(?:ing)?[_ ]time\s*[:=]?\s*(\d[\d,]*(?:\.\d+)?)\s*(ms|s|secs?|seconds)\b"
    r"|\btrain(?:ing)?_(?:time_|(?=s))(ms|s|secs?|seconds)\s*[:=]\s*(\d[\d,]*(?:\.\d+)?)(?![\w.])"
)
# Only words that say that it has ended stand between: other work may be timed with it.
SAID_TRAINED = (
    r"(?i)\btrain(?:ing|ed)(?:[ ,:]+(?:is|was|has|finished|done|complete|completed|ended|stopped|at|for|after|in|steps?"
    r"|updates|iterations|\d[\d,]*)){0,8}[ ,:]+(?:took|for|after|in)\s+(\d[\d,]*(?:\.\d+)?)\s*(ms|s|secs?|seconds)\b"
)
DATA_TEXT = r"(?i)fineweb\w*|sp\d{3,6}\b|caseops|datasets[/\\]+datasets"


class Printed(float):
    """A number that remembers the digits it was printed with. `unit`: the worth of its last digit."""

    def __new__(cls, text):
        plain = str(text).strip().rstrip(",").replace(",", "").replace("_", "")
        self = super().__new__(cls, plain)
        self.text = plain
        return self

    @property
    def unit(self):
        try:
            exponent = Decimal(self.text).as_tuple().exponent
        except InvalidOperation:
            return 1.0
        return 10.0**exponent if isinstance(exponent, int) and -30 < exponent < 30 else 1.0


@dataclass(frozen=True)
class LogStage:
    """One evaluation: `nats` a token and `bpb` (Printed or None), `seconds` or None, `tokens` that its line counts or None.

    `during`: it stands inside training. `diagnostic`: by its name or place (before the artifact) it is not the score.
    """

    name: str
    nats: Printed | None
    bpb: Printed | None
    seconds: float | None
    line: int
    tokens: int | None = None
    during: bool = False
    diagnostic: bool = False


@dataclass(eq=False)
class Log:
    """A log's figures; None where it does not say. `code_bytes`: [(bytes, line)]; `settings`: {name: text}.

    `prepared`: {name: (seconds, line)} of work before scoring that is no stage; `seen`: texts that tell which data it was.
    `headline`: the last stage with bits per byte after training that is no diagnostic.
    """

    name: str
    seed: int | None = None
    world_size: int | None = None
    train_shards: int | None = None
    val_tokens: int | None = None
    scored_tokens: int | None = None
    val_bytes: int | None = None
    parameters: int | None = None
    steps: int | None = None
    step_ms: Printed | None = None
    train_seconds: float | None = None
    hessian_seconds: float | None = None
    pack_seconds: float | None = None
    settings: dict = field(default_factory=dict)
    code_bytes: list = field(default_factory=list)
    compressed_code_bytes: int | None = None
    model_bytes: int | None = None
    total_bytes: int | None = None
    stages: list = field(default_factory=list)
    headline: LogStage | None = None
    prepared: dict = field(default_factory=dict)
    seen: set = field(default_factory=set)
    lines: dict = field(default_factory=dict)

    def at(self, what):
        """Where a figure was read, for evidence."""
        return f"{self.name}:{self.lines[what]}" if what in self.lines else self.name

    def counted_code(self):
        """Bytes of code that it counts: a compressed copy's where it tells of one; None where it tells nothing."""
        return self.compressed_code_bytes or (self.code_bytes[-1][0] if self.code_bytes else None)

    def after(self):
        """The stages after training that are no diagnostics."""
        return [stage for stage in self.stages if not stage.during and not stage.diagnostic]


def read_log(folder, name):
    """The Log of a file of a folder. Reads any text without an error; what it does not say is None."""
    log, header = Log(name), []
    for number, line in enumerate(folder.lines(name), 1):
        text = cleaned(line[:LINE_CUT])
        if text:
            header, text = table_row(header, text)
            _read_line(log, number, text)
    last = log.lines.get("training", 0)
    log.stages = [replace(stage, during=stage.during or stage.line <= last) for stage in log.stages]
    written = max(log.lines.get("model_bytes", 0), log.lines.get("total_bytes", 0))
    if any(stage.line > written and stage.bpb is not None for stage in log.after()):
        # What was scored before the file was written is no score of the file.
        log.stages = [replace(stage, diagnostic=stage.diagnostic or stage.line < written) for stage in log.stages]
    log.headline = chosen_headline(log)
    if log.seed is None and (found := re.search(r"(?i)(?:seed|_s)[_-]?(\d{1,9})(?!\d)", name)):
        log.seed = int(found[1])
    return log


def chosen_headline(log):
    """The last stage after training that is no diagnostic; of lines that print the same figure, the one with most digits."""
    scored = [stage for stage in log.after() if stage.bpb is not None]
    if not scored:
        return None
    last = scored[-1]
    same = [stage for stage in scored if same_figures(stage, last)]
    return min(reversed(same), key=lambda stage: stage.bpb.unit)


def same_figures(one, other):
    """Whether two stages print one and the same score, to the digits that both print."""
    pairs = [(one.bpb, other.bpb), (one.nats, other.nats)]
    known = [(left, right) for left, right in pairs if left is not None and right is not None]
    if any(max(left.unit, right.unit) > COARSE and left.text != right.text for left, right in known):
        return False
    return bool(known) and all(abs(left - right) <= 0.5001 * max(left.unit, right.unit) for left, right in known)


def eval_seconds(log):
    """(seconds of the headline or None, [seconds of each stage after training]); lines of one figure are one stage."""
    groups = []
    for stage in log.stages:
        if not stage.during:
            home = next((group for group in groups if any(same_figures(one, stage) for one in group)), [])
            groups += [] if home else [home]
            home.append(stage)
    longest = [(group, max((one.seconds for one in group if one.seconds is not None), default=None)) for group in groups]
    own = next((seconds for group, seconds in longest if log.headline in group), None)
    return own, [seconds for _, seconds in longest if seconds is not None]


def distinct_stages(log):
    """The stages outside training, of lines that print one figure only those with most digits."""
    found = [stage for stage in log.stages if not stage.during]
    return [stage for stage in found if not any(same_figures(stage, one) and finer(one, stage) for one in found)]


def finer(one, other):
    """Whether a stage prints more digits than another of the same figures."""
    return one.bpb is not None and other.bpb is not None and one.bpb.unit < other.bpb.unit


def cleaned(line):
    """A line without colours, clocks and ranks in front; a JSON object as `key:value` words, its event first."""
    text = (re.sub(COLOUR, "", line) if "\x1b" in line else line).strip()
    for prefix in (CLOCK, SPEAKER, CLOCK):
        if found := re.match(prefix, text):
            text = text[found.end() :]
    if text.startswith("{") and text.endswith("}"):
        try:
            record = json.loads(text, parse_float=str, parse_int=str)
        except (ValueError, RecursionError):
            return text
        if isinstance(record, dict):
            names = [str(record.pop(key)) for key in ("event", "stage", "name", "phase", "tag") if key in record]
            if "step" in record and not any("val" in key or "bpb" in key for key in record):
                names.insert(0, f"step:{record.pop('step')}")
            plain = [f"{key}:{value}" for key, value in record.items() if not isinstance(value, (dict, list))]
            return " ".join(names + plain)
    return text.replace('"', "").replace("'", "")


def table_row(header, text):
    """([titles of the table that goes on after this line], the line; a row of it as `title:cell` words, its name first)."""
    if "bpb" in text or "bits" in text or header:
        cells = [cell for cell in re.split(r"\s*[|\t]\s*|\s{2,}", text.strip("| ")) if cell]
        titles = [re.sub(r"\W+", "_", cell.lower()).strip("_") for cell in cells]
        if len(cells) > 1 and any((_metric(one) or ("",))[0] == "bpb" for one in titles) and not re.search(r"\d", text):
            # A table of seeds sums up several runs.
            return ([] if {"seed", "run"} & set(titles) else titles), text
        if header and re.fullmatch(r"[\s|:+=-]*", text):
            return header, text
        if len(cells) == len(header):
            first = cells[0] if not re.fullmatch(r"\d+", cells[0]) else f"{header[0]}:{cells[0]}"
            return header, " ".join([first, *(f"{title}:{cell}" for title, cell in zip(header[1:], cells[1:], strict=True))])
    return [], text


def _read_line(log, number, text):
    """Takes what one line says. Words are looked for before patterns are, since a log may have a million lines."""
    low = text.lower()
    if len(log.seen) < 50 and has(low, "fineweb", "caseops", "datasets", "sp"):
        log.seen.update(re.findall(DATA_TEXT, low))
    is_step = re.match(STEP, text) is not None
    pairs = _line_pairs(text) if has(low, "bpb", "loss", "nats", "nll", "bits", "seed", "world", "shards", "param") else []
    stages = _stages(text, pairs, number, is_step) if pairs else []
    if stages and len(log.stages) < MOST_STAGES:
        log.stages += stages
    if is_step or "stopping_early" in text:
        _read_step(log, number, text)
    elif "training" not in log.lines and number <= MOST_HEAD_LINES:
        _read_settings(log, text)
    if has(low, "bytes", "size", "code"):
        _read_sizes(log, number, text)
    if pairs or has(low, "tokens", "bytes"):
        _read_counts(log, number, text, pairs)
    if not stages and not is_step and re.search(TIMED, low) and not re.search(PROGRESS, text):
        _read_times(log, number, text)


def has(text, *words):
    """Whether any of the words is in a text."""
    return any(word in text for word in words)


def _line_pairs(text):
    """[(name, number's text, unit, place)] of a line."""
    found = [(*one.groups(), one.start()) for one in re.finditer(PAIR, text)]
    if any(_metric(name) for name, *_ in found):
        return found
    bits, nats = re.search(SAID_BITS, text), re.search(SAID_NATS, text)
    if bits and nats and not (re.search(COMPARED, text) or re.search(BETTER, text)):
        found += [("val_bpb", bits[1], "", bits.start()), ("val_nats", nats[1], "", nats.start())]
        return sorted(found, key=lambda one: one[3])
    return found + [(*one.groups(), one.start()) for one in re.finditer(BARE, text)]


def _metric(name):
    """("bpb" or "nats", what else the name says), or None for a name of something else."""
    words = [word for word in re.split(r"[_\-./ ]+", name.lower()) if word]
    if not words or "train" in words:
        return None
    kind = "bpb" if words[-1] == "bpb" or words[-3:] == ["bits", "per", "byte"] else None
    kind = kind or ("nats" if words[-1] in ("loss", "nll", "nats") else None)
    rest = words[:-3] if words[-3:] == ["bits", "per", "byte"] else words[:-1]
    return kind and (kind, " ".join(word for word in rest if word not in ("val", "eval", "validation")))


def _stages(text, pairs, number, is_step):
    """The evaluations that a line reports."""
    metrics = [(place, *_metric(name), value) for name, value, _, place in pairs if _metric(name)]
    kinds = {kind for _, kind, _, _ in metrics}
    if not metrics or ("bpb" not in kinds and not any("val" in name.lower() for name, *_ in pairs)):
        return []
    front = text[: metrics[0][0]]
    if not is_step and (re.search(PROGRESS, front) or re.search(COMPARED, front)):
        return []
    name = re.sub(r"[\s:=|,;()\[\]{}*>-]+$", "", re.sub(r"\s+", " ", re.sub(PAIR, " ", front))).strip(" :=|,;([{*>-")[:80]
    name = text[:40].split()[0] if is_step else name
    seconds = [_seconds(value, unit or key) for key, value, unit, _ in pairs if _is_duration(key)]
    if not seconds and not is_step and not re.search(TRAINED, text):
        seconds = [_seconds(*found) for found in re.findall(TAKES, text)]
    tokens = [_whole(value) for key, value, _, _ in pairs if key.lower() in ("tokens", "scored_tokens", "target_tokens")]
    found = {}
    for _, kind, rest, value in metrics:
        if not re.search(COMPARED, rest):
            found.setdefault(rest, {})[kind] = _number(value)
    duration = max((one for one in seconds if one is not None), default=None)
    count = max((one for one in tokens if one), default=None)
    stages = []
    for rest, figures in found.items():
        nats, bpb = (_above_zero(figures.get(kind)) for kind in ("nats", "bpb"))
        title = " ".join(part for part in (name, rest) if part) or "val"
        if nats is not None or bpb is not None:
            diagnostic = re.search(DIAGNOSTIC, f"{name} {rest}") is not None
            stages.append(LogStage(title, nats, bpb, duration, number, count, is_step, diagnostic))
    return stages


def _above_zero(value):
    return value if value is not None and value > 0 else None


def _is_duration(name):
    words = set(re.split(r"[_\-./ ]+", name.lower()))
    return not words & {"train", "avg"} and bool(words & {"time", "elapsed", "seconds", "duration", "took"})


def _seconds(text, unit):
    """Seconds from a number and its unit, or from the last word of its name; None where neither says."""
    value, unit = _number(text), re.split(r"[_ ]", unit.lower())[-1]
    if value is None or unit not in ("ms", "s", "sec", "secs", "seconds"):
        return None
    return float(value) / (1000 if unit == "ms" else 1)


def _number(text):
    """A finite, sensible Printed, or None."""
    try:
        value = Printed(text)
    except ValueError:
        return None
    return value if abs(value) < 1e18 else None


def _whole(text):
    """A whole number of a bounded size, or None."""
    digits = text.replace(",", "").replace("_", "")
    return int(digits) if digits.isdigit() and len(digits) <= 18 else None


def _read_step(log, number, text):
    """A line of training: how far, and how long it took. Where the count begins again, something else is counted."""
    found = re.search(r"(?i)(?:\bsteps?\s*[:=#]?\s*|^)(\d{1,12})(?:\s*/\s*\d+)?\b", text)
    if found and int(found[1]) < (log.steps or 0):
        return
    log.lines["training"] = number
    if found:
        log.steps = int(found[1])
    _read_trained(log, number, text)
    if found := re.search(r"(?i)step_avg\s*[:=]\s*(\d+(?:\.\d+)?)", text):
        log.step_ms = _number(found[1])


def _read_settings(log, text):
    """Names and values printed before training."""
    if "environ" in text or len(log.settings) >= MOST_SETTINGS:
        return
    pairs = re.findall(SETTING, text)
    whole = re.match(WHOLE_SETTING, text)
    if len(pairs) < 2 and whole:
        pairs = [whole.groups()]
    for name, value in pairs:
        log.settings[name] = value.strip().rstrip(",;")


def _read_sizes(log, number, text):
    """Bytes of model, code and both."""
    for found in re.finditer(CODE_BYTES, text):
        size, words = _whole(found[2]), found[1].lower()
        if size is not None and "uncompressed" not in words and "compressed" in words:
            _keep_figure(log, "compressed_code_bytes", size, number)
        elif size is not None and len(log.code_bytes) < 100:
            log.code_bytes.append((size, number))
    for what, pattern in (("total_bytes", TOTAL_BYTES), ("model_bytes", MODEL_BYTES)):
        if (found := re.search(pattern, text)) and _coded(found[0].rpartition(found[2])[0], what, log):
            _keep_figure(log, what, _whole(found[2]), number)
    if found := re.search(NAMED_MODEL_BYTES, text):
        _keep_figure(log, "model_bytes", _whole(found[1]), number)
    whole = [_whole(one) or 0 for one in re.findall(r"(?<![\w.,])\d[\d,_]{2,20}(?![\w.])", text)[:4]]
    told = log.lines.get("total_bytes") == number or "code" not in text.lower()
    if not told and len(whole) == 3 and whole[0] + whole[1] == whole[2]:
        # Whatever they are called: two sizes and their sum.
        _keep_figure(log, "model_bytes", max(whole[:2]), number)
        _keep_figure(log, "total_bytes", whole[2], number)
        if (min(whole), number) not in log.code_bytes:
            log.code_bytes.append((min(whole), number))


def _keep_figure(log, what, value, number):
    """Keeps a figure and the line where it stood; None is no figure."""
    if value is not None:
        setattr(log, what, value)
        log.lines[what] = number


def _coded(words, what, log):
    """Whether a size is the compressed model's: a line without a scheme is the raw checkpoint where another names one."""
    scheme = re.search(SCHEME, words) is not None
    log.lines[f"{what} coded"] = log.lines.get(f"{what} coded", False) or scheme
    return scheme or not log.lines[f"{what} coded"]


def _read_counts(log, number, text, pairs):
    """Tokens, bytes, shards, ranks, parameters, the seed."""
    for key, value, _, _ in pairs:
        what = "parameters" if key.lower() in PARAMETERS else key.lower()
        if what in ("seed", "world_size", "train_shards", "parameters"):
            _keep_figure(log, what, _whole(value), number)
    for what, pattern in COUNTS:
        if found := re.search(pattern, text):
            _keep_figure(log, what, _whole(found[1]) or None, number)


def _read_times(log, number, text):
    """Seconds of calibration, packing and preparations; the longest of several lines, which may tell one and the same."""
    found = re.findall(TAKES, text)
    seconds = _seconds(*found[-1]) if found else None
    if seconds is None or re.search(PLANNED, text):
        return
    if re.search(HESSIAN, text):
        _keep_longest(log, "hessian_seconds", seconds, number)
    elif re.search(PREPARED, text):
        log.prepared[re.sub(r"[\d.]+", "#", text)[:80]] = (seconds, number)
    elif re.search(PACKING, text) and "training" in log.lines:
        _keep_longest(log, "pack_seconds", seconds, number)
    else:
        _read_trained(log, number, text)


def _read_trained(log, number, text):
    """Seconds of training: the most that a line tells."""
    if found := re.search(TRAINED, text) or re.search(SAID_TRAINED, text):
        value, unit, *turned = found.groups()
        _keep_longest(log, "train_seconds", _seconds(value or turned[1], unit or turned[0]), number)


def _keep_longest(log, what, seconds, number):
    if seconds is not None and seconds >= (getattr(log, what) or 0):
        _keep_figure(log, what, seconds, number)
