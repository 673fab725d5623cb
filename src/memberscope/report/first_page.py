"""The first page of the report: for the reader who decides, without formulas and without unexplained abbreviations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memberscope.report import svg, wording
from memberscope.report.document import Results, headline, row_of_answer, strictest, thing
from memberscope.report.svg_parts import Scale

QUESTIONS = {
    "stranger, labels only": "sees only which class this model answers",
    "stranger": "sees the probabilities that this model answers",
    "informed stranger": "sees the probabilities that this model answers, and knows of some other {things} "
    "whether they were used,",
    "insider": "can query this model and has similar {things} to train models of their own",
    "thief": "holds the file of this model",
    "curious client": "takes part in the federated training of this model",
    "curious server behind secure aggregation": "runs the federated training of this model and sees only sums",
    "curious server": "runs the federated training of this model and sees each client's updates",
}
_VERDICTS = {
    "within": ("✓", "Within the policy"),
    "exceeds": ("✕", "Exceeds the policy"),
    "cannot tell": ("?", "This audit cannot tell"),
}
_METRICS = {"tpr": "members picked out", "auc": "area under the ROC curve", "advantage": "advantage over guessing"}
SIGNIFICANT = 0.05
NAME = 40
"""Longest name on the identity strip; the whole one stands further below."""


def first_page(results: Results) -> dict[str, Any]:
    """Everything that the template of page 1 prints."""
    checks = results.get("checks", [])
    return {
        "identity": _identity(results),
        "problems": [{**c, "brief": _brief(c["text"], 260)} for c in checks if c["status"] == "problem"],
        "question": question(results),
        "answer": answer(results),
        "ladder": _ladder(results),
        "verdict": _verdict(results.get("policy")),
        "exposed": _exposed(results),
        "not_tested": results.get("not_tested", []),
        "soundness": _soundness(checks),
    }


def question(results: Results) -> str:
    """The question of the audit as one sentence, asked for the adversary of the headline attack."""
    things, best = thing(results), headline(results)
    able = QUESTIONS.get(best["adversary"]) if best else None
    if best and able is None:
        sees = {row["adversary"]: row["sees"] for row in results.get("ladder", [])}
        able = f"sees {sees[best['adversary']]}" if sees.get(best["adversary"]) else None
    someone = f"someone who {able.format(things=things + 's')}" if able else "someone who uses this model"
    article = "an" if things == "image" else "a"
    return f"Could {someone} tell whether {article} {things} was used to train it?"


def answer(results: Results) -> dict[str, Any]:
    """The answer in natural frequencies, with its interval and with what guessing would achieve."""
    things, best = thing(results) + "s", headline(results)
    if best is None:
        return {"kind": "none", "things": things}
    evaluation = best["evaluation"]
    row = row_of_answer(results)
    point = strictest(evaluation)
    auc = row.get("auc") or evaluation["auc"]
    corrected = row.get("corrected_for") or 1
    told = {
        "kind": "auc",
        "things": things,
        "thing": thing(results),
        "attack": best["title"],
        "level": wording.level(evaluation.get("confidence")),
        "corrected_for": corrected if corrected > 1 else 0,
        "fixed": bool(results.get("headline_fixed")),
        "pairs_reading": _against_guessing(auc, 0.5),
        "n_members": wording.count(evaluation["n_members"]),
        "n_nonmembers": wording.count(evaluation["n_nonmembers"]),
        **_pairs(auc),
    }
    told["trainings"] = _trainings(results, None if point is None else point["fpr"])
    if point is None:
        return told
    fpr, tpr = point["fpr"], (row.get("tpr") or {}).get("estimate") or point["tpr"]
    out_of = wording.denominator(fpr)
    return told | {
        "kind": "frequency",
        "out_of": f"{out_of:,}",
        "found": wording.frequency(tpr["value"], out_of),
        "interval": wording.frequency_interval(tpr, out_of),
        "guess": wording.frequency(fpr, out_of),
        "reading": _against_guessing(tpr, fpr),
        "times": wording.significant(tpr["value"] / fpr) if wording.known(tpr.get("value")) else wording.MISSING,
        "counts": wording.of(point.get("true_positives"), evaluation["n_members"]),
        "false_counts": wording.of(point.get("false_positives"), evaluation["n_nonmembers"]),
    }


def _trainings(results: Results, fpr: float | None) -> dict[str, str] | None:
    """What the same attack did on all targets: their number, and the mean with its interval."""
    several = results.get("targets")
    spread = ((several or {}).get("attacks") or {}).get(results.get("headline") or "")
    if not several or not spread:
        return None
    told = {
        "number": wording.count(several["number"]),
        "pairs": wording.significant(100 * spread["auc"]["mean"]["value"]),
        "pairs_interval": _hundredfold(spread["auc"]["mean"]),
        "found": "",
    }
    rates = [one for one in spread["tpr"] if one["fpr"] == fpr]
    if not rates or fpr is None:
        return told
    out_of, values = wording.denominator(fpr), rates[0]["values"]
    return told | {
        "found": wording.frequency(rates[0]["mean"]["value"], out_of),
        "interval": wording.frequency_interval(rates[0]["mean"], out_of),
        "each": wording.listing([wording.frequency(value, out_of) for value in values]) if len(values) <= 5 else "",
    }


def _against_guessing(estimate: Mapping[str, Any], chance: float) -> str:
    low, high = estimate.get("low"), estimate.get("high")
    if not (wording.known(low) and wording.known(high)):
        return "unknown"
    if low > chance:
        return "better"
    return "worse" if high < chance else "open"


def _hundredfold(estimate: Mapping[str, Any]) -> str:
    ends = {k: 100 * estimate[k] if wording.known(estimate.get(k)) else None for k in ("low", "high")}
    return wording.interval(ends)


def _identity(results: Results) -> list[tuple[str, str, str]]:
    run, data, records = results.get("run", {}), results.get("dataset") or {}, results.get("records") or {}
    target = results.get("target")
    if target:
        sha = target.get("weights_sha256")
        name = wording.shorten(str(target.get("model") or wording.MISSING), NAME)
        model = (name, f"SHA-256 {sha[:16]}…" if sha else "")
    else:
        model = ("answers computed elsewhere", "the model itself was not seen")
    verified = {"True": "checksums verified", "False": "files not verified"}.get(str(data.get("verified")), "")
    protocol = {
        "holdout": "training part against test part",
        "random-half": "each record a member with probability 1/2",
        "given": "membership given by the user",
        "coin": "of each client's records a coin chose",
        "class-matched": "as many of each client and class as non-members",
    }.get(records.get("protocol", ""), "")
    created = (run.get("created") or wording.MISSING).replace("T", " ")
    return [
        ("Model", *model),
        ("Data", wording.shorten(str(data.get("name") or wording.MISSING), NAME), verified),
        ("Used in training (members)", wording.count(records.get("members")), protocol),
        ("Not used (non-members)", wording.count(records.get("nonmembers")), ""),
        ("Audited", created[:16], created[16:].lstrip(":0123456789").replace("+00:00", "UTC")),
        ("Tool and run", f"memberscope {run.get('tool_version', '')}".strip(), run.get("id", "")),
    ]


def _ladder(results: Results) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    titles = {a["name"]: a["title"] for a in results.get("attacks", [])}
    measured = [r for r in results.get("ladder", []) if r["status"] == "measured"]
    fprs = sorted({r["tpr"]["fpr"] for r in measured if (r.get("tpr") or {}).get("estimate")})
    fpr = fprs[0] if fprs else None
    out_of = wording.denominator(fpr) if fpr else 10_000
    scale = Scale(1, out_of, 6, 154, log=True)
    for row in results.get("ladder", []):
        shown: dict[str, Any] = {"adversary": row["adversary"], "sees": row["sees"], "measured": row in measured}
        if row not in measured:
            reason = row.get("reason") or "no attack of this adversary was run"
            shown["ruled_out"] = row["adversary"] in ((results.get("federation") or {}).get("unseen") or {})
            if rows and rows[-1].get("reason") == reason:  # one line for all that were left out for one reason
                rows[-1]["adversary"] += f"; {row['adversary']}"
            else:
                rows.append(shown | {"reason": reason})
            continue
        tpr, auc = (row.get("tpr") or {}).get("estimate"), row.get("auc")
        by, by_auc = (titles.get(row.get(key), row.get(key)) for key in ("attack", "auc_attack"))
        told = {"attack": by, "by": "" if by_auc == by else by_auc, "more": row.get("more"), "note": "", "at": ""}
        rows.append(shown | told | _pairs(auc))
        if tpr is None or fpr is None:
            rows[-1] |= {"found": "", "interval": "n too small", "strip": ""}
            continue
        ends = {k: max(tpr[k] * out_of, 1) if wording.known(tpr.get(k)) else None for k in ("value", "low", "high")}
        rows[-1] |= {
            "note": "its scores are too coarse for so low an error" if not tpr.get("value") else "",
            "at": f"at {wording.rate(row['tpr']['fpr'])} wrong" if row["tpr"]["fpr"] != fpr else "",
            "found": wording.frequency(tpr.get("value"), out_of),
            "interval": wording.frequency_interval(tpr, out_of),
            "strip": svg.strip(
                ends["value"],
                ends["low"],
                ends["high"],
                guess=fpr * out_of,
                scale=scale,
                name=f"{wording.frequency(tpr.get('value'), out_of)} of {out_of:,}, "
                f"interval {wording.frequency_interval(tpr, out_of)}, guessing {fpr * out_of:,.0f}",
            ),
        }
    most = max((r.get("corrected_for") or 1 for r in measured), default=1)
    return {
        "rows": rows,
        "out_of": f"{out_of:,}",
        "guess": wording.frequency(fpr, out_of) if fpr else "",
        "picture": any(r.get("strip") for r in rows),
        "corrected_for": most if most > 1 else 0,
        "level": wording.level((headline(results) or {}).get("evaluation", {}).get("confidence", 0.95)),
    }


def _pairs(auc: Mapping[str, Any] | None) -> dict[str, str]:
    if not auc or not wording.known(auc.get("value")):
        return {"pairs": wording.MISSING, "pairs_interval": ""}
    return {"pairs": wording.significant(100 * auc["value"]), "pairs_interval": _hundredfold(auc)}


def _verdict(policy: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not policy:
        return None
    mark, title = _VERDICTS.get(policy["verdict"], _VERDICTS["cannot tell"])
    limit = (
        wording.percent(policy["threshold"]) if policy["metric"] == "tpr" else wording.significant(policy["threshold"])
    )
    at = f" at a false-positive rate of {wording.rate(policy.get('fpr'))}" if policy["metric"] == "tpr" else ""
    return {
        "kind": policy["verdict"].replace(" ", "-"),
        "mark": mark,
        "title": title,
        "text": _sentence(policy.get("text") or ""),
        "limit": f"{_METRICS.get(policy['metric'], policy['metric'])}{at}: at most {limit}",
        "owner": policy.get("owner", ""),
        "reason": policy.get("reason", ""),
    }


def _exposed(results: Results) -> dict[str, Any]:
    exposed, best = results.get("exposed") or {}, headline(results)
    classes = []
    several = len(best["evaluation"].get("per_class") or []) > 1 if best else False
    federation = results.get("federation") or {}
    for row in (exposed.get("worst_classes") or [])[:3] if several else []:
        classes.append(
            {
                "name": wording.shorten(str(row.get("name") or row["label"]), 40),
                "chance": _open(row),
                **_pairs(row.get("auc_adjusted") or row.get("auc")),
            }
        )
    zero = (best["evaluation"].get("tpr_at_zero_fp") or {}).get("tpr") if best else None
    gap = exposed.get("generalization_gap")
    target = results.get("target") or {}
    return {
        "classes": classes,
        "n_classes": (results.get("dataset") or {}).get("n_classes"),
        "clients": _clients(federation.get("per_client")),
        "n_clients": wording.count(federation.get("clients")),
        "traced": _traced(federation.get("whose")),
        "sure": (wording.count(zero["k"]), wording.count(zero["n"])) if zero and wording.known(zero.get("k")) else None,
        "flagged": _flagged(exposed.get("flagged")),
        "worst": _worst_case(results),
        "gap": wording.significant(100 * gap) if wording.known(gap) else "",
        "train": wording.percent(target.get("train_acc")),
        "test": wording.percent(target.get("test_acc")),
        "pictures": len(exposed.get("top_records") or []),
    }


def _clients(per_client: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The most exposed clients of which there are records enough to tell, three at most."""
    if not per_client:
        return []
    known = [c for c in per_client["clients"] if not c.get("too_few") and wording.known(c["auc"].get("value"))]
    return [
        {
            "name": str(c["name"]).capitalize(),
            "chance": _open(c),
            **_pairs(c.get("auc_adjusted") or c["auc"]),
        }
        for c in known[:3]
    ]


