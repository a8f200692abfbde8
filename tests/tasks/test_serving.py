"""The real scoring server of MLflow over the champion: its answers are those of the night, its refusals say why."""

import base64
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from network import find_free_port
from sites import open_site

from models.columns import Column, Tokens
from models.detector import Detector, ModelParams, calibrate_detector, fit_detector
from models.params import AutoencoderParams, FitParams, ForestReducerParams, QuantilePolicy
from models.reducer import Gain, Reducer, ReducerHeader, Verdicts, fit_classifier
from tasks.errors import RecordInvalid
from tasks.publish import publish_night
from tasks.register import register_bundle
from tasks.rows.columns import to_records
from tasks.rows.contract import Contract
from tasks.rows.params import ScoreParams
from tasks.score import COUNTS, score_batch
from tasks.serving import MOST_ROWS, ServedDetector, type_values
from tasks.sources.images import make_field
from tasks.stores.site import Site
from tasks.stores.tables import Night

DAY, NOW = date(2026, 3, 1), datetime(2026, 3, 2, 4, tzinfo=UTC)
ROWS = 400
COLUMNS = (
    Column("amount", "log_numeric"),
    Column("age", "numeric"),
    Column("country", "categorical", ("DE", "FR")),
    Column("gate", "categorical", ("1", "2", "3")),
    Column("paid_at", "datetime"),
    Column("photo", "image", shape=(4, 3)),
    Column("note", "sequence", ("blue", "green", "red"), tokens=Tokens(words=3)),
)
NULLABLE = ("age", "country", "paid_at")
CONTRACT = Contract.model_validate(
    {"columns": {"amount": {"type": "float"}, "customer": {"type": "text", "masked": True}}}, strict=False
)
Answer = tuple[int, str]
STAMP = pa.timestamp("us", tz="UTC")


def make_rows(seed: int) -> pa.Table:
    """Rows as they are validated: every kind of column, missing values where they may be, categories and words unseen.

    The first thirty break the habit that age goes with amount, every other one upwards.
    """
    rng = np.random.default_rng(seed)
    age = rng.normal(size=ROWS)
    amount = np.exp(age + 0.1 * rng.normal(size=ROWS))
    wild = np.arange(ROWS) < 30
    amount[wild] *= np.where(np.arange(30) % 2 == 0, 40.0, 1 / 40)
    instants = [datetime(2026, 3, 1, tzinfo=UTC) + timedelta(microseconds=int(n)) for n in rng.integers(0, 2**36, ROWS)]
    some = np.arange(ROWS) % 17 == 5
    photos = [bytes(rng.integers(0, 256, 12, dtype=np.uint8)) for _ in range(ROWS)]
    arrays: dict[str, Any] = {
        "record_id": [f"r-{row}" for row in range(ROWS)],
        "event_time": pa.array(instants, STAMP),
        "amount": amount,
        "age": pa.array(age, mask=some),
        "country": pa.array(rng.choice(["DE", "FR", "Côte d'Ivoire"], ROWS), mask=some),
        "gate": rng.integers(1, 5, ROWS),
        "paid_at": pa.array(instants, STAMP, mask=some),
        "photo": pa.array(photos, pa.binary(12)),
        "note": [" ".join(rng.choice(["blue", "green", "red", "grey"], n)) for n in rng.integers(0, 5, ROWS)],
        "customer": [f"secret-{row}" for row in range(ROWS)],
    }
    table = pa.table(arrays)
    return table.cast(table.schema.set(table.schema.names.index("photo"), make_field("photo", (4, 3))))


def make_detector() -> Detector:
    """A calibrated detector with a second stage that suppresses what lies below the habit."""
    fit, stopping, clean = (to_records(make_rows(seed).slice(30), COLUMNS)[0] for seed in (1, 2, 3))
    learn = FitParams(epochs=15, batch_size=64, seed=1)
    params = ModelParams(networks=(AutoencoderParams(layers=(16, 4, 16)),), fit=learn)
    fitted = fit_detector(COLUMNS, fit, stopping, params, torch.device("cpu"))
    detector = calibrate_detector(fitted, clean, QuantilePolicy(q=0.95))
    everything = np.ones(30)
    flags = to_records(make_rows(4).slice(0, 30), COLUMNS)[0]
    verdicts = Verdicts(detector.describe(flags), np.arange(30) % 2 == 0, everything > 0, everything, np.arange(30))
    forest = ForestReducerParams(trees=20)
    gain = Gain(30, 30, 15, 1.0, 0.5, 1.0, 1.0, 0.5)
    reducer = Reducer(fit_classifier(verdicts, forest), ReducerHeader(params=forest, cut=0.5, gain=gain))
    lineage = {"trained_through": "2026-02-20", "cutoff": "2026-02-21", "nullable": list(NULLABLE)}
    return detector.with_reducer(reducer).with_lineage(lineage)  # type: ignore[arg-type]


