"""Everything that is drawn: captioned pictures, a window as it is decoded (animated, or as a still
strip), a small chart."""
import math
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from lab.checkpoint import write

EOS = "<eos>"  # the text of a cell that holds an end-of-sequence token: drawn small
WIDTH_PX, PICTURE_PX, MARGIN_PX = 830, 192, 14  # GitHub shows a README about 830 px wide
CELL_PX, GAP_PX, HEAD_PX = 23, 4, 28  # heights: of a cell, between two cells, of a panel's title
SMALL, FONT, TITLE = (ImageFont.load_default(size_px) for size_px in (12, 14, 16))
BLACK, GREY, LIGHT = (20, 20, 20), (75, 75, 75), (225, 225, 225)
MASKED, GIVEN, NEW = (212, 212, 212), (255, 214, 122), (213, 94, 0)
PALE, STRONG = (236, 245, 253), (104, 176, 238)  # of confidence 0 and 1; black is legible on both
COLOURS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0),
           (86, 180, 233))  # Okabe and Ito's
# corners and turn of a series' marks: circle, square, triangle, diamond
MARKS = ((40, 0), (4, 0), (3, 0), (4, 45))


class Cell(NamedTuple):
    """One position of the window after one iteration."""
    text: str
    state: str         # "masked", "given" (structure prior) or "committed"
    confidence: float  # 0 to 1, if committed
    new: bool          # committed, or taken back, by this very iteration


