"""What the charts are drawn with: a canvas of SVG, scales, ticks, thinned curves, legends and the style sheet they need.

Every chart is drawn twice, for a wide and for a narrow place, and CHART_STYLE shows the one that fits: text of one size
that is readable on a phone and on a desk cannot be had from one picture that is only scaled. Colours are the page's custom
properties (--ink, --muted, --grid, --paper, --s0 ... --s7, --pass, --fail); nothing here names one."""

import math
import re
import unicodedata
from html import escape
from itertools import pairwise
from numbers import Real

HUES = 8
VIEWS = (("wide", 660, 13), ("narrow", 330, 12.5))  # name, width, size of the text: units of the viewBox
GREATEST, FINEST = 1e300, 1e-12  # beyond: not drawn; relative spans below: one value
PLAIN_IDENT = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
SMALL_LETTERS, BROAD_LETTERS = "fijlrtI.,:;'|!()[]{} -", "mwMW@%"

CHART_STYLE = """
.chart { container-type: inline-size; }
.chart svg { display: block; width: 100%; height: auto; }
.chart svg.wide { max-width: 740px; }
.chart svg.narrow { display: none; max-width: 430px; }
@container (max-width: 559px) {
  .chart svg.wide { display: none; }
  .chart svg.narrow { display: block; }
}
.chart text { fill: var(--ink); font-variant-numeric: tabular-nums; }
.chart text.quiet { fill: var(--muted); }
.chart text.strong { font-weight: 600; }
.chart text.bad { fill: var(--fail); font-weight: 600; }
.chart text.over { stroke: var(--paper); stroke-width: 4px; stroke-linejoin: round; paint-order: stroke; }
.chart .grid { stroke: var(--grid); stroke-width: 1; }
.chart .axis { stroke: var(--muted); stroke-width: 1; fill: none; }
.chart .mark { stroke: var(--ink); stroke-width: 1.2; stroke-dasharray: 5 3; }
.chart .curve { stroke: var(--hue); stroke-width: 1.4; stroke-linejoin: round; fill: none; }
.chart .faint { stroke-opacity: 0.3; stroke-width: 1; }
.chart .curve.s1:not(.faint) { stroke-dasharray: 8 2; }
.chart .curve.s2:not(.faint) { stroke-dasharray: 3 2; }
.chart .curve.s3:not(.faint) { stroke-dasharray: 9 2 2 2; }
.chart .curve.s4:not(.faint) { stroke-dasharray: 14 3; }
.chart .curve.s5:not(.faint) { stroke-dasharray: 5 5; }
.chart .curve.s6:not(.faint) { stroke-dasharray: 12 2 2 2 2 2; }
.chart .curve.s7:not(.faint) { stroke-dasharray: 1.5 2.5; }
.chart .curve.again:not(.faint) { stroke-width: 2.6; }
.chart .thick { stroke: var(--hue); stroke-width: 2.2; }
.chart .solid { fill: var(--hue); }
.chart .tint { fill: var(--hue); fill-opacity: 0.26; }
.chart .cell { stroke: var(--paper); stroke-width: 1.5; }
.chart .ring { fill: var(--paper); stroke: var(--hue); stroke-width: 1.4; }
.chart .hatch { fill: var(--paper); stroke: none; }
.chart .hatching { stroke: var(--fail); stroke-width: 3; }
.chart .excess { stroke: var(--fail); stroke-width: 1.2; }
.chart .better { --hue: var(--pass); }
.chart .worse { --hue: var(--fail); }
.chart .ink { --hue: var(--ink); }
.chart .rest { --hue: var(--muted); }
.chart .s0 { --hue: var(--s0); }
.chart .s1 { --hue: var(--s1); }
.chart .s2 { --hue: var(--s2); }
.chart .s3 { --hue: var(--s3); }
.chart .s4 { --hue: var(--s4); }
.chart .s5 { --hue: var(--s5); }
.chart .s6 { --hue: var(--s6); }
.chart .s7 { --hue: var(--s7); }
"""


