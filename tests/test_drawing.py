"""Drawing: sizes, frames and durations of an animation, colours that mean what they say, files that
are whole or absent."""
import random

import pytest
from PIL import Image, ImageChops

from lab import drawing
from lab.drawing import EOS, Cell, Panel, Series, chart, samples_sheet, save_decoding

PICTURE = Image.new("RGB", (48, 48), (40, 160, 60))
WORDS = ("i can see a small green triangle at the top right , and "
         "a large red square at the bottom left").split()
AWKWARD = ["", "\n", "a\x00b", "\ud800", "\u202eabc", "e\u0301", "猫が", "\U0001f600", "W" * 5000,
           "<mask>", "\u200d", " "]


def panel(words, iterations, given=()):
    """A made-up run that commits the words left to right, in `iterations` equal parts."""
    W, lines = len(words), []
    for i in range(iterations + 1):
        was, now = (W * j // iterations if iterations else 0 for j in (max(i - 1, 0), i))
        lines.append([Cell(word, "given", 1, False) if k in given else
                      Cell(word, "committed", k / W, was <= k) if k < now else
                      Cell("", "masked", 0, False) for k, word in enumerate(words)])
    return Panel(f"{iterations} iterations", lines)


def frames(path):
    """Each frame of a GIF in RGB, and its duration (ms)."""
    with Image.open(path) as image:
        for i in range(image.n_frames):
            image.seek(i)
            yield image.convert("RGB"), image.info["duration"]


def colours(image):
    return {colour for _, colour in image.getcolors(image.width * image.height)}


@pytest.mark.parametrize("runs, durations_ms", [
    ((0,), [4000]), ((1,), [1000, 4000]), ((7,), [1000] + [700] * 6 + [4000]),
    ((15,), [1000] + [700] * 14 + [4000]), ((3, 20), [1000] + [350] * 19 + [4000])])
def test_a_gif_has_a_frame_for_each_iteration(tmp_path, runs, durations_ms):
    panels = [panel(WORDS, n, range(len(WORDS)) if n == 0 else ()) for n in runs]
    save_decoding(tmp_path / "x.gif", PICTURE, panels)
    with Image.open(tmp_path / "x.gif") as image:
        assert image.format == "GIF" and image.width == 830
        if len(durations_ms) > 1:
            assert image.info["loop"] == 0, "forever"
            assert [duration for _, duration in frames(tmp_path / "x.gif")] == durations_ms
    assert [path.name for path in tmp_path.iterdir()] == ["x.gif"]


def test_a_gif_is_small(tmp_path):
    words = (WORDS * 2 + [EOS] * 10)[:48]
    save_decoding(tmp_path / "x.gif", PICTURE, [panel(words, 7), panel(words, 48)])
    with Image.open(tmp_path / "x.gif") as image:
        assert image.n_frames == 49
    assert (tmp_path / "x.gif").stat().st_size < 300_000  # 79,000 with Pillow 13, 271,000 with 10.1


def test_a_finished_panel_stays_still_and_nothing_moves(tmp_path):
    save_decoding(tmp_path / "x.gif", PICTURE, [panel(WORDS, 2), panel(WORDS, 6)])
    shots = [image for image, _ in frames(tmp_path / "x.gif")]
    first_row = drawing.MARGIN_PX + drawing.HEAD_PX  # of the first panel
    half = 230, 0, 830, first_row + 2 * (drawing.CELL_PX + drawing.GAP_PX)
    assert drawing.NEW in colours(shots[2].crop(half)), "just committed"
    assert drawing.NEW not in colours(shots[3].crop(half)), "no longer"
    for shot in shots[4:]:
        assert not ImageChops.difference(shots[3].crop(half), shot.crop(half)).getbbox()
    boxes = drawing.wrap(panel(WORDS, 1).lines[-1], 590)
    for shot in shots:  # the space between two cells is white from the first frame to the last
        for left, top, right, bottom in boxes:
            x, y = 2 * drawing.MARGIN_PX + drawing.PICTURE_PX + 4 + right + 1, first_row + top + 10
            assert shot.getpixel((x, y)) == (255, 255, 255)


def test_states_and_confidence_have_their_colours(tmp_path):
    """Sampled from the file, three pixels into each cell: a palette of 255 colours keeps them
    exactly."""
    line = [Cell("", "masked", 0, False), Cell("a", "given", 1, False)]
    line += [Cell("a", "committed", i / 10, False) for i in range(11)]
    save_decoding(tmp_path / "x.gif", PICTURE, [Panel("", [line])])
    save_decoding(tmp_path / "x.png", PICTURE, [Panel("", [line])])
    for suffix, left, top in (("gif", 224, 42), ("png", 40, 248)):
        with Image.open(tmp_path / f"x.{suffix}") as image:
            seen = [image.convert("RGB").getpixel((left + box[0] + 3, top + box[1] + 3))
                    for box in drawing.wrap(line, 590)]
        assert seen[:2] == [drawing.MASKED, drawing.GIVEN]
        darkness = [-sum(colour) for colour in seen[2:]]
        assert darkness == sorted(darkness) and len(set(darkness)) == 11, "the surer, the stronger"
    assert drawing.shade(-1) == drawing.shade(0) == drawing.PALE
    assert drawing.shade(2) == drawing.STRONG


@pytest.mark.parametrize("lengths", [(4, 20, 7), (7, 7, 1), (1, 2, 30)])
def test_a_window_may_grow_and_shrink(tmp_path, lengths):
    """Each frame shows as many cells as its window has, where they stand in all frames."""
    lines = [[Cell("a", "masked", 0, False)] * length for length in lengths]
    save_decoding(tmp_path / "x.gif", PICTURE, [Panel("", lines)])
    save_decoding(tmp_path / "x.png", PICTURE, [Panel("", lines)])
    boxes = drawing.wrap(max(lines, key=len), 590)
    for (shot, _), length in zip(frames(tmp_path / "x.gif"), lengths, strict=True):
        seen = [shot.getpixel((224 + left + 3, 42 + top + 3)) for left, top, _, _ in boxes]
        assert seen == [drawing.MASKED] * length + [(255, 255, 255)] * (max(lengths) - length)


def test_the_legend_names_given_tokens_only_where_there_are_some():
    sheets = [drawing.decoding_sheet(PICTURE, [panel(WORDS, 3, given)], 0) for given in ((), (2,))]
    assert [drawing.GIVEN in colours(sheet) for sheet in sheets] == [False, True]


@pytest.mark.parametrize("suffix", ["gif", "png", "GIF", "PNG"])
def test_awkward_text_and_long_windows(tmp_path, suffix):
    rng = random.Random(0)
    noise = ["".join(chr(rng.randrange(0x110000)) for _ in range(6)) for _ in range(60)]
    words = AWKWARD + noise + [EOS] * 72
    assert len(words) == 144
    path = tmp_path / f"x.{suffix}"
    long_title = panel(words, 3)._replace(title="\ud800\n" * 200)
    save_decoding(str(path), PICTURE.convert("L"), [long_title])
    with Image.open(path) as image:
        assert image.width == 830
    assert all(box[2] <= 590 for box in drawing.wrap(panel(words, 1).lines[-1], 590))


def test_a_strip_has_a_row_for_each_iteration(tmp_path):
    heights = []
    for n in (3, 4, 5):
        save_decoding(tmp_path / "x.png", PICTURE, [panel(WORDS, n)])
        with Image.open(tmp_path / "x.png") as image:
            assert image.format == "PNG" and image.width == 830
            heights.append(image.height)
    assert heights[2] - heights[1] == heights[1] - heights[0] > drawing.CELL_PX


@pytest.mark.parametrize("name", ["x.jpg", "x", "gif", "x.gif.txt"])
def test_other_suffixes_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name}: must end in .gif or .png"):
        save_decoding(tmp_path / name, PICTURE, [panel(WORDS, 2)])
    with pytest.raises(ValueError, match=f"{name}: must end in .png"):
        chart(tmp_path / name, [], "", "", "")
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_the_old_file_alone(tmp_path, monkeypatch):
    (tmp_path / "x.gif").write_text("old")

    def fail(self, file, *args, **options):
        file.write(b"half")
        raise OSError("disk full")
    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_decoding(tmp_path / "x.gif", PICTURE, [panel(WORDS, 2)])
    assert [path.name for path in tmp_path.iterdir()] == ["x.gif"]
    assert (tmp_path / "x.gif").read_text() == "old"


