"""Drawing: sizes, frames and durations of an animation, colours that mean what they say, files that
are whole or absent."""
import random

import pytest
from PIL import Image, ImageChops

from data import toy
from lab import drawing
from lab.drawing import Series, chart, samples_sheet, save_decoding
from lab.trace import EOS

PICTURE = Image.new("RGB", (48, 48), (40, 160, 60))
WORDS = ("i can see a small green triangle at the top right , and "
         "a large red square at the bottom left").split()
AWKWARD = ["", "\n", "a\x00b", "\ud800", "\u202eabc", "e\u0301", "猫が", "\U0001f600", "W" * 5000,
           "<mask>", "\u200d", " "]


def made(words, iterations, given=(), title="made up"):
    """A made-up run (docs/viewer.md) that commits the words left to right, in `iterations` equal
    parts; what waits is torn between its own word and "other"."""
    W, after = len(words), []
    for i in range(1, iterations + 1):
        was, now = (W * j // iterations for j in (i - 1, i))
        after.append(dict(
            tokens=[w if k < now or k in given else None for k, w in enumerate(words)],
            why=["rule" if was <= k < now and k not in given else None for k in range(W)],
            confidence=[k / W for k in range(W)],
            likeliest=[[[w, 0.6], ["other", 0.4]] for w in words]))
    window = [w if k in given else None for k, w in enumerate(words)]
    return dict(title=title, window=window, iterations=after)


def one_iteration(tokens, **lists):
    """A run of a single iteration, its lists filled up with nothing."""
    empty = dict(why=[None] * len(tokens), confidence=[1.0] * len(tokens),
                 likeliest=[[] for _ in tokens])
    return dict(title="", window=[None] * len(tokens),
                iterations=[empty | dict(tokens=tokens) | lists])


def cell_boxes(n, suffix):
    """Left and top of the first n cells of a picture's first panel, in its first row of rows."""
    left, top, width = dict(gif=(220, 42, 596), png=(40, 248, 776))[suffix]
    return [(left + x, top + y) for x, y in (drawing.place_of(i, width) for i in range(n))]


def ink(image, box):
    """How many pixels of a cell, its border left out, differ from its paper."""
    left, top = box
    inside = image.convert("RGB").crop((left + 4, top + 4, left + drawing.CELL_PX[0] - 4,
                                        top + drawing.CELL_PX[1] - 4))
    counts = sorted(n for n, _ in inside.getcolors(10_000))
    return sum(counts[:-1])


def frames(path):
    """Each frame of a GIF in RGB, and its duration (ms)."""
    with Image.open(path) as image:
        for i in range(image.n_frames):
            image.seek(i)
            yield image.convert("RGB"), image.info["duration"]


def colours(image):
    return {colour for _, colour in image.getcolors(image.width * image.height)}


@pytest.mark.parametrize("runs, durations_ms", [
    ((0,), [4000]), ((1,), [1000, 4000]), ((7,), [1000] + [1000] * 6 + [4000]),
    ((24,), [1000] + [500] * 23 + [4000]), ((100,), [1000] + [300] * 99 + [4000]),
    ((3, 23), [1000] + [1000] * 3 + [200] * 19 + [4000]), ((0, 2), [1000, 1000, 4000]),
    ((1, 40), [1000, 1000] + [120] * 38 + [4000]), ((5, 7), [1000] * 7 + [4000])])
def test_a_gif_has_a_frame_for_each_iteration(tmp_path, runs, durations_ms):
    """The time goes where the first to finish still decodes."""
    panels = [made(WORDS, n, range(len(WORDS)) if n == 0 else ()) for n in runs]
    save_decoding(tmp_path / "x.gif", PICTURE, panels)
    with Image.open(tmp_path / "x.gif") as image:
        assert image.format == "GIF" and image.width == 830
        if len(durations_ms) > 1:
            assert image.info["loop"] == 0, "forever"
            assert [duration for _, duration in frames(tmp_path / "x.gif")] == durations_ms
    assert [path.name for path in tmp_path.iterdir()] == ["x.gif"]


def test_a_gif_is_small(tmp_path):
    words = (WORDS * 2 + [EOS] * 10)[:48]
    save_decoding(tmp_path / "x.gif", PICTURE, [made(words, 7), made(words, 48)])
    with Image.open(tmp_path / "x.gif") as image:
        assert image.n_frames == 49
    assert (tmp_path / "x.gif").stat().st_size < 600_000  # 127,000; Pillow 10.1: 497,000


def test_a_finished_panel_stays_still_and_nothing_moves(tmp_path):
    save_decoding(tmp_path / "x.gif", PICTURE, [made(WORDS, 2), made(WORDS, 6)])
    shots = [image for image, _ in frames(tmp_path / "x.gif")]
    half = 215, 0, 830, 42 + drawing.height_of(len(WORDS), 596)  # the first panel
    new = drawing.REASONS["rule"]
    assert new in colours(shots[2].crop(half)), "just committed"
    assert new not in colours(shots[3].crop((215, 40, 830, half[3]))), "no longer"
    for shot in shots[4:]:
        still = [image.crop((215, 40, 830, half[3])) for image in (shots[3], shot)]
        assert not ImageChops.difference(*still).getbbox()
    for shot in shots:  # the space between two cells is white from the first frame to the last
        for left, top in cell_boxes(len(WORDS), "gif"):
            assert shot.getpixel((left + drawing.CELL_PX[0] + 1, top + 10)) == (255, 255, 255)
    assert len({shot.size for shot in shots}) == 1


@pytest.mark.parametrize("suffix", ["gif", "png"])
def test_states_and_confidence_have_their_colours(tmp_path, suffix):
    """Sampled from the file, near the corner of each cell: a palette of 255 colours keeps them
    exactly."""
    shares = [i / 10 for i in range(11)]
    run = dict(title="", window=[None, "a"] + ["b"] * 11, iterations=[])
    after = [None, "a", *"c" * 11]
    run["iterations"] = [dict(tokens=after, why=[None, None] + ["rule"] * 11,
                              confidence=[0, 0, *shares], likeliest=[[]] * 13),
                         dict(tokens=after, why=[None] * 13, confidence=[0] * 13,
                              likeliest=[[]] * 13)]
    save_decoding(tmp_path / f"x.{suffix}", PICTURE, [run])
    with Image.open(tmp_path / f"x.{suffix}") as image:
        down = 0
        if suffix == "gif":
            image.seek(2)
        else:
            down = 2 * (drawing.height_of(13, 776) + 10)  # the rows of the iterations before
        seen = [image.convert("RGB").getpixel((left + 4, top + down + 4))
                for left, top in cell_boxes(13, suffix)]
    assert seen[:2] == [drawing.WAITING, drawing.GIVEN]
    darkness = [-sum(colour) for colour in seen[2:]]
    assert darkness == sorted(darkness) and len(set(darkness)) == 11, "the surer, the stronger"
    assert drawing.shade(-1) == drawing.shade(0) == drawing.PALE
    assert drawing.shade(2) == drawing.STRONG


def test_what_waits_shows_its_words(tmp_path):
    """Nothing, a sure word, and one with a runner-up: each has more ink than the one before."""
    run = one_iteration([None] * 3, likeliest=[[], [["cat", 1.0], ["dog", 0.001]],
                                               [["cat", 0.6], ["dog", 0.4]]])
    save_decoding(tmp_path / "x.gif", PICTURE, [run])
    first, second = [image for image, _ in frames(tmp_path / "x.gif")]
    nothing, sure, torn = [ink(second, box) for box in cell_boxes(3, "gif")]
    assert nothing == 0 < sure < torn
    assert not any(ink(first, box) for box in cell_boxes(3, "gif")), "before the first pass"
    committed = one_iteration([""], likeliest=[[["cat", 0.6]]])  # a token of white space alone
    save_decoding(tmp_path / "y.gif", PICTURE, [committed])
    *_, (shot, _) = frames(tmp_path / "y.gif")
    assert ink(shot, cell_boxes(1, "gif")[0]) == 0, "it waits no longer"


def test_a_cell_has_room_for_each_word_of_the_toy(monkeypatch):
    drawn, fit = [], drawing.fit
    monkeypatch.setattr(drawing, "fit", lambda *args: drawn.append(fit(*args)) or drawn[-1])
    words = [*toy.SHAPES, *toy.COLOURS, *toy.RADIUS_PX, "".join(toy.OPENINGS), "bottom middle"]
    words = {word for text in words for word in text.split()} | {EOS}
    run = one_iteration([*words] + [None] * len(words),
                        likeliest=[[]] * len(words) + [[[w, 1.0], [w, 0.99]] for w in words])
    drawing.decoding_sheet(PICTURE, [""], [drawing.frames(run)], 1)
    assert words < set(drawn) and not any("…" in word for word in drawn)


def test_each_reason_has_its_outline(tmp_path):
    whys = [*drawing.REASONS, "of another model"]
    tokens = [None if why == "taken back" else "a" for why in whys]
    save_decoding(tmp_path / "x.gif", PICTURE, [one_iteration(tokens, why=whys)])
    *_, (shot, _) = frames(tmp_path / "x.gif")
    seen = [shot.getpixel((left + 1, top + 17)) for left, top in cell_boxes(5, "gif")]
    assert seen == [*drawing.REASONS.values(), drawing.REASONS["rule"]]
    red = drawing.REASONS["taken back"]
    assert red[0] > 200 and not any(red[1:])
    save_decoding(tmp_path / "y.gif", PICTURE, [one_iteration(["a"], why=["rule"])])
    *_, (plain, _) = frames(tmp_path / "y.gif")
    legend = 14, 220, 210, plain.height
    assert red in colours(shot.crop(legend)) and red not in colours(plain.crop(legend))


def test_the_end_is_one_cell():
    run = one_iteration(["a", EOS, None, EOS, EOS, EOS], why=[None] * 3 + ["rule"] + [None] * 2)
    start, end = drawing.frames(run)
    assert len(start) == 6, "before it is committed it gives nothing away"
    assert [(cell.text, cell.times, cell.why) for cell in end] == [
        ("a", 1, None), (EOS, 1, None), (None, 1, None), (EOS, 3, "rule")]
    given = dict(title="", window=[None, EOS, EOS], iterations=[])
    assert len(drawing.frames(given)[0]) == 3, "a given end is a prior"


@pytest.mark.parametrize("lengths", [(4, 20, 7), (7, 7, 1), (1, 2, 30)])
def test_a_window_may_grow_and_shrink(tmp_path, lengths):
    """Each frame shows as many cells as its window has, where they stand in all frames."""
    first, *later = lengths
    run = dict(title="", window=[None] * first, iterations=[
        dict(tokens=[None] * n, why=[None] * n, confidence=[0] * n, likeliest=[[]] * n)
        for n in later])
    save_decoding(tmp_path / "x.gif", PICTURE, [run])
    save_decoding(tmp_path / "x.png", PICTURE, [run])
    for (shot, _), length in zip(frames(tmp_path / "x.gif"), lengths, strict=True):
        seen = [shot.getpixel((left + 4, top + 4)) for left, top in cell_boxes(max(lengths), "gif")]
        assert seen == [drawing.WAITING] * length + [(255, 255, 255)] * (max(lengths) - length)


def test_the_legend_names_given_tokens_only_where_there_are_some():
    sheets = []
    for given in ((), (2,)):
        run = made(WORDS, 3, given)
        sheets.append(drawing.decoding_sheet(PICTURE, [""], [drawing.frames(run)], 0))
    assert [drawing.GIVEN in colours(sheet) for sheet in sheets] == [False, True]


@pytest.mark.parametrize("suffix", ["gif", "png", "GIF", "PNG"])
def test_awkward_text_and_long_windows(tmp_path, suffix):
    rng = random.Random(0)
    noise = ["".join(chr(rng.randrange(0x110000)) for _ in range(6)) for _ in range(60)]
    words = AWKWARD + noise + [EOS] * 72
    assert len(words) == 144
    path = tmp_path / f"x.{suffix}"
    save_decoding(str(path), PICTURE.convert("L"), [made(words, 3, title="\ud800\n" * 200)])
    with Image.open(path) as image:
        assert image.width == 830


def test_a_strip_has_its_rows_for_each_iteration(tmp_path):
    heights = []
    for n in (3, 4, 5):
        save_decoding(tmp_path / "x.png", PICTURE, [made(WORDS, n)])
        with Image.open(tmp_path / "x.png") as image:
            assert image.format == "PNG" and image.width == 830
            heights.append(image.height)
    step = drawing.height_of(len(WORDS), 776)
    assert heights[2] - heights[1] == heights[1] - heights[0] >= step


@pytest.mark.parametrize("name", ["x.jpg", "x", "gif", "x.gif.txt"])
def test_other_suffixes_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name}: must end in .gif or .png"):
        save_decoding(tmp_path / name, PICTURE, [made(WORDS, 2)])
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
        save_decoding(tmp_path / "x.gif", PICTURE, [made(WORDS, 2)])
    assert [path.name for path in tmp_path.iterdir()] == ["x.gif"]
    assert (tmp_path / "x.gif").read_text() == "old"


