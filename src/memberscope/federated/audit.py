"""The audit of a federation: the recording becomes features, features become evidence, and each seat attacks."""

from __future__ import annotations

import hashlib
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memberscope import document, environment, membership, seeds
from memberscope.attacks.runner import run_attacks, select
from memberscope.checks import Context, Finding, check_codes, run_checks
from memberscope.config import Number, check_number, to_flags
from memberscope.events import Events
from memberscope.evidence import Evidence
from memberscope.federated import candidates, exposure, subject
from memberscope.federated.candidates import Candidates
from memberscope.federated.features import FeatureWriter, extract, read_features
from memberscope.federated.online import identity, rows_of
from memberscope.federated.plausibility import doubts
from memberscope.federated.references import check
from memberscope.federated.subject import Subject
from memberscope.pipeline import Clock, finish, judge_records, run_facts
from memberscope.policy import read_policy
from memberscope.result import Audit
from memberscope.round_features import RoundFeatures
from memberscope.rounds import Reference, Rounds
from memberscope.statistics.blind import blind_baseline, duplicates, label_p_value

if TYPE_CHECKING:
    from memberscope.attacks.runner import AttackResult


_NUMBERS: dict[str, Number] = {
    "records": (int, 2, math.inf, "at least 2 (--candidates)"),
    "population": (int, 0, math.inf, "at least 0"),
    "every": (int, 1, math.inf, "at least 1"),
    "folds": (int, 2, 101, "from 2 to 100"),
    "confidence": (float, 0.5, 1, "in [0.5, 1)"),
    "seed": (int, 0, math.inf, "at least 0"),
}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What an audit of a federation asks.

    Parameters
    ----------
    records
        Pairs a client at most, half members: the cost of an audit grows with them.
    population
        Known non-members at most, which the attacks may calibrate on.
    every
        Look at one recorded round in so many.
    attacks
        Names, or auto.
    folds, confidence, seed, ignore, policy
        As in any audit.
    """

    records: int = 1000
    population: int = 2000
    every: int = 1
    attacks: tuple[str, ...] = ("auto",)
    folds: int = 5
    confidence: float = 0.95
    seed: int = 0
    ignore: tuple[str, ...] = ()
    policy: Path | None = None

    def __post_init__(self) -> None:
        for name, wanted in _NUMBERS.items():
            check_number(name, getattr(self, name), wanted)


def audit_federation(
    federation: str | Path | Subject,
    asked: Asked | None = None,
    *,
    tampered: Sequence[str | Path | Subject] = (),
    references: Sequence[str | Path | Subject] = (),
    device: str | None = None,
    events: Events | None = None,
) -> Audit:
    """Audit a federation from every seat that its recording allows.

    Parameters
    ----------
    federation
        A run folder of `memberscope federate`, or any other federation as a `Subject`.
    asked
        What is asked.
    tampered
        The same federation with a malicious party, audited for the last row of the ladder and reported apart.
    references
        Federations of the same clients and records with other coins, which the adversary trained: what rounds look like
        without a record (`memberscope.federated.references`).
    device
        Where the models of run folders are asked (auto, cpu, cuda, cuda:1, mps); default: where the settings of
        `federation` say. A `Subject` knows where its own are.
    events
        Listens to progress.

    Returns
    -------
    The audit; features stay with the recording, nothing else is written until ``.save(folder)``.

    Raises
    ------
    MemberscopeError
        A recording, records or settings that cannot be used; the message says what to do.
    """
    asked, events, clock = asked or Asked(), events or Events(), Clock()
    check_codes(asked.ignore)
    policy = None if asked.policy is None else read_policy(asked.policy)
    events.stage("Reading the federation")
    about = _subject(federation, device, events)
    for problem in about.transcript.problems:
        events.note(problem)
    if about.drawing is not None:
        asked = replace(asked, records=about.drawing.per_client, population=about.drawing.population)
        events.note(
            f"Features were computed while it trained: {asked.records} pairs a client at most, drawn from seed "
            f"{about.drawing.seed}."
        )
    chosen = choose(about, asked)
    there = str(about.target["device"])  # all on one: what is compared was computed in one arithmetic
    altered = [_subject(one, there, events) for one in tampered]  # now: what is wrong with them is better known at once
    known = [_subject(reference, there, events) for reference in references]
    check(about, known)
    clock.lap("data")

    events.stage("Asking the models of the rounds")
    evidence = observe(about, chosen, asked, events, known)
    clock.lap("features")

    events.stage("Attacking")
    results = run_attacks(
        select(asked.attacks, evidence),
        evidence,
        chosen.member,
        class_names=about.classes,
        seed=asked.seed,
        folds=asked.folds,
        confidence=asked.confidence,
        on_start=events.attack,
    )
    calibrated, risk = judge_records(
        results, evidence, chosen.member, prior=0.5, seed=asked.seed, confidence=asked.confidence
    )
    clock.lap("attacks")

    events.stage("Asking who learns about whom")
    section = exposure.describe(about, chosen, evidence, results, confidence=asked.confidence, seed=asked.seed)
    clock.lap("clients")
    malicious = None
    if altered:
        events.stage("Auditing the federations with a malicious party")
        section["tampered"] = [_tampered(one, about, evidence, asked, events, len(altered)) for one in altered]
        malicious = exposure.malicious_row(section["tampered"])
        clock.lap("tampered")

    events.stage("Doubting the audit")
    findings = doubt(about, chosen, evidence, results, asked)
    clock.lap("checks")
    settings = {**about.settings, **{f"audit_{name}": value for name, value in _plain(asked).items()}}
    assembled = document.assemble(
        kind="federation",
        dataset=about.dataset,
        records=_record_facts(about, chosen),
        target=_accuracies(about, chosen, evidence),
        results=results,
        calibrated=calibrated,
        risk=risk,
        member=chosen.member,
        findings=findings,
        settings=settings,
        environment=environment.describe(about.target["device"]),
        run=run_facts(clock, f"memberscope federate audit {about.command or about.name}", asked.seed),
        policy=None,
        top_records=None,
        reproduce=[_again(about, known, altered, asked)],
        confidence=asked.confidence,
        seed=asked.seed,
        federation=section,
        malicious=malicious,
    )
    return finish(
        assembled, results, findings, chosen.record, evidence, chosen.member, policy, asked.confidence, risk=risk
    )


def choose(about: Subject, asked: Asked) -> Candidates:
    """The pairs that are asked about, drawn once from the seed, or already when features were computed online."""
    if about.drawing is not None:
        drawn = about.drawing.choose(about.owner, about.member, about.labels, by_coin=about.by_coin)
        there = np.isin(drawn.client, about.clients)
        return replace(drawn, client=drawn.client[there], record=drawn.record[there], member=drawn.member[there])
    return candidates.choose(
        about.owner,
        about.member,
        about.labels,
        about.clients,
        seeds.generator(asked.seed, "membership", "candidates"),
        by_coin=about.by_coin,
        per_client=asked.records,
        population=asked.population,
    )


def observe(
    about: Subject, chosen: Candidates, asked: Asked, events: Events, references: Sequence[Subject] = ()
) -> Evidence:
    """What the recording's seat has in hand about the pairs: answers of the last global model, and the rounds."""
    rows = rows_of(chosen)
    if about.drawing is not None:  # those of clients that never took part have features too
        rows = rows_of(about.drawing.choose(about.owner, about.member, about.labels, by_coin=about.by_coin))
    place = np.full(len(about.labels), -1)
    place[rows] = np.arange(len(rows))
    features, logits = _features(about, rows, asked, events)
    known_federations = []
    for number, reference in enumerate(references, start=1):
        events.note(f"Reference federation {number} of {len(references)}: {reference.name}")
        seen_there, _ = _features(reference, rows, asked, events)
        known_federations.append(Reference(seen_there, reference.owner[rows], reference.member[rows]))
    seen = Rounds(
        features,
        chosen.client,
        place[chosen.record],
        place[chosen.population],
        learning_rate=None if about.rate_of is None else np.array([about.rate_of(int(r)) for r in features.rounds]),
        references=tuple(known_federations),
    )
    known = logits[place[chosen.population]]
    more: dict[str, Any] = {}
    if len(known):
        more = {"population_logits": known[None], "population_labels": about.labels[chosen.population]}
    return Evidence(logits[None, place[chosen.record]], about.labels[chosen.record], rounds=seen, **more)


