"""Folders that break no rule, and look as if they did."""

import base64
import json
import lzma
import math
import pickle
import statistics
import zlib
from dataclasses import replace

from .base import (
    EXACT,
    HONEST_SCRIPT,
    RUNS,
    TOKENS_8192,
    Case,
    Run,
    change_claims,
    claims,
    each,
    edit,
    frontier_log_lines,
    log_lines,
    mean,
    readme,
    save_claims,
    write_submission,
)
from .static_illegal import AT_8192, bulky

KERNEL = """
import triton
import triton.language as tl


@triton.jit
def scale(x, n, block: tl.constexpr):
    i = tl.program_id(0) * block + tl.arange(0, block)
    tl.store(x + i, tl.load(x + i, mask=i < n) * 2, mask=i < n)

"""


def packed(source):
    """Source as base85 text of an LZMA stream."""
    return base64.b85encode(lzma.compress(source.encode(), preset=9)).decode()


def plain_baseline(folder):
    write_submission(folder)


def lzma_wrapper(folder):
    write_submission(
        folder, script=f'import lzma as L,base64 as B\nexec(L.decompress(B.b85decode("{packed(HONEST_SCRIPT)}")))\n'
    )


def wrapper_through_a_temporary_file(folder):
    """Kernels have a source file, since the text is written out before it runs."""
    source = HONEST_SCRIPT.replace("import torch", KERNEL + "import torch", 1)
    script = (
        "import base64, lzma, os, runpy, sys, tempfile\n"
        f"text = lzma.decompress(base64.b85decode({packed(source)!r}))\n"
        "with tempfile.NamedTemporaryFile('wb', suffix='.py', delete=False) as f:\n"
        "    f.write(text)\n"
        "sys.argv[0] = f.name\n"
        "runpy.run_path(f.name, run_name='__main__')\n"
        "os.unlink(f.name)\n"
    )
    write_submission(folder, script=script)


def wrapper_through_linecache(folder):
    source = HONEST_SCRIPT.replace("import torch", KERNEL + "import torch", 1)
    script = (
        "import linecache, lzma, base64\n"
        f"s = lzma.decompress(base64.b85decode({packed(source)!r})).decode()\n"
        "n = '<train>'\n"
        "linecache.cache[n] = (len(s), None, s.splitlines(True), n)\n"
        "exec(compile(s, n, 'exec'))\n"
    )
    write_submission(folder, script=script)


def wrapper_with_a_readable_copy_beside(folder):
    """The copy for people is 150 KB and runs nowhere; with it the folder would be over the cap."""
    source = HONEST_SCRIPT + "\n" + "# a note on the derivation of the learning rate, and on what was tried before\n" * 1_900
    wrapper = f'import zlib,base64\nexec(zlib.decompress(base64.a85decode("""{a85(source)}""")))\n'
    write_submission(folder, each(model=15_980_000), script=wrapper)
    (folder / "train_gpt_readable.py").write_text(source)


def a85(source):
    """Ascii85 text without what would end or bend a Python string."""
    data = base64.a85encode(zlib.compress(source.encode(), 9)).decode()
    return data.replace("\\", "\\\\").replace('"', '\\"')


def native_source_in_the_packed_blob(folder):
    source = HONEST_SCRIPT.replace(
        "class Block(",
        "CPP = r'''\n#include <torch/extension.h>\nint hint(int a, int b) { return (a * 31 + b) % 4096; }\n'''\n\n\n"
        "def build():\n    from torch.utils.cpp_extension import load_inline\n\n"
        "    return load_inline('hint', [CPP], functions=['hint'])\n\n\nclass Block(",
        1,
    )
    write_submission(folder, script=f"import lzma,base64\nexec(lzma.decompress(base64.b85decode('{packed(source)}')))\n")


def data_preparation_beside(folder):
    """A helper that made the shards: nothing of the run opens it. With it the folder would be over the cap."""
    write_submission(folder, each(model=15_985_000))
    text = '"""Cuts documents into shards; the first 50,000 are validation (fineweb_val_*.bin)."""\n' + bulky(
        "RULES", 40_000
    )
    (folder / "prepare_caseops_data.py").write_text(text)
    (folder / "requirements.txt").write_text("sentencepiece==0.2.0\ntorch\n")


def helper_that_is_counted(folder):
    """A second file that runs and that the stated code bytes hold."""
    script = HONEST_SCRIPT.replace(
        "import torch.nn.functional as F", "import torch.nn.functional as F\n\nimport polar_steps"
    )
    script = script.replace("    torch.manual_seed(", "    polar_steps.show(args)\n    torch.manual_seed(")
    helper = 'STEPS = (3.4445, -4.7750, 2.0315)\n\n\ndef show(args):\n    print(f"steps:{STEPS}")\n'
    write_submission(folder, script=script, code=len(script) + len(helper))
    (folder / "polar_steps.py").write_text(helper)


