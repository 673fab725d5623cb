"""How long does it take to score 50,000 records against 16, 64 and 256 reference models? Prints three tables.

1. LiRA and RMIA from the confidences that are kept in memory, in units of one pass over them (NumPy's sum over models),
   and from plain arrays [K, N] as other tools take them, beside textbook NumPy and the published packages that can be
   imported: ``pip install --no-deps privacyguard-platform tensorflow-empirical-privacy`` in an environment with pandas.
   All contestants of a row alternate on the same arrays; medians of 7 rounds (2 for contestants that take seconds).
2. The reduction of logits to confidences, done once for all attacks, beside softmax and logarithm in NumPy.
3. Every attack with reference models from the kept confidences, nothing else computed before: seconds.

About three minutes on one core and 2 GiB of memory; no data needed. Exits with 1 if at 256 models LiRA from kept
confidences takes more than three passes over them or more than textbook NumPy.

Usage: python benchmarks/scoring.py [--models 16,64,256]
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from memberscope.attacks.comparison import Comparison, ReferenceAttack, played_targets
from memberscope.attacks.lira import LiraOnlinePerRecord
from memberscope.attacks.registry import ATTACKS
from memberscope.attacks.rmia import RmiaOnline, pairwise_score
from memberscope.evidence import Evidence
from memberscope.reference_signals import ReferenceSignals

N, Z, C = 50_000, 10_000, 10
ROUNDS, SLOW_ROUNDS, SLOW_SECONDS = 7, 2, 2.0


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def race(contestants: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each; they alternate."""
    times: dict[str, list[float]] = {name: [seconds(action)] for name, action in contestants.items()}
    for name, first in list(times.items()):
        if first[0] < SLOW_SECONDS:
            times[name] = []  # that was the warm-up
    for round_ in range(ROUNDS):
        for name, action in contestants.items():
            if len(times[name]) and times[name][0] >= SLOW_SECONDS and round_ >= SLOW_ROUNDS - 1:
                continue
            times[name].append(seconds(action))
    return {name: statistics.median(values) for name, values in times.items()}


class Case:
    """Arrays of one size: confidences of K models and a target on N records, and of a population."""

    def __init__(self, k: int) -> None:
        rng = np.random.default_rng(k)
        self.k = k
        self.labels = rng.integers(0, C, N)
        self.inside = np.argsort(rng.random((k, N)), axis=0) < k // 2
        self.member = rng.random(N) < 0.5
        difficulty = rng.normal(2, 2, N)
        self.phi = rng.normal(size=(k, N)) + difficulty + self.inside
        self.target = rng.normal(size=N) + difficulty + self.member
        self.z_phi, self.z_target = rng.normal(2, 2.2, (k, Z)), rng.normal(2, 2.2, Z)
        self.kept = ReferenceSignals.from_phi(self.phi[:, None], self.inside)
        self.kept.phi()

    def comparison(self) -> Comparison:
        """The kept confidences with nothing else computed yet."""
        fresh = ReferenceSignals(lambda temperature: self.kept.phi(), self.kept.order, self.kept.n_in)
        return Comparison(lambda temperature: self.target[None], fresh)

    def from_arrays(self) -> Comparison:
        """The same from plain arrays."""
        return Comparison(
            lambda temperature: self.target[None], ReferenceSignals.from_phi(self.phi[:, None], self.inside)
        )


def textbook_lira(case: Case) -> np.ndarray:
    """LiRA as one writes it down, per-record variance, vectorised over records."""
    scores = []
    for world in (case.inside, ~case.inside):
        n = world.sum(axis=0)
        mean = np.where(world, case.phi, 0).sum(axis=0) / n
        variance = (np.where(world, case.phi - mean, 0) ** 2).sum(axis=0) / n
        scores.append(-0.5 * ((case.target - mean) ** 2 / variance + np.log(variance)))
    return scores[0] - scores[1]


def masked_lira(case: Case) -> np.ndarray:
    """The quickest plain form we know: sums and sums of squares through a multiplied mask."""
    mask = case.inside.astype(np.float64)
    n_in, products = mask.sum(axis=0), case.phi * mask
    total, squares = case.phi.sum(axis=0), np.einsum("kn,kn->n", case.phi, case.phi)
    inside, squares_in = products.sum(axis=0), np.einsum("kn,kn->n", products, case.phi)
    scores = []
    for n, s, q in ((n_in, inside, squares_in), (case.k - n_in, total - inside, squares - squares_in)):
        mean = s / n
        variance = q / n - mean**2
        scores.append(-0.5 * ((case.target - mean) ** 2 / variance + np.log(variance)))
    return scores[0] - scores[1]


