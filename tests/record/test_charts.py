"""Charts: what is drawn is in proportion to what was measured, and names from files stay text."""

import math
import random
import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest

from fairway.record.charts import band_chart, budget_bars, greatest_shown, interval_chart, line_chart, staircase, treemap
from fairway.record.marks import (
    CHART_STYLE,
    clipped,
    column_means,
    fitting_ticks,
    lines_of,
    log_ticks,
    text_width,
    thin,
    tick_labels,
    ticks,
)

EVIL = '<script>alert("1")</script>&\x00\x1b'
WRITTEN = '<script>alert("1")</script>&\ufffd\ufffd'
ODD = (math.nan, math.inf, None)


def views(markup):
    """The wide and the narrow <svg> of a chart, parsed."""
    return list(ElementTree.fromstring(str(markup)))


def texts(svg):
    """Texts that are drawn."""
    return [element.text for element in svg.iter("text")]


def described(svg):
    return svg.find("desc").text


def of_class(svg, tag, *classes):
    return [one for one in svg.iter(tag) if set(classes) <= set(one.get("class", "").split())]


def number(element, name):
    return float(element.get(name))


def corners(path):
    """Points of a <path>."""
    return [tuple(map(float, point.split(","))) for point in re.findall(r"-?[\d.]+,-?[\d.]+", path.get("d"))]


def ratio(values):
    """(b - a) / (c - a): what does not change where a scale is linear."""
    a, b, c = values
    return (b - a) / (c - a)


def interval_row(label="a", points=(1.0, 2.0, 4.0), mean=2.5, low=0.5, high=4.5):
    return {"label": label, "points": list(points), "mean": mean, "low": low, "high": high}


def bucket(label="1–2", value=3.0, low=2.5, high=3.5, count=1000):
    return {"label": label, "value": value, "low": low, "high": high, "count": count}


def every_chart(name="a", value=2.0, ident=""):
    """One of each chart, of one name and one value."""
    return [
        line_chart(f"{ident}line", name, [{"name": name, "points": [(1, value), (2, value)]}] * 2, name, name),
        staircase(f"{ident}stairs", name, [{"name": name, "steps": [(name, value), (name, value)]}]),
        treemap(f"{ident}tree", name, [{"label": name, "group": name, "value": value}], value),
        budget_bars(f"{ident}bars", name, [{"label": name, "parts": [{"name": name, "seconds": value}]}], 600),
        interval_chart(
            f"{ident}seeds", name, [interval_row(name, [value], value, value, value)], [{"label": name, "value": value}]
        ),
        band_chart(f"{ident}band", name, [bucket(name, value, value, value)], name, name),
    ]


def test_every_chart_is_a_picture_with_a_name_and_a_description_of_its_own_in_both_sizes():
    seen = []
    for markup in every_chart():
        wide, narrow = views(markup)
        assert (wide.get("class"), narrow.get("class")) == ("wide", "narrow")
        for svg in (wide, narrow):
            ids = [one.get("id") for one in svg.iter() if one.get("id")]
            assert svg.get("role") == "img" and svg.get("width") == "100%"
            assert svg.get("aria-labelledby").split() == [svg.find("title").get("id"), svg.find("desc").get("id")]
            seen += ids
    assert len(seen) == len(set(seen)) >= 24


def test_names_from_files_stay_text():
    for markup in every_chart(EVIL):
        assert "<script" not in markup
        for svg in views(markup):
            assert WRITTEN in described(svg) or WRITTEN in svg.find("title").text
            assert not list(svg.iter("script"))


def test_no_chart_names_a_colour_and_every_class_that_is_drawn_is_in_the_style_sheet():
    classes = set(re.findall(r"\.([a-z]\w*)", CHART_STYLE))
    over = budget_bars("a", "a", [{"label": "a", "parts": [{"name": "x", "seconds": 700}]}], 600)
    for markup in [*every_chart(), over]:
        assert "style=" not in markup and not re.search(r"[\"' :]#[0-9a-f]{3}|rgb|hsl", str(markup))
        assert not re.search(r'(?:stroke|fill)="(?!url)', str(markup))
        drawn = {name for one in ElementTree.fromstring(str(markup)).iter() for name in one.get("class", "").split()}
        assert drawn <= classes
    assert set(re.findall(r"var\((--\w+)\)", CHART_STYLE)) == {
        "--ink", "--muted", "--grid", "--paper", "--pass", "--fail", "--hue", *(f"--s{index}" for index in range(8))
    }  # fmt: skip


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-300, 1e-12, 1.0, 123456789, 1e22, 9e299])
def test_every_chart_can_show_any_one_value(value):
    for markup in every_chart(value=value):
        for svg in views(markup):
            assert_inside(svg)


