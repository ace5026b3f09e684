"""Equal contexts of a token stream, found exactly: nothing is hashed, so nothing can collide.

N targets: target i is token i + 1, its context of length k is tokens i - k + 1..i. M of the contexts stand more than once.

A context's class is a number that equal contexts share and others do not. Short contexts are their own key, as many tokens
as go into 63 bits. A context of length b <= 2a is two overlapping ones of length a, so the two classes of those are its key:
doubling needs one sort of M integers a step, and a context that is alone in the stream is never looked at again.
"""

from dataclasses import dataclass

import torch

KEY_BITS = 63  # of a non-negative int64


def token_bits(tokens):
    """Bits that hold every token of an integer tensor; ValueError for a tensor of another kind, or a negative token."""
    if tokens.dim() != 1 or tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise ValueError(f"tokens are a vector of integers, not {tokens.dtype} {list(tokens.shape)}")
    low, high = (int(value) for value in torch.aminmax(tokens)) if len(tokens) else (0, 0)
    if low < 0:
        raise ValueError(f"token {low} is negative")
    return max(1, high.bit_length())


def grouped(key_M):
    """Stable order of non-negative int64 keys: (order_M int64, first_M bool, True where a new key begins).

    Overwrites key_M on the CPU, where it ends up sorted: torch.sort may work in its input there, and saves 16 bytes a key.
    """
    index_M = torch.empty_like(key_M)
    key_M, index_M = torch.sort(key_M, stable=True, out=(key_M, index_M) if key_M.device.type == "cpu" else None)
    first_M = torch.ones(len(key_M), dtype=torch.bool, device=key_M.device)
    torch.ne(key_M[1:], key_M[:-1], out=first_M[1:])
    return index_M, first_M


def group_of(first_M):
    """The number of each element's group, int32 from 0; groups begin where first_M is True."""
    return first_M.cumsum(0, dtype=torch.int32).sub_(1)


def since_first(first_M):
    """How many elements of its group stand before each element, int32 [M]."""
    begin_G = first_M.nonzero().flatten().int()
    place_M = torch.arange(len(first_M), dtype=torch.int32, device=first_M.device)
    return place_M.sub_(begin_G.index_select(0, group_of(first_M)))


def _packed(tokens, length, bits):
    """int64 [N - length + 1]: the tokens of every context of a length that fits into KEY_BITS, the last token lowest."""
    targets = len(tokens) - 1
    key = tokens[length - 1 : targets].to(torch.int64, copy=True)
    for back in range(1, length):
        key |= tokens[length - 1 - back : targets - back].long() << back * bits
    return key


def _classes_of(key_M, live_N):
    """(class_N int32, number of classes) from the keys of the contexts where live_N is True; -1 for those that are alone.

    Overwrites key_M.
    """
    order_M, first_M = grouped(key_M)
    del key_M
    again_M = ~first_M  # shares its class with a neighbour
    again_M[:-1] |= ~first_M[1:]
    id_M = group_of(first_M & again_M)
    classes = int(id_M[-1]) + 1 if len(id_M) else 0
    id_M.masked_fill_(~again_M, -1)
    place_M = live_N.nonzero().flatten().int().index_select(0, order_M)
    del order_M
    return id_M.new_full((len(live_N),), -1).index_copy_(0, place_M.long(), id_M), classes


def _longer(class_N, classes, step):
    """The classes of contexts `step` tokens longer than those of class_N, at most twice as long."""
    live_N = class_N >= 0
    live_N[step:] &= live_N[:-step].clone()
    live_N[:step] = False
    key_M = class_N[live_N].long()
    key_M <<= classes.bit_length()
    key_M |= class_N[: len(class_N) - step][live_N[step:]]
    return _classes_of(key_M, live_N)


def context_classes(tokens, lengths):
    """Yields (length, class_N) for each of the lengths, ascending and without repetition.

    class_N int32 on the tokens' device: equal for equal contexts of that length, -1 where the context reaches beyond the
    beginning of the stream or stands nowhere else in it. ValueError for a length under 1.
    """
    lengths = sorted(set(lengths))
    if lengths and lengths[0] < 1:
        raise ValueError(f"a context of length {lengths[0]}: the shortest has 1 token")
    bits, targets = token_bits(tokens), max(len(tokens) - 1, 0)
    known = classes = 0
    for length in lengths:
        while known < length <= targets:
            if not known:
                known = min(length, KEY_BITS // bits)
                live_N = torch.ones(targets, dtype=torch.bool, device=tokens.device)
                live_N[: known - 1] = False
                class_N, classes = _classes_of(_packed(tokens, known, bits), live_N)
                del live_N
            else:
                step = min(known, length - known)
                class_N, classes = _longer(class_N, classes, step)
                known += step
        if length <= targets:
            held = [class_N]
            if length == lengths[-1]:
                # Nobody but the caller keeps the last: what is worked on at once has its peak there.
                del class_N
            yield length, held.pop()
        else:
            yield length, torch.full((targets,), -1, dtype=torch.int32, device=tokens.device)


@dataclass(frozen=True, eq=False)
class Occurrences:
    """The contexts of one length that stand more than once, equal ones side by side, each group in the order of scoring.

    target_M int32: whose context it is. first_M bool: True where a group begins.
    """

    target_M: torch.Tensor
    first_M: torch.Tensor
    targets: int

    def spread(self, value_M, fill):
        """Values of the occurrences' targets among all targets [N]; the others get `fill`."""
        return value_M.new_full((self.targets,), fill).index_copy_(0, self.target_M.long(), value_M)


def occurrences(class_N, length, order_N=None, floor_N=None):
    """The Occurrences of contexts of a length by their class_N; order_N (None: as they stand) is the order of scoring.

    floor_N (None: zeros) is the first token that may stand in a target's context.
    """
    if floor_N is not None:
        start_N = torch.arange(1 - length, len(class_N) + 1 - length, device=class_N.device)
        class_N = class_N.masked_fill(start_N < floor_N, -1)
    if order_N is not None:
        class_N = class_N.index_select(0, order_N)
    live_N = class_N >= 0
    order_M, first_M = grouped(class_N[live_N].long())
    target_M = live_N.nonzero().flatten().int().index_select(0, order_M)
    return Occurrences(target_M if order_N is None else order_N.index_select(0, target_M), first_M, len(class_N))


def scoring_order(rank_N, targets):
    """int32 [N]: the target that is scored r-th, or None for rank_N None; ValueError unless rank_N is a permutation."""
    if rank_N is None:
        return None
    if rank_N.shape != (targets,):
        raise ValueError(f"rank_N has the shape {list(rank_N.shape)}, there are {targets} targets")
    order_N = torch.full_like(rank_N, -1, dtype=torch.int32)
    if targets:
        low, high = (int(value) for value in torch.aminmax(rank_N))
        if low >= 0 and high < targets:
            order_N.index_copy_(0, rank_N.long(), torch.arange(targets, dtype=torch.int32, device=rank_N.device))
        if int(order_N.min()) < 0:
            raise ValueError(f"rank_N is no permutation of 0..{targets - 1}")
    return order_N