def _open(row: Mapping[str, Any]) -> bool:
    """Whether one of several groups is not told from guessing, by its p-value or by the interval that is shown."""
    low = (row.get("auc_adjusted") or row.get("auc") or {}).get("low")
    tested = wording.known(row.get("p_adjusted")) and row["p_adjusted"] > SIGNIFICANT
    return tested or (wording.known(low) and low <= 0.5)


def _traced(whose: Mapping[str, Any] | None) -> dict[str, str] | None:
    """How often the client of a record is named rightly, by the best of the ways."""
    if not whose or not whose.get("source"):
        return None
    best = max(whose["source"], key=lambda s: float(s["accuracy"]["value"]))
    return {
        "share": wording.percent(best["accuracy"]["value"]),
        "interval": wording.interval(best["accuracy"], as_percent=True),
        "guess": f"{wording.percent(best['chance'])}, by class {wording.percent(best['by_class'])}",
    }


def _worst_case(results: Results) -> dict[str, str] | None:
    """The most exposed kind of canary: in how many of 100 pairs the attack is right, beside ordinary records."""
    canaries = results.get("canaries") or {"kinds": []}
    known = [kind for kind in canaries["kinds"] if kind["auc"] and wording.known(kind["auc"].get("value"))]
    if not known:
        return None
    worst = max(known, key=lambda kind: float(kind["auc"]["value"]))
    judge = next(a for a in results["attacks"] if a["name"] == canaries["attack"])
    return {
        "kind": worst["kind"],
        "text": worst["text"],
        **_pairs(worst["auc"]),
        "average": _pairs(judge["evaluation"]["auc"])["pairs"],
    }


def _flagged(flagged: Mapping[str, Any] | None) -> dict[str, str] | None:
    if not flagged:
        return None
    names = ("records", "members")
    return {**{n: wording.count(flagged[n]) for n in names}, "level": wording.percent(flagged["level"], 2)}


def _soundness(checks: list[Mapping[str, Any]]) -> dict[str, Any]:
    order = ("problem", "caution", "passed", "not applicable", "muted")
    counts = {s: sum(c["status"] == s for c in checks) for s in order}
    nouns = ("problem", "caution")
    return {
        "counts": [
            (s, wording.plural(n, s) if s in nouns else f"{wording.count(n)} {s}") for s, n in counts.items() if n
        ],
        "red": [c for c in checks if c["status"] == "problem"],
        "amber": [{**c, "brief": _brief(c["text"], 130)} for c in checks if c["status"] == "caution"],
        "any": bool(checks),
    }


def _brief(text: str, length: int) -> str:
    """As many whole sentences as fit, or the beginning of the first."""
    if len(text) <= length:
        return text
    end = text.rfind(". ", 0, length)
    return text[: end + 1] if end > 0 else text[: text.rfind(" ", 0, length)] + " …"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') or not text else '.'}"
