"""The one file that asks what the machine can do. Everything else is told."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Capability:
    """What to use on one device: `activations` is the dtype of the residual stream and its products,
    `products` that of the Newton-Schulz iteration, `compiled` whether to compile the training step."""

    device: torch.device
    activations: torch.dtype
    products: torch.dtype
    compiled: bool
    name: str


def capability(device):
    """The capability of `device` (a torch.device).

    bfloat16 on CUDA cards that have it. On a CPU everything stays float32: bfloat16 products crawl there,
    and a short run is over before a C++ compile would pay.
    """
    if device.type == "cuda":
        half = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
        return Capability(device, half, half, True, torch.cuda.get_device_name(device))
    return Capability(device, torch.float32, torch.float32, False, f"cpu x{torch.get_num_threads()}")


def best_device(index=0):
    """The CUDA card with this index where there is one, else the CPU."""
    return torch.device("cuda", index) if torch.cuda.is_available() else torch.device("cpu")
