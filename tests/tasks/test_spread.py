"""Parts of a batch scored by several threads: the same bytes, every failure reported, nothing computed twice."""

import pickle
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from prefect.settings import PREFECT_API_URL, temporary_settings
from tiny import make_tiny_detector

from models.columns import Column
from models.detector import ModelParams, fit_detector
from models.fitting import pin_arithmetic, resolve_device
from models.params import AutoencoderParams, FitParams
from models.records import make_records
from tasks.errors import ParamsInvalid, RunFailed, ServiceUnreachable, SourceInvalid
from tasks.rows.contract import Contract
from tasks.rows.params import ScoreParams
from tasks.rows.validation import Validation
from tasks.score import score_night
from tasks.spread import Workers, find_unscored, raise_failures, score_parts, score_pieces, share_out
from tasks.stores.lake import Manifest, Part
from tasks.stores.registry import HASH_TAG, Version
from tasks.stores.site import Site
from tasks.stores.warehouse import Warehouse

DAY, NOW = date(2026, 3, 1), datetime(2026, 3, 2, tzinfo=UTC)
CONTRACT = Contract.model_validate(
    {"columns": {"amount": {"type": "float"}, "country": {"type": "text"}}}, strict=False
)
PARAMS = ScoreParams(max_alerts=20)
PARTS, ROWS = 8, 4000


def make_rows(number: int) -> pa.Table:
    generator = torch.Generator().manual_seed(number)
    amounts = torch.randn(ROWS, generator=generator, dtype=torch.float64).numpy()
    return pa.table(
        {
            "record_id": [f"{number}-{row}" for row in range(ROWS)],
            "event_time": pa.array([NOW] * ROWS, pa.timestamp("us", "UTC")),
            "amount": amounts,
            "country": ["DE", "FR"] * (ROWS // 2),
            "at": pa.array([NOW] * ROWS, pa.timestamp("us", "UTC")),
        }
    )


@pytest.fixture
def version(site: Site) -> Version:
    """A registered version whose bundle is on this machine already."""
    detector = make_tiny_detector()
    content_hash = detector.save(site.registry.bundles / "new")
    (site.registry.bundles / "new").rename(site.registry.bundles / f"version-1-{content_hash[:12]}")
    return Version("nightjar-toy", 1, (), {HASH_TAG: content_hash})


@pytest.fixture
def bundle(site: Site, version: Version) -> Path:
    return site.registry.bundles / f"version-1-{version.tags[HASH_TAG][:12]}"


@pytest.fixture
def validated(put_validated) -> Manifest:
    return put_validated(DAY, *(make_rows(number) for number in range(PARTS)))


@pytest.fixture
def validation() -> Validation:
    return Validation(DAY, f"landing of {DAY}", PARTS * ROWS, PARTS * ROWS, 0, 0, {})


def read_scores(site: Site, inputs: str) -> tuple[list[str], pd.DataFrame]:
    found = site.lake.get("scores", "toy", DAY, inputs)
    return [part.sha256 for part in found.parts], site.lake.read_frame(found.facts["flags"])


@pytest.mark.slow
def test_parts_that_four_threads_score_at_once_are_those_of_one(
    site: Site, validated: Manifest, validation: Validation, version: Version, bundle: Path
) -> None:
    alone = score_night(site, CONTRACT, validation, version, bundle, PARAMS, NOW)
    expected = read_scores(site, alone.scores)
    shutil.rmtree(f"{site.lake.root}/scores")
    unscored = find_unscored(site, CONTRACT, validation, version, bundle, PARAMS)
    assert len(unscored.parts) == PARTS
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda part: score_pieces(unscored.job, [part]), unscored.parts))
    assert rows == [ROWS] * PARTS
    assert find_unscored(site, CONTRACT, validation, version, bundle, PARAMS).parts == ()
    together = score_night(site, CONTRACT, validation, version, bundle, PARAMS, NOW)
    hashes, flags = read_scores(site, together.scores)
    assert (together, hashes) == (alone, expected[0])
    pd.testing.assert_frame_equal(flags, expected[1], check_exact=True)


def test_the_number_of_threads_of_one_scoring_is_not_another_ones() -> None:
    seen, started = [], torch.get_num_threads()
    with ThreadPoolExecutor(2) as pool:
        for threads in (1, 2, 3):
            with pin_arithmetic(threads):
                pool.submit(lambda: seen.append(torch.get_num_threads())).result()
                with ThreadPoolExecutor(1) as other:
                    other.submit(torch.set_num_threads, 7).result()
                assert torch.get_num_threads() == threads
    assert len(set(seen)) == 1
    assert torch.get_num_threads() == started


