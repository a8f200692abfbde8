"""`nightjar score NAME --source FILE`: the champion's opinion of a loose file; nothing lands, nothing is published."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from flows.init import name_files
from flows.setup import load_setup
from models.detector import Detector
from tasks import tracking
from tasks.loose import collect_scores, score_rows
from tasks.sources import FilesSource, list_files


def score_source(name: str, source: str, most: int | None, output: Path | None) -> dict[str, Any]:
    """Score a file's rows with the champion. `most` limits the rows told; `output` gets every row."""
    setup = load_setup(name)
    site, detector_params = setup.site, setup.configured.detector
    version = tracking.get_champion(site)
    detector = Detector.load(tracking.fetch_bundle(site, version))
    files, own = name_files(source, site.sources), detector_params.ingest.source
    header = own.header if isinstance(own, FilesSource) else ()
    arrivals = list_files(files.model_copy(update={"header": header}), site.sources)
    scored = score_rows(
        detector, setup.configured.contract, detector_params.ingest, arrivals, detector_params.score.causes
    )
    facts = {"detector": name, "source": source, "model": version.name, "version": version.version}
    return facts | {"threshold": detector.threshold.value} | asdict(collect_scores(scored, most, output))
