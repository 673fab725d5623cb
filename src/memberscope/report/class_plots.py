"""The PNG figures of one class: how well an attack finds its members, and how confident the model is on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memberscope.report.canvas import GREY, MEMBER, NONMEMBER, caption, drawing, groups, say
from memberscope.report.wording import count, shorten, significant

HISTOGRAM_BINS = 30
CONFIDENCE_TICKS = (0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
_FARTHEST = (5, 7, 10, 15)
"""The axis of a confidence histogram ends this many nines after the point; the last is what float64 can tell from 1."""
_IN_LAST_BIN = 0.1


def roc_curve(
    path: Path, label: int, name: str, scores: NDArray[np.float64], member: NDArray[np.bool_], *, attack: str = ""
) -> None:
    """ROC of one attack among the records of one class.

    Parameters
    ----------
    path
        The PNG to write.
    label, name
        The class.
    scores
        float64 [n], the attack's scores of the records of this class.
    member
        bool [n].
    attack
        Name of the attack; empty where none ran, the figure then says so.
    """
    from memberscope.statistics.curves import auc, rank
    from memberscope.statistics.curves import roc_curve as points

    n_members, n_nonmembers = int(member.sum()), int((~member).sum())
    missing = "no attack ran" if not attack else _missing_group(n_members, n_nonmembers)
    with drawing(path, (4.6, 4.6), _class_title("ROC", label, name), box=(0.14, 0.19, 0.8, 0.74)) as axes:
        caption(axes, groups(n_members, n_nonmembers), shorten(attack, 60))
        if missing:
            say(axes, f"no ROC: {missing}")
            return
        ranking = rank(scores, member)
        curve = points(ranking)
        axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls=":")
        axes.plot(curve.fpr, curve.tpr, color=MEMBER, lw=2)
        axes.text(0.97, 0.05, f"AUC {significant(auc(ranking))}", ha="right", fontsize=11, color=MEMBER)
        axes.set(xlim=(0, 1), ylim=(0, 1.005), aspect="equal")
        axes.set(xlabel="False-positive rate", ylabel="True-positive rate")


def confidence_histogram(
    path: Path, label: int, name: str, confidence: NDArray[np.floating], member: NDArray[np.bool_]
) -> None:
    """How confident the model is on members and on non-members of one class.

    The axis is that of the log-odds, labelled in probabilities: on a linear one a trained model puts nearly every
    record into the last bin, and what sets members apart (0.99 against 0.9999) cannot be seen.

    Parameters
    ----------
    path
        The PNG to write.
    label, name
        The class.
    confidence
        float [n], the largest probability that the model answers for each record of this class, in 0..1.
    member
        bool [n].
    """
    nines = _nines(np.asarray(confidence, np.float64))
    odds = _log_odds(np.asarray(confidence, np.float64), nines)
    edges = np.linspace(min(0.0, float(odds.min(initial=0.0))), float(nines), HISTOGRAM_BINS + 1)
    missing = _missing_group(int(member.sum()), int((~member).sum()))
    with drawing(path, (4.6, 4.2), _class_title("Confidence", label, name), box=(0.14, 0.23, 0.8, 0.69)) as axes:
        reading = f"Where they differ, confidence gives away members.\nLast bin: above {_above(edges[-2])}."
        caption(axes, f"{missing}: nothing to compare" if missing else reading)
        if not len(odds):
            say(axes, "no records of this class")
            return
        for group, colour, dash, text in (
            (odds[member], MEMBER, "-", "members"),
            (odds[~member], NONMEMBER, (0, (4, 1.5)), "non-members"),
        ):
            if len(group):
                shares = 100 * np.histogram(group, edges)[0] / len(group)
                axes.stairs(shares, edges, color=colour, fill=True, alpha=0.2)
                axes.stairs(shares, edges, color=colour, ls=dash, lw=1.5, label=f"{text} (n = {count(len(group))})")
        if nines == _FARTHEST[0]:
            ticks = [p for p in CONFIDENCE_TICKS if _log_odds(np.asarray(p), nines) >= edges[0]]
            axes.set_xticks(_log_odds(np.asarray(ticks), nines), [f"{p:g}" for p in ticks])
        else:
            places = range(0, nines, -(-nines // 4))
            axes.set_xticks(list(places), ["0.5" if not n else _all_but(n) for n in places])
        axes.set(xlim=(edges[0], edges[-1]), ylim=(0, 1.2 * axes.get_ylim()[1]))
        axes.set(xlabel="Largest probability in the model's answer", ylabel="Share of the group (%)")
        axes.legend(loc="upper left")


def _nines(confidence: NDArray[np.float64]) -> int:
    """How far the axis goes: as little as keeps all but a tenth of the records out of the last bin."""
    fitting = (n for n in _FARTHEST if np.mean(confidence > 1 - 10.0**-n) <= _IN_LAST_BIN)
    return next(fitting, _FARTHEST[-1]) if len(confidence) else _FARTHEST[0]


def _log_odds(confidence: NDArray[np.float64], nines: int) -> NDArray[np.float64]:
    """Log-odds to base 10, between those of 1e-3 and of 1 - 10^-nines, beyond which records share a bin."""
    p = np.clip(confidence, 1e-3, 1 - 10.0**-nines)
    return np.asarray(np.log10(p) - np.log10(1 - p))


def _all_but(nines: int) -> str:
    return f"{1 - 10.0**-nines:g}" if nines < _FARTHEST[0] else f"1 \N{MINUS SIGN} $10^{{-{nines}}}$"


def _above(log_odds: float) -> str:
    """The probability of such log-odds to base 10, short."""
    rest = 1 / (1 + 10.0**log_odds)
    if log_odds < _FARTHEST[0]:
        return f"{1 - rest:.5g}"
    power = int(np.floor(np.log10(rest)))
    return f"1 \N{MINUS SIGN} {rest / 10.0**power:.0f} · $10^{{{power}}}$"


def _class_title(what: str, label: int, name: str) -> str:
    return f"{what}, class {label}" + (f" ({shorten(name, 24)})" if name and name != str(label) else "")


def _missing_group(n_members: int, n_nonmembers: int) -> str:
    if not n_members and not n_nonmembers:
        return "no records of this class"
    if not n_members:
        return "no members in this class"
    return "" if n_nonmembers else "no non-members in this class"
