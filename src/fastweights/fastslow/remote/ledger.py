"""What reflection has cost, and limits that no call may pass."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from fastweights.errors import CheckpointError, ConfigError


class BudgetError(ConfigError):
    """The next call could pass a limit of the ledger; it has not been made."""


@dataclasses.dataclass(frozen=True)
class Usage:
    """What some calls used; usages can be added and subtracted.

    Attributes:
        calls: requests sent, each retry included.
        failed: those of them that gave no usable answer.
        prompt_tokens: tokens read.
        completion_tokens: tokens written.
        unmetered: calls whose tokens are not known, as the server did not count them or the answer
            never came whole; an upper bound stands for them in the two fields above.
    """

    calls: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unmetered: int = 0

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if type(value) is not int:
                raise TypeError(f"{name} is {value!r}, and not an int")

    def __add__(self, other: "Usage") -> "Usage":
        mine, others = dataclasses.astuple(self), dataclasses.astuple(other)
        return Usage(*(a + b for a, b in zip(mine, others, strict=True)))

    def __sub__(self, other: "Usage") -> "Usage":
        mine, others = dataclasses.astuple(self), dataclasses.astuple(other)
        return Usage(*(a - b for a, b in zip(mine, others, strict=True)))

    @property
    def tokens(self) -> int:
        """Tokens read and written."""
        return self.prompt_tokens + self.completion_tokens


@dataclasses.dataclass(frozen=True)
class Prices:
    """Prices of a million tokens, in any one currency.

    Attributes:
        input: of the prompt.
        output: of the completion.
    """

    input: float = 0.0
    output: float = 0.0

    def __post_init__(self):
        if not all(0 <= price < float("inf") for price in (self.input, self.output)):
            raise ConfigError(f"prices must be finite and not negative, and these are {self}")

    def cost(self, usage: Usage) -> float:
        """What a usage costs."""
        prompt, completion = usage.prompt_tokens, usage.completion_tokens
        return (prompt * self.input + completion * self.output) / 1e6


@dataclasses.dataclass(frozen=True)
class Limits:
    """The most that may be used; None for no limit.

    Attributes:
        calls: requests, each retry included.
        tokens: tokens read and written.
        cost: in the currency of the prices.
    """

    calls: int | None = None
    tokens: int | None = None
    cost: float | None = None

    def __post_init__(self):
        for name, limit in dataclasses.asdict(self).items():
            if limit is not None and not limit >= 0:
                raise ConfigError(f"the limit of {name} is {limit}", next="None for no limit")


class Ledger:
    """The sum of all usage. It is part of the training state; prices and limits are the config's.

    Args:
        prices: of tokens.
        limits: never passed.
        total: what has been used before.
    """

    def __init__(
        self, prices: Prices = Prices(), limits: Limits = Limits(), total: Usage = Usage()
    ):
        if limits.cost is not None and prices == Prices():
            raise ConfigError(
                f"a limit on cost, {limits.cost}, with prices of 0, would never be reached",
                next="give the prices of a million tokens, or limit calls or tokens",
            )
        self.prices, self.limits, self.total = prices, limits, total

    def __repr__(self) -> str:
        return f"Ledger({self.prices}, {self.limits}, {self.total})"

    @property
    def cost(self) -> float:
        """Of everything so far; computed from whole tokens, so that no rounding adds up."""
        return self.prices.cost(self.total)

    def check(self, most: Usage) -> None:
        """Called before a request is sent.

        Args:
            most: the most that the request may use.

        Raises:
            BudgetError: it could pass a limit.
        """
        after = self.total + most
        for name, now, then, limit in (
            ("calls", self.total.calls, after.calls, self.limits.calls),
            ("tokens", self.total.tokens, after.tokens, self.limits.tokens),
            ("cost", self.cost, self.prices.cost(after), self.limits.cost),
        ):
            if limit is not None and then > limit:
                raise BudgetError(
                    f"the budget of reflection is spent: {name} {now:.10g} of {limit:.10g}",
                    cause=f"the next call could bring it to {then:.10g}; it was not made",
                    next=f"go on with a higher limit of {name}, or with shorter answers",
                )

    def add(self, usage: Usage) -> None:
        """Count what has been used; never refused, since it is spent."""
        self.total += usage

    def to_json(self) -> dict[str, int]:
        """The state, as JSON data."""
        return dataclasses.asdict(self.total)

    @classmethod
    def from_json(
        cls, data: Mapping[str, Any], prices: Prices = Prices(), limits: Limits = Limits()
    ) -> "Ledger":
        """A ledger that goes on from a state.

        Args:
            data: what `to_json` gave.
            prices: of all tokens, those used before included.
            limits: on the whole, what was used before included.

        Raises:
            CheckpointError: it is no such state.
        """
        try:
            return cls(prices, limits, Usage(**data))
        except TypeError as error:
            raise CheckpointError(f"this is no state of a ledger: {error}") from None
