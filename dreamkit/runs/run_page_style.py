"""Style and script of the page of a run."""

from __future__ import annotations

from typing import Final

from dreamkit.pages import chart, frame
from dreamkit.runs import drawing_table

RULES: Final = """
main { max-width: 82rem; padding-top: 1.75rem; }
header { display: flex; flex-wrap: wrap; gap: .25rem 1rem; align-items: baseline; }
h2 { margin-top: 2.25rem; }
a { color: var(--read); }
.state { padding: .1rem .7rem; border: 1px solid currentColor; border-radius: 1rem; font-size: .9rem; font-weight: 600;
  white-space: nowrap; }
.running { color: var(--read); background: var(--read-back); }
.finished { color: var(--line); background: var(--learned); }
.ended { color: var(--wrong); background: var(--wrong-back); }
.notes { margin-top: .6rem; }
progress { display: block; width: 100%; height: .6rem; margin: .9rem 0 .4rem; accent-color: var(--read); }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .75rem;
  margin: 1.25rem 0 0; }
.figures div { padding: .5rem .8rem; border: 1px solid var(--rule); border-radius: 8px; background: var(--card); }
.figures dt { color: var(--soft); font-size: .8rem; }
.figures dd { margin: 0; font-size: 1.2rem; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
details { margin: .75rem 0 0; padding: .5rem .9rem; border: 1px solid var(--rule); border-radius: 8px;
  background: var(--card); }
summary { cursor: pointer; font-weight: 600; }
pre { margin: .5rem 0 0; overflow-x: auto; font: .82rem/1.5 ui-monospace, monospace; }
.list { width: 100%; margin: .5rem 0 0; border-collapse: collapse; font-size: .85rem; }
.list th, .list td { padding: .25rem .9rem .25rem 0; border-top: 1px solid var(--rule); text-align: left;
  vertical-align: top; overflow-wrap: anywhere; }
.list thead th { border: 0; color: var(--soft); font-weight: 400; }
h3 { margin: 1.25rem 0 .25rem; font-size: 1rem; overflow-wrap: anywhere; }
"""

STYLE: Final = frame.STYLE + chart.STYLE + drawing_table.STYLE + RULES

# The page of a run that goes on loads itself again, unless it is hidden or a text is selected. It keeps the position
# on the page and in the drawings, and what is unfolded. It says so if nothing has written it for a long time.
SCRIPT: Final = """
(() => {
  const data = document.body.querySelector("[data-refresh]").dataset;
  const key = "dreamkit " + location.pathname;
  const folds = [...document.querySelectorAll("details[id]")];
  const drawings = document.getElementById("drawings");
  try {
    const kept = JSON.parse(sessionStorage.getItem(key) || "null");
    sessionStorage.removeItem(key);
    if (kept) {
      folds.forEach(each => { each.open = kept.open.includes(each.id); });
      if (drawings) drawings.scrollLeft = kept.x;
      history.scrollRestoration = "manual";
      scrollTo(0, kept.y);
    }
  } catch (error) {}
  const age = () => Math.round((Date.now() - data.written) / 1000);
  const words = seconds => seconds < 120 ? seconds + " s" : seconds < 7200 ? Math.round(seconds / 60) + " min"
    : Math.round(seconds / 3600) + " h";
  const show = () => {
    const late = document.getElementById("late");
    late.hidden = age() < data.late;
    late.querySelector("b").textContent = words(age());
  };
  const reload = () => {
    if (document.hidden || String(getSelection())) return;
    try {
      sessionStorage.setItem(key, JSON.stringify({
        y: scrollY, x: drawings ? drawings.scrollLeft : 0, open: folds.filter(each => each.open).map(each => each.id)
      }));
    } catch (error) {}
    location.reload();
  };
  show();
  setInterval(show, 1000);
  setInterval(reload, data.refresh * 1000);
})();
"""
