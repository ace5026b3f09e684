import dataclasses
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairway.node import (
    Node,
    amend,
    children,
    digest,
    drop,
    node_kinds,
    override,
    parse_node,
    paths,
    show,
    swap,
    transform,
    walk,
)
from fairway.problem import Problem


@dataclass(frozen=True)
class Twig(Node):
    number: int = 3
    real: float = 0.5
    word: str = "oak"
    flag: bool = False
    perhaps: int | None = None
    pair: tuple[float, float] = (0.9, 0.95)
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Acorn(Node):
    weight: float = 1.0


@dataclass(frozen=True)
class Branch(Node):
    twig: Node = Twig()
    fruit: tuple[Node, ...] = ()
    holes: tuple[int | None, ...] = ()
    second: Node | None = None


TREE = Branch(Twig(number=1), (Twig(number=2), Acorn(2.0), Branch(fruit=(Acorn(3.0),))))

finite = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53)
twigs = st.builds(
    Twig,
    number=st.integers(),
    real=finite,
    word=st.text(),
    flag=st.booleans(),
    perhaps=st.none() | st.integers(),
    pair=st.tuples(finite, finite),
    words=st.lists(st.text(), max_size=4).map(tuple),
)
trees = st.recursive(
    twigs | st.builds(Acorn, finite),
    lambda below: st.builds(
        Branch,
        twig=below,
        fruit=st.lists(below, max_size=3).map(tuple),
        holes=st.lists(st.none() | st.integers(), max_size=3).map(tuple),
        second=st.none() | below,
    ),
    max_leaves=6,
)


@settings(max_examples=80, deadline=None)
@given(trees)
def test_repr_and_show_read_back_to_the_same_tree_and_the_same_digest(tree):
    for text in (repr(tree), show(tree)):
        back = parse_node(text)
        assert back == tree
        # Also to the letter: -0.0 and an int in a float's place compare equal, but a digest tells them apart.
        assert repr(back) == repr(tree) and digest(back) == digest(tree)


@pytest.mark.parametrize(
    "word", ["it's", 'say "x"', "both ' and \"", "new\nline", "back\\slash", "a word " * 40, "{x}", "日本", ""]
)
def test_strings_of_all_kinds_survive(word):
    tree = Branch(Twig(word=word, words=(word,)))
    assert parse_node(show(tree)) == parse_node(repr(tree)) == tree


def test_the_digest_is_sixteen_hex_digits_and_sees_every_field():
    assert len(digest(TREE)) == 16 and int(digest(TREE), 16) >= 0
    variants = [amend(TREE, Acorn, weight=2.5), drop(TREE, Acorn), dataclasses.replace(TREE, holes=(None,)), TREE]
    assert len({digest(tree) for tree in variants}) == len(variants)


def test_walk_names_every_node_by_the_path_that_settings_use():
    assert list(walk(TREE)) == [
        ("", TREE),
        ("twig", TREE.twig),
        ("fruit.Twig", TREE.fruit[0]),
        ("fruit.Acorn", TREE.fruit[1]),
        ("fruit.Branch", TREE.fruit[2]),
        ("fruit.Branch.twig", TREE.fruit[2].twig),
        ("fruit.Branch.fruit.Acorn", TREE.fruit[2].fruit[0]),
    ]


def test_two_of_one_class_are_told_apart_by_position():
    tree = Branch(fruit=(Acorn(1.0), Twig(), Acorn(2.0)))
    assert [step for step, *_ in children(tree)] == ["twig", "fruit.Acorn:0", "fruit.Twig", "fruit.Acorn:2"]
    changed = override(tree, ["fruit.Acorn:2.weight=7"])
    assert [item.weight for item in changed.fruit if isinstance(item, Acorn)] == [1.0, 7.0]
    with pytest.raises(Problem, match=r"nearest is fruit.Acorn:[02].weight"):
        override(tree, ["fruit.Acorn.weight=7"])


def test_a_node_without_a_build_says_so():
    with pytest.raises(NotImplementedError, match="Acorn has nothing to build"):
        Acorn().build(None)


def test_amend_changes_every_node_of_a_type_and_no_other():
    tree = amend(TREE, Acorn, weight=9.0)
    assert [node.weight for _, node in walk(tree) if isinstance(node, Acorn)] == [9.0, 9.0]
    assert drop(tree, Acorn) == drop(TREE, Acorn)
    assert TREE.fruit[1].weight == 2.0


