import dataclasses
import json
from importlib.resources import files

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import diagram_types
from convcircuits import ConvCircuitsError
from convcircuits.drawing.data import (
    Calibration,
    Column,
    Cut,
    Document,
    Drawn,
    DrawnLayer,
    Fidelity,
    Group,
    Inside,
    Meta,
    Nodes,
    Note,
    Page,
    PictureSet,
    Span,
    TargetPicture,
    Tiles,
    Variant,
    View,
    check_view,
    view_from_dict,
    view_to_dict,
)
from diagrams import DOCUMENTS, FIXTURES, plain, residual

SCHEMA = json.loads((files("convcircuits.drawing") / "static" / "convcircuits-diagram-2.schema.json").read_text())
VIEWS = json.loads((FIXTURES.parent / "views.json").read_text(encoding="utf-8"))


def same(a, b):
    """Compare two values field by field, arrays by dtype and by value; NaN equals NaN."""
    if dataclasses.is_dataclass(a):
        assert type(a) is type(b)
        for field in dataclasses.fields(a):
            same(getattr(a, field.name), getattr(b, field.name))
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    elif isinstance(a, tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    else:
        assert type(a) is type(b)
        assert a == b


@pytest.fixture(params=DOCUMENTS)
def document(request):
    return DOCUMENTS[request.param]()


def test_a_document_comes_back_from_json_as_it_was(document):
    text = document.to_json()
    read = Document.from_json(text)
    same(read, document)
    assert read.to_json() == text


def test_a_document_obeys_the_schema_that_ships(document):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(document.to_json()))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_fixtures_are_what_is_written_now(name):
    given = (FIXTURES / f"{name}.json").read_text(encoding="utf-8")
    assert given == DOCUMENTS[name]().to_json() + "\n", "run python tests/diagrams.py"


def test_the_schema_and_the_typescript_types_are_those_of_the_records():
    assert diagram_types.SCHEMA_FILE.read_text(encoding="utf-8") == diagram_types.json_schema(), "run make frontend"
    assert diagram_types.TYPES_FILE.read_text(encoding="utf-8") == diagram_types.typescript(), "run make frontend"


@given(
    values=st.lists(st.floats(width=32, allow_nan=True, allow_infinity=False), max_size=9),
    share=st.sampled_from([0.5, 0.8, 0.95]),
    kernels=st.none() | st.integers(1, 99),
    pins=st.lists(st.just(3), max_size=4),
    mode=st.sampled_from(["diagram", "all", "table"]),
    text=st.text(max_size=20),
    file=st.from_regex(r"[A-Za-z0-9_+][A-Za-z0-9_.+-]*", fullmatch=True),
)
def test_any_value_survives_json(values, share, kernels, pins, mode, text, file):
    made = plain(widths=(2, 1))
    edges = len(made.edges)
    saliency = np.resize(np.array(values or [0.0], dtype=np.float32), edges)
    view = View(kernels=kernels, share=share, pins=pins, mode=mode, groups=(Group(text, (3, 4)),))
    document = dataclasses.replace(
        made,
        variants=(dataclasses.replace(made.variants[0], saliency=saliency, name=text),),
        meta=dataclasses.replace(made.meta, title=text, versions={text: text}, file=file),
        view=view,
    )
    read = Document.from_json(document.to_json().encode())
    same(read, document)
    assert read.variants[0].saliency.tobytes() == saliency.tobytes()


@pytest.mark.parametrize("view", [View(), View(kernels=3), View(mode="all", groups=(Group("g", (3, 4)),), variant=1)])
def test_a_view_is_written_whole_for_a_browser_and_in_a_document_as_what_differs(view):
    said = view_to_dict(view)
    assert view_from_dict(json.loads(json.dumps(said))) == view
    assert set(said) == set(SCHEMA["$defs"]["View"]["properties"])
    saved = json.loads(dataclasses.replace(plain(variants=2), view=view).to_json())["view"]
    assert view_from_dict(saved) == view
    assert len(saved) == sum(getattr(view, f.name) != getattr(View(), f.name) for f in dataclasses.fields(View))


