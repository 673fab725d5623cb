"""How do the published packages do on the same arrays? Prints attack strength, seconds and memory of each.

Each package comes from PyPI into a folder of its own under --work (git-ignored; --forget removes them), without its
dependencies but for the small ones that its attacks import: all tools then run on the NumPy, SciPy, scikit-learn,
pandas and torch of this environment, and it is their code that is compared. What does not install or run is listed
with its reason. All get the same arrays: a target's logits on N records and those of 64 reference models, balanced
(every record IN half of them). Two cases: synthetic answers, and Location-30 (5,010 records, --location30 FILE), for
which target and bank are trained here unless location30.npz is there already.

One thread; tools take turns, `--rounds` times; seconds are medians of CPU time. An attack that needs more than --limit
seconds is stopped and told as such. Packages are given confidences that
were reduced from the logits beforehand; memberscope is given the logits, and its reduction is counted. AUC with 95 %
interval (DeLong), true-positive rates where the sample supports them. Attacks that learn from known members are
cross-fitted in two halves, or split as the tool itself does: figures are then means over its splits, and intervals
those of one split.

What ran is kept in --work/results.json: the same command goes on after an interruption.

Usage: python benchmarks/peers/run.py [--location30 FILE] [--cases NAME,...] [--peers NAME,...] [--rounds 3]
       [--limit 120] [--forget]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import inputs
import numpy as np

from memberscope.environment import describe
from memberscope.errors import MemberscopeError
from memberscope.files import write_json
from memberscope.statistics.evaluation import evaluate

FPRS = (0.01, 0.001)
HERE = Path(__file__).resolve().parent
TIMEOUT = 1800
SLOW_SECONDS = 10.0
"""What takes longer runs once."""


@dataclass(frozen=True)
class Peer:
    """A package with the small ones that its attacks import, and the adapter that runs it."""

    requirements: tuple[str, ...]
    adapter: str


PEERS = {
    "memberscope": Peer((), "peer_memberscope"),
    "PrivacyGuard": Peer(("privacyguard-platform==0.0.2",), "peer_privacy_guard"),
    "ART": Peer(("adversarial-robustness-toolbox==1.20.1", "six", "tqdm"), "peer_art"),
    "SACRO-ML": Peer(("sacroml==2.0.1", "fpdf", "pypdf", "multiprocess", "dill", "dictdiffer"), "peer_sacro"),
    "TensorFlow Privacy": Peer(
        # Its suite imports a name that scikit-learn dropped in 1.5.
        (
            "tensorflow-empirical-privacy==0.1.0",
            "statsmodels",
            "patsy",
            "absl-py",
            "immutabledict",
            "scikit-learn==1.4.2",
        ),
        "peer_tensorflow_privacy",
    ),
    "Privacy Meter": Peer(("privacy-meter==1.0.1",), "peer_privacy_meter"),
    "auditml": Peer(("auditml==0.1.0", "tqdm", "pyyaml"), "peer_auditml"),
    "mia": Peer(("mia==0.1.2", "tqdm"), "peer_mia"),
}

NOT_RUN = {
    "leakpro 0.0.1": "an empty package of another author; LeakPro itself is not on PyPI",
    "aijack 0.0.1b2": "builds C++ against Boost when it is installed ('Could NOT find Boost'); its shadow attack calls "
    "a method `predit` that it does not have",
    "mlpepr 0.1b6": "asks for TensorFlow 2.5 and NumPy 1.19, which no Python above 3.9 installs",
    "tensorflow-privacy 0.9.0": "the same attacks as tensorflow-empirical-privacy; asks for NumPy 1 and TensorFlow",
    "opake-auditing 0.16.1": "audits canaries of differentially private training; its score is the loss",
    "forgetnet 0.1.21": "for language models",
    "automia 0.0.1": "lets a language model write attacks",
    "nullsec-adversarial 0.1.0": "tells counts at one threshold on the confidence, chosen on the records it counts",
}
"""Packages of PyPI that speak of membership inference and are not among `PEERS`, and why."""


def install(name: str, work: Path) -> str:
    """Put a package into its folder; why not, if it does not install."""
    requirements, folder = PEERS[name].requirements, packages(name, work)
    if not requirements or (folder / "installed").exists():
        return ""
    print(f"installing {', '.join(requirements)}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *requirements]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        return next((line for line in result.stderr.splitlines() if line.startswith("ERROR")), "pip failed")
    (folder / "installed").touch()
    return ""


def packages(name: str, work: Path) -> Path:
    """The folder of a package."""
    return work / "packages" / name.replace(" ", "-")


def surroundings(name: str, work: Path) -> dict[str, str]:
    """The environment that a tool runs in: its package before others, one thread."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    path = [str(packages(name, work).resolve()), *filter(None, [env.get("PYTHONPATH")])]
    return env | {"PYTHONPATH": os.pathsep.join(path)}