def write_json(rows: pa.Table) -> list[dict[str, Any]]:
    """Rows as a client writes them."""
    return [
        {
            name: base64.b64encode(value).decode()
            if isinstance(value, bytes)
            else value.isoformat()
            if isinstance(value, datetime)
            else value
            for name, value in row.items()
        }
        for row in rows.to_pylist()
    ]


@dataclass(frozen=True)
class Served:
    """A published night, and the port at which the version that scored it answers."""

    site: Site
    rows: pa.Table
    scores: pd.DataFrame
    flags: pd.DataFrame
    detector: Detector
    port: int

    def ask(self, body: object, content_type: str | None = "application/json", to: str = "POST /invocations") -> Answer:
        """Status and text of an answer; a body that is neither text nor bytes is sent as JSON."""
        data = body if isinstance(body, str | bytes) else json.dumps(body)
        verb, path = to.split()
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request(verb, path, data, {"Content-Type": content_type} if content_type else {})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def predict(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        status, text = self.ask({"dataframe_records": rows})
        assert status == 200, text
        found: list[dict[str, Any]] = json.loads(text)["predictions"]
        return found


def start_server(site: Site, port: int, log: Path) -> subprocess.Popen[bytes]:
    command = [
        "mlflow",
        "models",
        "serve",
        "-m",
        f"models:/{site.registry.model_name}@champion",
        "--env-manager",
        "local",
    ]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # the server starts uvicorn by name
    environment = os.environ | {"PATH": path, "MLFLOW_TRACKING_URI": site.registry.uri}
    environment["MLFLOW_DISABLE_TELEMETRY"] = "true"
    with log.open("wb") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)


