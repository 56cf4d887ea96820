"""Every link in the pages that stays in this repository leads somewhere, and to a heading where it names one."""

import re
from urllib.parse import unquote

import pytest
from pages import FENCED, INLINE, PAGES, ROOT

LINK = re.compile(r"\]\(([^)\s]+)\)")


def headings(text: str) -> set[str]:
    """As GitHub names them."""
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


def broken(text: str, folder) -> list[str]:
    wrong = []
    for link in LINK.findall(INLINE.sub("", FENCED.sub("", text))):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = folder / path if path else None
        if target and not (target.exists() and target.resolve().is_relative_to(ROOT)):
            wrong.append(link)
        elif anchor and anchor not in headings(target.read_text(encoding="utf-8") if target else text):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page):
    assert broken(page.read_text(encoding="utf-8"), page.parent) == []


def test_a_broken_link_is_seen():
    text = "# A head\n[a](README.md) [b](none.md) [c](#a-head) [d](#no-head) [e](https://x.org/none) `[f](none)`\n"
    assert broken(text, ROOT) == ["none.md", "#no-head"]