# ---------------------------------------------------------------- captioned pictures, charts

@pytest.mark.parametrize("n, width", [(1, 208), (5, 3 * 208), (8, 4 * 208), (11, 4 * 208)])
def test_samples_sheet(n, width):
    texts, right = [" ".join(WORDS)] * n, [True] * (n - 1) + [False]
    sheet = samples_sheet([PICTURE] * n, texts, right)
    assert sheet.size == (width, 2 * 320)
    red = (255, 0, 0) in colours(sheet)
    assert red == (n <= 8), "the last caption is wrong, but only eight are shown"
    samples_sheet([PICTURE.convert("L")] * len(AWKWARD), AWKWARD, [True] * len(AWKWARD), shown=20)


@pytest.mark.parametrize("series", [
    [],
    [Series("none", [], True, False)],
    [Series("one", [(0, 0, None, None, "here")], True, True), Series("", [], False, False)],
    [Series("same", [(3, 5, 5, 5, "a"), (3, 5, 4, 6, "b")], True, False)],
    [Series("tiny", [(1e-9, 99.3, 99.2, 99.4, "")], False, False)],
    [Series(f"{i} " * 20, [(x * 1e6, x * i, x * i - 1, x * i, f"{x}\n") for x in range(-3, 4)],
            i % 2, i == 2) for i in range(9)],
    [Series(text, [(0, 1, None, None, text)], False, False) for text in AWKWARD[:9]]])
def test_charts_of_nothing_and_of_much(tmp_path, series):
    chart(tmp_path / "x.png", series, "x", "y", "title")
    with Image.open(tmp_path / "x.png") as image:
        assert image.format == "PNG" and image.width == 830
        for i, one in enumerate(series[:6]):
            seen = colours(image.convert("RGB"))
            assert not one.points or drawing.COLOURS[i] in seen, "every series is seen"
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


@pytest.mark.parametrize("values", [[], [0], [-7], [0, 1], [99.3, 99.95], [-3e6, 8e6], [1e-7, 2e-7],
                                    [0.1, 0.7]])
def test_ticks_are_round_and_enclose_the_values(values):
    marks = drawing.ticks(values)
    assert 2 <= len(marks) <= 11
    step = marks[1] - marks[0]
    assert f"{step:.3e}"[:5] in ("1.000", "2.000", "5.000")
    assert all(marks[0] - step * 1e-6 <= v <= marks[-1] + step * 1e-6 for v in values)


def test_labels_keep_clear_of_each_other():
    taken, size = [], (60, 14)
    for i in range(8):
        taken.append(drawing.place(200 + i, 200, *size, taken, (0, 0, 400, 400)))
    for i, a in enumerate(taken):
        assert 0 <= a[0] and a[2] <= 400
        for b in taken[:i]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
