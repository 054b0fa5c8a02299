"""The frame of an HTML page that needs no other file, its policy, and its colours for light and dark."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import Final

from dreamkit.errors import printable

# No page loads anything from elsewhere, and no text in it can become a script.
POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

# Pairs of text and background have the contrast of WCAG 2.2 AA; tests compute it.
COLOURS: Final = """
:root {
  color-scheme: light dark;
  --page: #fbfaf8; --card: #ffffff; --ink: #1c1f23; --soft: #5a616a; --rule: #dcdad5;
  --learned: #d9efe4; --line: #1d7a55; --read: #1f5fb4; --read-back: #e6eefb; --draw: #9a4a00; --draw-back: #fdeedd;
  --token: #edebe6; --filled: #d3dbe4; --wrong: #b3261e; --wrong-back: #fcebe9;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #15171a; --card: #1c1f23; --ink: #e9e7e3; --soft: #a7adb5; --rule: #353a41;
    --learned: #143c2c; --line: #5fcf9f; --read: #8fbcff; --read-back: #1b2a42; --draw: #ffb877; --draw-back: #3a2714;
    --token: #2a2e34; --filled: #3d4855; --wrong: #ff9d94; --wrong-back: #3d1f1c;
  }
}
"""

RULES: Final = """
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 1rem/1.6 system-ui, sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { margin: 0 0 .25rem; font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 .75rem; font-size: 1.15rem; }
p { margin: 0; }
.soft { color: var(--soft); font-size: .9rem; }
.problem { margin: .75rem 0 0; padding: .5rem .75rem; border-radius: 6px; background: var(--wrong-back);
  color: var(--wrong); overflow-wrap: anywhere; }
"""

STYLE: Final = COLOURS + RULES.lstrip("\n")


def html_page(title: str, body: str, *, style: str, policy: str = POLICY, head: str = "") -> str:
    """Return a page with this title, `body` in its main part, and `head` in its head. Only the title is escaped."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{shown(title)}</title>
<style>{style}</style>
{head}</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def shown(text: object) -> str:
    """Return a text of a file as HTML, without control characters."""
    return escape(printable(str(text)))


def script_source(script: str) -> str:
    """Return the source in a policy that allows this script and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
