"""`nightjar doctor`."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import typer
from rich.table import Table

from flows.cli.options import Json, Name
from flows.cli.screen import print_json, print_rows
from models.errors import NightjarError, hide_password

if TYPE_CHECKING:
    from flows.config.setup import Setup

EXAMPLE = "nightjar doctor payments"
SOON_S = 2.0


def doctor(name: Name, as_json: Json = False) -> None:
    """Check params, contract, source, lake, warehouse, MLflow, champion, device and the channels of alerts.

    Other detectors that cannot be loaded are listed too, but do not fail the check.
    """
    findings = examine(name)
    if as_json:
        print_json({"detector": name, "checks": [asdict(finding) for finding in findings]})
    else:
        rows = [
            {"check": f.check, "result": "ok" if f.ok else "FAILED" if f.needed else "broken", "detail": f.detail}
            for f in findings
        ]
        print_rows(Table(title=f"doctor {name}", title_justify="left"), rows, ("check", "result", "detail"))
    if not all(finding.ok or not finding.needed for finding in findings):
        raise typer.Exit(1)


@dataclass(frozen=True)
class Diagnosis:
    """The result of one check. `needed`: the detector cannot run without it."""

    check: str
    ok: bool
    detail: str
    needed: bool = True


def examine(name: str) -> list[Diagnosis]:
    """Check everything a night needs. `prepare_reading` raises if params, contract or warehouse schema are wrong."""
    from flows.config.params import find_broken
    from flows.config.settings import load_settings
    from flows.config.setup import prepare_reading

    setup = prepare_reading(name)
    checks: dict[str, Callable[[Setup], str]] = {
        "source": _check_source,
        "lake": _check_lake,
        "warehouse": _check_warehouse,
        "champion": _check_champion,
        "device": _check_device,
    }
    findings = [
        Diagnosis("params", True, f"params.yaml and contracts/{name}.yaml, {setup.configured.params_hash[:12]}")
    ]
    findings += [_run_check(check, function, setup) for check, function in checks.items()]
    busy = _run_check("publishing", _check_publishing, setup, needed=False)
    untold = _run_check("alerts", _check_alerts, setup, needed=False)
    findings += [finding for finding in (busy, untold) if not finding.ok]
    return findings + [
        Diagnosis(f"detector {other}", False, f"only its own nights are affected: {error}", needed=False)
        for other, error in find_broken(load_settings().project).items()
    ]


def _run_check(check: str, function: Callable[["Setup"], str], setup: "Setup", needed: bool = True) -> Diagnosis:
    try:
        return Diagnosis(check, True, function(setup), needed)
    except NightjarError as error:
        return Diagnosis(check, False, str(error), needed)


def _check_source(setup: "Setup") -> str:
    from tasks.sources.kinds import list_arrivals

    last = setup.configured.detector.run.last_date
    arrivals = list_arrivals(setup.ingest_params.source, setup.site.sources, setup.site.zone, setup.window(last=last))
    next(iter(arrivals[0].read()), None)  # its first rows can be read
    return f"{len(arrivals)} arrivals"


def _check_lake(setup: "Setup") -> str:
    lake = setup.site.lake
    lake.replace("doctor.txt", b"written by nightjar doctor\n")
    return f"{hide_password(lake.root)} is writable, {len(lake.dates('landing', setup.site.detector))} landed dates"


def _check_warehouse(setup: "Setup") -> str:
    warehouse = setup.site.warehouse
    return f"{warehouse.place}, {len(warehouse.read_nights(setup.site.detector))} published nights"


def _check_publishing(setup: "Setup") -> str:
    """Another program may have the file open; it need not when the night comes."""
    with setup.site.warehouse.begin(SOON_S):
        return ""


def _check_alerts(setup: "Setup") -> str:
    """Whether alerts.yaml is valid, and every channel that it names has an address."""
    from flows.config.alerts import get_url, load_alerts
    from tasks.follow_up.channels import check_url

    alerts = load_alerts(setup.settings)
    for name in alerts.channels if alerts else ():
        check_url(name, get_url(name))
    return ""


def _check_champion(setup: "Setup") -> str:
    from models.detector import Detector

    version = setup.site.registry.get_champion()
    detector = Detector.load(setup.site.registry.fetch_bundle(version))
    return f"version {version.version}, bundle intact, threshold {detector.threshold.value:.4g}"


def _check_device(setup: "Setup") -> str:
    from models.fitting import resolve_device

    return f"{resolve_device(setup.site.device, setup.site.devices)}, {setup.site.threads} threads"