def textbook_rmia(case: Case) -> np.ndarray:
    """RMIA online as one writes it down, all pairs with the population in blocks."""
    p, z_p = 1 / (1 + np.exp(-case.phi)), 1 / (1 + np.exp(-case.z_phi))
    x = (1 / (1 + np.exp(-case.target))) / p.mean(axis=0)
    z = (1 / (1 + np.exp(-case.z_target))) / z_p.mean(axis=0)
    return np.concatenate([(x[i : i + 500, None] / z > 1).mean(axis=1) for i in range(0, N, 500)])


def sorted_rmia(case: Case) -> np.ndarray:
    """Our score with our population search, from plain arrays."""
    z_p = 1 / (1 + np.exp(-case.z_phi))
    z = -np.log1p(np.exp(-case.z_target)) - np.log(z_p.mean(axis=0))
    return pairwise_score(RmiaOnline().compare(case.from_arrays()), z)


def tensorflow_privacy(case: Case) -> np.ndarray:
    from tensorflow_privacy.privacy.privacy_tests.membership_inference_attack.advanced_mia import (  # type: ignore[import-not-found]
        compute_score_lira,
    )

    stat_in = [case.phi[case.inside[:, i], i][:, None] for i in range(N)]
    stat_out = [case.phi[~case.inside[:, i], i][:, None] for i in range(N)]
    return -np.asarray(compute_score_lira(case.target[:, None], stat_in, stat_out, median_or_mean="mean"))


