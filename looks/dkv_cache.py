"""Keeps a token's state from one pass after it was committed.

dKV-Cache-Decode (arXiv 2505.15781, sections 3.2 and 3.3; horseee/dKV-Cache, cache_type "decoded",
shift_type "un": with a token shift a state rests once its own token and the next are committed).
every=n: each n-th pass computes everything; 0: never.
What goes stale: prefix and committed tokens, until the next full pass.
"""
from looks import keeping


def look(model, images, prompt, every=4):
    def which(kept):
        fresh = kept.tokens != kept.inputs
        return (kept.scorers(kept.masked) | kept.states(kept.masked | fresh)
                | kept.every(every))
    return keeping(model, images, prompt, which)
