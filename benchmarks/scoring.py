"""How long does it take to score 50,000 records against 16, 64 and 256 reference models? Prints three tables.

1. Each score that a published package has too, from plain arrays [K, N] of confidences as those take them, beside every
   package that runs (peers/run.py says which and installs them into --work; --no-peers leaves them out), and LiRA
   and RMIA in textbook NumPy. Ours are timed from the confidences that an audit keeps in memory as well, in units of
   one pass over them (NumPy's sum over models).
2. The reduction of logits to confidences, done once for all attacks, beside softmax and logarithm in NumPy.
3. Every attack with reference models from the kept confidences, nothing else computed before: seconds.

CPU seconds of one thread; all contestants of a table alternate on the same arrays, packages each in a process of its
own; medians of 7 rounds, of 3 where one takes more than a second, of one where it takes more than 5. The last column
says how alike the package and we rank the records (Spearman).

Ten minutes on one core with the packages, two without, and 4 GiB of memory; no data needed. Exits with 1 if a package
has the same score from the same arrays faster than we, or if LiRA from kept confidences takes more than three passes.

Usage: python benchmarks/scoring.py [--models 16,64,256] [--no-peers] [--work FOLDER]
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))

import numpy as np
from race import Runner, write_confidences

from memberscope.attacks.comparison import Comparison, ReferenceAttack, played_targets
from memberscope.attacks.population import above_population
from memberscope.attacks.registry import ATTACKS, get_attack
from memberscope.attacks.rmia import RmiaOffline, pairwise_score
from memberscope.evidence import Evidence
from memberscope.reference_signals import ReferenceSignals

N, Z, C = 50_000, 10_000, 10
ROUNDS = 7
SLOW = ((5.0, 1), (1.0, 3))
"""What takes so many seconds runs so many times."""

LIMIT = 300.0

ALIKE = 0.97
"""A package that ranks less alike than this computes another score: shown, and not counted."""

Timed = Callable[[], float]


def seconds(action: Callable[[], object]) -> float:
    """CPU seconds that it takes."""
    start = time.process_time()
    action()
    return time.process_time() - start


def race(contestants: dict[str, Timed]) -> dict[str, float]:
    """Median seconds of each; they alternate, after a round to warm up that only counts for what is slow."""
    times = {name: [action()] for name, action in contestants.items()}
    rounds = {name: next((n for limit, n in SLOW if first[0] > limit), ROUNDS) for name, first in times.items()}
    for name in [name for name, n in rounds.items() if n == ROUNDS]:
        times[name] = []
    for _ in range(ROUNDS):
        for name, action in contestants.items():
            if len(times[name]) < rounds[name]:
                times[name].append(action())
    return {name: statistics.median(values) for name, values in times.items()}


class Case:
    """Arrays of one size: confidences of K models and a target on N records, Z of which are the population too."""

    def __init__(self, k: int) -> None:
        rng = np.random.default_rng(k)
        self.k = k
        self.labels = rng.integers(0, C, N)
        self.inside = np.argsort(rng.random((k, N)), axis=0) < k // 2
        self.member = rng.random(N) < 0.5
        difficulty = rng.normal(2, 2, N)
        self.phi = rng.normal(size=(k, N)) + difficulty + self.inside
        self.target = rng.normal(size=N) + difficulty + self.member
        self.population = np.sort(np.random.default_rng(0).permutation(np.flatnonzero(~self.member))[:Z])
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
    x = (1 / (1 + np.exp(-case.target))) / (1 / (1 + np.exp(-case.phi))).mean(axis=0)
    z = x[case.population]
    return np.concatenate([(x[i : i + 500, None] / z > 1).mean(axis=1) for i in range(0, N, 500)])


def ranked(case: Case, ratio: np.ndarray) -> np.ndarray:
    """RMIA as published: our ratio, searched among the population's."""
    return pairwise_score(ratio, ratio[case.population])


def attack_p(case: Case) -> np.ndarray:
    return above_population(case.target, case.target[case.population])


def ours(name: str, case: Case, compared: Callable[[], Comparison]) -> np.ndarray:
    """One of our scores."""
    if name == "attack-p":
        return attack_p(case)
    attack = RmiaOffline(a=0.3) if name == "rmia-offline" else get_attack(name)()
    assert isinstance(attack, ReferenceAttack)
    scores = attack.compare(compared())
    return ranked(case, scores) if name.startswith("rmia") else scores


