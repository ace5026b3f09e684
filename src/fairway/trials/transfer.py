"""Which fields keep their best value from a search on fewer GPUs, and so on fewer steps, to eight: by path, as measured."""

from fnmatch import fnmatchcase

FEWER_STEPS = "fewer GPUs take fewer steps in the same time, and this is counted in steps or in shares of them"
# (paths, whether the best value is the same on eight GPUs, why, where that was found); the first that fits is taken.
# #N are pull requests of openai/parameter-golf.
TRANSFERS = (
    (
        ("average", "average.*"), False,
        f"{FEWER_STEPS}: a decay of 0.990 for 0.9965 gave -0.0117 bpb on two H100s, +0.0025 on eight", "#2005, #2071",
    ),
    (
        ("train.batch_tokens",), False,
        "a small batch buys steps, which eight GPUs have anyway: -0.0203 bpb on fewer GPUs, +0.0121 on eight", "#2005",
    ),
    (("train.schedule", "train.schedule.*"), False, FEWER_STEPS, "#2005"),
    (("optim.*.momentum", "optim.*.momentum.*"), False, FEWER_STEPS, "#2005"),
    (("qat", "qat.*"), False, FEWER_STEPS, "#2005"),
    (
        ("optim.*.rate", "optim.*.weight_decay"), False,
        "rates and decay had to be set anew with the number of steps, in 111 runs on one H100", "#393",
    ),
    (
        ("model.width", "model.layers", "model.sequence", "model.mlp.expansion"), None,
        "a size is weighed against steps: one design was 18 % better at width 192 and 2.7 % worse at 512", "#1227",
    ),
    (
        ("model", "model.*"), True,
        "an added part of the model gave -0.0005 bpb on two H100s and on eight: one part, one run each", "#2005",
    ),
)  # fmt: skip


def transfer_of(path):
    """What is known of a field's best value on eight GPUs, by one's path: {"path", "transfers" (None: not known), "why",
    "source"}."""
    for patterns, transfers, why, source in TRANSFERS:
        if any(fnmatchcase(path, pattern) for pattern in patterns):
            return {"path": path, "transfers": transfers, "why": why, "source": source}
    return {"path": path, "transfers": None, "why": "nobody has measured it", "source": None}
