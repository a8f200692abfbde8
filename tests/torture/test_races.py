"""Several runs of one batch at once: one whole result stands, and nobody ever reads a mix."""

import multiprocessing
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import pytest
from racers import RACERS, day_of, prepare, publish_once, read_whole, watch
from scene import NIGHT, Scene

from tasks import warehouse

SCORE = ("score", "orders", "--date", NIGHT.isoformat())
OVERTAKEN = (
    "a newer attempt has published",
    "validated again while this night ran",
    "input changed while it was scored",
)


def test_of_eight_that_publish_one_batch_at_once_the_newest_stands_and_no_reader_sees_a_mix(
    warehouse_url: str, pytestconfig: pytest.Config, note: Callable[..., None]
) -> None:
    prepare(warehouse_url)
    forked = multiprocessing.get_context("forkserver")
    reads = 0
    with ProcessPoolExecutor(RACERS + 1, mp_context=forked) as pool:
        for number in range(pytestconfig.getoption("rounds")):
            day = day_of(number)
            reader = pool.submit(watch, warehouse_url, day, 0.3)
            racers = [pool.submit(publish_once, warehouse_url, day, 100 * number + place) for place in range(RACERS)]
            outcomes = dict(racer.result() for racer in racers)
            reads += reader.result()
            assert sorted(outcomes) == list(range(1, RACERS + 1))  # no number is given twice
            assert read_whole(warehouse_url, day) == max(number for number, published in outcomes.items() if published)
            assert outcomes[RACERS], "nobody can overtake the newest"
            kind = "PostgreSQL" if "postgres" in warehouse_url else "DuckDB"
            note("eight publish one batch at once, one reads", kind, "the newest, whole")
    assert reads


@pytest.mark.parametrize("runs", [2, RACERS])
def test_whole_runs_of_one_batch_at_once_leave_what_one_run_leaves(
    scene: Scene, runs: int, pytestconfig: pytest.Config, note: Callable[..., None]
) -> None:
    scene.put_back()
    scene.run(*SCORE)
    whole = scene.digest()
    for _ in range(max(1, pytestconfig.getoption("rounds") // 20)):
        scene.put_back()
        victims = [scene.start(*SCORE) for _ in range(runs)]
        codes = [victim.end() for victim in victims]
        texts = [victim.text for victim, code in zip(victims, codes, strict=True) if code]
        assert 0 in codes
        assert all(any(words in text for words in OVERTAKEN) for text in texts), texts
        assert scene.digest() == whole
        assert {one.status for one in warehouse.read_attempts(scene.engine, "orders", NIGHT)} <= {"published", "failed"}
        note(f"{runs} runs of one batch at once", scene.kind, "as one run")


def test_an_old_run_that_wakes_up_after_a_newer_one_has_published_is_refused(
    scene: Scene, note: Callable[..., None]
) -> None:
    scene.put_back()
    old = scene.start(*SCORE)
    assert old.wait_for("rows scored")
    old.send(signal.SIGSTOP)
    scene.run(*SCORE)
    published = scene.digest()
    old.send(signal.SIGCONT)
    code = old.end()
    assert (code, scene.digest()) == (1, published)
    assert "a newer attempt has published this batch; its rows were left as they are" in old.text
    first, second = warehouse.read_attempts(scene.engine, "orders", NIGHT)
    assert (first.status, second.status) == ("failed", "published")
    note("an old run wakes up after a newer one", scene.kind, "refused, exit 1")


def test_a_champion_that_changes_in_the_middle_changes_nothing_tonight(scene: Scene, note: Callable[..., None]) -> None:
    scene.put_back()
    scene.run("train", "orders", "--cutoff", NIGHT.isoformat())
    running = scene.start(*SCORE)
    assert running.wait_for("Task run 'resolve champion of orders' - Finished")
    running.send(signal.SIGSTOP)
    scene.run("promote", "orders", "2")
    running.send(signal.SIGCONT)
    assert running.end() == 0, running.text
    batch = next(b for b in warehouse.read_batches(scene.engine, "orders") if b.batch_date == NIGHT)
    flags = warehouse.read_flags(scene.engine, "orders", NIGHT)
    assert (batch.model_version, set(flags["model_version"])) == (1, {1})
    assert "scored by version 1, the champion is 2" in scene.run("status", "orders", COLUMNS="200")
    note("the champion changes in the middle", scene.kind, "one version, then stale")
