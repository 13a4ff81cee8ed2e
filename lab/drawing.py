"""Everything that is drawn: captioned pictures, a window as it is decoded (animated, or as a still
strip), a small chart."""
import math
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from lab.checkpoint import write
from lab.trace import EOS

WIDTH_PX, PICTURE_PX, MARGIN_PX = 830, 192, 14  # GitHub shows a README about 830 px wide
CELL_PX, GAP_PX, HEAD_PX = (81, 34), 4, 28  # a cell; between two; height of a panel's title
TINY, SMALL, WORD, FONT, TITLE = map(ImageFont.load_default, (11, 12, 13, 14, 16))  # px
BLACK, GREY, LIGHT = (20, 20, 20), (75, 75, 75), (225, 225, 225)
WAITING, GIVEN, DIM = (236, 236, 236), (255, 214, 122), (100, 100, 100)
PALE, STRONG = (236, 245, 253), (104, 176, 238)  # of confidence 0 and 1; black is legible on both
REASONS = {"rule": (0, 90, 150), "at least one": (213, 94, 0), "limit": (170, 60, 140),
           "taken back": (220, 0, 0)}  # why a cell changed -> its outline
COLOURS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0),
           (86, 180, 233))  # Okabe and Ito's
# corners and turn of a series' marks: circle, square, triangle, diamond
MARKS = ((40, 0), (4, 0), (3, 0), (4, 45))


class Cell(NamedTuple):
    """One position of the window after one iteration, or all of its end that is EOS."""
    text: str | None    # None where it is masked
    given: bool         # from the start (structure prior)
    confidence: float   # 0 to 1, if committed
    why: str | None     # this very iteration changed it: one of REASONS
    likeliest: list     # of [text, probability], where it waits
    times: int = 1


class Series(NamedTuple):
    """One colour of a chart."""
    name: str
    points: list    # (x, y, low, high, label): the error bar's ends or None, a text or ""
    line: bool      # joins the points
    emphasis: bool  # bolder


def printable(text):
    """Any string as one line that Pillow can draw: lone surrogates, line breaks and the like become
    "?"."""
    return "".join(c if c.isprintable() else "?" for c in text)


def fit(text, width_px, font):
    """`printable`, and cut to the width."""
    text = start = printable(text[:300])  # more never fits
    while font.getlength(text) > width_px:
        start = start[:-1]
        text = start + "…"
    return text


def save(path, image, **options):
    """A picture that appears at `path` whole or not at all; the suffix is its format."""
    write(path, lambda file: image.save(file, Path(path).suffix[1:].upper(), **options))


# ---------------------------------------------------------------- pictures with captions