def test_arrays_are_copies_that_nobody_writes_into():
    kind = np.zeros(2, dtype=np.uint8)
    nodes = Nodes(kind, np.zeros(2, int), [0, 0], [0, 1])
    kind[0] = 5
    assert nodes.kind.tolist() == [0, 0]
    assert nodes.column.dtype == np.int16
    for field in ("kind", "column", "layer", "unit"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(nodes, field)[0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        nodes.kind = kind
    with pytest.raises(TypeError):
        nodes.names[0] = "x"


def test_numbers_of_numpy_become_pythons():
    layer = DrawnLayer("a", "a", np.int64(0), [np.int32(3), 3], np.uint8(2))
    assert (type(layer.column), layer.kernel, type(layer.kernel[0])) == (int, (3, 3), int)
    assert type(Drawn(1, np.float32(0.5), 1).r2) is float


def changed(document, where, **changes):
    return dataclasses.replace(document, **{where: dataclasses.replace(getattr(document, where), **changes)})


def with_entry(array, index, value):
    copy = array.astype(np.int64) if array.dtype.kind in "iu" else array.copy()
    copy[index] = value
    return copy


def broken():
    """Every law of a document, broken: (what, how, words of the error)."""
    made, mixed = plain(images=2, variants=3, measured=True), residual()
    nodes, edges, images = made.nodes, made.edges, made.images
    connection = int(np.flatnonzero(~mixed.edges.weighted)[0])

    def node(**entries):
        return lambda: changed(made, "nodes", **{k: with_entry(getattr(nodes, k), *v) for k, v in entries.items()})

    def edge(document=made, **entries):
        old = document.edges
        return lambda: changed(document, "edges", **{k: with_entry(getattr(old, k), *v) for k, v in entries.items()})

    def variant(document=made, **changes):
        first, *others = document.variants
        return lambda: dataclasses.replace(document, variants=(dataclasses.replace(first, **changes), *others))

    def gains(gain):
        return variant(calibration=Calibration(1, None, gain))

    def pictures(**changes):
        return lambda: dataclasses.replace(made, pictures=(dataclasses.replace(made.pictures[0], **changes),))

    def target(**changes):
        return lambda: changed(made, "images", target=dataclasses.replace(images.target, **changes))

    last = len(nodes) - 1
    rank = made.variants[0].rank
    return {
        "no columns": (lambda: dataclasses.replace(made, columns=()), "Document.columns is .* at least 1"),
        "no variants": (lambda: dataclasses.replace(made, variants=()), "Document.variants is .* at least 1"),
        "first is a control": (variant(role="control"), "first of a document's variants is the circuit"),
        "another length": (lambda: changed(made, "nodes", unit=nodes.unit[1:]), r"nodes.unit has shape.*\(N\)"),
        "one edge less": (lambda: changed(made, "edges", sign=edges.sign[1:]), r"edges.sign has shape.*\(E\)"),
        "another axis": (target(mean=images.target.full_mean[None]), r"images.target.mean.*\(V, I\)"),
        "layer beyond columns": (
            lambda: dataclasses.replace(made, layers=(DrawnLayer("x", "x", 9, (3, 3), 2), *made.layers[1:])),
            "'x' is in column 9",
        ),
        "unknown kind": (node(kind=(0, 6)), "nodes.kind"),
        "column beyond": (node(column=(last, 3)), "nodes.column"),
        "layer beyond": (node(layer=(last, 3)), "nodes.layer"),
        "a name beyond": (lambda: changed(made, "nodes", names={99: "x"}), "nodes.names"),
        "an image in a column": (node(column=(0, 0)), "Node 0 .* image"),
        "a filter in none": (node(column=(4, -1)), "Node 4 .* image"),
        "a filter without layer": (node(layer=(4, -1)), "Node 4 is a filter without a layer"),
        "target beyond": (lambda: dataclasses.replace(made, target=last + 1), "target is node"),
        "target not last": (lambda: dataclasses.replace(made, target=4), "belongs in the last"),
        "source beyond": (edge(source=(0, last + 1)), "edges.source"),
        "negative source": (edge(source=(0, -1)), "edges.source"),
        "unknown edge": (edge(kind=(0, 6)), "edges.kind"),
        "sign of 2": (edge(sign=(0, 2)), "edges.sign"),
        "a kernel of no layer": (edge(layer=(2, -1)), "Edge 2 is a kernel without layer"),
        "a connection with a channel": (edge(mixed, in_=(connection, 0)), f"Edge {connection} .*without in"),
        "inner between nodes": (edge(kind=(1, 1)), "Edge 1 is inner"),
        "leftwards": (edge(source=(0, int(edges.target[0]))), "Edge 0 does not lead"),
        "weights beyond": (edge(weights=(0, len(made.weights) - 8)), "weights of edge 0"),
        "weights below": (edge(weights=(0, -2)), "weights of edge 0"),
        "weights of none": (edge(mixed, weights=(connection, 0)), f"Edge {connection} .*but has weights"),
        "infinite scale": (edge(scale=(3, np.inf)), "scale of edge 3"),
        "negative scale": (edge(scale=(3, -1)), "scale of edge 3"),
        "infinite saliency": (variant(saliency=np.full(len(edges), np.inf)), "infinite saliency"),
        "gains of fewer edges": (gains(np.ones(len(edges) - 1)), r"calibration.gain has shape.*\(E\)"),
        "a gain of no number": (gains(np.full(len(edges), np.nan)), "a gain that is not a finite number"),
        "fitted on no image": (lambda: Calibration(3, 0, np.ones(1)), "Calibration.images is .* at least 1"),
        "a rank twice": (variant(rank=with_entry(rank, 0, rank[1])), "one for each of its kernels"),
        "a rank too many": (variant(kernels=len(edges) - 1), "one for each of its kernels"),
        "a rank beyond": (variant(rank=with_entry(rank, 0, 10**6)), "one for each of its kernels"),
        "a connection's rank": (
            variant(mixed, rank=with_entry(mixed.variants[0].rank, connection, 1)),
            "is a connection",
        ),
        "kept more than relevant": (variant(kept=10**6), "none of these is more than the next"),
        "fidelity on nothing": (lambda: dataclasses.replace(made, held_out=None), "names no held-out images"),
        "a set's name twice": (
            lambda: dataclasses.replace(made, pictures=(made.pictures[0], made.pictures[0])),
            "names of their own",
        ),
        "a tile beyond": (
            pictures(tiles=with_entry(made.pictures[0].tiles, (0, 0), len(made.tiles))),
            "tiles of 'patches'",
        ),
        "the target's tile beyond": (pictures(target=(TargetPicture("x", 99),)), "target's tiles of 'patches'"),
        "a map beyond": (
            lambda: changed(
                made, "images", activation_offset=with_entry(images.activation_offset, 3, images.activation.size)
            ),
            "Map 3 .* images.activation",
        ),
        "a presum beyond": (
            lambda: changed(made, "images", presum_shape=with_entry(images.presum_shape, (5, 0), 30000)),
            "Map 5 .* images.presum",
        ),
        "a map's scale": (
            lambda: changed(made, "images", activation_scale=with_entry(images.activation_scale, (4, 0), np.nan)),
            "activation_scale of 4",
        ),
        "the target's map of another size": (target(map=images.target.map[:, :, 1:]), r"target.map is of \(5, 7\)"),
        "maps of too few variants": (target(map=images.target.map[1:]), "images.target.map has shape"),
        "the target's scale": (target(scale=-images.target.scale), "target.scale holds"),
        "an inside beyond": (target(inside=Inside((0, 7), (0, 7), exact=True)), "0 to 7 are no rows"),
        "an inside of nothing": (target(inside=Inside((2, 2), (0, 7), exact=True)), "2 to 2 are no rows"),
        "a thumbnail on the web": (
            lambda: changed(made, "images", src=("https://example.org/a.png", images.src[1])),
            r"ImageMaps.src\[0\] is .* that matches \^data:image/; got 'https",
        ),
        "names without thumbnails": (lambda: changed(made, "images", names=("a",)), "a name and a thumbnail"),
        "a view of no node": (lambda: changed(made, "view", root=last + 1), f"view names node {last + 1}"),
        "a view of no variant": (lambda: changed(made, "view", compare=3), "view names variant 3"),
        "a view of no image": (lambda: changed(made, "view", image=2), "view names image 2"),
        "a group across": (
            lambda: changed(made, "view", groups=(Group("g", (3, last)),)),
            "not of nodes of one column",
        ),
    }


BROKEN = broken()


@pytest.mark.parametrize("law", BROKEN)
def test_a_document_that_breaks_a_law_is_refused_by_its_name(law):
    make, words = BROKEN[law]
    with pytest.raises(ConvCircuitsError, match=words):
        make()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Column(3), "Column.label is a text"),
        (lambda: Column("\ud800"), "Column.label is a text of whole characters"),
        (lambda: DrawnLayer("a", "a", 0, (3,), 2), "DrawnLayer.kernel is 2 whole numbers"),
        (lambda: DrawnLayer("a", "a", 0, (3, 0), 2), r"DrawnLayer.kernel\[1\] is a whole number, at least 1; got 0"),
        (lambda: DrawnLayer("a", "a", -1, (3, 3), 2), "DrawnLayer.column is a whole number, at least 0; got -1"),
        (lambda: DrawnLayer("a", "a", True, (3, 3), 2), "DrawnLayer.column is a whole number"),
        (lambda: DrawnLayer("a", "a", 0.0, (3, 3), 2), "DrawnLayer.column is a whole number"),
        (lambda: Nodes([0.5], [0], [0], [0]), "Nodes.kind is an array of uint8 with 1 axes"),
        (lambda: Nodes([[0]], [0], [0], [0]), "Nodes.kind is an array of uint8 with 1 axes"),
        (lambda: Nodes([256], [0], [0], [0]), "Nodes.kind holds 256 to 256; expected 0 to 255"),
        (lambda: Nodes([True], [0], [0], [0]), "Nodes.kind is an array of uint8"),
        (lambda: Nodes([0], [40000], [0], [0]), "Nodes.column holds"),
        (lambda: Nodes([0], [0], [0], [0], {"a": "b"}), "Nodes.names is a whole number"),
        (lambda: Fidelity(float("nan")), "Fidelity.r2 is a finite number"),
        (lambda: Fidelity(0.5, drawn=(1, 2)), "Fidelity.drawn is a Drawn"),
        (lambda: View(share=0.7), r"one of \(0.5, 0.8, 0.95\); got 0.7"),
        (lambda: View(mode="list"), "View.mode is one of 'diagram', 'all', 'table'"),
        (lambda: View(kernels=0), "View.kernels is a whole number, at least 1; got 0"),
        (lambda: View(nodes_per_column=0), "View.nodes_per_column is a whole number, at least 1"),
        (lambda: Group("g", (3,)), "Group.nodes is a sequence of int, with at least 2"),
        (lambda: Group("g" * 81, (3, 4)), "of at most 80 characters"),
        (lambda: Meta("a", "b", "c", file="../c"), "Meta.file is .* that matches"),
        (lambda: Meta("a", "b", "c", file="c\n"), "Meta.file is .* that matches"),
        (lambda: View(pins=3), "View.pins is a sequence of int"),
        (lambda: Page(1, 1, "http://example.org/x.png"), r"Page.src is .* that matches \^data:image/"),
        (lambda: Tiles(64, (Page(33, 1, "data:image/png;base64,"),)), "at most 2048 pixels"),
        (lambda: Tiles(64, (Page(2, 65, "data:image/png;base64,"),)), "at most 2048 pixels"),
        (
            lambda: Tiles(64, (Page(1, 1, "data:image/png;base64,"),), (), (Cut(0, 0, (0, 0, 3, 3)),)),
            "Tile 0 of 1 is cut out of image 0 of 0, 3 x 3 pixels",
        ),
        (lambda: Tiles(0, ()), "Tiles.size is a whole number, at least 1, at most 2048"),
        (lambda: PictureSet("a", "b", [1, 2]), "with 2 axes"),
        (lambda: Variant("a", "best", [], [], 0, 0, 0, 0, 0, None, True), "Variant.role is one of"),
    ],
)
def test_a_value_of_another_type_is_refused_by_its_name(make, words):
    with pytest.raises(ConvCircuitsError, match=words):
        make()


