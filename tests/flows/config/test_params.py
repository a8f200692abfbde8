"""params.yaml and contracts: errors name file and key, and affect only their own detector."""

from copy import deepcopy
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from toy import CONTRACT, PARAMS

from flows.config.params import Configured, detector_names, find_broken, load_detector
from flows.config.settings import Settings
from flows.config.setup import load_setup
from tasks.errors import ParamsInvalid


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Params with only the toy detector."""
    (tmp_path / "contracts").mkdir()
    (tmp_path / "contracts" / "orders.yaml").write_text(yaml.safe_dump(CONTRACT))
    write(tmp_path, {"detectors": {"orders": PARAMS}})
    return tmp_path


def write(folder: Path, document: object) -> None:
    (folder / "params.yaml").write_text(document if isinstance(document, str) else yaml.safe_dump(document))


def refuse(folder: Path, name: str = "orders") -> str:
    with pytest.raises(ParamsInvalid) as caught:
        load_detector(folder, name)
    return str(caught.value)


BROKEN: dict[str, object] = {
    "an unknown key": PARAMS | {"trian": {}},
    "no section at all": None,
    "a list": [1],
    "a name that is none": PARAMS,
    "a date as key": {date(2026, 3, 1): 1},
}


@pytest.mark.parametrize("what", BROKEN)
def test_another_detectors_broken_section_does_not_stop_this_one(folder: Path, what: str) -> None:
    sound = load_detector(folder, "orders")
    other = "Not A Name" if what == "a name that is none" else "other"
    write(folder, {"detectors": {other: BROKEN[what], "orders": PARAMS}})
    (folder / "contracts" / "other.yaml").write_text(yaml.safe_dump(CONTRACT))
    assert load_detector(folder, "orders") == sound
    assert list(find_broken(folder)) == [other]
    assert detector_names(folder) == sorted([other, "orders"])


@pytest.mark.parametrize("contract", [None, "columns: [", "columns: {items: {type: complex}}", "- a\n"])
def test_another_detectors_broken_contract_does_not_stop_this_one(folder: Path, contract: str | None) -> None:
    write(folder, {"detectors": {"orders": PARAMS, "other": PARAMS}})
    if contract:
        (folder / "contracts" / "other.yaml").write_text(contract)
    assert isinstance(load_detector(folder, "orders"), Configured)
    [cause] = find_broken(folder).values()
    assert "other.yaml" in cause
    assert "other.yaml" in refuse(folder, "other")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("detectors: {orders: {", ["not valid YAML"]),
        ("detectors: {orders: {run: 2026-13-45}}", ["not valid YAML", "month"]),
        ("detectors: {orders: !!float }", ["not valid YAML", "index out of range"]),
        ("detectors: {orders: {a: 1, a: 2}}", ["'a' is duplicated", "line 1"]),
        ("detectors: {other: {a: {b: 1, b: 2}}, orders: {}}", ["'b' is duplicated"]),
        ("detectors: {orders: {}}\ndetectors: {orders: {}}", ["'detectors' is duplicated"]),
        ("detectors: &a {orders: *a}", ["contains itself"]),
        ("x: &a [1,1,1,1,1,1,1,1,1]\n", ["does not contain detectors", "'x'"]),
        ("detectors: [orders]", ["does not contain detectors"]),
        ("", ["does not contain detectors", "NoneType"]),
        ("detectors: {order: {}}", ["The detector 'orders' does not exist", "did you mean order?"]),
        ("detectors: {2: {}, null: {}, yes: {}}", ["The detector 'orders' does not exist", "2, None, yes"]),
        ("detectors: {orders: {2026-03-01: 1}}", ["not valid YAML", "date"]),
        ("detectors: {orders: {run: !!timestamp x}}", ["not valid YAML"]),
        ("detectors: {orders: {run: !!bool x}}", ["not valid YAML"]),
        ("detectors: {orders: " + "[" * 3000, ["not valid YAML"]),
    ],
)
def test_an_error_in_this_detector_or_in_the_whole_file_is_refused(folder: Path, text: str, words: list[str]) -> None:
    write(folder, text)
    message = refuse(folder)
    assert all(word in message for word in ["params.yaml", *words]), message


@pytest.mark.parametrize("name", ["../orders", "orders\n", "orders;drop table labels", "", "-h", "or\u202eders", "a/b"])
def test_an_invalid_name_opens_no_file(folder: Path, name: str) -> None:
    assert f"The detector {name!r} does not exist" in refuse(folder, name)
    write(folder, {"detectors": {name: PARAMS}})
    assert "bad key" in refuse(folder, name)


def test_the_message_hides_the_password_of_a_url(folder: Path) -> None:
    source = {"kind": "sqll", "url": "postgresql://ann:secret@shop/orders", "query": "select 1"}
    write(folder, {"detectors": {"orders": PARAMS | {"ingest": PARAMS["ingest"] | {"source": source}}}})
    message = refuse(folder)
    assert "sqll" in message
    assert "secret" not in message


def test_the_lineage_lists_only_columns_that_may_be_null_or_infinite(folder: Path) -> None:
    def find_keys() -> dict[str, object]:
        hashes = load_setup("orders", Settings(project=folder)).hashes
        return {key: value for key, value in hashes.items() if not key.endswith("_hash")}

    assert find_keys() == {}
    spend = {"type": "float", "nullable": True, "infinite": True, "format": "1.234,56 €"}
    columns = {**CONTRACT["columns"], "spend": spend}
    columns["customer"] = {"type": "text", "nullable": True}  # the detector does not read it
    (folder / "contracts" / "orders.yaml").write_text(yaml.safe_dump({**CONTRACT, "columns": columns}))
    assert find_keys() == {"nullable": ["spend"], "infinite": ["spend"], "formats": {"spend": "1.234,56 €"}}


def test_the_lineage_lists_history_columns_that_are_learnt(folder: Path) -> None:
    enrich = {"entity": "customer", "windows": ["1d"], "columns": {"n": {"count": "*"}, "unread": {"count": "*"}}}
    columns = PARAMS["train"]["columns"]
    numeric = {**PARAMS["train"], "columns": {**columns, "numeric": [*columns["numeric"], "n"]}}
    write(folder, {"detectors": {"orders": PARAMS | {"enrich": enrich, "train": numeric}}})
    hashes = load_setup("orders", Settings(project=folder)).hashes
    assert (hashes["nullable"], hashes["history"]) == (["n"], ["n"])


@pytest.mark.parametrize(
    ("name", "params", "contract"),
    [
        ("payments", "6b075c69388e", "7468ad270ab9"),
        ("creditcard", "fc4f079f5522", "6ad948b38349"),
        ("kddcup99", "d00437fbb9ef", "76b0934afab0"),
        ("mnist", "2fa406847b48", "0d6ca3eee9a5"),
        ("codes", "a5fd1c2ed998", "bd54658f86df"),
    ],
)
def test_a_new_key_left_at_its_default_keeps_the_hash(name: str, params: str, contract: str) -> None:
    configured = load_detector(Path(__file__).parents[3], name)  # a changed hash would make every champion outdated
    assert (configured.params_hash[:12], configured.contract.hash[:12]) == (params, contract)


def test_unused_speed_settings_do_not_change_the_params_hash(folder: Path) -> None:
    def find_hash(**fit: object) -> str:
        train = {**PARAMS["train"], "fit": {**PARAMS["train"]["fit"], **fit}}
        (folder / "params.yaml").write_text(yaml.safe_dump({"detectors": {"orders": {**PARAMS, "train": train}}}))
        return load_detector(folder, "orders").params_hash

    before = find_hash()
    assert find_hash(precision="float32", compile=False) == before
    assert len({before, find_hash(precision="bfloat16"), find_hash(compile=True)}) == 3


def test_the_newest_cutoff_is_today_or_the_day_after_ended_data(folder: Path) -> None:
    for run, expected in (
        ({"nights": 1}, None),
        ({"nights": 1, "last_date": date(2026, 4, 2)}, None),
        ({"nights": 1, "last_date": date(2026, 4, 2), "every_night": False}, date(2026, 4, 3)),
    ):
        write(folder, {"detectors": {"orders": PARAMS | {"run": run}}})
        setup = load_setup("orders", Settings(project=folder))
        assert setup.newest_cutoff() == (expected or setup.today())


def test_an_error_shows_the_first_bad_keys_and_the_number_of_all(folder: Path) -> None:
    splits = {f"key_{number}": 1 for number in range(2000)}
    write(folder, {"detectors": {"orders": PARAMS | {"filter": PARAMS["filter"] | splits}}})
    message = refuse(folder)
    assert "2,000 bad keys" in message
    assert "and 1,950 more" in message
    assert len(message) < 10_000


HISTORY = {"entity": "customer", "windows": ["1d"], "columns": {"n": {"count": "*"}}}


def with_history(**changes: object) -> Any:
    return {"detectors": {"orders": deepcopy(PARAMS) | {"enrich": HISTORY | changes}}}


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"n": {"count": "*", "by": "card"}}, "card is not in the contract"),
        ({"n": {"sum": "price"}}, "price is not in the contract"),
        ({"n": {"sum": "shop"}}, "shop is not a number"),
        ({"n": {"distance": ["items", "shop"]}}, "shop is not a number"),
        ({"items": {"count": "*"}}, "items is a column of the contract"),
        ({"event_time": {"count": "*"}}, "event_time is a column of the contract"),
        ({"record_id": {"count": "*"}}, "record_id is a column of the contract"),
        ({"n": {"sum": "fraud"}}, "fraud is the label"),
        ({"n": {"sum": "customer"}}, "customer is masked, and would be shown"),
        ({"n": {"count": "*", "window": "2 days"}}, "'2 days' is not a window such as 15m, 1h or 28d"),
        ({"n": {"count": "*", "window": "401d"}}, "of at most 400 days"),
        ({"n": {"median": "spend"}}, "give one of count, sum, distinct, ratio, distance, seconds_since, first_seen"),
        ({"n_{window}": {"count": "*", "window": "1d"}}, "leave out window, or {window}"),
        ({"n_{window}": {"count": "*"}, "n_1d": {"count": "*"}}, "n_1d twice"),
        ({}, "at least 1"),
    ],
)
def test_a_history_column_that_cannot_be_computed_is_refused(folder: Path, columns: object, words: str) -> None:
    write(folder, with_history(columns=columns))
    assert words in refuse(folder)


def test_history_needs_batches_event_times_and_labels(folder: Path) -> None:
    write(folder, with_history())
    assert load_detector(folder, "orders").detector.history == {"n": '{"by":"customer","window":"1d","count":"*"}'}
    for zone in ("landing", "validated"):
        document = with_history(windows=["28d"])
        document["detectors"]["orders"]["retention"] = {f"{zone}_days": 28}
        write(folder, document)
        assert f"retention.{zone}_days is 28, the windows need 29" in refuse(folder)
        document["detectors"]["orders"]["retention"] = {f"{zone}_days": 29}
        write(folder, document)
        load_detector(folder, "orders")
    document = with_history(columns={"n": {"count": "reports"}})
    del document["detectors"]["orders"]["ingest"]["labels"]
    write(folder, document)
    assert "n: no labels ever arrive" in refuse(folder)
    document = with_history()
    document["detectors"]["orders"]["ingest"]["event_time"] = {"first_date": "2026-03-01", "rows_per_day": 9}
    write(folder, document)
    assert "the rows have no event time" in refuse(folder)


def test_only_history_changes_the_hash_of_params_with_history(folder: Path) -> None:
    plain = load_detector(folder, "orders").params_hash
    write(folder, with_history())
    first = load_detector(folder, "orders").params_hash
    write(folder, with_history(windows=["1d", "2d"]))
    assert len({plain, first, load_detector(folder, "orders").params_hash}) == 3
    write(
        folder,
        {"detectors": {"orders": PARAMS | {"train": PARAMS["train"] | {"columns": {"numeric": ["items", "m"]}}}}},
    )
    assert "m is neither in the contract nor in enrich.columns" in refuse(folder)


PER_ENTITY = {"scale": ["spend"], "minimum": 5}


def scale(folder: Path, per_entity: object = PER_ENTITY, **keys: object) -> None:
    """The toy detector with scales for each customer."""
    train = PARAMS["train"] | {"per_entity": per_entity}
    contract = CONTRACT | {"columns": CONTRACT["columns"] | {"customer": {"type": "text"}}}
    write(folder, {"detectors": {"orders": PARAMS | {"train": train, "entity": "customer"} | keys}})
    (folder / "contracts" / "orders.yaml").write_text(yaml.safe_dump(contract))


@pytest.mark.parametrize(
    ("per_entity", "keys", "words"),
    [
        ({"scale": ["shop"]}, {}, ["cannot scale", "shop is not a number"]),
        ({"scale": ["shipping"]}, {}, ["cannot scale", "shipping is not in train.columns"]),
        ({"scale": ["customer"]}, {}, ["cannot scale", "customer is not in train.columns"]),
        (PER_ENTITY, {"entity": None}, ["cannot scale", "the detector has no entity", "name the entity"]),
        (PER_ENTITY, {"entity": "spend"}, ["cannot scale", "spend is the entity itself"]),
        (PER_ENTITY, {"entity": "client"}, ["client is not in the contract"]),
        ({"scale": []}, {}, ["per_entity.scale", "at least 1 item"]),
        ({"scale": ["spend"], "minimum": 0}, {}, ["per_entity.minimum", "greater than or equal to 1"]),
        ({"scale": ["spend"], "least": 3}, {}, ["per_entity.least", "unknown key"]),
    ],
)
def test_scales_for_each_entity_need_an_entity_and_numbers_that_are_learnt_from(
    folder: Path, per_entity: object, keys: dict[str, object], words: list[str]
) -> None:
    scale(folder, per_entity, **keys)
    message = refuse(folder)
    assert all(word in message for word in words)


def test_the_entity_counts_in_the_hash_and_is_read_only_where_scales_are_its_own(folder: Path) -> None:
    plain = load_detector(folder, "orders")
    write(folder, {"detectors": {"orders": PARAMS | {"entity": "shop"}}})
    named = load_detector(folder, "orders")
    assert named.params_hash == plain.params_hash and named.detector.reads == plain.detector.reads
    scale(folder)
    scaled = load_detector(folder, "orders")
    scale(folder, entity="shop")
    other = load_detector(folder, "orders")
    assert len({plain.params_hash, scaled.params_hash, other.params_hash}) == 3
    assert scaled.detector.reads == (*plain.detector.reads, "customer")
    assert other.detector.reads == plain.detector.reads  # it is learnt from anyway


@pytest.mark.parametrize(
    ("calibrate", "words"),
    [
        ({"by": "region"}, ["region is not in the contract"]),
        ({"by": "photo"}, ["photo is an image"]),
        ({"by": "customer"}, ["customer is masked"]),
        ({"by": "fraud"}, ["fraud is the label"]),
        ({"by": "shop", "threshold": {"kind": "fixed", "value": 1.0}}, ["by needs", "fixed has none"]),
        ({"by": "shop", "threshold": {"kind": "best_f_beta"}}, ["quantile or alarm_budget", "best_f_beta has none"]),
    ],
)
def test_thresholds_by_segment_need_a_column_with_values_to_show_and_a_policy_that_fits(
    folder: Path, calibrate: dict[str, object], words: list[str]
) -> None:
    photo = {"photo": {"type": "image", "shape": [2, 2]}}
    contract = CONTRACT | {"columns": CONTRACT["columns"] | photo}
    (folder / "contracts" / "orders.yaml").write_text(yaml.safe_dump(contract))
    write(folder, {"detectors": {"orders": PARAMS | {"calibrate": calibrate}}})
    message = refuse(folder)
    assert all(word in message for word in ["calibrate", *words])


def test_segments_change_the_threshold_policy_but_not_what_is_learnt(folder: Path) -> None:
    contract = CONTRACT | {"columns": CONTRACT["columns"] | {"kind": {"type": "text"}}}
    (folder / "contracts" / "orders.yaml").write_text(yaml.safe_dump(contract))

    def find(calibrate: dict[str, object]) -> tuple[str, str, tuple[str, ...]]:
        write(folder, {"detectors": {"orders": PARAMS | {"calibrate": calibrate}}})
        setup = load_setup("orders", Settings(project=folder))
        return setup.configured.params_hash, setup.tags["threshold_policy"], setup.configured.detector.reads

    params, policy, reads = find({})
    again, by_shop, shop = find({"by": "shop"})
    _, by_kind, kind = find({"by": "kind"})
    assert params == again and reads == shop and kind == (*reads, "kind")
    assert len({policy, by_shop, by_kind}) == 3 and '"by":"shop"' in by_shop and "by" not in policy