def test_long_names_are_cut_inside_the_picture_and_whole_in_the_description():
    name = "a name that goes on and on, " * 12
    for markup in every_chart(name):
        for svg in views(markup):
            assert_inside(svg)
            assert name in described(svg)


@pytest.mark.parametrize("value", ODD)
def test_what_is_no_number_is_left_out(value):
    charts = [
        line_chart("a", "a", [{"name": "a", "points": [(1, 2.0), (2, value), (3, 4.0)]}], "x", "y"),
        staircase("b", "b", [{"name": "a", "steps": [("w", 2.0), ("p", value), ("s", 1.9)]}]),
        treemap("c", "c", [{"label": "a", "group": "g", "value": 3}, {"label": "b", "group": "g", "value": value}], value),
        budget_bars(
            "d", "d", [{"label": "a", "parts": [{"name": "x", "seconds": 5.0}, {"name": "y", "seconds": value}]}], 600
        ),
        interval_chart("e", "e", [interval_row(mean=value, low=value, high=value)], [{"label": "m", "value": value}]),
        band_chart("f", "f", [bucket(), bucket("b", 2.0, value, value), bucket("c", value)]),
    ]
    for markup in charts:
        assert "nothing to show" not in markup
        for svg in views(markup):
            assert_inside(svg)
    assert "left out" in charts[0] and "1 without a value" in charts[1] and "no mean" in charts[4] and "c: none" in charts[5]


def assert_inside(svg):
    """Everything that is drawn is made of numbers within the picture."""
    _, _, width, height = map(float, svg.get("viewBox").split())
    for one in svg.iter():
        for name in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height"):
            if one.get(name) and one is not svg:
                assert -0.01 <= number(one, name) <= max(width, height) + 0.01, (one.tag, name, one.get(name))
        if one.tag == "path":
            assert all(0 <= x <= width and 0 <= y <= height for x, y in corners(one))
        if one.tag == "text":
            before = {"end": 1.0, "middle": 0.5, None: 0.0}[one.get("text-anchor")]
            wide = text_width(one.text, float(svg.get("font-size")))
            assert number(one, "x") - before * wide >= -0.01, one.text
            assert number(one, "x") + (1 - before) * wide <= width + 0.01, one.text


def test_charts_of_nothing_say_so():
    nothing = [
        line_chart("a", "a", [], "x", "y"),
        line_chart("b", "b", [{"name": "a", "points": [(-1, 2.0)]}], "x", "y", log_x=True),
        staircase("c", "c", [{"name": "a", "steps": []}]),
        treemap("d", "d", [], 0),
        budget_bars("e", "e", [], 600),
        interval_chart("f", "f", [], []),
        band_chart("g", "g", []),
    ]
    for markup in nothing:
        for svg in views(markup):
            assert texts(svg) == ["nothing to show"] and described(svg) == "There is nothing to show."


def test_an_ident_that_cannot_be_an_id_is_refused():
    with pytest.raises(ValueError, match="a b"):
        staircase("a b", "t", [])


# --- lines


def test_a_line_is_in_proportion_to_its_points():
    for svg in views(line_chart("a", "t", [{"name": "n", "points": [(10, 5.0), (20, 3.0), (50, 2.0)]}], "x", "y")):
        spots = corners(of_class(svg, "path", "curve")[0])
        assert ratio([x for x, _ in spots]) == pytest.approx(0.25, abs=1e-3)
        assert ratio([y for _, y in spots]) == pytest.approx(2 / 3, abs=1e-3)
        assert spots[0][1] < spots[2][1], "greater values are higher up"


def test_a_logarithmic_line_spaces_powers_of_ten_alike():
    points = [(0, 9.0), (1, 5.0), (10, 3.0), (100, 2.0)]
    for svg in views(line_chart("a", "t", [{"name": "n", "points": points}], "x", "y", log_x=True)):
        spots = corners(of_class(svg, "path", "curve")[0])
        assert len(spots) == 3 and ratio([x for x, _ in spots]) == pytest.approx(0.5, abs=1e-3)
        assert {"1", "10", "100"} <= set(texts(svg)) and "1 left out" in described(svg)


