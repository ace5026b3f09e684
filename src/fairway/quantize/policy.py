"""The quantisation policy: rules in order, the first that takes a leaf decides."""

from ..problem import Problem
from .schemes import decode_coded


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


def calibrated_leaves(rules, calibrate):
    """Names of the leaves whose rules want Hessians. Problem unless `calibrate`, a recipe's, holds the one node for them."""
    names = {name for name, rule in rules.items() if rule.calibrated}
    if names and len(calibrate) != 1:
        raise Problem(f"a rule for {min(names)} wants Hessians and `calibrate` holds {len(calibrate)} nodes; give one")
    return names


def quantise(tensors, leaves, rules, hessians):
    """Canonical name -> Coded, in the leaves' order: each leaf by its rule, a rule's leaves all at once.

    tensors: float32 by name, on the device that is to work; hessians: H_CC by name, of the calibrated rules' leaves.
    """
    members = {}
    for leaf in leaves:
        members.setdefault(rules[leaf.name], []).append(leaf)
    coded = {}
    for rule, mine in members.items():
        found = rule.encode([tensors[leaf.name] for leaf in mine], mine, [hessians.get(leaf.name) for leaf in mine])
        coded |= {leaf.name: one for leaf, one in zip(mine, found, strict=True)}
    return {leaf.name: coded[leaf.name] for leaf in leaves}


def sound_weights(tensors, leaves):
    """The tensors as float32. Problem when they and the leaves differ in names or shapes, or one is empty or not finite."""
    if differ := tensors.keys() ^ {leaf.name for leaf in leaves}:
        raise Problem(f"weights and model differ in {sorted(differ)[0]} ({len(differ)} names); train this recipe again")
    for leaf in leaves:
        shape, broken = tuple(tensors[leaf.name].shape), int((~tensors[leaf.name].isfinite()).sum())
        if shape != leaf.shape:
            raise Problem(f"{leaf.name} is {shape}, the model's is {leaf.shape}; train this recipe again")
        if 0 in shape:
            raise Problem(f"{leaf.name} has shape {shape} and holds nothing; leave it out of the model")
        if broken:
            raise Problem(f"{leaf.name} holds {broken} values that are not finite; the training diverged, lower its rate")
    return {name: tensor.detach().float() for name, tensor in tensors.items()}


def dequantise(codes):
    """Canonical name -> float32 weights: what the packed model computes with."""
    return {name: decode_coded(coded) for name, coded in codes.items()}