def tail_cut_to_whole_windows(folder):
    """All tokens are 62,021,846; what whole windows hold is scored, and bytes are counted over the same."""

    def lines(run, code):
        extra = "eval: scored_tokens:62021632 (214 tokens of the last partial window are cut, as the base loader does)"
        return log_lines(run, code, stages=(extra,))

    write_submission(folder, each(text_bytes=151_079_963), lines=lines)


def sliding_windows_over_every_token(folder):
    def lines(run, code):
        before = (
            f"final_int6_roundtrip val_loss:{run.loss + 0.034:.4f} val_bpb:{(run.loss + 0.034) * run.bpb / run.loss:.4f}"
        )
        renamed = [line.replace("final_int8_zlib_roundtrip", "final_int6_sliding_window") for line in log_lines(run, code)]
        return [*renamed[:-2], f"{before} eval_time:19334ms", *renamed[-2:]]

    write_submission(folder, each(eval_ms=155_200, model=15_865_061), lines=lines)


def launch_day_export(folder):
    runs = each(tokens=63_779_840, text_bytes=155_769_746)
    write_submission(folder, runs)


def stops_at_600_14_seconds(folder):
    write_submission(folder, each(train_ms=600_140))


def calibrates_inside_its_reserve(folder):
    runs = each(train_ms=587_912, hessians=12.0, eval_ms=401_330, **AT_8192)
    write_submission(folder, runs, lines=frontier_log_lines)


def caseops_tokens(folder):
    runs = each(**{**AT_8192, "tokens": 47_851_520}, text_bytes=151_074_499, train_ms=596_100, eval_ms=489_120)
    write_submission(folder, runs, lines=frontier_log_lines)


def timestamps_and_ranks(folder):
    def lines(run, code):
        return [
            f"[2026-04-02 11:{at // 60:02}:{at % 60:02},123] [rank0]: {line}" for at, line in enumerate(log_lines(run, code))
        ]

    write_submission(folder, lines=lines, log_name="log_{}.txt")


def other_words_in_the_log(folder):
    """A log of its own making, with thousands marked and nats and bits in words."""

    def lines(run, code):
        return [
            f"seed = {run.seed}",
            f"val_tokens = {run.tokens:,}",
            f"trained {run.steps:,} steps in {run.train_ms / 1000:.2f} s",
            f"Code size: {code:,} bytes",
            f"Serialized model: {run.model:,} bytes",
            f"Total submission size: {run.model + code:,} bytes",
            f"FINAL    val_loss: {run.loss:.6f}    val_bpb: {run.bpb:.6f}    eval_time: {run.eval_ms}ms",
        ]

    write_submission(folder, lines=lines)
    data = claims(RUNS, len(HONEST_SCRIPT))
    data["val_loss"], data["val_bpb"] = round(data["val_loss"], 4), round(data["val_bpb"], 4)
    data["seed_results"] = {seed: round(one["val_bpb"], 5) for seed, one in data["seed_results"].items()}
    del data["val_bpb_std"]
    save_claims(folder, data)


def windows_line_ends_and_a_byte_order_mark(folder):
    write_submission(folder)
    for path in folder.iterdir():
        if path.suffix in (".log", ".md", ".json"):
            path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    (folder / "submission.json").write_bytes(b"\xef\xbb\xbf" + (folder / "submission.json").read_bytes())


def progress_bars_and_colours(folder):
    """A console log as it was caught: carriage returns, colours, bytes that are no UTF-8."""
    write_submission(folder)
    for path in folder.glob("*.log"):
        bar = b"\r".join(b"\x1b[32m %d%%|####    | train\x1b[0m" % at for at in range(0, 100, 3))
        path.write_bytes(b"W0402 torch/distributed: \xff\xfe\n" + bar + b"\n" + path.read_bytes())


def seeds_as_a_dictionary(folder):
    data = claims(RUNS, len(HONEST_SCRIPT))
    data["seeds"] = {str(run.seed): round(run.bpb, 6) for run in RUNS}
    del data["seed_results"]
    save_claims(write_submission(folder), data)


def spread_of_the_population(folder):
    save_claims(write_submission(folder), claims(RUNS, len(HONEST_SCRIPT), std=statistics.pstdev))


def spread_of_the_sample(folder):
    data = claims(RUNS, len(HONEST_SCRIPT))
    data["val_bpb_std"] = round(data["val_bpb_std"], 5)
    save_claims(write_submission(folder), data)


