"""Where MkDocs asks: the generated pages, the excerpts in the others, links into the repository, and equations.

Pages link to files as they lie in the repository, so that they can be read there too; on the site these links lead to
the pages that are made of these files.
"""

import posixpath
import re
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from pgjax.docs.equations import with_mathml
from pgjax.docs.excerpts import with_excerpts
from pgjax.docs.generated import pages

LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)#\s:]+)(#[^)\s]*)?\)")
PAGES = "pgjax/docs/pages/"
LIES_IN = (("results/", "experiments/results/"), ("notebooks/", "notebooks/"), ("", PAGES))
"""Where the pages of a folder of the site lie in the repository."""
SHOWN_AT = (
    (re.compile(r"pgjax/docs/pages/(.+)"), r"\1"),
    (re.compile(r"README\.md"), "index.md"),
    (re.compile(r"experiments"), "results/index.md"),
    (re.compile(r"experiments/results"), "results/index.md"),
    (re.compile(r"experiments/results/(.+\.(?:md|png|gif))"), r"results/\1"),
    (re.compile(r"experiments/results/(.+)\.json"), r"results/\1.md"),
    (re.compile(r"(experiments/.+)\.py"), r"source/\1.md"),
    (re.compile(r"notebooks"), "notebooks/index.md"),
    (re.compile(r"notebooks/(.+)\.ipynb"), r"notebooks/\1.md"),
    (re.compile(r"pgjax/(.+)\.py"), r"source/\1.md"),
    (re.compile(r"pgjax/(\w+)"), r"source/\1/__init__.md"),
)
"""Which page shows what lies in the repository."""
IN_THE_REPOSITORY = ("results/", "notebooks/", "source/experiments/")
"""What only the repository has."""


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """The pages that are written, and those that are generated."""
    for path, content in pages():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_: Any) -> str:
    """With excerpts, and with links to pages of the site."""
    at = page.file.src_uri
    prefix, lies_in = next(place for place in LIES_IN if at.startswith(place[0]))
    folder = posixpath.dirname(lies_in + at.removeprefix(prefix))

    def on_the_site(found: re.Match[str]) -> str:
        is_picture, text, target, anchor = found.groups(default="")
        shown = _shown_at(posixpath.normpath(posixpath.join(folder, target)))
        if shown is None:
            return found[0]
        if shown.startswith(IN_THE_REPOSITORY) and not files.get_file_from_path(shown):
            return "" if is_picture else text
        return f"{is_picture}[{text}]({posixpath.relpath(shown, posixpath.dirname(at) or '.')}{anchor})"

    return LINK.sub(on_the_site, with_excerpts(markdown))


def _shown_at(path: str) -> str | None:
    for lies_at, shown in SHOWN_AT:
        if found := lies_at.fullmatch(path):
            return found.expand(shown)
    return None


def on_page_content(html: str, **_: Any) -> str:
    """With equations drawn."""
    return with_mathml(html)
