"""The one way in which attacks are run: cross-fitting keeps the truth about a record from whoever scores it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
from scipy import stats

from memberscope import seeds
from memberscope.attacks.base import (
    HOW_TO_GET,
    Attack,
    Card,
    InformedAttack,
    crossfit_confidence,
    missing_knowledge,
    require_knowledge,
    score_records,
    stratified_folds,
)
from memberscope.errors import EvidenceError, MissingKnowledgeError
from memberscope.evidence import Evidence, Knowledge, from_logits
from memberscope.statistics.areas import auc_estimate
from memberscope.statistics.curves import auc, rank

CARD = Card("none", "none", "none")
PROBABILITIES = frozenset({Knowledge.PROBABILITIES})


def evidence_of(n: int, seed: int = 0, classes: int = 4) -> Evidence:
    rng = np.random.default_rng(seed)
    return from_logits(rng.normal(0, 2, (n, classes)), rng.integers(0, classes, n))


def members(n: int, seed: int = 1, share: float = 0.5) -> np.ndarray:
    return np.random.default_rng(seed).permutation(np.arange(n) < share * n)


def auc_of(attack: type[Attack], evidence: Evidence, member: np.ndarray, seed: int = 2) -> float:
    return auc(rank(score_records(attack, evidence, member, rng=np.random.default_rng(seed)), member))


def key(evidence: Evidence) -> list[bytes]:
    """What tells one record from another: its answers."""
    return [row.tobytes() for row in evidence.logits[0]]


class Memoriser(InformedAttack):
    """Remembers every record that it was told about, and nothing else."""

    name, title, card, needs = "memoriser", "Memoriser", CARD, PROBABILITIES

    def fit(self, evidence: Evidence, member: np.ndarray) -> None:
        self.known = dict(zip(key(evidence), member, strict=True))

    def score(self, evidence: Evidence) -> np.ndarray:
        return np.array([float(self.known.get(record, 0.5)) for record in key(evidence)])


class ClassMemory(Memoriser):
    """Keeps what it was told in its class, where the next fold could find it."""

    name = "class-memory"
    told: ClassVar[dict[bytes, bool]] = {}

    def fit(self, evidence: Evidence, member: np.ndarray) -> None:
        ClassMemory.told.update(zip(key(evidence), member, strict=True))
        self.known = ClassMemory.told


class NewAttribute(Memoriser):
    """Adds an attribute to its parent, which no definition shows."""

    name = "new-attribute"

    def fit(self, evidence: Evidence, member: np.ndarray) -> None:
        kept = {**getattr(Memoriser, "kept", {}), **dict(zip(key(evidence), member, strict=True))}
        Memoriser.kept = kept  # type: ignore[attr-defined]
        self.known = kept


@pytest.mark.parametrize("attack", [Memoriser, ClassMemory, NewAttribute])
def test_memory_of_training_records_gains_nothing(attack: type[Memoriser]) -> None:
    evidence, member = evidence_of(300), members(300)
    alone = attack()
    alone.fit(evidence, member)
    assert auc(rank(alone.score(evidence), member)) == 1.0  # judged on what it was told, it would be perfect
    ClassMemory.told.clear()
    if hasattr(Memoriser, "kept"):
        del Memoriser.kept
    scores = score_records(attack, evidence, member, rng=np.random.default_rng(0))
    assert scores.tolist() == [0.5] * 300
    assert ClassMemory.told == {}
    assert not hasattr(Memoriser, "kept")


def test_a_class_keeps_its_own_attributes() -> None:
    before = dict(vars(Memoriser))
    score_records(ClassMemory, evidence_of(50), members(50), rng=np.random.default_rng(0))
    assert dict(vars(Memoriser)) == before
    assert ClassMemory.needs == PROBABILITIES | {Knowledge.SOME_MEMBERSHIP}


FOUND: list[str] = []


def search(evidence: Evidence) -> None:
    """Walk over everything that can be reached from the evidence, and note whatever could be a membership."""
    evidence.signals.phi, evidence.query_signals.phi  # noqa: B018  # what is kept is searched too
    seen: set[int] = set()
    queue: list[Any] = [evidence]
    while queue:
        item = queue.pop()
        if id(item) in seen or isinstance(item, type | ModuleType):
            continue
        seen.add(id(item))
        if isinstance(item, np.ndarray):
            queue.append(item.base)
            if item.dtype == bool or (item.size > 1 and np.isin(item, (0, 1)).all()):
                FOUND.append(f"{item.dtype} {item.shape}")
        elif isinstance(item, FunctionType):  # its globals are the module's, not the evidence's
            queue.extend(cell.cell_contents for cell in item.__closure__ or ())
        else:
            queue.extend(gc.get_referents(item))


class Snoop(Attack):
    """Searches its evidence for the truth."""

    name, title, card, needs = "snoop", "Snoop", CARD, PROBABILITIES

    def score(self, evidence: Evidence) -> np.ndarray:
        search(evidence)
        return np.zeros(evidence.n_records)


class InformedSnoop(InformedAttack, Snoop):
    """Searches both the evidence about the records that it learns from and about those that it scores."""

    name = "informed-snoop"

    def fit(self, evidence: Evidence, member: np.ndarray) -> None:
        search(evidence)


@pytest.mark.parametrize("attack", [Snoop, InformedSnoop])
def test_the_truth_cannot_be_reached_from_the_evidence(attack: type[Attack]) -> None:
    n = 120
    member = members(n)
    plain = evidence_of(n)
    evidence = from_logits(plain.logits, plain.labels, white_box=lambda name: np.arange(2.0, n + 2))
    FOUND.clear()
    score_records(attack, evidence, member, rng=np.random.default_rng(0))
    assert FOUND == []
    search(from_logits(plain.logits, plain.labels, white_box=lambda name: member))
    assert FOUND == ["bool (120,)"]  # the search would have found it


class Position(InformedAttack):
    """Takes the first records for members, as they are in a pool with its training part first."""

    name, title, card, needs = "position", "Position", CARD, PROBABILITIES

    def fit(self, evidence: Evidence, member: np.ndarray) -> None:
        self.first = np.corrcoef(np.arange(len(member)), member)[0, 1]

    def score(self, evidence: Evidence) -> np.ndarray:
        return np.arange(evidence.n_records) * self.first


def test_the_order_of_records_tells_an_informed_attack_nothing() -> None:
    n = 2000
    member = np.arange(n) < n / 2
    assert auc_of(Position, evidence_of(n), member) == pytest.approx(0.5, abs=0.06)


class Leaky(InformedAttack):
    """Learns the mean of one signal in each group."""

    name, title, card, needs = "leaky", "Leaky", CARD, PROBABILITIES

    def fit(self, evidence: Evidence, member: np.ndarray) -> None:
        logit = evidence.logits[0][:, 0]
        self.slope = logit[member].mean() - logit[~member].mean()
        self.seen = evidence.n_records
        self.share = member.mean()

    def score(self, evidence: Evidence) -> np.ndarray:
        TOLD.append((self.seen, evidence.n_records, self.share))
        return self.slope * evidence.logits[0][:, 0]


TOLD: list[tuple[int, int, float]] = []


@pytest.mark.parametrize("folds", [2, 5, 7])
def test_each_fold_is_scored_by_an_attack_that_learnt_from_the_others(folds: int) -> None:
    n = 350
    TOLD.clear()
    score_records(Leaky, evidence_of(n), members(n, share=0.2), rng=np.random.default_rng(0), folds=folds)
    assert [seen + scored for seen, scored, _ in TOLD] == [n] * folds
    assert sum(scored for _, scored, _ in TOLD) == n
    assert [share for _, _, share in TOLD] == pytest.approx([0.2] * folds)


def test_what_can_be_learnt_is_learnt() -> None:
    n = 4000
    member = members(n)
    evidence = evidence_of(n)
    logits = evidence.logits[0].copy()
    logits[:, 0] += np.where(member, 2.0, 0.0)  # normal, standard deviation 2: AUC = Phi(1 / sqrt 2)
    shifted = from_logits(logits, evidence.labels)
    assert auc_of(Leaky, shifted, member) == pytest.approx(stats.norm.cdf(2 / 2 / np.sqrt(2)), abs=0.02)


@pytest.mark.parametrize(("n", "share", "folds"), [(100, 0.5, 5), (103, 0.31, 5), (40, 0.1, 4), (10, 0.5, 5)])
def test_folds_hold_the_same_share_of_members(n: int, share: float, folds: int) -> None:
    member = members(n, share=share)
    fold_of = stratified_folds(member, folds, np.random.default_rng(0))
    for group in (member, ~member):
        counts = np.bincount(fold_of[group], minlength=folds)
        assert counts.sum() == group.sum()
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize(
    ("folds", "few", "told"),
    [
        (5, 4, "5 folds need at least 5 members and as many non-members; the smaller group has 4"),
        (1, 50, "1 folds need at least 2 members and as many non-members; the smaller group has 50"),
    ],
)
def test_too_few_records_or_folds(folds: int, few: int, told: str) -> None:
    for member in (np.arange(100) < few, np.arange(100) >= few):
        with pytest.raises(EvidenceError) as refusal:
            score_records(Leaky, evidence_of(100), member, rng=np.random.default_rng(0), folds=folds)
        assert refusal.value.problem == told
        assert refusal.value.hint == "give more records, or use fewer folds (at least 2)"


def test_membership_of_another_length() -> None:
    with pytest.raises(EvidenceError, match=r"member has shape \(99,\), expected \(100,\)"):
        score_records(Leaky, evidence_of(100), members(99), rng=np.random.default_rng(0))


def test_the_same_seed_gives_the_same_scores() -> None:
    evidence, member = evidence_of(200), members(200)
    one, same, other = (score_records(Leaky, evidence, member, rng=np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def answering(answer: Callable[[Evidence], Any]) -> type[Attack]:
    members_of_class = {
        "name": "odd",
        "title": "Odd",
        "card": CARD,
        "needs": PROBABILITIES,
        "score": lambda self, e: answer(e),
    }
    return type("Odd", (Attack,), members_of_class)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda e: np.zeros(e.n_records + 1), "attack 'odd' returned scores of shape (101,), expected (100,)"),
        (lambda e: np.zeros((e.n_records, 1)), "attack 'odd' returned scores of shape (100, 1), expected (100,)"),
        (lambda e: np.where(np.arange(100) < 3, np.nan, 0), "attack 'odd' returned NaN for 3 of 100 records"),
    ],
)
def test_what_an_attack_returns_is_checked(answer: Callable[[Evidence], Any], told: str) -> None:
    with pytest.raises(EvidenceError) as refusal:
        score_records(answering(answer), evidence_of(100), members(100), rng=np.random.default_rng(0))
    assert refusal.value.problem == told
    assert refusal.value.hint


def test_infinite_scores_rank_and_whole_numbers_become_floats() -> None:
    evidence, member = evidence_of(100), members(100)
    infinite = answering(lambda e: np.where(np.arange(100) % 2, np.inf, -np.inf))
    assert np.isinf(score_records(infinite, evidence, member, rng=np.random.default_rng(0))).all()
    whole = score_records(answering(lambda e: list(range(100))), evidence, member, rng=np.random.default_rng(0))
    assert whole.dtype == np.float64


def test_scores_are_a_copy_of_what_the_evidence_keeps() -> None:
    evidence = evidence_of(100)
    scores = score_records(answering(lambda e: e.signals.phi), evidence, members(100), rng=np.random.default_rng(0))
    scores[:] = 0
    assert evidence.signals.phi.any()


class Generator(Attack):
    """Gives away what the random generator that it got knows."""

    name, title, card, needs = "generator", "Generator", CARD, PROBABILITIES

    def score(self, evidence: Evidence) -> np.ndarray:
        FOUND.append(str(self.rng.bit_generator.seed_seq.entropy))  # type: ignore[attr-defined]
        return self.rng.random(evidence.n_records)


def test_the_seed_of_the_audit_cannot_be_read_from_an_attacks_generator() -> None:
    FOUND.clear()
    seed = 123456
    score_records(Generator, evidence_of(10), members(10), rng=seeds.generator(seed, "attacks", "generator"))
    assert len(FOUND) == 1
    assert str(seed) not in FOUND[0]


def test_missing_knowledge_is_named_with_how_to_get_it() -> None:
    evidence = evidence_of(10)
    rich = type("Rich", (Generator,), {"needs": PROBABILITIES | {Knowledge.WEIGHTS, Knowledge.REFERENCES}})
    assert missing_knowledge(rich, evidence) == [Knowledge.REFERENCES, Knowledge.WEIGHTS]
    assert missing_knowledge(Memoriser, evidence) == []
    with pytest.raises(MissingKnowledgeError) as refusal:
        require_knowledge(rich, evidence)
    assert refusal.value.problem == (
        "attack 'generator' needs reference models trained on known random halves of the pool and "
        "the weights of the model"
    )
    assert refusal.value.hint.startswith("Train reference models with --shadows K")
    assert set(HOW_TO_GET) == set(Knowledge)
    with pytest.raises(MissingKnowledgeError):
        score_records(rich, evidence, members(10), rng=np.random.default_rng(0))


def test_an_attack_that_learns_belongs_to_an_adversary_who_knows_members() -> None:
    assert Memoriser.adversary().name == "informed stranger"
    assert Generator.adversary().name == "stranger"


def test_crossfit_confidence_is_a_root_two_wider() -> None:
    for confidence in (0.5, 0.9, 0.95, 0.999):
        z, wide = (stats.norm.ppf((1 + level) / 2) for level in (confidence, crossfit_confidence(confidence)))
        assert wide == pytest.approx(np.sqrt(2) * z, rel=1e-9)
    assert crossfit_confidence(1 - 1e-15) < 1


class Discriminant(InformedAttack):
    """Linear discriminant on the logits, in closed form."""

    name, title, card, needs = "discriminant", "Discriminant", CARD, PROBABILITIES

    def fit(self, evidence: Evidence, member: np.ndarray) -> None:
        x = evidence.logits[0]
        ins, outs = x[member].mean(axis=0), x[~member].mean(axis=0)
        self.direction, self.middle = np.linalg.solve(np.cov(x.T), ins - outs), (ins + outs) / 2

    def score(self, evidence: Evidence) -> np.ndarray:
        return np.asarray((evidence.logits[0] - self.middle) @ self.direction)


def test_intervals_of_cross_fitted_scores_cover_where_there_is_nothing_to_learn() -> None:
    """The plain interval does not, which is why the wide one exists: it misses in 15 % instead of 5 %."""
    missed_plain = missed_wide = 0
    trials = 400
    for seed in range(trials):
        member = members(200, seed=seed)
        scores = score_records(Discriminant, evidence_of(200, seed + trials), member, rng=np.random.default_rng(seed))
        ranking = rank(scores, member)
        plain, wide = auc_estimate(ranking, 0.95), auc_estimate(ranking, crossfit_confidence(0.95))
        missed_plain += not plain.low <= 0.5 <= plain.high
        missed_wide += not wide.low <= 0.5 <= wide.high
    assert stats.binomtest(missed_wide, trials, 0.05, alternative="greater").pvalue > 0.01
    assert stats.binomtest(missed_plain, trials, 0.05, alternative="greater").pvalue < 1e-4