class Canvas:
    """One SVG picture while it is drawn: elements in order, the height set by who draws. Units are those of the viewBox."""

    def __init__(self, ident, name, width, size):
        self.ident, self.name, self.width, self.size = f"{ident}-{name}", name, width, size
        self.height, self.elements = 0.0, []

    @property
    def narrow(self):
        return self.name == "narrow"

    @property
    def line_height(self):
        return self.size * 1.5

    def put(self, tag, kind, inner="", **attributes):
        """Adds an element of the classes `kind`; numbers are rounded, underscores in names become hyphens."""
        values = "".join(f' {key.replace("_", "-")}="{coordinate(value)}"' for key, value in attributes.items())
        self.elements.append(f'<{tag} class="{kind}"{values}' + (f">{inner}</{tag}>" if inner else "/>"))

    def line(self, kind, x1, y1, x2, y2):
        self.put("line", kind, x1=x1, y1=y1, x2=x2, y2=y2)

    def rect(self, kind, x, y, width, height, told=""):
        """A rectangle; `told` is shown by a pointer that rests on it."""
        inner = f"<title>{safe(told)}</title>" if told else ""
        self.put("rect", kind, inner, x=x, y=y, width=max(0.0, width), height=max(0.0, height))

    def words(self, x, y, text, kind="", anchor="start", room=math.inf):
        """Text on the base line `y`, cut in its middle where it is wider than `room`."""
        if not text:
            return
        if anchor != "start":
            self.put("text", kind, safe(clipped(text, room, self.size)), x=x, y=y, text_anchor=anchor)
        else:
            self.put("text", kind, safe(clipped(text, room, self.size)), x=x, y=y)

    def path(self, kind, points, closed=False):
        """A line through points (x, y)."""
        steps = "L".join(f"{coordinate(x)},{coordinate(y)}" for x, y in points)
        self.elements.append(f'<path class="{kind}" d="M{steps}{"Z" if closed else ""}"/>')

    def svg(self, title, told):
        """The picture as text, with its title and its description in words."""
        box = f"0 0 {coordinate(self.width)} {coordinate(math.ceil(self.height))}"
        names = f'aria-labelledby="{self.ident}-title {self.ident}-desc"'
        head = f'<svg class="{self.name}" viewBox="{box}" width="100%" role="img" font-size="{self.size}" {names}>'
        title = f'<title id="{self.ident}-title">{safe(title)}</title>'
        return f'{head}{title}<desc id="{self.ident}-desc">{safe(told)}</desc>{"".join(self.elements)}</svg>'


def chart_markup(ident, title, told, draw):
    """Markup of a chart: `draw(canvas)` is called for each view and sets canvas.height. `draw` None says that there is
    nothing to show. ValueError for an ident that is not letters, digits, - and _, or does not begin with a letter."""
    from markupsafe import Markup

    if not PLAIN_IDENT.fullmatch(ident):
        raise ValueError(f"{ident!r} is no ident of a chart; use letters, digits, - and _")
    views = []
    for view in VIEWS:
        canvas = Canvas(ident, *view)
        if draw:
            draw(canvas)
        else:
            canvas.words(canvas.width / 2, 2 * canvas.line_height, "nothing to show", "quiet", "middle")
            canvas.height = 3 * canvas.line_height
        views.append(canvas.svg(title, told if draw else "There is nothing to show."))
    return Markup('<div class="chart">' + "".join(views) + "</div>")


def hue(index):
    """Class of the colour of the `index`-th series; the colours and dashes come round again, thicker."""
    return f"s{index % HUES}" + (" again" if index >= HUES else "")


def safe(text):
    """Text as HTML text or attribute; what cannot be printed or is no character of XML becomes a replacement sign."""
    return escape("".join(sign if sign.isprintable() else " " if sign.isspace() else "\ufffd" for sign in str(text)))


def coordinate(value):
    """A number with two decimals at most, shortest form; other values as safe text."""
    if not isinstance(value, Real):
        return safe(value)
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def is_drawable(value):
    """Whether a value is a number that a scale can hold."""
    return isinstance(value, Real) and abs(value) < GREATEST  # false for nan


def text_width(text, size):
    """Greatest width to expect of text in a usual sans serif face: a guess from kinds of letters, on the wide side."""
    width = 0.0
    for sign in str(text):
        if unicodedata.east_asian_width(sign) in "WF":
            width += 1.0
        elif sign in BROAD_LETTERS:
            width += 0.97
        else:
            width += 0.38 if sign in SMALL_LETTERS else 0.7 if sign.isupper() else 0.63
    return width * size


def clipped(text, room, size):
    """Text, shortened in its middle until it is no wider than `room`: of names, the ends tell most apart."""
    text = str(text)
    if text_width(text, size) <= room:
        return text
    kept, cut = min(len(text), int(room / (0.3 * size))), text
    while kept > 0 and text_width(cut := f"{text[: -(-kept // 2)]}…{text[len(text) - kept // 2 :]}", size) > room:
        kept -= 1
    return cut if kept else "…"


