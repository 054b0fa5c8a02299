"""The page of a preview: complete, well-formed, closed to the network, readable, and harmless with any document."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import tiny
from dreamkit.data.dataset import Dataset
from dreamkit.data.mixture import Mixture
from dreamkit.data.samples import Policy, Samples
from dreamkit.document import Document, Image, Text
from dreamkit.errors import DocumentError, count
from dreamkit.inspection.preview_page import article, preview_page
from dreamkit.inspection.preview_style import STYLE
from dreamkit.inspection.run_data import MOST_PACKED, RunData
from dreamkit.model.model import DreamModel
from dreamkit.pages.frame import POLICY
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.registry.registry import Registry

VOID = {"meta", "img"}
TRAIN = {"trainable": ["visual_projector"], "steps": 3, "batch_size": 2, "max_length": 64}
RECIPE = recipe_from_dict(
    tiny.recipe(train=TRAIN, loss={"condition_drop": 0.1}), Registry.load(), where="tiny"
)


class Listed(Dataset):
    """A data set of these documents; an error in place of one is raised."""

    def __init__(self, documents: list[Any]) -> None:
        self.documents = documents

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, index: int) -> Document:
        if isinstance(self.documents[index], Exception):
            raise self.documents[index]
        return self.documents[index]


class Page(HTMLParser):
    """The elements of a page: each with its tag, attributes and the text inside."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self.open: list[tuple[str, list[str]]] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        texts: list[str] = []
        self.elements.append((tag, {name: value or "" for name, value in attrs}, texts))
        if tag not in VOID:
            self.open.append((tag, texts))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, texts in self.open:
            texts.append(data)

    def all(self, tag: str, kind: str = "") -> list[tuple[dict[str, str], str]]:
        """Return attributes and text of the elements of a tag, with `kind` among their classes."""
        return [
            (attributes, "".join(texts))
            for name, attributes, texts in self.elements
            if name == tag and (not kind or kind in attributes.get("class", "").split())
        ]


@pytest.fixture(scope="module")
def model() -> DreamModel:
    return tiny.model()


def run_of(model: DreamModel, documents: list[Any], policy: Policy | None = None) -> RunData:
    collator = model.collator(RECIPE)
    mixture = Mixture([Listed(documents)], [1.0], length=6)
    return RunData(RECIPE, Samples(mixture, collator.sequencer, policy), collator)


def shown(run: RunData, documents: int = 6, **settings: Any) -> tuple[str, Page]:
    places = [run.place(number) for number in range(documents)]
    packed = [run.packed([run.place(number) for number in update]) for update in run.updates(documents)]
    articles = {place.number: article(place, run) for place in places}
    html = preview_page(articles, list(chain(*packed)), title="<t>", **settings)
    return html, Page(html)


HOSTILE = (
    "</span></article><script>alert(1)</script><img src=http://a/b.png onerror=x> &amp; \x00\x1b\u202e\"'"
)
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8) | st.just(HOSTILE)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.lists(texts, min_size=1, max_size=4), st.booleans())
def test_hostile_documents_are_shown_as_they_are_and_change_nothing_else(
    model: DreamModel, written: list[str], is_chat: bool
) -> None:
    role = "assistant" if is_chat else None
    documents = [Document((Text(text, role=role),), name=text) for text in written]
    html, page = shown(run_of(model, documents), facts={"<a>": HOSTILE}, notes=[HOSTILE])
    assert not page.all("script") and not page.all("link") and not page.all("img")
    assert len(page.all("article")) == 6
    # of characters that only join or divide others, those that are not escaped are kept
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", html)
    assert {attributes["href"] for attributes, _ in page.all("a")} <= {f"#document-{n}" for n in range(6)}


def test_the_page_loads_nothing_from_elsewhere(model: DreamModel) -> None:
    picture = Image(tiny.picture(0), draw=True)
    html, page = shown(run_of(model, [Document((Text("a"), picture, Text("b")))]))
    policy = [attributes for attributes, _ in page.all("meta") if "http-equiv" in attributes]
    assert policy == [{"http-equiv": "Content-Security-Policy", "content": POLICY}]
    images = page.all("img")
    assert len(images) == 12 and all(attributes["src"].startswith("data:image/") for attributes, _ in images)
    assert all(attributes["alt"].startswith("image of 16 x 16 pixels, ") for attributes, _ in images)
    assert "url(" not in html and "@import" not in html


def test_slots_have_their_image_and_numbers_of_tokens(model: DreamModel) -> None:
    read, drawn = Image(tiny.picture(0)), Image(tiny.picture(1, 300), draw=True, read=False)
    _, page = shown(run_of(model, [Document((read, Text("and"), drawn))]), 1)
    captions = [text for _, text in page.all("figcaption")]
    assert captions == ["read · 4 tokens", "draw · 3 queries"]
    kinds = [attributes["class"] for attributes, _ in page.all("figure")]
    assert kinds == ["read", "draw"]
    sizes = [(attributes["width"], attributes["height"]) for attributes, _ in page.all("img")]
    assert sizes == [("64", "64"), ("160", "160")]


