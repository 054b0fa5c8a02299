"""The style of a preview page, for light and dark."""

from typing import Final

from dreamkit.pages.frame import STYLE as COMMON

RULES: Final = """
h3 { display: flex; flex-wrap: wrap; gap: .25rem .75rem; align-items: baseline; margin: 0; font-size: 1rem; }
h3 .soft { font-weight: 400; }
h3 .name { min-width: 0; overflow-wrap: anywhere; font-weight: 600; }
h4 { margin: 0 0 .25rem; color: var(--soft); font-size: .8rem; font-weight: 600; }
.facts { color: var(--soft); font-size: .9rem; }
.about { margin: 0 0 .75rem; }
.legend { display: flex; flex-wrap: wrap; gap: .4rem 1.25rem; margin: 1rem 0 0; padding: 0; list-style: none;
  font-size: .9rem; }
.batch { margin: 0 0 1.25rem; }
.row { display: flex; height: 1.6rem; margin: .3rem 0; border-radius: 4px; overflow: hidden; background:
  repeating-linear-gradient(135deg, var(--token) 0 4px, transparent 4px 8px); border: 1px solid var(--rule); }
.row > * { min-width: 0; overflow: hidden; border-right: 2px solid var(--card); background: var(--filled);
  color: var(--ink); font-size: .75rem; line-height: 1.5rem; text-align: center; text-decoration: none;
  white-space: nowrap; }
.row > span { background: var(--token); color: var(--soft); }
.row > a:hover, .row > a:focus { text-decoration: underline; }
article { margin: 0 0 1rem; padding: 1rem 1.25rem; border: 1px solid var(--rule); border-radius: 8px;
  background: var(--card); scroll-margin-top: 1rem; }
article:target { border-color: var(--read); box-shadow: 0 0 0 1px var(--read); }
.flow { margin: .75rem 0 0; line-height: 1.85; overflow-wrap: anywhere; }
.turn { margin: .75rem 0 0; padding-left: .9rem; border-left: 3px solid var(--rule); }
.turn.assistant { border-color: var(--line); }
.turn .flow { margin: 0; }
.text { padding: .1rem 0; box-decoration-break: clone; -webkit-box-decoration-break: clone;
  white-space: pre-wrap; unicode-bidi: isolate; color: var(--soft); }
.learned { background: var(--learned); color: var(--ink); border-bottom: 2px solid var(--line); }
.token { padding: .1rem .35rem; border-radius: 4px; background: var(--token); color: var(--soft);
  font: .78em/1.4 ui-monospace, monospace; white-space: nowrap; margin: 0 .1rem; }
.token.learned { color: var(--ink); background: var(--learned); border-radius: 4px 4px 0 0; }
.first { border-bottom: 2px dotted var(--soft); }
.token.first { border-radius: 4px 4px 0 0; }
.escape { color: var(--wrong); }
figure { display: inline-block; vertical-align: middle; margin: .2rem .25rem; padding: .3rem; border-radius: 6px;
  background: var(--read-back); border: 1px solid var(--read); line-height: 1.3; text-align: center; }
figure.draw { background: var(--draw-back); border: 1px dashed var(--draw); }
figcaption { margin-top: .2rem; color: var(--read); font-size: .72rem; }
.draw figcaption { color: var(--draw); }
img { display: block; margin: 0 auto; max-width: 100%; height: auto; border-radius: 3px; }
img.small { image-rendering: pixelated; }
.swatch { padding: 0 .4rem; border-radius: 4px; }
.swatch.read { background: var(--read-back); color: var(--read); border: 1px solid var(--read); }
.swatch.draw { background: var(--draw-back); color: var(--draw); border: 1px dashed var(--draw); }
.skipped { margin: .5rem 0 0; color: var(--soft); font-size: .85rem; overflow-wrap: anywhere; }
"""

STYLE: Final = COMMON + RULES
