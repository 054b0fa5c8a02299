"""A document as an HTML page: it is complete, in order, and needs no other file."""

import base64
import io
from html.parser import HTMLParser

import pytest
from hypothesis import given, strategies as st
from PIL import Image as PIL

import tiny
from dreamkit.cli.page import page
from dreamkit.document import Document, Image, Segment, Text
from dreamkit.errors import count

VOID = {"meta", "img"}


class Page(HTMLParser):
    """The texts and images of a page in order, by section."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.sections: list[tuple[str, list[str]]] = []
        self.images: list[dict[str, str]] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"unclosed tags: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.links += [value for name, value in values.items() if name in ("src", "href")]
        if tag == "section":
            self.sections.append((values["class"], []))
        elif tag == "span":
            self.sections[-1][1].append("")
        elif tag == "img":
            self.images.append(values)
            self.sections[-1][1].append("[image]")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "span":
            self.sections[-1][1][-1] += data


def decoded(values: dict[str, str]) -> PIL.Image:
    """Return the image of an `<img>` with the attributes `values`."""
    return PIL.open(io.BytesIO(base64.b64decode(values["src"].removeprefix("data:image/png;base64,"))))


def test_the_prompt_and_the_model_s_segments_are_separate_sections() -> None:
    document = Document(
        (Text("one"), Image(tiny.picture(0)), Text(" two"), Image(tiny.picture(1), draw=True))
    )
    shown = Page(page(document, prompt_segments=2, title="<t>", facts={"seed": 3}))
    assert shown.sections == [("prompt", ["one", "[image]"]), ("written", ["two", "[image]"])]
    assert [image["alt"] for image in shown.images] == [
        "image 1, of the prompt, 16 x 16 pixels",
        "image 2, drawn by the model, 16 x 16 pixels",
    ]
    assert [decoded(image).tobytes() for image in shown.images] == [tiny.picture(n).tobytes() for n in (0, 1)]
    assert all(link.startswith("data:") for link in shown.links)


def test_a_conversation_has_a_section_for_each_turn() -> None:
    roles = ["system", "user", "user", "assistant", "user"]
    document = Document(tuple(Text(str(n), role=role) for n, role in enumerate(roles)))
    shown = Page(html := page(document, prompt_segments=3))
    assert shown.sections == [
        ("prompt", ["0"]),
        ("prompt", ["1", "2"]),
        ("written", ["3"]),
        ("written", ["4"]),
    ]
    assert [html.count(f"<h2>{role}</h2>") for role in ("system", "user", "assistant")] == [1, 2, 1]


segments = st.one_of(
    st.text(st.characters(exclude_categories=["Cs", "Cc"])).map(Text), st.just(Image(tiny.picture(0)))
)


@given(st.lists(segments), st.data(), st.text(st.characters(exclude_categories=["Cs", "Cc"])))
def test_any_text_is_escaped(content: list[Segment], data: st.DataObject, word: str) -> None:
    prompt = data.draw(st.integers(0, len(content)))
    shown = Page(page(Document(tuple(content)), prompt_segments=prompt, title=word, facts={word: word}))
    expected = [segment.text.strip() if isinstance(segment, Text) else "[image]" for segment in content]
    assert [text for _, texts in shown.sections for text in texts] == expected
    assert sum(len(texts) for kind, texts in shown.sections if kind == "prompt") == prompt


@pytest.mark.parametrize("size", [(1, 1), (8, 16), (64, 40), (100, 128), (200, 300), (3000, 1500)])
def test_small_images_are_enlarged_by_a_whole_factor_and_large_ones_shrink(size: tuple[int, int]) -> None:
    html = page(Document((Image(PIL.new("RGB", size)),)))
    (image,) = Page(html).images
    width, height = int(image["width"]), int(image["height"])
    assert f"{size[0]} x {count(size[1], 'pixel')}" in image["alt"]
    assert max(width, height) <= 1024
    assert decoded(image).size == tuple(min(side, side * 1024 // max(size)) for side in size)
    if max(size) <= 64:
        assert image["class"] == "small"
        assert width % size[0] == 0 and width // size[0] == height // size[1]
    else:
        assert "class" not in image


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_an_image_of_any_mode_is_shown_in_rgb(mode: str) -> None:
    (image,) = Page(page(Document((Image(PIL.new(mode, (4, 4))),)))).images
    assert decoded(image).mode == "RGB"
