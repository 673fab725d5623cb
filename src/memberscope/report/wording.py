"""Figures in words: natural frequencies, three significant digits, counts beside percentages.

Everything here is plain text without markup. A figure that is not there (None, NaN) reads "not available", never 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

NBSP = "\N{NO-BREAK SPACE}"
MISSING = "not available"
DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"

Estimate = Mapping[str, Any]
"""A figure with its interval: value, low, high, method, and k, n, note where they apply (`results.json`)."""


def known(value: Any) -> TypeGuard[float]:
    """Whether `value` is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def significant(value: Any, digits: int = 3) -> str:
    """Write a number with `digits` significant digits; thousands are grouped, nothing below 1 is rounded up to 1.

    >>> significant(0.73214), significant(12345.6), significant(0.99964), significant(0)
    ('0.732', '12,300', '0.9996', '0')
    """
    if not known(value):
        return MISSING
    if value == 0:
        return "0"
    size = abs(value)
    exponent = math.floor(math.log10(size))
    if exponent < -4:
        mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
        return f"{mantissa}{NBSP}×{NBSP}10{_superscript(int(power))}"
    decimals = digits - 1 - exponent
    while size < 1 and round(size, decimals) == 1 and decimals < digits + 4:
        decimals += 1
    return f"{round(value, decimals):,.{max(decimals, 0)}f}"


def guarantee(privacy: Mapping[str, Any]) -> str:
    """A guarantee of differential privacy (`defenses.accountant.Guarantee.to_dict`) in a sentence."""
    how = (
        f"{privacy['mechanism']}, noise multiplier {significant(privacy['noise_multiplier'])}, "
        f"clip {significant(privacy['clip'])}, {privacy['steps']:,} steps at sampling rate "
        f"{significant(privacy['sample_rate'])}"
    )
    if privacy["epsilon"] is None:
        return f"no guarantee: gradients are clipped and no noise is added ({how})"
    step = 10.0 ** (math.floor(math.log10(privacy["epsilon"])) - 2) if privacy["epsilon"] > 0 else 1.0
    above = math.ceil(privacy["epsilon"] / step - 1e-9) * step  # three digits of an upper bound are rounded up
    bound = f"epsilon at most {significant(above)} at delta {privacy['delta']:g}"
    return f"{bound}, to {privacy['adjacency']} ({how}; accountant {privacy['accountant']})"


def client_guarantee(told: Mapping[str, Any]) -> str:
    """What central noise promises a client (`federated.outcome.client_privacy`), in words."""
    if told["epsilon"] is None:
        return f"no epsilon: {told['reason']}"
    return (
        f"epsilon {significant(told['epsilon'])} at delta {told['delta']:g} for {told['unit']}, against "
        f"{told['holds_against']}"
    )


def canary_estimate(told: Mapping[str, Any], promised: Mapping[str, Any] | None) -> str:
    """What canary clients say (`federated.canary_clients.CanaryClients.outcome`), beside what the accountant says."""
    if told["epsilon"] is None:
        return f"no estimate: {told['reason']}"
    value, low, high = (significant(told["epsilon"][end]) for end in ("value", "low", "high"))
    text = (
        f"epsilon about {value} [{low}, {high}: {level(told.get('confidence', 0.95))}] at delta {told['delta']:g} for "
        "one client, an estimate from "
        f"{told['took_part']:,} canary clients in {told['d']:,} weights and no bound, against {told['holds_against']}"
    )
    if promised is not None and promised["epsilon"] is not None:
        text += f"; the accountant's bound is {significant(promised['epsilon'])}"
    return text


def percent(value: Any, digits: int = 3) -> str:
    """Write a proportion as a percentage; what is not quite 100 % is not rounded up to it.

    >>> percent(0.0112).replace(NBSP, " "), percent(1).replace(NBSP, " "), percent(0.9999).replace(NBSP, " ")
    ('1.12 %', '100 %', '99.99 %')
    """
    if not known(value):
        return MISSING
    shown, size = 100 * value, abs(100 * value)
    decimals = max(digits - 1 - math.floor(math.log10(size)), 0) if size >= 1e-4 else 0
    while size < 100 and round(size, decimals) == 100 and decimals < digits + 4:
        decimals += 1
    text = f"{shown:.{decimals}f}" if size >= 1e-4 else significant(shown, digits)
    return f"{text}{NBSP}%"


def level(confidence: Any) -> str:
    """A confidence level: as a percentage without needless zeros.

    >>> level(0.95).replace(NBSP, " "), level(0.9929).replace(NBSP, " ")
    ('95 %', '99.3 %')
    """
    return f"{100 * confidence:.3g}{NBSP}%" if known(confidence) else MISSING


def rate(fpr: Any) -> str:
    """A round false-positive rate, such as 0.1 %, without needless zeros."""
    return f"{100 * fpr:.6g}{NBSP}%" if known(fpr) else MISSING


def count(number: Any) -> str:
    """A whole number with grouped thousands."""
    return f"{round(number):,}" if known(number) else MISSING


def of(k: Any, n: Any) -> str:
    """Write counts as ``k/n``, or nothing where they are not known."""
    return f"{count(k)}/{count(n)}" if known(k) and known(n) else ""


