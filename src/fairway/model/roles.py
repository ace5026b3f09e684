"""Parameter roles and canonical names: optimiser groups, quantisation and the ledger read these, never names.

A parameter may be a bank (all layers' matrices of one kind in one tensor). Its leaves are the slices that files
know by canonical per-layer names; each leaf has a role that refines the bank's, written with a dot.
"""

from dataclasses import dataclass

import torch
from torch import nn

# role: what it means
ROLES = {
    "matrix": "block matrices, kept in banks [slices, rows, columns]",
    "projection": "other matrices [rows, columns]",
    "embedding": "the token table [vocabulary, width]",
    "table": "hashed or auxiliary tables [rows, width]",
    "scalar": "gains, mixes, gates: vectors and single numbers, whatever their shape",
}


@dataclass(frozen=True)
class Leaf:
    """One tensor as files know it: canonical name, role, layer (-1: belongs to no layer) and shape."""

    name: str
    role: str
    layer: int
    shape: tuple[int, ...]


def role_matches(role, pattern):
    """Whether `role` is `pattern` or refines it: matrix.key matches both matrix and matrix.key."""
    return role == pattern or role.startswith(pattern + ".")


class Part(nn.Module):
    """A module whose parameters all carry roles. Every technique's private module is one."""

    def __init__(self):
        super().__init__()
        self.owned = {}  # attribute -> (role, ((leaf name, role, layer), ...) along dimension 0, or one leaf's name)

    def own(self, attribute, name, data, role):
        """Registers a parameter that files know whole, as `name`."""
        self._register(attribute, data, role, name)

    def own_bank(self, attribute, data, role, leaves):
        """Registers a bank [N, ...] whose N slices files know one by one: `leaves` lists (name, role, layer)."""
        if len(leaves) != data.shape[0]:
            raise ValueError(f"{attribute}: {len(leaves)} leaves for {data.shape[0]} slices")
        self._register(attribute, data, role, tuple(leaves))

    def own_per_layer(self, attribute, name, data, role="scalar"):
        """Registers a bank with one slice a layer; files know `blocks.<layer>.<name>`."""
        self.own_bank(attribute, data, role, [(f"blocks.{i}.{name}", role, i) for i in range(data.shape[0])])

    def _register(self, attribute, data, role, leaves):
        if role.split(".")[0] not in ROLES:
            raise ValueError(f"unknown role {role!r}: one of {', '.join(ROLES)}")
        self.register_parameter(attribute, nn.Parameter(data.float()))
        self.owned[attribute] = (role, leaves)


def parameter_roles(model):
    """Full parameter name -> role. Raises ValueError for a parameter that no Part owns."""
    roles = {}
    for path, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            full = f"{path}.{name}" if path else name
            if not isinstance(module, Part) or name not in module.owned:
                raise ValueError(f"parameter {full} has no role; register it with Part.own")
            roles[full] = module.owned[name][0]
    return roles


def leaf_views(model):
    """Yields (Leaf, view of the parameter's data), in the model's order; canonical names are unique."""
    owners = {}
    for module in model.modules():
        for attribute, (role, leaves) in module.owned.items() if isinstance(module, Part) else ():
            data = getattr(module, attribute).data
            slices = [((leaves, role, -1), data)] if isinstance(leaves, str) else zip(leaves, data, strict=True)
            for (name, leaf_role, layer), view in slices:
                if name in owners:
                    raise ValueError(f"two leaves are called {name}: of {owners[name]} and of {type(module).__name__}")
                owners[name] = type(module).__name__
                yield Leaf(name, leaf_role, layer, tuple(view.shape)), view


def load_leaves(model, tensors):
    """Copies tensors by canonical name into the model. Names and shapes must match exactly, else ValueError."""
    views = {leaf.name: view for leaf, view in leaf_views(model)}
    if missing := views.keys() ^ tensors.keys():
        raise ValueError(f"tensors and model differ in {sorted(missing)[:4]}")
    with torch.no_grad():
        for name, view in views.items():
            if view.shape != tensors[name].shape:
                raise ValueError(f"{name} is {tuple(tensors[name].shape)}, the model's is {tuple(view.shape)}")
            view.copy_(tensors[name])
