"""Runs are killed from outside, at the boundaries of steps and at any moment; what comes after is as if nothing was."""

import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from scene import NIGHT, Scene
from victims import Victim

from tasks import warehouse
from tasks.tables import flagged_anomalies, group_scores, scoring_batches

FINISHED = "Finished in state Completed()"
SCORE = ("score", "orders", "--date", NIGHT.isoformat())
TRAIN = ("train", "orders", "--cutoff", NIGHT.isoformat())
SHOWN = (flagged_anomalies, scoring_batches, group_scores)
LIVES = 2  # kills in a row, before a run is let to its end


def kill(victim: Victim, boundary: int, seconds: float) -> str:
    """Kill a run so many seconds after so many of its steps have ended; returns where that was."""
    victim.wait_for(FINISHED, boundary) if boundary else victim.wait_for("Beginning flow run")
    time.sleep(seconds)
    was_running = victim.is_running
    victim.kill()
    done = re.findall(r"Task run '(\w+)[^']*' - Finished", victim.text)
    return f"after {done[-1] if done else 'the start'}" if was_running else "after its end"


def plan_kills(kills: int, steps: int, seconds: float) -> Iterator[tuple[int, float]]:
    """Every boundary in turn; a moment after one; any moment of a run's life."""
    rng = random.Random(kills)
    boundaries = rng.sample(range(steps + 1), steps + 1)
    for number in range(kills):
        boundary = boundaries[number // 3 % len(boundaries)]
        yield ((boundary, 0.0), (boundary, rng.uniform(0, 0.2)), (0, rng.uniform(0, seconds)))[number % 3]


def time_steps(scene: Scene, *arguments: str) -> tuple[int, float]:
    """Run a command to its end: how many steps it has, and how long it takes."""
    started = time.monotonic()
    text = scene.run(*arguments)
    return text.count(FINISHED), time.monotonic() - started


def list_finished(scene: Scene) -> dict[Path, int]:
    """The parts of scores that are finished, and when they were."""
    receipts = (scene.home / "lake/scores/orders").rglob("part-*.json")
    return {path: path.with_suffix(".parquet").stat().st_mtime_ns for path in receipts}


def test_a_night_that_is_killed_and_run_again_ends_as_if_nothing_had_been(
    scene: Scene, pytestconfig: pytest.Config, note: Callable[..., None]
) -> None:
    scene.put_back()
    steps, seconds = time_steps(scene, *SCORE)
    whole, shown = scene.digest(), [scene.read_table(table, NIGHT) for table in SHOWN]
    assert all(shown)
    scene.put_back()
    places = []
    kills = pytestconfig.getoption("kills")
    for number, (boundary, moment) in enumerate(plan_kills(kills, steps, seconds), start=1):
        places.append(kill(scene.start(*SCORE), boundary, moment))
        assert [scene.read_table(table, NIGHT) for table in SHOWN] in ([[], [], []], shown), places  # nothing, or all
        scene.digest()  # every manifest names whole files
        if number % LIVES and number < kills:
            continue
        finished = list_finished(scene)
        scene.run(*SCORE)
        assert scene.digest() == whole, places
        assert finished.items() <= list_finished(scene).items(), places  # not computed again
        *tries, last = warehouse.read_attempts(scene.engine, "orders", NIGHT)
        assert last.status == "published"
        assert all(one.status == "published" or "died without a word" in one.cause for one in tries)
        while places:
            note(f"scoring killed {places.pop()}", scene.kind, "as uninterrupted")
        scene.put_back()


def test_a_training_that_is_killed_and_run_again_registers_one_whole_version(
    scene: Scene, pytestconfig: pytest.Config, note: Callable[..., None]
) -> None:
    scene.put_back()
    steps, seconds = time_steps(scene, *TRAIN)
    whole = scene.read_versions()
    assert [aliases for _, aliases in whole.values()] == ["champion", "challenger"]
    scene.put_back()
    places = []
    kills = max(2, pytestconfig.getoption("kills") // 4)
    for number, (boundary, moment) in enumerate(plan_kills(kills, steps, seconds), start=1):
        places.append(kill(scene.start(*TRAIN), boundary, moment))
        assert [one for one, _ in scene.read_versions().values()] in ([whole[1][0]], [whole[1][0], whole[2][0]]), places
        if number % LIVES and number < kills:
            continue
        scene.run(*TRAIN)
        assert scene.read_versions() == whole, places
        assert {status for (status,) in scene.ask_mlflow("select status from runs")} <= {"FINISHED", "KILLED"}
        while places:
            note(f"training killed {places.pop()}", scene.kind, "one whole version")
        scene.put_back()


def test_prefect_shows_killed_runs_as_crashed_when_the_next_one_has_begun(scene: Scene) -> None:
    scene.put_back()
    kill(scene.start(*SCORE), 2, 0)
    scene.run(*SCORE)
    with get_client(sync_client=True) as client:
        runs = [run for run in client.read_flow_runs(limit=200) if run.state]
    assert not [run.name for run in runs if run.state and run.state.is_running()]
    assert any(run.state and "its process died" in str(run.state.message) for run in runs)


def test_without_a_server_a_killed_run_is_marked_as_well(scene: Scene) -> None:
    if scene.postgres:
        pytest.skip("the warehouse plays no part in it: once is enough")
    scene.put_back()
    alone = {
        name: value
        for name, value in (os.environ | scene.environment).items()
        if name not in ("PREFECT_API_URL", "PREFECT_HOME")
    }
    command = [str(Path(sys.executable).with_name("nightjar")), *SCORE]
    with subprocess.Popen(command, env=alone, stderr=subprocess.PIPE, text=True, start_new_session=True) as victim:
        assert any("Task run 'validate orders' - Finished" in line for line in victim.stderr or ())
        os.killpg(victim.pid, signal.SIGKILL)
    subprocess.run(command, env=alone, check=True, capture_output=True)
    with closing(sqlite3.connect(scene.home / "prefect/prefect.db")) as connection:
        runs = connection.execute(
            "select state_type, count(*) from flow_run where name like 'score%' group by 1"
        ).fetchall()
    assert dict(runs) == {"CRASHED": 1, "COMPLETED": 1}
    dead, done = warehouse.read_attempts(scene.engine, "orders", NIGHT)
    assert (dead.status, done.status) == ("failed", "published")
    assert "died without a word" in str(dead.cause)