def test_a_long_curve_stays_small_and_keeps_its_spike():
    chance = random.Random(1)
    points = [(step, 3 + chance.gauss(0, 0.1)) for step in range(20_000)]
    points[7777] = (7777, 9.0)
    markup = line_chart("a", "t", [{"name": "n", "points": points}], "step", "loss")
    assert len(markup.encode()) < 15_000
    for svg in views(markup):
        faint, mean = of_class(svg, "path", "curve")
        ys = [y for _, y in corners(faint)]
        spike = min(ys)
        assert ys.count(spike) == 1 and spike < min(y for y in ys if y != spike) - 50
        assert max(y for _, y in corners(mean)) - min(y for _, y in corners(mean)) < 10
        assert any(text.startswith("faint") for text in texts(svg))
    assert "20,000 points" in described(svg)


def test_one_point_is_a_dot_and_several_series_have_a_legend():
    one, _ = views(line_chart("a", "t", [{"name": "n", "points": [(5, 3.0)]}], "x", "y"))
    assert len(list(one.iter("circle"))) == 1 and "n" not in texts(one)
    many, _ = views(line_chart("a", "t", [{"name": f"run {i}", "points": [(1, 1.0), (2, i)]} for i in range(10)], "x", "y"))
    assert {f"run {i}" for i in range(10)} <= set(texts(many))
    assert len({path.get("class") for path in of_class(many, "path", "curve")}) == 10, "ten looks for ten series"


# --- stages


STAIRS = [
    {"name": "seed42", "steps": [("weights", 1.1), ("packed", 1.1012), ("Sliding", 1.0832)]},
    {"name": "seed7", "steps": [("weights", 1.2)]},
]


def test_stairs_have_every_value_and_change_in_writing():
    for svg in views(staircase("a", "t", STAIRS)):
        assert {"1.1000", "1.1012", "+0.0012", "1.0832", "-0.0180", "1.2000", "seed42", "seed7"} <= set(texts(svg))
        assert any("do not begin at zero" in text for text in texts(svg))
        assert "packed 1.1012 (+0.0012), Sliding 1.0832 (-0.0180)" in described(svg)
        dots = list(svg.iter("circle"))
        places = [number(dot, "cx") for dot in dots]
        assert ratio(places[:3]) == pytest.approx(0.0012 / -0.0168, abs=0.01)
        assert [dot.get("class").split()[1] for dot in dots] == ["ink", "worse", "better", "ink"]


def test_runs_share_one_scale_of_bits_but_not_its_place():
    columns = [{"name": name, "steps": [("w", high), ("p", low)]} for name, high, low in (("a", 1.1, 1.0), ("b", 2.3, 2.0))]
    _, narrow = views(staircase("a", "t", columns))
    a, a_end, b, b_end = (number(dot, "cx") for dot in narrow.iter("circle"))
    assert (b - b_end) / (a - a_end) == pytest.approx(3, abs=0.02) and a + a_end == pytest.approx(b + b_end, abs=0.03)


def test_a_run_of_one_value_or_of_another_magnitude_takes_nothing_from_the_others():
    lone = [{"name": "a", "steps": [("w", 2.36), ("p", 2.35)]}]
    for value in (2.3, 1e22):
        both, _ = views(staircase("a", "t", [*lone, {"name": "b", "steps": [("w", value)]}]))
        a, a_end, b = (number(dot, "cx") for dot in both.iter("circle"))
        assert a - a_end > 50 and b > a + 100
        assert_inside(both)


def test_a_change_that_rounds_to_nothing_has_no_sign_and_no_judgement():
    wide, _ = views(staircase("a", "t", [{"name": "a", "steps": [("w", 1.1), ("p", 1.10001), ("s", 1.09999)]}]))
    assert texts(wide).count("0.0000") == 2
    assert all("ink" in dot.get("class") for dot in wide.iter("circle"))


# --- bytes


