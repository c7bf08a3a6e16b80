"""How far sampling can move a count and a quantile. Each observation was sampled by itself, with one probability p.

The count of all is estimated as n / p (Horvitz and Thompson, 1952), and the variance of that as n (1 - p) / p². Of the R smallest of
all N, the sample holds K, which is hypergeometric; the value of rank R lies between the sampled values of rank K and K + 1. So likely
ranks bound the quantile, whatever the distribution (David and Nagaraja, Order Statistics, 2003, 7.1), and p = 1 leaves no error.
"""

from __future__ import annotations

import math

import numpy as np

# So many standard deviations leave less than 1e-12 of a hypergeometric distribution outside, however skewed it is.
_SPREAD = 12


def count_error(count: float, probability: float) -> float:
    """Standard error of an estimated count: `probability` in (0, 1]."""
    return math.sqrt(count * (1 - probability) / probability)


def rank_bounds(q: float, count: float, probability: float, confidence: float) -> tuple[int, int]:
    """The ranks, from 1, of sampled values between which the quantile `q` of all `count` lies with at least this confidence.

    0 stands for below all that were sampled, and one more than were sampled for above.
    """
    population, sampled = round(count), round(count * probability)
    rank = min(max(math.ceil(q * population * (1 - 1e-12)), 1), population)
    if sampled >= population:
        return rank, rank
    # K, the sampled among the `rank` smallest.
    first, last = max(0, sampled + rank - population), min(sampled, rank)
    mean = sampled * rank / population
    deviation = math.sqrt(mean * (1 - rank / population) * (1 - sampled / population))
    reach = _SPREAD * deviation + _SPREAD**2
    k = np.arange(max(first, math.floor(mean - reach)), min(last, math.ceil(mean + reach)) + 1)
    # How much likelier k + 1 is than k.
    ratios = (rank - k[:-1]) * (sampled - k[:-1]) / ((k[:-1] + 1.0) * (population - rank - sampled + k[:-1] + 1))
    logarithms = np.concatenate([[0.0], np.cumsum(np.log(ratios))])
    likelihood = np.exp(logarithms - logarithms.max())
    below = np.cumsum(likelihood) / likelihood.sum()
    tail = (1 - confidence) / 2
    low = int(k[np.searchsorted(below, tail, side="right")])
    high = int(k[np.searchsorted(below, 1 - tail, side="left")])
    return low, high + 1
