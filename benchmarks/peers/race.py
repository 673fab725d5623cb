"""Published packages in a race: each waits in a process of its own and runs one attack whenever it is asked."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import TracebackType

import numpy as np
from contest import Case
from run import adapter, install, surroundings


class Runner:
    """A package that has read a case and waits; a context manager.

    Raises ChildProcessError where the package does not install or import.
    """

    def __init__(self, name: str, case: Path, folder: Path, work: Path, limit: float) -> None:
        failed = install(name, work)
        if failed:
            raise ChildProcessError(f"{name} does not install: {failed}")
        folder.mkdir(parents=True, exist_ok=True)
        self._name, self._folder = name, folder
        self._files: dict[str, Path] = {}
        self._process = subprocess.Popen(
            [*adapter(name), str(case), str(folder), str(limit), "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=surroundings(name, work),
        )
        self.version = str(self._hear()["version"])

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def run(self, attack: str) -> float:
        """CPU seconds of one attack; infinite where it fails or is not done in time."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{attack}\n")
        self._process.stdin.flush()
        told = self._hear()
        if "failed" in told:
            return float("inf")
        self._files[attack] = self._folder / str(told["file"])
        return float(str(told["seconds"]))

    def scores(self, attack: str) -> np.ndarray:
        """float64 [N]: of an attack that ran; NaN where it failed."""
        return np.asarray(np.load(self._files[attack])) if attack in self._files else np.array(np.nan)

    def _hear(self) -> dict[str, object]:
        """The next line that is JSON: tools print too."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{") and line.endswith("}\n"):
                told: dict[str, object] = json.loads(line)
                return told
        raise ChildProcessError(f"{self._name} ended without a word")


def write_confidences(
    path: Path, phi: np.ndarray, member: np.ndarray, reference_phi: np.ndarray, inside: np.ndarray, population: int
) -> Case:
    """A case whose answers are those of two classes: the logits (phi, 0) have the confidence phi."""
    np.savez(
        path,
        logits=np.stack([phi, np.zeros_like(phi)], axis=-1),
        labels=np.zeros(len(phi), np.int64),
        member=member,
        reference_logits=np.stack([reference_phi, np.zeros_like(reference_phi)], axis=-1),
        reference_membership=inside,
        population=population,
    )
    return Case.read(str(path))
