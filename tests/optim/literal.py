"""Orthogonalisers as their sources write them: one float64 matrix at a time, element by element where it is short."""

import torch

POLAR_EXPRESS = (
    (8.1566, -22.4833, 15.8788), (4.0429, -2.8089, 0.5), (3.8917, -2.7725, 0.5061), (3.2858, -2.3681, 0.4645),
    (2.3465, -1.7098, 0.4232),
)  # fmt: skip
TURBO_MUON = (
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)


def on_the_wide_side(work):
    """`work` on float64 matrices with no more rows than columns."""

    def apply(matrix_RC, *arguments):
        x = matrix_RC.double()
        return work(x.T, *arguments).T if x.shape[0] > x.shape[1] else work(x, *arguments)

    return apply


def step(x, a, b, c):
    gram = x @ x.T
    return a * x + (b * gram + c * gram @ gram) @ x


@on_the_wide_side
def literal_quintic(x, steps=5):
    x = x / (x.square().sum().sqrt() + 1e-7)
    for _ in range(steps):
        x = step(x, 3.4445, -4.7750, 2.0315)
    return x


@on_the_wide_side
def literal_polar_express(x):
    x = x / (1.02 * x.square().sum().sqrt() + 1e-7)
    for row in POLAR_EXPRESS:
        x = step(x, *row)
    return x


@on_the_wide_side
def literal_turbo_without_post_norm(x):
    gram = x @ x.T
    scales = [1 / (sum(abs(float(value)) for value in row) ** 0.5 + 1e-7) for row in gram]
    x = torch.diag(torch.tensor(scales, dtype=torch.float64)) @ x
    for row in TURBO_MUON:
        x = step(x, *row)
    return x


def literal_turbo(matrix_RC):
    x = literal_turbo_without_post_norm(matrix_RC)
    x = torch.stack([row / (row.square().sum().sqrt() + 1e-7) for row in x])
    return torch.stack([column / (column.square().sum().sqrt() + 1e-7) for column in x.T]).T


def literal_equal_rows(matrix_RC, then=literal_quintic):
    x = matrix_RC.double()
    return then(torch.stack([row / max(float(row.square().sum().sqrt()), 1e-7) for row in x]))