def _features(
    about: Subject, rows: NDArray[np.int64], asked: Asked, events: Events
) -> tuple[RoundFeatures, NDArray[np.float32]]:
    transcript = about.transcript
    rounds = transcript.rounds[:: asked.every]
    if about.drawing is not None:
        FeatureWriter(about.prober(rows), about.drawing.folder, identity(about.dataset["fingerprint"], rows))
        return read_features(about.drawing.folder, about.labels[rows], rounds=rounds)
    known = about.identity() | {"records": rows.tolist(), "recorded": transcript.fingerprint(rounds)}
    which = hashlib.sha256(rows.tobytes()).hexdigest()[:8]
    folder = about.features / f"{len(rows)}_records_{which}_every{asked.every}"
    writer = FeatureWriter(about.prober(rows), folder, known, renew=True)
    if writer.renewed:
        events.note("The features that were there are of another recording or version: they are computed anew.")
    extract(
        transcript,
        writer,
        rounds=rounds,
        on_round=lambda number, position, total: events.attack(f"round {number}", position, total),
    )
    for left_out in writer.left_out:
        events.note(f"Left out: {left_out}")
    return read_features(folder, about.labels[rows])


def doubt(
    about: Subject, chosen: Candidates, evidence: Evidence, results: list[AttackResult], asked: Asked
) -> list[Finding]:
    """The coded checks of this audit."""
    y, member = about.labels[chosen.record], chosen.member
    classes = len(about.classes)
    blind = twins = None
    if about.content is not None:
        x = about.content(chosen.record)
        blind = blind_baseline(x, y, member, classes, rng=seeds.generator(asked.seed, "blind"))
        twins = duplicates(x, member, chosen.record)
    context = Context(
        results=results,
        member=member,
        class_mix_difference=_mix_difference(y, member, classes),
        label_p_value=label_p_value(y, member, classes),
        blind=blind,
        duplicates=twins,
        no_records="The records themselves were not at hand.",
        verified=about.dataset["verified"],
        source=str(about.dataset["source"]),
        randomised=about.by_coin,
        no_claim="No bound is proved for a federation: what its accountant promises is told, and not tested.",
        canary_clients=_canaries(about),
        recording=None if evidence.rounds is None else doubts(about, chosen, evidence.rounds),
    )
    return run_checks(context, asked.ignore)


