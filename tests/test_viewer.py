"""The viewer: its data, and the page itself in a real browser (needs Chromium, its driver and
selenium; skipped without them)."""
import copy
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import EOS, MASK, missing, random_model, refused_by
from PIL import Image

from lab.__main__ import main as lab
from lab.checkpoint import SHIPPED, SHIPPED_AR
from lab.trace import Trace, counting, label, show, told
from lab.viewer import PAGE, save_viewer
from mini_dimple import decode, full
from sample import main as sample
from tokenizer import Tokenizer

DOCS = Path(__file__).parent.parent / "docs" / "viewer.md"
EXAMPLE = json.loads(re.search(r"```json\n(.*?)```", DOCS.read_text("utf-8"), re.S)[1])
INPUTS = torch.zeros(1, 3, 16, 16, dtype=torch.uint8), torch.tensor([[1, 2, 3]])
refused = refused_by(lab)


# ---------------------------------------------------------------- the data

class Letters:
    """A tokenizer of 18 letters, for `random_model`."""
    eos_id, mask_id = EOS, MASK
    bytes = [bytes([97 + i]) for i in range(EOS)]

    def decode(self, ids):
        return "".join(chr(97 + i) for i in ids)


def any_rule(step):
    """Commits one, takes one back, and lets the window grow once."""
    tokens = step.commit(step.confidence == step.confidence.amax(1, keepdim=True))
    if step.iteration == 2:
        tokens = torch.cat([tokens, torch.full((1, 2), MASK)], 1)
    if step.iteration == 4:
        tokens = tokens.masked_fill((tokens != MASK).cumsum(1) == 2, MASK)
    return tokens


@pytest.mark.parametrize("rule, limit, reasons", [
    (any_rule, 99, {"rule", "at least one", "taken back"}),
    (lambda step: step.masked, 9, {"rule"}), (lambda step: step.masked & False, 1, {"limit"})])
def test_a_run_tells_what_the_decoding_did(rule, limit, reasons):
    model, window = random_model(0), torch.full((1, 8), MASK)
    window[0, 3] = 5
    windows, probs = [window[0].tolist()], []

    def noted(tokens, state):
        logits, state = full(model, *INPUTS)(tokens, state)
        probs.append(logits[0].index_fill(-1, torch.tensor(MASK), -torch.inf).softmax(-1))
        return logits, state

    def watch(step, tokens):
        windows.append(tokens[0].tolist())
        trace(step, tokens)
    with counting(model) as positions:
        trace = Trace(window, positions)
        out = decode(noted, window, model.config, rule, watch=watch, limit=limit)
    run = told("any", window[0], trace, Letters(), caption="abc")
    text = lambda token: {MASK: None, EOS: "<eos>"}.get(token, chr(97 + token))
    assert run["window"] == [None] * 3 + ["f"] + [None] * 4 and run["caption"] == "abc"
    assert sum(it["passes"] for it in run["iterations"]) == out.passes.item() == len(probs)
    for iteration, before, now, p in zip(run["iterations"], windows, windows[1:], probs):
        W = len(before)
        assert iteration["tokens"] == [*map(text, now)]
        for old, new, why in zip(before + [MASK] * (len(now) - W), now, iteration["why"],
                                 strict=True):
            assert (why is None) == (new == old)
            assert (why == "taken back") == (old != MASK and new == MASK)
        best, ids = p.topk(10)
        for i in range(W):
            wanted = [(text(token), pytest.approx(share, abs=1e-4))
                      for token, share in zip(ids[i].tolist(), best[i].tolist()) if share > 5e-5]
            assert [tuple(pair) for pair in iteration["likeliest"][i]] == wanted
            if before[i] == MASK and now[i] != MASK:
                assert iteration["confidence"][i] == pytest.approx(best[i, 0].item(), abs=1e-4)
        assert iteration["likeliest"][W:] == [[]] * (len(now) - W)
        assert iteration["tokens_computed"] == 4 + 3 + W, "picture, prompt, window"
    whys = {why for iteration in run["iterations"] for why in iteration["why"] if why}
    assert whys == reasons


@pytest.mark.parametrize("changes, said", [
    ({"format": "2"}, "format"), ({"runs": None}, "the file"),
    ({"why": ["rule"]}, "runs[0].iterations[1].why: expected 4"),
    ({"confidence": None}, "runs[0].iterations[1]")])