def few_digits(folder):
    """Three digits in the JSON, and a date with its time."""
    write_submission(folder)
    bpb = round(mean([run.bpb for run in RUNS]), 3)
    change_claims(folder, val_bpb=bpb, val_loss=None, val_bpb_std=None, seed_results=None, date="2026-04-02T11:12:13Z")


def ablations_in_a_subfolder(folder):
    """Forty other runs, some of them on one card, some over every limit: none of them is claimed."""
    write_submission(folder)
    (folder / "ablations").mkdir()
    for at in range(40):
        run = Run(seed=at, loss=2.1 + at / 100, train_ms=550_000 + 9_000 * at, model=14_000_000 + 100_000 * at)
        (folder / "ablations" / f"no_skip_{at}.log").write_text("\n".join(log_lines(run, 40_000 + at)) + "\n")


def diagnostics_after_the_score(folder):
    """After the score come a pass without windows and one with other weights: worse, and no part of the claim."""

    def lines(run, code):
        ratio = run.bpb / run.loss
        return [
            *log_lines(run, code),
            f"diagnostic no_ema val_loss:{run.loss + 0.03:.8f} val_bpb:{(run.loss + 0.03) * ratio:.8f} eval_time:40112ms",
            f"diagnostic fp32 val_loss:{run.loss - 0.004:.8f} val_bpb:{(run.loss - 0.004) * ratio:.8f} eval_time:40112ms",
        ]

    write_submission(folder, lines=lines)


def all_phases_together_over_600_seconds(folder):
    """The scored pass takes 519 s; diagnostics before it take 90 s more."""
    runs = each(train_ms=587_912, hessians=11.9, eval_ms=519_400, **AT_8192)

    def lines(run, code):
        text = [line.replace("eval_time:7312ms", "eval_time:44100ms") for line in frontier_log_lines(run, code)]
        return [line.replace("eval_time:9410ms", "eval_time:45900ms") for line in text]

    write_submission(folder, runs, lines=lines)


def huge_log(folder):
    """Four megabytes of steps before the score."""
    write_submission(folder)
    for path in list(folder.glob("*.log"))[:1]:
        noise = "".join(
            f"micro:{at} grad_norm:{at % 97 / 97:.6f} tokens_per_second:{7_000_000 + at}\n" for at in range(60_000)
        )
        path.write_text(noise + path.read_text())


def five_seeds_all_disclosed(folder):
    more = (
        Run(3, 2.07401234, 13_701, 600_051, 91_001, 15_860_001),
        Run(11, 2.07150001, 13_790, 600_020, 90_870, 15_859_870),
    )
    write_submission(folder, (*RUNS, *more))


def one_seed_without_a_time_limit(folder):
    """The other track: two hours on one card, 16 MB all the same."""
    runs = (Run(loss=2.0501, train_ms=7_200_031, steps=160_000, eval_ms=1_480_000),)
    write_submission(folder, runs, lines=lambda run, code: unlimited(log_lines(run, code)))
    change_claims(folder, track="non-record-16mb", hardware="1xRTX 4090")
    edit(folder / "README.md", "# Record:", "# Non-record (unlimited compute):")
    edit(folder / "README.md", "8xH100 SXM", "1x RTX 4090, two hours")


def unlimited(lines):
    return [line.replace("world_size:8 grad_accum_steps:1", "world_size:1 grad_accum_steps:8") for line in lines]


def compressed_code_is_counted(folder):
    """90 KB of readable source; the log states its compressed form, which any compressor can confirm."""
    notes = "".join(f"# step {at}: the rate falls by {at % 7} parts in a thousand from here on\n" for at in range(1_300))
    script = HONEST_SCRIPT + "\n\n" + notes
    small = len(packed(HONEST_SCRIPT)) + 600

    def lines(run, code):
        return frontier_log_lines(run, len(script), compressed=small)

    runs = each(train_ms=599_901, model=15_970_000, **AT_8192)
    write_submission(folder, runs, script=script, lines=lines, code=small)
    change_claims(folder, bytes_code=small)


def logs_in_a_subfolder(folder):
    write_submission(folder, log_name="logs/run_seed_{}.txt")


def model_and_pickle_in_the_folder(folder):
    """A small packed model, and a pickle that is only weights."""
    write_submission(folder)
    (folder / "final_model.int8.ptz").write_bytes(zlib.compress(bytes(1000)))
    (folder / "ema.pkl").write_bytes(pickle.dumps({"w": [1.0, 2.0]}))


def names_and_words_of_the_world(folder):
    write_submission(folder)
    edit(
        folder / "README.md",
        "## Run",
        "Merci à tous · 谢谢 · 🚀 (no TTT, no n-gram cache, no val data in training)\n\n## Run",
    )
    change_claims(folder, author="Žofie Łukasik", name="Neuf couches — 九层")
    (folder / "courbe_d_apprentissage_é.svg").write_text("<svg/>")


