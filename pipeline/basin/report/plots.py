"""plots/: what `dvc plots show` draws our tables with, offline: the page's own figures, and a page that has Vega in it."""

from functools import cache
from pathlib import Path

from basin import files
from basin.report import figures

PAGE = """<!doctype html>
<html lang="en-GB">
<head>
<meta charset="utf-8">
{refresh_tag}
<title>DVC plots</title>
<style>body { font: 15px/1.5 system-ui, sans-serif; margin: 2em; } body > div { margin: 0 0 2.5em; overflow-x: auto; }</style>
<script>
BUNDLE
</script>
</head>
<body>
{plot_divs}
</body>
</html>
"""


def write(folder: Path) -> None:
    """Templates for dvc.yaml, and the page for `plots.html_template` in .dvc/config, whose own would load Vega from elsewhere."""
    for name in figures.PLOTS:
        files.write(folder / f"{name}.json", figures.template(name) + "\n")
    files.write(folder / "page.html", PAGE.replace("BUNDLE", bundle()))


@cache
def bundle() -> str:
    """Vega, Vega-Lite and what draws with them, as one script."""
    import vl_convert

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed", figures.VEGA_LITE).replace("</script", "<\\/script")
