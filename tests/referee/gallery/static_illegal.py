"""Folders that break one rule each, which files and logs alone show."""

import base64
import bz2
import json
import lzma
import os
import random
import zlib
from dataclasses import replace

from .base import (
    EXACT,
    HONEST_SCRIPT,
    RUNS,
    TOKENS_8192,
    Case,
    change_claims,
    claims,
    each,
    edit,
    frontier_log_lines,
    log_lines,
    mean,
    save_claims,
    write_submission,
)

CAP = 16_000_000
TEXT_BYTES_OFF = 151_080_000 * 1.006
AT_8192 = dict(
    vocab=8192, tokens=TOKENS_8192, parameters=35_944_536, settings=(("matrix_lr", "0.022"), ("num_layers", "11"))
)


def bulky(name, size, seed=5):
    """Python source of about `size` bytes that no compressor makes small: a table that a function looks up."""
    table = base64.b85encode(random.Random(seed).randbytes(size * 4 // 5)).decode()
    rows = [f'    "{table[at : at + 100]}",' for at in range(0, len(table), 100)]
    return "\n".join([f"{name} = (", *rows, ")", ""])


# Files


def script_missing(folder):
    (write_submission(folder) / "train_gpt.py").unlink()


def script_empty(folder):
    write_submission(folder, script="", code=52_000)


def script_does_not_parse(folder):
    write_submission(folder, script=HONEST_SCRIPT.replace("def main():", "def main(:"))


def readme_missing(folder):
    (write_submission(folder) / "README.md").unlink()


def json_missing(folder):
    (write_submission(folder) / "submission.json").unlink()


def logs_missing(folder):
    for path in write_submission(folder).glob("*.log"):
        path.unlink()


def json_is_no_json(folder):
    path = write_submission(folder) / "submission.json"
    path.write_text(path.read_text().replace('"seeds"', "seeds"))


def json_without_its_score(folder):
    change_claims(write_submission(folder), val_bpb=None)


def json_score_in_words(folder):
    change_claims(write_submission(folder), val_bpb="see README")


# Claims


def json_digit_off(folder):
    change_claims(write_submission(folder), val_bpb=round(mean([run.bpb for run in RUNS]) - 0.0002, 6))


def json_loss_of_another_stage(folder):
    change_claims(write_submission(folder), val_loss=round(RUNS[0].loss - 0.004, 8))


def json_seed_result_off(folder):
    data = claims(RUNS, len(HONEST_SCRIPT))
    data["seed_results"]["7"]["val_bpb"] -= 0.0011
    save_claims(write_submission(folder), data)


def json_total_understated(folder):
    change_claims(write_submission(folder), bytes_total=15_000_000)


def json_spread_understated(folder):
    change_claims(write_submission(folder), val_bpb_std=0.00003)


def json_says_evaluation_was_in_time(folder):
    runs = each(eval_ms=741_200)
    change_claims(write_submission(folder, runs), compliance={"train_under_600s": True, "eval_under_600s": True})


def three_seeds_from_one_log(folder):
    change_claims(write_submission(folder, RUNS[:1]), compliance={"three_seeds": True})


def json_names_a_seed_without_log(folder):
    write_submission(folder)
    (folder / "train_seed7.log").unlink()


def readme_digit_off(folder):
    edit(write_submission(folder) / "README.md", f"| {RUNS[1].bpb:.4f} |", f"| {RUNS[1].bpb - 0.0013:.4f} |")


def readme_nats_off(folder):
    edit(write_submission(folder) / "README.md", f"| {RUNS[2].loss:.4f} |", f"| {RUNS[2].loss - 0.0101:.4f} |")


def offset_taken_off_the_headline(folder):
    """A 'pod correction' of 0.0021 in the headline and in the JSON; the logs print what they print."""
    write_submission(folder)
    honest = mean([run.bpb for run in RUNS])
    change_claims(folder, val_bpb=round(honest - 0.0021, 8), val_loss=None)
    edit(folder / "README.md", f"{honest:.4f}", f"{honest - 0.0021:.4f}")
    edit(folder / "README.md", "## Results", "All figures are corrected by -0.0021 for the slow pod.\n\n## Results")


# Bytes


def over_the_cap_on_one_seed(folder):
    write_submission(folder, (RUNS[0], replace(RUNS[1], model=CAP - 1_000), RUNS[2]))


def over_the_cap_in_mebibytes(folder):
    """16 MiB is not 16 MB."""
    write_submission(folder, each(model=16_740_000))


def total_that_does_not_add_up(folder):
    """Model and code are over the cap; the line of the total is not."""

    def lines(run, code):
        return [
            "Total submission size int8+zlib: 15981234 bytes" if line.startswith("Total") else line
            for line in log_lines(replace(run, model=15_998_700), code)
        ]

    write_submission(folder, lines=lines)
    change_claims(folder, bytes_total=15_981_234, seed_results=None)


def code_claimed_far_too_small(folder):
    """137 KB of code that does not compress, of which the log states 2 KB."""
    script = HONEST_SCRIPT + bulky("PRIMES", 130_000)
    write_submission(folder, each(model=15_950_000), script=script, code=2_048)


def stub_that_runs_its_sibling(folder):
    stub = 'exec(compile(open("run_model.py").read(), "run_model.py", "exec"))\n'
    write_submission(folder, each(model=15_970_000), script=stub)
    (folder / "run_model.py").write_text(HONEST_SCRIPT + bulky("SHAPES", 74_000))


def sibling_that_is_imported(folder):
    script = HONEST_SCRIPT.replace("import torch.nn.functional as F", "import torch.nn.functional as F\nimport tables_v3")
    script = script.replace("    args = Hyperparameters()\n", "    args = Hyperparameters()\n    tables_v3.fill(args)\n")
    write_submission(folder, each(model=15_985_000), script=script)
    (folder / "tables_v3.py").write_text(bulky("ROWS", 40_000) + "\n\ndef fill(args):\n    args.rows = ROWS\n")


def native_source_uncounted(folder):
    loads = 'from torch.utils.cpp_extension import load\n\nfused = load("fused", ["fused_scan.cu"])\n\n\nclass Block('
    script = HONEST_SCRIPT.replace("class Block(", loads)
    write_submission(folder, each(model=15_975_000), script=script)
    rows = [f"__constant__ float t{i} = {random.Random(i).random()}f;" for i in range(1_800)]
    (folder / "fused_scan.cu").write_text("\n".join(["#include <cuda.h>", *rows, "__global__ void scan(float *x) {}", ""]))


def library_of_its_own_uncounted(folder):
    """A compiled library that the script loads; with its 90 KB the folder is over the cap."""
    loads = "import ctypes\n\nfast = ctypes.CDLL(os.path.join(os.path.dirname(__file__), 'libscan.so'))\n\n\nclass Block("
    write_submission(folder, each(model=15_940_000), script=HONEST_SCRIPT.replace("class Block(", loads))
    (folder / "libscan.so").write_bytes(b"\x7fELF" + random.Random(2).randbytes(90_000))


def model_file_over_the_cap(folder):
    """The log's model is small; the model that lies in the folder is not."""
    write_submission(folder)
    with open(folder / "final_model.int8.ptz", "wb") as f:
        f.write(zlib.compress(b"model"))
        f.truncate(16_400_000)


# Time


def train_612_seconds(folder):
    write_submission(folder, each(train_ms=612_310))


def one_seed_trains_too_long(folder):
    write_submission(folder, (*RUNS[:2], replace(RUNS[2], train_ms=603_877)))


def hessians_after_the_clock(folder):
    write_submission(folder, each(train_ms=600_031, hessians=4.7))


def train_and_hessians_604_seconds(folder):
    write_submission(folder, each(train_ms=591_550, hessians=12.8), lines=frontier_log_lines)


def evaluation_688_seconds(folder):
    write_submission(folder, each(eval_ms=688_104))


def adapting_evaluation_616_seconds(folder):
    runs = each(train_ms=587_800, hessians=11.9, eval_ms=616_020)
    write_submission(folder, runs, lines=frontier_log_lines)


# The metric and its text


def implied_bytes_157_million(folder):
    write_submission(folder, each(text_bytes=157_330_000))


def implied_bytes_176_million(folder):
    write_submission(folder, each(text_bytes=176_310_000, **AT_8192))


def implied_bytes_165_million(folder):
    runs = each(text_bytes=164_600_000, train_ms=587_800, hessians=11.9, **AT_8192)
    write_submission(folder, runs, lines=frontier_log_lines)


def implied_bytes_off_in_the_last_stage_only(folder):
    """Training prints honest pairs; only the headline's bits are over 0.6 % more bytes."""

    def lines(run, code):
        shown, counted = f"val_bpb:{run.bpb:.8f}", f"val_bpb:{run.bpb / 1.006:.8f}"
        return [line.replace(shown, counted) for line in log_lines(run, code)]

    runs = each(text_bytes=TEXT_BYTES_OFF)
    write_submission(folder, lines=lines)
    data = claims(runs, len(HONEST_SCRIPT))
    save_claims(folder, data)
    for honest, counted in zip(RUNS, runs, strict=True):
        edit(folder / "README.md", f"| {honest.bpb:.4f} |", f"| {counted.bpb:.4f} |")
    edit(folder / "README.md", f"{mean([one.bpb for one in RUNS]):.4f}", f"{data['val_bpb']:.4f}")


def constant_bytes_a_token(folder):
    """Bits by 3.5 bytes a token."""
    write_submission(folder, each(text_bytes=3.5 * TOKENS_8192, **AT_8192))


def partial_validation(folder):
    """Three million of the 62 million tokens, said by the loader's own line."""
    write_submission(folder, each(tokens=3_000_320, text_bytes=3_000_320 * 2.4359))


def validation_split_again(folder):
    """The tokens that four parallel workers cut (each its own first documents)."""
    runs = each(**{**AT_8192, "tokens": 36_562_944}, text_bytes=36_562_944 * 3.7267)
    write_submission(folder, runs, lines=frontier_log_lines)


# Seeds


def parameters_differ_between_seeds(folder):
    write_submission(folder, (*RUNS[:2], replace(RUNS[2], parameters=17_584_200)))


def settings_differ_between_seeds(folder):
    other = (("matrix_lr", "0.05"), ("num_layers", "9"), ("train_seq_len", "1024"))
    write_submission(folder, (RUNS[0], replace(RUNS[1], settings=other), RUNS[2]), lines=frontier_log_lines)


def one_log_under_two_seeds(folder):
    """Seed 7's log is seed 42's with the number of the seed changed."""
    write_submission(folder, (*RUNS[:2], replace(RUNS[0], seed=7)))


def borrowed_third_seed(folder):
    """The third log is another script's: its code is 1,806 bytes larger."""

    def lines(run, code):
        return log_lines(run, code + (1_806 if run.seed == 7 else 0))

    write_submission(folder, lines=lines)


def seeds_on_other_machines(folder):
    """The third seed ran on four cards."""

    def lines(run, code):
        cards = "world_size:4 grad_accum_steps:2" if run.seed == 7 else "world_size:8 grad_accum_steps:1"
        return [cards if line.startswith("world_size") else line for line in log_lines(run, code)]

    write_submission(folder, lines=lines)


def log_of_another_script(folder):
    write_submission(folder, lines=lambda run, code: log_lines(run, code + 36))
    change_claims(folder, bytes_code=len(HONEST_SCRIPT))


# Wrappers and hostile content


def kernels_under_exec(folder):
    """Triton finds no source for a kernel that exec() defined."""
    source = HONEST_SCRIPT.replace(
        "import torch\n",
        "import torch\nimport triton\nimport triton.language as tl\n\n\n"
        "@triton.jit\ndef scale(x, n, block: tl.constexpr):\n"
        "    i = tl.program_id(0) * block + tl.arange(0, block)\n"
        "    tl.store(x + i, tl.load(x + i, mask=i < n) * 2, mask=i < n)\n\n",
        1,
    )
    packed = base64.b85encode(lzma.compress(source.encode())).decode()
    write_submission(folder, script=f'import lzma,base64\nexec(lzma.decompress(base64.b85decode("{packed}")))\n')


def wrapper_with_half_its_payload(folder):
    packed = base64.b64encode(zlib.compress(HONEST_SCRIPT.encode(), 9)).decode()
    half = packed[: len(packed) // 8 * 4]
    write_submission(folder, script=f'import zlib,base64\nexec(zlib.decompress(base64.b64decode("{half}")))\n')


def wrapper_of_text_that_does_not_parse(folder):
    packed = base64.b85encode(zlib.compress(HONEST_SCRIPT.replace("for i in", "for i of").encode(), 9)).decode()
    write_submission(folder, script=f"import zlib, base64\nexec(zlib.decompress(base64.b85decode({packed!r})).decode())\n")


def link_out_of_the_folder(folder):
    os.symlink("/etc/hostname", write_submission(folder) / "tokenizer.json")


def link_up_and_out(folder):
    os.symlink("../../..", write_submission(folder) / "data")


def unpacks_to_gigabytes(folder):
    """A chain of bzip2 streams of zeros: 4.7 GB from a few kilobytes."""
    bomb = bz2.compress(bytes(45 << 20)) * 100
    script = f"import base64, bz2\nexec(bz2.decompress(base64.b64decode({base64.b64encode(bomb).decode()!r})))\n"
    write_submission(folder, script=script)


def control_characters_in_a_name(folder):
    (write_submission(folder) / "train\x1b[2J\rPASS.log").write_text("seed:1\n")


def fifo_in_place_of_a_log(folder):
    """Whoever opens it waits for ever: a seed's log that cannot be read is no log."""
    write_submission(folder)
    (folder / "train_seed42.log").unlink()
    os.mkfifo(folder / "train_seed42.log")


def json_nested_without_end(folder):
    path = write_submission(folder) / "submission.json"
    path.write_text('{"val_bpb": ' + "[" * 200_000 + "]" * 200_000 + "}")


def json_score_is_infinite(folder):
    path = write_submission(folder) / "submission.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "val_bpb": float("nan")}))


def headline_line_edited_by_hand(folder):
    """The exact line says less than the line above it, which was printed from the same number."""

    def lines(run, code):
        ratio = (run.loss - 0.05) / run.loss
        edited = f"{EXACT} val_loss:{run.loss - 0.05:.8f} val_bpb:{run.bpb * ratio * 0.995:.8f}"
        return [*log_lines(run, code)[:-1], edited]

    write_submission(folder, lines=lines)
    save_claims(folder, claims(each_edited(), len(HONEST_SCRIPT)))
    (folder / "README.md").write_text("# Record: see the logs\n")


def each_edited():
    """The runs as the edited lines of `headline_line_edited_by_hand` have them."""
    return tuple(replace(run, loss=run.loss - 0.05, text_bytes=run.text_bytes / 0.995) for run in RUNS)


def breaks(*rules):
    return frozenset(rules)


STATIC_ILLEGAL = (
    Case(script_missing, breaks("G1")),
    Case(script_empty, breaks("G1", "G6")),
    Case(script_does_not_parse, breaks("G6")),
    Case(readme_missing, breaks("G1")),
    Case(json_missing, breaks("G1", "G2")),
    Case(logs_missing, breaks("G1")),
    Case(json_is_no_json, breaks("G2")),
    Case(json_without_its_score, breaks("G2")),
    Case(json_score_in_words, breaks("G2", "G3")),
    Case(json_digit_off, breaks("G3", "S8")),
    Case(json_loss_of_another_stage, breaks("G3")),
    Case(json_seed_result_off, breaks("G3")),
    Case(json_total_understated, breaks("G3")),
    Case(json_spread_understated, breaks("G3")),
    Case(json_says_evaluation_was_in_time, breaks("T4", "G3")),
    Case(three_seeds_from_one_log, breaks("G3", "S3")),
    Case(json_names_a_seed_without_log, breaks("G1", "G3", "S3")),
    Case(readme_digit_off, breaks("G4")),
    Case(readme_nats_off, breaks("G4")),
    Case(offset_taken_off_the_headline, breaks("S8")),
    Case(over_the_cap_on_one_seed, breaks("A1")),
    Case(over_the_cap_in_mebibytes, breaks("A1")),
    Case(total_that_does_not_add_up, breaks("A1")),
    Case(code_claimed_far_too_small, breaks("A1", "A3", "G5")),
    Case(stub_that_runs_its_sibling, breaks("A1", "A2")),
    Case(sibling_that_is_imported, breaks("A1", "A2")),
    Case(native_source_uncounted, breaks("A1", "A2", "A4")),
    Case(library_of_its_own_uncounted, breaks("A1", "A2", "A4")),
    Case(model_file_over_the_cap, breaks("A1")),
    Case(train_612_seconds, breaks("T1", "T2")),
    Case(one_seed_trains_too_long, breaks("T1", "T2")),
    Case(hessians_after_the_clock, breaks("T2")),
    Case(train_and_hessians_604_seconds, breaks("T2")),
    Case(evaluation_688_seconds, breaks("T4")),
    Case(adapting_evaluation_616_seconds, breaks("T4")),
    Case(implied_bytes_157_million, breaks("M1")),
    Case(implied_bytes_176_million, breaks("M1")),
    Case(implied_bytes_165_million, breaks("M1")),
    Case(implied_bytes_off_in_the_last_stage_only, breaks("M1")),
    Case(constant_bytes_a_token, breaks("M1", "M7")),
    Case(partial_validation, breaks("D4", "D7", "M1")),
    Case(validation_split_again, breaks("D4", "D7", "M1")),
    Case(parameters_differ_between_seeds, breaks("S3")),
    Case(settings_differ_between_seeds, breaks("S3")),
    Case(one_log_under_two_seeds, breaks("S3")),
    Case(borrowed_third_seed, breaks("S3", "G5")),
    Case(seeds_on_other_machines, breaks("S3")),
    Case(log_of_another_script, breaks("G5")),
    Case(kernels_under_exec, breaks("G6")),
    Case(wrapper_with_half_its_payload, breaks("G6")),
    Case(wrapper_of_text_that_does_not_parse, breaks("G6")),
    Case(link_out_of_the_folder, breaks("G7")),
    Case(link_up_and_out, breaks("G7")),
    Case(unpacks_to_gigabytes, breaks("G7", "G6")),
    Case(control_characters_in_a_name, breaks("G7")),
    Case(fifo_in_place_of_a_log, breaks("G1", "G3", "G7", "S3")),
    Case(json_nested_without_end, breaks("G2")),
    Case(json_score_is_infinite, breaks("G2", "G3")),
    Case(headline_line_edited_by_hand, breaks("M1", "S8")),
)
