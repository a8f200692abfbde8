"""A counted share with its exact interval, such as the precision by the verdicts so far."""

from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Share:
    """`hits` of `total` as a share with its exact interval (Clopper-Pearson); None without any."""

    hits: int
    total: int
    share: float | None
    low: float | None
    high: float | None

    @property
    def rest(self) -> "Share":
        """The share of all others."""
        if self.share is None or self.low is None or self.high is None:
            return self
        return Share(self.total - self.hits, self.total, 1 - self.share, 1 - self.high, 1 - self.low)


def estimate_share(hits: int, total: int) -> Share:
    """A share of counted records with its exact interval."""
    if total == 0:
        return Share(0, 0, None, None, None)
    return Share(hits, total, hits / total, *bound_share(hits, total))


def bound_share(hits: float, total: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The exact interval of `hits` of `total`, which need not be whole numbers."""
    from scipy.special import betaincinv  # type: ignore[import-untyped] # 0.3 s to import

    tail = (1 - confidence) / 2
    low = float(betaincinv(hits, total - hits + 1, tail)) if hits else 0.0
    high = float(betaincinv(hits + 1, total - hits, 1 - tail)) if hits < total else 1.0
    return low, high


def describe_share(found: Share) -> str:
    """A share with its interval and counts, such as 25.2 % (21.0 to 29.8 %), 101 of 401."""
    if found.share is None or found.low is None or found.high is None:
        return "not known"
    low, high = 100 * found.low, 100 * found.high
    return f"{100 * found.share:.1f} % ({low:.1f} to {high:.1f} %), {found.hits:,} of {found.total:,}"
