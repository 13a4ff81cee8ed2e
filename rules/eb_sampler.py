"""EB-Sampler: as many positions at once as depend on one another by at most `bound` nats.

Entropy bounded unmasking (arXiv 2505.24857), section 4, equation (2): with the positions sorted by
entropy, commit the largest set of the first ones whose entropies sum, less the largest of them, to
at most the bound. That difference is the most that the tokens can tell of each other, which is lost
where each is chosen on its own. One token alone always fits. The paper also sorts by confidence or
margin; here by entropy only.
"""
import torch


def rule(step, bound=0.1):
    entropy = torch.special.entr(step.probs).sum(-1).masked_fill(~step.masked, torch.inf)
    entropy, order = entropy.sort(dim=1, stable=True)  # (B, W) each; what is committed comes last
    fits = entropy.cumsum(1) - entropy <= bound        # sorted: the newest is the largest
    return torch.zeros_like(step.masked).scatter(1, order, fits)
