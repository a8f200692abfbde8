"""The promotion flow: a version becomes the champion if the gate of params lets it."""

from datetime import UTC, datetime

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run as current

from flows.config.setup import Setup, prepare
from flows.hooks import mark_crashed
from tasks.errors import PromotionRefused
from tasks.on_demand.compare import check_gate
from tasks.policy import progress_of
from tasks.register import promote
from tasks.rows.escaping import escape_markdown
from tasks.stores.registry import CHALLENGER, DECISION


def name_run() -> str:
    """Name the run after the version, if one is named."""
    parameters = current.get_parameters()
    return f"promote version {parameters['version'] or 'challenger'} of {parameters['name']}"


@flow(name="promotion", flow_run_name=name_run, on_running=[mark_crashed])
def promotion(name: str, version: int | None = None, force: bool = False, note: str = "") -> tuple[int, int | None]:
    """Make a version the champion, unless the gate refuses it. Returns the champion and the version it replaces.

    Args:
        name: The detector, as in params.yaml.
        version: The version. Default: the challenger.
        force: Promote it although it is refused; a tag of the version records it.
        note: Who wants it and why, for the same tag.
    """
    setup = prepare(name)
    try:
        promoted = decide(setup, version, force, note)
    except PromotionRefused as error:
        show_decision(setup.site.artifact_key, error.line)
        raise
    decision = setup.site.registry.get_version(promoted[0]).tags.get(DECISION, "")
    show_decision(setup.site.artifact_key, f"version {promoted[0]} of {name}, {decision}")
    return promoted


def decide(setup: Setup, version: int | None, force: bool, note: str = "") -> tuple[int, int | None]:
    """Check the gate and promote a version; returns the champion and the version that it replaces.

    Raises PromotionRefused, and what `promote` raises.
    """
    site, params, now = setup.site, setup.configured.detector, datetime.now(UTC)
    if version is None and (challenger := site.registry.find_version(CHALLENGER)):
        version = challenger.version  # the one that is judged, even if another takes its place meanwhile
    judged = version, params.ingest.has_labels, now, progress_of("compare")
    refusals = check_gate(site, setup.record_rule, params.promote.gate, *judged)
    return promote(site, version, force, refusals, note)


def show_decision(key: str, decision: str) -> None:
    """What was decided, as an artifact of the run."""
    create_markdown_artifact(escape_markdown(decision), key=f"promotion-{key}", description=decision)
