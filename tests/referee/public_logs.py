"""Logs of our own making with the figures of five public submissions, as their fact sheets give them (PR numbers of
openai/parameter-golf), and the JSON and README tables that go with them."""

import json

SP1024 = "fineweb10B_sp1024", 62_021_632
SP8192 = "fineweb10B_sp8192", 40_540_160


def base_log(seed, data, parameters, steps, train_ms, last, settings="matrix_lr:0.02 scalar_lr:0.02"):
    """The head of a log, as the contest's first script prints it, up to the end of training."""
    name, tokens = data
    return [
        "W0326 15:57:53.070000 95725 torch/distributed/run.py:803] ****",
        f"train_loader:dataset:{name} train_shards:80",
        f"val_loader:shards pattern=./data/datasets/{name}/fineweb_val_*.bin tokens:{tokens}",
        f"model_params:{parameters}",
        "world_size:8 grad_accum_steps:1",
        f"tie_embeddings:True {settings}",
        "train_batch_tokens:786432 train_seq_len:2048 iterations:20000 warmup_steps:20 max_wallclock_seconds:600.000",
        f"seed:{seed}",
        "warmup_step:20/20",
        "step:0/20000 val_loss:6.9300 val_bpb:4.1043 train_time:0ms step_avg:0.01ms",
        "step:1/20000 train_loss:6.9312 train_time:140ms step_avg:140.28ms",
        f"step:{steps}/20000 {last} train_time:{train_ms}ms step_avg:{train_ms / steps:.2f}ms",
        f"stopping_early: wallclock_cap train_time:{train_ms}ms step:{steps}/20000",
        "peak memory allocated: 22669 MiB reserved: 22812 MiB",
    ]


def later_log(seed, parameters, steps, train_ms, last, hessian, settings):
    """The head of a log as the later scripts print it: settings line by line, spaces after colons."""
    return [
        "Hyperparameters:",
        *(f"  {name}: {value}" for name, value in {**settings, "seed": seed, "world_size": 8}.items()),
        "train_shards: 80",
        "val_tokens: 40540160",
        f"model_params:{parameters}",
        "gptq:reserving 12s, effective=588000ms",
        "0/20000 val_loss: 9.0072 val_bpb: 3.4869",
        "500/20000 train_loss: 3.3749 train_time: 0.9m tok/s: 7669991",
        f"{steps}/20000 {last}",
        f"stopping_early: wallclock_cap train_time: {train_ms}ms step: {steps}/20000",
        "peak memory allocated: 39046 MiB reserved: 39100 MiB",
        f"GPTQ:collected 67 Hessians in {hessian}s",
    ]


def pr162(folder):
    """#162: three seeds, int6 and sliding windows. Honest figures."""
    rows = {
        1337: (7379, 600_050, 1.1616, "1.93492097", "1.14597222", 15_810_407, 155.2),
        42: (7385, 600_060, 1.1622, "1.93591485", "1.14656085", 15_865_061, 154.9),
        7: (7393, 600_070, 1.1611, "1.93314046", "1.14491770", 15_892_664, 155.3),
    }
    for seed, (steps, ms, raw, nats, bpb, model, seconds) in rows.items():
        lines = base_log(seed, SP1024, 22_368_841, steps, ms, f"val_loss:{raw * 1.68847:.4f} val_bpb:{raw:.4f}")
        lines += [
            "Serialized model: 87413467 bytes",
            "Code size: 52243 bytes",
            f"Serialized model int6+zstd: {model} bytes",
            f"Total submission size int6+zstd: {model + 52243} bytes",
            f"final_int8_zlib_roundtrip val_loss:{float(nats):.4f} val_bpb:{float(bpb):.4f} eval_time:{seconds}s",
            f"final_int8_zlib_roundtrip_exact val_loss:{nats} val_bpb:{bpb}",
        ]
        write_log(folder, seed, lines)
    claims = {"author": "A", "github_id": "a", "name": "Int6", "date": "2026-03-20", "val_loss": 1.93465876}
    claims |= {"val_bpb": 1.14581692, "bytes_total": 15_862_650, "bytes_code": 52_243}
    table = ["| Seed | Steps | val_bpb | Artifact |", "|---|---|---|---|"]
    table += [f"| {seed} | {row[0]:,} | {float(row[4]):.4f} | {row[5] + 52243:,} |" for seed, row in rows.items()]
    write_claims(folder, claims, ["# Int6 — val_bpb 1.1458", "", *table, "| **Mean** | 7,386 | **1.1458** | |"])