@pytest.mark.parametrize("said", VIEWS["valid"], ids=json.dumps)
def test_a_view_of_what_is_in_the_document_passes(said):
    check_view(DOCUMENTS[VIEWS["document"]](), view_from_dict(said))


@pytest.mark.parametrize("said", VIEWS["invalid"], ids=json.dumps)
def test_a_view_that_a_browser_would_mend_is_refused(said):
    """``frontend/test/core.test.ts`` mends the same views."""
    with pytest.raises(ConvCircuitsError, match=r"[Vv]iew|Group"):
        check_view(DOCUMENTS[VIEWS["document"]](), view_from_dict(said))


@pytest.mark.parametrize(
    ("view", "words"),
    [
        (View(isolate=99), "node 99; the document has 11"),
        (View(pins=(0,)), "node 0, a channel of the image"),
        (View(compare=0), "compares variant 0 with itself"),
        (View(collapsed=(Span(0, 2),)), "columns 0 to 2 as one"),
        (View(collapsed=(Span(1, 1),)), "columns 1 to 1 as one"),
        (View(notes=(Note(3, "a"), Note(3, note="b"))), "two notes of one node"),
        (View(notes=(Note(0, "a"),)), "node 0, a channel of the image"),
        (View(pictures="none"), "pictures 'none'; the document has patches, features"),
        (View(groups=(Group("g", (3, 3)),)), "name a node twice"),
        (View(groups=(Group("g", (3, 4)), Group("h", (4, 5)))), "name a node twice"),
        (View(groups=(Group("g", (3, 6)),)), "'g' is not of nodes of one column"),
    ],
)
def test_a_view_is_refused_by_what_is_wrong(view, words):
    with pytest.raises(ConvCircuitsError, match=words):
        check_view(DOCUMENTS["plain"](), view)


