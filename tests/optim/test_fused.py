"""Muon by its kernels, in Triton's interpreter (on a card with --gpu), against the same steps in plain torch."""

from contextlib import ExitStack
from importlib.util import find_spec
from unittest.mock import patch

import pytest
import torch

from fairway.model.roles import Part
from fairway.optim.muon import Muon
from fairway.optim.optimizer import Optimizer
from fairway.optim.orthogonal import MuonEqR, PolarExpress, Quintic, Turbo
from fairway.optim.schedule import Moment
from fairway.train.dist import Done, World
from optim.interpreted import multiply_bfloat16

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ALONE = World(0, 1, DEVICE)
# Two of one shape when turned wide, and one that symmetric products are too coarse for.
BANKS = {"up": (2, 128, 64), "down": (2, 64, 128), "qo": (2, 64, 64), "odd": (2, 10, 6)}


KERNELS_OFF = (
    "kernels.symmetric.multiplies_symmetrically",
    "optim.orthogonal.multiplies_symmetrically",
    "kernels.momentum.runs_triton",
)


class Banks(Part):
    """Banks and one plain matrix. The second half of each bank is the first again."""

    def __init__(self):
        super().__init__()
        for index, (name, shape) in enumerate(BANKS.items()):
            self.own_bank(name, twice(shape, index), "matrix", [(f"{name}.{i}", "matrix", i) for i in range(shape[0])])
        self.own("plain_RC", "plain", twice((2, 3), 9), "projection")

    def set_gradients(self, step):
        for index, parameter in enumerate(self.parameters()):
            size = 10.0 ** -(index + step)
            parameter.grad = size * twice(parameter.shape, 10 * step + index + 20).to(DEVICE)


