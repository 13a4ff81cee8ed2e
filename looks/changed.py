"""Keeps all but masks, the states that score one, and committed tokens that came as a surprise.

Ours. A surprise: what was kept had given the token a probability of at most `sure`; any other token
was expected by all that reads it, and its kept state is that of a [MASK]. every=n: each n-th pass
computes everything. A [MASK]'s own state is computed anew even where it scores nothing that is
asked: sampling needs it.
What goes stale: prefix and committed tokens, which do not see what is committed after them. A rule
that takes tokens back by what the model says of them reads stale logits: remask:0.5 falls from 99.0
to 79.7% right.
"""
from looks import keeping


def look(model, images, prompt, sure=0.9, every=0):
    def which(kept):
        expected = kept.logits.softmax(-1).take_along_dim(kept.tokens[..., None], -1)[..., 0]
        surprise = (kept.tokens != kept.inputs) & (expected <= sure)
        return (kept.scorers(kept.masked) | kept.states(kept.masked | surprise)
                | kept.every(every))
    return keeping(model, images, prompt, which)
