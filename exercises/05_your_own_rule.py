"""Exercise 5: your own decoding rule, on the board.

A decoding rule says which masked positions to commit in this iteration. A fixed count (`maskgit:2`:
the two most confident) needs 24 passes for 48 tokens; `confident:0.9` needs about 5 and is as
right. First beat the fixed counts. Then reach 98% in fewer passes than `confident:0.9`, at most 4
on average. (A further look at the model, `step.look`, is a pass.)

Watch where the iterations go, before you start:   python sample.py --seed 9
A bold threshold alone does not work: `--rule confident:0.5` mixes two wordings. Why? And what could
be committed in the first iteration, besides what is sure, without mixing anything?

Paper: confident decoding.
Compare afterwards: `confident` in mini_dimple.py, and the files in rules/.
Check:       python -m pytest exercises/05_your_own_rule.py -s      (-s shows your figures)
Board:       python -m lab rules --rule exercises/05_your_own_rule.py
"""
import torch


def rule(step):
    """-> positions to commit, bool (B, W).

    `step` is a `mini_dimple.Step`: step.confidence (B, W), step.masked (B, W) bool, step.proposal
    (B, W) ids, step.probs (B, W, vocab), step.tokens (B, W) ids, step.given (B, W) bool,
    step.iteration. Of committed positions there is a confidence, too. An example without a mask is
    finished, and stays in the batch. The loop ignores what is not masked, and commits the most
    confident position of an example where the rule names none."""
    raise NotImplementedError


from exercises.checks.your_own_rule import *  # the checker; keep this line last