def test_data_that_would_be_shown_wrongly_are_refused_with_their_place(tmp_path, capsys, changes,
                                                                       said):
    """And the example of the docs is not."""
    words = ["show", "--data", str(tmp_path / "x.json"), "--picture", str(tmp_path / "x.html")]
    wrong = copy.deepcopy(EXAMPLE)
    (wrong if changes.keys() & wrong.keys() else wrong["runs"][0]["iterations"][1]).update(changes)
    (tmp_path / "x.json").write_text(json.dumps(wrong))
    err = refused(capsys, *words)
    assert "x.json: " in err and said in err and not (tmp_path / "x.html").exists()
    (tmp_path / "x.json").write_text(json.dumps(EXAMPLE))
    lab(words)
    assert "by hand: 2 iterations, 2 passes" in capsys.readouterr().out
    assert (tmp_path / "x.html").exists()


def test_mistakes_of_the_command_line(capsys):
    for words in (("--picture", "x.gif"), ("--checkpoint", str(SHIPPED_AR))):
        assert words[1] in refused(capsys, "show", *words)


def test_a_part_of_a_character_is_shown_as_its_bytes():
    tokenizer = Tokenizer([])
    ids = torch.tensor(tokenizer.encode("aé€"))
    assert show(ids, ids, tokenizer) == r"a \xc3 \xa9 \xe2 \x82 \xac"
    assert label(tokenizer.mask_id, tokenizer) == "_" and label(32, tokenizer) == ""


# ---------------------------------------------------------------- the page

@pytest.fixture(scope="module")
def chromium():
    """A headless browser, its errors noted."""
    paths = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    driver, binary = shutil.which("chromedriver"), next(filter(None, paths), None)
    try:
        from selenium import webdriver
    except ImportError:
        webdriver = None
    if not (webdriver and driver and binary):
        missing("Chromium and its driver (Debian: apt install chromium chromium-driver) and "
                'selenium (pip install -e ".[check]")')
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for word in ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking",
                 "disable-component-update", "disable-sync"):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


class Page:
    """A page of the viewer, asked by CSS selectors."""

    def __init__(self, browser, path, width=1366):
        self.browser = browser
        browser.set_window_size(width, 900)
        browser.get_log("browser")  # what was there before
        browser.get(path.as_uri())

    def all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def texts(self, selector):
        return [element.text for element in self.all(selector)]

    def press(self, *keys):
        from selenium.webdriver.common.keys import Keys
        for key in keys:
            self.all("body")[0].send_keys(getattr(Keys, key))

    def wait(self, until):
        from selenium.webdriver.support.ui import WebDriverWait
        WebDriverWait(self.browser, 60, 0.1).until(lambda _: until())

    def script(self, code, *values):
        return self.browser.execute_script(code, *values)

    def cells(self, run=0):
        """-> (classes, words, position) of each cell of a run; words as shown, numbers left out."""
        return self.script("""
            return [...document.querySelectorAll(".run")[arguments[0]].querySelectorAll(".cell")]
              .map(cell => [[...cell.classList].slice(1), cell.querySelector("b")
                ? cell.querySelector("b").textContent
                : [...cell.querySelectorAll(".word span:first-child")].map(x => x.textContent),
                +cell.dataset.position])""", run)

    def errors(self):
        return [entry["message"] for entry in self.browser.get_log("browser")]


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """`python -m lab show` with two rules -> page, its data."""
    folder = tmp_path_factory.mktemp("shown")
    lab(["show", "--rule", "confident:0.9", "--rule", "remask:0.5", "--on", "trained", "exact",
         "--picture", str(folder / "x.html"), "--json", str(folder / "x.json")])
    return folder / "x.html", json.loads((folder / "x.json").read_text())


def test_it_opens_without_errors_or_network(chromium, shown):
    page = Page(chromium, shown[0])
    page.press("END")
    assert page.errors() == []
    image = page.script("const i = document.getElementById('picture');"
                        "return [i.naturalWidth, i.naturalHeight, i.hidden]")
    assert image == [48, 48, False]
    assert len(page.all(".run")) == 4 and "--seed 9" in page.texts("#source")[0]
    page.script("fetch('http://127.0.0.1:9/').catch(() => 0)")
    # so whatever else asked for the network would be among the errors, too
    page.wait(lambda: any("default-src 'none'" in error for error in page.errors()))


