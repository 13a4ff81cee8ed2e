"""Everything that is drawn: captioned pictures, the animation of a decoding, a small chart."""
import contextlib
import functools
import itertools
import math
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from lab.checkpoint import write
from lab.trace import EOS

WIDTH_PX, PICTURE_PX, MARGIN_PX = 830, 192, 14  # GitHub shows a README about 830 px wide
CELL_PX, GAP_PX, COLUMNS = (81, 34), 4, 7       # a cell; between two; cells in a row
LEFT_PX, HEAD_PX, KEY_PX = PICTURE_PX + 2 * MARGIN_PX, 28, 24  # panels begin; title; line of legend
TINY, WORD, FONT, TITLE = map(ImageFont.load_default, (11, 13, 14, 16))  # px; of English letters
OTHERS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial.ttf", "Arial Unicode.ttf", "Nirmala.ttf",
          "NotoSansDevanagari-Regular.ttf", "NotoSansCJK-Regular.ttc", "msyh.ttc", "PingFang.ttc")
BLACK, GREY, LIGHT = (20, 20, 20), (75, 75, 75), (225, 225, 225)
WAITING, GIVEN, DIM = (236, 236, 236), (255, 214, 122), (100, 100, 100)
PALE, STRONG = (236, 245, 253), (104, 176, 238)  # of confidence 0 and 1; black is legible on both
REASONS = {"rule": (0, 90, 150), "at least one": (213, 94, 0), "limit": (170, 60, 140),
           "taken back": (220, 0, 0)}  # why a cell changed -> its outline
COLOURS = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"  # Okabe and Ito's


class Cell(NamedTuple):
    """One position of the window after one iteration, or all of its end that is EOS."""
    text: str | None        # None where it is masked
    given: bool = False     # from the start (structure prior)
    confidence: float = 1   # 0 to 1, if committed
    why: str | None = None  # this very iteration changed it: one of REASONS
    likeliest: list = ()    # of [text, probability], where it waits
    times: int = 1


KEYS = {"waits: likeliest, in %": Cell(None), "now: by the rule": Cell("", why="rule"),
        "now: at least one": Cell("", why="at least one"),
        "now: at the limit": Cell("", why="limit"),
        "now: taken back": Cell(None, why="taken back"), "given": Cell("", given=True)}


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


@functools.cache
def others(size_px):
    """Those of OTHERS that this system has."""
    found = []
    for name in OTHERS:
        with contextlib.suppress(OSError):
            found.append(ImageFont.truetype(name, size_px))
    return found


def unknown(text, font):
    """The letters that the font draws as a box, as it does U+FFFF."""
    return {c for c in text if bytes(font.getmask(c)) == bytes(font.getmask("\uffff"))}


@functools.cache
def lettered(text, font):
    """The font, or that of this system, in its size, that has most of the text's letters."""
    return min([font, *others(font.size)], key=lambda one: len(unknown(text, one)))


def tell_boxes(texts):
    """A line on stderr of the letters that no font here has."""
    letters = sorted({*printable("".join(texts))})
    if boxes := "".join(c for c in letters if unknown(c, lettered(c, WORD))):
        print(f"warning: no font was found that has {boxes}: they are drawn as boxes (Noto's fonts "
              "have all letters)", file=sys.stderr)


def fit(text, width_px, font):
    """`printable`, and cut to the width -> text, `lettered` font."""
    text = start = printable(text[:300])  # more never fits
    font = lettered(text, font)
    while font.getlength(text) > width_px:
        start = start[:-1]
        text = start + "…"
    return text, font


def save(path, image, **options):
    """A picture that appears at `path` whole or not at all; the suffix is its format."""
    write(path, lambda file: image.save(file, Path(path).suffix[1:].upper(), **options))


# ---------------------------------------------------------------- pictures with captions

