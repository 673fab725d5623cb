"""Whether a recording and the records that are said to belong to it fit each other.

Nothing on the wire says which record a client trained on: whoever asks for an audit says it. A mistake there (clients
numbered otherwise, inputs normalised otherwise, a split drawn anew) looks like a federation that gives nothing away.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from memberscope.checks import Answer
from memberscope.federated.candidates import Candidates
from memberscope.federated.subject import Subject
from memberscope.knowledge import Knowledge
from memberscope.round_features import Floats
from memberscope.rounds import Rounds

_TOLERANCE = 0.02
_NO_BETTER = 1.5
_UNLIKE = 0.3
_SURE = 5.0
"""Standard errors by which another client's update must fit better, before a client counts as mistaken for it."""


def doubts(about: Subject, chosen: Candidates, rounds: Rounds) -> Answer:
    """What speaks against the claim of who trained on what: the answer of check MIA018."""
    problems: list[str] = []
    cautions: list[str] = []
    numbers: dict[str, Any] = {}
    judges = ((_differences, problems), (_mistaken, problems), (_counts, cautions), (_guessing, cautions))
    for judge, doubted in judges:
        told, more = judge(about, chosen, rounds)
        doubted += told
        numbers |= more
    if not problems and not cautions:
        return "passed", "Nothing speaks against the claim of who trained on which record.", numbers
    return "problem" if problems else "caution", " ".join([*problems, *cautions]), numbers


_Told = tuple[list[str], dict[str, Any]]


def _differences(about: Subject, chosen: Candidates, rounds: Rounds) -> _Told:
    """Replies that are no models but what was added to them."""
    transcript = about.transcript
    if not transcript.keeps_models or transcript.only_sums or not transcript.rounds:
        return [], {}
    first = transcript.rounds[0]
    alike = [
        _cosine(transcript.sent_to(first, client), transcript.received(first, client))
        for client in transcript.clients_of(first)[:3]
    ]
    if not alike or not np.isfinite(alike).all():
        return [], {}
    numbers = {"cosine_of_reply_and_model": float(np.median(alike))}
    if np.median(alike) > _UNLIKE:
        return [], numbers
    return [
        f"Replies have a cosine of {np.median(alike):.2g} with the model that was sent: they look like differences to "
        "it and not like models. What is asked of the clients' models is then wrong."
    ], numbers


def _cosine(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Of the floating arrays of two models."""
    names = [n for n, a in one.items() if a.dtype.kind == "f" and n in other and other[n].shape == a.shape]
    vectors = [np.concatenate([arrays[n].ravel() for n in names]).astype(np.float64) for arrays in (one, other)]
    length = float(np.prod([np.linalg.norm(v) for v in vectors]))
    return float(vectors[0] @ vectors[1]) / length if length else np.nan


def _mistaken(about: Subject, chosen: Candidates, rounds: Rounds) -> _Told:
    """Clients whose claimed records another client's updates fit better than their own."""
    if Knowledge.UPDATES not in rounds.knowledge or not len(rounds.population):
        return [], {}
    cosines, clients = _cosines(rounds)
    if len(clients) < 2:
        return [], {}
    found: dict[int, int] = {}
    asked = [int(k) for k in np.unique(chosen.client) if k in clients]
    for client in asked:
        rows = rounds.record[chosen.member & (chosen.client == client)]
        own = clients.index(client)
        better = cosines[:, rows] - cosines[own, rows]
        spread = np.maximum(better.std(axis=1, ddof=1), 1e-12) if len(rows) > 1 else np.full(len(clients), np.inf)
        sure = np.nan_to_num(better.mean(axis=1) / spread * np.sqrt(len(rows)), nan=-np.inf)
        sure[own] = -np.inf
        if sure.max() > _SURE:
            found[client] = clients[int(sure.argmax())]
    numbers = {"clients_that_fit_another": len(found), "clients_compared": len(asked)}
    if 2 * len(found) < len(asked):
        return [], numbers
    client, other = next(iter(found.items()))
    return [
        f"The updates of other clients fit the claimed records better than their own in {len(found)} of {len(asked)} "
        f"clients (the records of client {client} are fitted best by client {other}): the clients are numbered "
        "otherwise, or hold other records, than was said."
    ], numbers


def _cosines(rounds: Rounds) -> tuple[Floats, list[int]]:
    """Mean over rounds of the cosine of each client's update with each record's gradient, less its level for the class.

    float64 [K, N], and the K clients. The level is that of records known to be nobody's.
    """
    clients = sorted({int(k) for _, some, _ in rounds.each_round("cosine") for k in some})
    total, count = np.zeros((len(clients), rounds.features.n_records)), np.zeros((len(clients), 1))
    for _, some, values in rounds.each_round("cosine"):
        places = [clients.index(int(k)) for k in some]
        total[places] += values
        count[places] += 1
    mean = total / np.maximum(count, 1)
    labels, known = rounds.features.labels, rounds.population
    for label in np.unique(labels):
        of_class = known[labels[known] == label]
        if len(of_class):
            mean[:, labels == label] -= mean[:, of_class].mean(axis=1, keepdims=True)
        else:
            mean[:, labels == label] = 0.0
    return mean, clients


def _counts(about: Subject, chosen: Candidates, rounds: Rounds) -> _Told:
    """Clients that said they trained on another number of examples than is claimed of them."""
    transcript = about.transcript
    said: dict[int, list[float]] = {}
    for number in transcript.rounds if not transcript.only_sums else ():
        for client in transcript.clients_of(number):
            if (examples := transcript.num_examples(number, client)) is not None:
                said.setdefault(client, []).append(examples)
    claimed = np.bincount(about.owner[about.member], minlength=int(about.owner.max()) + 1)
    both = {k: (float(np.median(v)), int(claimed[k])) for k, v in said.items() if k < len(claimed) and claimed[k]}
    ratios = np.array([examples / records for examples, records in both.values()])
    if not len(ratios) or all(examples == 1 for examples, _ in both.values()):  # weights, and no numbers of examples
        return [], {}
    if np.ptp(ratios) < _TOLERANCE and abs(ratios[0] - round(ratios[0])) < _TOLERANCE:
        return [], {}  # as claimed, or counted once an epoch
    client = max(both, key=lambda k: abs(np.log(max(both[k][0], 1e-9) / both[k][1])))
    examples, records = both[client]
    return [
        f"Client {client} said that it trained on {examples:,.0f} examples, and {records:,} records are claimed to be "
        "its members."
    ], {"examples_said": examples, "members_claimed": records}


def _guessing(about: Subject, chosen: Candidates, rounds: Rounds) -> _Told:
    """Members to which the models that were trained on them give no more than guessing would."""
    seen = rounds.take(chosen.member)
    phi = seen.own("phi") if Knowledge.UPDATES in rounds.knowledge else seen.next_phi()
    likely = float(np.nanmean(1 / (1 + np.exp(-phi))[-1]))
    chance = 1 / len(about.classes)
    if likely > _NO_BETTER * chance:
        return [], {"probability_of_members": likely}
    return [
        f"The models give the true class of their members a probability of {likely:.3g} on average, and guessing gives "
        f"{chance:.3g}: they learnt next to nothing, or the records reach them otherwise than in training "
        "(normalisation, order of the arrays)."
    ], {"probability_of_members": likely}