def spoken(value):
    """A number for people: whole numbers with thousands, others with five digits; "none" for what is no number."""
    if not is_drawable(value):
        return "none"
    return f"{int(value):,}" if abs(value) < 1e15 and value == int(value) else f"{value:.5g}"


def four_decimals(value, sign=""):
    """A number with four decimals, as scores are written; five digits where it is large. `sign` "+" always writes one."""
    return f"{value:{sign}.4f}" if abs(value) < 1e5 else f"{value:{sign}.5g}"


def padded(low, high, share=0.06):
    """Range `share` wider at both ends; around one value 1 % wide, so that a scale always has a width."""
    if high - low <= FINEST * max(abs(low), abs(high)) or high - low < 1 / GREATEST:
        room = 0.01 * max(abs(low), abs(high))
        room = room if room > 1 / GREATEST else 1.0
    else:
        room = share * (high - low)
    return low - room, high + room


def scale(low, high, start, end, log=False):
    """Function from values in low..high to places in start..end, by their logarithms with `log`."""
    if log:
        low, high = math.log10(low), math.log10(high)
    return lambda value: start + (end - start) * (((math.log10(value) if log else value) - low) / (high - low))


def ticks(low, high, count):
    """Round values (1, 2 or 5 times a power of ten apart) within low..high: `count` at most, as many as that allows, two
    at least where the range has two round ones. [low] where the range is one value, [] where it is none."""
    if not (is_drawable(low) and is_drawable(high)) or high < low:
        return []
    if high - low <= FINEST * max(abs(low), abs(high)) or high - low < 1 / GREATEST:
        return [low]
    power = math.floor(math.log10((high - low) / max(count, 1))) - 1
    for exponent in range(power, power + 5):
        for factor in (1, 2, 5):
            step = factor * 10.0**exponent
            first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
            if last - first + 1 <= max(count, 1):
                digits = max(0, min(300, -exponent))
                return [round(index * step, digits) if digits < 300 else index * step for index in range(first, last + 1)]
    return [low]


