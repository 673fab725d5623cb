"""Work in this process and in workers: same results, deaths survived once, errors told, nothing left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from memberscope.errors import ConfigError, MemberscopeError, ModelError
from memberscope.training.scheduler import InProcess, LocalWorkers

TASKS = '''
"""Tasks that workers import by name."""
import os, signal, time
from dataclasses import dataclass
from pathlib import Path
from memberscope.errors import ConfigError, MemberscopeError

def total(arrays, item, tell):
    tell(0.5)
    return os.getpid(), float(arrays["x"][item].sum()) + float(arrays["y"][item])

def write(arrays, item, tell):
    before = int(arrays["y"][item])
    arrays["y"][:] = -1
    return before

@dataclass(frozen=True)
class DieOnce:
    folder: Path
    always: bool = False
    def __call__(self, arrays, item, tell):
        mark = self.folder / f"died-{item}"
        if item == 1 and (self.always or not mark.exists()):
            mark.touch()
            print("last words", file=__import__("sys").stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return item * 10

@dataclass(frozen=True)
class Fail:
    how: str
    def __call__(self, arrays, item, tell):
        if self.how == "config":
            raise ConfigError("bad setting", "mend it")
        if self.how == "own":
            class Other(MemberscopeError): pass
            raise Other("unknown kind", "look again")
        return {}["missing"]

@dataclass(frozen=True)
class Sleep:
    folder: Path
    def __call__(self, arrays, item, tell):
        (self.folder / f"pid-{os.getpid()}").touch()
        time.sleep(60)

@dataclass(frozen=True)
class Slow:
    def __call__(self, arrays, item, tell):
        for step in range(10):
            time.sleep(0.1)
            tell(step / 10)
        return item
'''


class Heard:
    def __init__(self) -> None:
        self.fractions: list[tuple[int, float]] = []
        self.deaths: list[tuple[int, str]] = []

    def on_fraction(self, item: int, fraction: float) -> None:
        self.fractions.append((item, fraction))

    def on_death(self, item: int, reason: str) -> None:
        self.deaths.append((item, reason))


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "tasks_of_the_scheduler_test.py").write_text(TASKS)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "tasks_of_the_scheduler_test", raising=False)
    import tasks_of_the_scheduler_test

    return tasks_of_the_scheduler_test


ARRAYS = {
    "x": np.arange(24, dtype=np.float32).reshape(6, 2, 2),
    "flags": np.zeros(3, bool),
    "y": np.arange(6) * 100,
    "none": np.empty((0, 4), np.float32),
}


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_item_once_with_the_same_results_wherever_it_runs(tasks, tmp_path, workers):
    place = InProcess(ARRAYS) if workers == 0 else LocalWorkers(ARRAYS, workers, tmp_path)
    try:
        results = list(place.run(tasks.total, [5, 0, 3, 2]))
        assert sorted((item, value) for item, (_, value) in results) == [
            (item, float(ARRAYS["x"][item].sum()) + 100 * item) for item in (0, 2, 3, 5)
        ]
        pids = {pid for _, (pid, _) in results}
        assert (os.getpid() in pids) == (workers == 0)
        again = {pid for _, (pid, _) in place.run(tasks.total, [1])}
        assert again <= pids or workers == 3  # the workers stay; of three, the second call may need another one
    finally:
        place.close()


def test_workers_share_the_records_but_not_what_they_write_to_them(tasks, tmp_path):
    with LocalWorkers(ARRAYS, 2, tmp_path) as place:
        first = dict(place.run(tasks.write, [2, 3]))
        assert first == {2: 200, 3: 300}
        assert ARRAYS["y"][2] == 200
        assert list(tmp_path.glob("tmp*")) == []  # the file has no name: nothing to clean up after a kill


def test_a_worker_that_dies_is_replaced_once_and_the_death_is_told(tasks, tmp_path):
    heard = Heard()
    with LocalWorkers(ARRAYS, 2, tmp_path) as place:
        assert dict(place.run(tasks.DieOnce(tmp_path), [0, 1, 2], heard)) == {0: 0, 1: 10, 2: 20}
    assert [item for item, _ in heard.deaths] == [1]
    assert heard.deaths[0][1] == "SIGKILL (out of memory?); last words"


def test_a_worker_that_dies_twice_ends_the_work_with_the_reason(tasks, tmp_path):
    with LocalWorkers(ARRAYS, 1, tmp_path) as place:
        with pytest.raises(ModelError, match=r"died 2 times at item 1: SIGKILL .*last words"):
            list(place.run(tasks.DieOnce(tmp_path, always=True), [0, 1, 2]))
        assert dict(place.run(tasks.DieOnce(tmp_path), [2])) == {2: 20}  # and the place still works


def test_errors_of_a_task_arrive_as_they_were(tasks, tmp_path):
    with LocalWorkers(ARRAYS, 1, tmp_path) as place:
        with pytest.raises(ConfigError) as caught:
            list(place.run(tasks.Fail("config"), [0]))
        assert (caught.value.problem, caught.value.hint) == ("bad setting", "mend it")
        with pytest.raises(MemberscopeError) as caught:
            list(place.run(tasks.Fail("own"), [0]))
        assert (caught.value.problem, caught.value.hint) == ("unknown kind", "look again")
        with pytest.raises(RuntimeError, match=r"in a worker process:(.|\n)*KeyError: 'missing'"):
            list(place.run(tasks.Fail("bug"), [0]))
        assert dict(place.run(tasks.DieOnce(tmp_path), [3])) == {3: 30}


def test_fractions_are_told_now_and_then(tasks, tmp_path):
    heard = Heard()
    with LocalWorkers(ARRAYS, 1, tmp_path) as place:
        assert dict(place.run(tasks.Slow(), [4], heard)) == {4: 4}
    assert 1 <= len(heard.fractions) <= 3
    assert all(item == 4 and 0 < fraction < 1 for item, fraction in heard.fractions)


def test_work_left_early_does_not_answer_the_next_call(tasks, tmp_path):
    with LocalWorkers(ARRAYS, 2, tmp_path) as place:
        running = place.run(tasks.total, [0, 1, 2, 3, 4, 5])
        next(running)
        running.close()
        assert dict(place.run(tasks.DieOnce(tmp_path), [2, 3])) == {2: 20, 3: 30}
        place.keep(1)
        assert len({pid for _, (pid, _) in place.run(tasks.total, [0, 1, 2])}) == 1


SCRIPT = """
import sys
from pathlib import Path
import numpy as np
import tasks_of_the_scheduler_test as tasks
from memberscope.training.scheduler import LocalWorkers
place = LocalWorkers({"x": np.zeros(3)}, 2, Path(sys.argv[1]))
print(sorted(place.run(tasks.DieOnce(Path(sys.argv[1])), [2, 3])), flush=True)
list(place.run(tasks.Sleep(Path(sys.argv[1])), [0, 1]))
"""


@pytest.mark.parametrize("signal_number", [2, 9])
def test_workers_end_with_their_parent_and_need_no_main_guard(tasks, tmp_path, signal_number):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        # Background jobs are born deaf to SIGINT, and this test may run in one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        pids = _until(lambda: [int(p.name[4:]) for p in tmp_path.glob("pid-*")], lambda found: len(found) == 2)
        os.kill(parent.pid, signal_number)
        assert parent.wait(timeout=20) == -signal_number
        assert parent.stdout.read() == "[(2, 20), (3, 30)]\n"
        _until(lambda: [pid for pid in pids if _runs(pid)], lambda left: not left)
    finally:
        parent.kill()
        parent.stdout.close()
        parent.wait()


def test_no_room_for_the_records_is_told(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(MemberscopeError, match="No space left on device") as caught:
        LocalWorkers(ARRAYS, 2, Path(tmp_path))
    assert "one worker" in caught.value.hint


def _until(look, enough, seconds=20.0):
    end = time.monotonic() + seconds
    while not enough(found := look()):
        assert time.monotonic() < end, found
        time.sleep(0.05)
    return found


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