def samples_sheet(pictures, texts, right, size_px=192, shown=8):
    """The first pictures (PIL) with their captions of at most 7 lines, in two rows as high as these
    need; a wrong caption is red. Returns a PIL image."""
    font = WORD
    line_px = font.getbbox("A")[3] + 4  # Pillow's distance of two lines
    captions = []
    for text in texts[:shown]:
        lines = [""]
        for word in text.split():
            word = fit(word, size_px, font)
            if lines[-1] and font.getlength(f"{lines[-1]} {word}") > size_px:
                lines.append("")
            lines[-1] = f"{lines[-1]} {word}".strip()
        captions.append(lines[:7])
    columns = math.ceil(len(captions) / 2)
    heights = [size_px + 16 + line_px * max(map(len, row))
               for row in (captions[:columns], captions[columns:]) if row]
    sheet = Image.new("RGB", (columns * (size_px + 16), sum(heights)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (picture, lines) in enumerate(zip(pictures, captions)):
        x, y = i % columns * (size_px + 16) + 8, i // columns * heights[0] + 8
        sheet.paste(picture.resize((size_px, size_px), Image.Resampling.NEAREST), (x, y))
        ink = "black" if right[i] else "red"
        pen.multiline_text((x, y + size_px + 4), "\n".join(lines), ink, font)
    return sheet


# ---------------------------------------------------------------- a window as it is decoded

def frames(run):
    """A run (`lab.trace.told`) -> its window before the first iteration and after each: lists of
    Cells, a committed end of EOS as one."""
    line = [Cell(text, text is not None, 1.0, None, []) for text in run["window"]]
    lines = [line]
    for iteration in run["iterations"]:
        before, line = line, []
        for i, (text, why, confidence, likeliest) in enumerate(zip(
                *(iteration[name] for name in ("tokens", "why", "confidence", "likeliest")))):
            old = before[i] if i < len(before) else None
            if text is not None and why is None and old and old.text is not None:
                line.append(old._replace(text=text, why=None))
            else:
                line.append(Cell(text, False, confidence, why, likeliest if text is None else []))
        lines.append(line)
    return [folded(line) for line in lines]


def folded(line):
    """A line of Cells, two or more committed EOS at its end as one Cell."""
    start = len(line)
    while start and line[start - 1].text == EOS and not line[start - 1].given:
        start -= 1
    if len(line) - start < 2:
        return line
    why = next((cell.why for cell in line[start:] if cell.why), None)
    return [*line[:start], line[start]._replace(why=why, times=len(line) - start)]


def mix(a, b, part):
    """From a (part 0) to b (part 1): colours, or places in px, in whole numbers."""
    return tuple(round(u + part * (v - u)) for u, v in zip(a, b))


def shade(confidence):
    """Confidence 0..1 -> colour, in 16 steps: a GIF has few colours."""
    return mix(PALE, STRONG, round(15 * min(max(confidence, 0), 1)) / 15)


def palette(picture):
    """The 255 colours of an animation; GIF needs one more for "as in the frame before"."""
    papers = [(255, 255, 255), WAITING, GIVEN] + [shade(i / 15) for i in range(16)]
    # letters have soft edges
    soft = [mix(paper, BLACK, i / 4) for paper in papers for i in range(5)]
    soft += [mix(paper, ink, i / 4) for paper in papers[:2] for ink in (GREY, DIM)
             for i in range(1, 5)]
    colours = [*REASONS.values(), LIGHT, *soft]
    result = Image.new("P", (1, 1))
    rest = picture.convert("RGB").quantize(255 - len(colours)).getpalette()
    result.putpalette(([v for colour in colours for v in colour] + rest)[:3 * 255])
    return result


def place_of(i, width_px):
    """Left and top of the i-th cell, in rows of at most width_px, from (0, 0)."""
    across, down = (side + GAP_PX for side in CELL_PX)
    row, column = divmod(i, (width_px + GAP_PX) // across)
    return column * across, row * down


def height_of(n, width_px):
    """Of the rows of n cells, the gap below included."""
    return place_of(n - 1, width_px)[1] + CELL_PX[1] + GAP_PX


def draw_cell(pen, left, top, cell, size=CELL_PX):
    right, bottom = left + size[0] - 1, top + size[1] - 1
    fill = GIVEN if cell.given else WAITING if cell.text is None else shade(cell.confidence)
    outline = REASONS.get(cell.why, REASONS["rule"]) if cell.why else None
    more = cell.why == "taken back"  # px thicker, outwards: clear of the words that wait again
    box = left - more, top - more, right + more, bottom + more
    pen.rounded_rectangle(box, 4, fill, outline, 2 + more)
    middle = (left + right) / 2
    if cell.times > 1:
        pen.text((middle, top + 11), cell.text, BLACK, FONT, "mm")
        pen.text((middle, top + 25), f"x {cell.times}", BLACK, TINY, "mm")
    elif cell.text is not None:
        text = fit(cell.text, size[0] - 6, TITLE)
        pen.text((middle, (top + bottom) / 2), text, BLACK, TITLE, "mm")
    # what it waits for: the likeliest word, and the runner-up where it counts
    for (text, p), y, ink, font in zip(cell.likeliest, (10, 25), (GREY, DIM), (WORD, TINY)):
        if y == 10 or p >= 0.005:
            share = f"{100 * p:.0f}"
            room_px = size[0] - 9 - TINY.getlength(share)
            pen.text((right - 3, top + y), share, ink, TINY, "rm")
            pen.text((left + 4, top + y), fit(text, room_px, font), ink, font, "lm")


def draw_legend(pen, x, y, cells, columns):
    """What the colours mean, of those that occur in `cells`, in so many columns of 192 px."""
    whys = {cell.why for cell in cells}
    words = {"rule": "now: by the rule", "at least one": "now: at least one",
             "limit": "now: at the limit", "taken back": "now: taken back"}
    keys = [("waits: likeliest, in %", Cell(None, False, 0, None, []))]
    keys += [(words[why], Cell(None if why == "taken back" else "", False, 1, why, []))
             for why in REASONS if why in whys]
    keys += [("given", Cell("", True, 0, None, []))] * any(cell.given for cell in cells)
    for i, (said, cell) in enumerate([*keys, ("confidence, 0 to 1", None)]):
        left, top = x + i % columns * 200, y + i // columns * 24
        if cell:
            draw_cell(pen, left, top, cell, (34, 18))
        else:
            for k in range(34):
                pen.line((left + k, top, left + k, top + 17), shade(k / 33))
        pen.text((left + 42, top + 9), said, BLACK, FONT, "lm")


def decoding_sheet(picture, titles, lines, iteration=None):
    """Panels one below the other, each a title and its `frames`, after one iteration, beside the
    picture; or all their iterations, below it."""
    still, beyond_px = iteration is None, PICTURE_PX + 2 * MARGIN_PX
    left, top = (MARGIN_PX + 26, beyond_px) if still else (beyond_px, MARGIN_PX)
    right, layouts = WIDTH_PX - MARGIN_PX, []
    for title, panel in zip(titles, lines):
        last = len(panel) - 1
        rows = range(last + 1) if still else [min(iteration, last)]
        heights = [height_of(len(line), right - left) + (10 if still else MARGIN_PX)
                   for line in panel]
        # as high as it ever gets, so that nothing below it moves
        heights = heights if still else [max(heights)] * len(panel)
        layouts.append((title, panel, last, rows, heights))
    height = top + sum(HEAD_PX + sum(heights[row] for row in rows)
                       for *_, rows, heights in layouts)
    height = max(height, beyond_px + (0 if still else 7 * 24))
    sheet = Image.new("RGB", (WIDTH_PX, height), "white")
    pen = ImageDraw.Draw(sheet)
    picture = picture.convert("RGB").resize((PICTURE_PX, PICTURE_PX), Image.Resampling.NEAREST)
    sheet.paste(picture, (MARGIN_PX, MARGIN_PX))
    end = MARGIN_PX + PICTURE_PX - 1
    pen.rectangle((MARGIN_PX, MARGIN_PX, end, end), None, LIGHT)
    legend = (left + PICTURE_PX, MARGIN_PX) if still else (MARGIN_PX, beyond_px)
    seen = [cell for panel in lines for line in panel for cell in line]
    draw_legend(pen, *legend, seen, 2 if still else 1)
    for title, panel, last, rows, heights in layouts:
        counter = f"iteration {rows[0]} of {last}"
        if still:
            counter = f"{last} iteration" + "s" * (last != 1)
        pen.text((right, top + 9), counter, GREY, FONT, "rm")
        title = fit(title, right - left - 150, TITLE)
        pen.text((MARGIN_PX if still else left, top + 9), title, BLACK, TITLE, "lm")
        top += HEAD_PX
        for row in rows:
            if still:
                pen.text((left - 8, top + CELL_PX[1] / 2), str(row), GREY, SMALL, "rm")
            for i, cell in enumerate(panel[row]):
                if not still and row != iteration:  # a finished panel has no new cells
                    cell = cell._replace(why=None)
                x, y = place_of(i, right - left)
                draw_cell(pen, left + x, top + y, cell)
            top += heights[row]
    return sheet


def pace(iterations):
    """How many iterations each run has -> how long each frame is shown, in ms: while the shortest
    run still goes on they get time, afterwards many pass quickly."""
    last, first = max(iterations), min(filter(None, iterations), default=0)
    slow_ms = min(1000, max(300, 12_000 // max(first, 1)))
    fast_ms = min(slow_ms, max(120, 4000 // max(last - first, 1)))
    middle = [slow_ms if i <= first else fast_ms for i in range(1, last)]
    return ([1000] + middle + [4000])[-last - 1:]


def save_decoding(path, picture, runs):
    """A picture (PIL) and runs decoded from it (`lab.trace.told`): ".gif" is an animation, in lock
    step, ".png" a strip of all iterations.

    Both are 830 px wide. Raises ValueError for any other suffix."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".gif", ".png"):
        raise ValueError(f"{path}: must end in .gif or .png")
    panels = [run["title"] for run in runs], [frames(run) for run in runs]
    if suffix == ".png":
        return save(path, decoding_sheet(picture, *panels))
    durations_ms = pace([len(run["iterations"]) for run in runs])
    options = dict(palette=palette(picture), dither=Image.Dither.NONE)
    shots = [decoding_sheet(picture, *panels, i).quantize(**options)
             for i in range(len(durations_ms))]
    save(path, shots[0], save_all=True, append_images=shots[1:], duration=durations_ms, loop=0)


# ---------------------------------------------------------------- a chart

def ticks(values, most=8):
    """Round numbers at equal steps, at most about `most`, that enclose the values."""
    low, high = min(values, default=0), max(values, default=1)
    if low == high:
        low, high = low - (abs(low) / 10 or 1), high + (abs(high) / 10 or 1)
    step = 10 ** math.floor(math.log10((high - low) / most))
    step *= next(m for m in (1, 2, 5, 10) if m * step * most >= high - low)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def place(x, y, width, height, taken, frame):
    """A box for the label of the mark at (x, y): of 24 around it, the first that hides least of the
    boxes in `taken`."""
    def shared(a, b):  # px^2
        return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))

    def cost(box):
        hidden = sum(shared(box, other) for other in taken)
        return hidden + 10 * (width * height - shared(box, frame))
    sides = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1))
    across, down = width / 2, height / 2  # from the middle of the box to its sides
    middles = [(x + dx * (across + away), y + dy * (down + away))
               for away in (11, 19, 32) for dx, dy in sides]
    return min(((u - across, v - down, u + across, v + down) for u, v in middles), key=cost)


def chart(path, series, x_label, y_label, title, height_px=480, scale=3):
    """A line and scatter chart of a list of Series, 830 px wide. Raises ValueError unless the path
    ends in ".png".

    Drawn `scale` times larger and averaged down, for smooth edges; the text comes after that, for
    sharp letters."""
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"{path}: must end in .png")
    sheet = Image.new("RGB", (WIDTH_PX * scale, height_px * scale), "white")
    # words: what to write at the end; taken: boxes that labels avoid
    pen, words, taken = ImageDraw.Draw(sheet), [], []
    series = [(one, COLOURS[i % len(COLOURS)], MARKS[i % len(MARKS)])
              for i, one in enumerate(series)]

    def stroke(xy, colour, width_px):
        pen.line([scale * v for v in xy], colour, round(scale * width_px))

    def mark(x, y, one, colour, shape):
        circle = scale * x, scale * y, scale * (7 if one.emphasis else 5)
        pen.regular_polygon(circle, *shape, colour, "white")

    def write(x, y, text, ink, font, anchor):
        words.append(((x, y), printable(text), ink, font, anchor))

    # title, legend
    write(MARGIN_PX, 22, fit(title, WIDTH_PX - 2 * MARGIN_PX, TITLE), BLACK, TITLE, "lm")
    x, y = MARGIN_PX, 54
    for one, colour, shape in series:
        name = fit(one.name, WIDTH_PX - 80, FONT)
        if x + 28 + FONT.getlength(name) > WIDTH_PX - MARGIN_PX:
            x, y = MARGIN_PX, y + 22
        if one.line:
            stroke((x, y, x + 22, y), colour, 4 if one.emphasis else 2)
        mark(x + 11, y, one, colour, shape)
        write(x + 28, y, name, BLACK, FONT, "lm")
        x += 50 + FONT.getlength(name)

    # axes
    points = [point for one, *_ in series for point in one.points]
    xs = ticks([p[0] for p in points])
    ys = ticks([v for p in points for v in p[1:4] if v is not None])
    widest = max(SMALL.getlength(f"{v:,.6g}") for v in ys)
    frame = left, top, right, bottom = MARGIN_PX + 8 + widest, y + 48, WIDTH_PX - 30, height_px - 56

    def at(x, y):
        """Data -> px."""
        return (left + (x - xs[0]) / (xs[-1] - xs[0]) * (right - left),
                bottom - (y - ys[0]) / (ys[-1] - ys[0]) * (bottom - top))

    for v in xs:
        x, _ = at(v, ys[0])
        stroke((x, top, x, bottom), LIGHT, 1)
        write(x, bottom + 8, f"{v:,.6g}", GREY, SMALL, "mt")
    for v in ys:
        _, y = at(xs[0], v)
        stroke((left, y, right, y), LIGHT if v > ys[0] else GREY, 1)
        write(left - 8, y, f"{v:,.6g}", GREY, SMALL, "rm")
    write(MARGIN_PX, top - 20, y_label, GREY, FONT, "lm")
    write(right, height_px - 20, x_label, GREY, FONT, "rm")

    # lines and error bars, then labels, then marks; the emphasised on top, but labelled first
    series.sort(key=lambda styled: styled[0].emphasis)
    for one, colour, _ in series:
        for a, b in zip(one.points, one.points[1:]) if one.line else ():
            (x, y), (u, v) = at(*a[:2]), at(*b[:2])
            stroke((x, y, u, v), colour, 4 if one.emphasis else 2)
            for part in range(0, 100, 2):
                middle = mix((x, y), (u, v), part / 100)
                taken.append((middle[0] - 3, middle[1] - 3, middle[0] + 3, middle[1] + 3))
        for x, y, low, high, _ in one.points:
            x, y = at(x, y)
            taken.append((x - 6, y - 6, x + 6, y + 6))
            if low is not None:
                (_, lower), (_, upper) = at(xs[0], low), at(xs[0], high)
                ends = [(x - 4, v, x + 4, v) for v in (upper, lower)]
                for bar in ((x, upper, x, lower), *ends):
                    stroke(bar, colour, 2.2 if one.emphasis else 1.4)
                taken.append((x - 4, upper, x + 4, lower))
    for one, *_ in series[::-1]:
        for point in one.points:
            if point[4]:
                (x, y), text = at(*point[:2]), fit(point[4], 200, SMALL)
                a, b, c, d = place(x, y, SMALL.getlength(text), 14, taken, frame)
                taken += 4 * [(a, b, c, d)]  # text on text is worse than text on a line
                # from the mark to the label
                stroke((x, y, min(max(x, a), c), min(max(y, b), d)), GREY, 0.7)
                ink = BLACK if one.emphasis else GREY
                write((a + c) / 2, (b + d) / 2, text, ink, SMALL, "mm")
    for one, *style in series:
        if not one.line or len(one.points) < 50:  # marks would hide so dense a line
            for point in one.points:
                mark(*at(*point[:2]), one, *style)
    sheet = sheet.reduce(scale)
    for args in words:
        ImageDraw.Draw(sheet).text(*args)
    save(path, sheet)