# ---------------------------------------------------------------- captioned pictures, charts

@pytest.mark.parametrize("n, width", [(1, 208), (5, 3 * 208), (8, 4 * 208), (11, 4 * 208)])
def test_samples_sheet(n, width):
    texts, right = [" ".join(WORDS)] * n, [True] * (n - 1) + [False]
    sheet = samples_sheet([PICTURE] * n, texts, right)
    assert sheet.width == width
    red = (255, 0, 0) in colours(sheet)
    assert red == (n <= 8), "the last caption is wrong, but only eight are shown"
    samples_sheet([PICTURE.convert("L")] * len(AWKWARD), AWKWARD, [True] * len(AWKWARD), shown=20)


def test_the_rows_of_a_samples_sheet_are_as_high_as_their_captions():
    def margin(texts):
        """Rows below the lowest ink of a caption, and the sheet's height."""
        sheet = samples_sheet([PICTURE] * len(texts), texts, [True] * len(texts))
        return sheet.height - ImageChops.invert(sheet.convert("L")).getbbox()[3], sheet.height

    long = " ".join(WORDS)
    one = margin(["flag"])
    assert one[1] < 240, "one picture needs one row"
    for texts in (["flag"], ["a", "b", "flag"], [long], [long, "flag"], ["flag", long],
                  [f"{long} {long} {long}"] * 3):
        assert 4 <= margin(texts)[0] <= 20, "neither cut off nor empty"
    assert margin(["flag"] * 8)[1] == 2 * one[1]
    assert margin([long] + ["flag"] * 7)[1] == one[1] + margin([long])[1]


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
