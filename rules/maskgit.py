"""The k most confident positions.

The choice of MaskGIT (arXiv 2202.04200), of LLaDA's low-confidence remasking, and of `maskgit_plus`
in Dimple's public code. These take the count from a schedule; see dimple_public.py for the last.
"""
from rules import top


def rule(step, k=4):
    return top(step.masked, step.confidence, k)
