"""Upper bounds of error rates that were counted.

Queries of one class rise and fall together, so classes are counted: a class errs when any of its queries
does, and the share of classes that err is bounded from above with 95 % confidence (Clopper and Pearson, 1934). With no
error among them, 59 independent classes show at most 5 %, and 299 at most 1 %. Classes are independent for false
rejects. For false accepts they err in twos, since each is what the other finds: they count by pairs, so that it takes
118 and 598. (Counted singly, the bound for 5 % of 60 tight classes held in 80 % of simulated calibrations; by pairs, in
97 %.)
"""

from __future__ import annotations

import math

CONFIDENCE = 0.95


def upper_bound(errors: int, count: int) -> float:
    """The share that is exceeded with no more than 5 % probability, given `errors` among `count` independent draws."""
    if errors >= count:
        return 1.0
    # Fewer errors than these are over 20 standard deviations away, wherever the bound lies.
    fewest = max(0, errors - 12 * math.isqrt(count) - 50)
    terms = {
        i: math.lgamma(count + 1) - math.lgamma(i + 1) - math.lgamma(count - i + 1)
        for i in range(fewest, errors + 1)
    }
    low, high = errors / count, 1.0
    for _ in range(50):
        share = (low + high) / 2
        logs = (t + i * math.log(share) + (count - i) * math.log1p(-share) for i, t in terms.items())
        low, high = (share, high) if sum(map(math.exp, logs)) > 1 - CONFIDENCE else (low, share)
    return high


def classes_for(share: float) -> int:
    """The number of classes that shows false accepts of at most `share` (0 to 1) if none of them errs."""
    return 2 * math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-share)) if share < 1 else 2