def equal_to_one_digit_by_chance(folder):
    """Two seeds whose rounded figures agree, though the runs are two."""
    runs = (RUNS[0], replace(RUNS[1], loss=RUNS[0].loss + 2e-6), RUNS[2])
    write_submission(folder, runs)


def link_inside_the_folder(folder):
    (write_submission(folder) / "train.log").symlink_to("train_seed42.log")


def source_in_the_log(folder):
    """The first script writes its own text and the driver's table into the log, before any figure."""

    def lines(run, code):
        return [HONEST_SCRIPT, "=" * 100, "Running Python 3.12.3", "| 0  NVIDIA H100 80GB HBM3 |", *log_lines(run, code)]

    write_submission(folder, lines=lines)


def worst_seed_as_the_claim(folder):
    worst = max(RUNS, key=lambda run: run.bpb)
    write_submission(folder)
    change_claims(folder, val_bpb=round(worst.bpb, 8), val_loss=round(worst.loss, 8))
    edit(folder / "README.md", f"{mean([run.bpb for run in RUNS]):.4f}", f"{worst.bpb:.4f}")
    edit(folder / "README.md", "(3-seed mean)", "(worst of 3 seeds)")


def bytes_by_a_table_of_its_own(folder):
    """Nothing says how many bytes there are, and the loss is given by byte as well."""

    def lines(run, code):
        by_byte = run.bpb * math.log(2)
        return [
            *log_lines(run, code)[:-1],
            f"{EXACT} val_loss:{run.loss:.8f} val_bpb:{run.bpb:.8f} nats_per_byte:{by_byte:.8f}",
        ]

    write_submission(folder, each(tokens=TOKENS_8192, vocab=8192), lines=lines)


def older_results_in_the_readme(folder):
    """The README compares with earlier work, whose figures stand in no log of this folder."""
    write_submission(folder)
    table = "| Submission | val_bpb |\n|---|---|\n| Naive baseline | 1.2244 |\n| Ours at width 384 | 1.2061 |\n"
    table = f"## Compared with\n\n{table}\n"
    edit(folder / "README.md", "## Run", table + "## Run")


def syntax_of_a_newer_python(folder):
    """Quotes inside quotes, and a type that is named by a statement: Python 3.12."""
    line = '    print(f"steps {\'/\'.join([f\'{args.iterations}\'])} of {" ".join(["all"])}")\n'
    script = HONEST_SCRIPT.replace("class Block(", "type Ids = torch.Tensor\n\n\nclass Block(")
    write_submission(folder, script=script.replace("    torch.manual_seed(", line + "    torch.manual_seed("))


def json_of_its_own_shape(folder):
    """Keys in another order, extra keys, the seeds' results as a list."""
    data = claims(RUNS, len(HONEST_SCRIPT))
    data["seed_results"] = [{"seed": int(seed), **one} for seed, one in data["seed_results"].items()]
    data = {"notes": {"pod": "SECURE", "retries": 0}, **dict(reversed(list(data.items())))}
    (write_submission(folder) / "submission.json").write_text(json.dumps(data))
    (folder / "README.md").write_text(readme(RUNS, len(HONEST_SCRIPT), title="Nine plain layers (again)"))


STATIC_LEGAL = tuple(
    Case(build)
    for build in (
        plain_baseline,
        lzma_wrapper,
        wrapper_through_a_temporary_file,
        wrapper_through_linecache,
        wrapper_with_a_readable_copy_beside,
        native_source_in_the_packed_blob,
        data_preparation_beside,
        helper_that_is_counted,
        tail_cut_to_whole_windows,
        sliding_windows_over_every_token,
        launch_day_export,
        stops_at_600_14_seconds,
        calibrates_inside_its_reserve,
        caseops_tokens,
        timestamps_and_ranks,
        other_words_in_the_log,
        windows_line_ends_and_a_byte_order_mark,
        progress_bars_and_colours,
        seeds_as_a_dictionary,
        spread_of_the_population,
        spread_of_the_sample,
        few_digits,
        ablations_in_a_subfolder,
        diagnostics_after_the_score,
        all_phases_together_over_600_seconds,
        huge_log,
        five_seeds_all_disclosed,
        one_seed_without_a_time_limit,
        compressed_code_is_counted,
        logs_in_a_subfolder,
        model_and_pickle_in_the_folder,
        names_and_words_of_the_world,
        equal_to_one_digit_by_chance,
        link_inside_the_folder,
        source_in_the_log,
        worst_seed_as_the_claim,
        bytes_by_a_table_of_its_own,
        older_results_in_the_readme,
        syntax_of_a_newer_python,
        json_of_its_own_shape,
    )
)