def log_ticks(low, high, count):
    """Round values within low..high, both above 0, for a scale of logarithms: `count` at most, powers of ten first."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors, stride in [((1, 2, 5), 1), ((1, 3), 1)] + [((1,), stride) for stride in (1, 2, 3, 5, 10, 50, 200)]:
        values = [factor * 10.0**power for power in range(first, last + 1) if power % stride == 0 for factor in factors]
        values = [value for value in values if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(values) <= count:
            return values or [low]
    return [low]


def tick_labels(values):
    """Texts of the values of ticks: as many decimals as tell them apart; thousands as k, M, G."""
    greatest = max(map(abs, values), default=0.0)
    step = min((b - a for a, b in pairwise(values)), default=greatest) or 1.0
    if greatest >= 1e13 or 0 < greatest < 1e-6 or step < 1e-9:
        digits = min(15, max(1, math.ceil(math.log10(max(greatest / step, 1.0))) + 1))
        return [f"{value:.{digits}g}" for value in values]
    scales = (1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k"), (0.0, 1.0, "")
    unit, name = next((unit, name) for least, unit, name in scales if greatest >= least)
    units, near = [value / unit for value in values], 1e-3 * step / unit
    decimals = next((d for d in range(10) if all(abs(value - round(value, d)) < near for value in units)), 9)
    if len(values) == 1 and greatest < 1e4:
        return [f"{values[0]:.5g}"]
    return [f"{value:.{decimals}f}{name}" if value or not name else "0" for value in units]


def fitting_ticks(low, high, count, room, size, log=False):
    """(values, texts) of at most `count` ticks whose texts stand side by side in `room`; two where a range has as many."""
    for fewer in range(count, 0, -1):
        values = (log_ticks if log else ticks)(low, high, fewer)
        texts = tick_labels(values) if not log else [label for value in values for label in tick_labels([value])]
        if sum(text_width(text, size) + size for text in texts) <= room:
            break
    if len(values) < 2 < count and len(more := ticks(low, high, 2 * count)) > 1 and not log:
        values = [more[0], more[-1]]  # the outermost, since one tick is no scale
        texts = tick_labels(values)
    return values, texts


def thin(points, most):
    """At most `most` (>= 4) of the points (x, y), x rising: the first, the last, and the least and the greatest y of
    columns of equal width between them, so that no spike is lost. Points that are not numbers are left out."""
    points = [point for point in points if is_drawable(point[0]) and is_drawable(point[1])]
    if len(points) <= most:
        return points
    columns, start, end = (most - 2) // 2, points[0][0], points[-1][0]
    least, greatest = [None] * columns, [None] * columns
    for index in range(1, len(points) - 1):
        x, y = points[index]
        column = min(columns - 1, max(0, int(columns * (x - start) / (end - start)))) if end > start else 0
        if least[column] is None or y < points[least[column]][1]:
            least[column] = index
        if greatest[column] is None or y > points[greatest[column]][1]:
            greatest[column] = index
    kept = {0, len(points) - 1, *least, *greatest} - {None}
    return [points[index] for index in sorted(kept)]


def column_means(points, columns):
    """Mean (x, y) of the points in each of `columns` of equal width that holds any; x rising."""
    start, end, sums = points[0][0], points[-1][0], {}
    for x, y in points:
        column = min(columns - 1, max(0, int(columns * (x - start) / (end - start)))) if end > start else 0
        count, sum_x, sum_y = sums.get(column, (0, 0.0, 0.0))
        sums[column] = count + 1, sum_x + x, sum_y + y
    return [(sum_x / count, sum_y / count) for _, (count, sum_x, sum_y) in sorted(sums.items())]


def lines_of(label, room, size):
    """A label in lines no wider than `room`, broken after dots, slashes, hyphens, underscores and blanks; None where a
    piece is wider."""
    lines = [""]
    for piece in re.findall(r"[^./_\s-]*[./_\s-]+|[^./_\s-]+", label):
        if lines[-1] and text_width(lines[-1] + piece.rstrip(), size) > room:
            lines.append("")
        lines[-1] += piece
    return lines if all(text_width(line.rstrip(), size) <= room for line in lines) else None


def legend(canvas, top, items, mark):
    """Draws [(classes, text)] from `top` down, as many a line as fit; `mark` is "line" or "box". Returns where it ends."""
    key, gap, x, y = 36 if mark == "line" else 18, 16, 0.0, top
    for kind, text in items:
        room = min(text_width(text, canvas.size), canvas.width - key)
        if x and x + key + room > canvas.width:
            x, y = 0.0, y + canvas.line_height
        middle = y + 0.75 * canvas.line_height - 0.35 * canvas.size
        if mark == "line":
            canvas.line(f"curve {kind}", x, middle, x + 30, middle)
        else:
            canvas.rect(kind, x, middle - 5, 11, 11)
        canvas.words(x + key, y + 0.75 * canvas.line_height, text, room=canvas.width - key)
        x += key + room + gap
    return y + canvas.line_height if items else top


def bottom_axis(canvas, place, marked, top, bottom, title="", lines=True):
    """Ticks and their texts below a plot; `marked` is (values, texts), `place` the scale of x. Returns where it ends."""
    base = bottom + 1.35 * canvas.size
    for value, text in zip(*marked, strict=True):
        x, half = place(value), min(text_width(text, canvas.size), canvas.width) / 2
        if lines:
            canvas.line("grid", x, top, x, bottom)
        canvas.line("axis", x, bottom, x, bottom + 4)
        canvas.words(min(max(x, half), canvas.width - half), base, text, "quiet", "middle", canvas.width)
    if title:
        base += 1.35 * canvas.size
        canvas.words(canvas.width, base, title, "quiet", "end", canvas.width)
    return base + 0.5 * canvas.size


class Plot:
    """The frame of a plot whose y axis is of numbers: draws ticks, grid and the name of the axis, and has the scale."""

    def __init__(self, canvas, top, between, y_label, height):
        values = ticks(*between, 5 if canvas.narrow else 6)
        texts = tick_labels(values)
        self.left = max((text_width(text, canvas.size) for text in texts), default=0) + 8
        self.right = canvas.width - 6
        self.top = top + (1.6 if y_label else 0.6) * canvas.size
        self.bottom = self.top + height
        self.place = scale(*between, self.bottom, self.top)
        if y_label:
            canvas.words(0, top + canvas.size, y_label, "quiet", room=canvas.width)
        for value, text in zip(values, texts, strict=True):
            y = self.place(value)
            canvas.line("grid", self.left, y, self.right, y)
            canvas.words(self.left - 6, y + 0.35 * canvas.size, text, "quiet", "end")
        canvas.line("axis", self.left, self.bottom, self.right, self.bottom)


def hatch(canvas):
    """Puts a hatched pattern into the picture; returns what `fill` refers to it by."""
    name = f"{canvas.ident}-hatch"
    inner = '<rect class="hatch" width="6" height="6"/><line class="hatching" x1="0" y1="0" x2="0" y2="6"/>'
    attributes = 'width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"'
    canvas.elements.append(f'<defs><pattern id="{name}" {attributes}>{inner}</pattern></defs>')
    return f"url(#{name})"
