"""Exercise 14, an answer. EOS in the place of the cut does not help: 0 of 48 right at 144 (46 at
96), the shipped weights, `confident:0.9`. It is not only EOS committed too early; over so many
positions all scores are off, which is why the pass that has seen them commits nothing."""
import torch


def pad(responses, longest, eos_id, generator):
    shortest = max(map(len, responses)) + 1
    W = int(torch.randint(shortest, longest + 1, (), generator=generator))
    return torch.tensor([ids + [eos_id] * (W - len(ids)) for ids in responses])


def eos_share(lengths, W):
    return 1 - lengths.double().mean().item() / W


def rule(step, longest=48):
    if step.tokens.shape[1] > longest:
        return step.tokens[:, :longest]
    return step.confidence > 0.9
