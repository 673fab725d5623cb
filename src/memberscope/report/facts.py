"""For engineers: the model, the records, settings, cost, and what else a reader needs to judge or repeat a run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from memberscope.report import wording
from memberscope.report.document import Cell, Results, Table, row_of_answer

PICTURE_BYTES = 300_000
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")


def target_facts(results: Results) -> Table | None:
    """What was audited: accuracies, gap, size and origin of the model."""
    target = results.get("target")
    if not target:
        return None
    gap = target.get("generalization_gap")
    rows = [
        ("Model", target.get("model")),
        ("Origin", target.get("origin")),
        ("Parameters", wording.count(target.get("parameters"))),
        ("Epochs", wording.count(target.get("epochs"))),
        ("Defenses", _defenses(target)),
        *([("Differential privacy", wording.guarantee(target["privacy"]))] if target.get("privacy") else []),
        ("Accuracy on members (training)", wording.percent(target.get("train_acc"))),
        ("Accuracy on validation records", wording.percent(target.get("val_acc"))),
        ("Accuracy on non-members (test)", wording.percent(target.get("test_acc"))),
        ("Generalisation gap", f"{wording.significant(100 * gap)} points" if wording.known(gap) else wording.MISSING),
        ("Device and precision", ", ".join(str(target[k]) for k in ("device", "precision") if target.get(k))),
        ("Training speed", _speed(target.get("images_per_second"))),
        ("SHA-256 of the weights", target.get("weights_sha256")),
    ]
    return _facts(rows)


def _defenses(target: Mapping[str, Any]) -> str:
    named = target.get("defenses", [])
    return "not known: it was trained elsewhere" if named is None else ", ".join(named) or "none"


def reference_facts(results: Results) -> tuple[Table, list[str]] | None:
    """The reference models, and what a reader must know about them."""
    told = results.get("references")
    if not told:
        return None
    rows = [
        ("Reference models", wording.count(told["models"])),
        ("Trained in this run", wording.count(told["trained_in_this_run"])),
        ("Records that each was trained on", wording.count(told["records_each"])),
        ("Accuracy on its members, mean", wording.percent(told["accuracy_members"])),
        ("Accuracy on the other records, mean", wording.percent(told["accuracy_others"])),
        ("Folder", told["folder"]),
        ("Time", wording.duration(told["seconds"]) if told["trained_in_this_run"] else "trained earlier"),
        ("What so many support", told["claim"]),
    ]
    return _facts(rows), list(told["notes"])


def data_facts(results: Results) -> Table:
    """The records and how they were divided."""
    data, records = results.get("dataset") or {}, results.get("records") or {}
    mix = records.get("class_mix_difference")
    verified = {"True": "yes, by checksum", "False": "no: taken on the user's word"}.get(
        str(data.get("verified")), "does not apply"
    )
    rows = [
        ("Data set", data.get("name")),
        ("Source", data.get("source")),
        ("Files verified", verified),
        ("Fingerprint", data.get("fingerprint")),
        ("Records in the pool", wording.count(data.get("n_records"))),
        ("Classes", wording.count(data.get("n_classes"))),
        ("Shape of a record", " × ".join(map(str, data.get("input_shape") or [])) or wording.MISSING),
        ("Protocol", records.get("protocol")),
        ("Members judged", wording.count(records.get("members"))),
        ("Non-members judged", wording.count(records.get("nonmembers"))),
        ("Set apart for validation", wording.count(records.get("validation"))),
        ("Largest difference in class shares", wording.percent(mix)),
    ]
    return _facts(rows)


def settings_table(content: Mapping[str, Any] | None, header: Sequence[str]) -> Table | None:
    """Nested settings as dotted keys and values."""
    if not content:
        return None
    flat = list(_flatten(content))
    return Table(header, [[Cell(key), Cell(value)] for key, value in flat], numeric=False)


def cost_table(results: Results) -> Table | None:
    """Seconds of each part of the run."""
    seconds = (results.get("run") or {}).get("seconds") or {}
    rows = [[Cell(part), Cell(wording.duration(spent))] for part, spent in seconds.items()]
    return Table(("Part", "Time"), rows) if rows else None


def files_table(results: Results) -> Table | None:
    """What else lies in the run folder."""
    rows = [
        [Cell(f["name"]), Cell(wording.size(f.get("bytes"))), Cell(f.get("sha256") or "", "", "code")]
        for f in results.get("files") or []
    ]
    return Table(("File", "Size", "SHA-256"), rows, numeric=False) if rows else None


def cards(results: Results) -> list[dict[str, str]]:
    """The card of every attack that was asked for: formula, cost, traps, paper."""
    told = []
    for attack in results.get("attacks", []):
        card = attack.get("card") or {}
        told.append({"name": attack["name"], "title": attack["title"], **{k: str(card.get(k) or "") for k in card}})
    return told


def references(results: Results) -> list[tuple[str, str]]:
    """Papers of the cards, each once, with the attacks that implement them."""
    users: dict[str, list[str]] = {}
    for card in cards(results):
        for paper in filter(None, (p.strip() for p in card.get("paper", "").split(";"))):
            users.setdefault(paper, []).append(card["name"])
    return [(paper, ", ".join(names)) for paper, names in sorted(users.items())]


def pictures(results: Results) -> dict[str, Any]:
    """Pictures of the most exposed records, as many as keep the file small."""
    shown, left_out, used = [], 0, 0
    for record in (results.get("exposed") or {}).get("top_records") or []:
        encoded = record.get("png_base64") or ""
        fits = bool(_BASE64.fullmatch(encoded)) and used + len(encoded) <= PICTURE_BYTES
        if encoded and not fits:
            left_out += 1
            continue
        used += len(encoded)
        truth = "member" if record.get("member") else "non-member"
        shown.append(
            {
                "png": encoded,
                "class": wording.shorten(str(record.get("class", "")), 30),
                "index": record.get("index"),
                "score": wording.significant(record.get("score")),
                "truth": truth,
                "posterior": wording.percent(record.get("posterior")) if record.get("posterior") is not None else "",
                "separation": _with_ends(record.get("separation")),
            }
        )
    return {"shown": shown, "left_out": left_out}


def options(results: Results) -> list[tuple[str, str]]:
    """What may be done about exposure, each with what this run says about it and nothing that it does not."""
    target = results.get("target") or {}
    gap = target.get("generalization_gap")
    told = []
    if wording.known(gap):
        told.append(
            (
                "Fit the training records less closely",
                "Fewer epochs, early stopping, weight decay, augmentation. The gap between training and test accuracy "
                f"is {wording.significant(100 * gap)} points here; attacks of the kinds run here feed on it.",
            )
        )
    if ladder := _labels_only(results):
        told.append(("Answer with the class only, not with probabilities", ladder))
    if sums := _sums_only(results):
        told.append(("Show the server sums of updates only (secure aggregation)", sums))
    told.append(
        (
            "Train with differential privacy",
            "The only option that bounds every attack, tested or not, at a price in accuracy. " + _promised(results),
        )
    )
    told.append(
        (
            "Narrow who may query",
            "Each row of the exposure ladder is an adversary; who is given access decides which rows are real for you.",
        )
    )
    return told


def _promised(results: Results) -> str:
    promised = (results.get("target") or {}).get("privacy")
    told = [f"Here: {wording.guarantee(promised)}."] if promised else []
    to_clients = ((results.get("federation") or {}).get("privacy") or {}).get("clients")
    if to_clients:
        told.append(f"Here, for a client: {wording.client_guarantee(to_clients)}.")
    return " ".join(told) or "Not measured here."


def _measured(results: Results) -> dict[str, Mapping[str, Any]]:
    return {r["adversary"]: r for r in results.get("ladder", []) if r["status"] == "measured"}


def _labels_only(results: Results) -> str:
    """Of a federation held against the stranger: who takes part has the model itself."""
    rows = _measured(results)
    only = rows.get("stranger, labels only")
    answered = rows.get("stranger") if results.get("federation") else row_of_answer(results)
    if not only or not answered or answered["adversary"] == only["adversary"]:
        return ""
    return f"The ladder shows what remains for an adversary who sees labels only: {_against(only, answered)}."


def _sums_only(results: Results) -> str:
    rows = _measured(results)
    sums, single = rows.get("curious server behind secure aggregation"), rows.get("curious server")
    if not sums or not single:
        return ""
    return f"What remains for a server that sees sums: {_against(sums, single)}; the model is the same."


def _against(less: Mapping[str, Any], more: Mapping[str, Any]) -> str:
    return (
        f"AUC {wording.estimate_text(less['auc'])}, against {wording.estimate_text(more['auc'])} of the "
        f"{more['adversary']}"
    )


def _with_ends(values: Any) -> str:
    if not values or not all(map(wording.known, values)):
        return ""
    d, low, high = map(wording.significant, values)
    return f"{d} ({low} to {high})"


def _speed(images_per_second: Any) -> str:
    return (
        f"{wording.significant(images_per_second)} records/s" if wording.known(images_per_second) else wording.MISSING
    )


def _facts(rows: Sequence[tuple[str, Any]]) -> Table:
    told = [[Cell(name), Cell(str(value) if value not in (None, "") else wording.MISSING)] for name, value in rows]
    return Table(("", ""), told, numeric=False)


def _flatten(content: Any, prefix: str = "") -> Sequence[tuple[str, str]]:
    if isinstance(content, Mapping):
        return [
            pair
            for key, value in content.items()
            for pair in _flatten(value, f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(content, list | tuple):
        return [(prefix, ", ".join(map(str, content)) or "none")]
    if content is None or isinstance(content, bool):
        return [(prefix, "not set" if content is None else "yes" if content else "no")]
    return [(prefix, str(content))]
