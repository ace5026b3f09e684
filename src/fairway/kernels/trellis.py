"""Trellis-coded integers: values of a fine grid, of which each row may use every second, chosen by a path of 8 states.

A path runs down the rows of a column from state 0. State s allows the even integers (s & 1 = 0) or the odd ones, and a code
k there means the value 2 k + (s & 1). Its parity then decides the next state, ((2 s) & 7) | u with u = (k & 1) ^ s1 ^ s2, s1
and s2 the bits of s worth 2 and 4: Ungerboeck's trellis, as JPEG 2000 part 2 has it. So a code costs what it does on the
integers of step 2, and the error is 1 dB smaller, since the path goes where the nearest values are.

N columns, R rows, L leaves of three rows, K = 255 codes from -127.
"""

import torch
from torch.nn import functional as F

GREATEST_CODE = 127


def trellis_values(codes):
    """The integers that codes [..., R, C] stand for, int16. A code's value depends on the codes above it in its column.

    With p the parities, u_r = p_r ^ u_(r-2) ^ u_(r-3): u = p / f for the polynomial f = 1 + D^2 + D^3 over GF(2), D a delay
    of one row. Squaring there doubles every power, f^2 = f(D^2), hence 1 / f = f f(D^2) f(D^4) ... up to delays of R rows.
    """
    u, delay = codes & 1, 1
    while 2 * delay < codes.shape[-2]:
        earlier, u = u, u.clone()
        for shift in (2 * delay, 3 * delay):
            u[..., shift:, :] ^= earlier[..., : max(0, u.shape[-2] - shift), :]
        delay *= 2
    return 2 * codes.short() + F.pad(u, (0, 0, 1, -1))


def trellis_path(x_NR, weight_NR, price_2K=None):
    """(codes int8, values int16), [N, R]: the paths of least sum over r of weight * (x - value)^2 + price[set, k + 127].

    x is in units of the grid's step, float32; set is the state's s & 1; no prices: pure distortion. Of each residue modulo 4
    only the nearest value with |k| <= 127 is considered: the second nearest is never worth its error. Runs on the tensors'
    device without waiting for it.

    Three rows lead from each state to each state in exactly one way. So a leaf of three rows is a matrix of costs [8, 8],
    neighbours join by (min, +) products, log2 R of them one after the other, and the states are found on the way back.
    """
    count = x_NR.shape[1]
    cost_NR4, code_NR4 = _branches(x_NR, weight_NR, price_2K)
    subset_3P = _leaf_subsets(x_NR.device)
    cost_NL34 = F.pad(cost_NR4, (0, 0, 0, -count % 3)).unflatten(1, (-1, 3))
    cost_NLII = sum(cost_NL34[:, :, row].index_select(2, subset_3P[row]) for row in range(3)).unflatten(2, (8, 8))
    middles = []  # of each level: its number of nodes, and the state between two by where they begin and end
    while (nodes := cost_NLII.shape[1]) > 1:
        left, right = F.pad(cost_NLII, (0, 0, 0, 0, 0, nodes % 2)).unflatten(1, (-1, 2)).unbind(2)
        cost_NLII, middle_NLII = (left.unsqueeze(-1) + right.unsqueeze(-3)).min(dim=-2)
        middles.append((nodes, middle_NLII.flatten(2)))
    end_N = cost_NLII[:, 0, 0].argmin(dim=1)
    state_NL = torch.stack([torch.zeros_like(end_N), end_N], dim=1)
    for nodes, middle_NLP in reversed(middles):
        pair_NL = 8 * state_NL[:, :-1] + state_NL[:, 1:]
        middle_NL = middle_NLP.gather(2, pair_NL.unsqueeze(2)).squeeze(2)
        between_NL = torch.stack([state_NL[:, :-1], middle_NL], dim=2).flatten(1)
        state_NL = torch.cat([between_NL, state_NL[:, -1:]], dim=1)[:, : nodes + 1]
    subset_NL3 = subset_3P.T[8 * state_NL[:, :-1] + state_NL[:, 1:]]
    residue_NR1 = subset_NL3.flatten(1)[:, :count, None]
    code_NR = code_NR4.gather(2, residue_NR1).squeeze(2)
    return code_NR, 2 * code_NR.short() + (residue_NR1.squeeze(2) & 1).short()


