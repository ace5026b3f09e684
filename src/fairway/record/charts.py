"""The charts of the report: plain data in, Markup of inline SVG out, no scripts. The page puts CHART_STYLE of marks.py in
its style sheet and defines the colours that it lists.

Every chart takes `ident`, unique in the page (letters, digits, - and _), and `title`, for screen readers: the heading that
people see is the page's. Each is drawn for a wide and for a narrow place, of which the width of the chart's own box decides
(a box that must not take its width from what is in it); titles, descriptions and ids are each view's own. Names are shown
as they are, escaped; values that are no numbers (None, nan, infinite) are left out, which the description says."""

import math
from statistics import median

from .marks import (
    Plot,
    bottom_axis,
    chart_markup,
    column_means,
    fitting_ticks,
    four_decimals,
    hatch,
    hue,
    is_drawable,
    legend,
    lines_of,
    padded,
    scale,
    spoken,
    text_width,
    thin,
)

CURVE_POINTS = 420  # of one curve in the wide view, half of them in the narrow one: 11 kB together, with its means
LEAST_SHARE = 0.004  # of the total: smaller parts of a treemap are joined


def line_chart(ident, title, series, x_label, y_label, log_x=False):
    """Curves with a legend. `series`: [{"name": str, "points": [(x, y)]}], x rising; with `log_x` points at x <= 0 are left
    out. Of curves with more points than there is room for, the reach is drawn faintly and the mean of neighbours over it."""
    curves, told = [], []
    for index, one in enumerate(series):
        points = [(x, y) for x, y in one["points"] if is_drawable(x) and is_drawable(y) and (x > 0 or not log_x)]
        lost = len(one["points"]) - len(points)
        note = f", {lost:,} left out (no number)" if lost else ""
        if points:
            curves.append((hue(index), f"{one['name']}{note}", points))
            told.append(told_curve(one["name"], points, x_label, y_label) + note + ".")
        else:
            told.append(f"{one['name']}: no points{note}.")

    def draw(canvas):
        keys = [(kind, text) for kind, text, _ in curves] if len(series) > 1 else []
        top = legend(canvas, 0, keys, "line") + (0.4 * canvas.size if keys else 0)
        xs, ys = ([point[axis] for _, _, points in curves for point in points] for axis in (0, 1))
        most = greatest_shown([[y for _, y in points] for _, _, points in curves])
        plot = Plot(canvas, top, padded(min(ys), most), y_label, 190 if canvas.narrow else 250)
        low, high = (min(xs), max(xs)) if min(xs) < max(xs) else padded(min(xs), max(xs), 0)
        place = scale(low, high, plot.left, plot.right, log_x)
        marked = fitting_ticks(low, high, 4 if canvas.narrow else 7, plot.right - plot.left, canvas.size, log_x)
        canvas.height = bottom_axis(canvas, place, marked, plot.top, plot.bottom, x_label)
        for kind, _, points in curves:
            draw_curve(canvas, kind, [(place(x), max(plot.top, plot.place(y))) for x, y in points])
        if any(len(points) > curve_points(canvas) for *_, points in curves):
            note = "faint: all points; line: mean"
            if text_width(note + x_label, canvas.size) + 12 > canvas.width:
                canvas.height += 1.35 * canvas.size
            canvas.words(0, canvas.height - 0.5 * canvas.size, note, "quiet")
        if max(ys) > most:
            canvas.height = note_below(canvas, f"at the upper edge: more, up to {spoken(max(ys))}")

    return chart_markup(ident, title, f"{y_label} by {x_label}. " + " ".join(told), draw if curves else None)


def greatest_shown(columns):
    """Where the axis of curves ends, of the y of each: their greatest, or 4 times the least of their medians where one goes
    beyond 6 times: one run that diverges, or a spike, leaves the others their shapes."""
    greatest, usual = max(map(max, columns)), min(map(median, columns))
    return 4 * usual if 0 < 6 * usual < greatest else greatest


def note_below(canvas, text):
    """Writes a line below what is drawn; returns where it ends."""
    canvas.words(0, canvas.height + 0.85 * canvas.size, text, "quiet", room=canvas.width)
    return canvas.height + 1.35 * canvas.size


def curve_points(canvas):
    """How many points of a curve are drawn at most."""
    return CURVE_POINTS // (2 if canvas.narrow else 1)