def test_swap_replaces_nodes_alone_and_in_tuples():
    tree = swap(TREE, Twig, Acorn(5.0))
    assert tree == Branch(Acorn(5.0), (Acorn(5.0), Acorn(2.0), Branch(Acorn(5.0), (Acorn(3.0),))))


def test_drop_takes_nodes_out_of_tuples_and_leaves_plain_none_there():
    tree = dataclasses.replace(TREE, holes=(None, 1, None))
    assert drop(tree, Acorn) == Branch(Twig(number=1), (Twig(number=2), Branch()), (None, 1, None))


def test_a_node_that_stands_alone_cannot_be_dropped():
    with pytest.raises(Problem, match=r"Twig stands alone at Branch\.twig"):
        drop(TREE, Twig)


@pytest.mark.parametrize("change", [amend, drop, lambda tree, kind: swap(tree, kind, Twig())])
def test_changing_what_is_not_there_is_a_problem(change):
    with pytest.raises(Problem, match="no Acorn in this Twig"):
        change(Twig(), Acorn)


def test_transform_works_from_the_leaves_upwards():
    seen = []
    transform(TREE, lambda node: seen.append(type(node).__name__) or node)
    assert seen == ["Twig", "Twig", "Acorn", "Twig", "Acorn", "Branch"]


def test_node_kinds_finds_descendants_of_any_depth():
    assert {"Node": Node, "Twig": Twig, "Branch": Branch}.items() <= node_kinds().items()
    assert node_kinds(Twig) == {"Twig": Twig}


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "open('x')",
        "Twig.build(number=1)",
        "Twig(word=open('x'))",
        "Twig(number=(lambda: 1)())",
        "Twig(number=1 if True else 2)",
        "Twig(number=2**8)",
        "Twig(words=tuple(c for c in 'ab'))",
        "Twig(word=f'{1}')",
        "Twig(word=word)",
        "Twig(number=[1][0])",
        "Branch(fruit=[Twig()])",
        "Twig(**{'number': 1})",
        "Twig(*(1,))",
        "(Twig := 3)",
    ],
)
def test_nothing_that_runs_is_read(text):
    with pytest.raises(Problem) as problem:
        parse_node(text)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Twig(",
        "Twig() Twig()",
        "x = 1",
        "Twig(\0)",
        "{[1]}",
        "Twig(number={[1]: 2})",
        "-" * 5000 + "1",
        "\ud800",
        "1+" * 5000 + "1",
    ],
)
def test_what_is_no_expression_or_too_deep_is_one_line(text):
    with pytest.raises(Problem) as problem:
        parse_node(text)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize(
    "text, says",
    [
        ("Twigg()", "unknown node Twigg; nearest is Twig"),
        ("Branch(twig=Acrn())", "unknown node Acrn; nearest is Acorn"),
        ("Twig(numbr=1)", "Twig has no field numbr; nearest is number"),
        ("Twig(3)", r"takes fields by name, as in Twig\(number="),
        ("Twig(number=1, number=2)", "Twig names number twice"),
        ("Twig(number=1.5)", r"Twig.number takes int, not 1\.5"),
        ("Twig(number=True)", "Twig.number takes int, not True"),
        ("Twig(real='1')", "Twig.real takes float, not '1'"),
        ("Twig(real=1e999)", "Twig.real takes float, not inf"),
        ("Twig(real=1" + "0" * 400 + ")", "Twig.real takes float"),
        ("Twig(flag=1)", "Twig.flag takes bool, not 1"),
        ("Twig(word=None)", "Twig.word takes str, not None"),
        ("Twig(pair=(1.0,))", r"Twig.pair takes tuple\[float, float\]"),
        ("Twig(words='ab')", r"Twig.words takes tuple\[str, \.\.\.\]"),
        ("Branch(twig=3)", "Branch.twig takes Node, not 3"),
        ("Branch(fruit=(Twig(), 3))", r"Branch.fruit takes tuple\[fairway.node.Node, \.\.\.\]"),
    ],
)
def test_a_wrong_name_or_type_is_named(text, says):
    with pytest.raises(Problem, match=says):
        parse_node(text)


def test_a_field_without_default_must_be_given():
    @dataclass(frozen=True)
    class Needy(Node):
        must: int

    with pytest.raises(Problem, match="must"):
        parse_node("Needy()")


