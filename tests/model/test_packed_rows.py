"""Whole recipes' models at a small size on packed rows, and what their parts make of them."""

import pytest
import torch

from conformance.table import BASE, BOS, bounds_of, check_windows_apart, last, packed_logits, random_ids, randomise
from fairway.kernels.attention import window_mask
from fairway.model import attention as attention_module
from fairway.model.context import Carry
from fairway.model.inputs import BigramHash, EngramLite, earlier_ids
from fairway.model.positions import Rotary
from fairway.model.spine import GPT
from fairway.model.stream import HashEmbedding, predecessors
from fairway.node import amend, parse_node
from fairway.problem import Problem
from fairway.recipes.pr162 import pr162
from fairway.recipes.pr864 import pr864
from fairway.recipes.pr1205 import pr1205
from fairway.recipes.pr1514 import pr1514
from fairway.recipes.pr1523 import pr1523

RECIPES = (pr162, pr864, pr1205, pr1514, pr1523)
LAYOUT = [[9, 1, 14], [24], [2, 3, 5, 14]]


def small(recipe):
    """A recipe's model: all its techniques and layers, 64 wide; randomised, and ids for it with documents in them."""
    model = amend(recipe(), GPT, vocab=50, width=64, heads=4, kv_heads=2, sequence=24).model
    ids_BT = random_ids(model, batch=3)
    ids_BT[0, 10] = ids_BT[1, 5] = ids_BT[2, 12] = BOS
    return randomise(model.build(0)), ids_BT


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)
def test_a_recipes_model_gives_each_window_of_a_packed_row_what_it_gets_alone(recipe):
    check_windows_apart(*small(recipe), LAYOUT, 2e-4)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)
def test_one_graph_serves_all_layouts_of_a_shape(recipe):
    module, ids_BT = small(recipe)
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(lambda ids_BT, bounds: packed_logits(module, ids_BT, bounds), backend=backend, fullgraph=True)
    with torch.no_grad():
        for layout, spare in ((LAYOUT, 2), ([[24], [10, 14], [1, 1, 1, 21]], 3)):
            bounds = bounds_of(layout, spare)
            assert torch.equal(compiled(ids_BT, bounds), packed_logits(module, ids_BT, bounds))
    assert len(graphs) == 1


def test_the_mask_is_built_once_a_pass(monkeypatch):
    built = []
    monkeypatch.setattr(attention_module, "window_mask", lambda bounds: built.append(0) or window_mask(bounds))
    module = randomise(BASE.build(0))
    packed_logits(module, random_ids(BASE), bounds_of([[4, 12], [16]]))
    assert len(built) == 1
    module(random_ids(BASE))
    assert len(built) == 1


def test_ids_before_a_window_count_as_none():
    ids_BT, bounds = torch.tensor([[3, 4, 5, 6, 7, 8]]), bounds_of([[4, 1, 1]])
    assert earlier_ids(ids_BT, 1, bounds).tolist() == [[0, 3, 4, 5, 0, 0]]
    assert earlier_ids(ids_BT, 2, bounds).tolist() == [[0, 0, 3, 4, 0, 0]]
    assert earlier_ids(ids_BT, 2).tolist() == [[0, 0, 3, 4, 5, 6]]
    for node in (BigramHash(buckets=64, dim=2), EngramLite(buckets=64, dim=2), HashEmbedding(buckets=64)):
        module = last("inputs" if hasattr(node, "dim") else "stream", BASE, node).build(0)
        part = next(part for part in module.modules() if hasattr(part, "hash"))
        apart = torch.cat([part.hash(window_BT) for window_BT in ids_BT.split([4, 1, 1], dim=1)], dim=1)
        assert torch.equal(part.hash(ids_BT, bounds), apart)
        assert not torch.equal(part.hash(ids_BT), apart)


def test_rotary_turns_by_the_place_in_the_window():
    # Attention reads differences of places only, so a whole model would show a fault as rounding.
    (part,) = last("positions", BASE, Rotary()).build(0).attention.positions
    x_BTHK = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    rows = [[4, 2], [1, 5]]
    turned = [part.rotate(window) for row, cuts in zip(x_BTHK, rows, strict=True) for window in row[None].split(cuts, 1)]
    assert torch.equal(part.rotate(x_BTHK, bounds_of(rows)).flatten(0, 1), torch.cat(turned, 1)[0])


def test_the_first_position_of_a_window_has_no_predecessor():
    x_BTD, bounds = torch.arange(1.0, 6.0).view(1, 5, 1), bounds_of([[3, 2]])
    ids_BT = torch.tensor([[5, BOS, 5, 5, BOS]])
    for bos, expected in ((None, [0, 1, 2, 0, 4]), (BOS, [0, 0, 2, 0, 0])):
        assert predecessors(x_BTD, Carry(ids_BT, x_BTD.dtype, bounds=bounds), bos).flatten().tolist() == expected
    assert predecessors(x_BTD, Carry(ids_BT, x_BTD.dtype), None).flatten().tolist() == [0, 1, 2, 3, 4]


def test_the_hash_embedding_is_the_formula_of_its_table_in_the_streams_dtype():
    module = last("stream", BASE, HashEmbedding()).build(0)
    (part,) = module.stream
    assert part.table_ND.shape == (16_384, BASE.width) and part.owned["table_ND"][0] == "table" and not part.table_ND.any()
    ids = [7, 1023, 0, 8191, 7]
    rows = part.hash(torch.tensor([ids], dtype=torch.int32))[0].tolist()
    assert rows == [(2039 * before + now) % 16_384 for before, now in zip([0, *ids], ids, strict=False)]
    randomise(module)
    x_BTD = torch.randn(1, 5, BASE.width, generator=torch.Generator().manual_seed(0))
    carry = Carry(torch.tensor([ids]), torch.bfloat16)
    y_BTD = part(x_BTD.bfloat16(), carry)
    assert y_BTD.dtype == torch.bfloat16
    assert torch.equal(y_BTD[0, 3], x_BTD[0, 3].bfloat16() + part.table_ND[rows[3]].bfloat16())
    assert parse_node("HashEmbedding(buckets=512)", {"HashEmbedding": HashEmbedding}) == HashEmbedding(512)
    with pytest.raises(Problem, match=r"HashEmbedding.buckets is 0; take 1"):
        HashEmbedding(0)