def pr864(folder):
    """#864: the un-normalised cache; one seed ran another width."""
    rows = {
        1337: (26_744_007, 6774, 600_055, 1.1202, 1.1193, 1.1218, "1.90443578", "1.12791767", "0.47961142", "0.28405290",
               15_760_794, (70.712, 70.715, 86.810, 416.328)),
        42: (26_809_543, 6772, 600_100, 1.1203, 1.1194, 1.1219, "1.90394989", "1.12762990", "0.47955438", "0.28401911",
             15_831_318, (70.5, 70.4, 74.7, 417.1)),
        2024: (26_809_543, 6769, 600_080, 1.1200, 1.1191, 1.1216, "1.90442151", "1.12790922", "0.47954909", "0.28401598",
               15_813_477, (71.1, 71.0, 75.4, 418.9)),
    }  # fmt: skip
    for seed, (parameters, steps, ms, raw, ema, swa, nats, bpb, cached, low, model, times) in rows.items():
        lines = base_log(seed, SP1024, parameters, steps, ms, f"val_loss:{raw * 1.68847:.4f} val_bpb:{raw:.4f}")
        lines += [
            f"raw model val_bpb:{raw:.4f}",
            f"ema_eval val_bpb:{ema:.4f} eval_time:{times[0] * 1000:.0f}ms",
            f"swa_eval val_bpb:{swa:.4f} eval_time:{times[1] * 1000:.0f}ms",
            f"Using ema weights (val_bpb={ema})",
            "Serialized model: 105695762 bytes",
            "Code size: 93397 bytes",
            f"Serialized model int6+zstd: {model} bytes (payload:27627290 raw_torch:27693135 payload_ratio:3.82x)",
            f"Total submission int6+zstd: {model + 93397} bytes",
            f"final_int6_zstd_roundtrip val_loss:{float(nats):.4f} val_bpb:{float(bpb):.4f} eval_time:{times[2]}s",
            f"final_int6_zstd_roundtrip_exact val_loss:{nats} val_bpb:{bpb}",
            f"final_int8_zlib_roundtrip_exact val_loss:{nats} val_bpb:{bpb}",
            "Starting N-gram eval: order 2-9, buckets=4194304, chunk=65536",
            "  ngram_chunk [0/947] bpb=1.175644 time=0.6s",
            "  ngram_chunk [940/947] bpb=0.285364 time=403.5s",
            f"ngram_eval:done val_loss={float(cached):.6f} val_bpb={float(low):.6f} elapsed={times[3] - 0.7:.1f}s",
            f"ngram_eval val_loss:{float(cached):.4f} val_bpb:{float(low):.4f} eval_time:{times[3] * 1000:.0f}ms",
            f"ngram_eval_exact val_loss:{cached} val_bpb:{low}",
        ]
        write_log(folder, seed, lines)
    claims = {"author": "B", "github_id": "b", "name": "N-gram", "val_loss": 0.4796, "val_bpb": 0.2841}
    claims |= {"val_bpb_std": 0.0001, "bytes_total": 15_924_715, "bytes_code": 93_397}
    claims["seeds"] = {
        str(seed): {"val_bpb": round(float(row[9]), 4), "val_loss": round(float(row[8]), 4), "steps": row[1]}
        for seed, row in rows.items()
    }
    table = ["| Seed | step_avg | steps | EMA bpb | Quantized bpb | **N-gram bpb** |", "|------|---|---|---|---|---|"]
    table += [
        f"| {seed} | {row[2] / row[1]:.1f}ms | {row[1]:,} | {row[4]} | {float(row[7]):.4f} | **{float(row[9]):.4f}** |"
        for seed, row in rows.items()
    ]
    table.append("| **Mean** | **88.6ms** | **6,772** | **1.1193** | **1.1278** | **0.2840** |")
    write_claims(folder, claims, ["# Record: N-gram — val_bpb 0.2841", "", "**3-seed mean val_bpb: 0.2841**", "", *table])


