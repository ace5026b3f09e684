"""Test-time training of a low-rank adapter for each document, and of all weights on whole documents in between.

D documents, B rows (documents of a batch), N slots of a batch, W windows, S stacked uses of a product in a pass, R rank,
I inputs and O outputs of a product, T positions of a sequence.
"""

import math
import time
from dataclasses import dataclass

import numpy as np
import torch

from ..model.context import Initialiser
from ..problem import Problem
from ..sites import AdaptSite
from .adapter import RoundAdapter
from .batches import Cut
from .lora_products import LORA_TARGETS, LowRankProducts, find_products
from .schedule import Episode, Group, Round
from .weights import WeightTrainer
from .windows import DocumentPlan

FEWEST_ROWS = 8  # a batch whose documents have nearly all ended shrinks by halves, down to this many rows
ROOM = 64  # rows of windows are as long as a multiple of this
ADAM_EPSILON = 1e-8


@dataclass(frozen=True)
class DocumentLoRA(AdaptSite):
    """Scores a document chunk by chunk; after each it takes a step on the chunk, with a low-rank adapter of the document's
    own (PR #1530, #1610, #1767, #2014).

    The products in `targets` become x W^T + alpha / rank (x A^T) B^T. A document begins with B = 0; A stays as the last
    document of the same row and lane left it. A step is Adam's, on the mean nats of the chunk's targets, with weight decay
    `decay` apart from the gradient; there is none after a document's last chunk. A chunk is scored from `context` inputs
    that end with it, none of them before the document. Documents shorter than a limit in `chunks` ((limit, size), ...,
    shortest first) are cut into chunks of that size, all others of `chunk`. They are scored longest first, `batch` at a
    time; a batch belongs to one of `lanes`, and so many ranks can share the work.

    With `phases`, the first `prefix` documents are scored in as many equal parts. After each part all weights of the model
    learn from the documents that are done: one pass of SGD, `base_batch` tokens a step, at base_rate (1 + cos(pi k / K)) / 2
    in step k of K (PR #1610, #1626). Afterwards the weights are what they were.
    """

    rank: int = 80
    alpha: float = 144.0
    rate: float = 1e-4
    betas: tuple[float, float] = (0.0, 0.99)
    decay: float = 0.5
    batch: int = 64
    context: int = 2048
    chunks: tuple[tuple[int, int], ...] = ((256, 8), (2000, 24))
    chunk: int = 48
    targets: tuple[str, ...] = ("query", "key", "value", "output", "mlp", "head")
    lanes: int = 8
    seed: int = 0
    phases: int = 0
    prefix: int = 2500
    base_rate: float = 1e-3
    base_momentum: float = 0.9
    base_batch: int = 32_768
    base_clip: float = 1.0

    def __post_init__(self):
        for name, least in (("rank", 1), ("batch", 1), ("chunk", 1), ("lanes", 1), ("phases", 0), ("base_batch", 1)):
            if getattr(self, name) < least:
                raise Problem(f"DocumentLoRA.{name} is {getattr(self, name)}; take {least} or more")
        for name in ("alpha", "rate", "base_rate", "base_clip"):
            if not getattr(self, name) > 0:
                raise Problem(f"DocumentLoRA.{name} is {getattr(self, name):g}; take more than 0")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in (*self.betas, self.base_momentum)):
            raise Problem(
                f"DocumentLoRA of betas {self.betas}, base_momentum {self.base_momentum:g}: take 0 to below 1 for all three"
            )
        if not 0 <= self.decay * self.rate < 1:
            raise Problem(f"DocumentLoRA.decay is {self.decay:g}; take 0 to below 1 / rate")
        if list(self.chunks) != sorted(self.chunks) or any(len(pair) != 2 or min(pair) < 1 for pair in self.chunks):
            raise Problem(
                f"DocumentLoRA.chunks is {self.chunks}; give pairs (shorter than, size) of 1 or more, shortest first"
            )
        if len(set(self.targets)) < len(self.targets) or len({limit for limit, _ in self.chunks}) < len(self.chunks):
            raise Problem(
                f"DocumentLoRA of targets {self.targets} and chunks {self.chunks}: give each target and limit once"
            )
        if self.context < (largest := max([self.chunk, *(size for _, size in self.chunks)])):
            raise Problem(f"DocumentLoRA.context is {self.context}; take the largest chunk, {largest}, or more")
        if bad := [name for name in self.targets if name not in LORA_TARGETS] or not self.targets:
            known = ", ".join(LORA_TARGETS)
            raise Problem(f"DocumentLoRA.targets names {'nothing' if bad is True else bad[0]}; take some of {known}")
        if self.phases and self.prefix < self.phases:
            raise Problem(f"DocumentLoRA.prefix is {self.prefix}; give each of {self.phases} phases a document at least")

    def build(self, context):
        return DocumentLoRAAdapter(self, context)


