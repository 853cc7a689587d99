"""The page as text: what it holds, what it lets run, and that no text of a document gets out of its place."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from importlib.resources import files

import numpy as np
import pytest

from convcircuits import ConvCircuitsError
from convcircuits.drawing import page as module
from convcircuits.drawing.data import NodeKind, View
from convcircuits.drawing.page import page, plain_text, read_page
from diagrams import DOCUMENTS, hostile, plain


class Elements(HTMLParser):
    """Every element with its attributes, and the text of those that hold text alone."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self._open = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        self.texts.append((self._open[-1] if self._open else "", data))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, tag):
        return [data for name, data in self.texts if name == tag]


@pytest.fixture(params=DOCUMENTS)
def document(request):
    return DOCUMENTS[request.param]()


def test_a_page_gives_its_document_back(document):
    assert read_page(page(document)).to_json() == document.to_json()
    assert page(read_page(page(document))) == page(document)


def test_a_page_has_two_scripts_the_data_and_the_renderer_whatever_its_texts(document):
    found = Elements(page(document))
    assert found.all("script") == [{"type": "application/json", "id": "circuit"}, {"type": "module"}]
    data, script = found.text("script")
    assert json.loads(data) == document.to_dict()
    bundle = (files("convcircuits.drawing") / "static" / "diagram.js").read_text(encoding="utf-8")
    assert script.replace("<\\/script", "</script") == bundle
    assert found.text("title") == [plain_text(document.meta.title)] == found.text("h1")
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", page(document).split("<script", 1)[0])
    names = {tag for tag, _ in found.elements}
    assert names == {
        *("html", "head", "meta", "link", "title", "style", "body", "main", "div", "h1", "p", "noscript", "ol", "li"),
        *("i", "script"),
    }
    for _, attributes in found.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "srcset", "style")]


def test_the_policy_lets_that_script_run_and_nothing_else(document):
    found = Elements(page(document))
    (policy,) = [meta["content"] for meta in found.all("meta") if "http-equiv" in meta]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    digest = base64.b64encode(hashlib.sha256(found.text("script")[1].encode()).digest()).decode()
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"].split() == ["data:", "blob:"]
    assert "connect-src" not in rules  # falls back to none
    tags = [tag for tag, _ in found.elements]
    assert tags.index("meta") < tags.index("script")
    assert [name for name, given in found.elements if "http-equiv" in given] == ["meta"]


def test_nothing_is_named_that_could_be_fetched():
    text = page(plain(images=2))
    assert [attributes["href"] for attributes in Elements(text).all("link")] == ["data:,"]
    urls = set(re.findall(r"https?://[\w./-]+", text))
    assert all(url.startswith("http://www.w3.org/") for url in urls)  # names of namespaces


@pytest.mark.parametrize("budget", [1, 3, 12])
def test_the_skeleton_has_as_many_squares_in_a_column_as_the_first_view_may_draw(budget):
    document = plain(widths=(5, 7, 1), view=View(nodes_per_column=budget))
    found = Elements(page(document))
    assert len(found.all("li")) == 3
    drawn = document.nodes.kind != NodeKind.IMAGE
    counts = np.bincount(document.nodes.column[drawn])
    assert len(found.all("i")) == np.minimum(counts, budget).sum()


def test_a_renderer_that_names_its_own_end_does_not_end_itself(monkeypatch):
    script = 'export const a = "</script><p>", b = `</SCRIPT >`, c = /<\\/p>/;'
    monkeypatch.setattr(module, "shipped", lambda _: script)
    found = Elements(page(plain()))
    assert len(found.all("script")) == 2
    inline = found.text("script")[1]
    assert "</script" not in inline.lower()
    assert inline.replace("<\\/script", "</script").replace("<\\/SCRIPT", "</SCRIPT") == script


def test_hostile_text_is_where_it_belongs():
    document = hostile()
    text = page(document)
    assert "</script><script>alert" not in text
    assert "<img" not in text
    assert text.count("<!--") == (files("convcircuits.drawing") / "static" / "diagram.js").read_text().count("<!--")
    assert document.meta.feature in "".join(Elements(text).text("p"))


@pytest.mark.parametrize("text", ["", "<html></html>", '<script id="circuit">{}</script>'])
def test_a_text_without_a_document_is_refused(text):
    with pytest.raises(ConvCircuitsError, match="contains no circuit diagram"):
        read_page(text)


def test_a_page_that_was_cut_short_is_refused():
    text = page(plain())
    at = text.index('id="circuit">') + 100
    with pytest.raises(ConvCircuitsError):
        read_page(text[:at])
    with pytest.raises(ConvCircuitsError, match="not valid JSON"):
        read_page(text[:at] + "</script>")
