"""Checks exercise 7: windows token by token, and captions that keep what they are given and say
what the picture shows."""
import re

import torch

from exercises.checks import EOS, MASK, MODEL, SOME, TOKENIZER, count_right, teach, teach_tensor

TEMPLATES = ["here we find a _ _ _ in", "i can see a _ _ _ at the _ _<end>",
             "_ _ _ a large _ circle", "the picture shows<end>", "", "_"]


def slow_window(template, length):
    """Piece by piece: what stands between two free tokens, without the space before a `_`."""
    body, end, _ = template.partition("<end>")
    ids = []
    for i, piece in enumerate(body.split("_")):
        words = piece.rstrip(" ") if i < body.count("_") else piece
        ids += [MASK] * (i > 0) + TOKENIZER.encode(words)
    return ids + [EOS if end else MASK] * (length - len(ids))


def in_words(ids):
    names = {MASK: "_", EOS: "<eos>"}
    return " ".join(names.get(i) or repr(TOKENIZER.decode([i])) for i in ids)


def windows(solution):
    for template in TEMPLATES:
        window = solution.make_window(template, 24, TOKENIZER)
        teach_tensor(window, (1, 24), torch.long, "the window")
        mine, right = window[0].tolist(), slow_window(template, 24)
        why = "Encode a stretch of text whole: a word's token includes the space before it."
        if TOKENIZER.encode(" ")[0] in mine:
            why = "The space before a `_` belongs to the free token: leave it out."
        elif set(TOKENIZER.encode("_<")) & set(mine):
            why = "`_` stands for tokenizer.mask_id, `<end>` for tokenizer.eos_id; no text."
        elif mine[-1] != right[-1]:
            why = "After `<end>` all is EOS, and given. Without it what follows is free: [MASK]."
        teach(mine == right, f"Template {template!r}: the window is {in_words(mine)}, it should be "
              f"{in_words(right)}. {why}")


def answers(solution, rows, template):
    texts = solution.infill(MODEL, TOKENIZER, SOME.images[rows], SOME.prompts[rows], template)
    teach(isinstance(texts, list) and list(map(type, texts)) == [str] * len(rows),
          f"infill must return a list of {len(rows)} strings.")
    return texts


def the_wording_is_kept(solution):
    thing, place = r"a \w+ \w+ \w+", r"the \w+ \w+"
    for template, pattern in (("here we find a _ _ _ in", f"here we find {thing} in {place}"),
                              ("there is just _ _ _ _ at", f"there is just {thing} at {place}"),
                              ("i can see at", f"i can see at {place} {thing}")):
        texts = answers(solution, range(32), template)
        for text in texts:
            teach(re.match(pattern, text), f"Template {template!r} came out as {text!r}. What is "
                  "given belongs into the window, where it cannot change.")
        right = count_right(texts)
        teach(right >= 30, f"Template {template!r}: only {right} of 32 captions are right. Is each "
              "picture decoded with its own image and prompt?")


CHECKS = [windows, the_wording_is_kept]


def show(solution):
    """One picture, captioned by the reader's templates."""
    yield f"A held-out picture; one right caption is:\n      {SOME.split.texts[0]}"
    yield "Your infilling of it, by what is given:"
    for template in ("", "i can see at", "_ _ _ a _ purple",
                     "there is just a _ _ _ at the _ _<end>"):
        yield f"  {template!r}\n      {answers(solution, [0], template)[0]}"
    yield ("Nothing in it is purple, and it has more than one object. What does the model do with "
           "what is false?")