def wait_until_up(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        assert server.poll() is None, log.read_text()
        try:
            with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
                connection.request("GET", "/ping")
                assert connection.getresponse().status == 200
                return
        except OSError:
            time.sleep(0.1)
    pytest.fail(log.read_text())


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A night scored and published with a registered version, and the server over that version."""
    folder = tmp_path_factory.mktemp("serving")
    site = open_site(folder, artifacts=folder / "artifacts")
    make_detector().save(folder / "bundle")
    assert register_bundle(site, folder / "bundle", None).alias == "champion"
    port, log = find_free_port(), folder / "server.log"
    server = start_server(site, port, log)
    detector = Detector.load(folder / "bundle")
    scores, flags = publish(site, detector, make_rows(9))
    try:
        wait_until_up(port, server, log)
        yield Served(site, make_rows(9), scores, flags, detector, port)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def publish(site: Site, detector: Detector, rows: pa.Table) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Score and publish a night; the scores zone's rows and the table's flags."""
    engine = site.warehouse
    engine.migrate()
    partition = site.lake.write("validated", "toy", DAY)
    with partition.part("part-0") as part:
        part.append(rows)
    validated = partition.commit({"validation": {"input_hash": "i"}})
    scored = score_batch(site, detector, CONTRACT, validated, ScoreParams(), "key")
    night = Night(
        detector="toy", batch_date=DAY, attempt=engine.begin_attempt("toy", DAY, "score", NOW),
        input_hash="i", rows_in=ROWS, quarantined=0, excluded=0, threshold=detector.threshold.value,
        model_name="nightjar-toy", model_version=1, scored_at=NOW, seconds=1.0, scores="key",
        **{name: scored.facts[name] for name in COUNTS},
    )  # fmt: skip
    publish_night(engine, night, site.lake.read_frame(scored.facts["flags"]), NOW, lambda: "i")
    return site.lake.query("select * from parts", scored.parts).to_pandas(), engine.read_flags("toy", DAY)


def test_a_served_night_gets_what_was_published_of_it_record_for_record(served: Served) -> None:
    answers = served.predict(write_json(served.rows))
    answered = pd.DataFrame(answers, index=served.rows["record_id"].to_pylist())
    scores = served.scores.set_index("record_id").loc[answered.index]
    assert answered["score"].tolist() == scores["score"].tolist()
    assert answered["percentile_rank"].astype("float32").tolist() == scores["percentile_rank"].tolist()
    flags = served.flags.set_index("record_id")
    assert set(answered.index[answered["is_flagged"]]) == set(flags.index)
    assert 20 < len(flags) < 100 and 5 < flags["suppressed"].sum() < len(flags) - 5
    flagged = answered.loc[flags.index]
    for published, name in {"suppressed": "is_suppressed"}.items() | {
        (name, name) for name in ("score", "percentile_rank", "p_value", "second_stage_probability")
    }:
        assert flagged[name].tolist() == flags[published].tolist(), name
    others = [answer for answer in answers if not answer["is_flagged"]]
    assert {answer["second_stage_probability"] for answer in others} == {None}
    assert not any(answer["is_suppressed"] for answer in others)
    assert answered["p_value"].tolist() == served.detector.p_value(answered["score"].to_numpy()).tolist()


def test_a_record_gets_the_same_answer_alone_in_an_array_and_in_concurrent_requests(served: Served) -> None:
    rows = write_json(served.rows.slice(0, 24))
    together = served.predict(rows)
    with ThreadPoolExecutor(8) as clients:
        assert list(clients.map(lambda row: served.predict([row])[0], rows)) == together
    split = {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}
    status, text = served.ask({"dataframe_split": split}, "application/json; charset=utf-8")
    assert status == 200 and json.loads(text)["predictions"] == together
    assert served.predict([]) == []


def change(**values: object) -> Callable[[dict[str, Any]], object]:
    return lambda row: {"dataframe_records": [row, row | values]}


def leave_out(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda row: {"dataframe_records": [{key: value for key, value in row.items() if key != name}]}


WRONG: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no JSON": (lambda row: "amount=secret-1", r"where: body\n.*15 bytes that are not JSON"),
    "nothing": (lambda row: "", "0 bytes that are not JSON"),
    "no UTF-8": (lambda row: b'\xff{"secret-1"', "bytes that are not JSON"),
    "brackets without end": (lambda row: "[" * 100_000, "not JSON"),
    "an array": (lambda row: [row], "got: an array"),
    "the bare record": (lambda row: row, "expected: an object with one key, dataframe_records"),
    "an unknown field": (lambda row: {"rows": [row]}, "the keys 'rows'"),
    "two fields": (lambda row: {"dataframe_records": [row], "params": {}}, "the keys 'dataframe_records', 'params'"),
    "no array": (lambda row: {"dataframe_records": row}, r"where: dataframe_records\n.*got: an object"),
    "no record": (lambda row: {"dataframe_records": [row, 5]}, r"dataframe_records, row 2\n.*got: a number"),
    "no names": (lambda row: {"dataframe_split": {"data": [[1]]}}, "the arrays columns, of names, and data"),
    "a name twice": (lambda row: {"dataframe_split": {"columns": ["age", "age"], "data": []}}, "'age' twice"),
    "a short row": (
        lambda row: {"dataframe_split": {"columns": ["age", "gate"], "data": [[1, 2], [1]]}},
        r"row 2 of data\n.*got: 1 values\n.*array of 2 values",
    ),
    "a missing column": (leave_out("amount"), r"column amount\n.*no value in 1 of 1 rows"),
    "a missing image": (leave_out("photo"), "column photo\n.*no value in 1 of 1 rows"),
    "a missing value": (change(gate=None), r"column gate\n.*no value in 1 of 2 rows"),
    "no number": (change(amount=float("nan")), r"column amount\n.*no value in 1 of 2 rows"),
    "an infinite number": (change(amount=float("inf")), r"column amount\n.*an infinite value"),
    "too large a number": (change(amount=10**400), r"column amount, row 2 of 2\n.*a number that cannot be read"),
    "a text for a number": (
        change(amount="secret-1"),
        r"column amount, row 2 of 2\n.*a text that.*\n.*a 64-bit number",
    ),
    "an array for a number": (change(age=[1]), r"column age, row 2 of 2\n.*an array that"),
    "an object for a category": (change(country={"is": "secret-1"}), "column country, row 2 of 2\n.*an object that"),
    "a number for an instant": (change(paid_at=1772323200), "column paid_at, row 2 of 2\n.*a number that"),
    "no instant": (change(paid_at="secret-1"), r"column paid_at, row 2 of 2\n.*ISO 8601"),
    "no base64": (change(photo="secret-1 !"), "column photo, row 2 of 2"),
    "an image of another size": (change(photo=base64.b64encode(bytes(13)).decode()), "12 bytes as base64: 4 rows of 3"),
    "a number for a text": (change(note=7), r"column note, row 2 of 2\n.*a number that"),
    "half a character": (change(note="\ud800"), "column note, row 2 of 2"),
    "too many rows": (lambda row: {"dataframe_records": [{}] * (MOST_ROWS + 1)}, "10,001 rows"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_request_is_refused_by_name_without_its_values(served: Served, wrong: str) -> None:
    make, message = WRONG[wrong]
    [row] = write_json(served.rows.slice(0, 1))
    status, text = served.ask(make(row))
    assert status == 400
    answered = json.loads(text)["message"]
    assert re.search(message, answered, re.DOTALL), answered
    assert "docs/realtime.md" in answered
    assert "secret" not in text and "Traceback" not in text and "site-packages" not in text


@pytest.mark.parametrize(
    ("content_type", "to", "status"),
    [
        (None, "POST /invocations", 400),
        ("text/csv", "POST /invocations", 400),
        ("application/vnd.apache.parquet", "POST /invocations", 400),
        ("application/json", "POST /nowhere", 404),
        ("application/json", "GET /invocations", 405),
    ],
)
def test_other_content_other_paths_and_other_verbs_are_refused(
    served: Served, content_type: str | None, to: str, status: int
) -> None:
    got, text = served.ask("amount\nsecret-1\n", content_type, to)
    assert got == status and "secret" not in text and "Traceback" not in text


@pytest.mark.slow
def test_a_bundle_that_was_tampered_with_is_not_served(served: Served, tmp_path: Path) -> None:
    [weights] = Path(str(served.site.registry.artifacts)).rglob("weights.safetensors")
    sound = weights.read_bytes()
    weights.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    try:
        server = start_server(served.site, find_free_port(), tmp_path / "log")
        assert server.wait(120) != 0
    finally:
        weights.write_bytes(sound)
    assert "weights.safetensors was altered" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("kind", "form", "value", "expected"),
    [
        ("numeric", "1.234,56 €", "1.234,5 €", 1234.5),
        ("numeric", "1.234,56 €", 7.5, 7.5),
        ("numeric", "1.234,56 €", "n/a", None),
        ("datetime", "DD.MM.YYYY", "1.3.2026 07:00", datetime(2026, 3, 1, 7, tzinfo=UTC)),
        ("datetime", "milliseconds", 1_772_348_400_000, datetime(2026, 3, 1, 7, tzinfo=UTC)),
        ("datetime", "YYYYMMDD", 20260301, datetime(2026, 3, 1, tzinfo=UTC)),
    ],
)
def test_a_value_is_read_in_the_format_of_the_contract(kind: str, form: str, value: object, expected: object) -> None:
    assert type_values(Column("x", kind), [value, None], form).to_pylist() == [expected, None]
    with pytest.raises(RecordInvalid, match=f"row 2 of 2[\\s\\S]*written {re.escape(form)}"):
        type_values(Column("x", kind), [value, "soon"], form)


def test_a_request_without_a_history_column_is_refused_by_its_name() -> None:
    lineage: dict[str, Any] = {"nullable": [*NULLABLE, "amount"], "history": ["age", "amount"]}
    detector = make_detector().with_lineage(lineage)
    served, [full, other] = ServedDetector(detector), write_json(make_rows(9).slice(0, 2))

    def ask(*rows: dict[str, Any]) -> tuple[int, str]:
        answer = served.respond(json.dumps({"dataframe_records": rows}).encode(), "application/json")
        return answer.status, answer.response

    assert ask(full, other | {"age": None, "amount": None})[0] == 200  # no entity, no history
    cut = {name: value for name, value in other.items() if name not in ("age", "amount")}
    status, text = ask(full, cut)
    message = json.loads(text)["message"]
    assert status == 400
    assert "column age, amount" in message and "1 of 2 rows without them" in message and "nightjar rank" in message
    with pytest.raises(RecordInvalid, match="column age"):
        served.predict(make_rows(9).drop_columns("age").to_pandas())


def test_only_a_champion_is_served(served: Served) -> None:
    mlflow.set_tracking_uri(served.site.registry.uri)
    with pytest.raises(mlflow.MlflowException, match="alias challenger not found"):
        mlflow.pyfunc.load_model("models:/nightjar-toy@challenger")


def test_a_bundle_that_does_not_say_what_may_be_missing_takes_nothing_missing(served: Served) -> None:
    rows = served.rows.to_pandas()
    old = ServedDetector(replace(served.detector, lineage={}))
    with pytest.raises(RecordInvalid, match=rf"column age\n.*no value in {rows['age'].isna().sum()} of 400 rows"):
        old.predict(rows)
    with pytest.raises(RecordInvalid, match="column amount"):
        ServedDetector(served.detector).predict(rows.drop(columns="amount"))
    open_ended = ServedDetector(served.detector.with_lineage({"nullable": list(NULLABLE), "infinite": ["amount"]}))
    answered = open_ended.predict(rows.assign(amount=np.inf))
    assert np.isfinite(answered["score"]).all() and answered["is_flagged"].all()