def test_learned_texts_and_tokens_look_unlike_others(model: DreamModel) -> None:
    document = Document((Text("asked", train_on=False), Text("answered"), Image(tiny.picture(0), draw=True)))
    _, page = shown(run_of(model, [document]), 1)
    marked = [
        text for _, text in page.all("span", "learned") if text != "learned text"
    ]  # the last is of the legend
    assert marked == ["answered", "<dream_start>", "</s>"]
    first = [(attributes.get("title"), text) for attributes, text in page.all("span", "first")]
    expected = ("special token, the first one, which nothing predicts", "<s>")
    assert first == [(None, "first token"), expected]
    (about,) = [text for _, text in page.all("h3")]
    length = 1 + len("askedanswered") + 3 + 2 + 4 + 2 + 1
    assert f"{length} tokens · {len('answered') + 2} learned · 1 read · 1 drawn" in about


def test_bars_show_the_rows_of_training(model: DreamModel) -> None:
    documents = [Document((Text("word " * n),), name=f"{n}") for n in (1, 3, 5, 7, 11)]
    run = run_of(model, documents)
    _, page = shown(run, 3)  # of two batches: three documents are shown, and the rows have four
    batches = [run.collator([run.place(n).document for n in batch]) for batch in ((0, 1), (2, 3))]
    rows = [attributes["aria-label"] for attributes, _ in page.all("div", "row")]
    assert rows == [
        f"row {index}: {count(len(spans), 'document')}, "
        f"{count(batch.input_ids_BT.shape[1] - spans[-1][1], 'token')} of padding"
        for batch in batches
        for index, spans in enumerate(batch.spans)
    ]
    linked = [attributes["href"] for attributes, _ in page.all("a")]
    assert sorted(linked) == ["#document-0", "#document-1", "#document-2"]
    titles = [
        attributes["title"]
        for tag in ("a", "span")
        for attributes, _ in page.all(tag)
        if "style" in attributes
    ]
    assert sum(title.startswith("no document") for title in titles) == 4  # a dummy and the unconditional ones
    assert f"document 3: {len(run.place(3).sequence)} tokens" in titles


def test_documents_are_those_of_training_with_their_substitutes(model: DreamModel) -> None:
    documents: list[Any] = [Document((Text(f"text {n}"),), name=f"{n}.txt:1") for n in range(5)]
    documents[3] = DocumentError("bad.jsonl:4: no such image: gone.png")
    documents[1] = Document((Text("long " * 40),), name="long")
    run = run_of(model, documents)
    places = [run.place(number) for number in range(6)]
    sequences = [run.samples[number] for number in range(6)]
    assert [place.sequence.ids for place in places] == [sequence.ids for sequence in sequences]
    assert [place.document.name for place in places] == [sequence.name for sequence in sequences]
    _, page = shown(run)
    heads = [text for _, text in page.all("h3")]
    assert sum("cut at the end" in head for head in heads) == sum(s.is_cut for s in sequences) > 0
    skipped = [text for _, text in page.all("p", "skipped")]
    assert skipped == ["skipped here: bad.jsonl: 4: no such image: gone.png"] * sum(
        len(s.skipped) for s in sequences
    )
    assert skipped


def test_a_document_at_which_training_stops_is_shown_with_the_reason(model: DreamModel) -> None:
    picture = Image(tiny.picture(0))
    documents = [
        Document((Text("long " * 40), picture), name="long"),
        Document((Text("unread", train_on=False),), name="nothing"),
        ValueError("<b>of a plug-in"),
    ]
    run = run_of(model, documents, Policy("stop", "stop"))
    _, page = shown(run, 3)
    problems = sorted(text for _, text in page.all("p", "problem"))
    assert len(problems) == 3
    assert problems[0] == "ValueError: <b>of a plug-in"
    assert problems[1].startswith("long: expected at most 64 tokens, got ")
    assert problems[2].startswith("nothing: nothing to train on")
    assert len(page.all("figure")) == 1 and "long long" in "".join(text for _, text in page.all("article"))


def contrast(first: str, second: str) -> float:
    """Return the contrast of two colours (WCAG 2.2, relative luminance)."""

    def luminance(colour: str) -> float:
        values = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
        return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


PAIRS = {
    "ink": ("page", "card", "learned", "filled"),
    "soft": ("page", "card", "token"),
    "read": ("read-back",),
    "draw": ("draw-back",),
    "wrong": ("wrong-back", "card"),
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_the_contrast_of_wcag_aa(scheme: str) -> None:
    schemes = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", schemes[scheme == "dark"]))
    ratios = {(text, back): contrast(colours[text], colours[back]) for text in PAIRS for back in PAIRS[text]}
    assert {pair: ratio for pair, ratio in ratios.items() if ratio < 4.5} == {}


def test_a_batch_of_many_documents_is_not_read_whole(model: DreamModel, tmp_path: Path) -> None:
    run = run_of(model, [Document((Text("a"),))])
    large = tiny.recipe(train={**TRAIN, "batch_size": 10**6})
    run = RunData(recipe_from_dict(large, Registry.load(), where="tiny"), run.samples, run.collator)
    assert [len(batch) for batch in islice(run.updates(5), 2)] == [MOST_PACKED]