def test_the_reader_knows_only_the_kinds_it_is_given():
    assert parse_node("Acorn(weight=2.0)", {"Acorn": Acorn}) == Acorn(2.0)
    with pytest.raises(Problem, match="unknown node Twig"):
        parse_node("Twig()", {"Acorn": Acorn})


@pytest.mark.parametrize(
    "setting, field, value",
    [
        ("number=-7", "number", -7),
        ("real=2", "real", 2.0),
        ("real=1e-3", "real", 1e-3),
        ("word=two words = three", "word", "two words = three"),
        ("word=true", "word", "true"),
        ("word=12", "word", "12"),
        ("word=", "word", ""),
        ("flag=true", "flag", True),
        ("flag=False", "flag", False),
        ("perhaps=4", "perhaps", 4),
        ("perhaps=None", "perhaps", None),
        ("perhaps=none", "perhaps", None),
        ("pair=(0.5, 1)", "pair", (0.5, 1)),
        ("words=('a', 'b')", "words", ("a", "b")),
        ("words=()", "words", ()),
    ],
)
def test_a_setting_takes_the_type_of_its_field(setting, field, value):
    got = getattr(override(Twig(perhaps=1), [setting]), field)
    assert got == value and type(got) is type(value)


def test_settings_reach_nodes_at_any_depth():
    tree = override(TREE, ["twig.number=5", "fruit.Acorn.weight=4", "fruit.Branch.fruit.Acorn.weight=6.5"])
    assert tree.twig.number == 5 and tree.fruit[1].weight == 4.0 and tree.fruit[2].fruit[0].weight == 6.5
    assert tree.fruit[0] is TREE.fruit[0]


def test_a_value_may_be_a_node_or_a_tuple_of_nodes():
    tree = override(TREE, ["twig=Acorn(weight=8.0)", "fruit=(Twig(), Acorn())", "second=Acorn()"])
    assert tree == Branch(Acorn(8.0), (Twig(), Acorn()), second=Acorn())
    assert override(tree, ["second=none"]).second is None


def test_settings_apply_in_order_each_to_what_the_last_one_left():
    assert override(Twig(), ["number=1", "number=2"]).number == 2
    assert override(TREE, ["fruit=(Acorn(),)", "fruit.Acorn.weight=3"]).fruit == (Acorn(3.0),)
    with pytest.raises(Problem, match="unknown path"):
        override(TREE, ["fruit=()", "fruit.Acorn.weight=3"])


@pytest.mark.parametrize(
    "setting, says",
    [
        ("fruit.Acron.weight=1", "unknown path 'fruit.Acron.weight'; nearest is fruit.Acorn.weight"),
        ("twig.nmber=1", "nearest is twig.number"),
        ("fruit.Acorn=1", "unknown path 'fruit.Acorn'"),
        ("=1", "unknown path ''"),
        ("twig.number", "'twig.number' is not path=value"),
        ("twig.number=1.5", "twig.number takes int, not 1.5"),
        ("twig.number=many", "twig.number takes int, not 'many'"),
        ("twig.number=none", "twig.number takes int, not None"),
        ("twig.real=nan", "twig.real takes float, not 'nan'"),
        ("twig.real=1e999", "twig.real takes float, not inf"),
        ("twig.flag=1", "twig.flag takes bool, not 1"),
        ("twig.flag=yes", "twig.flag takes bool, not 'yes'"),
        ("twig.pair=(1.0,)", "twig.pair takes tuple"),
        ("twig=3", "twig takes Node, not 3"),
        ("twig=Acrn()", "unknown node Acrn; nearest is Acorn"),
        ("twig=Acorn(wight=1)", "Acorn has no field wight; nearest is weight"),
        ("twig=Acorn(weight=1,", r"twig='Acorn\(weight=1,': not a recipe: line 1: "),
        ("fruit=(Acorn(),", r"fruit='\(Acorn\(\),': "),
    ],
)
def test_a_setting_that_does_not_fit_is_named(setting, says):
    with pytest.raises(Problem, match=says):
        override(TREE, [setting])


@settings(max_examples=40, deadline=None)
@given(trees)
def test_every_path_that_is_listed_can_be_set(tree):
    nodes = dict(walk(tree))
    for path, (parent, field) in paths(tree).items():
        value = getattr(nodes[parent], field)
        if not isinstance(value, str):
            assert override(tree, [f"{path}={value!r}"]) == tree
