"""An honest submission in the contest's form, from which every case of the gallery differs in one thing.

All figures that a folder states follow from its runs: a case changes a run, a line of a log, or a file, and nothing else.
"""

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

TOKENS_1024, TOKENS_8192, TEXT_BYTES = 62_021_632, 40_540_160, 151_080_000
EXACT = "final_int8_zlib_roundtrip_exact"


@dataclass(frozen=True)
class Case:
    """A folder to review. `rules`: one of these must FAIL; empty: legal, nothing may FAIL. `dynamic`: the script is run."""

    build: Callable
    rules: frozenset = frozenset()
    dynamic: bool = False

    @property
    def name(self):
        return self.build.__name__


@dataclass(frozen=True)
class Run:
    """One seed's training and scoring as its log tells it; `hessians` in seconds, other times in milliseconds."""

    seed: int = 42
    loss: float = 2.07151234
    steps: int = 13_780
    train_ms: int = 600_042
    eval_ms: int = 91_377
    model: int = 15_861_204
    parameters: int = 17_059_912
    tokens: int = TOKENS_1024
    text_bytes: float = TEXT_BYTES
    shards: int = 80
    vocab: int = 1024
    hessians: float | None = None
    settings: tuple = (("matrix_lr", "0.04"), ("num_layers", "9"), ("train_seq_len", "1024"))

    @property
    def bpb(self):
        return self.loss / math.log(2) * self.tokens / self.text_bytes


RUNS = (
    Run(),
    Run(1337, 2.07298765, 13_774, 600_018, 91_402, 15_858_990),
    Run(7, 2.07120987, 13_791, 600_061, 91_215, 15_863_377),
)

HONEST_SCRIPT = '''"""A small transformer for eight cards: trains to the clock, packs, scores what it packed."""
import glob
import io
import os
import time
import zlib

import numpy as np
import sentencepiece as spm
import torch
import torch.nn.functional as F


class Hyperparameters:
    data_path = os.environ.get("DATA_PATH", "./data/datasets/fineweb10B_sp1024")
    train_files = os.path.join(data_path, "fineweb_train_*.bin")
    val_files = os.path.join(data_path, "fineweb_val_*.bin")
    tokenizer_path = os.environ.get("TOKENIZER_PATH", "./data/tokenizers/fineweb_1024_bpe.model")
    seed = int(os.environ.get("SEED", 1337))
    vocab_size = int(os.environ.get("VOCAB_SIZE", 1024))
    iterations = int(os.environ.get("ITERATIONS", 20000))
    max_wallclock_seconds = float(os.environ.get("MAX_WALLCLOCK_SECONDS", 600.0))
    train_seq_len = int(os.environ.get("TRAIN_SEQ_LEN", 1024))
    num_layers = int(os.environ.get("NUM_LAYERS", 9))
    model_dim = int(os.environ.get("MODEL_DIM", 512))
    matrix_lr = float(os.environ.get("MATRIX_LR", 0.04))
    gptq_reserve_seconds = float(os.environ.get("GPTQ_RESERVE_SECONDS", 0.0))


def load_shard(path):
    header = np.fromfile(path, dtype="<i4", count=256)
    if header[0] != 20240520 or header[1] != 1:
        raise ValueError(path)
    return torch.from_numpy(np.fromfile(path, dtype="<u2", count=int(header[2]), offset=1024).astype(np.int64))


def luts(path, size):
    sp = spm.SentencePieceProcessor(model_file=path)
    base, lead, bound = np.zeros(size, np.int16), np.zeros(size, bool), np.ones(size, bool)
    for i in range(sp.vocab_size()):
        if sp.is_control(i) or sp.is_unknown(i) or sp.is_unused(i):
            continue
        bound[i] = False
        piece = sp.id_to_piece(i)
        lead[i] = piece.startswith("\\u2581")
        base[i] = 1 if sp.is_byte(i) else len(piece.removeprefix("\\u2581").encode())
    return base, lead, bound


class Block(torch.nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.up, self.down = torch.nn.Linear(dim, 2 * dim), torch.nn.Linear(2 * dim, dim)

    def forward(self, x):
        return x + self.down(F.relu(self.up(F.rms_norm(x, x.shape[-1:]))).square())


class Net(torch.nn.Module):
    def __init__(self, args):
        super().__init__()
        self.embed = torch.nn.Embedding(args.vocab_size, args.model_dim)
        self.blocks = torch.nn.Sequential(*[Block(args.model_dim) for _ in range(args.num_layers)])

    def forward(self, ids, targets):
        logits = self.blocks(self.embed(ids)) @ self.embed.weight.T
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")


def batches(pattern, length):
    for path in sorted(glob.glob(pattern)):
        tokens = load_shard(path)
        for at in range(0, len(tokens) - length, length):
            part = tokens[at : at + length + 1]
            yield part[None, :-1], part[None, 1:]


def main():
    args = Hyperparameters()
    torch.manual_seed(args.seed)
    model = Net(args)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.matrix_lr)
    start = time.perf_counter()
    for step, (x, y) in enumerate(batches(args.train_files, args.train_seq_len)):
        if step == args.iterations or time.perf_counter() - start > args.max_wallclock_seconds:
            break
        optimizer.zero_grad()
        model(x, y).mean().backward()
        optimizer.step()
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    with open("final_model.int8.ptz", "wb") as f:
        f.write(zlib.compress(buffer.getvalue(), 9))
    with open("final_model.int8.ptz", "rb") as f:
        model.load_state_dict(torch.load(io.BytesIO(zlib.decompress(f.read()))))
    base, lead, bound = luts(args.tokenizer_path, args.vocab_size)
    nats = tokens = count = 0
    with torch.no_grad():
        for x, y in batches(args.val_files, args.train_seq_len):
            nats += model(x, y).double().sum().item()
            tokens += y.numel()
            count += int((base[y[0]] + (lead[y[0]] & ~bound[x[0]])).sum())
    loss = nats / tokens
    print(f"final_int8_zlib_roundtrip_exact val_loss:{loss:.8f} val_bpb:{loss / np.log(2) * tokens / count:.8f}")


if __name__ == "__main__":
    main()
'''