def _branches(x_NR, weight_NR, price_2K):
    """(cost float32, code int8), each [N, R, 4]: the nearest value of each residue modulo 4, 2 * parity + set."""
    residue_4 = torch.arange(4, device=x_NR.device)
    parity_4 = residue_4 // 2
    step_NR4 = ((x_NR.unsqueeze(2) - residue_4) / 4).round().clamp(max=GREATEST_CODE // 2)
    step_NR4 = step_NR4.maximum(-(GREATEST_CODE // 2) - parity_4)
    cost_NR4 = weight_NR.unsqueeze(2) * (x_NR.unsqueeze(2) - (4 * step_NR4 + residue_4)).square()
    code_NR4 = (2 * step_NR4 + parity_4).to(torch.int8)
    if price_2K is not None:
        cost_NR4 += price_2K.flatten()[code_NR4.long() + GREATEST_CODE + residue_4 % 2 * price_2K.shape[1]]
    # What all four share decides nothing, and one row far beyond the grid would drown the others' in rounding.
    return cost_NR4 - cost_NR4.amin(dim=2, keepdim=True), code_NR4


def _leaf_subsets(device):
    """[3, 64]: the residue that each of three rows takes on the way from state p // 8 to state p % 8.

    p's six bits are the last three u above the leaf and the leaf's own, and three bits one after the other are a state.
    """
    step_3P = torch.arange(64, device=device) >> torch.arange(2, -1, -1, device=device)[:, None]  # below: s2 s1 s0 u
    return 2 * ((step_3P ^ step_3P >> 2 ^ step_3P >> 3) & 1) + (step_3P >> 1 & 1)


def reference_trellis_values(codes_RC):
    """`trellis_values` of one matrix by a walk down the rows."""
    state_C = torch.zeros_like(codes_RC[0], dtype=torch.int64)
    values_RC = torch.zeros_like(codes_RC, dtype=torch.int16)
    for row, code_C in enumerate(codes_RC.long()):
        values_RC[row] = 2 * code_C + (state_C & 1)
        state_C = (2 * state_C & 7) | (code_C & 1 ^ state_C >> 1 & 1 ^ state_C >> 2)
    return values_RC


def reference_trellis_path(x_NR, weight_NR, price_2K=None):
    """The codes of `trellis_path` by Viterbi's algorithm, row after row, summed in float64."""
    cost_NR4, code_NR4 = _branches(x_NR, weight_NR, price_2K)
    state_S = torch.arange(8, device=x_NR.device)
    before_S2 = torch.stack([state_S // 2, state_S // 2 + 4], dim=1)  # the two states that lead to each
    parity_S2 = (state_S[:, None] & 1) ^ (before_S2 >> 1 & 1) ^ (before_S2 >> 2)
    subset_S2 = 2 * parity_S2 + (before_S2 & 1)
    total_NS = x_NR.new_full((len(x_NR), 8), torch.inf, dtype=torch.float64)
    total_NS[:, 0] = 0
    choices = []
    for cost_N4 in cost_NR4.double().unbind(1):
        total_NS, choice_NS = (total_NS[:, before_S2] + cost_N4[:, subset_S2]).min(dim=2)
        choices.append(choice_NS)
    state_N, codes = total_NS.argmin(dim=1), []
    for row in range(x_NR.shape[1] - 1, -1, -1):
        choice_N = choices[row].gather(1, state_N[:, None])[:, 0]
        codes.append(code_NR4[:, row].gather(1, subset_S2[state_N, choice_N][:, None]))
        state_N = before_S2[state_N, choice_N]
    return torch.cat(codes[::-1], dim=1)
