"""Runs are killed and race each other, on both warehouses; the final result is that of an undisturbed run.

Kills happen at step boundaries and at random moments. Of concurrent runs, one complete result remains, and no reader
sees a mix. Both kinds of test are in one file to share their scenes.
"""

import multiprocessing
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient
from racers import RACERS, day_of, prepare, publish_once, read_whole, watch
from scene import NIGHT, Scene
from victims import Victim

from tasks.stores.tables import flagged_anomalies, group_scores, scoring_batches

FINISHED = "Finished in state Completed()"
SCORE = ("score", "orders", "--date", NIGHT.isoformat())
TRAIN = ("train", "orders", "--cutoff", NIGHT.isoformat())
SHOWN = (flagged_anomalies, scoring_batches, group_scores)
LIVES = 2  # consecutive kills before a run may finish
OVERTAKEN = (
    "A newer attempt has already published",
    "Another run validated the batch again",
    "input changed while it was scored",
)


def kill(victim: Victim, boundary: int, seconds: float) -> str:
    """Kill a run some seconds after the given number of its steps has ended; returns where that was."""
    victim.wait_for(FINISHED, boundary) if boundary else victim.wait_for("Beginning flow run")
    time.sleep(seconds)
    was_running = victim.is_running
    victim.kill()
    done = re.findall(r"Task run '(\w+)[^']*' - Finished", victim.text)
    return f"after {done[-1] if done else 'the start'}" if was_running else "after its end"