def test_areas_are_in_proportion_to_bytes():
    values = [5_000_000, 3_000_000, 900_000, 700_000, 120_000, 90_000]
    parts = [{"label": f"p{i}", "group": f"g{i % 2}", "value": value} for i, value in enumerate(values)]
    for svg in views(treemap("a", "t", parts, sum(values))):
        cells = of_class(svg, "rect", "cell")
        area = {re.match(r"\w+", one.find("title").text)[0]: number(one, "width") * number(one, "height") for one in cells}
        whole = sum(area.values())
        for index, value in enumerate(values):
            assert area[f"p{index}"] / whole == pytest.approx(value / sum(values), rel=0.01)
        boxes = [tuple(number(one, name) for name in ("x", "y", "width", "height")) for one in cells]
        for at, (x, y, wide, high) in enumerate(boxes):
            for other_x, other_y, other_wide, other_high in boxes[:at]:
                apart = x + wide <= other_x + 0.02 or other_x + other_wide <= x + 0.02
                assert apart or y + high <= other_y + 0.02 or other_y + other_high <= y + 0.02
        kinds = {one.find("title").text.split("(")[1][:2]: one.get("class") for one in cells}
        assert kinds["g0"] != kinds["g1"]


def test_small_parts_are_joined_but_all_are_described():
    parts = [{"label": "big", "group": "g", "value": 100_000}]
    parts += [{"label": f"small{i}", "group": "g", "value": 10} for i in range(50)]
    parts += [{"label": f"tiny{i}", "group": f"k{i}", "value": 5} for i in range(9)]
    wide, _ = views(treemap("a", "t", parts, 0))
    told = [one.find("title").text for one in of_class(wide, "rect", "cell")]
    assert told == ["big (g): 100,000, 99.5%", "50 others (g): 500, 0.5%", "9 others (other): 45, 0.0%"]
    assert all(part["label"] in described(wide) for part in parts)


def test_what_the_parts_leave_of_the_total_is_drawn():
    wide, _ = views(treemap("a", "t", [{"label": "p", "group": "g", "value": 25}], 100))
    part, rest = sorted(of_class(wide, "rect", "cell"), key=lambda one: number(one, "width"))
    assert number(rest, "width") / number(part, "width") == pytest.approx(3, rel=0.01)
    assert "not attributed" in texts(wide)


def test_labels_stand_only_where_they_fit():
    parts = [{"label": "a.very.long.name" * (i % 3 + 1), "group": "g", "value": 100 - i} for i in range(40)]
    for svg in views(treemap("a", "t", parts, 0)):
        cells = of_class(svg, "rect", "cell")
        for text in svg.iter("text"):
            x, y = number(text, "x"), number(text, "y")
            inside = [one for one in cells if 0 <= x - number(one, "x") < number(one, "width") and number(one, "y") < y]
            inside = [one for one in inside if y <= number(one, "y") + number(one, "height")]
            for cell in inside:
                assert x + text_width(text.text.rstrip(), 12.5) <= number(cell, "x") + number(cell, "width")


# --- seconds


def test_bars_and_the_limit_share_one_scale():
    rows = [
        {"label": "a", "parts": [{"name": "train", "seconds": 300}, {"name": "calibrate", "seconds": 150}]},
        {"label": "b", "parts": [{"name": "train", "seconds": 600}]},
    ]
    for svg in views(budget_bars("a", "t", rows, 600)):
        limit = number(of_class(svg, "line", "mark")[0], "x1")
        first, second, third = [one for one in of_class(svg, "rect", "solid") if one.find("title") is not None]
        assert number(first, "x") == 0 and number(first, "width") == pytest.approx(limit / 2, abs=0.02)
        assert number(second, "x") == pytest.approx(limit / 2, abs=0.02)
        assert number(second, "width") == pytest.approx(limit / 4, abs=0.02)
        assert number(third, "width") == pytest.approx(limit, abs=0.02)
        assert first.get("class") == third.get("class") != second.get("class")
        assert {"450 s", "600 s", "limit 600 s", "train", "calibrate"} <= set(texts(svg))
        assert not of_class(svg, "rect", "excess"), "600 s is not over 600 s"


def test_what_is_over_the_limit_is_hatched_and_named():
    for svg in views(budget_bars("a", "t", [{"label": "a", "parts": [{"name": "x", "seconds": 660.25}]}], 600)):
        (excess,) = of_class(svg, "rect", "excess")
        bar = next(one for one in of_class(svg, "rect", "solid") if one.find("title") is not None)
        assert excess.get("fill") == f"url(#{svg.find('defs/pattern').get('id')})"
        assert number(excess, "x") + number(excess, "width") == pytest.approx(number(bar, "width"), abs=0.02)
        assert number(excess, "width") / number(bar, "width") == pytest.approx(60.25 / 660.25, abs=1e-3)
        assert "660.2 s, 60.2 s over" in texts(svg) and "660.2 s, 60.2 s over" in described(svg)


