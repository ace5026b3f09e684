"""The sites of a recipe: what may stand where, and how the spine calls what a node there builds.

A node's base class is its site; `--set` and `parse_node` refuse a node at another one. B batch, T positions, D width,
H query heads, G key-value heads, K head width, V vocabulary. `carry` (model/context.py) is what one forward pass shares.
"""

from .node import Node


class InputSite(Node):
    """inputs: module(carry) -> x_BTD; the results are summed."""


class StreamSite(Node):
    """stream: module(x_BTD, carry) -> x_BTD, before the blocks."""


class PositionSite(Node):
    """positions: module(q_BTHK, k_BTGK, layer, carry) -> the two."""


class ValueSite(Node):
    """values: module(v_BTGK, layer, carry) -> v_BTGK."""


class TapSite(Node):
    """taps: module(y_BTHK, n_BTD, v_BTGK, layer, carry) -> y_BTHK, between attention and its output matrix."""


class MLPSite(Node):
    """mlp: module.matrices(dtype), then module(n_BTD, matrices, layer, carry) -> delta_BTD."""


class JoinSite(Node):
    """join: a JoinModule, the shape of a block."""


class ResidualSite(Node):
    """residual: a ResidualPart, what adorns a block."""


class SkipSite(Node):
    """a plan's skip: module(skip_BTD, x_BTD, step, carry) -> x_BTD, before decoder step `step`."""


class PlanSite(Node):
    """plan: orders(layers), phase(progress), and a module for its skips."""


class StartSite(Node):
    """start: module(views) changes initial values in place once all are drawn; `views` maps canonical names to tensors."""


class HeadSite(Node):
    """head: module(x_BTD, carry) -> x or logits_BTV, one after the other."""


class LoaderSite(Node):
    """loader: an iterator with next(), state() and restore(state)."""


class ScheduleSite(Node):
    """train.schedule: multiplier(step, elapsed, budget) -> the factor on every rate."""


class GroupSite(Node):
    """optim: an update with `replicated` (parameters whose averaged gradients each rank needs whole), reduce(),
    sharded_gradients(), step(moment), state(), restore(state); with sharded gradients also scale_shards(scale), called
    before a step that is to take them times a tensor of one element. `moments`: floats of state a parameter."""


class OrthogonaliserSite(Node):
    """Muon's orthogonaliser: apply(gradient_NRC, dtype) -> update_NRC. One that also has its parts, equal_rows,
    spread(x_NRC) and finish(x_NRC) (optim/orthogonal.py), is joined with momentum in one kernel on a card."""


class AverageSite(Node):
    """average: an object with after_step(moment), tensors() -> {parameter name: float32 average}, summary() -> a line,
    state() and restore(state). `copies`: floats of state a parameter."""


class CodecSite(Node):
    """codec: encode(arrays, trellis) -> bytes, decode(frame, layouts, trellis) -> the arrays, and measure(arrays, trellis)
    -> the bytes that each would take of a frame, without writing one; `tag`, the byte that names it in a file.

    arrays: numpy arrays of one dtype, [N] or [R, C]; layouts: [(dtype, shape)]; trellis: codes are paths down the rows."""


class WindowSite(Node):
    """evaluate.windows: `length`, and plan(targets, starts) -> WindowPlan; `starts` are the stream's document starts,
    which matter where `by_document`."""

    by_document = False


class AdaptSite(Node):
    """adapt: build(AdaptContext) -> an Adapter (score/adapter.py), which learns from scored tokens and nothing else.
    `fresh`: stream techniques that the model gets for scoring alone, at their initial values (zeros for what is drawn)."""

    fresh = ()

    def work(self, evaluation, targets):
        """(positions read, positions trained on) for a forecast; None where that depends on the documents."""
        return None


class MixSite(Node):
    """mix: build(History) -> a mixer (score/mixing.py), which changes the distribution by what stood before."""


class ModelSite(Node):
    """model: build(seed, dtype) -> a module with forward(ids_BT, phase, first) and loss(ids_BT, targets_BT, phase)."""


class TrainingSite(Node):
    """train: batch, budget, schedule, clipping."""


class SchemeSite(Node):
    """quantize: takes(leaf, depth); the first rule that takes a leaf decides. encode(weights, leaves, hessians) -> [Coded]
    of all leaves that it takes; hessians are None unless the rule is `calibrated`.
    grid(weights) -> [N, ...] weights of N leaves as they will be decoded, on their own device, or None where training need
    not know."""

    calibrated = False


class RoundingSite(Node):
    """How a scheme rounds: round(w_NRC, scale_NR, top, hessian_NCC) -> codes_NRC int8 in [-top, top]. `calibrated`: whether
    it reads the Hessians (else they are None). `kind`: "int", or "path" for codes that are paths down a trellis."""

    calibrated = False
    kind = "int"


class CalibrationSite(Node):
    """calibrate: hessians(model, names, context) -> {leaf name: H_CC}, from training text."""


class FitSite(Node):
    """fit: turn(packing), which moves one dial of the packing until its bytes fit under the cap."""


class QATSite(Node):
    """qat: build(model, policy) -> an object with bent(moment), a context in which weights are as they will be packed,
    summary() -> a line, state(), restore(state), and `floats`, the numbers it keeps beside the model."""


class EvaluationSite(Node):
    """evaluate: windows, and which targets of a stream are scored."""
