"""infra/grafana and infra/prometheus use metrics that `nightjar metrics` exports; tested offline."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, date, datetime
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.errors import ServiceUnreachable
from tasks.stores.tables import PublishedNight
from tasks.upkeep.metrics import Reading, describe_detectors

ROOT = Path(__file__).parent.parent
GRAFANA, PROMETHEUS = ROOT / "infra" / "grafana", ROOT / "infra" / "prometheus"
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "nightjar.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "infra" / "compose.yaml").read_text())["services"]
NOW = datetime(2026, 4, 3, 6, tzinfo=UTC)
BATCH = PublishedNight(
    detector="orders", batch_date=date(2026, 4, 2), input_hash="", rows_in=10, quarantined=1, excluded=2, scored=7,
    flagged=3, unseen=0, threshold=1.0, model_name="m", model_version=1, scored_at=NOW, scores=None, attempt=1,
    seconds=2.0, published=3,
)  # fmt: skip
FULL = Reading(
    "orders", newest=BATCH, published=NOW, landed=NOW, expected=NOW, attempts={"failed": 1},
    nights={"fresh": 1, "stale": 0, "failed": 0, "missing": 0}, champion=1, finding="nothing",
    canaries={"shifted": 1.0}, cases={"open": 2, "critical": 1, "overdue": 0},
    untold=1, error=ServiceUnreachable("away"),
)  # fmt: skip


def exported() -> dict[str, dict[str, set[str]]]:
    """Every metric name with its labels and their values, from a detector that has every metric, including an error."""
    found: dict[str, dict[str, set[str]]] = {}
    for family in describe_detectors([FULL], "0004", NOW):
        assert family.documentation
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for key, value in sample.labels.items():
                labels.setdefault(key, set()).add(value)
    return found


def rules() -> list[dict[str, Any]]:
    [group] = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def expressions() -> Iterator[str]:
    yield from (target["expr"] for panel in PANELS for target in panel["targets"])
    yield from (rule["expr"] for rule in rules())


def find_wrong(expression: str) -> list[str]:
    """What an expression uses but is not exported: metrics, labels, and label values."""
    known, wrong = exported(), []
    for name, _, matchers in re.findall(r"\b(nightjar_\w+)(\{([^}]*)\})?", expression):
        labels = known.get(name)
        if labels is None:
            wrong.append(name)
            continue
        for label, operator, value in re.findall(r'(\w+)\s*(=~|!=|=)\s*"([^"]*)"', matchers):
            is_right = label in labels and (operator == "=~" or value in labels[label])
            wrong += [] if is_right else [f"{name}{{{label}}}"]
    grouped = [
        label.strip() for found in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression) for label in found.split(",")
    ]
    every = set().union(*known.values())
    return wrong + [label for label in grouped if label not in every]


def test_every_expression_uses_metrics_and_labels_that_exist() -> None:
    found = list(expressions())
    assert len(found) > 15
    for expression in found:
        assert "nightjar_" in expression
        assert find_wrong(expression) == [], expression


@pytest.mark.parametrize(
    "expression",
    ["nightjar_night_flags", 'nightjar_night_rows{state="scored"}', 'nightjar_nights{state="late"}',
     "sum by (host) (nightjar_night_rows)"],
)  # fmt: skip
def test_a_misspelt_expression_is_caught(expression: str) -> None:
    assert find_wrong(expression)


def test_legends_and_annotations_use_labels_that_exist() -> None:
    every = set().union(*exported().values())
    for panel in PANELS:
        for target in panel["targets"]:
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= every, panel["title"]
    for rule in rules():
        named = {label for text in rule["annotations"].values() for label in re.findall(r"\$labels\.(\w+)", text)}
        assert named <= every, rule["alert"]


def test_every_exported_metric_follows_prometheus_conventions() -> None:
    for name, labels in exported().items():
        assert name.startswith("nightjar_")
        assert not re.search(r"_(ms|minutes|hours|days|percent|count)$", name)
        assert set(labels) <= {"detector", "outcome", "state", "error", "finding", "canary"}
    from prometheus_client.metrics_core import Metric

    families: list[Metric] = list(describe_detectors([FULL], "0004", NOW))
    counters = {sample.name for family in families if family.type == "counter" for sample in family.samples}
    assert counters == {name for name in exported() if name.endswith("_total")} == {"nightjar_attempts_total"}


def test_the_dashboard_has_what_grafana_needs() -> None:
    assert DASHBOARD.keys() >= {"uid", "title", "schemaVersion", "panels", "templating", "time"}
    assert isinstance(DASHBOARD["schemaVersion"], int)
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    for panel in PANELS:
        assert panel.keys() >= {"id", "type", "title", "gridPos", "targets", "datasource", "fieldConfig", "options"}
        assert {target["refId"] for target in panel["targets"]} == set("ABC"[: len(panel["targets"])])
    assert PANELS[0]["title"] == "Freshness"


def test_panels_do_not_overlap_or_leave_the_grid() -> None:
    places = [panel["gridPos"] for panel in PANELS]
    assert all(p["x"] >= 0 and p["x"] + p["w"] <= 24 and p["h"] > 0 for p in places)
    for a, b in combinations(places, 2):
        apart = [a[at] + a[size] <= b[at] or b[at] + b[size] <= a[at] for at, size in (("x", "w"), ("y", "h"))]
        assert any(apart), (a, b)
    assert all(a["y"] <= b["y"] for a, b in pairwise(places))


def test_the_data_source_is_a_variable_and_every_panel_uses_it() -> None:
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    assert variables["detector"]["definition"] == "label_values(nightjar_detector_up, detector)"
    wanted = {"type": "prometheus", "uid": "${datasource}"}
    asked = [panel["datasource"] for panel in PANELS] + [t["datasource"] for panel in PANELS for t in panel["targets"]]
    assert all(source == wanted for source in [*asked, variables["detector"]["datasource"]])
    assert all("$detector" in target["expr"] for panel in PANELS for target in panel["targets"])


def test_every_rule_has_a_name_a_severity_and_something_to_do() -> None:
    assert len({rule["alert"] for rule in rules()}) == len(rules()) == 8
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "todo"}


def test_prometheus_and_grafana_find_each_other_and_their_files() -> None:
    [scraped] = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    command = COMPOSE["metrics"]["command"]
    assert scraped["static_configs"] == [{"targets": [f"metrics:{command[command.index('--port') + 1]}"]}]
    [source] = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    [provider] = yaml.safe_load((GRAFANA / "provisioning/dashboards/nightjar.yaml").read_text())["providers"]
    assert any(f"{provider['options']['path']}/nightjar.json" in volume for volume in COMPOSE["grafana"]["volumes"])


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool (Debian: prometheus) is not installed")
def test_promtool_agrees_and_the_alerts_fire_when_they_should() -> None:
    for arguments in (["check", "config", "prometheus.yml"], ["test", "rules", "rules_test.yml"]):
        subprocess.run(["promtool", *arguments], cwd=PROMETHEUS, check=True)
