"""`nightjar fetch`."""

from pathlib import Path

from flows.cli.options import Json, Name
from flows.cli.screen import print_json, stdout

EXAMPLE = "nightjar fetch kddcup99"


def fetch(name: Name, as_json: Json = False) -> None:
    """Download a public data set to the sources folder. Files already there are kept."""
    from flows.config.settings import load_settings
    from tasks.sources.fetch import fetch_public

    sources = Path(load_settings().sources)
    fetched = fetch_public(name, sources)
    if as_json:
        print_json({"detector": name, "fetched": fetched})
        return
    for path, is_new in fetched.items():
        stdout.print(f"{sources / path}: {'fetched' if is_new else 'already there'}", highlight=False, soft_wrap=True)
