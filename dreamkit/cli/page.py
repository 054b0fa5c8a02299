"""A document as one HTML page, with its images inside and without scripts."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from itertools import count as numbers, groupby

from dreamkit.document import Document, Image, Text
from dreamkit.errors import count
from dreamkit.pages.frame import COLOURS, html_page
from dreamkit.pages.image_tags import image_tag
from dreamkit.parts.pictures import to_rgb

LARGEST = 1024  # longest side in pixels of an image in the page; larger images are scaled down
SMALL = 128  # smaller images are enlarged by a whole factor to about this side

STYLE = (
    COLOURS
    + """
body { margin: 0; background: var(--page); color: var(--ink); font: 1.125rem/1.7 Georgia, serif; }
main { max-width: 44rem; margin: 0 auto; padding: 3rem 1.25rem; }
section { margin: 0 0 1.5rem; padding: 0.25rem 0 0.25rem 1.25rem; border-left: 3px solid var(--line); }
section.prompt { padding: 1rem 1.25rem; border: 0; border-radius: 6px; background: var(--token); }
h1, h2, dl { font-family: system-ui, sans-serif; color: var(--soft); }
h1 { margin: 0 0 2rem; font-size: 1rem; font-weight: 600; }
h2 { margin: 0 0 0.25rem; font-size: 0.75rem; font-weight: 600; letter-spacing: 0.06em; text-transform: uppercase; }
section:not(.prompt) h2 { color: var(--line); }
p { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
span + span::before { content: " "; }
img { display: block; max-width: 100%; height: auto; margin: 0.5rem 0 0.75rem; border: 1px solid var(--rule);
  border-radius: 4px; }
img.small { display: inline; margin: 0.25rem 0.6rem; vertical-align: middle; image-rendering: pixelated; }
img.small:first-child { margin-left: 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.1rem 1rem; margin: 2.5rem 0 0; padding-top: 1rem;
  border-top: 1px solid var(--rule); font-size: 0.8rem; line-height: 1.5; }
dd { margin: 0; overflow-wrap: anywhere; }
"""
)


def page(
    document: Document,
    *,
    prompt_segments: int = 0,
    title: str = "A document",
    facts: Mapping[str, object] | None = None,
) -> str:
    """Return `document` as an HTML page that needs no other file.

    The first `prompt_segments` segments are the prompt, which looks different. `facts` are listed below the document.
    """
    pictures = numbers(1)
    parts = []
    for (is_prompt, role), turn in groupby(
        enumerate(document), key=lambda item: (item[0] < prompt_segments, item[1].role)
    ):
        label = role or ("prompt" if is_prompt else "written by the model")
        inside = "".join(
            f"<span>{escape(segment.text.strip())}</span>"
            if isinstance(segment, Text)
            else _picture(segment, next(pictures), is_prompt)
            for _, segment in turn
        )
        parts.append(
            f'<section class="{"prompt" if is_prompt else "written"}"><h2>{label}</h2>\n<p>{inside}</p></section>'
        )
    if facts:
        listed = "".join(
            f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items()
        )
        parts.append(f"<dl>{listed}</dl>")
    body = "\n".join([f"<h1>{escape(title)}</h1>", *parts])
    return html_page(title, body, style=STYLE)


def _picture(image: Image, number: int, is_prompt: bool) -> str:
    picture = to_rgb(image.picture)
    width, height = picture.size
    origin = "of the prompt" if is_prompt else "drawn by the model"
    alt = f"image {number}, {origin}, {width} x {count(height, 'pixel')}"
    return image_tag(picture, alt, largest=LARGEST, small=SMALL)
