"""The one file that asks what the machine can do. Everything else is told."""

import time
from dataclasses import dataclass
from importlib.util import find_spec

import torch


@dataclass(frozen=True)
class Capability:
    """What to use on one device: `activations` is the dtype of the residual stream and its products,
    `products` that of the Newton-Schulz iteration, `compiled` whether to compile the training step's passes, `recorded`
    whether to make them CUDA graphs then."""

    device: torch.device
    activations: torch.dtype
    products: torch.dtype
    compiled: bool
    recorded: bool


TILE_MEMORY = 117_000  # bytes of shared memory that a program of kernels/mlp_triton.py takes at most
# Dense bfloat16 with float32 sums, by a part of the card's name.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}


def capability(device):
    """The capability of `device` (a torch.device).

    bfloat16 on CUDA cards that have it. On a CPU everything stays float32: bfloat16 products crawl there,
    and a short run is over before a C++ compile would pay.
    """
    if device.type == "cuda":
        half = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
        compiled = find_spec("triton") is not None  # which compiled code on cards is made of
        return Capability(device, half, half, compiled, recorded=compiled)
    return Capability(device, torch.float32, torch.float32, compiled=False, recorded=False)


@torch.compiler.assume_constant_result
def runs_triton(device):
    """Whether kernels in Triton run on `device` (a torch.device): a CUDA card from Ampere on, and the package is there."""
    new = device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)
    return new and find_spec("triton") is not None


@torch.compiler.assume_constant_result
def copies_tiles(device):
    """Whether `device` also has the engine that copies whole tiles (TMA), and the shared memory for those of the MLP: Hopper
    and large Blackwells have both, small ones (RTX) 99 KiB."""
    if not runs_triton(device) or torch.cuda.get_device_capability(device) < (9, 0):
        return False
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin >= TILE_MEMORY


def multiprocessors(device):
    """How many of them a CUDA card has: programs that stay share them out. Few elsewhere, where they run in turns."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def plain_forms(device):
    """A line that says which kernels take their plain form on a CUDA card, and why; None for none, and on a CPU."""
    if device.type != "cuda" or copies_tiles(device):
        return None
    if runs_triton(device):
        return f"{device_name(device)} has not Hopper's copies of tiles or its shared memory: the MLP takes its plain form"
    reason = "is no NVIDIA card from Ampere on" if find_spec("triton") else "is here, but not the package triton"
    return f"{device_name(device)} {reason}: all kernels take their plain form, which is slower"


def device_name(device):
    """The card's name, or the CPU and how many threads it has."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu x{torch.get_num_threads()}"


def peak_flops(device):
    """The dense half-precision FLOPs a second that the card's maker states; None where it is not known here."""
    name = device_name(device)
    return next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)


def best_device(index=0):
    """The CUDA card with this index where there is one, else the CPU."""
    return torch.device("cuda", index) if torch.cuda.is_available() else torch.device("cpu")


def settle_threads(device, recorded=None):
    """On a CPU, sets how many threads torch uses: `recorded`, or else all it has or one, whichever is faster right now.

    The threads of an operation wait for each other, so beside another busy program two take several times as long as
    one. The number changes rounding: a resumed run takes the one it began with. Returns it (0 on other devices).
    """
    if device.type != "cpu":
        return 0
    most = torch.get_num_threads()
    if recorded is not None or most == 1:
        torch.set_num_threads(recorded or most)
        return recorded or most
    spent = {most: 0.0, 1: 0.0}
    for _ in range(5):
        for threads in spent:
            torch.set_num_threads(threads)
            spent[threads] += _burst_seconds()
        if spent[most] > 5 * spent[1]:
            break
    fastest = min(spent, key=spent.get)
    torch.set_num_threads(fastest)
    return fastest


def _burst_seconds():
    """Seconds of a hundred small operations, as a step on a CPU has by the thousand."""
    x = torch.ones(4096, 160)
    begin = time.perf_counter()
    for _ in range(100):
        x = x * 0.5
    return time.perf_counter() - begin
