"""Drawing: sizes, frames and durations of an animation, colours that mean what they say, files that
are whole or absent."""
import importlib.util
import sys

import pytest
from conftest import missing
from PIL import Image, ImageChops

from lab import drawing
from lab.drawing import Series, chart, samples_sheet, save_decoding
from lab.trace import EOS

PICTURE = Image.new("RGB", (48, 48), (40, 160, 60))
WORDS = ("i can see a small green triangle at the top right , and "
         "a large red square at the bottom left").split()
AWKWARD = ["", "\n", "a\x00b", "\ud800", "\u202eabc", "e\u0301", "猫が", "\U0001f600", "W" * 5000,
           "<mask>", "\u200d", " "]


def made(words, iterations):
    """A made-up run (docs/viewer.md) that commits the words left to right, in `iterations` equal
    parts; what waits is torn between its own word and "other"."""
    W, after = len(words), []
    for i in range(1, iterations + 1):
        was, now = (W * j // iterations for j in (i - 1, i))
        after.append(dict(
            tokens=words[:now] + [None] * (W - now),
            why=["rule" if was <= k < now else None for k in range(W)],
            confidence=[k / W for k in range(W)],
            likeliest=[[[w, 0.6], ["other", 0.4]] for w in words]))
    return dict(title="made up", window=[None] * W, iterations=after)


def one_iteration(tokens, **lists):
    """A run of a single iteration, its lists filled up with nothing."""
    empty = dict(why=[None] * len(tokens), confidence=[1.0] * len(tokens),
                 likeliest=[[] for _ in tokens])
    return dict(title="", window=[None] * len(tokens),
                iterations=[empty | dict(tokens=tokens) | lists])


def drawn(tmp_path, *runs):
    """The runs as a GIF -> each of its frames in RGB, and their durations in ms."""
    save_decoding(tmp_path / "x.gif", PICTURE, runs)
    shots, durations_ms = [], []
    with Image.open(tmp_path / "x.gif") as image:
        assert image.format == "GIF" and image.width == 830
        for i in range(image.n_frames):
            image.seek(i)
            shots.append(image.convert("RGB"))
            durations_ms.append(image.info.get("duration"))
    return shots, durations_ms


def cell_boxes(n):
    """Left and top of the first n cells of the first panel."""
    return [(220 + x, 42 + y) for x, y in map(drawing.place_of, range(n))]


def colours(image):
    return {colour for _, colour in image.getcolors(image.width * image.height)}


@pytest.mark.parametrize("iterations, wanted_ms", [
    ((24,), [1000] + [500] * 23 + [4000]), ((3, 23), [1000] + [1000] * 3 + [200] * 19 + [4000]),
    ((0, 2), [1000, 1000, 4000]), ((0,), [4000])])
def test_the_time_goes_where_the_first_to_finish_still_decodes(iterations, wanted_ms):
    assert drawing.pace(iterations) == wanted_ms


def test_a_gif_has_a_frame_for_each_iteration(tmp_path):
    assert drawn(tmp_path, made(WORDS, 3), made(WORDS, 23))[1] == drawing.pace((3, 23))
    assert [path.name for path in tmp_path.iterdir()] == ["x.gif"]


def test_a_finished_panel_stays_still(tmp_path):
    shots, _ = drawn(tmp_path, made(WORDS, 2), made(WORDS, 6))
    first = 215, 42, 830, 42 + drawing.height_of(len(WORDS)) - drawing.HEAD_PX  # the first panel
    panels = [shot.crop(first) for shot in shots]
    assert drawing.REASONS["rule"] in colours(panels[2]), "just committed"
    assert drawing.REASONS["rule"] not in colours(panels[3]), "no longer"
    assert not any(ImageChops.difference(panels[3], later).getbbox() for later in panels[4:])


def test_states_and_confidence_have_their_colours(tmp_path):
    """Near the corner of each cell: a palette of 255 colours keeps them exactly."""
    after = one_iteration([None, "a", *"c" * 11], why=[None, None] + ["rule"] * 11,
                          confidence=[0, 0, *(i / 10 for i in range(11))])
    still = dict(after["iterations"][0], why=[None] * 13, confidence=[0] * 13)
    run = dict(title="", window=[None, "a"] + [None] * 11, iterations=[*after["iterations"], still])
    *_, shot = drawn(tmp_path, run)[0]
    seen = [shot.getpixel((left + 4, top + 4)) for left, top in cell_boxes(13)]
    assert seen[:2] == [drawing.WAITING, drawing.GIVEN]
    assert (seen[2], seen[-1]) == (drawing.PALE, drawing.STRONG)
    darkness = [-sum(colour) for colour in seen[2:]]
    assert darkness == sorted(set(darkness)), "the surer, the stronger"
    left, top = cell_boxes(13)[-1]
    assert shot.getpixel((left + 1, top + 17)) != drawing.REASONS["rule"], "new only once"


def test_each_reason_has_its_outline(tmp_path):
    whys = [*drawing.REASONS, "of another model"]
    tokens = [None if why == "taken back" else "a" for why in whys]
    *_, shot = drawn(tmp_path, one_iteration(tokens, why=whys))[0]
    seen = [shot.getpixel((left + 1, top + 17)) for left, top in cell_boxes(5)]
    assert seen == [*drawing.REASONS.values(), drawing.REASONS["rule"]]
    legend = shot.crop((14, 220, 210, shot.height))
    assert colours(legend) >= set(drawing.REASONS.values())


def test_the_end_is_one_cell():
    run = one_iteration(["a", EOS, None, EOS, EOS, EOS], why=[None] * 3 + ["rule"] + [None] * 2)
    start, end = drawing.frames(run)
    assert len(start) == 6, "before it is committed it gives nothing away"
    assert [(cell.text, cell.times, cell.why) for cell in end] == [
        ("a", 1, None), (EOS, 1, None), (None, 1, None), (EOS, 3, "rule")]
    assert [len(drawing.frames(one_iteration([EOS] * n))[1]) for n in (1, 2, 3)] == [1, 1, 1]
    given = dict(title="", window=[None, EOS, EOS], iterations=[])
    assert len(drawing.frames(given)[0]) == 3, "a given end is a prior"


def test_a_window_may_grow_and_shrink(tmp_path):
    """Each frame shows as many cells as its window has, where they stand in all frames."""
    lengths = 4, 70, 7
    run, *later = [one_iteration([None] * (n - 1) + ["a"]) for n in lengths]
    run["iterations"] = [part["iterations"][0] for part in later]
    first, *shots = drawn(tmp_path, run)[0]
    assert first.size == shots[0].size
    for shot, length in zip(shots, lengths[1:], strict=True):
        seen = [shot.getpixel((left + 4, top + 4)) for left, top in cell_boxes(70)]
        assert seen == [drawing.WAITING] * (length - 1) + [drawing.STRONG] + [(255, 255, 255)] * (
            70 - length)


def test_any_text_can_be_drawn(tmp_path):
    drawn(tmp_path, dict(made(AWKWARD, 2), title="\ud800\n" * 200))
    samples_sheet([PICTURE.convert("L")] * len(AWKWARD), AWKWARD, [True] * len(AWKWARD), shown=20)


def test_a_failure_leaves_the_old_file_alone(tmp_path, monkeypatch):
    def fail(self, file, *args, **options):
        file.write(b"half")
        raise OSError("disk full")
    (tmp_path / "x.gif").write_text("old")
    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_decoding(tmp_path / "x.gif", PICTURE, [made(WORDS, 2)])
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


# ---------------------------------------------------------------- captioned pictures, charts

@pytest.mark.parametrize("n, width, text", [
    (1, 208, "flag"), (5, 3 * 208, " ".join(WORDS)), (11, 4 * 208, " ".join(WORDS * 3))])
def test_samples_sheet(n, width, text):
    sheet = samples_sheet([PICTURE] * n, [text] * n, [True] * (n - 1) + [False])
    assert sheet.width == width
    assert ((255, 0, 0) in colours(sheet)) == (n <= 8), "the last is wrong, but eight are shown"
    below = sheet.height - ImageChops.invert(sheet.convert("L")).getbbox()[3]
    assert 4 <= below <= 20, "captions are neither cut off nor followed by nothing"


SERIES = [
    Series("on the front", [(5, 88, 84, 91, "remask"), (7, 89, 85, 92, "")], True, True),
    Series("others", [(12, 80, 76, 84, "a:1 and 2 more"), (12, 80, None, None, "b")], False, False)]


def test_a_chart_shows_each_series(tmp_path):
    if not importlib.util.find_spec("matplotlib"):
        missing('matplotlib (pip install -e ".[plots]")')
    chart(tmp_path / "x.png", SERIES, "x", "y", "title")
    with Image.open(tmp_path / "x.png") as image:
        assert image.format == "PNG" and image.size == (830, 480)
        seen = {"#" + bytes(colour[:3]).hex() for colour in colours(image)}
    assert seen >= set(drawing.COLOURS[:2])
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_without_matplotlib_there_is_a_line_and_no_chart(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    chart(tmp_path / "x.png", SERIES, "x", "y", "title")
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "x.png" in said and "[plots]" in said
    assert not list(tmp_path.iterdir())


def test_letters_that_the_usual_font_lacks_are_drawn_in_another(monkeypatch, capsys):
    """And where no font has them, that is said once."""
    text = "größer – naïve, 5 €"
    assert {*"öß–ï€"} <= drawing.unknown(text, drawing.WORD)
    font = drawing.lettered(text, drawing.WORD)
    if not drawing.others(drawing.WORD.size):
        pytest.skip("no font of OTHERS is installed")
    assert not drawing.unknown(text, font) and font.size == drawing.WORD.size
    assert drawing.lettered("plain English", drawing.WORD) is drawing.WORD
    drawing.samples_sheet([PICTURE] * 2, [text, "plain"], [True, True])
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(drawing, "others", lambda size_px: [])
    drawing.lettered.cache_clear()
    drawing.samples_sheet([PICTURE] * 2, [text, text], [True, True])
    drawing.lettered.cache_clear()
    assert capsys.readouterr().err.count("warning: no font was found that has ßïö–€") == 1
