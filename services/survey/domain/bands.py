"""The three bands of a score on the recommend question."""

from __future__ import annotations

from typing import Literal

Band = Literal["detractor", "passive", "promoter"]


def band(score: int) -> Band:
    """The band of a score 0–10: detractor 0–6, passive 7–8, promoter 9–10.

    Raises `ValueError` for a score outside 0–10.
    """
    if not 0 <= score <= 10:
        raise ValueError(f"a score is 0 to 10, not {score}")
    if score <= 6:
        return "detractor"
    return "passive" if score <= 8 else "promoter"


def net_promoter_score(promoters: int, passives: int, detractors: int) -> tuple[float, float] | None:
    """NPS and the half-width of its 95 % interval by the adjusted Wald method, both in points.

    Adds 3/4 to promoters and detractors and 3/2 to passives before taking the variance (Rocks 2016,
    "Interval estimation for the Net Promoter Score"). None without answers.
    """
    n = promoters + passives + detractors
    if n == 0:
        return None
    score = 100 * (promoters - detractors) / n
    m = n + 3
    p, d = (promoters + 0.75) / m, (detractors + 0.75) / m
    return score, 100 * 1.96 * float((p + d - (p - d) ** 2) / m) ** 0.5
