"""`make docs`: every page and the reference are there, and a link that leads nowhere is named."""

import runpy

import pytest
from pages import PAGES, ROOT

import basin

pytestmark = pytest.mark.slow
SITE = runpy.run_path(str(ROOT / "docs/site.py"))


def test_the_site_has_every_page_and_what_is_public(tmp_path):
    assert list(SITE["build"](tmp_path)) == []
    assert all((tmp_path / page.relative_to(ROOT).with_suffix(".html")).is_file() for page in PAGES)
    assert (tmp_path / "docs/images/report.png").is_file() and (tmp_path / "docs/decisions/index.html").is_file()
    reference = (tmp_path / "api/basin.html").read_text(encoding="utf-8")
    assert all(f'id="{name}"' in reference for name in basin.__all__)
    assert 'id="find"' in (tmp_path / "api/basin/registry/lookup.html").read_text(encoding="utf-8")
    assert (tmp_path / "api/basin/methods/attacks/apgd.html").is_file()


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    (tmp_path / "a.html").write_text('<a href="b.html#x">b</a> <a href="a.html">a</a> <a href="https://x.org/b">c</a>', encoding="utf-8")
    assert list(SITE["broken"](tmp_path)) == ["a.html: leads nowhere (got b.html#x). Mend the link."]
