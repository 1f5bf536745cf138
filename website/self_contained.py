"""The built site loads nothing from elsewhere: a hook of MkDocs that reads every page, and fails where one would."""

import re
from html.parser import HTMLParser
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError

_LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href", "object": "data"}

_FETCHES = re.compile(r"""(?:url\(|@import)\s*['"]?(?:https?:)?//""", re.IGNORECASE)


class _Loaded(HTMLParser):
    """Addresses that a browser fetches when it shows the page; links to follow are none of them."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        address = given.get(_LOADED.get(tag, "")) or ""
        navigation = tag == "link" and (given.get("rel") or "") in ("canonical", "next", "prev", "alternate")
        if address.startswith(("http:", "https:", "//")) and not navigation:
            self.addresses.append(address)


def loaded_from_elsewhere(html: str) -> list[str]:
    """Addresses of other sites that this page would load.

    >>> loaded_from_elsewhere('<a href="https://a.org"></a><script src="https://b.org/x.js"></script>')
    ['https://b.org/x.js']
    """
    parser = _Loaded()
    parser.feed(html)
    return parser.addresses


def on_post_build(config: MkDocsConfig) -> None:
    site = Path(config.site_dir)
    for page in sorted(site.rglob("*.html")):
        for address in loaded_from_elsewhere(page.read_text()):
            raise PluginError(f"{page.relative_to(site)} would load {address}: keep it in docs/ instead")
    for sheet in sorted(site.rglob("*.css")):
        if _FETCHES.search(sheet.read_text()):
            raise PluginError(f"{sheet.relative_to(site)} would load something from elsewhere")
