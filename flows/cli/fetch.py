"""`nightjar fetch`."""

from pathlib import Path

from flows.cli.options import Json, Name
from flows.cli.screen import print_json, stdout

EXAMPLE = "nightjar fetch kddcup99"


def fetch(name: Name, as_json: Json = False) -> None:
    """Bring a public data set from its home to the sources folder; what is there already is left alone."""
    from flows.config.settings import load_settings
    from tasks.sources.fetch import fetch_public

    sources = Path(load_settings().sources)
    fetched = fetch_public(name, sources)
    if as_json:
        print_json({"detector": name, "fetched": fetched})
        return
    for path, is_new in fetched.items():
        stdout.print(f"{sources / path}: {'fetched' if is_new else 'there already'}", highlight=False, soft_wrap=True)
