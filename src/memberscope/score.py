"""Scoring answers that were computed elsewhere: the audit without data, model or training."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memberscope import document, environment, membership
from memberscope.answers import Answers, as_member, read_answers
from memberscope.attacks.runner import check_names, run_attacks, select
from memberscope.checks import Context, check_codes, run_checks
from memberscope.config import check_setting, to_flags
from memberscope.errors import ConfigError
from memberscope.events import Events
from memberscope.evidence import from_logits, from_probabilities
from memberscope.pipeline import Clock, beside_references, finish, judge_records, run_facts, scarcer_side
from memberscope.policy import read_policy
from memberscope.result import Audit
from memberscope.statistics.blind import label_p_value

_DEFAULTS = {"attacks": ["auto"], "folds": 5, "confidence": 0.95, "prior": 0.5, "seed": 0}


def score(
    file: str | Path | None = None,
    /,
    *,
    logits: NDArray[np.floating] | None = None,
    probabilities: NDArray[np.floating] | None = None,
    labels: NDArray[np.integer] | None = None,
    member: NDArray[np.generic] | None = None,
    class_names: tuple[str, ...] | None = None,
    attacks: tuple[str, ...] | str = ("auto",),
    target: int | None = None,
    folds: int = 5,
    confidence: float = 0.95,
    prior: float = 0.5,
    seed: int = 0,
    ignore: tuple[str, ...] = (),
    policy: str | Path | None = None,
    events: Events | None = None,
    **references: Any,
) -> Audit:
    """Audit answers that were computed elsewhere, in any framework, without training.

    Parameters
    ----------
    file
        .npz (keys logits or probabilities, labels, member) or .csv (columns z0... or p0..., label, member); the
        folder of many models that the LiRA code of Carlini et al. or ML Privacy Meter left; or the arrays themselves:
    logits, probabilities
        float [N, C], one of the two.
    labels, member
        int [N] in 0..C-1; bool or 0/1 [N].
    target
        Of a folder of many models: which one plays the target.
    references
        reference_logits float [K, N, C] (or [K, A, N, C], with logits [A, N, C]) and reference_membership bool [K, N].

    Raises
    ------
    EvidenceError
        Answers that cannot be used; the message says what was expected.
    """
    events = events or Events()
    names = (attacks,) if isinstance(attacks, str) else tuple(attacks)
    settings = {"attacks": list(names), "folds": folds, "confidence": confidence, "prior": prior, "seed": seed}
    for key in ("folds", "confidence", "prior", "seed"):
        check_setting(key, settings[key])
    check_names(names)
    check_codes(ignore)
    loaded_policy = None if policy is None else read_policy(Path(policy))
    clock = Clock()
    events.stage("Reading the answers")
    answers = (
        read_answers(Path(file), target=target)
        if file is not None
        else _given(logits, probabilities, labels, member, references)
    )
    for note in answers.notes:
        events.note(note)
    classes = class_names or answers.class_names
    evidence, truth = answers.evidence, answers.member
    clock.lap("data")
    events.stage("Attacking")
    results = run_attacks(
        select(names, evidence),
        evidence,
        truth,
        class_names=classes,
        seed=seed,
        folds=folds,
        confidence=confidence,
        on_start=events.attack,
    )
    clock.lap("attacks")
    everyone = membership.Split(truth, np.zeros(len(truth), bool), np.ones(len(truth), bool))
    calibrated, risk = judge_records(results, evidence, truth, prior=prior, seed=seed, confidence=confidence)
    clock.lap("records")
    mix = membership.class_mix_difference(evidence.labels, everyone, evidence.n_classes)
    context = Context(
        results=results,
        member=truth,
        class_mix_difference=mix,
        label_p_value=label_p_value(evidence.labels, truth, evidence.n_classes),
        blind=None,
        duplicates=None,
        no_records="Only answers were given: without the records themselves this cannot be checked.",
        randomised=False,
        reference_counts=scarcer_side(evidence),
        reference_accuracy=beside_references(evidence, truth),
    )
    findings = run_checks(context, ignore)
    name = Path(answers.source).name
    flags = to_flags({"target": target, **settings, "ignore": ignore}, _DEFAULTS)
    command = "" if file is None else f"memberscope score {shlex.quote(name)} {flags}".rstrip()
    assembled = document.assemble(
        kind="score",
        dataset={
            "name": Path(name).stem.removesuffix(".csv"),
            "source": f"answers computed elsewhere ({name})",
            "verified": None,
            "fingerprint": None,
            "n_records": len(truth),
            "n_classes": evidence.n_classes,
            "classes": list(classes),
            "input_shape": None,
        },
        records={
            "protocol": "given",
            "members": int(truth.sum()),
            "nonmembers": int((~truth).sum()),
            "validation": 0,
            "class_mix_difference": mix,
        },
        target=None,
        results=results,
        calibrated=calibrated,
        risk=risk,
        member=truth,
        findings=findings,
        settings=settings,
        environment=environment.describe(),
        run=run_facts(clock, command, seed),
        policy=None,
        top_records=None,
        reproduce=[command] if command else [],
        confidence=confidence,
        seed=seed,
    )
    return finish(
        assembled, results, findings, np.arange(len(truth)), evidence, truth, loaded_policy, confidence, risk=risk
    )


def _given(
    logits: NDArray[np.floating] | None,
    probabilities: NDArray[np.floating] | None,
    labels: NDArray[np.integer] | None,
    member: NDArray[np.generic] | None,
    references: dict[str, Any],
) -> Answers:
    unknown = sorted(set(references) - {"reference_logits", "reference_membership"})
    if unknown:
        raise ConfigError(f"score() has no argument {unknown[0]!r}", "see help(memberscope.score)")
    if "reference_logits" in references and np.ndim(references["reference_logits"]) == 3:
        references["reference_logits"] = np.asarray(references["reference_logits"])[:, None]
    if (logits is None) == (probabilities is None) or labels is None or member is None:
        raise ConfigError("score() needs a file, or logits or probabilities with labels and member", "see help(score)")
    if logits is not None:
        evidence = from_logits(logits, labels, **references)
    else:
        assert probabilities is not None
        evidence = from_probabilities(probabilities, labels, **references)
    names = tuple(map(str, range(evidence.n_classes)))
    return Answers(evidence, as_member(np.asarray(member), evidence.n_records, "arrays"), "arrays", names)