def test_wide_networks_score_the_same_in_four_threads_at_once() -> None:
    columns = tuple(Column(f"c{number}", "numeric") for number in range(40))
    parts = [
        make_records(np.random.default_rng(seed).normal(size=(3000, 40)), None, None, None, None) for seed in range(5)
    ]
    params = ModelParams(
        networks=(AutoencoderParams(layers=(256, 32, 256)),), fit=FitParams(epochs=1, batch_size=64), threads=1
    )
    detector = fit_detector(columns, parts[4][:300], parts[4][300:400], params, torch.device("cpu"))
    alone = [detector.score(part) for part in parts]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert all(map(np.array_equal, alone, pool.map(detector.score, parts)))


def test_a_part_that_is_finished_is_not_scored_again(
    site: Site, validated: Manifest, validation: Validation, version: Version, bundle: Path
) -> None:
    unscored = find_unscored(site, CONTRACT, validation, version, bundle, PARAMS)
    first, second = unscored.parts[:2]
    assert score_pieces(unscored.job, [first]) == ROWS
    assert score_pieces(unscored.job, [first, second]) == ROWS  # the first was there
    left = find_unscored(site, CONTRACT, validation, version, bundle, PARAMS)
    assert (left.parts, left.rows_done) == (unscored.parts[2:], 2 * ROWS)
    score_night(site, CONTRACT, validation, version, bundle, PARAMS, NOW)
    assert find_unscored(site, CONTRACT, validation, version, bundle, PARAMS).parts == ()


def test_what_travels_is_small_and_leads_to_no_warehouse(
    site: Site, validated: Manifest, validation: Validation, version: Version, bundle: Path
) -> None:
    secret = "s3cret"
    with_secrets = replace(
        site,
        device="auto",
        warehouse=Warehouse(f"postgresql+psycopg://u:{secret}@h/d"),
        registry=replace(site.registry, uri=f"http://u:{secret}@h:5000"),
        sources=f"ftp://u:{secret}@h",
    )
    unscored = find_unscored(with_secrets, CONTRACT, validation, version, bundle, PARAMS)
    sent = pickle.dumps((unscored.job, unscored.parts[:1]))
    assert secret.encode() not in sent
    assert len(sent) < 10_000
    assert b"Warehouse" not in sent
    assert unscored.job.device == resolve_device("auto").type  # not what the worker's own machine has
    assert unscored.job.registry.uri == "http://h:5000"


@pytest.mark.parametrize(
    ("parts", "tasks", "longest"), [(0, 0, 0), (1, 1, 1), (500, 500, 1), (501, 251, 2), (10_000, 500, 20)]
)
def test_parts_are_shared_out_in_order_among_hundreds_of_tasks(parts: int, tasks: int, longest: int) -> None:
    named = [(f"part-{number}", Part("p", 1, "")) for number in range(parts)]
    shares = share_out(named, 500)
    assert [piece for share in shares for piece in share] == named
    assert (len(shares), max(map(len, shares), default=0)) == (tasks, longest)


def test_all_failures_are_raised_once() -> None:
    away, other = ServiceUnreachable("the lake is away"), SourceInvalid("part-3 is damaged")
    raise_failures([], 3)
    with pytest.raises(ServiceUnreachable):
        raise_failures([away, ServiceUnreachable("the lake is away")], 3)
    with pytest.raises(RunFailed, match=r"3 of 5 tasks failed[\s\S]*the lake is away[\s\S]*part-3 is damaged") as got:
        raise_failures([away, other, away], 5)
    assert str(got.value).count("the lake is away") == 1


@pytest.mark.parametrize("server", ["", "http://127.0.0.1:9/api"])
def test_dask_that_cannot_be_used_says_what_is_missing(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.spread.CONNECT_S", 1)
    asked = Workers("tcp://127.0.0.1:9")
    with temporary_settings({PREFECT_API_URL: server or None}):
        error, words = (ServiceUnreachable, r"tcp://127\.0\.0\.1:9") if server else (ParamsInvalid, "PREFECT_API_URL")
        with pytest.raises(error, match=words):
            asked.run(score_parts, [{}], lambda done: None)
        monkeypatch.setitem(sys.modules, "prefect_dask.task_runners", None)
        with pytest.raises(ParamsInvalid, match=r"nightjar\[dask\]"):
            asked.run(score_parts, [{}], lambda done: None)


def test_nothing_to_do_needs_no_cluster() -> None:
    assert Workers("tcp://127.0.0.1:9").run(score_parts, [], lambda done: None) == []


def test_a_finished_piece_whose_result_died_with_its_worker_is_not_awaited_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Dask says that it is done, and then waits for the result: the moment between cannot be met on purpose."""

    class Lost:
        wrapped_future = SimpleNamespace(done=lambda: True, cancelled=lambda: False)

        def result(self, timeout: float, raise_on_failure: bool) -> None:
            raise TimeoutError

    monkeypatch.setattr("tasks.spread.PATIENCE_S", 0)
    runner = SimpleNamespace(client=SimpleNamespace(scheduler_info=lambda: {"workers": {}}))
    with pytest.raises(ServiceUnreachable, match="The Dask cluster has no workers"):
        Workers("tcp://scheduler:8786")._take(runner, Lost())  # type: ignore[arg-type]
