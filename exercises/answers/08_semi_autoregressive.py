"""Exercise 8, an answer."""
import torch
import torch.nn.functional as F


def rule(step, k=16):
    masked = step.masked
    block = torch.arange(masked.shape[1], device=masked.device) // k   # (W,)
    of_block = F.one_hot(block).to(step.confidence)                    # (W, blocks)
    left = masked.to(of_block) @ of_block                              # (B, blocks)
    mean = (step.confidence * masked) @ of_block / left                # nan where none is left
    surest = mean.nan_to_num(-1).argmax(1)                             # (B,)
    current = step.memory.get("block", surest)
    done = left.gather(1, current[:, None])[:, 0] == 0
    step.memory["block"] = current = torch.where(done, surest, current)
    confidence = step.confidence.masked_fill(~masked | (block != current[:, None]), -1)
    return (confidence > 0.9).scatter(1, confidence.argmax(1, keepdim=True), True)
