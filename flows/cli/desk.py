"""`nightjar desk`."""

import socket
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import By, name_person
from flows.cli.screen import stdout
from tasks.errors import ParamsInvalid

EXAMPLE = "nightjar desk; nightjar desk --host 0.0.0.0 --users desk.yaml; nightjar desk --new-token ada --role judge"


def desk(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0: any free one.")] = 8890,
    users: Annotated[Path | None, typer.Option(help="YAML file of people: name to role and token.")] = None,
    user_header: Annotated[
        str | None, typer.Option(help="The header with which a reverse proxy names who is signed in.", metavar="NAME")
    ] = None,
    proxy: Annotated[list[str] | None, typer.Option(help="The proxy's address (default: 127.0.0.1).")] = None,
    https: Annotated[bool, typer.Option("--https", help="People reach it by https: so do cookies.")] = False,
    hostname: Annotated[list[str] | None, typer.Option(help="A name under which people reach it.")] = None,
    browser: Annotated[bool, typer.Option(help="Open it in a browser.")] = False,
    new_token: Annotated[
        str | None, typer.Option(metavar="PERSON", help="Print a token and the line for the file of people, and exit.")
    ] = None,
    role: Annotated[str, typer.Option(help="The person's role: read, judge or promote.")] = "judge",
    by: By = None,
) -> None:
    """Serve the desk: the web application in which analysts judge flags and cases. It stops with Ctrl-C."""
    from flows.desk.access import ROLES, Access, bracket, check_access, hash_token, is_loopback, make_token, read_users

    if new_token is not None:
        if role not in ROLES:
            raise typer.BadParameter("give one of read, judge and promote", param_hint="--role")
        token = make_token()
        stdout.print(f"token for {new_token}: {token}", soft_wrap=True, highlight=False)
        stdout.print(f"line for the file: {new_token}: {{role: {role}, token: {hash_token(token)}}}", soft_wrap=True)
        return
    import uvicorn

    from flows.config.settings import load_settings, prepare_environment
    from flows.desk.app import create_app

    known = read_users(users) if users else {}
    check_access(host, known, user_header)
    settings = load_settings()
    prepare_environment(settings)
    local = None if known else name_person(by)
    access = Access(
        known,
        local,
        user_header,
        frozenset(proxy or ["127.0.0.1"]),
        https,
        hostnames=tuple(name for name in hostname or () if "*" not in name),
    )
    hosts = [
        bracket(host),
        *(hostname or []),
        *(["localhost", "127.0.0.1", "[::1]"] if is_loopback(host) else []),
    ]
    app = create_app(settings, access, None if known and not hostname else hosts)
    server = uvicorn.Server(
        uvicorn.Config(app, host, port, log_level="warning", server_header=False, proxy_headers=False, access_log=False)
    )
    opened = listen(host, port)
    bound = opened.getsockname()[1]
    access.cookie += f"_{bound}"
    address = f"http://{bracket(host)}:{bound}/"
    stdout.print(f"The desk is at {address} (Ctrl-C stops it)", soft_wrap=True)
    if browser:
        webbrowser.open(address)
    server.run(sockets=[opened])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises ParamsInvalid."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        todo = "choose an address of this machine for --host and a free --port"
        raise ParamsInvalid(
            "The desk cannot listen at this address.", where=f"{host}:{port}", got=str(error), todo=todo
        ) from error
