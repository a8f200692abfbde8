"""Screen 8, Rules: whom alerts.yaml notifies about what, what is suppressed until when, and recent messages."""

from datetime import date, timedelta
from typing import Any

from fastapi import APIRouter, Response

from flows.alerts import count_by_rule, replay_facts
from flows.config.alerts import FILE, load_alerts, read_url
from flows.desk.recent import recent_of
from flows.desk.view import Judge, Look, read_number
from tasks.errors import NightjarError
from tasks.follow_up.alerts import Alerts, Rule
from tasks.follow_up.deliveries import find_failing, list_deliveries
from tasks.follow_up.suppressions import count_suppressed, end_suppression, read_suppressions, request_suppression

router = APIRouter()
SHOWN_DELIVERIES = 100
MOST_NIGHTS, USUAL_DAYS = 366, 14
PREVIEW_SECONDS = 60


@router.get("/{detector}/rules")
def show(look: Look) -> Response:
    """The page; with ?preview=30 also what each rule would have sent in the last 30 nights."""
    alerts, problem = read_alerts(look)
    asked = look.query.get("preview", "")
    nights = min(read_number(asked, 0), MOST_NIGHTS) or None
    preview, unread = preview_rules(look, alerts, nights) if alerts and nights else ({}, [])
    warehouse = look.site.warehouse
    found, held = read_suppressions(warehouse, look.detector), count_suppressed(warehouse, look.detector)
    return look.render(
        "rules.html",
        alerts=alerts,
        problems=[*([problem] if problem else []), *unread, *find_failing(warehouse)],
        rules=list_rules(look, alerts) if alerts else [],
        channels=[(name, read_url(name) is not None) for name in alerts.channels] if alerts else [],
        nights=nights,
        preview=preview,
        active=[one for one in found if one.is_active(look.now)],
        ended=[one for one in found if not one.is_active(look.now)][::-1],
        held=held,
        columns=look.params.train.columns.names,
        entity=look.params.entity,
        soonest=look.setup.today(look.now),
        usual=look.setup.today(look.now) + timedelta(days=USUAL_DAYS),
        deliveries=list_deliveries(warehouse, SHOWN_DELIVERIES, look.detector),
    )


def read_alerts(look: Look) -> tuple[Alerts | None, str]:
    """alerts.yaml, and what is wrong with it. It is checked against the params of all detectors, which takes long."""
    path = look.room.settings.project / FILE
    key = ("alerts", path.stat().st_mtime_ns if path.exists() else 0)
    try:
        return recent_of(look).get(key, lambda: load_alerts(look.room.settings))[0], ""
    except NightjarError as error:
        return None, error.line


def list_rules(look: Look, alerts: Alerts) -> list[tuple[str, Rule, dict[str, Any]]]:
    """The rules that are about the detector, with their conditions as they are in the file."""
    common = {"on", "channels", "detectors", "send", "at", "urgent", "snoozed_until"}
    return [
        (name, rule, rule.model_dump(mode="json", exclude_defaults=True, exclude=common))
        for name, rule in alerts.rules.items()
        if look.detector in (rule.detectors or (look.detector,))
    ]


def preview_rules(look: Look, alerts: Alerts, nights: int) -> tuple[dict[str, dict[str, int]], list[str]]:
    """What each rule would have sent about the detector's last nights: facts, messages, held; and what is unread."""

    def count() -> tuple[dict[str, dict[str, int]], list[str]]:
        return count_by_rule(alerts, replay_facts(look.setup, nights, look.now), look.now)

    key = ("preview", look.detector, nights, alerts.model_dump_json())
    return recent_of(look).get(key, count, PREVIEW_SECONDS)[0]


@router.post("/{detector}/rules/suppress")
def suppress(act: Judge) -> Response:
    """Suppress an entity, a cause, or a cause of an entity, until a day."""
    given = {name: act.form.get(name, "").strip() for name in ("entity", "cause", "reason", "until")}
    try:
        last = date.fromisoformat(given["until"])
    except ValueError:
        return act.go(act.url("rules"), "problem", "Give the last day as YYYY-MM-DD.")
    added = request_suppression(
        act.site, act.setup.record_rule, act.params.train.columns.names, given["entity"] or None,
        given["cause"] or None, given["reason"], act.person.name, last, act.now,
    )  # fmt: skip
    what = f"Suppression {added.suppression_id} applies through {last}, to nights published from now on."
    return act.done(act.url("rules"), what)


@router.post("/{detector}/rules/suppress/{number}/end")
def end(act: Judge, number: int) -> Response:
    """End a suppression now."""
    end_suppression(act.site.warehouse, act.detector, number, act.now)
    return act.done(act.url("rules"), f"Suppression {number} has ended.")