def adapter(name: str) -> list[str]:
    """The command that runs a tool's adapter."""
    return [sys.executable, "-W", "ignore", str(HERE / "adapters" / f"{PEERS[name].adapter}.py")]


def ask(name: str, work: Path, *arguments: str) -> tuple[list[dict[str, Any]], str]:
    """What an adapter tells, line by line, and why it failed."""
    command, env = [*adapter(name), *arguments], surroundings(name, work)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT, env=env)
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b""
        return told_lines(said.decode() if isinstance(said, bytes) else said), f"not done after {TIMEOUT} s"
    lines = done.stderr.strip().splitlines()
    failed = "" if done.returncode == 0 else (lines[-1] if lines else f"exit status {done.returncode}")
    return told_lines(done.stdout), failed


def told_lines(said: str) -> list[dict[str, Any]]:
    """The JSON among the lines: tools print too."""
    return [json.loads(line) for line in said.splitlines() if line.startswith("{") and line.endswith("}")]


def figures(path: Path, member: np.ndarray) -> dict[str, Any]:
    """Attack strength of the scores in a file."""
    scores = np.load(path)
    columns = scores.T if scores.ndim == 2 else scores[None]
    told: dict[str, Any] = {}
    judged = []
    for column in columns:
        scored = ~np.isnan(column)
        judged.append(evaluate(column[scored], member[scored], rng=np.random.default_rng(0)))
    told["auc"] = _mean([one.auc for one in judged])
    for fpr in FPRS:
        points = [next(point for point in one.operating_points if point.fpr == fpr) for one in judged]
        if all(point.tpr is not None for point in points):
            told[f"tpr {fpr}"] = _mean([point.tpr for point in points])
    if len(judged) > 1:
        told["note"] = f"mean of {len(judged)} splits"
    elif not scored.all():
        told["note"] = f"{int(scored.sum()):,} records scored"
    return told


def _mean(estimates: list[Any]) -> list[float]:
    """Value and interval, averaged over splits."""
    return [statistics.mean(getattr(one, part) for one in estimates) for part in ("value", "low", "high")]


def play(noted: dict[str, Any], case: Path, name: str, work: Path, rounds: int, limit: float) -> str:
    """Run a tool's attacks once more, those that did not run often enough, and note what came of them.

    Returns the version of the tool, or nothing where there was nothing to do.
    """
    due = [attack for attack, told in noted.items() if _due(told, rounds)]
    if noted and not due:
        return ""
    with np.load(case) as arrays:
        member = arrays["member"]
    version, silent = "", set(due)
    with tempfile.TemporaryDirectory() as folder:
        lines, failed = ask(name, work, str(case), folder, str(limit), *due)
        for told in lines:
            if "version" in told:
                version, silent = told["version"], set(told["attacks"])
                continue
            attack = told["attack"]
            silent.discard(attack)
            before = noted.get(attack, {"seconds": [], "peak": []})
            if "failed" in told:
                noted[attack] = {"failed": told["failed"]}
                continue
            times = {key: [*before[key], told[key]] for key in ("seconds", "peak")}
            try:
                noted[attack] = figures(Path(folder) / told["file"], member) | times
            except MemberscopeError as error:  # scores that are no scores
                noted[attack] = {"failed": error.problem}
    print(f"{case.stem}: {name} {version} {failed or 'ran'}", file=sys.stderr, flush=True)
    if not version:
        raise ChildProcessError(failed)
    for attack in silent:
        noted[attack] = {"failed": failed or "it ended without a word"}
    return version


