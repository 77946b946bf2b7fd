"""The form that asks for a token, the link that brings one, and the way out."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from mechanicd.access import Role, create
from mechanicd.store import open_beside
from mechanicd.v1 import local_token
from tests.support.servers import ServerProcess

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server that asks who comes."""
    server = ServerProcess(tmp_path_factory.mktemp("guarded"), "--http", "127.0.0.1:0", "--auth", "auto").start()
    yield server
    assert server.stop() == 0


def kept(page: Page) -> str:
    """All that a script could find of a token."""
    return str(
        page.evaluate("[document.cookie, location.href, ...Object.values(localStorage), document.body.outerHTML].join()")
    )


def test_a_token_is_typed_once(guarded: Any, open_page: Open) -> None:
    store = open_beside(guarded.store)
    token, made = create("mine", Role.READ, store.clock.now())
    store.add_token(made)
    page = open_page(address=guarded.page, quiet=False)
    field, says = page.get_by_label("Token"), page.get_by_role("alert")
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
    expect(page.get_by_role("status")).to_have_text("signed out")
    expect(field).to_be_focused()
    expect(says).to_be_empty()
    page.keyboard.press("Enter")
    expect(says).to_have_text("Type a token, or paste one.")
    field.fill("mech_nonsense")
    page.get_by_role("button", name="Sign in").click()
    expect(says).to_contain_text("no token")
    assert field.get_attribute("aria-invalid") == "true"
    page.keyboard.type("t?n[")
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert field.input_value() == "t?n[", "keys are text here"
    field.fill(f" {token} ")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("No runs yet")
    expect(page.get_by_role("status")).to_have_text("live")
    expect(page.get_by_text("project mine", exact=True)).to_be_visible()
    (cookie,) = page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/")
    assert token not in kept(page)
    page.reload()
    expect(page.get_by_role("heading", level=1)).to_have_text("No runs yet")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
    assert page.context.cookies() == []
    page.reload()
    expect(field).to_be_focused()
    field.fill(token)
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_have_text("live")
    store.revoke_token(made.id, store.clock.now())
    store.close()
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
    expect(says).to_contain_text("was revoked")


def test_a_link_brings_the_token_and_does_not_keep_it(guarded: Any, open_page: Open) -> None:
    token = local_token.path(guarded.page).read_text().strip()
    page = open_page(f"#token={token}", address=guarded.page, quiet=False)
    expect(page.get_by_role("heading", level=1)).to_have_text("No runs yet")
    expect(page.get_by_text("all projects", exact=True)).to_be_visible()
    assert page.url == f"{guarded.page}/#/"
    assert token not in kept(page)
    page.goto(f"{guarded.page}/#token={token[:-1]}")
    expect(page.get_by_role("alert")).to_contain_text("no token")
    page.goto(f"{guarded.page}/#token={token}")
    expect(page.get_by_role("heading", level=1)).to_have_text("No runs yet")
    page.go_back()
    assert token not in page.url


def test_the_form_reads_well_in_both_colors_and_on_a_phone(guarded: Any, open_page: Open) -> None:
    for scheme, width in (("light", 1440), ("dark", 390)):
        page = open_page(address=guarded.page, quiet=False, width=width, height=844, color_scheme=scheme)
        field = page.get_by_label("Token")
        expect(field).to_be_focused()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for part in (field, page.get_by_role("button", name="Sign in")):
            box = part.bounding_box()
            assert box is not None
            assert box["height"] >= 24, "WCAG 2.2: target size"
