"""`review`: serves a page in the browser, in which a person corrects masks."""

from __future__ import annotations

import secrets
import webbrowser
from collections.abc import Mapping
from dataclasses import dataclass

from vpltool import console, options
from vpltool.errors import VplError
from vpltool.formats import IGNORE, Workspace
from vpltool.parallel.once import once
from vpltool.review.orders import ORDERS
from vpltool.settings import Settings, Stage, setting

_LOCAL = ("127.0.0.1", "localhost")
_SHORTEST = 16


@dataclass(frozen=True, kw_only=True)
class ReviewSettings(Settings):
    """Settings of `review`."""

    what: str = setting("", "Masks to correct: masks/NAME or predictions/NAME; default: the "
                            "predictions of the split, else its masks.", metavar="NAME")
    split: str = options.split()
    order: str = setting("worst-tags", "Which photos come first; worst-tags: those whose mask "
                                       "disagrees most with their tags; uncertain: those on which "
                                       "the segmenter or the CRF is least sure; random; file.",
                         choices=tuple(ORDERS), metavar="|".join(ORDERS),
                         source="vpltool, docs/results.md")
    port: int = setting(8642, "Port; 0: any free one.", low=0, high=65535)
    open: bool = setting(False, "Open the browser.", off="-")
    host: str = setting("127.0.0.1", "Address to listen on. Any but this machine's own needs "
                                     "--token: whoever can reach it and has the token can see all "
                                     "photos and change masks, over HTTP without encryption.",
                        metavar="ADDRESS", by_hand=True, brief=False)
    token: str = setting("", "Token of the address, 16 characters or more; default: a new one "
                             "each time.", by_hand=True, brief=False)


STAGE = Stage(order=89, panel="4. Scores and pictures", reads=("masks", "predictions"), writes=(),
              settings=ReviewSettings)


def run(workspace: Workspace, settings: ReviewSettings) -> list[str]:
    """Correct masks with clicks, in a page in the browser.

    Click a region to give it a class, or use the brush, polygon or eraser. Every correction is
    saved at once, in `corrections/`, and can be undone later. A button trains again and shows the
    new masks. Only this machine can open the page; Ctrl-C ends it. To correct masks in a paint
    program instead, see `export review`.

    Example: vpltool review --order worst-tags

    Next: vpltool update

    Returns:
        the states of photos, and how many are in each.

    Raises:
        VplError: there are no masks, the port is taken, or the address is open without a token.
    """
    from vpltool.review.desk import STATES, Desk
    from vpltool.review.server import ReviewServer

    if settings.host not in _LOCAL and not settings.token:
        raise VplError(f"`host={settings.host!r}` lets others in, who would see all photos and "
                       "could change masks, without encryption",
                       "`token='WORDS'` sets what they must know; or use a tunnel: ssh -L 8642:"
                       "127.0.0.1:8642 MACHINE")
    if settings.token and (len(settings.token) < _SHORTEST or not settings.token.isalnum()
                           or not settings.token.isascii()):
        raise VplError("`token` is too short, or not of letters and digits",
                       f"take {_SHORTEST} letters and digits or more")
    if len(workspace.classes) >= IGNORE:
        raise VplError(f"{len(workspace.classes)} classes: review paints labels of 8 bits, which "
                       "tell 254 classes apart", "correct masks in a tool that takes 16 bits")
    with once(workspace.path, "review", "`review()`"):
        desk = Desk(workspace.path, settings.what, settings.split, settings.order)
        try:
            server = ReviewServer(desk, settings.host, settings.port,
                                  settings.token or secrets.token_hex(16))
        except OSError as error:
            raise VplError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}",
                           "`port=0` takes a free one") from error
        with server:
            console.note(f"review: {desk.what}, {len(desk.ids)} photos. Open\n\n    "
                         f"{server.address}\n\nCtrl-C ends it; everything is saved.")
            if settings.open:
                webbrowser.open(server.address)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                pass
            finally:
                server.training.stop()
        known = desk.states()
    states = [known.get(key, "new") for key in desk.photos]
    return [f"{states.count(state)} {state}" for state in STATES]


def show(result: list[str], _values: Mapping[str, object]) -> str:
    """Format the number of photos in each state."""
    return ", ".join(result)
