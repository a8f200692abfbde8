"""The stores that all detectors share, from the environment."""

from flows.config.settings import load_settings
from tasks.upkeep.backup import Stores


def load_stores() -> Stores:
    """The stores that all detectors share. Raises ParamsInvalid."""
    settings = load_settings()
    artifacts = settings.artifact_root or str(settings.home_path / "mlflow-artifacts")
    return Stores(settings.lake_root, settings.warehouse_url, settings.mlflow_uri, artifacts)