def samples_sheet(pictures, texts, right, size_px=192, shown=8):
    """The first pictures (PIL), in two rows, with at most 7 lines of their captions; a wrong
    caption is red. Returns a PIL image."""
    tell_boxes(texts[:shown])
    fonts = [lettered(printable(text), WORD) for text in texts[:shown]]
    captions = [[fit(line, size_px, font)[0] for line in textwrap.wrap(text, 30)[:7]]
                for text, font in zip(texts, fonts)]
    columns = math.ceil(len(captions) / 2)
    rows = math.ceil(len(captions) / columns)
    line_px = max(font.getbbox("A")[3] for font in fonts) + 4  # Pillow's distance of two lines
    width, height = size_px + 16, size_px + 16 + line_px * max(map(len, captions))
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (picture, lines) in enumerate(zip(pictures, captions)):
        x, y = i % columns * width + 8, i // columns * height + 8
        sheet.paste(picture.resize((size_px, size_px), Image.Resampling.NEAREST), (x, y))
        ink = "black" if right[i] else "red"
        pen.multiline_text((x, y + size_px + 4), "\n".join(lines), ink, fonts[i])
    return sheet


# ---------------------------------------------------------------- a window as it is decoded

def frames(run):
    """A run (`lab.trace.told`) -> its window before the first iteration and after each: lists of
    Cells, a committed end of EOS as one."""
    line = [Cell(text, text is not None) for text in run["window"]]
    lines = [line]
    for iteration in run["iterations"]:
        before, line = line, []
        for i, (text, why, confidence, likeliest) in enumerate(zip(
                *(iteration[name] for name in ("tokens", "why", "confidence", "likeliest")))):
            if text is None:
                line.append(Cell(None, why=why, likeliest=likeliest))
            elif why is None and i < len(before) and before[i].text is not None:
                line.append(before[i]._replace(text=text, why=None))
            else:
                line.append(Cell(text, confidence=confidence, why=why))
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
    """From colour a (part 0) to b (part 1)."""
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


def place_of(i):
    """Left and top of a panel's i-th cell, from its first one, in px."""
    row, column = divmod(i, COLUMNS)
    return column * (CELL_PX[0] + GAP_PX), row * (CELL_PX[1] + GAP_PX)


def height_of(n):
    """Of a panel of n cells: its title, its rows, the margin below; in px."""
    return HEAD_PX + place_of(n - 1)[1] + CELL_PX[1] + GAP_PX + MARGIN_PX


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
        text, font = fit(cell.text, size[0] - 6, TITLE)
        pen.text((middle, (top + bottom) / 2), text, BLACK, font, "mm")
    # what it waits for: the likeliest word, and the runner-up where it counts
    for (text, p), y, ink, font in zip(cell.likeliest, (10, 25), (GREY, DIM), (WORD, TINY)):
        if y == 10 or p >= 0.005:
            share = f"{100 * p:.0f}"
            room_px = size[0] - 9 - TINY.getlength(share)
            pen.text((right - 3, top + y), share, ink, TINY, "rm")
            text, font = fit(text, room_px, font)
            pen.text((left + 4, top + y), text, ink, font, "lm")


def draw_legend(pen, cells):
    """Below the picture: what the colours mean, of those that occur in `cells`."""
    seen, left, top = {(cell.why, cell.given) for cell in cells}, MARGIN_PX, LEFT_PX
    for said, key in KEYS.items():
        if (key.why, key.given) in seen:
            draw_cell(pen, left, top, key, (34, 18))
            pen.text((left + 42, top + 9), said, BLACK, FONT, "lm")
            top += KEY_PX
    for k in range(34):
        pen.line((left + k, top, left + k, top + 17), shade(k / 33))
    pen.text((left + 42, top + 9), "confidence, 0 to 1", BLACK, FONT, "lm")


