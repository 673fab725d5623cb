"""Who learns about whom: figures by client, from every seat, with and without the protections of a protocol."""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memberscope import seeds
from memberscope.attacks.base import Scores, score_records
from memberscope.attacks.federated import raw
from memberscope.attacks.federated_filter import UpdateFilter
from memberscope.attacks.federated_registry import FIXED
from memberscope.attacks.federated_updates import Cosine, LocalTrajectory
from memberscope.attacks.registry import get_attack
from memberscope.attacks.runner import AttackResult, run_attacks
from memberscope.errors import DataError, MemberscopeError
from memberscope.evidence import Evidence
from memberscope.federated.candidates import Candidates, others
from memberscope.federated.subject import Subject
from memberscope.federated.transcript import Transcript
from memberscope.knowledge import Knowledge
from memberscope.ladder import lowest_supported_fpr, strongest
from memberscope.statistics.clustered import clustered_estimates, effective_clients
from memberscope.statistics.evaluation import FPRS, evaluate
from memberscope.statistics.operating import nonmembers_needed
from memberscope.statistics.source import source_inference

SHOWN_CLIENTS = 50
_LEVEL = 0.05
_PROTECTED = "the protocol shows it sums of updates and no client's own"
SOURCE_RECORDS = 2000
"""Records whose client is sought, at most: every one is held against every client."""
WHOSE = ("fl-local-trajectory", "fl-cosine", "fl-fedmia-cosine", "fl-z-cosine", UpdateFilter.name)


BY_CLIENT = ("fl-global-loss", "fl-global-trajectory", "fl-global-loss-drop", FIXED[0])
BY_SERVER = ("fl-local-loss", "fl-local-trajectory", "fl-loss-drop", "fl-cosine", *FIXED)
"""What a malicious client, which sees global models alone, and a malicious server hold against the pairs."""


def describe(
    about: Subject,
    chosen: Candidates,
    evidence: Evidence,
    results: Sequence[AttackResult],
    *,
    confidence: float,
    seed: int,
) -> dict[str, Any]:
    """The federated page of the report, as plain values."""
    transcript, clients = about.transcript, about.clients
    ran = {r.name: r for r in results if r.scores is not None}
    best = next((ran[name] for name in reversed(FIXED) if name in ran), None)
    sees_clients = Knowledge.UPDATES in (evidence.rounds.knowledge if evidence.rounds else ())
    return {
        "view": transcript.view,
        "position": transcript.position,
        "tampered_by": list(transcript.tampered),
        "strategy": transcript.strategy,
        "rounds_recorded": len(transcript.rounds),
        "rounds_seen": [int(r) for r in evidence.rounds.features.rounds] if evidence.rounds else [],
        "clients": len(clients),
        "holders": len(about.holders),
        "effective_clients": effective_clients(chosen.client),
        "skew": about.skew(),
        "matching": chosen.matching,
        "population": len(chosen.population),
        "references": len(evidence.rounds.references) if evidence.rounds else 0,
        "problems": list(transcript.problems),
        "failures": _failures(transcript),
        "unseen": {"curious server": _PROTECTED} if transcript.only_sums else {},
        "privacy": dict(about.privacy),
        "seats": _seats(ran, chosen, confidence, seed),
        "per_client": None if best is None else _per_client(best, chosen, confidence, seed),
        "whose": _whose(about, chosen, evidence, confidence, seed) if sees_clients and len(clients) > 1 else None,
        "tampered": [],
    }


def _failures(transcript: Transcript) -> dict[str, Any]:
    """Replies that were errors, of those asked for, and the most frequent reason."""
    reasons = [reason for r in transcript.rounds for reason in transcript.failures(r).values()]
    asked = sum(len(transcript.asked(r)) for r in transcript.rounds)
    most = collections.Counter(reasons).most_common(1)
    return {"replies": len(reasons), "of": asked, "reason": most[0][0] if most else None}


def _seats(ran: dict[str, AttackResult], chosen: Candidates, confidence: float, seed: int) -> list[dict[str, Any]]:
    """Of each seat the attack fixed in advance: normalised and raw, with intervals over clients and records."""
    fprs = _supported(int((~chosen.member).sum()))
    rows = []
    for name in FIXED:
        if name not in ran:
            continue
        result = ran[name]
        assert result.scores is not None
        rng = seeds.generator(seed, "evaluation", f"clients {name}")
        auc, rates = clustered_estimates(
            result.scores, chosen.member, chosen.client, chosen.record, fprs=fprs, rng=rng, confidence=confidence
        )
        rows.append(
            {
                "seat": result.attack.adversary().name,
                "attack": name,
                "auc": asdict(auc),
                "tpr": [{"fpr": fpr, "estimate": asdict(e)} for fpr, e in zip(fprs, rates, strict=True)],
            }
        )
    return rows


