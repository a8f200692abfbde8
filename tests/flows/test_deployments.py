"""infra/prefect.yaml deploys as it stands, against a real server."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_both_deployments_are_made_with_their_schedule(prefect_server: None) -> None:
    from prefect.settings import PREFECT_API_URL

    env = os.environ | {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "NIGHTJAR_PROJECT": str(ROOT)}
    prefect = str(Path(sys.executable).parent / "prefect")

    def call(*arguments: str) -> str:
        command = [prefect, "--no-prompt", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    for pool in ("cpu", "gpu"):
        call("work-pool", "create", pool, "--type", "process")
    call("deploy", "--all", "--prefect-file", "infra/prefect.yaml")
    listed = call("deployment", "inspect", "nightly/payments")
    assert "0 4 * * *" in listed
    assert "flows.nightly:nightly" in listed
    assert "flows.training:training" in call("deployment", "inspect", "training/payments")
