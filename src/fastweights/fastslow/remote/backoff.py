"""How long to wait for a server, and how often to ask it again."""

import dataclasses
import email.utils
import math
import time

from fastweights.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Patience:
    """Time limits in seconds, and retries.

    Attributes:
        timeout: that connecting may take, and that the server may be silent; it is silent for as
            long as it thinks.
        limit: for one try altogether.
        retries: after a passing failure: too many requests, a server in trouble, no connection.
        garbage_retries: after an answer that is not whole or cannot be read, which was paid for.
        first_wait: before the first retry at most; it doubles with each.
        longest_wait: however many retries there were, and whatever the server asks for.
    """

    timeout: float = 300.0
    limit: float = 600.0
    retries: int = 5
    garbage_retries: int = 1
    first_wait: float = 1.0
    longest_wait: float = 60.0

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            lowest = 0 if "retries" in name or "wait" in name else 1e-3
            if not lowest <= value < math.inf:
                raise ConfigError(f"{name} is {value}", where=f"patience.{name}")

    def wait(self, retries: int, jitter: float, at_least: float | None = None) -> float:
        """Seconds to wait before a retry.

        Args:
            retries: how many there were before.
            jitter: uniform from 0 to 1; the wait is any part of the full one, so that many clients
                that failed together do not come back together.
            at_least: what the server asks for.
        """
        full = min(self.longest_wait, self.first_wait * 2.0 ** min(retries, 60))
        return min(self.longest_wait, max(full * jitter, at_least or 0.0))


def retry_after(header: str | None, now: float | None = None) -> float | None:
    """Seconds that a `Retry-After` header asks for, None if it says nothing that is understood.

    Args:
        header: a number of seconds or a date.
        now: seconds since 1970; by default, what it is.
    """
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            then = email.utils.parsedate_to_datetime(header).timestamp()
        except (ValueError, OverflowError):
            return None
        seconds = then - (time.time() if now is None else now)
    return max(0.0, seconds) if math.isfinite(seconds) else None
