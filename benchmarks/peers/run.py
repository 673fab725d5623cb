"""How do the published packages do on the same arrays? Prints attack strength, seconds and memory of each.

Each package is installed from PyPI into an environment of its own under --work (git-ignored; --forget removes them), as
many as install; what does not is listed with its reason. All get the same arrays: a target's logits on N records and
those of 64 reference models, balanced (every record IN half of them). Two cases: synthetic answers (40,000 records) and
Location-30 (5,010 records, --location30 FILE), for which target and bank are trained here.

Every attack runs in a process of its own, one thread, tools in turns, `--rounds` times; seconds are medians. Packages
are given confidences that were reduced from the logits beforehand; memberscope is given the logits, and its reduction
is counted. AUC with 95 % interval (DeLong), true-positive rates where the sample supports them. Attacks that learn from
known members are cross-fitted in two halves, or split as the tool itself does.

What ran is kept in --work/results.json: the same command goes on after an interruption.

Usage: python benchmarks/peers/run.py [--location30 FILE] [--peers NAME,...] [--rounds 3] [--work DIR] [--forget]
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
import venv
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import inputs
import numpy as np

from memberscope.environment import describe
from memberscope.files import write_json
from memberscope.statistics.evaluation import evaluate

FPRS = (0.01, 0.001)
HERE = Path(__file__).resolve().parent
TIMEOUT = 900
SLOW_SECONDS = 30.0
"""What takes longer runs once."""


@dataclass(frozen=True)
class Peer:
    """A package: what pip is asked for (the package last), and the adapter that runs it."""

    requirements: tuple[str, ...]
    adapter: str


TORCH = "torch==2.13.0"  # by its exact version pip finds the CPU build where one is at hand
PEERS = {
    "memberscope": Peer((), "memberscope_itself"),
    "PrivacyGuard": Peer((TORCH, "privacyguard-platform==0.0.2"), "privacy_guard"),
    "ART": Peer(("adversarial-robustness-toolbox==1.20.1",), "art"),
    "SACRO-ML": Peer((TORCH, "sacroml==2.0.1"), "sacro"),
    "TensorFlow Privacy": Peer(("tensorflow-empirical-privacy==0.1.0",), "tensorflow_privacy_tests"),
    "Privacy Meter": Peer((TORCH, "tensorflow-cpu", "opacus", "privacy-meter==1.0.1"), "privacy_meter"),
}


def install(name: str, work: Path) -> tuple[Path, str]:
    """The Python that runs a peer, and why there is none."""
    peer = PEERS[name]
    if not peer.requirements:
        return Path(sys.executable), ""
    folder = work / "environments" / name.replace(" ", "-")
    python, done, failed = folder / "bin" / "python", folder / "installed", folder / "failed"
    if done.exists():
        return python, ""
    if failed.exists():
        return python, failed.read_text()
    print(f"installing {', '.join(peer.requirements)}", file=sys.stderr, flush=True)
    venv.create(folder, with_pip=True, clear=True)
    command = [str(python), "-m", "pip", "install", "--quiet", "--no-compile", *peer.requirements]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        reason = next((line for line in result.stderr.splitlines() if line.startswith("ERROR")), "pip failed")
        failed.write_text(f"{peer.requirements[-1]} does not install: {reason}")
        return python, failed.read_text()
    done.touch()
    return python, ""


def ask(python: Path, adapter: str, *arguments: str) -> tuple[str, str]:
    """What an adapter prints, and why it failed."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    env |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    if python != Path(sys.executable):
        env.pop("PYTHONPATH", None)
    command = [str(python), "-W", "ignore", str(HERE / "adapters" / f"{adapter}.py"), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT, env=env)
    except subprocess.TimeoutExpired:
        return "", f"not done after {TIMEOUT} s"
    lines = done.stderr.strip().splitlines()
    return done.stdout, "" if done.returncode == 0 else (lines[-1] if lines else f"exit status {done.returncode}")