def decoding_frame(picture, titles, panels, iteration):
    """The picture, and beside it panels one below the other, each a title and its `frames`, as they
    are after an iteration. Returns a PIL image."""
    # as high as a panel ever gets, so that nothing below it moves
    heights = [height_of(max(map(len, panel))) for panel in panels]
    height = max(MARGIN_PX + sum(heights), LEFT_PX + 7 * KEY_PX)
    sheet = Image.new("RGB", (WIDTH_PX, height), "white")
    pen = ImageDraw.Draw(sheet)
    picture = picture.convert("RGB").resize((PICTURE_PX, PICTURE_PX), Image.Resampling.NEAREST)
    sheet.paste(picture, (MARGIN_PX, MARGIN_PX))
    end = MARGIN_PX + PICTURE_PX - 1
    pen.rectangle((MARGIN_PX, MARGIN_PX, end, end), None, LIGHT)
    draw_legend(pen, [cell for panel in panels for line in panel for cell in line])
    right, top = WIDTH_PX - MARGIN_PX, MARGIN_PX
    for title, panel, height in zip(titles, panels, heights):
        last = len(panel) - 1
        counter = f"iteration {min(iteration, last)} of {last}"
        pen.text((right, top + 9), counter, GREY, FONT, "rm")
        text, font = fit(title, right - LEFT_PX - 150, TITLE)
        pen.text((LEFT_PX, top + 9), text, BLACK, font, "lm")
        for i, cell in enumerate(panel[min(iteration, last)]):
            if iteration > last:  # a finished panel has no new cells
                cell = cell._replace(why=None)
            x, y = place_of(i)
            draw_cell(pen, LEFT_PX + x, top + HEAD_PX + y, cell)
        top += height
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
    """A GIF, 830 px wide: a picture (PIL), and the runs decoded from it (`lab.trace.told`) in lock
    step."""
    titles, panels = [run["title"] for run in runs], [frames(run) for run in runs]
    tell_boxes(cell.text or "" for panel in panels for line in panel for cell in line)
    durations_ms = pace([len(run["iterations"]) for run in runs])
    options = dict(palette=palette(picture), dither=Image.Dither.NONE)
    first, *later = [decoding_frame(picture, titles, panels, i).quantize(**options)
                     for i in range(len(durations_ms))]
    save(path, first, save_all=True, append_images=later, duration=durations_ms, loop=0)


# ---------------------------------------------------------------- a chart

def chart(path, series, x_label, y_label, title):
    """A line and scatter chart of a list of Series, a PNG of 830 x 480 px, by matplotlib. Without
    it there is no chart, and a line on stderr that says so: what was measured is worth more."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.transforms import Bbox
    except ImportError:
        print(f'no chart {path}: matplotlib is missing; pip install -e ".[plots]"', file=sys.stderr)
        return
    figure = Figure((8.3, 4.8), dpi=100, layout="constrained")
    axes, labels = figure.subplots(), []
    for one, colour, mark in zip(series, itertools.cycle(COLOURS), itertools.cycle("os^D")):
        bold = 1.6 if one.emphasis else 1
        style = dict(color=colour, linewidth=1.3 * bold, zorder=2 + bold)
        axes.plot([p[0] for p in one.points], [p[1] for p in one.points], mark + "-" * one.line,
                  markersize=6 * bold, markeredgecolor="white", label=one.name, **style)
        for x, y, low, high, label in one.points:
            if low is not None:
                axes.plot([x, x], [low, high], marker="_", **style)
            if label:
                labels.append(axes.annotate(
                    label, (x, y), (0, 0), textcoords="offset points", va="center", fontsize=8,
                    zorder=9, in_layout=False))
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.set_title(title, loc="left")
    axes.grid(color="#e1e1e1")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower left", ncols=2, frameon=False)
    figure.draw_without_rendering()  # now it is known where everything stands
    marks = axes.transData.transform([point[:2] for one in series for point in one.points])
    taken = [Bbox.from_bounds(x - 3, y - 3, 6, 6) for x, y in marks]
    for label in labels:  # beside its mark, or as near to it as others leave room
        heights = 6, -6, 16, -16, 26, -26, 36, -36, 46, 56, 66, 76, -46, -56
        for up, right in itertools.product(heights, (9, -9)):
            label.set(position=(right, up), horizontalalignment="left" if right > 0 else "right")
            box = label.get_window_extent()
            inside = axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max)
            if inside and not box.count_overlaps(taken):
                break
        else:  # no room: the table has it
            label.set_visible(False)
            continue
        taken.append(box)
        axes.annotate("", label.xy, (right, up), textcoords="offset points",
                      arrowprops=dict(arrowstyle="-", linewidth=0.5))
    write(path, lambda file: figure.savefig(file, format="png"))
