"""Building the documentation and serving it on this machine."""

import functools
import http.server
import importlib.util
import logging
import os
import sys
from pathlib import Path

from pgjax.core.errors import InputError

CONFIG = Path(__file__).with_name("mkdocs.yml")
NEEDED = ("mkdocs", "material", "mkdocstrings_handlers.python", "latex2mathml")


def build(out: str | Path) -> Path:
    """Write the site into the directory `out`, which it replaces, and return its front page.

    Raises:
        InputError: the extra `docs` is not installed, or `out` holds something else than a site.
        SystemExit: a page has a broken link, an unknown reference or whatever else MkDocs warns of, which is shown.
    """
    check_installed()
    directory = Path(out)
    if directory.exists() and (not directory.is_dir() or (any(directory.iterdir()) and not _is_site(directory))):
        raise InputError(f"docs: out = {str(out)!r} is not accepted: expected a new directory, or one with a site")
    os.environ.setdefault("NO_MKDOCS_2_WARNING", "1")  # the theme's advertisement
    from mkdocs.commands.build import build as build_site
    from mkdocs.config import load_config

    shown = logging.StreamHandler(sys.stderr)
    shown.setLevel(logging.WARNING)
    logger = logging.getLogger("mkdocs")
    logger.addHandler(shown)
    try:
        config = load_config(str(CONFIG), site_dir=str(directory.resolve()), strict=True)
        config.plugins.on_startup(command="build", dirty=False)
        build_site(config)
        config.plugins.on_shutdown()
    finally:
        logger.removeHandler(shown)
    return directory / "index.html"


def check_installed() -> None:
    """Refuse to go on without the extra `docs`.

    Raises:
        InputError: naming what is missing and how to install it.
    """
    for module in NEEDED:
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise InputError(f"docs: {module.partition('.')[0]} is not installed: pip install 'pgjax[docs]'")


def _is_site(directory: Path) -> bool:
    return (directory / "sitemap.xml").is_file() and (directory / "index.html").is_file()


def server(directory: str | Path, port: int) -> http.server.ThreadingHTTPServer:
    """A server of the site for this machine alone; port 0 takes a free one.

    Raises:
        InputError: the port is taken or may not be used.
    """
    handler = functools.partial(_Quiet, directory=str(directory))
    try:
        return http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except (OSError, OverflowError) as error:
        raise InputError(f"docs: port = {port} is not accepted: {error}; 0 takes a free one") from error


class _Quiet(http.server.SimpleHTTPRequestHandler):
    """Files as they are."""

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a page is many files."""