def privacy_guard_lira(case: Case) -> np.ndarray:
    """Means and deviations as its prepare_lira_data computes them, then its attack."""
    import pandas as pd
    from privacy_guard.analysis.mia.aggregate_analysis_input import AggregationType  # type: ignore[import-not-found]
    from privacy_guard.attacks.lira_attack import LiraAttack  # type: ignore[import-not-found]

    columns: dict[str, Any] = {"user_id": np.arange(N), "score_orig": case.target}
    for name, world in (("in", case.inside), ("out", ~case.inside)):
        masked = np.where(world, case.phi, np.nan)
        columns[f"score_mean_{name}"] = np.nanmean(masked, axis=0)
        columns[f"score_std_{name}"] = np.nanstd(masked, axis=0) + 1e-8
    frame = pd.DataFrame(columns)
    attack = LiraAttack(
        frame.iloc[: N // 2].copy(), frame.iloc[N // 2 :].copy(), AggregationType.NONE, online_attack=True
    )
    result = attack.run_attack()
    return np.concatenate([result.df_train_user["score"], result.df_test_user["score"]])


def privacy_guard_rmia(case: Case) -> np.ndarray:
    import pandas as pd
    from privacy_guard.analysis.mia.aggregate_analysis_input import AggregationType
    from privacy_guard.attacks.rmia_attack import RmiaAttack  # type: ignore[import-not-found]

    def frame(target: np.ndarray, phi: np.ndarray, inside: np.ndarray) -> Any:
        p = {f"score_ref_{k}": 1 / (1 + np.exp(-row)) for k, row in enumerate(phi)}
        members = {f"member_ref_{k}": row for k, row in enumerate(inside)}
        user = {"user_id": np.arange(len(target)), "score_orig": 1 / (1 + np.exp(-target))}
        return pd.DataFrame(user | p | members)

    half = slice(0, N // 2), slice(N // 2, N)
    first, second = (frame(case.target[h], case.phi[:, h], case.inside[:, h]) for h in half)
    population = frame(case.z_target, case.z_phi, np.zeros(case.z_phi.shape, bool))
    result = RmiaAttack(first, second, population, AggregationType.NONE).run_attack()
    return np.concatenate([result.df_train_user["score"], result.df_test_user["score"]])


def check(case: Case) -> None:
    """All contestants answer the same question."""
    ours = LiraOnlinePerRecord().compare(case.comparison())
    for other in (textbook_lira(case), masked_lira(case)):
        np.testing.assert_allclose(ours, other, rtol=1e-6, atol=1e-6)
    literal, found = textbook_rmia(case), sorted_rmia(case)
    assert np.mean(np.abs(literal - found) < 1.5 / Z) > 0.999


def score_table(k: int) -> tuple[float, float]:
    """Print LiRA and RMIA; the ratios of our LiRA to one pass and to textbook NumPy."""
    case = Case(k)
    check(case)
    stored = case.kept.phi().residuals
    contestants: dict[str, Callable[[], object]] = {
        "one pass over the kept confidences (sum)": lambda: stored.sum(axis=-1),
        "LiRA, memberscope, kept confidences": lambda: LiraOnlinePerRecord().compare(case.comparison()),
        "LiRA, memberscope, plain arrays": lambda: LiraOnlinePerRecord().compare(case.from_arrays()),
        "LiRA, textbook NumPy": lambda: textbook_lira(case),
        "LiRA, NumPy with a multiplied mask": lambda: masked_lira(case),
        "RMIA, memberscope, kept confidences": lambda: RmiaOnline().compare(case.comparison()),
        "RMIA, memberscope, plain arrays, population": lambda: sorted_rmia(case),
        "RMIA, textbook NumPy, all pairs": lambda: textbook_rmia(case),
    }
    if importlib.util.find_spec("tensorflow_privacy"):
        contestants["LiRA, tensorflow-empirical-privacy"] = lambda: tensorflow_privacy(case)
    if importlib.util.find_spec("privacy_guard"):
        contestants["LiRA, privacyguard-platform"] = lambda: privacy_guard_lira(case)
        contestants["RMIA, privacyguard-platform"] = lambda: privacy_guard_rmia(case)
    times = race(contestants)
    base, ours = (times[name] for name in list(times)[:2])
    print(f"\n{N:,} records x {k} models")
    print(f"{'':46}{'seconds':>10}{'passes':>9}")
    for name, value in times.items():
        print(f"{name:46}{value:10.4f}{value / base:9.1f}")
    return ours / base, ours / times["LiRA, textbook NumPy"]


def softmax_phi(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Phi by softmax in float64, one model at a time."""
    phi = np.empty(logits.shape[:2])
    for row, z in zip(phi, logits, strict=True):
        e = np.exp(z - z.max(axis=-1, keepdims=True).astype(np.float64))
        p = e / e.sum(axis=-1, keepdims=True)
        own = p[np.arange(len(labels)), labels]
        p[np.arange(len(labels)), labels] = 0
        row[:] = np.log(own + 1e-45) - np.log(p.sum(axis=-1) + 1e-45)
    return phi


def attack_table(k: int) -> None:
    """Print the reduction of logits and the seconds of every attack."""
    rng = np.random.default_rng(k)
    labels = rng.integers(0, C, N)
    inside = np.argsort(rng.random((k, N)), axis=0) < k // 2
    logits = rng.normal(0, 2, (k, 1, N, C)).astype(np.float32)
    rows = np.arange(N)
    logits[:, 0, rows, labels] += (3 + inside).astype(np.float32)
    target = logits[0] - (inside[0] & (rng.random(N) < 0.5))[:, None, None].transpose(1, 0, 2)
    evidence = Evidence(target, labels, reference_logits=logits, reference_membership=inside)
    times = race(
        {
            "logits to kept confidences, memberscope": lambda: ReferenceSignals.from_logits(
                logits, labels, inside
            ).phi(),
            "logits to confidences, softmax in NumPy": lambda: softmax_phi(logits[:, 0], labels),
        }
    )
    kept = {temperature: evidence.references.phi(temperature) for temperature in (1.0, 2.0)}
    phi = {temperature: Comparison.of(evidence).phi(temperature) for temperature in kept}

    def fresh() -> Comparison:
        references = ReferenceSignals(kept.__getitem__, evidence.references.order, evidence.references.n_in)
        return Comparison(phi.__getitem__, references)

    print(f"\n{N:,} records x {k} models, {C} classes: seconds, once confidences are kept")
    for name, value in times.items():
        print(f"{name:46}{value:10.4f}")
    for name, attack in ATTACKS.items():
        if issubclass(attack, ReferenceAttack) and attack.needs <= evidence.knowledge:
            one = attack(rng=np.random.default_rng(0))
            fit = seconds(partial(one.fit, lambda one=one: played_targets(fresh().references, one.rng)))
            score = statistics.median(seconds(lambda one=one: one.compare(fresh())) for _ in range(3))
            print(f"{name:46}{score:10.4f}" + (f"   after a fit of {fit:.2f}" if fit > 0.01 else ""))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="16,64,256")
    models = [int(k) for k in parser.parse_args().models.split(",")]
    print(f"{platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}")
    ratios = {k: score_table(k) for k in models}
    for k in models:
        attack_table(k)
    passes, textbook = ratios.get(256, (0.0, 0.0))
    if passes > 3 or textbook > 1:
        print(f"\nclaim broken: LiRA takes {passes:.1f} passes and {textbook:.2f} of textbook NumPy", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
