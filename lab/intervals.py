"""95% intervals."""
import math

import torch

# Student's t, 97.5% point, 1 to 9 degrees of freedom
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def wilson(hits, n, z=1.96):
    """Wilson's 95% interval of a share of `hits` in `n` -> (low, high)."""
    middle, half = hits + z * z / 2, z * math.sqrt(hits * (n - hits) / n + z * z / 4)
    return (middle - half) / (n + z * z), (middle + half) / (n + z * z)


def mean_interval(values):
    """values[seed][scene], numbers -> their mean and its 95% interval: the wider of Student's t
    over seeds (if there are several) and the normal approximation over scenes. Differences of
    paired values are values, too."""
    values = torch.tensor(values, dtype=torch.float64)
    seeds, scenes = values.shape
    half = 1.96 * values.mean(0).std().item() / math.sqrt(scenes) if scenes > 1 else 0.0
    if seeds > 1:
        half = max(half, T95[seeds - 2] * values.mean(1).std().item() / math.sqrt(seeds))
    return values.mean().item(), values.mean().item() - half, values.mean().item() + half


def share_interval(hits):
    """hits[seed][scene], bools -> share and 95% interval, as `mean_interval`, but Wilson's over
    scenes: it knows 0 and 1."""
    share, low, high = mean_interval(hits)
    wilson_low, wilson_high = wilson(share * len(hits[0]), len(hits[0]))
    return share, max(0.0, min(low, wilson_low)), min(1.0, max(high, wilson_high))


def gap_interval(a, b):
    """Share a minus share b, of the same seeds and scenes, and its 95% interval: as
    `mean_interval`, but over scenes Agresti and Min's, which adds half a scene to each of the four
    outcomes of a pair: no difference seen is no proof of none."""
    differences = [[x - y for x, y in zip(*pair)] for pair in zip(a, b)]
    gap, low, high = mean_interval(differences)
    scenes = torch.tensor(differences, dtype=torch.float64).mean(0)
    squares = ((scenes - gap) ** 2).sum().item()
    half = max((high - low) / 2, 1.96 * math.sqrt(squares + 1) / (len(scenes) + 2))
    return gap, max(-1.0, gap - half), min(1.0, gap + half)


def in_percent(interval):
    return "{:.1f}% ({:.1f} to {:.1f})".format(*(100 * value for value in interval))


def in_points(interval):
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * value for value in interval))
