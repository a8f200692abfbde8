"""A night and a training as their steps, without Prefect, so that a test can disturb any one of them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from toy import CUTOFF, DAYS, FIRST

from flows.config.settings import Settings
from flows.config.setup import Setup, load_setup
from tasks.calibrate import calibrate_bundle
from tasks.filter import prepare_rows
from tasks.ingest import ingest_arrivals
from tasks.publish import Begun, publish_scored
from tasks.register import register_bundle
from tasks.report import write_report
from tasks.score import score_night
from tasks.stores import registry
from tasks.stores.site import Site
from tasks.train import fit_bundle
from tasks.validate import validate_batches

TONIGHT = FIRST + timedelta(days=DAYS)


def load(folder: Path) -> Setup:
    """The project's setup, from its folder alone."""
    return load_setup("orders", Settings(project=folder, sources=str(folder / "sources")))


@dataclass
class Steps:
    """Steps in order, and what those that have run gave; each takes the site, so that it can be given a broken one."""

    setup: Setup
    done: dict[str, Any] = field(default_factory=dict)

    def run(self, name: str, site: Site) -> None:
        self.done[name] = self.steps[name](site)

    def run_all(self) -> None:
        for name in self.steps:
            self.run(name, self.setup.site)

    @property
    def steps(self) -> dict[str, Callable[[Site], Any]]:
        raise NotImplementedError


class NightSteps(Steps):
    """The nightly flow's steps for TONIGHT."""

    @property
    def steps(self) -> dict[str, Callable[[Site], Any]]:
        params, contract, done = self.setup.configured.detector, self.setup.configured.contract, self.done
        now = datetime.now(UTC)

        def resolve(site: Site) -> tuple[registry.Version, Path]:
            version = site.registry.get_champion()
            return version, site.registry.fetch_bundle(version)

        def report(site: Site) -> Path:
            return write_report(site, contract, done["validate"], *done["resolve"], params.score)[0]

        return {
            "begin": lambda site: Begun(site.warehouse.begin_attempt("orders", TONIGHT, "begin", now, None), now),
            "ingest": lambda site: ingest_arrivals(site, self.setup.ingest_params, self.setup.window(last=TONIGHT)),
            "resolve": resolve,
            "validate": lambda site: validate_batches(site, contract, [TONIGHT], params.validate_)[0],
            "score": lambda site: score_night(site, contract, done["validate"], *done["resolve"], params.score, now),
            "publish": lambda site: publish_scored(site, done["begin"], done["score"]),
            "report": report,
        }


class TrainingSteps(Steps):
    """The training flow's steps."""

    @property
    def steps(self) -> dict[str, Callable[[Site], Any]]:
        params, contract, done = self.setup.configured.detector, self.setup.configured.contract, self.done
        days = [FIRST + timedelta(days=offset) for offset in range((CUTOFF - FIRST).days)]
        numbers = params.train.columns.numbers
        return {
            "ingest": lambda site: ingest_arrivals(site, self.setup.ingest_params, self.setup.window(last=CUTOFF)),
            "validate": lambda site: validate_batches(site, contract, days, params.validate_),
            "filter": lambda site: prepare_rows(site, CUTOFF, params.filter, numbers),
            "train": lambda site: fit_bundle(site, done["filter"], params.train, self.setup.hashes),
            "calibrate": lambda site: calibrate_bundle(
                site, done["filter"], done["train"], params.calibrate, params.ingest.has_labels
            ),
            "register": lambda site: register_bundle(site, done["calibrate"].bundle, None, done["calibrate"].tags),
        }


def read_result(site: Site, day: date = TONIGHT) -> tuple[list[Any], str]:
    """What of a night must not depend on how it came about: its counts and its flags."""
    [batch], flags = site.warehouse.get_nights(site.detector, day), site.warehouse.read_flags(site.detector, day)
    chance = ("attempt", "seconds", "scored_at", "published")
    counts = [value for name, value in vars(batch).items() if name not in chance]
    return counts, flags.drop(columns=["attempt", "scored_at"]).to_csv()


def migrate(setup: Setup) -> None:
    setup.site.warehouse.migrate()