def plan_kills(kills: int, steps: int, seconds: float) -> Iterator[tuple[int, float]]:
    """In turn: at a boundary, just after one, and at any moment of a run (starting up takes a third of it)."""
    rng = random.Random(kills)
    boundaries = rng.sample(range(steps + 1), steps + 1)
    for number in range(kills):
        boundary = boundaries[number // 3 % len(boundaries)]
        yield ((boundary, 0.0), (boundary, rng.uniform(0, 0.2)), (0, rng.uniform(0, 0.7 * seconds)))[number % 3]


@pytest.fixture
def on_any_warehouse(scene: Scene, pytestconfig: pytest.Config) -> None:
    """The engine does not matter: one is enough, except in make torture."""
    if scene.postgres and pytestconfig.getoption("kills") < 10:
        pytest.skip("only in make torture: the warehouse does not matter here")


def time_steps(scene: Scene, *arguments: str) -> tuple[int, float]:
    """Run a command to its end; returns its number of steps and its seconds."""
    started = time.monotonic()
    text = scene.run(*arguments)
    return text.count(FINISHED), time.monotonic() - started


def test_a_night_that_is_killed_and_run_again_ends_like_an_uninterrupted_one(
    scene: Scene, pytestconfig: pytest.Config, note: Callable[..., None]
) -> None:
    kill_nights(scene, pytestconfig.getoption("kills"), note)


def test_a_killed_night_with_its_lake_on_s3_ends_like_an_uninterrupted_one(
    remote_scene: Scene, pytestconfig: pytest.Config, note: Callable[..., None]
) -> None:
    kill_nights(remote_scene, max(2, pytestconfig.getoption("kills") // 2), note)


def kill_nights(scene: Scene, kills: int, note: Callable[..., None]) -> None:
    """Kill runs of a night at various places, two in a row, and compare the result of the next run with the first."""
    scene.put_back()
    steps, seconds = time_steps(scene, *SCORE)
    whole, shown = scene.read_all(), [scene.read_table(table, NIGHT) for table in SHOWN]
    assert all(shown)
    named = scene.list_files()
    scene.put_back()
    places = []
    for number, (boundary, moment) in enumerate(plan_kills(kills, steps, seconds), start=1):
        places.append(kill(scene.start(*SCORE), boundary, moment))
        assert [scene.read_table(table, NIGHT) for table in SHOWN] in ([[], [], []], shown), (
            places
        )  # nothing or everything
        scene.read_all()  # every manifest lists complete files
        if number % LIVES and number < kills:
            continue
        finished = scene.list_finished()
        scene.run(*SCORE)
        assert scene.read_all() == whole, places
        assert finished.items() <= scene.list_finished().items(), places  # not recomputed
        scene.prune_later()
        assert scene.list_files() == named, places  # only orphans are gone
        assert scene.read_all() == whole, places
        *earlier, last = scene.warehouse.read_attempts("orders", NIGHT)
        assert last.status == "published"
        assert all(one.status == "published" or "died without a message" in str(one.parts) for one in earlier)
        while places:
            note(f"scoring killed {places.pop()}", scene.kind, "as uninterrupted")
        scene.put_back()


@pytest.mark.usefixtures("on_any_warehouse")
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


@pytest.mark.usefixtures("on_any_warehouse")
def test_prefect_shows_killed_runs_as_crashed_once_the_next_run_starts(scene: Scene) -> None:
    scene.put_back()
    kill(scene.start(*SCORE), 2, 0)
    scene.run(*SCORE)
    with SyncPrefectClient(scene.environment["PREFECT_API_URL"]) as client:
        runs = [run for run in client.read_flow_runs(limit=200) if run.state]
    assert not [run.name for run in runs if run.state and run.state.is_running()]
    assert any(run.state and "its process died" in str(run.state.message) for run in runs)


def test_without_a_server_a_killed_run_is_marked_too(scene: Scene) -> None:
    if scene.postgres:
        pytest.skip("the warehouse does not matter here: once is enough")
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
    dead, done = scene.warehouse.read_attempts("orders", NIGHT)
    assert (dead.status, done.status) == ("failed", "published")
    assert "died without a message" in str(dead.parts)


def test_when_eight_processes_publish_one_batch_the_newest_wins_and_no_reader_sees_a_mix(
    warehouse_url: str, pytestconfig: pytest.Config, note: Callable[..., None], tmp_path: Path
) -> None:
    prepare(warehouse_url)
    forked = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(RACERS + 1, mp_context=forked) as pool:
        for number in range(pytestconfig.getoption("rounds")):
            day, over = day_of(number), tmp_path / f"{number}.over"
            reader = pool.submit(watch, warehouse_url, day, RACERS, over)
            racers = [pool.submit(publish_once, warehouse_url, day, 100 * number + place) for place in range(RACERS)]
            try:
                outcomes = dict(racer.result() for racer in racers)
            finally:
                over.touch()
            reader.result()  # it saw the newest, and never a mix or an older one after a newer
            assert sorted(outcomes) == list(range(1, RACERS + 1))  # attempt numbers are unique
            assert read_whole(warehouse_url, day) == max(number for number, published in outcomes.items() if published)
            assert outcomes[RACERS], "nobody can overtake the newest"
            kind = "PostgreSQL" if "postgres" in warehouse_url else "DuckDB"
            note("eight publish one batch at once, one reads", kind, "the newest, whole")


@pytest.mark.parametrize("runs", [2, RACERS])
def test_concurrent_runs_of_one_batch_give_the_result_of_one_run(
    scene: Scene, runs: int, pytestconfig: pytest.Config, note: Callable[..., None]
) -> None:
    rounds = pytestconfig.getoption("rounds") // 20
    if runs > 2 and not rounds:
        pytest.skip("left to make torture: two at once are tried here")
    scene.put_back()
    scene.run(*SCORE)
    whole = scene.read_all()
    for _ in range(max(1, rounds)):
        scene.put_back()
        victims = [scene.start(*SCORE) for _ in range(runs)]
        codes = [victim.end() for victim in victims]
        texts = [victim.text for victim, code in zip(victims, codes, strict=True) if code]
        assert 0 in codes
        assert all(any(words in text for words in OVERTAKEN) for text in texts), texts
        assert scene.read_all() == whole
        assert {one.status for one in scene.warehouse.read_attempts("orders", NIGHT)} <= {"published", "failed"}
        note(f"{runs} runs of one batch at once", scene.kind, "as one run")


def test_a_paused_run_that_resumes_after_a_newer_one_has_published_is_refused(
    scene: Scene, note: Callable[..., None]
) -> None:
    scene.put_back()
    old = scene.start(*SCORE, pause_at="rows scored")
    assert old.wait_until_paused(), old.text
    scene.run(*SCORE)
    published = scene.read_all()
    old.send(signal.SIGCONT)
    code = old.end()
    assert (code, scene.read_all()) == (1, published)
    assert "A newer attempt has already published this batch; nothing was changed" in old.text
    first, second = scene.warehouse.read_attempts("orders", NIGHT)
    assert (first.status, second.status) == ("failed", "published")
    note("an old run wakes up after a newer one", scene.kind, "refused, exit 1")


@pytest.mark.usefixtures("on_any_warehouse")
def test_a_champion_that_changes_during_a_night_does_not_change_that_night(
    scene: Scene, note: Callable[..., None]
) -> None:
    scene.put_back()
    scene.run("train", "orders", "--cutoff", NIGHT.isoformat())
    running = scene.start(*SCORE, pause_at=" quarantined")  # validated, so the champion is resolved and nothing scored
    assert running.wait_until_paused(), running.text
    scene.run("promote", "orders", "2")
    running.send(signal.SIGCONT)
    assert running.end() == 0, running.text
    batch = next(b for b in scene.warehouse.read_nights("orders") if b.batch_date == NIGHT)
    flags = scene.warehouse.read_flags("orders", NIGHT)
    assert (batch.model_version, set(flags["model_version"])) == (1, {1})
    assert "scored by version 1 instead of 2" in scene.run("status", "orders", COLUMNS="200")
    note("the champion changes in the middle", scene.kind, "one version, then stale")