def spoilt(change):
    said = json.loads(plain().to_json())
    change(said)
    return json.dumps(said)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        ("[]", "not a circuit diagram"),
        ("{}", "not a circuit diagram"),
        (spoilt(lambda d: d.update(schema="convcircuits-diagram/1")), "not a circuit diagram"),
        (spoilt(lambda d: d.pop("target")), "document lacks target"),
        (spoilt(lambda d: d.update(more=1)), "unknown fields: more"),
        (spoilt(lambda d: d["nodes"].pop("kind")), "document.nodes lacks kind"),
        (spoilt(lambda d: d["columns"][0].pop("label")), r"document.columns\[0\] lacks label"),
        (spoilt(lambda d: d["edges"].update(in_=1)), "document.edges has unknown fields: in_"),
        (spoilt(lambda d: d["nodes"].update(kind=[0])), "document.nodes.kind is not a buffer"),
        (spoilt(lambda d: d["nodes"]["kind"].update(data="*")), "document.nodes.kind is not a buffer"),
        (spoilt(lambda d: d["nodes"]["kind"].update(data="AAA=")), "document.nodes.kind has 2 bytes"),
        (spoilt(lambda d: d["nodes"]["kind"].update(dtype="object")), "document.nodes.kind is not a buffer"),
        (spoilt(lambda d: d["nodes"]["kind"].update(shape=[-1, -11])), "document.nodes.kind has 11 bytes"),
        (spoilt(lambda d: d["nodes"]["kind"].update(shape=[1.5])), "document.nodes.kind is not a buffer"),
        (spoilt(lambda d: d["nodes"].update(names={"1x": "a"})), "Nodes.names is a whole number"),
        (spoilt(lambda d: d["layers"][0].update(kernel=[3, 3, 3])), "DrawnLayer.kernel"),
        (spoilt(lambda d: d.update(meta=3)), "Document.meta is a Meta"),
        (spoilt(lambda d: d.update(columns=None)), "Document.columns"),
        (spoilt(lambda d: d["view"].update(pins=[99])), "node 99"),
        (spoilt(lambda d: d["variants"][0].update(fidelity={"r2": 1})), "fidelity lacks controls, drawn"),
    ],
)
def test_json_that_is_no_document_is_refused_by_its_name(text, words):
    with pytest.raises(ConvCircuitsError, match=words):
        Document.from_json(text)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(more=1),
        lambda d: d.pop("target"),
        lambda d: d.update(target=-1),
        lambda d: d.update(columns=[]),
        lambda d: d.update(variants=[]),
        lambda d: d["meta"].update(file="../up"),
        lambda d: d["meta"].update(granularity="pixel"),
        lambda d: d["meta"].update(versions={"torch": 2}),
        lambda d: d["layers"][0].update(column=-1),
        lambda d: d["layers"][0].update(kernel=[3]),
        lambda d: d["layers"][0].update(kernel=[3, 0]),
        lambda d: d["layers"][0].update(filters=0),
        lambda d: d["nodes"].update(names={"1x": "a"}),
        lambda d: d["nodes"]["kind"].update(dtype="int32"),
        lambda d: d["nodes"]["kind"].update(shape=[11, 1]),
        lambda d: d["nodes"]["kind"].update(shape=[-11]),
        lambda d: d["variants"][0].update(role="best"),
        lambda d: d["variants"][0].update(kept=-1),
        lambda d: d["variants"][0]["fidelity"].update(drawn=3),
        lambda d: d["variants"][0]["fidelity"].update(r2="0.5"),
        lambda d: d["variants"][1]["fidelity"]["controls"].update(best="without_circuit"),
        lambda d: d["variants"][1]["fidelity"]["controls"].update(verdict="keeps"),
        lambda d: d["pictures"][0]["target"].append({"label": "a", "tile": -1}),
        lambda d: d["tiles"].update(size=0),
        lambda d: d["tiles"].update(size=2049),
        lambda d: d["tiles"]["pages"][0].update(columns=0),
        lambda d: d["tiles"]["pages"][0].update(src="https://example.org/a.png"),
        lambda d: d["images"].update(names=[]),
        lambda d: d["images"].update(src=["https://example.org/a.png"] * 2),
        lambda d: d["images"]["target"].update(shape=[5, -1]),
        lambda d: d["heldOut"].update(count=0),
        *(lambda d, view=view: d.update(view=view) for view in ({"share": 0.7}, {"kernels": 0}, {"more": 1})),
    ],
)
def test_the_schema_and_the_records_refuse_the_same(change):
    said = json.loads(DOCUMENTS["plain"]().to_json())
    valid = jsonschema.Draft202012Validator(SCHEMA).is_valid
    assert valid(said)
    change(said)
    assert not valid(said)
    with pytest.raises(ConvCircuitsError):
        Document.from_json(json.dumps(said))
