"""What an audit gives back: figures to read, tables to work with, a folder to keep."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memberscope.errors import MemberscopeError

if TYPE_CHECKING:
    import pandas

    from memberscope.attacks.runner import AttackResult
    from memberscope.canary_audit import CanaryAudit
    from memberscope.checks import Finding
    from memberscope.risk import RecordRisk
    from memberscope.several_targets import SeveralTargets


@dataclass(frozen=True, repr=False)
class Audit:
    """One target, many attacks, their evaluations.

    Parameters
    ----------
    document
        All that the report shows (the content of ``results.json``).
    results
        What became of each attack that was asked for.
    findings
        The checks of the audit itself.
    index, label, member
        Of the N audited records: pool index int64 [N], class int64 [N], truth bool [N].
    max_confidence
        float64 [N], the target's confidence, for the histograms.
    canaries
        What was found of the canaries, where there are any.

    risk
        Risk of each record under the attack that the answer is given for, or None where no attack ran.
    targets
        What was found of several targets, the one of this audit first, or None.
    """

    document: Mapping[str, Any]
    results: tuple[AttackResult, ...]
    findings: tuple[Finding, ...]
    index: NDArray[np.int64]
    label: NDArray[np.int64]
    member: NDArray[np.bool_]
    max_confidence: NDArray[np.float64]
    canaries: CanaryAudit | None = None

    risk: RecordRisk | None = None
    targets: SeveralTargets | None = None

    @property
    def scores(self) -> dict[str, NDArray[np.float64]]:
        """Score of every audited record under each attack that ran, float64 [N]; higher = more likely a member."""
        return {r.name: r.scores for r in self.results if r.scores is not None}

    @property
    def headline(self) -> str | None:
        """Name of the attack that the answer is given for."""
        name: str | None = self.document["headline"]
        return name

    @property
    def exit_code(self) -> int:
        """0; with a policy 0 within, 1 exceeds, 2 cannot tell; 3 where no attack could be run."""
        from memberscope.policy import EXIT_FAILED

        if self.headline is None:
            return EXIT_FAILED
        policy = self.document["policy"]
        return 0 if policy is None else int(policy["exit_code"])

    def rows(self) -> list[dict[str, Any]]:
        """One row an attack, as ``results.csv`` has them."""
        from memberscope.report.run_folder import csv_rows

        return csv_rows(self.document)

    def to_frame(self) -> pandas.DataFrame:
        """`rows` as a pandas table."""
        try:
            import pandas
        except ImportError:
            raise MemberscopeError("to_frame() needs pandas, which is not installed", "pip install pandas") from None
        return pandas.DataFrame(self.rows())

    def report(self) -> str:
        """The report as one self-contained HTML text."""
        from memberscope.report.render import render

        return render(dict(self.document))

    def save(self, folder: str | Path) -> Path:
        """Write the run folder: pictures, tables, scores and report. Refuses a folder that is not empty."""
        from memberscope.report.run_folder import write

        return write(self, Path(folder))

    def __repr__(self) -> str:
        from memberscope.summary import summary_lines

        return "\n".join(summary_lines(self.document))

    def _repr_html_(self) -> str:
        from html import escape

        from memberscope.summary import attack_table, summary_lines

        header, *body = attack_table(self.document)
        head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
        lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in body)
        answer = escape(summary_lines(self.document)[0])
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"
        picture = base64.b64encode(self._loglog_png()).decode()
        alternative = "ROC of every attack on logarithmic axes; the table has the numbers"
        return f'<p>{answer}</p>{table}<p><img alt="{alternative}" src="data:image/png;base64,{picture}"></p>'

    def _loglog_png(self) -> bytes:
        from memberscope.report.plots import roc_curve_loglog

        evaluations = [attack["evaluation"] for attack in self.document["attacks"] if attack["evaluation"]]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "roc.png"
            roc_curve_loglog(path, evaluations, headline=self.headline)
            return path.read_bytes()