def figures(path: Path, member: np.ndarray) -> dict[str, Any]:
    """Seconds, memory and attack strength of the scores in a file."""
    with np.load(path) as found:
        scores, seconds, peak = found["scores"], float(found["seconds"]), int(found["peak"])
    columns = scores.T if scores.ndim == 2 else scores[None]
    told: dict[str, Any] = {"seconds": [seconds], "peak": [peak]}
    judged = []
    for column in columns:
        scored = ~np.isnan(column)
        judged.append(evaluate(column[scored], member[scored], rng=np.random.default_rng(0)))
    first = judged[0]
    told["auc"] = [first.auc.value, first.auc.low, first.auc.high]
    for fpr in FPRS:
        points = [next(point for point in one.operating_points if point.fpr == fpr) for one in judged]
        if all(point.tpr is not None for point in points):
            estimates = [point.tpr for point in points]
            told[f"tpr {fpr}"] = [estimates[0].value, estimates[0].low, estimates[0].high]
            if len(judged) > 1:
                told[f"tpr {fpr}"] = [statistics.mean(estimate.value for estimate in estimates)]
    if len(judged) > 1:
        told["auc"] = [statistics.mean(one.auc.value for one in judged)]
        told["note"] = f"mean of {len(judged)} splits"
    elif not scored.all():
        told["note"] = f"{int(scored.sum()):,} records scored"
    return told


def play(results: dict[str, Any], case: Path, name: str, attack: str, python: Path, rounds: int) -> None:
    """Run one attack once more, unless it ran often enough, and note what came of it."""
    noted = results.setdefault(case.stem, {}).setdefault(name, {})
    before = noted.get(attack, {})
    if "failed" in before or len(before.get("seconds", ())) >= (1 if _slow(before) else rounds):
        return
    with np.load(case) as arrays:
        member = arrays["member"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "scores.npz"
        _, failed = ask(python, PEERS[name].adapter, str(case), attack, str(out))
        told = {"failed": failed} if failed else figures(out, member)
    if "seconds" in before and not failed:
        told |= {key: before[key] + told[key] for key in ("seconds", "peak")}
    noted[attack] = told
    print(f"{case.stem}: {name}, {attack}: {failed or round(told['seconds'][-1], 3)}", file=sys.stderr, flush=True)


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
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=HERE / ".work")
    parser.add_argument("--install", action="store_true", help="install the packages, and no more")
    parser.add_argument("--forget", action="store_true", help="remove the environments when done")
    given = parser.parse_args()
    work: Path = given.work
    work.mkdir(parents=True, exist_ok=True)
    if given.install:
        for name in given.peers.split(","):
            print(f"{name}: {install(name, work)[1] or 'installed'}", flush=True)
        return
    cases = [work / "synthetic.npz"]
    if not cases[0].exists():
        inputs.synthetic(cases[0])
    if given.location30:
        cases.append(work / "location30.npz")
        if not cases[1].exists():
            inputs.trained(cases[1], f"npz:{given.location30}", work / "bank", models=inputs.MODELS, epochs=50)
    kept = work / "results.json"
    results: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    missing, ready, versions = {}, {}, {}
    for name in given.peers.split(","):
        python, reason = install(name, work)
        said, failed = ("", reason) if reason else ask(python, PEERS[name].adapter, "--list")
        if failed:
            missing[name] = failed
            continue
        told = json.loads(said.splitlines()[-1])
        versions[name], ready[name] = told["version"], (python, told["attacks"])
    for _ in range(given.rounds):
        for case in cases:
            for name, (python, attacks) in ready.items():
                for attack in attacks:
                    play(results, case, name, attack, python, given.rounds)
                    write_json(kept, results)
    about = describe()
    print(f"{date.today()}, {about['processor']}, one thread of {about['cores']} cores\n")
    for case in cases:
        with np.load(case) as arrays:
            records, models = arrays["logits"].shape[0], len(arrays["reference_logits"])
        print(f"## {case.stem}: {records:,} records, {models} reference models\n")
        table({name: results[case.stem][name] for name in ready}, versions)
        print()
    for name, reason in missing.items():
        print(f"{name} did not run: {reason}")
    if given.forget:
        shutil.rmtree(work / "environments", ignore_errors=True)


if __name__ == "__main__":
    main()