class Panel(NamedTuple):
    """One decoding run."""
    title: str
    lines: list  # lists of W Cells: before the first iteration, then after each


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
    """The first pictures (PIL) with their captions, in two rows; a wrong caption is red. Returns a
    PIL image."""
    font = ImageFont.load_default(13)
    columns, height_px = math.ceil(min(shown, len(texts)) / 2), size_px + 128
    sheet = Image.new("RGB", (columns * (size_px + 16), 2 * height_px), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (picture, text) in enumerate(list(zip(pictures, texts))[:shown]):
        x, y = i % columns * (size_px + 16) + 8, i // columns * height_px + 8
        sheet.paste(picture.resize((size_px, size_px), Image.Resampling.NEAREST), (x, y))
        lines = [""]
        for word in text.split():
            word = fit(word, size_px, font)
            if lines[-1] and font.getlength(f"{lines[-1]} {word}") > size_px:
                lines.append("")
            lines[-1] = f"{lines[-1]} {word}".strip()
        ink = "black" if right[i] else "red"
        pen.multiline_text((x, y + size_px + 4), "\n".join(lines[:7]), ink, font)
    return sheet


# ---------------------------------------------------------------- a window as it is decoded

def mix(a, b, part):
    """From a (part 0) to b (part 1): colours, or places in px, in whole numbers."""
    return tuple(round(u + part * (v - u)) for u, v in zip(a, b))


def shade(confidence):
    """Confidence 0..1 -> colour, in 16 steps: a GIF has few colours."""
    return mix(PALE, STRONG, round(15 * min(max(confidence, 0), 1)) / 15)


def palette(picture):
    """The 255 colours of an animation; GIF needs one more for "as in the frame before"."""
    papers = [(255, 255, 255), GIVEN] + [shade(i / 15) for i in range(16)]
    # letters have soft edges
    inks = [mix(paper, BLACK, i / 4) for paper in papers for i in range(5)]
    colours = [MASKED, NEW, LIGHT, *inks]
    result = Image.new("P", (1, 1))
    rest = picture.convert("RGB").quantize(255 - len(colours)).getpalette()
    result.putpalette(([v for colour in colours for v in colour] + rest)[:3 * 255])
    return result


def wrap(line, width_px):
    """The box (left, top, right, bottom) of each cell of a line, in rows of at most width_px, from
    (0, 0)."""
    boxes, x, y = [], 0, 0
    for cell in line:
        font, pad_px, inset_px = (SMALL, 4, 3) if cell.text == EOS else (FONT, 10, 0)
        width = max(18, math.ceil(font.getlength(fit(cell.text, 200, font))) + pad_px)
        if x + width > width_px:
            x, y = 0, y + CELL_PX + GAP_PX
        boxes.append((x, y + inset_px, x + width, y + CELL_PX - inset_px))
        x += width + GAP_PX
    return boxes


def draw_line(pen, x, y, line, boxes, mark_new=True):
    for cell, (left, top, right, bottom) in zip(line, boxes):
        fill = {"masked": MASKED, "given": GIVEN}.get(cell.state) or shade(cell.confidence)
        box = (x + left, y + top, x + right - 1, y + bottom - 1)
        pen.rounded_rectangle(box, 4, fill, NEW if cell.new and mark_new else None, 2)
        if cell.state != "masked":
            font, ink = (SMALL, GREY) if cell.text == EOS else (FONT, BLACK)
            middle = x + (left + right) / 2, y + (top + bottom) / 2
            pen.text(middle, fit(cell.text, 200, font), ink, font, "mm")


def draw_legend(pen, x, y, with_given):
    """What the colours mean, in a column 192 px wide and at most 96 px high."""
    keys = [("masked", Cell("", "masked", 0, False)),
            ("changed just now", Cell("", "committed", 1, True)),
            *[("given", Cell("", "given", 0, False))] * with_given]
    for words, cell in keys:
        draw_line(pen, x, y, [cell], [(0, 0, 34, 18)])
        pen.text((x + 42, y + 9), words, BLACK, FONT, "lm")
        y += 26
    for i in range(34):
        pen.line((x + i, y, x + i, y + 17), shade(i / 33))
    pen.text((x + 42, y + 9), "confidence, 0 to 1", BLACK, FONT, "lm")


def decoding_sheet(picture, panels, iteration=None):
    """The panels one below the other, after one iteration, beside the picture; or all their
    iterations, below it."""
    still, beyond_px = iteration is None, PICTURE_PX + 2 * MARGIN_PX
    left, top = (MARGIN_PX + 26, beyond_px) if still else (beyond_px + 4, MARGIN_PX)
    right, layouts = WIDTH_PX - MARGIN_PX, []
    for panel in panels:
        last = len(panel.lines) - 1
        longest = max(panel.lines, key=len)  # of a window that has shrunk
        # as at the end, so that nothing moves
        boxes = wrap(panel.lines[-1] + longest[len(panel.lines[-1]):], right - left)
        rows = range(last + 1) if still else [min(iteration, last)]
        layouts.append((panel, last, boxes, rows, boxes[-1][3] + (12 if still else MARGIN_PX)))
    height = top + sum(HEAD_PX + len(rows) * step for *_, rows, step in layouts)
    height = max(height, beyond_px + (0 if still else 100))
    sheet = Image.new("RGB", (WIDTH_PX, height), "white")
    pen = ImageDraw.Draw(sheet)
    picture = picture.convert("RGB").resize((PICTURE_PX, PICTURE_PX), Image.Resampling.NEAREST)
    sheet.paste(picture, (MARGIN_PX, MARGIN_PX))
    end = MARGIN_PX + PICTURE_PX - 1
    pen.rectangle((MARGIN_PX, MARGIN_PX, end, end), None, LIGHT)
    legend = (left + PICTURE_PX, MARGIN_PX) if still else (MARGIN_PX, beyond_px)
    with_given = any(cell.state == "given" for panel in panels for cell in panel.lines[-1])
    draw_legend(pen, *legend, with_given)
    for panel, last, boxes, rows, step in layouts:
        counter = f"iteration {rows[0]} of {last}"
        if still:
            counter = f"{last} iteration" + "s" * (last != 1)
        pen.text((right, top + 9), counter, GREY, FONT, "rm")
        title = fit(panel.title, right - left - 150, TITLE)
        pen.text((MARGIN_PX if still else left, top + 9), title, BLACK, TITLE, "lm")
        top += HEAD_PX
        for row in rows:
            if still:
                pen.text((left - 8, top + CELL_PX / 2), str(row), GREY, SMALL, "rm")
            # a finished panel has no new cells
            draw_line(pen, left, top, panel.lines[row], boxes, still or row == iteration)
            top += step
    return sheet


def save_decoding(path, picture, panels):
    """A picture (PIL) and the Panels decoded from it: ".gif" is an animation, in lock step, ".png"
    a strip of all iterations.

    Both are 830 px wide. Raises ValueError for any other suffix."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".gif", ".png"):
        raise ValueError(f"{path}: must end in .gif or .png")
    if suffix == ".png":
        return save(path, decoding_sheet(picture, panels))
    last = max(len(panel.lines) for panel in panels) - 1
    durations_ms = [1000] + [350 if last > 15 else 700] * (last - 1) + [4000]
    options = dict(palette=palette(picture), dither=Image.Dither.NONE)
    frames = [decoding_sheet(picture, panels, i).quantize(**options) for i in range(last + 1)]
    save(path, frames[0], save_all=True, append_images=frames[1:],
         duration=durations_ms[-last - 1:], loop=0)


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
