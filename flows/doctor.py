"""`nightjar doctor`: is everything a night needs in place? One finding a part, none of them stops the others."""

from collections.abc import Callable
from dataclasses import dataclass

from flows.params import find_broken
from flows.settings import load_settings
from flows.setup import Setup, prepare
from models.detector import Detector
from models.fitting import resolve_device
from tasks import tracking, warehouse
from tasks.errors import NightjarError
from tasks.ingest import list_arrivals


@dataclass(frozen=True)
class Finding:
    """What one check found. `needed`: without it there is no night; else it only wants to be known."""

    check: str
    ok: bool
    detail: str
    needed: bool = True


def examine(name: str) -> list[Finding]:
    """Check each part a night needs. Params, contract and warehouse schema come first: nothing works without them."""
    setup = prepare(name)
    checks: dict[str, Callable[[Setup], str]] = {
        "source": _check_source,
        "lake": _check_lake,
        "warehouse": _check_warehouse,
        "champion": _check_champion,
        "device": _check_device,
    }
    findings = [Finding("params", True, f"params.yaml and contracts/{name}.yaml, {setup.configured.params_hash[:12]}")]
    findings += [_try(check, function, setup) for check, function in checks.items()]
    return findings + [
        Finding(f"detector {other}", False, f"its own nights only: {told}", needed=False)
        for other, told in find_broken(load_settings().project).items()
    ]


def _try(check: str, function: Callable[[Setup], str], setup: Setup) -> Finding:
    try:
        return Finding(check, True, function(setup))
    except NightjarError as error:
        return Finding(check, False, str(error))


def _check_source(setup: Setup) -> str:
    last = setup.configured.detector.run.last_date
    arrivals = list_arrivals(setup.site, setup.ingest_params, setup.window(last=last))
    next(iter(arrivals[0].read()), None)  # the first rows of it can be read
    return f"{len(arrivals)} arrivals"


def _check_lake(setup: Setup) -> str:
    lake = setup.site.lake
    lake.replace("doctor.txt", b"written by nightjar doctor\n")
    return f"{lake.root} is writable, {len(lake.dates('landing', setup.site.detector))} landed dates"


def _check_warehouse(setup: Setup) -> str:
    engine = warehouse.open_engine(setup.site.warehouse_url)
    return f"{setup.site.warehouse_label}, {len(warehouse.read_batches(engine, setup.site.detector))} published nights"


def _check_champion(setup: Setup) -> str:
    version = tracking.get_champion(setup.site)
    detector = Detector.load(tracking.fetch_bundle(setup.site, version))
    return f"version {version.version}, its bundle is whole, threshold {detector.threshold.value:.4g}"


def _check_device(setup: Setup) -> str:
    return f"{resolve_device(setup.site.device, setup.site.devices)}, {setup.site.threads} threads"