# --- seeds


def test_intervals_rings_and_marks_share_one_scale():
    markup = interval_chart(
        "a", "t", [interval_row(), interval_row("lone", [3.0], None, None, None)], [{"label": "m", "value": 5.0}]
    )
    for svg in views(markup):
        rings = [number(one, "cx") for one in svg.iter("circle")]
        unit = rings[1] - rings[0]
        mean = number(of_class(svg, "line", "thick", "ink")[0], "x1")
        span = of_class(svg, "line", "thick", "s0")[0]
        assert rings[2] - rings[0] == pytest.approx(3 * unit, abs=0.03)
        assert mean - rings[0] == pytest.approx(1.5 * unit, abs=0.03)
        assert number(span, "x2") - number(span, "x1") == pytest.approx(4 * unit, abs=0.03)
        assert number(of_class(svg, "line", "mark")[0], "x1") - rings[0] == pytest.approx(4 * unit, abs=0.03)
        assert {"mean 2.5000 [0.5000, 4.5000], n = 3", "3.0000, n = 1", "m 5.0000"} <= set(texts(svg))
        assert len(of_class(svg, "line", "thick", "ink")) == 1


def test_a_long_label_goes_above_its_figures():
    for label, apart in (("short", False), ("a label that is much too long to stand beside the figures of its row", True)):
        _, narrow = views(interval_chart("a", "t", [interval_row(label)], []))
        by_text = {one.text: number(one, "y") for one in narrow.iter("text")}
        start = next(y for text, y in by_text.items() if text.startswith(label[:5]))
        assert (by_text["mean 2.5000 [0.5000, 4.5000], n = 3"] > start) == apart


# --- buckets


def test_bands_are_around_their_values_and_absent_where_there_is_none():
    rows = [
        bucket("1", 4.0, 3.0, 5.0),
        bucket("2–3", 3.0, 2.0, 4.0),
        bucket("4–7", 2.0, None, None),
        bucket("8–15", 1.0, 0.5, 1.5),
    ]
    for svg in views(band_chart("a", "t", rows, "position", "nats")):
        (band,) = of_class(svg, "path", "tint")
        dots = [(number(one, "cx"), number(one, "cy")) for one in svg.iter("circle")]
        unit = dots[1][1] - dots[0][1]
        edge = corners(band)
        assert [x for x, _ in edge] == [dots[0][0], dots[1][0], dots[1][0], dots[0][0]]
        assert edge[0][1] - dots[0][1] == pytest.approx(unit, abs=0.03), "low is below, as far as one unit"
        assert dots[0][1] - edge[3][1] == pytest.approx(unit, abs=0.03)
        assert corners(of_class(svg, "path", "curve")[0]) == dots
        assert {"position", "nats", "1"} <= set(texts(svg))
        lone = of_class(svg, "line", "thick")
        assert len(lone) == 1 and number(lone[0], "x1") == dots[3][0]
        assert "4–7: 2, count 1,000" in described(svg)


# --- helpers


def test_ticks_are_round_and_within():
    assert ticks(0, 600, 7) == [0, 100, 200, 300, 400, 500, 600]
    assert ticks(2.0389, 2.0872, 5) == [2.04, 2.05, 2.06, 2.07, 2.08]
    assert ticks(-1, 1, 3) == [-1, 0, 1]
    assert ticks(3, 3, 5) == [3]
    assert ticks(2, 1, 5) == ticks(math.nan, 1, 5) == ticks(0, math.inf, 5) == []


@pytest.mark.parametrize("seed", range(4))
def test_ticks_are_never_too_many_and_hardly_too_few(seed):
    chance = random.Random(seed)
    for _ in range(500):
        low = chance.uniform(-1, 1) * 10 ** chance.uniform(-30, 30)
        high = low + abs(low) * 10 ** chance.uniform(-6, 6)
        count = chance.randint(2, 9)
        values = ticks(low, high, count)
        steps = [b - a for a, b in pairwise(values)]
        assert len(values) <= count and all(low - 1e-6 * (high - low) <= v <= high + 1e-6 * (high - low) for v in values)
        assert not steps or max(steps) == pytest.approx(min(steps), rel=1e-3)
        assert len(values) >= count / 2.5 - 1
        assert len(set(tick_labels(values))) == len(values), (values, tick_labels(values))


