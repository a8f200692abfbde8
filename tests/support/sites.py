"""A site without settings or params: its stores lie in one folder."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from tasks.stores.lake import Lake
from tasks.stores.registry import Registry
from tasks.stores.site import Site
from tasks.stores.warehouse import Warehouse


def open_site(folder: Path, detector: str = "toy", artifacts: Path | None = None, **others: Any) -> Site:
    """A detector's site with lake/, warehouse.duckdb, mlflow.db, sources/ and home/ below a folder."""
    home = folder / "home"
    parts: dict[str, Any] = {
        "time_zone": "UTC",
        "label_delay": timedelta(),
        "sources": str(folder / "sources"),
        "lake": Lake(str(folder / "lake")),
        "warehouse": Warehouse(f"duckdb:///{folder}/warehouse.duckdb"),
        "registry": open_registry(folder, home, detector, artifacts),
        "home": home,
        "device": "cpu",
        "threads": 1,
        "commit": "c0ffee",
    }
    return Site(detector=detector, **parts | others)


def open_registry(folder: Path, home: Path, detector: str = "toy", artifacts: Path | None = None) -> Registry:
    """A registry in the folder's mlflow.db, which keeps bundles in the home."""
    uri = f"sqlite:///{folder}/mlflow.db"
    return Registry(uri, detector, home / "bundles" / detector, str(artifacts) if artifacts else None)


def at_home(site: Site, home: Path) -> Site:
    """The site with another home: what lies on this machine, the bundles of versions among it."""
    return replace(site, home=home, registry=replace(site.registry, bundles=home / "bundles" / site.detector))
