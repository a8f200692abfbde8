import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.config.quiet import clean_logs
from flows.config.settings import Settings, prepare_environment
from tasks.errors import BatchRejected


@pytest.fixture
def logger(caplog: pytest.LogCaptureFixture) -> Iterator[logging.Logger]:
    """A logger like Prefect's of task runs, without its handlers."""
    clean_logs()
    logger = logging.getLogger("prefect.of_a_test")
    with caplog.at_level(logging.INFO, logger.name):
        logger.propagate = False
        logger.addHandler(caplog.handler)
        yield logger
        logger.removeHandler(caplog.handler)


def log(logger: logging.Logger, error: Exception) -> None:
    try:
        raise error
    except Exception:
        logger.exception("Encountered exception during execution: %r", error)


def test_an_error_of_ours_is_logged_once_and_without_a_traceback(
    logger: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    error = BatchRejected("It broke the contract.", where="contracts/toy.yaml", todo="deliver it again")
    log(logger, error)
    assert caplog.text.endswith(
        "BatchRejected('It broke the contract.')\n  where: contracts/toy.yaml\n  to do: deliver it again\n"
    )
    caplog.clear()
    log(logger, error)
    assert caplog.text.endswith("BatchRejected('It broke the contract.')\nThe details are above.\n")
    caplog.clear()
    log(logger, BatchRejected("It has one part."))
    assert caplog.text.endswith("\nIt has one part.\n")


def test_an_unexpected_error_keeps_its_traceback_and_hides_passwords(
    logger: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    error = KeyError("postgresql://me:secret@host/db")
    log(logger, error)
    log(logger, error)
    assert caplog.text.count("Traceback (most recent call last)") == 1
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        ("Failed('Task run encountered an exception BatchRejected: It broke.\\n  to do: x')", "Failed()"),
        ("Failed(\"Flow run encountered an exception: KeyError: 'x'\")", "Failed()"),
        ("Failed('orders: no night is published yet')", "Failed('orders: no night is published yet')"),
        ("Completed('12 published')", "Completed('12 published')"),
        ("Completed()", "Completed()"),
    ],
)
def test_the_last_record_of_a_run_does_not_repeat_its_error(
    logger: logging.Logger, caplog: pytest.LogCaptureFixture, state: str, shown: str
) -> None:
    logger.info(f"Finished in state {state}")
    assert caplog.messages == [f"Finished in state {shown}"]


@pytest.mark.parametrize("level", [None, "DEBUG"])
def test_prefects_pages_show_what_the_terminal_does_not_unless_the_user_sets_a_level(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, level: str | None
) -> None:
    monkeypatch.setattr("os.environ", {"PREFECT_LOGGING_LEVEL": level} if level else {})
    prepare_environment(Settings(project=tmp_path))
    from prefect.logging.configuration import DEFAULT_LOGGING_SETTINGS_PATH, load_logging_config

    config = load_logging_config(DEFAULT_LOGGING_SETTINGS_PATH)
    levels = [config["loggers"][f"prefect.{kind}"]["level"] for kind in ("flow_runs", "task_runs")]
    assert (levels, config["handlers"]["console"]["level"]) == (
        (["NOTSET"] * 2, 0) if level else (["INFO"] * 2, "WARNING")
    )