def pr1205(folder):
    """#1205: short logs without validation tokens and without the time of calibration."""
    rows = {
        1337: (5538, 591_105, "1.96830942", "1.16574371", "1.92898083", "1.14245413", 15_842_252),
        42: (5572, 591_111, "1.97026917", "1.16690438", "1.93118079", "1.14375707", 15_832_143),
        2024: (5576, 591_074, "1.96731299", "1.16515357", "1.93000102", "1.14305834", 15_839_117),
    }
    for seed, (steps, ms, loss, roundtrip, nats, bpb, model) in rows.items():
        lines = [
            "model_params:31617116",
            "world_size:8 grad_accum_steps:1",
            "tie_embeddings:True embed_lr:0.035 head_lr:0.0 matrix_lr:0.03 scalar_lr:0.03",
            f"seed:{seed}",
            "gptq:reserving 9000ms from training budget (effective cap: 591000ms)",
            "step:1/20000 train_loss:6.9328 train_time:4225ms step_avg:4224.89ms",
            f"step:{steps}/20000 train_time:{ms}ms step_avg:{ms / steps:.2f}ms",
            f"stopping_early: wallclock_cap train_time:{ms}ms step:{steps}/20000",
            "selective_prune: pruning 2585273/12560353 values (20.6%) to fit 16.00MB",
            f"Serialized model int6+brotli: {model} bytes",
            f"Total submission size int6+brotli: {model + 146041} bytes",
            f"final_int6_roundtrip val_loss:{float(loss):.4f} val_bpb:{float(roundtrip):.4f}",
            f"final_int6_roundtrip_exact val_loss:{loss} val_bpb:{roundtrip}",
            f"final_int6_sliding_window val_loss:{float(nats):.4f} val_bpb:{float(bpb):.4f} stride:64",
            f"final_int6_sliding_window_exact val_loss:{nats} val_bpb:{bpb}",
        ]
        write_log(folder, seed, lines)
    claims = {"name": "C", "github": "c", "val_bpb": 1.1431, "val_bpb_mean": 1.1431, "val_bpb_std": 0.0007}
    claims |= {"seeds": {"1337": 1.1425, "42": 1.1438, "2024": 1.1431}, "artifact_bytes": 15_985_158, "code_bytes": 146_041}
    claims |= {"total_bytes": 15_985_158, "steps": 5562}
    write_claims(folder, claims, ["# Turbo-Muon", "", "| Seed | bpb |", "|---|---|", "| 1337 | 1.1425 |", "| 42 | 1.1438 |"])


def pr1514(folder, beside=True):
    """#1514: calibration past 600 s; `beside`: with the two files that its byte count leaves out."""
    rows = {
        0: (
            4911,
            "1.08686596",
            "1.09772268",
            "1.08101969",
            "2.78790132",
            "1.07928348",
            15_973_959,
            (8.7, 91.8, 33.0, 341.8),
        ),
        42: (
            4915,
            "1.08754313",
            "1.09822152",
            "1.08166767",
            "2.78966630",
            "1.07996676",
            15_973_608,
            (8.4, 91.5, 32.3, 330.4),
        ),
        1234: (
            4909,
            "1.08782544",
            "1.09857074",
            "1.08193551",
            "2.79039264",
            "1.08024795",
            15_975_217,
            (8.8, 91.7, 32.3, 335.2),
        ),
    }
    settings = {"muon_momentum": 0.97, "loop_start": 3, "ttt_lr": 0.005, "ngram_tilt_enabled": True}
    for seed, (steps, ema, quantized, sliding, nats, bpb, model, times) in rows.items():
        lines = later_log(seed, 35_944_536, steps, 588_050, "val_loss: 2.8146 val_bpb: 1.0896", 12.8, settings)
        lines += [
            f"pre-quantization post-ema val_loss:{loss_of(ema)} val_bpb:{ema} eval_time:6365ms",
            "Serialized model: 135426937 bytes",
            "Code size: 19387 bytes",
            f"Serialized model quantized+brotli: {model} bytes",
            f"Total submission size quantized+brotli: {model + 19387} bytes",
            f"quantized val_loss:{loss_of(quantized)} val_bpb:{quantized} eval_time:{times[0] * 1000:.0f}ms",
            f"quantized_sliding_window val_loss:{loss_of(sliding)} val_bpb:{sliding} eval_time:{times[1] * 1000:.0f}ms",
            f"ngram_tilt: hints precomputed in {times[2]}s",
            f"ttt_sliding:done val_loss={float(nats):.6f} val_bpb={float(bpb):.6f} elapsed={times[3] - 0.2:.1f}s",
            f"legal_ttt_exact val_loss:{nats} val_bpb:{bpb} eval_time:{times[3] * 1000:.0f}ms",
        ]
        write_log(folder, seed, lines)
    claims = {"author": "D", "github_id": "d", "name": "Tilt", "date": "2026-04-10", "val_bpb": 1.07983273}
    claims |= {"val_bpb_std": 0.000496, "bytes_total": 15_993_648, "bytes_code": 19_387, "seeds": [0, 42, 1234]}
    claims["seed_results"] = {str(seed): {"val_bpb": float(row[5]), "val_loss": float(row[4])} for seed, row in rows.items()}
    claims["compliance"] = {"train_under_600s": True, "eval_under_600s": True, "three_seeds": True}
    write_claims(folder, claims, ["# Tilt — val_bpb 1.07983 (3-seed mean)"])
    if beside:
        kernel = (
            'import subprocess\nsubprocess.run(["g++", "-O3", "-shared", "fused_expert_kernel.cpp", "-o", "expert.so"])\n'
        )
        (folder / "train_gpt.py").write_text(padded("import ngram_tilt\n", 19_387))
        (folder / "ngram_tilt.py").write_text(padded(kernel, 8624))
        (folder / "fused_expert_kernel.cpp").write_text("// a kernel\n".ljust(18_406, "/"))