def _canaries(about: Subject) -> tuple[int, int] | None:
    told = about.privacy.get("canaries")
    return None if not told else (int(told["took_part"]), len(about.clients))


def _subject(federation: str | Path | Subject, device: str | None, events: Events) -> Subject:
    if isinstance(federation, Subject):
        return federation
    return subject.of_run(federation, device=device, events=events)


def _tampered(
    about: Subject, honest: Subject, evidence: Evidence, asked: Asked, events: Events, federations: int
) -> dict[str, Any]:
    """What a malicious party achieves, and the same attacks without it; `evidence` is of the honest audit."""
    chosen = choose(about, asked)
    same = all(np.array_equal(getattr(about, part), getattr(honest, part)) for part in ("labels", "owner", "member"))
    before: Evidence | None = None
    if about.ascended is not None and len(about.ascended[0]) and about.drawing is None:
        client, record = about.ascended
        known = np.setdiff1d(chosen.population, record)
        matching = "the records that the party moved models up the loss of"
        pairs = Candidates(client, record, about.member[record], known, matching)
        if same and honest.drawing is None:
            before = observe(honest, pairs, asked, events)
    else:
        targets = exposure.targeted(about)
        rows = np.flatnonzero(np.isin(chosen.client, targets)) if targets else np.arange(len(chosen.client))
        pairs = replace(chosen, client=chosen.client[rows], record=chosen.record[rows], member=chosen.member[rows])
        if same and np.array_equal(chosen.record, choose(honest, asked).record):
            before = evidence.take(rows)
    return exposure.of_tampered(
        about,
        honest,
        pairs,
        observe(about, pairs, asked, events),
        before,
        confidence=asked.confidence,
        seed=asked.seed,
        folds=asked.folds,
        federations=federations,
    )


def _again(about: Subject, references: Sequence[Subject], altered: Sequence[Subject], asked: Asked) -> str:
    """The command that gives the same figures."""
    asked_for = {"candidates" if f.name == "records" else f.name: getattr(asked, f.name) for f in fields(Asked)}
    usual = {"candidates" if f.name == "records" else f.name: f.default for f in fields(Asked)}
    del asked_for["population"]  # for Python alone
    if asked.policy is not None:
        asked_for["policy"] = asked.policy.name
    named = {
        "references": [Path(one.name).name for one in references],
        "tampered": [Path(one.name).name for one in altered if one.ascended is not None],
    }
    flags = to_flags(named | asked_for, usual)
    return f"memberscope federate audit {about.command or shlex.quote(about.name)} {flags}".rstrip()


def _record_facts(about: Subject, chosen: Candidates) -> dict[str, Any]:
    labels = about.labels[chosen.record]
    return {
        "protocol": "coin" if about.by_coin else "class-matched",
        "members": int(chosen.member.sum()),
        "nonmembers": int((~chosen.member).sum()),
        "validation": len(chosen.population),
        "class_mix_difference": _mix_difference(labels, chosen.member, len(about.classes)),
    }


def _mix_difference(labels: NDArray[np.int64], member: NDArray[np.bool_], classes: int) -> float:
    everyone = membership.Split(member, np.zeros(len(member), bool), np.ones(len(member), bool))
    return membership.class_mix_difference(labels, everyone, classes)


def _accuracies(about: Subject, chosen: Candidates, evidence: Evidence) -> dict[str, Any]:
    right = evidence.signals.correct
    train, test = float(right[chosen.member].mean()), float(right[~chosen.member].mean())
    known = None
    if evidence.population_logits is not None:
        known = float((evidence.population_logits[0].argmax(axis=1) == evidence.population_labels).mean())
    return {
        **about.target,
        "train_acc": train,
        "val_acc": known,
        "test_acc": test,
        "generalization_gap": train - test,
        "test_loss": float(evidence.signals.loss[~chosen.member].mean()),
    }


def _plain(asked: Asked) -> dict[str, Any]:
    return {
        "records": asked.records,
        "population": asked.population,
        "every": asked.every,
        "attacks": list(asked.attacks),
        "folds": asked.folds,
        "confidence": asked.confidence,
        "seed": asked.seed,
    }
