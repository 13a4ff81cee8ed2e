"""Checks exercise 7: windows token by token, and captions that keep what they are given and say
what the picture shows."""
import re

import torch

from exercises.checks import count_right, exercise, scenes, shipped, teach, teach_tensor

__all__ = ["test_exercise"]
CASES = ["here we find a _ _ _ in", "i can see a _ _ _ at the _ _<end>", "_ _ _ a large _ circle",
         "the picture shows<end>", "", "_", "there is just a _ red", "i can see at"]


def slow_window(template, length, tokenizer):
    """Piece by piece: what stands between two free tokens, without the space before a `_`."""
    body, end, _ = template.partition("<end>")
    ids = []
    for i, piece in enumerate(body.split("_")):
        words = piece.rstrip(" ") if i < body.count("_") else piece
        ids += [tokenizer.mask_id] * (i > 0) + tokenizer.encode(words)
    return ids + [tokenizer.eos_id if end else tokenizer.mask_id] * (length - len(ids))


def check_windows(solution):
    tokenizer = shipped()[1]
    mask, eos = tokenizer.mask_id, tokenizer.eos_id
    for template in CASES:
        window = solution.make_window(template, 24, tokenizer)
        teach_tensor(window, (1, 24), torch.long, "the window")
        mine, right = window[0].tolist(), slow_window(template, 24, tokenizer)
        said = f"Template {template!r}: "
        text = tokenizer.decode(mine)
        teach("_" not in text, said + "a `_` became a token of its own, the letter; it stands for "
              "tokenizer.mask_id.")
        teach("<" not in text,
              said + "`<end>` became letters; it says that tokenizer.eos_id fills the rest.")
        space = tokenizer.encode(" ")[0]
        teach(space not in mine,
              said + "a space became a token of its own. A word's token includes the space before "
              "it, so the one before a `_` belongs to the free token: leave it out.")
        if not template.endswith("<end>"):
            teach(eos not in mine, said + "what follows is not given, so it must be free: [MASK], "
                  "not EOS. With EOS you say that the response ends here.")
        else:
            teach(mine[-1] == eos, said + "after `<end>` every token is EOS, to the end of the "
                  "window: all of them are given.")
        teach(mine == right, said + f"the window is {tokens(mine, tokenizer)}, it should be "
              f"{tokens(right, tokenizer)}. Encode a stretch of text whole: a word's token "
              "includes the space before it.")
    whole = "i can see a small red circle at the top left<end>"
    teach(mask not in solution.make_window(whole, 24, tokenizer),
          "A template without `_` but with `<end>` leaves nothing free.")


def tokens(ids, tokenizer):
    names = {tokenizer.mask_id: "_", tokenizer.eos_id: "<eos>"}
    return " ".join(names.get(i) or repr(tokenizer.decode([i])) for i in ids)


def answers(solution, some, rows, template):
    model, tokenizer = shipped()
    texts = solution.infill(model, tokenizer, some.images[rows], some.prompts[rows], template)
    teach(isinstance(texts, list) and len(texts) == len(rows)
          and all(isinstance(text, str) for text in texts),
          f"infill must return a list of {len(rows)} strings.")
    return texts


def check_the_wording_is_kept(solution):
    some, rows = scenes(64), list(range(32))
    thing, place = r"a \w+ \w+ \w+", r"the \w+ \w+"
    for template, pattern in (("here we find a _ _ _ in", f"here we find {thing} in {place}"),
                              ("there is just _ _ _ _ at", f"there is just {thing} at {place}"),
                              ("i can see at", f"i can see at {place} {thing}")):
        texts = answers(solution, some, rows, template)
        for text in texts:
            teach(re.match(pattern, text), f"Template {template!r} came out as {text!r}. What is "
                  "given belongs into the window, where it cannot change (a prompt is only "
                  "advice), and the window is as long as model.config.window.")
        right = count_right(texts)
        teach(right >= 30, f"Template {template!r}: only {right} of 32 captions are right, for "
              f"example {texts[0]!r}. Is each picture decoded with its own image and prompt?")


def check_a_length_can_be_given(solution):
    some = scenes(64)
    rows = [i for i, scene in enumerate(some.split.scenes) if len(scene) == 1]
    templates = "i can see a _ _ _ at the _ _<end>", "i can see at the _ _ a _ _ _<end>"
    for wording, template in enumerate(templates):
        for row, text in zip(rows, answers(solution, some, rows, template)):
            phrase = some.board.phrase(some.split.scenes[row][0], "at", wording)
            teach(text == f"i can see {phrase}", f"A picture of one object, with the length given, "
                  f"came out as {text!r}; it shows {phrase!r}.")


def show(solution):
    """One picture, captioned by the student's templates."""
    some, row = scenes(64), [0]
    right = some.split.texts[row[0]]
    lines = []
    for template in ("", "i can see at", "_ _ _ a _ purple",
                     "there is just a _ _ _ at the _ _<end>"):
        lines += [f"  {template!r}", f"      {answers(solution, some, row, template)[0]}"]
    return "\n".join([f"A held-out picture; one right caption is:\n      {right}",
                      "Your infilling of it, by what is given:", *lines,
                      "Nothing in it is purple, and it has more than one object. What does the "
                      "model do with what is false?"])


test_exercise = exercise(check_windows, check_the_wording_is_kept, check_a_length_can_be_given,
                         show=show)
