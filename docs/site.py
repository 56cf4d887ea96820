"""`make docs`: the pages and the Python reference as a static site. Every link in it that stays there is followed, and a broken one named.

Pages keep their places (docs/data.md is docs/data.html), so that links between them hold. The reference is pdoc's, of what is public
(`basin`, `basin.registry.lookup`) and of the methods, whose docstrings are the equations.
"""

import html
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pdoc
import pdoc.render
from pdoc.render_helpers import to_html

ROOT = Path(__file__).resolve().parents[1]
MODULES = ("basin", "basin.registry.lookup", "basin.methods")
SCRIPT = re.compile(r"<script\b.*?</script>", re.DOTALL)
LINK = re.compile(r'(?:href|src)="([^"]+)"')
MENU = {"Basin": "README", "Own data": "docs/data", "Own model": "docs/recipes", "Evaluation": "docs/evaluation", "Report": "docs/report"}
MENU |= {"Registry": "docs/registry", "Methods": "docs/methods/README", "Results": "docs/results/README", "Python": "api/basin"}
FRAME = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title><style>
:root {{ color-scheme: light dark }}
body {{ font: 1rem/1.55 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
nav a {{ margin-right: 1rem }}
pre, table {{ overflow-x: auto; display: block }}
pre {{ padding: .8rem; background: #8882 }}
p code, li code {{ overflow-wrap: anywhere }}
td, th {{ padding: .3rem .7rem; text-align: left; vertical-align: top; border-bottom: 1px solid #8884 }}
img {{ max-width: 100% }}
</style><nav>{menu}</nav><main>{body}</main></html>
"""


def pages() -> list[Path]:
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def framed(title: str, body: str, place: Path) -> str:
    """A page at `place`, relative to the site's root."""
    links = {name: os.path.relpath(f"{to}.html", place.parent) for name, to in MENU.items()}
    menu = " ".join(f'<a href="{to}">{name}</a>' for name, to in links.items())
    return FRAME.format(title=html.escape(title), menu=menu, body=body)


def lead_to_pages(text: str, page: Path, site: Path) -> str:
    """Links to other pages lead to theirs; a file that a page shows comes along; a folder becomes a list of its pages."""

    def follow(found: re.Match[str]) -> str:
        path, hash_sign, anchor = found[1].partition("#")
        target = (page.parent / unquote(path)).resolve()
        if "://" in path or not path or not target.is_relative_to(ROOT):
            return found[0]
        if target.is_dir():
            path = f"{path.rstrip('/')}/index.html"
            write(site, (target / "index.html").relative_to(ROOT), target.name, listing(target))
        elif target.suffix == ".md":
            path = path.removesuffix(".md") + ".html"
        elif target.is_file():
            (place := site / target.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(target, place)
        return found[0].replace(found[1], path + hash_sign + anchor)

    return LINK.sub(follow, text)


def listing(folder: Path) -> str:
    names = sorted(path.stem for path in folder.glob("*.md"))
    return f"<h1>{folder.name}</h1><ul>" + "".join(f'<li><a href="{name}.html">{name}</a></li>' for name in names) + "</ul>"


def write(site: Path, place: Path, title: str, body: str) -> None:
    (site / place).parent.mkdir(parents=True, exist_ok=True)
    (site / place).write_text(framed(title, body, place), encoding="utf-8")


def broken(site: Path) -> Iterator[str]:
    """The links of the site that lead nowhere; of headings, tests/docs/test_links.py knows."""
    for page in sorted(site.rglob("*.html")):
        for link in LINK.findall(SCRIPT.sub("", page.read_text(encoding="utf-8"))):
            path = unquote(html.unescape(link).partition("#")[0])
            if path and not re.match(r"\w+:", path) and not (page.parent / path).exists():
                yield f"{page.relative_to(site)}: leads nowhere (got {link}). Mend the link."


def build(site: Path) -> list[str]:
    """Write the site anew; what is wrong with it."""
    shutil.rmtree(site, ignore_errors=True)
    pdoc.render.configure(template_directory=ROOT / "docs/pdoc")  # for its custom.css: the dark theme
    pdoc.pdoc(*MODULES, output_directory=site / "api")
    for page in pages():
        text = page.read_text(encoding="utf-8")
        title = next((line[2:] for line in text.splitlines() if line.startswith("# ")), page.stem)
        write(site, page.relative_to(ROOT).with_suffix(".html"), title, lead_to_pages(str(to_html(text)), page, site))
    shutil.copyfile(site / "README.html", site / "index.html")
    return list(broken(site))


if __name__ == "__main__":
    sys.exit("\n".join(build(Path(sys.argv[1]))) or 0)