def test_cells_show_what_the_decoding_did(chromium, shown):
    page, run = Page(chromium, shown[0]), shown[1]["runs"][0]
    page.press("HOME")
    assert all(classes == ["masked"] and words == [] for classes, words, _ in page.cells())
    for k, iteration in enumerate(run["iterations"], 1):
        page.press("ARROW_RIGHT")
        cells, tokens = page.cells(), iteration["tokens"]
        committed = [why for why in iteration["why"] if why]
        for classes, words, i in cells:
            if tokens[i] is None:
                likeliest = iteration["likeliest"][i]
                assert classes == ["masked"] and words[0] == likeliest[0][0] and len(words) <= 3
            else:
                new = {"rule": ["rule"], "at least one": ["one"], None: []}[iteration["why"][i]]
                assert words == tokens[i] and classes == ["committed", *new]
        end = cells[-1][2]
        assert set(tokens[end:]) == {"<eos>"}, "the last cell stands for all EOS"
        assert f"× {len(tokens) - end}" in page.all(".run:first-child .cell")[-1].text
        assert f"{len(committed)} committed ({committed[0]})" in page.texts(".changed")[0]
        assert f"iteration {k} of {len(run['iterations'])}, {k} pass" in page.texts(".stats")[0]
    assert f"“{run['caption']}” fully right" == page.texts(".caption")[0]


def test_it_opens_on_the_first_iteration_and_fits_a_projector(chromium, shown, tmp_path):
    """Two runs side by side on 1280 x 720 px: no word is cut, and their plots are to be seen."""
    save_viewer(tmp_path / "x.html", shown[1] | dict(runs=shown[1]["runs"][:2]))
    page = Page(chromium, tmp_path / "x.html", 1280)
    assert page.texts("#now")[0].startswith("iteration 1 of")
    while page.script("return +slider.value < +slider.max"):
        assert page.script("""return [...document.querySelectorAll(".plot")].every(
            plot => plot.getBoundingClientRect().bottom <= 720)""")
        assert page.script("""return [...document.querySelectorAll(
            ".cell b, .cell small, .cell .word span:first-child")].filter(
            word => word.scrollWidth > word.clientWidth && word.clientWidth
            ).map(word => word.textContent)""") == []
        page.press("ARROW_RIGHT")


def test_keys_slider_and_play(chromium, shown):
    page = Page(chromium, shown[0])
    last = max(len(run["iterations"]) for run in shown[1]["runs"])
    at = lambda frame: page.texts("#now") == [f"iteration {frame} of {last}"]
    for key, frame in (("ARROW_LEFT", 0), ("ARROW_RIGHT", 1), ("ARROW_RIGHT", 2), ("ARROW_LEFT", 1),
                       ("END", last), ("ARROW_RIGHT", last), ("HOME", 0)):
        page.press(key)
        assert at(frame)
    page.all("#on")[0].click()
    assert at(1)
    page.script("const s = document.getElementById('slider'); s.value = 3;"
                "s.dispatchEvent(new Event('input'))")
    page.all("#back")[0].click()
    assert at(2)
    page.press("END", "ARROW_LEFT", "SPACE")
    assert page.texts("#play") == ["stop"]
    page.press("SPACE")
    assert page.texts("#play") == ["play"]
    page.press("SPACE")
    page.wait(lambda: page.texts("#play") == ["play"])
    assert at(last) and page.errors() == [], "it plays to the end, and stops"
    lengths = [len(run["iterations"]) for run in shown[1]["runs"]]
    assert len(set(lengths)) > 1
    for r, (length, stats) in enumerate(zip(lengths, page.texts(".stats"), strict=True)):
        assert stats.startswith(f"iteration {length} of {length},"), "in step, to its own end"
        news = [classes for classes, *_ in page.cells(r) if len(classes) > 1]
        assert bool(news) == (length == last), "no longer new once finished"


def test_the_top_ten_at_the_same_place_in_all_runs(chromium, shown):
    from selenium.webdriver import ActionChains
    page, runs, at = Page(chromium, shown[0]), shown[1]["runs"], 7
    for act in ("click", "move_to_element"):  # pointing is enough
        cell = page.all(f".run:nth-child(2) [data-position='{at}']")[0]
        getattr(ActionChains(chromium), act)(cell).perform()
        for detail, run in zip(page.all(".detail"), runs, strict=True):
            wanted = run["iterations"][0]["likeliest"][at]
            assert f"position {at + 1}" in detail.text
            words = detail.find_elements("css selector", ".word :first-child")
            assert [element.text for element in words] == [
                word for i, (word, p) in enumerate(wanted) if i < 2 or p >= 0.005]
        at += 3
    assert len(page.all(".pinned")) == len(page.all("polyline.shown")) == len(runs)
    page.script("document.querySelector('.pinned').click()")
    assert not page.all(".pinned")