def pr1523(folder):
    """#1523: calibration past 600 s, totals that count raw source, README columns that no log shows."""
    rows = {
        1337: (4737, "1.08482083", "1.09562225", "1.07862850", "2.78236563", "1.07714044", 15_959_849, (27.1, 123.2, 403.2)),
        42: (4705, "1.08493662", "1.09686014", "1.07986449", "2.78341372", "1.07754619", 15_968_975, (9.1, 92.5, 330.3)),
        2024: (4698, "1.08604032", "1.09814866", "1.08112335", "2.78628206", "1.07865661", 15_962_060, (9.1, 92.5, 324.1)),
    }
    settings = {"muon_momentum": 0.97, "matrix_lr": 0.022, "ttt_lr": 0.01, "hash_embed_enabled": True}
    for at, (seed, (steps, ema, quantized, sliding, nats, bpb, model, times)) in enumerate(rows.items()):
        lines = later_log(seed, 35_944_537, steps, 588_150 + 30 * at, "val_loss: 2.8061 val_bpb: 1.0864", 12.4, settings)
        lines += [
            f"pre-quantization post-ema val_loss:{loss_of(ema)} val_bpb:{ema} eval_time:6365ms",
            "Serialized model: 135426937 bytes",
            "Code size: 63396 bytes",
            f"Serialized model quantized+brotli: {model} bytes",
            f"Total submission size quantized+brotli: {model + 63396} bytes",
            f"quantized val_loss:{loss_of(quantized)} val_bpb:{quantized} eval_time:{times[0] * 1000:.0f}ms",
            f"quantized_sliding_window val_loss:{loss_of(sliding)} val_bpb:{sliding} eval_time:{times[1] * 1000:.0f}ms",
            f"quantized_ttt val_loss:{nats} val_bpb:{bpb} eval_time:{times[2] * 1000:.0f}ms",
        ]
        write_log(folder, seed, lines)
    claims = {"author": "E", "github_id": "e", "name": "Banking", "date": "2026-04-11", "val_bpb": 1.0778}
    claims |= {"val_bpb_std": 0.0008, "seeds": [1337, 42, 2024]}
    table = [
        "| Seed | Steps | Pre-quant BPB | Sliding BPB | **TTT BPB** |",
        "|---|---|---|---|---|",
        "| 1337 | 4737 | 1.0848 | 1.0786 | **1.0771** |",
        "| 42 | 4705 | 1.0856 | 1.0792 | **1.0775** |",
        "| 2024 | 4698 | 1.0862 | 1.0798 | **1.0787** |",
        "| **Mean** | 4713 | 1.0855 | 1.0792 | **1.0778** |",
    ]
    write_claims(folder, claims, ["# Record: Banking - val_bpb 1.0778 (3-seed mean)", "", *table])


def padded(text, size):
    """Python text of that many bytes."""
    return text + "# ".ljust(size - len(text) - 1, "x") + "\n"


def loss_of(bpb):
    """Nats a token of the 8,192-piece validation text, as a log prints them."""
    return f"{float(bpb) * 0.693147180560 * 151_078_222 / 40_540_160:.8f}"


def write_log(folder, seed, lines):
    """One seed's log."""
    (folder / f"train_seed{seed}.log").write_text("\n".join(lines) + "\n")


def write_claims(folder, values, readme):
    """submission.json and README.md."""
    (folder / "submission.json").write_text(json.dumps(values, indent=2))
    (folder / "README.md").write_text("\n".join(readme) + "\n")