def draw_curve(canvas, kind, spots):
    """A curve through places (x, y) of the picture."""
    most = curve_points(canvas)
    if len(spots) == 1:
        canvas.put("circle", f"solid {kind}", cx=spots[0][0], cy=spots[0][1], r=3)
    elif len(spots) <= most:
        canvas.path(f"curve {kind}", spots)
    else:
        canvas.path(f"faint curve {kind}", thin(spots, most))
        canvas.path(f"curve {kind}", column_means(spots, most // 3))


def told_curve(name, points, x_label, y_label):
    """A curve in words."""
    (x, y), (last_x, last_y) = points[0], points[-1]
    count = f"{name}: {len(points):,} point{'' if len(points) == 1 else 's'}"
    if len(points) == 1:
        return f"{count}, {y_label} {spoken(y)} at {x_label} {spoken(x)}"
    least = min(value for _, value in points)
    return f"{count}, {spoken(y)} at {x_label} {spoken(x)}, {spoken(last_y)} at {spoken(last_x)}, least {spoken(least)}"


def staircase(ident, title, columns):
    """Bits per byte by stage, a panel a run: every stage is a stair from the value before it, with its value and the change
    written. All panels have one scale, each about its own values, so that stairs compare and runs far apart have some.
    `columns`: [{"name": str, "steps": [(stage, bpb)]}]."""
    panels = [
        (one["name"], [(stage, bpb) for stage, bpb in one["steps"] if is_drawable(bpb)], len(one["steps"]))
        for one in columns
    ]
    told = ["Each stage's bits per byte and the change from the stage before; axes do not begin at zero."]
    for name, steps, count in panels:
        figures = [
            f"{stage} {four_decimals(bpb)}" + (f" ({change_text(steps[at - 1][1], bpb)})" if at else "")
            for at, (stage, bpb) in enumerate(steps)
        ]
        note = f", {count - len(steps)} without a value" if count > len(steps) else ""
        told.append(f"{name}: {', '.join(figures) or 'nothing'}{note}.")
    ends = [(min(bpb for _, bpb in steps), max(bpb for _, bpb in steps)) for _, steps, _ in panels if steps]
    low, high = padded(*max(ends, key=lambda pair: pair[1] - pair[0]), 0.12) if ends else (0, 1)

    def draw(canvas):
        size, gap = canvas.size, 28
        across = 1 if canvas.narrow or len(panels) == 1 else 2
        width = (canvas.width - gap * (across - 1)) / across
        top = 0.0
        for start in range(0, len(panels), across):
            row = panels[start : start + across]
            feet = [
                draw_stairs(canvas, (width + gap) * at, top, width, name, steps, high - low)
                for at, (name, steps, _) in enumerate(row)
                if steps
            ]
            top = max(feet, default=top) + 0.6 * size
        canvas.words(0, top + 0.6 * size, "bits per byte; axes do not begin at zero", "quiet", room=canvas.width)
        canvas.height = top + 1.2 * size

    return chart_markup(ident, title, " ".join(told), draw if ends else None)


def change_text(before, after):
    """A change with its sign, four decimals; without one where these are all zero."""
    text = four_decimals(after - before, "+")
    return text if float(text) else text[1:]


def draw_stairs(canvas, left, top, width, name, steps, span):
    """One run's stairs, on an axis of the width `span`, in a column of `width`, from `top` down; returns where they end."""
    size, high = canvas.size, 1.75 * canvas.size
    changes = ["", *(change_text(steps[at][1], bpb) for at, (_, bpb) in enumerate(steps[1:]))]
    figures = [four_decimals(bpb) for _, bpb in steps]
    aside = max(text_width(text, size) for text in changes) + (10 if len(steps) > 1 else 0)
    beside = max(text_width(text, size) for text in figures) + 10
    names = min(max(text_width(stage, size) for stage, _ in steps) + 12, 0.36 * width)
    start, end = left + names, left + width - aside - beside
    center = (min(bpb for _, bpb in steps) + max(bpb for _, bpb in steps)) / 2
    between = center - span / 2, center + span / 2
    if between[0] == between[1]:
        between = padded(center, center)
    place = scale(*between, start, end)
    canvas.words(left, top + 1.2 * size, name, "strong", room=width / 1.14)
    first = top = top + 1.9 * size
    for at, (stage, bpb) in enumerate(steps):
        middle, base = top + high / 2, top + high / 2 + 0.35 * size
        x, before = place(bpb), place(steps[max(0, at - 1)][1])
        change = float(changes[at] or 0)  # as written: what is rounded to nothing is neither better nor worse
        kind = "better" if change < 0 else "worse" if change > 0 else "ink"
        canvas.words(left, base, stage, room=names - 8)
        if at:
            canvas.line("axis", before, middle - high + 5, before, middle)
            canvas.rect(f"solid {kind}", min(x, before), middle - 2, abs(x - before), 4)
        canvas.put("circle", f"solid {kind}", cx=x, cy=middle, r=4)
        canvas.words(left + width - aside, base, figures[at], anchor="end")
        canvas.words(left + width, base, changes[at], "quiet", "end")
        top += high
    marked = fitting_ticks(*between, 3, end - start, size)
    canvas.line("axis", start, top, end, top)
    return bottom_axis(canvas, place, marked, first, top, lines=False)


def treemap(ident, title, parts, total):
    """Areas in proportion to values, those of one group side by side in one colour. `parts`: [{"label": str, "group": str,
    "value": number >= 0}]; `total` is what shares are of: what the parts leave of it is drawn as not attributed. Parts
    under 0.4 % of the total are joined within their group, groups as small as that with each other."""
    parts = [part for part in parts if is_drawable(part["value"]) and part["value"] > 0]
    total = max([sum(part["value"] for part in parts), *([total] if is_drawable(total) else [])])
    groups = grouped_parts(parts, total) if total > 0 else []
    told = [f"{spoken(total)} bytes."]
    for part in sorted(parts, key=lambda part: -part["value"]):
        told.append(f"{part['label']} ({part['group']}): {spoken(part['value'])}, {part['value'] / total:.1%}.")

    def draw(canvas):
        wide, high = canvas.width, 300 if canvas.narrow else 320
        outer = laid_out([sum(value for _, value in cells) for _, _, cells in groups], (0, 0, wide, high))
        for (kind, name, cells), place in zip(groups, outer, strict=True):
            for (label, value), box in zip(cells, laid_out([value for _, value in cells], place), strict=True):
                draw_cell(canvas, kind, label, value, total, box, f"{label} ({name})")
        keys = [(f"tint {kind}", f"{name} {sum(v for _, v in cells) / total:.1%}") for kind, name, cells in groups]
        canvas.height = legend(canvas, high + 0.4 * canvas.size, keys, "box")

    return chart_markup(ident, title, " ".join(told), draw if groups else None)


def grouped_parts(parts, total):
    """[(class, group, [(label, value)])]: groups and their parts from the largest down, small ones joined."""
    sums, groups = {}, {}
    for part in parts:
        sums[part["group"]] = sums.get(part["group"], 0) + part["value"]
    for part in sorted(parts, key=lambda part: -part["value"]):
        name = part["group"] if sums[part["group"]] >= LEAST_SHARE * total else "other"
        groups.setdefault(name, []).append((part["label"], part["value"]))
    rest = total - sum(sums.values())
    found = []
    for name, cells in sorted(groups.items(), key=lambda item: -sum(value for _, value in item[1])):
        small = [value for _, value in cells if value < LEAST_SHARE * total]
        if len(small) > 1:
            cells = cells[: len(cells) - len(small)]
            cells = sorted([*cells, (f"{len(small)} others", sum(small))], key=lambda cell: -cell[1])
        found.append((hue(len(found)).split()[0], name, cells))
    if rest > 1e-9 * total:
        found.append(("rest", "not attributed", [("not attributed", rest)]))
        found.sort(key=lambda group: -sum(value for _, value in group[2]))
    return found


def laid_out(values, box):
    """Boxes (x, y, width, height) that fill `box`, areas in proportion to `values`, which fall."""
    from squarify import normalize_sizes, squarify

    x, y, wide, high = box
    places = squarify(normalize_sizes(values, wide, high), x, y, wide, high)
    return [(place["x"], place["y"], place["dx"], place["dy"]) for place in places]


def draw_cell(canvas, kind, label, value, total, box, told):
    """One part of a treemap, its label where that fits whole, its bytes below where they fit too."""
    x, y, wide, high = box
    size, room = canvas.size, wide - 10
    canvas.rect(f"tint cell {kind}", x, y, wide, high, f"{told}: {spoken(value)}, {value / total:.1%}")
    lines = lines_of(label, room, size)
    if lines is None or high < (1.3 * len(lines) + 0.3) * size:
        return
    for at, text in enumerate(lines):
        canvas.words(x + 5, y + (1.25 + 1.3 * at) * size, text)
    figures = [f"{spoken(value)} · {value / total:.1%}", spoken(value), f"{value / total:.1%}"]
    text = next((text for text in figures if text_width(text, size) <= room), None)
    if text and high >= (1.3 * len(lines) + 1.6) * size:
        canvas.words(x + 5, y + (1.25 + 1.3 * len(lines)) * size, text)


def budget_bars(ident, title, rows, limit):
    """Seconds by phase as stacked bars against the line of `limit` seconds. `rows`: [{"label": str, "parts": [{"name": str,
    "seconds": number >= 0}]}]. What is over the limit is hatched and named in words."""
    names = list(dict.fromkeys(part["name"] for row in rows for part in row["parts"]))
    kinds = {name: hue(index).split()[0] for index, name in enumerate(names)}
    bars, told = [], [f"The limit is {seconds_text(limit)}."]
    for row in rows:
        parts = [(p["name"], p["seconds"]) for p in row["parts"] if is_drawable(p["seconds"]) and p["seconds"] >= 0]
        whole = sum(seconds for _, seconds in parts)
        over = whole - limit
        figure = seconds_text(whole) + (f", {seconds_text(over)} over" if over > 0 else "")
        bars.append((row["label"], parts, whole, figure))
        phases = ", ".join(f"{name} {seconds_text(seconds)}" for name, seconds in parts)
        told.append(f"{row['label']}: {figure} ({phases or 'nothing measured'}).")

    def draw(canvas):
        size = canvas.size
        top = legend(canvas, 0, [(f"solid {kinds[name]}", name) for name in names], "box")
        aside = max(text_width(figure, size) * (1.12 if whole > limit else 1) for *_, whole, figure in bars) + 8
        end = canvas.width - aside
        greatest = max(limit, *(whole for *_, whole, _ in bars))
        place = scale(0, greatest, 0, end)
        line, first = place(limit), top + 1.5 * size
        half = text_width(f"limit {seconds_text(limit)}", size) / 2
        canvas.words(
            max(half, min(line, canvas.width - half)), top + size, f"limit {seconds_text(limit)}", "quiet", "middle"
        )
        pattern = hatch(canvas)
        bottom, high, step = first + 3.2 * size * len(bars) + 0.3 * size, 1.1 * size, 3.2 * size
        values, texts = fitting_ticks(0, greatest, 4 if canvas.narrow else 7, end, size)
        marked = values, [f"{text} s" for text in texts]
        canvas.height = bottom_axis(canvas, place, marked, first, bottom, lines=False)
        canvas.line("axis", 0, bottom, end, bottom)
        canvas.line("mark", line, first, line, bottom)
        for at, (label, parts, whole, figure) in enumerate(bars):
            y, done = first + step * at + 1.8 * size, 0.0
            canvas.words(0, y - 0.4 * size, label, "over", room=canvas.width)
            for name, seconds in parts:
                width = place(done + seconds) - place(done)
                canvas.rect(f"solid {kinds[name]}", place(done), y, width, high, f"{name} {seconds_text(seconds)}")
                done += seconds
            if whole > limit:
                canvas.put("rect", "excess", fill=pattern, x=line, y=y, width=place(whole) - line, height=high)
            canvas.words(place(whole) + 6, y + 0.9 * size, figure, "bad over" if whole > limit else "over")

    usable = bars and is_drawable(limit) and limit > 0
    return chart_markup(ident, title, " ".join(told), draw if usable else None)


def seconds_text(seconds):
    """Seconds with a digit after the point, more below a tenth."""
    return f"{spoken(seconds) if seconds == int(seconds) else f'{seconds:,.1f}' if seconds >= 0.1 else f'{seconds:.2g}'} s"


def interval_chart(ident, title, rows, marks):
    """Single values as rings, means with intervals: a line a group. `rows`: [{"label": str, "points": [number], "mean":
    number, "low": number, "high": number}], the last three None where there is none; `marks`, vertical lines:
    [{"label": str, "value": number}]. The intervals are what the caller says in the title, 95 % in the report."""
    rows = [{**row, "points": [value for value in row["points"] if is_drawable(value)]} for row in rows]
    marks = [mark for mark in marks if is_drawable(mark["value"])]
    told = [
        f"{row['label']}: {interval_text(row)}; single values {', '.join(map(four_decimals, row['points']))}."
        for row in rows
    ]
    told += [f"Line {mark['label']}: {four_decimals(mark['value'])}." for mark in marks]
    values = [value for row in rows for value in (*row["points"], row["mean"], row["low"], row["high"])]
    values = [value for value in values if is_drawable(value)]

    def draw(canvas):
        size, first = canvas.size, 1.5 * canvas.size * len(marks)
        low, high = padded(min(values + [m["value"] for m in marks]), max(values + [m["value"] for m in marks]))
        place = scale(low, high, 8, canvas.width - 8)
        apart = any(
            1.12 * text_width(r["label"], size) + text_width(interval_text(r), size) + 14 > canvas.width for r in rows
        )
        step = (5.6 if apart else 4.0) * size
        bottom = first + step * len(rows)
        marked = fitting_ticks(low, high, 4 if canvas.narrow else 7, canvas.width - 16, size)
        canvas.height = bottom_axis(canvas, place, marked, first, bottom)
        canvas.line("axis", 8, bottom, canvas.width - 8, bottom)
        for at, mark in enumerate(marks):
            x, text = place(mark["value"]), f"{mark['label']} {four_decimals(mark['value'])}"
            half = min(text_width(text, size), canvas.width) / 2
            base = size * (1.5 * at + 1)
            canvas.line("mark", x, base + 0.3 * size, x, bottom)
            canvas.words(max(half, min(x, canvas.width - half)), base, text, "over", "middle", canvas.width)
        for at, row in enumerate(rows):
            draw_interval(canvas, place, row, first + step * at, apart)

    return chart_markup(ident, title, " ".join(told), draw if values else None)


def interval_text(row):
    """Mean, interval and count of a row in words."""
    single = four_decimals(row["points"][0]) if len(row["points"]) == 1 else "no mean"
    text = f"mean {four_decimals(row['mean'])}" if is_drawable(row["mean"]) else single
    if is_drawable(row["low"]) and is_drawable(row["high"]):
        text += f" [{four_decimals(row['low'])}, {four_decimals(row['high'])}]"
    return f"{text}, n = {len(row['points'])}"


def draw_interval(canvas, place, row, top, apart):
    """One row of an interval chart: label and figures above, on two lines if `apart`, the mean and the values below."""
    size, base = canvas.size, top + 1.4 * canvas.size
    canvas.words(0, base, row["label"], "strong over", room=canvas.width / 1.14)
    base += 1.3 * size if apart else 0
    canvas.words(canvas.width, base, interval_text(row), "over", "end", canvas.width)
    middle = base + 1.2 * size
    if is_drawable(row["low"]) and is_drawable(row["high"]):
        low, high = place(row["low"]), place(row["high"])
        canvas.line("thick s0", low, middle, high, middle)
        for x in (low, high):
            canvas.line("thick s0", x, middle - 5, x, middle + 5)
    for value in row["points"]:
        canvas.put("circle", "ring s0", cx=place(value), cy=middle, r=4)
    if is_drawable(row["mean"]):
        canvas.line("thick ink", place(row["mean"]), middle - 8, place(row["mean"]), middle + 8)


def band_chart(ident, title, rows, x_label="", y_label=""):
    """Values by bucket, in the order of the rows, with a band from low to high where both are numbers. `rows`: [{"label":
    str, "value": number, "low": number or None, "high": number or None, "count": int}]."""
    shown = [row for row in rows if is_drawable(row["value"])]
    told = [f"{y_label or 'Value'} by {x_label or 'bucket'}."]
    for row in rows:
        reach = (
            f" ({spoken(row['low'])} to {spoken(row['high'])})"
            if is_drawable(row["low"]) and is_drawable(row["high"])
            else ""
        )
        told.append(f"{row['label']}: {spoken(row['value'])}{reach}, count {spoken(row['count'])}.")
    ends = [value for row in shown for value in (row["value"], row["low"], row["high"]) if is_drawable(value)]

    def draw(canvas):
        plot = Plot(canvas, 0, padded(min(ends), max(ends)), y_label, 180 if canvas.narrow else 220)
        room = (plot.right - plot.left) / len(shown)
        spots = [(plot.left + room * (at + 0.5), row) for at, row in enumerate(shown)]
        for piece in pieces_with_band(spots):
            edge = [(x, plot.place(row["low"])) for x, row in piece] + [
                (x, plot.place(row["high"])) for x, row in piece[::-1]
            ]
            if len(piece) > 1:
                canvas.path("tint s0", edge, closed=True)
            else:
                canvas.line("thick s0", *edge[0], *edge[1])
        canvas.path("curve s0", [(x, plot.place(row["value"])) for x, row in spots])
        for x, row in spots:
            canvas.put("circle", "solid s0", cx=x, cy=plot.place(row["value"]), r=3)
        widest = max(text_width(row["label"], canvas.size) for row in shown) + canvas.size
        stride = math.ceil(widest / room)
        marked = [(x, row["label"]) for x, row in spots[::stride]]
        canvas.height = bottom_axis(
            canvas, float, list(zip(*marked, strict=True)), plot.top, plot.bottom, x_label, lines=False
        )

    return chart_markup(ident, title, " ".join(told), draw if shown else None)


def pieces_with_band(spots):
    """Runs of neighbours among (x, row) that all have a band."""
    pieces = [[]]
    for x, row in spots:
        if is_drawable(row["low"]) and is_drawable(row["high"]):
            pieces[-1].append((x, row))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]
