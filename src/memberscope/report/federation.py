"""The federated page of the report: from which seat, who is exposed, who learns about whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memberscope.report import svg, wording
from memberscope.report.document import Cell, Figure, Results, Table, estimate_cell, headline, interval_table

_FEW_CLIENTS = 10


def federation_page(results: Results) -> dict[str, Any] | None:
    """What the template prints; None for a model that was trained in one place."""
    told = results.get("federation")
    if not told:
        return None
    per_client = told.get("per_client")
    return {
        "facts": _facts(told),
        "few": wording.significant(counted, 2) if (counted := _effective(told)) < _FEW_CLIENTS else "",
        "problems": told.get("problems") or [],
        "seats": _seats(told, results),
        "figure": _clients_figure(per_client) if per_client else None,
        "clients": _clients_table(per_client) if per_client else None,
        "left_out": per_client["left_out"] if per_client else 0,
        "attack": per_client["title"] if per_client else "",
        "whose": _whose(told.get("whose")),
        "no_whose": (told.get("whose") or {}).get("reason") or "",
        "source": _source(told.get("whose")),
        "recall": _recall(told.get("whose")),
        "tampered": _tampered(told.get("tampered") or []),
        "level": wording.level((headline(results) or {}).get("evaluation", {}).get("confidence", 0.95)),
    }


def _facts(told: Mapping[str, Any]) -> Table:
    seen = told["rounds_seen"]
    span = f", {seen[0]} to {seen[-1]}" if len(seen) > 1 else ""
    rows = [
        ("Recorded by", told["view"]),
        ("Where the tap sat", told.get("position")),
        ("Strategy", told.get("strategy")),
        ("Clients", _how_many(told)),
        (
            "Skew of the partition",
            f"{wording.significant(told['skew'])} (mean distance of a client's class mix from everybody's: 0 alike, "
            "1 apart)",
        ),
        ("Rounds looked at", f"{wording.count(len(seen))} of {wording.count(told['rounds_recorded'])} recorded{span}"),
        ("Failed replies", _failed(told.get("failures"))),
        ("Non-members", told["matching"]),
        ("Known non-members", f"{wording.count(told['population'])} records, which attacks calibrate on"),
        ("Reference federations", wording.count(told["references"]) if told.get("references") else None),
        ("Malicious parties", wording.listing(told["tampered_by"]) if told["tampered_by"] else "none"),
        *_privacy(told.get("privacy") or {}),
    ]
    return Table(("", ""), [[Cell(k), Cell(str(v))] for k, v in rows if v], numeric=False)


def _failed(failures: Mapping[str, Any] | None) -> str | None:
    if not failures or not failures["replies"]:
        return None
    share = f"{wording.count(failures['replies'])} of {wording.count(failures['of'])} asked for"
    return f"{share}, most often: {wording.shorten(str(failures['reason']), 120)}"


def _effective(told: Mapping[str, Any]) -> float:
    return float(told.get("effective_clients") or told["clients"])


def _how_many(told: Mapping[str, Any]) -> str:
    asked, there = int(told["clients"]), int(told.get("holders") or told["clients"])
    if asked == there:
        return wording.count(asked)
    return (
        f"{wording.count(asked)} that took part, of {wording.count(there)} that hold records; what the others hold is "
        "not asked about"
    )


def _privacy(told: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is promised to a client, and what canary clients say of it."""
    clients, canaries = told.get("clients"), told.get("canaries")
    rows = []
    if clients:
        rows.append(("Promised to a client", wording.client_guarantee(clients)))
    if canaries:
        rows.append(("Estimated by canary clients", wording.canary_estimate(canaries, clients)))
    return rows


def _seats(told: Mapping[str, Any], results: Results) -> Table | None:
    """The attack fixed in advance of each seat, with intervals over clients and records."""
    seats = told.get("seats") or []
    if not seats:
        return None
    titles = {a["name"]: a["title"] for a in results.get("attacks", [])}
    fprs = [t["fpr"] for t in seats[0]["tpr"]]
    rows = [
        [Cell(s["seat"]), Cell(titles.get(s["attack"], s["attack"]), s["attack"]), estimate_cell(s["auc"])]
        + [estimate_cell(t["estimate"], as_percent=True) for t in s["tpr"]]
        for s in seats
    ]
    header = ("Seat", "Attack", "AUC", *(f"TPR at FPR {wording.rate(f)}" for f in fprs))
    return Table(header, rows, f"Intervals: {seats[0]['auc']['method']}.")


def _clients_figure(per_client: Mapping[str, Any]) -> Figure:
    rows = [_interval("all clients", per_client["auc"], strong=True)]
    few = sum(bool(c.get("too_few")) for c in per_client["clients"])
    if per_client.get("few"):
        rows.append(_interval(f"{few} with too few records, together", per_client["few"]["auc"]))
    rows += [
        _interval(c["name"], c.get("auc_adjusted") or c["auc"]) for c in per_client["clients"] if not c.get("too_few")
    ]
    title = "Who is exposed: AUC by client"
    drawing = svg.forest(
        rows,
        key="clients",
        title=f"AUC of each client, {per_client['attack']}",
        desc=f"Dots with intervals: AUC of {per_client['title']} for each client, beside that of all of them.",
        x_label="AUC (intervals adjusted for all clients)",
        reference=0.5,
        reference_label="guessing",
    )
    reading = (
        "How to read it: each dot is one client, its line the interval, widened so that all clients together are right "
        "at the stated level. Where a line crosses the dashed mark, these records do not tell the client from "
        "guessing."
    )
    if few:
        reading += f" {wording.plural(few, 'client')} brought so few that no outcome could: safe or not, it is unknown."
    return Figure("clients", title, reading, drawing, interval_table("Client", rows))