def test_labels_of_ticks_are_short_and_tell_them_apart():
    assert tick_labels([0, 5000, 10000]) == ["0", "5k", "10k"]
    assert tick_labels([0, 500_000, 1_000_000]) == ["0", "0.5M", "1.0M"]
    assert tick_labels([0, 2.5e9, 5e9, 7.5e9]) == ["0", "2.5G", "5.0G", "7.5G"]
    assert tick_labels([2.075, 2.08]) == ["2.075", "2.080"]
    assert tick_labels([-0.5, 0.0, 0.5]) == ["-0.5", "0.0", "0.5"]
    assert tick_labels([]) == []


def test_ticks_thin_out_until_their_texts_fit_but_are_two():
    assert fitting_ticks(2.03, 2.09, 7, 1000, 12)[1] == ["2.03", "2.04", "2.05", "2.06", "2.07", "2.08", "2.09"]
    values, written = fitting_ticks(2.032, 2.093, 3, 80, 12)
    assert len(values) == 2 and written == ["2.04", "2.09"]
    for room in (60, 120, 300):
        _, written = fitting_ticks(0, 20_000, 9, room, 12)
        assert sum(text_width(text, 12) for text in written) <= room


def test_logarithmic_ticks():
    assert log_ticks(1, 1000, 4) == [1, 10, 100, 1000]
    assert log_ticks(1, 10, 4) == [1, 2, 5, 10]
    assert len(log_ticks(1e-9, 1e12, 5)) <= 5
    assert log_ticks(6, 7, 3) == [6]


def test_thinned_points_keep_ends_and_extremes():
    chance = random.Random(2)
    points = [(x, chance.gauss(0, 1)) for x in range(5000)]
    for most in (4, 9, 100, 480):
        kept = thin(points, most)
        assert len(kept) <= most and set(kept) <= set(points) and kept == sorted(kept)
        assert kept[0] == points[0] and kept[-1] == points[-1]
        inner = points[1:-1]
        assert min(inner, key=lambda p: p[1]) in kept and max(inner, key=lambda p: p[1]) in kept
    assert len(thin(points, 480)) > 400
    assert thin(points, 5000) == points
    assert thin([(1, math.nan), (2, 3.0), (None, 4.0)], 10) == [(2, 3.0)]
    assert len(thin([(1, float(y)) for y in range(100)], 10)) <= 10


def test_means_of_columns():
    points = [(x, 2.0 * x) for x in range(100)]
    means = column_means(points, 10)
    assert len(means) == 10 and means[0] == (4.5, 9.0) and all(y == pytest.approx(2 * x) for x, y in means)
    assert column_means([(1, 2.0), (1, 4.0)], 5) == [(1, 3.0)]


def test_texts_are_cut_and_broken_to_their_room():
    assert clipped("short", 100, 12) == "short"
    cut = clipped("a name that is too long", 80, 12)
    assert cut.startswith("a nam") and cut.endswith("long") and text_width(cut, 12) <= 80 and len(cut) > 6
    names = [clipped(f"{'a' * 60}-{seed}{'b' * 9}-{seed}", 80, 12) for seed in (1, 2)]
    assert names[0] != names[1] and clipped("wide", 1, 12) == "…" and clipped("i" * 200, 80, 12).count("i") == 15
    assert text_width("模型", 10) == 20
    assert lines_of("blocks.*.mlp.up", 1000, 12) == ["blocks.*.mlp.up"]
    assert (
        "".join(lines_of("blocks.*.mlp.up", 70, 12)) == "blocks.*.mlp.up" and len(lines_of("blocks.*.mlp.up", 70, 12)) == 2
    )
    assert lines_of("unbreakable", 20, 12) is None


def test_one_curve_that_goes_astray_leaves_the_others_their_shapes():
    calm = [(step, 2 + 6 / step) for step in range(1, 401)]
    wild = [(step, y if step < 300 else 1e9) for step, y in calm]
    both = [{"name": "calm", "points": calm}, {"name": "wild", "points": wild}]
    svg = views(line_chart("a", "t", both, "step", "loss"))[0]
    assert "at the upper edge: more, up to 1,000,000,000" in texts(svg) and "8" in texts(svg)
    alone = views(line_chart("b", "t", both[:1], "step", "loss"))[0]
    assert not any("upper edge" in text for text in texts(alone))
    assert greatest_shown([[1.0, -5.0], [-2.0, -3.0]]) == 1.0 and greatest_shown([[2.0, 2.0, 13.0]]) == 8.0