def _per_client(best: AttackResult, chosen: Candidates, confidence: float, seed: int) -> dict[str, Any]:
    """Every client as a class of its own, under the attack fixed in advance of the strongest seat."""
    assert best.scores is not None
    evaluation = evaluate(
        best.scores,
        chosen.member,
        label=chosen.client,
        confidence=confidence,
        rng=seeds.generator(seed, "evaluation"),
    ).to_dict()
    clients = [
        {
            **entry,
            "name": f"client {entry['label']}",
            "too_few": too_few(entry["n_members"], entry["n_nonmembers"], len(evaluation["per_class"])),
        }
        for entry in evaluation["per_class"]
    ]
    few = np.isin(chosen.client, [entry["label"] for entry in clients if entry["too_few"]])
    ordered = sorted(clients, key=lambda c: (c["too_few"], -(c["auc"]["value"] or 0.0)))
    return {
        "attack": best.name,
        "title": best.attack.title,
        "auc": evaluation["auc"],
        "few": _together(best.scores[few], chosen.member[few], confidence, seed),
        "clients": ordered[:SHOWN_CLIENTS],
        "left_out": max(0, len(ordered) - SHOWN_CLIENTS),
    }


def too_few(members: int, nonmembers: int, clients: int) -> bool:
    """Whether no ranking of so few records could be told from guessing, allowing for so many clients (at 5 %)."""
    return clients / math.comb(members + nonmembers, members) > _LEVEL


def _together(scores: Scores, member: NDArray[np.bool_], confidence: float, seed: int) -> dict[str, Any] | None:
    """Clients with too few records to be judged one by one, as one."""
    if not member.any() or member.all():
        return None
    rng = seeds.generator(seed, "evaluation", "few")
    found = evaluate(scores, member, confidence=confidence, rng=rng)
    return {"auc": asdict(found.auc), "n_members": int(member.sum()), "n_nonmembers": int((~member).sum())}


def _whose(about: Subject, chosen: Candidates, evidence: Evidence, confidence: float, seed: int) -> dict[str, Any]:
    """Members of a client against members of the others, and which client a member is of."""
    rng = seeds.generator(seed, "evaluation", "whose")
    try:
        pairs = others(chosen, about.labels, rng)
    except DataError as error:  # each class is one client's: then it is known whose a record is
        source = _source(about, chosen, evidence, confidence, rng)
        return {"matching": "", "pairs": 0, "attacks": [], "reason": error.problem, "source": source}
    place = dict(zip(chosen.record.tolist(), evidence.rounds.record.tolist(), strict=True)) if evidence.rounds else {}
    asked = _asking(evidence, pairs.client, np.array([place[r] for r in pairs.record.tolist()]))
    fprs = _supported(int((~pairs.member).sum()))
    rows = []
    for name in WHOSE:
        attack = get_attack(name)
        try:
            scores = score_records(attack, asked, pairs.member, rng=rng)
        except MemberscopeError:  # too few clients for a comparison: told where the attacks are listed
            continue
        auc, rates = clustered_estimates(
            scores, pairs.member, pairs.client, pairs.record, fprs=fprs, rng=rng, confidence=confidence
        )
        told = [{"fpr": fpr, "estimate": asdict(e)} for fpr, e in zip(fprs, rates, strict=True)]
        rows.append({"attack": name, "title": attack.title, "auc": asdict(auc), "tpr": told})
    return {
        "matching": pairs.matching,
        "pairs": len(pairs.record),
        "attacks": rows,
        "source": _source(about, chosen, evidence, confidence, rng),
    }


