"""One bad week on payments, as people see it each morning: the commands, their output, and the mails.

A project of its own in a temporary folder, with one CSV file per day of the payments simulator. Its week has a file
that comes late, prices that rise, an attack, broken data, and a challenger that is worse than the champion.
`python bench/bad_week.py` prints the transcript as Markdown.
"""

import argparse
import email
import os
import subprocess
import sys
from contextlib import contextmanager
from datetime import date, timedelta
from email.policy import default
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import yaml
from aiosmtpd.controller import Controller
from monitor import attacked, in_cents, inflated

from tasks.sources import payments

PROJECT = Path(__file__).resolve().parents[1]
FIRST, CUTOFF = date(2026, 9, 22), date(2026, 11, 14)
MON, TUE, WED, THU, FRI = (date(2026, 11, 16) + timedelta(days=n) for n in range(5))
ZONE, PORT, SHOWN = "Europe/Berlin", 8925, 24
RULES = {
    "failed": {"on": "night_failed", "channels": ["mail"]},
    "rejected": {"on": "night_rejected", "channels": ["mail"]},
    "changed": {"on": "drifted", "channels": ["mail"]},
}


class Mails:
    """A mail server that keeps what it is sent."""

    def __init__(self) -> None:
        self.kept: list[str] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 - the server's name
        """Keep a mail's subject and text."""
        mail = email.message_from_bytes(envelope.content, policy=default)
        text = mail.get_body(("plain",)).get_content().strip()  # type: ignore[attr-defined]
        self.kept.append(f"Subject: {mail['Subject']}\n{text}".replace("\r\n", "\n"))
        return "250 OK"


@contextmanager
def serving(mails: Mails) -> Any:
    """The mail server on this machine."""
    controller = Controller(mails, hostname="127.0.0.1", port=PORT)
    controller.start()
    try:
        yield
    finally:
        controller.stop()


class Week:
    """The project, and its days as they arrive."""

    def __init__(self, folder: Path, mails: Mails) -> None:
        self.folder, self.mails = folder, mails
        section = yaml.safe_load((PROJECT / "params.yaml").read_text())["detectors"]["payments"]
        self.source = payments.PaymentsSource(**section["ingest"]["source"] | {"first_date": FIRST})
        section["ingest"] |= {"source": {"kind": "files", "path": "payments"}}
        section["ingest"]["labels"] = {"column": "is_fraud", "anomalous": ["1"]}
        section["run"] = {"nights": 2, "last_date": "2026-11-15"}
        section["promote"] = {"gate": {"min_nights": 2, "max_alerts_per_night": 150}}
        (folder / "sources" / "payments").mkdir(parents=True)
        (folder / "contracts").mkdir()
        (folder / "contracts" / "payments.yaml").write_bytes((PROJECT / "contracts" / "payments.yaml").read_bytes())
        alerts = {"time_zone": ZONE, "channels": {"mail": None}, "rules": RULES}
        (folder / "alerts.yaml").write_text(yaml.safe_dump(alerts, sort_keys=False))
        self.params = {"detectors": {"payments": section}}
        self.write_params()

    def write_params(self) -> None:
        """Write params.yaml."""
        (self.folder / "params.yaml").write_text(yaml.safe_dump(self.params, sort_keys=False))

    def read(self, day: date) -> pd.DataFrame:
        """The simulator's payments of a day, with the truth as a label."""
        files = payments.list_deliveries(self.source, ZONE, day, day)
        frame = pd.concat([part for file in files for part in payments.read_file(self.source, ZONE, file)])
        frauds = set(payments.read_truth(self.source, ZONE, day)["record_id"])
        return frame.drop_duplicates("payment_id").assign(
            is_fraud=lambda rows: rows["payment_id"].isin(frauds).astype(int)
        )

    def deliver(self, day: date, frame: pd.DataFrame | None = None) -> None:
        """The file of a day arrives."""
        frame = self.read(day) if frame is None else frame
        frame.to_csv(self.folder / "sources" / "payments" / f"payments-{day}.csv", index=False)

    def type(self, *command: str, shown: int = SHOWN) -> None:
        """Run a command, and print its last lines and the mails that it sent."""
        before = len(self.mails.kept)
        mail = f"mailto://127.0.0.1:{PORT}?from=nightjar@example.org&to=oncall@example.org&mode=insecure"
        extra = {"NIGHTJAR_CHANNEL_MAIL": mail, "NIGHTJAR_PSEUDONYM_KEY": "an example", "COLUMNS": "110"}
        run = subprocess.run(
            [Path(sys.executable).parent / "nightjar", *command],
            cwd=self.folder, env=os.environ | extra, capture_output=True, text=True, check=False,
        )  # fmt: skip
        text = run.stdout + "\n".join(line for line in run.stderr.splitlines() if " done" not in line)
        lines = [line.rstrip() for line in text.splitlines() if line.strip()]
        print("```\n$ nightjar", *command)
        print("\n".join(lines[-shown:]), f"\n(exit code {run.returncode})\n```")
        for sent in self.mails.kept[before:]:
            print("A mail arrives:\n```\n" + sent + "\n```")


def main() -> None:
    """Live through the week."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    mails, rng = Mails(), np.random.default_rng(1)
    with TemporaryDirectory() as folder, serving(mails):
        week = Week(Path(folder), mails)
        for number in range((MON - FIRST).days):
            week.deliver(FIRST + timedelta(days=number))
        print("## The week before\n")
        week.type("run", "payments", shown=14)
        print(f"\n## {TUE:%A}: Monday's file has not come\n")
        week.type("score", "payments", "--date", str(MON))
        week.type("status", "payments", shown=4)
        print("\nIt comes at noon.\n")
        week.deliver(MON)
        week.type("score", "payments", "--date", str(MON), shown=6)
        print(f"\n## {WED:%A}: prices rise\n")
        week.deliver(TUE, inflated(week.read(TUE), rng, 1.0))
        week.type("score", "payments", "--date", str(TUE), shown=6)
        week.type("monitor", "payments")
        print(f"\n## {THU:%A}: one terminal is robbed\n")
        week.deliver(WED, attacked("compromised_terminal")(week.read(WED), rng, 3).assign(is_fraud=0))
        week.type("score", "payments", "--date", str(WED), shown=6)
        week.type("monitor", "payments")
        week.type("cases", "payments", shown=12)
        print(f"\n## {FRI:%A}: the amounts are in cents\n")
        week.deliver(THU, in_cents(week.read(THU), rng, 1.0))
        week.type("score", "payments", "--date", str(THU))
        week.type("monitor", "payments")
        print("\n## Saturday: a challenger that is worse\n")
        week.params["detectors"]["payments"]["train"]["fit"] |= {"epochs": 1}
        week.write_params()
        week.type("train", "payments", "--cutoff", str(CUTOFF), shown=40)
        week.type("promote", "payments")
        week.type("status", "payments", shown=8)
        week.type("alerts", shown=12)


if __name__ == "__main__":
    main()