def log_lines(run, code, stages=()):
    """A log in the words of the contest's first script. `stages`: lines that stand before the score's."""
    total = run.model + code
    lines = [
        f"seed:{run.seed}",
        "world_size:8 grad_accum_steps:1",
        f"train_loader:dataset:fineweb10B_sp{run.vocab} train_shards:{run.shards}",
        f"val_loader:shards pattern=./data/datasets/fineweb10B_sp{run.vocab}/fineweb_val_*.bin tokens:{run.tokens}",
        f"model_params:{run.parameters}",
        *[f"{name}:{value}" for name, value in run.settings],
        *training_lines(run),
        f"stopping_early: wallclock_cap train_time:{run.train_ms}ms step:{run.steps}/20000",
        "peak memory allocated: 10184 MiB reserved: 10530 MiB",
    ]
    if run.hessians is not None:
        lines.append(f"gptq:collected 67 Hessians in {run.hessians:.1f}s")
    return [
        *lines,
        f"Serialized model int8+zlib: {run.model} bytes",
        f"Code size: {code} bytes",
        f"Total submission size int8+zlib: {total} bytes",
        *stages,
        f"final_int8_zlib_roundtrip val_loss:{run.loss:.4f} val_bpb:{run.bpb:.4f} eval_time:{run.eval_ms}ms",
        f"{EXACT} val_loss:{run.loss:.8f} val_bpb:{run.bpb:.8f}",
    ]


def training_lines(run):
    """Losses on the way, each pair of nats and bits over the same text."""
    lines, ratio = [], run.bpb / run.loss
    for part in (0.25, 0.5, 0.75, 1.0):
        step, ms, loss = int(run.steps * part), run.train_ms * part, run.loss + 0.6 * (1 - part) - 0.004
        lines.append(f"step:{step}/20000 train_loss:{loss + 0.011:.4f} train_time:{ms:.0f}ms step_avg:{ms / step:.2f}ms")
        timing = f"train_time:{ms:.0f}ms step_avg:{ms / step:.2f}ms"
        lines.append(f"step:{step}/20000 val_loss:{loss:.4f} val_bpb:{loss * ratio:.4f} {timing}")
    return lines


