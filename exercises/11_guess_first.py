"""Exercise 11: guess first, then measure.

Eight questions about the trained model of this repository. Before you run anything, and before you
read docs/guide.md and docs/results.md, write down for each the range, in percent, in which you
expect the answer: (low, high), at most 20 points wide. Then let the checker measure all eight.
Where you were wrong it says what was measured; think about why, and correct the range.

All are shares of 60 held-out pictures whose caption is fully right, with confident:0.9 and
prefilling unless a question says otherwise.

Paper: its claims. Compare afterwards: docs/guide.md and docs/results.md.
Check: python -m exercises 11
"""
GUESS = {
    # as usual
    "confident:0.9": None,
    # every position whose proposal has a probability above one half
    "confident:0.5": None,
    # the four most confident positions in each iteration: 12 iterations
    "maskgit:4": None,
    # four positions at random in each iteration
    "random_order:4": None,
    # prefilling with a prefix that never saw the window
    "naive prefix": None,
    # the colour of the last object is given, and wrong: how many captions keep it and are right in
    # all else?
    "a wrong colour": None,
    # the weights after the AR phase, which caption 98% right from left to right, decoded by
    # confident:0.9 in full attention
    "AR weights, diffusion decoding": None,
    # the weights after the diffusion phase, decoded greedily from left to right, causal mask
    "diffusion weights, AR decoding": None,
}
