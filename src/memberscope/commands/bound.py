"""`memberscope bound`: a lower bound on epsilon from scores alone, or from a run."""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from memberscope.errors import ConfigError

if TYPE_CHECKING:
    from memberscope.score_files import ScoreTable
    from memberscope.statistics.bound import Bound, Comparison

EXIT_BROKEN_CLAIM, EXIT_NO_BOUND = 1, 2
_HOW = "whether each record was put in by its own fair coin is what a bound rests on, and the file cannot tell"


def bound(
    file: Path,
    *,
    method: Literal["one-run", "one-run-gdp", "several-runs", "several-runs-gdp"] = "one-run",
    design: Literal["coin-flips", "independent-runs", "fixed-half", "observational"] | None = None,
    attacks: tuple[str, ...] = (),
    records: Literal["population", "canaries"] | None = None,
    delta: float | None = None,
    confidence: float = 0.95,
    guesses: str | None = None,
    threshold: tuple[str, ...] = (),
    claimed: float | None = None,
    copies: int | None = None,
    seed: int = 0,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Prove how large epsilon must at least be, from scores and the truth about membership.

    For example:
        memberscope bound outputs/RUN
        memberscope bound outputs/RUN --records canaries --attacks rmia-online --guesses 100
        memberscope bound scores.csv --design coin-flips --guesses bonferroni
        memberscope bound scores.csv --design coin-flips --method one-run-gdp --delta 1e-6
        memberscope bound runs.csv --design independent-runs --method several-runs --threshold 1.5
        memberscope bound outputs/RUN --claimed 8 --delta 1e-5

    Exit codes: 0 a bound; 1 a bound above what was claimed: a broken DP claim; 2 no bound; 3 failed.

    Parameters
    ----------
    file
        .csv, .csv.gz or .npz with member (0 or 1) and one or more scores (higher = more likely a member), an entry for
        each record; or the folder of a run. A run whose members were not drawn by lot is refused.
    method
        one-run: one model, no assumption beyond DP (Steinke et al. 2023). one-run-gdp: the same, if the mechanism is
        Gaussian (Mahloujifar et al. 2025). several-runs, several-runs-gdp: each score is of a training of its own.
    design
        How membership was decided, which a file cannot tell. coin-flips: each record by its own fair coin, one model.
        independent-runs: a training for each score. fixed-half, observational: no bound follows.
    attacks
        Scores to take, or all. The best of several may be quoted, for each has its share of the error probability;
        fewer attacks, larger bounds. Default: of a run the attack that was fixed beforehand, where one was, else all.
    records
        Of a run: its population or its canaries; default: the canaries where there are any.
    delta
        Of the (epsilon, delta)-DP under test; default: the accountant's of the run, else 1e-5.
    confidence
        With this probability, at least, every bound lies below the truth.
    guesses
        Of one run. A number, or IN,OUT: fixed in advance. bonferroni or split: searched, and paid for. Default: a tenth
        of the records, but no fewer than 100 or half of them.
    threshold
        Of several runs: one or more numbers that were not chosen on these runs, or split.
    claimed
        The epsilon that an accountant claims at --delta; default: that of the run, where there is one.
    copies
        How often a member was put in (the claim is then weakened to a group of so many); default: 1, or as the run did.
    seed
        Breaks ties and draws halves.
    json
        Print one JSON document on standard output.
    """
    from memberscope.score_files import read_scores

    table = read_scores(file, attacks, group=records)
    chosen = _design(table, design)
    found = bounds_of(
        table,
        method=method,
        design=chosen,
        delta=delta,
        confidence=confidence,
        guesses=_guesses(guesses),
        threshold=_threshold(threshold),
        seed=seed,
    )
    comparison = compare(table, found, claimed, copies)
    output = _json(table, found, comparison) if json else _text(table, found, comparison, stated=design is not None)
    sys.stdout.write(output + "\n")
    if comparison is not None and comparison.verdict == "contradiction":
        return EXIT_BROKEN_CLAIM
    return 0 if next(iter(found.values())).valid else EXIT_NO_BOUND


def bounds_of(
    table: ScoreTable, *, method: str, design: str, delta: float | None, seed: int, **settings: Any
) -> dict[str, Bound]:
    """The bound of every score of a table, all of them at once at the stated confidence; the largest first."""
    import numpy as np

    from memberscope.statistics.privacy_bounds import bound_each

    if delta is None:
        delta = 1e-5 if table.claim is None else table.claim[1]
    return bound_each(
        table.scores,
        table.member,
        method=method,
        design=design,
        delta=delta,
        rng=np.random.default_rng(seed),
        **settings,
    )


def compare(table: ScoreTable, found: dict[str, Bound], claimed: float | None, copies: int | None) -> Comparison | None:
    """The largest bound beside the accountant's claim, the user's or that of the run; None where nobody claims."""
    from memberscope.statistics.privacy_bounds import compare_with_accountant

    best = next(iter(found.values()))
    times = table.copies if copies is None else copies
    if claimed is not None:
        return compare_with_accountant(best, claimed, best.delta, copies=times)
    if table.claim is None:
        return None
    return compare_with_accountant(best, *table.claim, copies=times)


def _design(table: ScoreTable, stated: str | None) -> str:
    if table.design is None:
        return stated or "observational"
    if stated is not None and stated != table.design:
        raise ConfigError(
            f"--design {stated} contradicts the run: {table.design_text} ({table.design})", "leave --design out"
        )
    if table.design != "coin-flips":
        raise ConfigError(
            f"{table.source}: no bound follows from this run, for its members were not drawn by lot "
            f"({table.design_text})",
            "audit with --protocol random-half, or with --canaries N, and bound that run",
        )
    return table.design


def _guesses(text: str | None) -> int | tuple[int, int] | str | None:
    if text is None or text in ("split", "bonferroni"):
        return text
    parts = text.split(",")
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        return numbers[0]
    if len(numbers) == 2:
        return numbers[0], numbers[1]
    raise ConfigError(f"--guesses {text!r} is no number", "a number, IN,OUT (80,20), split or bonferroni")


def _threshold(words: tuple[str, ...]) -> list[float] | str | None:
    if not words:
        return None
    if words == ("split",):
        return "split"
    try:
        return [float(word) for word in words]
    except ValueError:
        raise ConfigError(f"--threshold {' '.join(words)!r} is no number", "one or more numbers, or split") from None


def _text(table: ScoreTable, found: dict[str, Bound], comparison: Comparison | None, *, stated: bool) -> str:
    from memberscope.summary import aligned

    best = next(iter(found.values()))
    how = table.design_text or ("as you stated" if stated else "not stated")
    unit = "runs" if best.design == "independent-runs" else "records"
    lines = [f"{table.source}: {len(table.member):,} {unit}, {int(table.member.sum()):,} of them in ({how})"]
    if best.valid:
        header = ("attack", "ε at least", "right", "of guesses", "all right would show")
        rows = [
            (name, _down(one.epsilon), f"{one.correct:,}", f"{one.guesses:,}", _down(one.ceiling))
            for name, one in found.items()
        ]
        lines += aligned([header, *rows])
        together = ", all of them at once" if len(found) > 1 else ""
        lines.append(
            f"At δ = {best.delta:g}, {100 * best.confidence:g} % confidence{together}. {_first(best.selection)}."
        )
        lines.append(f"Method {best.method}. It holds if: " + "; ".join(best.assumptions) + ".")
    else:
        lines.append(str(best))
        if not stated and table.design is None:
            lines.append(f"Say --design: {_HOW}. See `memberscope bound --help`.")
    if table.left_out:
        lines.append("Left out: " + "; ".join(f"{name} ({why})" for name, why in table.left_out.items()) + ".")
    if comparison is not None:
        lines.append(comparison.text)
    return "\n".join(lines)


def _json(table: ScoreTable, found: dict[str, Bound], comparison: Comparison | None) -> str:
    from memberscope.document import without_nan

    content = {
        "source": table.source,
        "bounds": {name: one.to_dict() for name, one in found.items()},
        "left_out": dict(table.left_out),
        "comparison": comparison
        and {
            "verdict": comparison.verdict,
            "text": comparison.text,
            "upper": comparison.upper,
            "upper_delta": comparison.upper_delta,
        },
    }
    return json_format.dumps(without_nan(content), allow_nan=False, ensure_ascii=False)


def _down(value: float) -> str:
    return f"{int(100 * value) / 100:.2f}"


def _first(text: str) -> str:
    return text[:1].upper() + text[1:]