SAME: dict[str, tuple[tuple[str, str], ...]] = {
    "lira-online-per-record": (
        ("PrivacyGuard", "LiRA online"),
        ("TensorFlow Privacy", "LiRA online"),
        ("SACRO-ML", "LiRA online"),
    ),
    "lira-offline-twosided": (
        ("PrivacyGuard", "LiRA offline"),
        ("TensorFlow Privacy", "LiRA offline, two-sided"),
        ("SACRO-ML", "LiRA offline, two-sided"),
    ),
    "lira-offline-onesided-per-record": (("SACRO-ML", "LiRA offline, one-sided"),),
    "rmia-online": (("PrivacyGuard", "RMIA online"),),
    "rmia-offline": (("PrivacyGuard", "RMIA offline"),),
    "difficulty-calibration": (("PrivacyGuard", "calibration (loss)"),),
    "difficulty-midpoint(phi)": (("TensorFlow Privacy", "offset (calibration)"),),
    "attack-r": (("Privacy Meter", "reference"),),
    "attack-p": (("Privacy Meter", "population"),),
}
"""Our scores and the attacks of packages that compute the same, or nearest to it."""

TEXTBOOK: dict[str, tuple[tuple[str, Callable[[Case], np.ndarray]], ...]] = {
    "lira-online-per-record": (("textbook", textbook_lira), ("multiplied mask", masked_lira)),
    "rmia-online": (("textbook, all pairs", textbook_rmia),),
}
"""The same in plain NumPy."""


def check(case: Case) -> None:
    """All contestants answer the same question."""
    found = ours("lira-online-per-record", case, case.comparison)
    for other in (textbook_lira(case), masked_lira(case)):
        np.testing.assert_allclose(found, other, rtol=1e-6, atol=1e-6)
    literal, found = textbook_rmia(case), ours("rmia-online", case, case.comparison)
    assert np.mean(np.abs(literal - found) < 1.5 / Z) > 0.999


def alike(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation."""
    from scipy.stats import spearmanr

    return float(spearmanr(first, second).statistic)


def score_table(k: int, peers: Path | None) -> list[str]:
    """Print each score beside the packages that have it; the claims that do not hold."""
    case = Case(k)
    check(case)
    stored = case.kept.phi().residuals
    contestants: dict[str, Timed] = {"one pass over the kept confidences": lambda: seconds(lambda: stored.sum(axis=-1))}
    for name in SAME:
        if name != "attack-p":
            contestants[f"{name}, kept"] = partial(seconds, partial(ours, name, case, case.comparison))
        contestants[name] = partial(seconds, partial(ours, name, case, case.from_arrays))
        for form, score in TEXTBOOK.get(name, ()):
            contestants[f"{name}, NumPy, {form}"] = partial(seconds, partial(score, case))
    pairs = [(name, *pair) for name, those in SAME.items() for pair in those] if peers else []
    packages = {f"{name}, {package}": (name, package, attack) for name, package, attack in pairs}
    with ExitStack() as stack:
        runners: dict[str, Runner] = {}
        if peers:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            write_confidences(folder / "case.npz", case.target, case.member, case.phi, case.inside, Z)
        for entry, (_, package, attack) in packages.items():
            if package not in runners:
                runner = Runner(package, folder / "case.npz", folder / package, peers, LIMIT)
                runners[package] = stack.enter_context(runner)
            contestants[entry] = partial(runners[package].run, attack)
        times = race(contestants)
        similar = {
            entry: alike(ours(name, case, case.comparison), runners[package].scores(attack))
            for entry, (name, package, attack) in packages.items()
        }
    base = times["one pass over the kept confidences"]
    print(f"\n{N:,} records x {k} models")
    print(f"{'':58}{'seconds':>10}{'passes':>9}{'alike':>9}")
    for entry in sorted(times, key=_by_score):
        known = f"{similar[entry]:9.4f}" if entry in similar else ""
        print(f"{entry:58}{times[entry]:10.4f}{times[entry] / base:9.1f}{known}")
    broken = [
        f"{name} takes {times[name]:.4f} s, and {times[entry]:.4f} s in {package}"
        for entry, (name, package, _) in packages.items()
        if times[entry] <= times[name] and similar[entry] > ALIKE
    ]
    passes = times["lira-online-per-record, kept"] / base
    return broken + ([f"LiRA takes {passes:.1f} passes"] if passes > 3 else [])


def _by_score(entry: str) -> int:
    """Rows of one score stand together."""
    name = entry.split(",")[0]
    return list(SAME).index(name) if name in SAME else -1


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
    reductions = {
        "logits to kept confidences, memberscope": lambda: ReferenceSignals.from_logits(logits, labels, inside).phi(),
        "logits to confidences, softmax in NumPy": lambda: softmax_phi(logits[:, 0], labels),
    }
    times = race({name: partial(seconds, action) for name, action in reductions.items()})
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
    parser.add_argument("--no-peers", action="store_true", help="leave the published packages out")
    parser.add_argument("--work", type=Path, default=Path(__file__).resolve().parent / "peers" / ".work")
    given = parser.parse_args()
    models = [int(k) for k in given.models.split(",")]
    print(f"{platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}")
    broken = [
        f"{k} models: {claim}" for k in models for claim in score_table(k, None if given.no_peers else given.work)
    ]
    for k in models:
        attack_table(k)
    for claim in broken:
        print(f"claim broken: {claim}", file=sys.stderr)
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