@dataclass(frozen=True, eq=False)
class DocumentChunks:
    """The documents of a stream as they are cut into chunks: int64 arrays [D]."""

    floor: np.ndarray  # the first input; what stands before the first document start is a document too
    length: np.ndarray  # inputs, and so targets
    size: np.ndarray  # inputs of a chunk
    count: np.ndarray  # chunks
    window: np.ndarray  # the first chunk's place among all


def cut_documents(node, targets, starts):
    """The DocumentChunks of `targets` targets with documents that begin at `starts`, for a DocumentLoRA."""
    edges = np.unique(np.concatenate([[0], np.asarray(starts, np.int64), [targets]]))
    length = np.diff(edges)
    limits, sizes = np.array([limit for limit, _ in node.chunks], np.int64), [size for _, size in node.chunks]
    size = np.array([*sizes, node.chunk], np.int64)[np.searchsorted(limits, length, side="right")]
    count = -(-length // size)
    return DocumentChunks(edges[:-1], length, size, count, np.cumsum(count) - count)


class DocumentLoRAAdapter(RoundAdapter):
    def __init__(self, node, context):
        super().__init__(context)
        model = context.model
        if node.context > model.sequence:
            raise Problem(
                f"DocumentLoRA.context is {node.context}, longer than model.sequence={model.sequence}; take that or less"
            )
        self.node, self.layout = node, find_products(model, node.targets)
        self.trainer = None
        if node.phases:
            self.trainer = WeightTrainer(model, context.machine, context.world, node.base_momentum, node.base_clip)
        # Or else a compiled pass would compute gradients of the model's own weights after every chunk.
        self.learning = [p for p in model.parameters() if p.requires_grad]
        _set_learning(self.learning, False)
        self.update = torch.compile(adam_step, dynamic=False) if context.machine.compiled else adam_step
        self.documents, self.batches, self.rounds, self.base_steps = None, 0, None, 0
        self.finished_D, self.groups = np.zeros(0, np.int64), 0
        self.forget()

    # Order of scoring

    def plan(self, targets, starts):
        found = self.documents = cut_documents(self.node, targets, starts)
        if self.node.phases and self.node.prefix >= len(found.length):
            raise Problem(
                f"DocumentLoRA.prefix is {self.node.prefix}; the stream has {len(found.length)} documents, take fewer"
            )
        of_W = np.repeat(np.arange(len(found.length)), found.count)
        floor, size = found.floor[of_W], found.size[of_W]
        begin = floor + (np.arange(len(of_W)) - found.window[of_W]) * size
        end = np.minimum(begin + size, floor + found.length[of_W])
        start = np.maximum(floor, end - self.node.context)
        return DocumentPlan(start, end - start, begin - start, floor)

    def schedule(self, plan, starts):
        """Batches of about equal numbers of documents, longest first; a phase's, and a chunk size's, end with a batch.

        Each goes to the lane that has least to read so far, since the first batches are many times as long as others.
        """
        found, node = self.documents, self.node
        order_D = np.argsort(-found.length, kind="stable")
        ends = [node.prefix * (phase + 1) // node.phases for phase in range(node.phases)]
        groups = []
        for part_D in np.split(order_D, ends):
            episodes, load = [], np.zeros(node.lanes)
            for same_D in np.split(part_D, np.flatnonzero(np.diff(found.size[part_D])) + 1):
                for batch_D in np.array_split(same_D, -(-len(same_D) // node.batch)):
                    lane = int(load.argmin())
                    episodes.append(Episode(self._rounds(batch_D), lane))
                    load[lane] += sum(math.prod(self._shape(plan, one.windows)) for one in episodes[-1].rounds)
            groups.append(Group(tuple(episodes)))
        self.batches = sum(len(group.episodes) for group in groups)
        return groups

    def _rounds(self, batch_D):
        """Round c: chunk c of all documents that have one. Those that have ended are the last, so row b stays row b."""
        count_B, window_B = self.documents.count[batch_D], self.documents.window[batch_D]
        longer = np.searchsorted(-count_B, -np.arange(1, count_B[0] + 1), side="right")
        return tuple(Round(window_B[:rows] + chunk) for chunk, rows in enumerate(longer.tolist()))

    def _shape(self, plan, windows):
        """Rows and length of a round's batch. One graph serves all lengths, so there may be many; multiples of 64 waste
        about 32 positions a window, of 960 on average in the contest's validation."""
        rows = self.node.batch
        while rows // 2 >= max(FEWEST_ROWS, len(windows)):
            rows //= 2
        longest = int(plan.length[windows].max())
        return rows, min(-(-longest // ROOM) * ROOM, self.node.context)

    def cuts(self, collator, windows):
        rows, length = self._shape(collator.plan, windows)
        document = np.searchsorted(self.documents.window, windows[0], side="right") - 1
        return [Cut(windows, (rows, length, int(self.documents.size[document])))]

    # The adapters of a batch

    def begin(self, episode):
        self._take_lane(episode.lane)
        self.rounds, self.steps = [len(one.windows) for one in episode.rounds], 0

    def _take_lane(self, lane):
        """A as this lane has left it; B and moments at zero."""
        node, shapes = self.node, self.layout.shapes
        dtype = torch.promote_types(self.context.model.dtype, torch.float32)
        device = self.context.world.device
        if lane not in self.lanes:
            # All rows begin with the same A: which one a document gets makes no difference to it at first.
            draw = Initialiser(node.seed)
            drawn = [
                draw.normal(f"lora.{target}", uses, 1, node.rank, into, std=1 / math.sqrt(into))
                for target, (uses, _, into) in shapes.items()
            ]
            self.lanes[lane] = [one.to(device, dtype).repeat(1, node.batch, 1, 1).requires_grad_() for one in drawn]
        if self.up is None:
            self.up = [
                torch.zeros(uses, node.batch, out, node.rank, device=device, dtype=dtype).requires_grad_()
                for uses, out, _ in shapes.values()
            ]
            both = self.lanes[lane] + self.up
            self.second = [torch.zeros_like(one) for one in both]
            self.first = [torch.zeros_like(one) for one in both] if node.betas[0] else []
        self.down = self.lanes[lane]
        with torch.no_grad():
            torch._foreach_zero_(self.up + self.second + self.first)

    def ready(self, batch, ids_NK):
        # Rounds of documents reach further back each time, and have ever fewer rows: one graph for them all, and more
        # where all rows or the longest windows are there, for slices are then the whole tensors.
        for tensor, dimension in ((batch.ids_BT, 0), (batch.ids_BT, 1), (batch.take_N, 0), (ids_NK, 0)):
            torch._dynamo.maybe_mark_dynamic(tensor, dimension)

    def tensors(self, rows=None):
        """A and B of the first rows; by default of all."""
        if self.down is None:
            self._take_lane(0)  # the warm-up begins no episode
        both = self.down + self.up
        if rows is None or rows == self.node.batch:
            return tuple(both)
        # Cut here, not in the graph, and with the strides of a tensor of this shape: one graph serves any number of rows.
        return tuple(one[:, :rows].clone(memory_format=torch.contiguous_format) for one in both)

    def linear(self, tensors):
        half = len(tensors) // 2
        return LowRankProducts(self.layout, tensors[:half], tensors[half:], self.node.alpha / self.node.rank)

    @torch.no_grad()
    def after_round(self, nats_N, batch):
        self.steps += 1
        rows, going = len(batch.ids_BT), self.node.batch
        if self.rounds is not None:
            # Documents in their last chunk have nothing to learn for.
            going = self.rounds[self.steps] if self.steps < len(self.rounds) else 0
        if not going:
            return
        live_BS = batch.live_N.view(rows, -1)
        live_BS = live_BS & (torch.arange(rows, device=live_BS.device) < going)[:, None]
        # The sum of the documents' means: a document's gradient does not depend on who else is in the batch.
        share_BS = live_BS / live_BS.sum(1, keepdim=True).clamp(min=1)
        both = self.down + self.up
        gradients = torch.autograd.grad(nats_N, both, share_BS.flatten().to(nats_N.dtype))
        rate_B11 = torch.zeros(self.node.batch, 1, 1, device=nats_N.device, dtype=both[0].dtype)
        rate_B11[:rows, 0, 0] = self.node.rate * live_BS.any(1)
        # As tensors, or each step would be a graph of its own.
        first, second = (rate_B11.new_full((), 1 - beta**self.steps) for beta in self.node.betas)
        parameters = [one.detach() for one in both]
        self.update(
            parameters, gradients, self.first, self.second, rate_B11, first, second, self.node.betas, self.node.decay
        )

    def forget(self):
        self.lanes, self.rounds, self.steps = {}, None, 0
        self.down = self.up = None
        self.first = self.second = ()

    # All weights

    def after_group(self, group, plan, revealed):
        self.groups += 1
        own_D = np.searchsorted(self.documents.floor, np.unique(plan.floor[group.windows()]))
        # In the order of the stream, where long and short ones are mixed.
        self.finished_D = np.union1d(self.finished_D, own_D)
        if self.groups > self.node.phases:
            return
        ids_N1 = self._joined(revealed)
        length = self.context.model.sequence
        whole = (len(ids_N1) - 1) // length * length
        self._train(ids_N1[:whole].view(-1, length), ids_N1[1 : whole + 1].view(-1, length))

    def _joined(self, revealed):
        """All finished documents one after the other, each without the token after it but for the last."""
        parts = []
        for document in self.finished_D.tolist():
            floor = int(self.documents.floor[document])
            parts.append(revealed.tokens(floor, floor + int(self.documents.length[document])))
        return torch.cat([*(part[:-1] for part in parts), parts[-1][-1:]])

    def _train(self, ids_ST, targets_ST):
        """One pass of SGD. The last step goes back to be as large as the others: one graph serves all."""
        size = self._step_sequences()
        steps = -(-len(ids_ST) // size)
        torch._foreach_zero_(self.trainer.velocity)
        _set_learning(self.learning, True)
        for step in range(steps):
            chosen = slice(max(0, min(step * size, len(ids_ST) - size)), (step + 1) * size)
            rate = self.node.base_rate * (1 + math.cos(math.pi * step / steps)) / 2
            self.trainer.step(ids_ST[chosen], targets_ST[chosen], rate)
        _set_learning(self.learning, False)
        self.base_steps += steps

    def _step_sequences(self):
        return max(1, self.node.base_batch // self.context.model.sequence)

    def rehearse(self, vocab, plan, schedule):
        length, size, done, steps, largest = self.context.model.sequence, self._step_sequences(), 0, 0, 0
        for group in schedule[: self.node.phases]:
            windows = group.windows()
            done += int((plan.end - plan.begin)[windows].sum())
            steps += -(-(done // length) // size)
            largest = min(size, done // length)
        if not steps:
            return 0.0
        ids_ST = torch.randint(vocab, (largest, length), device=self.context.world.device)
        _set_learning(self.learning, True)
        for _ in range(2):
            begin = time.perf_counter()
            self.trainer.step(ids_ST, ids_ST, 0.0)
            self.context.world.synchronize()
            seconds = time.perf_counter() - begin
        _set_learning(self.learning, False)
        self.trainer.revert()
        return seconds * steps

    def restore(self):
        if self.trainer is not None:
            self.trainer.revert()
        _set_learning(self.learning, True)

    def summary(self):
        matrices = sum(uses * (out + into) for uses, out, into in self.layout.shapes.values())
        facts = {"documents": len(self.documents.length), "batches": self.batches, "parameters": matrices * self.node.rank}
        return facts | ({"base_steps": self.base_steps} if self.node.phases else {})


def _set_learning(parameters, learning):
    for parameter in parameters:
        parameter.requires_grad_(learning)


def adam_step(parameters, gradients, firsts, seconds, rate_B11, first_left, second_left, betas, decay):
    """Adam in place on tensors [S, B, rows, columns], each row b at its own rate; 0 leaves it as it is.

    With g a gradient, m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, and step k's `first_left` = 1 - b1^k, `second_left`
    = 1 - b2^k: p (1 - rate decay) - rate (m / first_left) / (sqrt(v / second_left) + epsilon). No `firsts`: b1 is 0, m is g.
    """
    kept_B11 = 1 - rate_B11 * decay
    for at, (parameter, gradient, second) in enumerate(zip(parameters, gradients, seconds, strict=True)):
        second.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
        moved = gradient
        if firsts:
            moved = firsts[at].lerp_(gradient, 1 - betas[0]) / first_left
        change = rate_B11 * moved / ((second / second_left).sqrt() + ADAM_EPSILON)
        parameter.mul_(kept_B11).sub_(change)
