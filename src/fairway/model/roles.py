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
        self.owned = {}  # parameter name -> (role, leaves or None)

    def own(self, name, data, role, leaves=None):
        """Registers a parameter. `leaves` names its slices along dimension 0 as (name, role, layer), in order;
        without it the parameter is one leaf under its own name."""
        if role.split(".")[0] not in ROLES:
            raise ValueError(f"unknown role {role!r}: one of {', '.join(ROLES)}")
        if leaves is not None and len(leaves) != data.shape[0]:
            raise ValueError(f"{name}: {len(leaves)} leaves for {data.shape[0]} slices")
        self.register_parameter(name, nn.Parameter(data.float()))
        self.owned[name] = (role, leaves)

    def per_layer(self, name, data, role="scalar"):
        """Registers a parameter with one slice a layer [L, ...]; files know `blocks.<layer>.<name>`."""
        leaves = [(f"blocks.{layer}.{name}", role, layer) for layer in range(data.shape[0])]
        self.own(name, data, role, leaves)


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
    seen = set()
    for path, module in model.named_modules():
        for name, (role, leaves) in module.owned.items() if isinstance(module, Part) else ():
            data = getattr(module, name).data
            whole = [(f"{path}.{name}" if path else name, role, -1)]
            for index, (leaf_name, leaf_role, layer) in enumerate(leaves or whole):
                view = data[index] if leaves else data
                if leaf_name in seen:
                    raise ValueError(f"two leaves are called {leaf_name}")
                seen.add(leaf_name)
                yield Leaf(leaf_name, leaf_role, layer, tuple(view.shape)), view


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
