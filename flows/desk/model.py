"""Screen 7, Model: champion and challenger side by side, what the verdicts say, and promoting and rolling back."""

from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, HTTPException, Response

from flows.desk.recent import recent_of
from flows.desk.view import Act, Look, Page, Promote
from flows.status import read_challenger
from tasks.errors import ChampionMissing, TooFewRows
from tasks.on_demand.standing import (
    count_verdicts,
    describe_standing,
    draw_losses,
    find_comparison,
    list_needs,
)
from tasks.on_demand.worth import count_worth
from tasks.stores.registry import CHALLENGER, CHAMPION, Version

router = APIRouter()
LONGEST_REASON = 500  # characters
DAY_SECONDS = 86_400


def find_alias(versions: list[Version], alias: str) -> Version | None:
    """The version that carries the alias."""
    return next((version for version in versions if alias in version.aliases), None)


def read_model(page: Page) -> dict[str, Any]:
    """The versions, the last comparison of champion and challenger, and the nights in shadow."""
    site = page.site
    versions = site.registry.list_versions()
    champion, challenger = (find_alias(versions, alias) for alias in (CHAMPION, CHALLENGER))
    sides = [describe_standing(site.registry, one) for one in (champion, challenger) if one]
    return {
        "versions": versions[::-1],
        "champion": champion,
        "challenger": challenger,
        "sides": [(side, draw_losses(side.losses)) for side in sides],
        "comparison": find_comparison(site, (champion, challenger)) if champion and challenger else None,
        "shadow": read_challenger(site),
        "outdated": page.setup.changes_since(champion) if champion else "",
    }


@router.get("/{detector}/model")
def show(look: Look) -> Response:
    """The page."""
    found, read_at = recent_of(look).get(("model", look.detector), lambda: read_model(look))
    verdicts = count_verdicts(look.site)
    needs, gate = list_needs(verdicts, look.params.review.limits), look.params.promote.gate
    shown = found | {"read_at": read_at, "verdicts": verdicts, "needs": needs, "gate": gate}
    return look.render("model.html", **shown, worth=count_worth(look.site))


@router.get("/{detector}/model/verdicts")
def show_verdicts(look: Look) -> Response:
    """What a second stage learnt now would change in the last nights; remembered until there is another verdict."""
    from tasks.upkeep.preview import preview_reducer, read_stamp  # loads torch

    review = look.params.review
    try:
        stamp = read_stamp(look.site, review)
        found, read_at = recent_of(look).get(
            ("verdicts", look.detector), lambda: preview_reducer(look.site, review), DAY_SECONDS, stamp
        )
    except (TooFewRows, ChampionMissing) as error:
        return look.render("verdicts.html", found=None, parts=error.parts)
    return look.render("verdicts.html", found=found, read_at=read_at)


@router.get("/{detector}/model/promote/{number}")
def ask_to_promote(look: Look, number: int) -> Response:
    """What promoting a version would do, and the form that does it."""
    versions = look.site.registry.list_versions()
    version = next((one for one in versions if one.version == number), None)
    if version is None:
        raise HTTPException(HTTPStatus.NOT_FOUND, f"There is no version {number}.")
    champion, gate = find_alias(versions, CHAMPION), look.params.promote.gate
    return look.render("promote.html", version=version, champion=champion, gate=gate, is_back=False)


@router.get("/{detector}/model/rollback")
def ask_to_roll_back(look: Look) -> Response:
    """What rolling back would do, and the form that does it."""
    versions = look.site.registry.list_versions()
    champion = find_alias(versions, CHAMPION)
    version = next((one for one in versions if champion and one.version == champion.previous), None)
    if version is None:
        raise HTTPException(HTTPStatus.NOT_FOUND, "There is no earlier champion to roll back to.")
    return look.render("promote.html", version=version, champion=champion, gate=None, is_back=True)


@router.post("/{detector}/model/promote/{number}")
def promote(act: Promote, number: int) -> Response:
    """Make a version the champion, if the gate lets it or the form forces it. Takes as long as comparing both does."""
    from flows.promotion import decide  # loads torch

    if problem := find_problem(act):
        return act.go(act.url("model", "promote", number), "problem", problem)
    now, before = decide(act.setup, number, "force" in act.form, sign(act))
    recent_of(act).forget()
    was = f"; version {before} was before" if before else ""
    return act.done(act.url("model"), f"Version {now} is the champion{was}.")


@router.post("/{detector}/model/rollback")
def roll_back(act: Promote) -> Response:
    """Make the version before the champion the champion again."""
    from tasks import register  # loads torch

    if problem := find_problem(act):
        return act.go(act.url("model", "rollback"), "problem", problem)
    now, before = register.rollback(act.site, sign(act))
    recent_of(act).forget()
    return act.done(act.url("model"), f"Version {now} is the champion again; version {before} was before.")


def find_problem(act: Act) -> str:
    """What the form lacks, or that another champion has come meanwhile; "" if nothing."""
    champion = act.site.registry.find_version()
    if act.form.get("champion", "") != (str(champion.version) if champion else ""):
        return f"The champion has changed to version {champion.version if champion else 'none'} meanwhile: look again."
    if not act.form.get("reason", "").strip():
        return "Give a reason: it is kept with the version."
    return ""


def sign(act: Act) -> str:
    """Who wants it, and why."""
    return f"{act.person.name}: {act.form['reason'].strip()[:LONGEST_REASON]}"