def counted_percent(k: Any, n: Any) -> str:
    """A percentage with its counts beside it: ``1.12 % (280/25,000)``."""
    if not known(k) or not known(n):
        return MISSING
    return f"{percent(k / n)} ({of(k, n)})" if n else f"{MISSING} ({of(k, n)})"


def interval(estimate: Estimate | None, *, as_percent: bool = False, joint: str = " to ") -> str:
    """The ends of an interval, ``0.727 to 0.738``; "no interval" where there is none."""
    if estimate is None or not (known(estimate.get("low")) and known(estimate.get("high"))):
        return "no interval"
    write = percent if as_percent else significant
    low, high = write(estimate["low"]), write(estimate["high"])
    if as_percent:
        low = low.removesuffix(f"{NBSP}%")
    return f"{low}{joint}{high}"


def estimate_text(estimate: Estimate | None, *, as_percent: bool = False) -> str:
    """A figure with interval and counts on one line: ``1.12 % (0.92 to 1.34 %; 280/25,000)``."""
    if estimate is None or not known(estimate.get("value")):
        return MISSING
    value = percent(estimate["value"]) if as_percent else significant(estimate["value"])
    counts = of(estimate.get("k"), estimate.get("n"))
    return f"{value} ({interval(estimate, as_percent=as_percent)}{'; ' + counts if counts else ''})"


def denominator(fpr: float) -> int:
    """Of how many records a natural frequency speaks: 10,000, or as many as hold ten false positives.

    >>> denominator(0.1), denominator(0.001), denominator(1e-5)
    (10000, 10000, 1000000)
    """
    return max(10_000, round(10 / fpr)) if fpr > 0 else 10_000


def frequency(value: Any, out_of: int) -> str:
    """How many of `out_of`, as a whole number.

    >>> frequency(0.0112, 10_000), frequency(0.00003, 10_000), frequency(0.0, 10_000)
    ('112', 'fewer than 1', '0')
    """
    if not known(value):
        return MISSING
    shown = round(value * out_of)
    return "fewer than 1" if shown == 0 and value > 0 else f"{shown:,}"


def frequency_interval(estimate: Estimate | None, out_of: int) -> str:
    """The interval of a rate as whole numbers of `out_of`: ``92 to 134``."""
    if estimate is None or not (known(estimate.get("low")) and known(estimate.get("high"))):
        return "no interval"
    return f"{round(estimate['low'] * out_of):,} to {round(estimate['high'] * out_of):,}"


def duration(seconds: Any) -> str:
    """Seconds as a reader would say them.

    >>> [duration(s).replace(NBSP, " ") for s in (0.034, 8.26, 8, 75, 7322)]
    ['34 ms', '8.26 s', '8 s', '1 min 15 s', '2 h 2 min']
    """
    if not known(seconds):
        return MISSING
    if seconds < 1:
        return f"{1000 * seconds:.0f}{NBSP}ms"
    if seconds < 59.95:
        return f"{seconds if isinstance(seconds, int) else significant(seconds)}{NBSP}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    whole = f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
    return whole.replace(" ", NBSP)


def size(number: Any) -> str:
    """Bytes, in the unit that leaves a readable number."""
    if not known(number):
        return MISSING
    for unit, scale in (("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{significant(number / scale)}{NBSP}{unit}"
    return f"{count(number)}{NBSP}bytes"


def p_value(p: Any) -> str:
    """A p-value: ``p = 0.0312``, ``p < 0.001``."""
    if not known(p):
        return f"p {MISSING}"
    return "p < 0.001" if p < 0.001 else "p = 1" if p > 0.9995 else f"p = {significant(p)}"


def shorten(text: str, length: int) -> str:
    """Cut a long name in the middle, where names differ least, and mark the cut."""
    if len(text) <= length:
        return text
    tail = (length - 1) // 3
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"


def plural(number: Any, one: str, many: str | None = None) -> str:
    """``1 class``, ``10 classes``."""
    return f"{count(number)} {one if number == 1 else many or one + 's'}"


def listing(items: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(items) if len(items) < 3 else f"{', '.join(items[:-1])} and {items[-1]}"


def _superscript(number: int) -> str:
    return str(number).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


@dataclass(frozen=True)
class LearningWords:
    """How learning curves are spoken of."""

    step: str
    curves: tuple[str, str]
    final: str
    reading: str
    brief: str


CENTRAL = LearningWords(
    "epoch",
    ("training (members)", "validation"),
    "test, final model",
    "How to read it: the distance between the two lines at the end is the generalisation gap; the wider it is, the "
    "more the model treats its training records differently, which is what attacks look for.",
    "The distance between the two lines at the end is the generalisation gap.",
)
FEDERATED = LearningWords(
    "round",
    ("clients' models, own records", "global model, nobody's records"),
    "global model, non-members judged",
    "How to read it: the upper line is what clients send, each on records that it trained on, before it is averaged "
    "into the global model of the other line. A server that sees each client's model sees the wider of the two gaps.",
    "Clients' models are those that they send, each on records that it trained on.",
)


def learning_words(results: Mapping[str, Any]) -> LearningWords:
    """Those for the curves of a document: of a federation, or of a training in one place."""
    return FEDERATED if results.get("federation") else CENTRAL