def _due(noted: dict[str, Any], rounds: int) -> bool:
    return "failed" not in noted and len(noted.get("seconds", ())) < (1 if _slow(noted) else rounds)


def _slow(noted: dict[str, Any]) -> bool:
    return bool(noted.get("seconds")) and noted["seconds"][0] > SLOW_SECONDS


def table(noted: dict[str, Any], versions: dict[str, str]) -> None:
    """One case, by tool and attack."""
    print("| tool | attack | AUC | TPR at 1 % FPR | TPR at 0.1 % FPR | seconds | MB |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for name, attacks in noted.items():
        for attack, told in attacks.items():
            if "failed" in told:
                print(f"| {name} | {attack} | failed: {told['failed'][:120]} | | | | |")
                continue
            seconds, peak = statistics.median(told["seconds"]), statistics.median(told["peak"]) / 1e6
            note = f" ({told['note']})" if "note" in told else ""
            rates = " | ".join(_estimate(told.get(f"tpr {fpr}"), 100, 2) for fpr in FPRS)
            print(
                f"| {name} | {attack}{note} | {_estimate(told['auc'], 1, 4)} | {rates} | {seconds:.3f} | {peak:,.0f} |"
            )
    print("\nVersions: " + ", ".join(f"{name} {version}" for name, version in versions.items() if name in noted))


def _estimate(values: list[float] | None, factor: float, digits: int) -> str:
    if values is None:
        return "not supported"
    value, *interval = (f"{factor * v:.{digits}f}" for v in values)
    return f"{value} [{', '.join(interval)}]" if interval else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--location30", type=Path)
    parser.add_argument("--cases", default="synthetic,location30")
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=120, help="CPU seconds an attack may take (default: 120)")
    parser.add_argument("--work", type=Path, default=HERE / ".work")
    parser.add_argument("--forget", action="store_true", help="remove the packages when done")
    given = parser.parse_args()
    work: Path = given.work
    work.mkdir(parents=True, exist_ok=True)
    cases = []
    for name in given.cases.split(","):
        path = work / f"{name}.npz"
        if not path.exists() and name == "synthetic":
            inputs.synthetic(path)
        elif not path.exists() and given.location30:
            inputs.trained(path, f"npz:{given.location30}", work / "bank", models=inputs.MODELS, epochs=50)
        if path.exists():
            cases.append(path)
    kept = work / "results.json"
    results: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    missing: dict[str, str] = {}
    versions: dict[str, str] = results.setdefault("versions", {})
    for done in range(given.rounds):
        for case in cases:
            for name in [name for name in given.peers.split(",") if name not in missing]:
                noted = results.setdefault(case.stem, {}).setdefault(name, {})
                failed = install(name, work)
                if not failed:
                    try:
                        versions[name] = play(noted, case, name, work, done + 1, given.limit) or versions[name]
                    except ChildProcessError as error:
                        failed = str(error)
                if failed:
                    missing[name] = failed
                write_json(kept, results)
    about = describe()
    on = ", ".join(f"{name} {about['packages'][name]}" for name in ("numpy", "scipy", "scikit-learn"))
    print(
        f"{date.today()}, {about['processor']}, one thread of {about['cores']} cores, Python {about['python']}, {on}\n"
    )
    for case in cases:
        with np.load(case) as arrays:
            records, models = arrays["logits"].shape[0], len(arrays["reference_logits"])
        print(f"## {case.stem}: {records:,} records, {models} reference models\n")
        table({name: told for name, told in results[case.stem].items() if told}, versions)
        print()
    for name, reason in missing.items():
        print(f"{name} did not run: {reason}")
    print("Not run:\n" + "\n".join(f"- {name}: {reason}" for name, reason in NOT_RUN.items()))
    if given.forget:
        shutil.rmtree(work / "packages", ignore_errors=True)


if __name__ == "__main__":
    main()