def _source(
    about: Subject, chosen: Candidates, evidence: Evidence, confidence: float, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Accuracy of naming the client, by three scores."""
    assert evidence.rounds is not None
    members = rng.permutation(np.flatnonzero(chosen.member))[:SOURCE_RECORDS]
    clients, owner = np.unique(chosen.client[members], return_inverse=True)
    if len(clients) < 2:
        return []
    records = evidence.rounds.record[members]
    trained = about.member[:, None] & (about.owner[:, None] == clients)
    counts = np.stack([np.bincount(about.labels[mine], minlength=len(about.classes)) for mine in trained.T])
    asked = _asking(evidence, np.repeat(clients, len(records)), np.tile(records, len(clients)))
    rows = []
    for attack, paper in (
        (raw(LocalTrajectory), "Hu et al., Source inference attacks, ICDM 2021: the client whose model has least loss"),
        (raw(Cosine), "the client whose update is nearest to the record's gradient"),
        (UpdateFilter, "the client with the highest score of the matched filter"),
    ):
        try:
            scores = attack().score(asked).reshape(len(clients), len(records))
        except MemberscopeError:
            continue
        found = source_inference(
            scores, owner, about.labels[chosen.record[members]], counts, rng=rng, confidence=confidence
        )
        rows.append(
            {
                "attack": attack.name,
                "how": paper,
                "accuracy": asdict(found.accuracy),
                "over_clients": asdict(found.over_clients),
                "mean_recall": asdict(found.mean_recall),
                "chance": found.chance,
                "by_class": found.by_class,
                "recall": [
                    {"client": int(k), "records": size, "estimate": asdict(e)}
                    for k, (size, e) in zip(clients[:SHOWN_CLIENTS], found.recall, strict=False)
                ],
            }
        )
    return rows


def of_tampered(
    about: Subject,
    honest: Subject,
    pairs: Candidates,
    evidence: Evidence,
    before: Evidence | None,
    *,
    confidence: float,
    seed: int,
    folds: int,
    federations: int,
) -> dict[str, Any]:
    """What a malicious party achieves on the pairs that it went for, and the damage to accuracy that shows it.

    Parameters
    ----------
    about, honest
        The federation that it took part in, and the one without it.
    pairs
        Those that it went for.
    evidence, before
        What is in hand about them with it; and without it, where that is known.
    confidence
        Of the intervals, which allow for the choice of the best attack on the best of so many `federations`.
    seed, folds
        Of the audit.
    federations
        How many with a malicious party are audited.
    """
    party = list(about.transcript.tampered) or ["undeclared"]
    names = BY_CLIENT if all(text.startswith(("ascent-client", "client")) for text in party) else BY_SERVER
    held = evidence.rounds.knowledge | evidence.knowledge if evidence.rounds else evidence.knowledge
    attacks = [get_attack(n) for n in names if get_attack(n).needs <= held]
    fpr = lowest_supported_fpr(int((~pairs.member).sum()))
    choices = max(1, len(attacks) * federations)

    def found(seen: Evidence) -> dict[str, Any]:
        results = run_attacks(
            attacks,
            seen,
            pairs.member,
            class_names=about.classes,
            seed=seed,
            folds=folds,
            confidence=1 - (1 - confidence) / choices,
        )
        best, by_auc = strongest(results, fpr), strongest(results, None)
        if best is None or best.evaluation is None or by_auc is None or by_auc.evaluation is None:
            return {"tpr": None, "auc": None}
        tpr = None if fpr is None else best.evaluation.tpr_at(fpr).tpr
        return {
            "tpr": fpr and {"attack": best.name, "fpr": fpr, "estimate": None if tpr is None else asdict(tpr)},
            "auc": {"attack": by_auc.name, **asdict(by_auc.evaluation.auc)},
        }

    return {
        "party": party,
        "clients": [int(k) for k in np.unique(pairs.client)],
        "pairs": len(pairs.record),
        "accuracy": {"tampered": about.accuracy(), "honest": honest.accuracy()},
        "corrected_for": choices,
        **found(evidence),
        "honest": None if before is None else found(before),
    }


def malicious_row(tampered: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The last row of the ladder: the strongest of the federations with a malicious party, by AUC."""
    known = [t for t in tampered if t["auc"] is not None]
    if not known:
        return None
    best = max(known, key=lambda t: float(t["auc"]["value"]))
    auc = {k: v for k, v in best["auc"].items() if k != "attack"}
    tpr = best["tpr"] and {"fpr": best["tpr"]["fpr"], "estimate": best["tpr"]["estimate"]}
    return {
        "status": "measured",
        "attack": (best["tpr"] or best["auc"])["attack"],
        "tpr": tpr,
        "auc_attack": best["auc"]["attack"],
        "auc": auc,
        "fixed": False,
        "corrected_for": best["corrected_for"],
        "confidence": None,
        "party": best["party"],
    }


def targeted(about: Subject) -> list[int]:
    """The clients that were sent a model of their own."""
    transcript, found = about.transcript, set()
    for number in transcript.rounds:
        sent = transcript.sent(number)
        for client in transcript.asked(number):
            own = transcript.sent_to(number, client)
            if any(not np.array_equal(own[name], sent[name]) for name in sent):
                found.add(client)
    return sorted(found)


def _asking(evidence: Evidence, client: Any, record: Any) -> Evidence:
    """The same evidence about other pairs; answers of the global model are not looked at by attacks on rounds."""
    assert evidence.rounds is not None
    rounds = replace(evidence.rounds, client=client, record=record)
    blank = np.zeros((1, len(client), evidence.n_classes), np.float32)
    return replace(evidence, logits=blank, labels=rounds.labels, rounds=rounds)


def _supported(n_nonmembers: int) -> list[float]:
    return [fpr for fpr in FPRS if n_nonmembers >= nonmembers_needed(fpr)]