def frontier_log_lines(run, code, compressed=None, reserve=12.0):
    """A log in the words of the later scripts: settings in a block, several stages, test-time training at the end."""
    shown = [*run.settings, ("seed", str(run.seed)), ("vocab_size", str(run.vocab)), ("world_size", "8")]
    ratio, total = run.bpb / run.loss, run.model + (compressed or code)
    stages = [("pre-quantization post-ema", run.loss + 0.012, 7_312), ("quantized", run.loss + 0.037, 9_410)]
    sizes = [f"Code size: {code} bytes"]
    if compressed:
        sizes = [f"Code size (uncompressed): {code} bytes", f"Code size (compressed): {compressed} bytes"]
    return [
        "Hyperparameters:",
        *[f"  {name}: {value}" for name, value in shown],
        f"train_shards: {run.shards}",
        f"val_tokens: {run.tokens}",
        f"model_params:{run.parameters}",
        *([f"gptq:reserving {reserve:.0f}s, effective={600 - reserve:.0f}000ms"] if run.hessians is not None else []),
        *training_lines(run),
        f"stopping_early: wallclock_cap train_time: {run.train_ms}ms step: {run.steps}/20000",
        f"{stages[0][0]} val_loss:{stages[0][1]:.8f} val_bpb:{stages[0][1] * ratio:.8f} eval_time:{stages[0][2]}ms",
        *([f"gptq:collected 67 Hessians in {run.hessians:.1f}s"] if run.hessians is not None else []),
        f"Serialized model quantized+brotli: {run.model} bytes",
        *sizes,
        f"Total submission size quantized+brotli: {total} bytes",
        f"{stages[1][0]} val_loss:{stages[1][1]:.8f} val_bpb:{stages[1][1] * ratio:.8f} eval_time:{stages[1][2]}ms",
        f"quantized_ttt val_loss:{run.loss:.8f} val_bpb:{run.bpb:.8f} eval_time:{run.eval_ms}ms",
    ]


def claims(runs, code, std=statistics.stdev):
    """submission.json of these runs: means where one figure stands for all, the largest folder for the bytes."""
    data = {
        "author": "A. Participant",
        "github_id": "a-participant",
        "name": "Nine plain layers",
        "blurb": "Nine layers of width 512, int8 weights, zlib.",
        "date": "2026-04-02",
        "track": "10min_16mb",
        "val_loss": round(mean([run.loss for run in runs]), 8),
        "val_bpb": round(mean([run.bpb for run in runs]), 8),
        "bytes_total": max(run.model for run in runs) + code,
        "bytes_code": code,
        "seeds": [run.seed for run in runs],
        "seed_results": {
            str(run.seed): {
                "val_loss": round(run.loss, 8),
                "val_bpb": round(run.bpb, 8),
                "artifact_bytes": run.model + code,
                "steps": run.steps,
            }
            for run in runs
        },
        "hardware": "8xH100 80GB SXM",
    }
    if len(runs) > 1:
        data["val_bpb_std"] = round(std([run.bpb for run in runs]), 8)
    return data


def readme(runs, code, title="Nine plain layers"):
    """README.md of these runs."""
    rows = [f"| {run.seed} | {run.steps} | {run.loss:.4f} | {run.bpb:.4f} | {run.model + code:,} |" for run in runs]
    bpb = mean([run.bpb for run in runs])
    return "\n".join(
        [
            f"# Record: {title} - val_bpb {bpb:.4f} ({len(runs)}-seed mean)",
            "",
            f"**val_bpb = {bpb:.4f}** ({len(runs)}-seed mean) | 8xH100 SXM",
            "",
            "## Results",
            "",
            "| Seed | Steps | val_loss | val_bpb | Artifact bytes |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "## Run",
            "",
            "    SEED=42 torchrun --standalone --nproc_per_node=8 train_gpt.py",
            "",
            "## Included files",
            "",
            "- `train_gpt.py`, `submission.json`, one log for each seed",
            "",
        ]
    )


def mean(values):
    return sum(values) / len(values)


def write_submission(folder, runs=RUNS, script=HONEST_SCRIPT, lines=log_lines, code=None, log_name="train_seed{}.log"):
    """An honest folder of these runs. `lines`: (run, code bytes) -> log; `code`: bytes counted, by default the script's."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    data = script if isinstance(script, bytes) else script.encode()
    (folder / "train_gpt.py").write_bytes(data)
    code = len(data) if code is None else code
    (folder / "README.md").write_text(readme(runs, code))
    save_claims(folder, claims(runs, code))
    for run in runs:
        path = folder / log_name.format(run.seed)
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines(run, code)) + "\n")
    return folder


def each(**changes):
    """The three honest runs, all with these changes."""
    return tuple(replace(run, **changes) for run in RUNS)


def edit(path, old, new):
    """Replaces a text in a file that must have it."""
    text = Path(path).read_text()
    assert old in text, f"{path} has no {old!r}: the case changes nothing"
    Path(path).write_text(text.replace(old, new))


def save_claims(folder, data):
    (Path(folder) / "submission.json").write_text(json.dumps(data, indent=2) + "\n")


def change_claims(folder, **changes):
    """Other values in submission.json; None takes a key out."""
    path = Path(folder) / "submission.json"
    data = {**json.loads(path.read_text()), **changes}
    save_claims(folder, {key: value for key, value in data.items() if value is not None})