def _interval(name: str, auc: Mapping[str, Any], *, strong: bool = False) -> svg.Interval:
    if not all(wording.known(auc.get(end)) for end in ("value", "low", "high")):
        return svg.Interval(name, None, None, None, auc.get("note") or "no AUC", strong)
    return svg.Interval(name, auc["value"], auc["low"], auc["high"], "", strong)


def _clients_table(per_client: Mapping[str, Any]) -> Table:
    rows = []
    for c in per_client["clients"]:
        point = c["tpr_at_1pct"] if c["tpr_at_1pct"].get("supported") else c["tpr_at_10pct"]
        found = (
            estimate_cell(point["tpr"], as_percent=True) if point.get("supported") else Cell("n too small", "", "muted")
        )
        rows.append(
            [
                Cell(c["name"]),
                Cell(wording.count(c["n_members"])),
                Cell(wording.count(c["n_nonmembers"])),
                estimate_cell(c["auc"]),
                found,
                Cell(wording.rate(point["fpr"]) if point.get("supported") else wording.DASH),
                Cell("too few records to tell", "", "muted")
                if c.get("too_few")
                else Cell(wording.p_value(c["p_adjusted"]) if wording.known(c.get("p_adjusted")) else wording.DASH),
            ]
        )
    header = ("Client", "Members", "Non-members", "AUC", "TPR", "at FPR", "Against guessing, adjusted")
    return Table(header, rows)


def _whose(whose: Mapping[str, Any] | None) -> Table | None:
    if not whose or not whose["attacks"]:
        return None
    fprs = [t["fpr"] for t in whose["attacks"][0]["tpr"]]
    rows = [
        [Cell(a["title"], a["attack"]), estimate_cell(a["auc"])]
        + [estimate_cell(t["estimate"], as_percent=True) for t in a["tpr"]]
        for a in sorted(whose["attacks"], key=lambda a: -a["auc"]["value"])
    ]
    header = ("Attack", "AUC", *(f"TPR at FPR {wording.rate(f)}" for f in fprs))
    caption = f"Non-members: {whose['matching']}. Intervals: {whose['attacks'][0]['auc']['method']}."
    return Table(header, rows, caption)


def _source(whose: Mapping[str, Any] | None) -> Table | None:
    if not whose or not whose["source"]:
        return None
    rows = [
        [
            Cell(s["how"], s["attack"]),
            estimate_cell(s["accuracy"], as_percent=True),
            Cell(wording.interval(s["over_clients"], as_percent=True)),
            Cell(wording.percent(s["by_class"])),
            estimate_cell(s.get("mean_recall"), as_percent=True),
            Cell(wording.percent(s["chance"])),
        ]
        for s in whose["source"]
    ]
    header = (
        *("Named is", "Named rightly", "Interval over clients too", "Guessing by class"),
        *("Mean over clients", "Guessing"),
    )
    return Table(header, rows)


def _recall(whose: Mapping[str, Any] | None) -> Table | None:
    """Of each client the share of its records that is traced to it, by the strongest way."""
    if not whose or not whose["source"]:
        return None
    best = max(whose["source"], key=lambda s: float(s["accuracy"]["value"]))
    rows = [
        [
            Cell(f"client {r['client']}"),
            Cell(wording.count(r["records"])),
            estimate_cell(r["estimate"], as_percent=True),
        ]
        for r in best["recall"]
    ]
    return Table(("Client", "Records", "Traced to it"), rows, f"By {best['attack']}.")


def _tampered(tampered: Sequence[Mapping[str, Any]]) -> Table | None:
    if not tampered:
        return None
    rows = []
    for t in tampered:
        accuracy, honest = t["accuracy"], t.get("honest") or {}
        rows.append(
            [
                Cell(wording.listing(t["party"])),
                Cell(_clients(t)),
                Cell(t["auc"]["attack"] if t["auc"] else wording.MISSING),
                estimate_cell(t["auc"]),
                estimate_cell(honest.get("auc")),
                _rate(t["tpr"]),
                _rate(honest.get("tpr")),
                Cell(wording.rate(t["tpr"]["fpr"]) if t["tpr"] else wording.DASH),
                Cell(wording.percent(accuracy["tampered"]), f"honest {wording.percent(accuracy['honest'])}"),
            ]
        )
    header = (
        *("Malicious party", "Against", "Attack", "AUC", "without it", "TPR", "without it", "at FPR"),
        "Accuracy of the global model",
    )
    caption = (
        "The attack that does best on what the party went for, with it and without it; intervals allow for having "
        "picked attack and federation."
    )
    return Table(header, rows, caption)


def _clients(told: Mapping[str, Any]) -> str:
    clients = told["clients"]
    if isinstance(clients, str) or "pairs" not in told:  # of an earlier version
        return str(clients)
    named = f"client {clients[0]}" if len(clients) == 1 else f"{len(clients)} clients"
    return f"{named}, {told['pairs']:,} records"


def _rate(tpr: Mapping[str, Any] | None) -> Cell:
    return estimate_cell(tpr["estimate"], as_percent=True) if tpr else Cell("n too small", "", "muted")
