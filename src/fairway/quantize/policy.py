"""The quantisation policy: rules in order, the first that takes a leaf decides; and codes as a file."""

import json

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..files import write_bytes
from ..problem import Problem
from .schemes import Coded, decode_coded, part_layout

CODES_KEY = "fairway.codes"


def assign_rules(leaves, policy):
    """Leaf name -> the first rule of `policy` that takes it. Problem for a leaf that no rule takes."""
    depth = 1 + max((leaf.layer for leaf in leaves), default=-1)
    rules = {}
    for leaf in leaves:
        rules[leaf.name] = next((rule for rule in policy if rule.takes(leaf, depth)), None)
        if rules[leaf.name] is None:
            raise Problem(
                f"no rule quantises {leaf.name} (role {leaf.role}, layer {leaf.layer}, shape {leaf.shape}); "
                f"end the recipe's quantize with one that does, as KeepFloat16()"
            )
    return rules


def quantise(tensors, leaves, policy):
    """Canonical name -> Coded, in the leaves' order. Each leaf is coded by the first rule that takes it.

    Raises Problem when tensors and leaves differ in names or shapes, a weight is not finite, or no rule takes a leaf.
    """
    if differ := tensors.keys() ^ {leaf.name for leaf in leaves}:
        raise Problem(f"weights and model differ in {sorted(differ)[0]} ({len(differ)} names); train this recipe again")
    rules = assign_rules(leaves, policy)
    return {leaf.name: rules[leaf.name].encode(_sound_weight(tensors[leaf.name], leaf), leaf) for leaf in leaves}


def _sound_weight(tensor, leaf):
    weight = tensor.detach().to("cpu", torch.float32)
    if tuple(weight.shape) != leaf.shape:
        raise Problem(f"{leaf.name} is {tuple(weight.shape)}, the model's is {leaf.shape}; train this recipe again")
    if not weight.numel():
        raise Problem(f"{leaf.name} has shape {leaf.shape} and holds nothing; leave it out of the model")
    if broken := int((~weight.isfinite()).sum()):
        raise Problem(f"{leaf.name} holds {broken} values that are not finite; the training diverged, lower its rate")
    return weight


def dequantise(codes):
    """Canonical name -> float32 weights: what the packed model computes with."""
    return {name: decode_coded(coded) for name, coded in codes.items()}


def save_codes(path, codes):
    """Writes codes as safetensors (`<leaf>.<part>`, with schemes, roles and shapes as metadata), atomically."""
    table = [[name, coded.scheme, coded.role, coded.shape] for name, coded in codes.items()]
    parts = {f"{name}.{part}": tensor for name, coded in codes.items() for part, tensor in coded.parts.items()}
    write_bytes(path, save(parts, {CODES_KEY: json.dumps(table, separators=(",", ":"))}))


def load_codes(path):
    """Reads what `save_codes` wrote. Problem when the file is absent, broken or of another kind."""
    try:
        with safe_open(path, framework="pt") as file:
            table = json.loads((file.metadata() or {})[CODES_KEY])
            return {
                name: Coded(
                    scheme,
                    role,
                    tuple(shape),
                    {part: file.get_tensor(f"{name}.{part}") for part in part_layout(scheme, tuple(shape))},
                )
                for name, scheme, role, shape in table
            }
    except (OSError, SafetensorError) as error:
        raise Problem(f"cannot read {path}: {error}; `fairway pack` writes it") from error
    except (KeyError, TypeError, ValueError) as error:
        raise Problem(f"{path} holds no codes ({error!r}); `fairway pack` writes it again") from error