def twice(shape, seed):
    half = torch.randn(shape[0] // 2, *shape[1:], generator=torch.Generator().manual_seed(seed))
    return torch.cat([half, half])


@pytest.fixture
def fused(monkeypatch):
    """Lets every dispatch take the kernels."""
    if DEVICE.type == "cpu":
        multiply_bfloat16(monkeypatch)
        for module in ("kernels.momentum", "kernels.symmetric", "optim.muon"):
            monkeypatch.setattr(f"fairway.{module}.runs_triton", lambda device: True)


def trained(node, world, products, fused, steps=2):
    """The model's changes over some steps, and momentum, by parameter; gradient norms."""
    model = Banks().to(DEVICE)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer, norms = Optimizer(model, (node,), world, products, clip=0.3), []
    (update,) = optimizer.updates
    update.triton = fused
    with ExitStack() as held:
        # Plain is without any kernel, or the kernels' errors would widen the bound that they are held to.
        for name in () if fused else KERNELS_OFF:
            held.enter_context(patch(f"fairway.{name}", lambda _: False))
        for step in range(steps):
            model.set_gradients(step)
            norms.append(optimizer.step(Moment(step, step / 10, 1 - step / 10)).item())
    changes = {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}
    return changes, update.state(), norms


def apart(one, other):
    return ((one - other).norm() / other.norm()).item()


@pytest.mark.parametrize(
    "orthogonaliser, last",
    [
        (Quintic(), False), (PolarExpress(), False), (Turbo(), True), (MuonEqR(), False),
        (MuonEqR(then=Turbo(post_norm=False)), False),
    ],
    ids=repr,
)  # fmt: skip
def test_the_kernels_take_the_same_steps(orthogonaliser, last, fused):
    """The bound is the noise that bfloat16 leaves in plain torch, twice as the interpreter cuts off, and 0.5 %. Momentum is
    float32 in all."""
    node = Muon(rate=0.1, weight_decay=0.5, orthogonaliser=orthogonaliser, decay_last=last)
    exact, momentum, norms = trained(node, ALONE, torch.float32, False)
    plain, _, _ = trained(node, ALONE, torch.bfloat16, False)
    found, kept, same = trained(node, ALONE, torch.bfloat16, True)
    assert same == norms and norms[0] > 0.3
    for name in exact:
        assert apart(found[name], exact[name]) < 2 * apart(plain[name], exact[name]) + 0.005, name
        torch.testing.assert_close(kept[name], momentum[name], rtol=1e-5, atol=1e-7)


class TwinWorld(World):
    """Two ranks of which the other one has what this one has; notes when parts set out and when they are waited for."""

    def __init__(self):
        super().__init__(0, 2, DEVICE)
        self.notes = []

    def all_reduce_sum(self, tensor):
        return tensor.mul_(2)

    def all_reduce_mean(self, tensor):
        return Done()

    def reduce_scatter_mean(self, whole_PRC):
        return whole_PRC.chunk(2)[0].clone(), Done()

    def all_gather(self, part_SRC):
        self.notes.append(("gather", tuple(part_SRC.shape), part_SRC.dtype, part_SRC.is_contiguous()))
        return torch.cat([part_SRC, part_SRC]), Done()


def test_shards_of_one_wide_shape_are_one_batch_and_travel_as_they_are_while_the_next_is_iterated(fused, monkeypatch):
    world, spread = TwinWorld(), Quintic.spread
    monkeypatch.setattr(Quintic, "spread", lambda node, x: world.notes.append(("spread", tuple(x.shape))) or spread(node, x))
    node = Muon(orthogonaliser=MuonEqR(), weight_decay=0.5)
    changes, momentum, norms = trained(node, world, torch.bfloat16, True, steps=1)
    sent = torch.bfloat16, True
    assert world.notes[:7] == [
        ("spread", (2, 64, 128)), ("gather", (1, 64, 128), *sent), ("gather", (1, 64, 128), *sent),
        ("spread", (1, 64, 64)), ("gather", (1, 64, 64), *sent),
        ("spread", (1, 6, 10)), ("gather", (1, 6, 10), *sent),
    ]  # fmt: skip
    alone, kept, same = trained(node, ALONE, torch.bfloat16, True, steps=1)
    assert norms == pytest.approx(same, rel=1e-6)
    for name in alone:
        torch.testing.assert_close(momentum[name], kept[name], rtol=1e-6, atol=1e-9)
        # bfloat16's noise: a card sums products of batches of other sizes in another order (0.013 for 6 x 10 on an H200).
        assert apart(changes[name], alone[name]) < (1e-2 if DEVICE.type == "cpu" else 2.5e-2), name


@pytest.mark.parametrize("node", [Quintic(), PolarExpress(), Turbo()], ids=repr)
def test_slices_and_rows_of_zeros_stay_zero_whatever_the_others_are(node, fused):
    """Slices that only pad a bank to a multiple of the ranks are zero."""
    x_NRC = (1e-6 * twice((4, 64, 64), 1)).bfloat16().to(DEVICE)
    x_NRC[1] = 0
    x_NRC[2, 3] = 0
    got_NRC = node.spread(x_NRC)
    assert got_NRC.isfinite().all() and got_NRC[0].any(1).all()
    assert not got_NRC[1].any() and not got_NRC[2, 3].any()


@pytest.mark.parametrize("kernels", [False, True])
def test_banks_and_plain_matrices_take_the_clipped_gradient(kernels, fused):
    model = Banks().to(DEVICE)
    optimizer = Optimizer(model, (Muon(),), ALONE, torch.bfloat16, 0.3)
    optimizer.updates[0].triton = kernels
    model.set_gradients(0)
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    factor = 0.3 / optimizer.step(Moment(0, 0.0, 1.0)).item()
    assert factor < 0.1
    for name, buffer in optimizer.state()[0].items():
        torch.testing.assert_close(buffer, factor * gradients[name], rtol=1e-5, atol=1e-9)


def test_gradients_are_not_written_to_and_the_factor_holds_for_one_step(fused):
    model = Banks().to(DEVICE)
    (update,) = Optimizer(model, (Muon(),), ALONE, torch.bfloat16, 0.0).updates
    update.triton = True
    model.set_gradients(0)
    given = model.up.grad.clone()
    for scale in (torch.full((), 0.5, device=DEVICE), None):
        update.reduce()
        if scale is not None:
            update.scale_shards(scale)
        update.step(Moment(0, 0.0, 1.0))()
        assert torch.equal(model.up.grad, given)
    torch.testing.assert_close(update.state()["up"], 0.92 * 0.5 * given + given)