BY_HAND = {"format": EXAMPLE["format"], "runs": [
    {"title": "</script><b>t", "window": [None, None, "given <i>"], "iterations": [
        {"tokens": ["</script><script>alert(1)</script>", None, "given <i>", None],
         "why": ["rule", None, None, None], "confidence": [0.5, 0.5, 1, 0.1],
         "likeliest": [[["a", 0.5]], [["\n", 0.5], ["", 0.3]], [], []]},
        {"tokens": [None, "b", "given <i>", "c"], "why": ["taken back", "at least one", None,
                                                         "because"],
         "confidence": [0.5, 0.5, 1, 0.1], "likeliest": [[["z", 1]], [["b", 0.5]], [], []],
         "passes": 3},
        {"tokens": ["é\u2028", "b"], "why": ["limit", None], "confidence": [0.5, 0.5],
         "likeliest": [[], []]}]}]}


def test_every_reason_any_text_and_windows_that_change(chromium, tmp_path):
    save_viewer(tmp_path / "made.html", BY_HAND)
    page = Page(chromium, tmp_path / "made.html")
    page.press("HOME")
    assert [words for _, words, _ in page.cells()] == [[], [], "given <i>"]
    page.press("ARROW_RIGHT")
    first, second, given, grown = page.cells()
    assert first[:2] == [["committed", "rule"], "</script><script>alert(1)</script>"]
    assert second[:2] == [["masked"], ["⏎", "␣"]] and given[0] == ["given"]
    assert grown[:2] == [["masked"], []] and "50%, it. 1" in page.texts(".cell")[0]
    page.press("ARROW_RIGHT")
    assert [classes for classes, *_ in page.cells()] == [
        ["masked", "back"], ["committed", "one"], ["given"], ["committed", "rule"]]
    assert "1 taken back" in page.texts(".changed")[0]
    assert "1 committed (because)" in page.texts(".changed")[0]
    assert "iteration 2 of 3, 4 passes" in page.texts(".stats")[0]
    page.press("ARROW_RIGHT")
    assert [classes for classes, *_ in page.cells()] == [["committed", "limit"], ["committed"]]
    assert page.errors() == [] and "</script>" in page.texts("h2")[0]


def test_a_narrow_screen_and_both_themes(chromium, shown):
    page = Page(chromium, shown[0], width=480)
    page.press("ARROW_RIGHT")
    wide, seen = page.script("const d = document.documentElement;"
                             "return [d.scrollWidth, d.clientWidth]")
    assert wide <= seen, "nothing sticks out"
    paper = lambda: page.script("return getComputedStyle(document.body).backgroundColor")
    before = paper()
    page.all("#theme")[0].click()
    assert paper() != before


def test_the_bare_page_takes_a_file(chromium, tmp_path):
    page = Page(chromium, PAGE)
    assert page.all("#file")[0].is_displayed() and not page.all(".run")
    (tmp_path / "bad.json").write_text('{"format": 1}')
    page.all("#file")[0].send_keys(str(tmp_path / "bad.json"))
    page.wait(lambda: page.texts("#message")[0])
    assert "bad.json" in page.texts("#message")[0] and "format" in page.texts("#message")[0]
    (tmp_path / "good.json").write_text(json.dumps(EXAMPLE))
    page.all("#file")[0].send_keys(str(tmp_path / "good.json"))
    page.wait(lambda: page.all(".run"))
    assert page.texts("h2") == ["by hand"] and page.texts("#message") == [""]
    assert not page.all("#picture")[0].is_displayed() and page.errors() == []


def test_a_picture_of_yours_in_sample_py(chromium, tmp_path, capsys):
    Image.new("L", (60, 40), 200).save(tmp_path / "photo.png")
    sample(["--checkpoint", str(SHIPPED), "--image", str(tmp_path / "photo.png"), "--prior",
            "there is just", "--picture", str(tmp_path / "p.html"), "--rule", "confident:0.5"])
    page = Page(chromium, tmp_path / "p.html")
    assert page.texts("#source") == ["photo.png"] and page.texts("h2") == ["confident:0.5"]
    assert [words for classes, words, _ in page.cells() if classes == ["given"]] == [
        "there", "is", "just"]
    assert page.errors() == [] and f"drawn:      {tmp_path / 'p.html'}" in capsys.readouterr().out
