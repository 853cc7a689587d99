"""What the API takes and answers. The OpenAPI schema, ``static/openapi.json``, is generated from these."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from convcircuits.drawing import data as drawing
from convcircuits.explorer.store import LONGEST_LABEL, LONGEST_TEXT

Id = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$", examples=["3f8a0c1d2e4b5a69"])]
Text = Annotated[str, Field(max_length=LONGEST_TEXT)]
Box = Annotated[list[int], Field(min_length=4, max_length=4)]


class _Answer(BaseModel):
    model_config = ConfigDict(json_schema_serialization_defaults_required=True)


class Problem(_Answer):
    """Why a request was not answered."""

    error: str = Field(description="A sentence for people.")


class IndexState(_Answer):
    """How far the photographs have been looked at."""

    state: Literal["missing", "partial", "complete"]
    images: int = Field(description="Photographs that the layers' figures are of, at present.")
    photographs: int = Field(description="All photographs.")
    left_out: dict[str, str] = Field(description="Layers that are not indexed, and why.")


class ModelCard(_Answer):
    """The model, the photographs, and the state of the explorer."""

    state: Literal["starting", "ready", "failed"] = Field(
        description="While it is `starting`, all fields below have their empty values."
    )
    problem: str = Field(description="Why it failed; a sentence.")
    name: str = ""
    weights: str = Field("", description="Hash of all weights. Keep it in links: other weights are another model.")
    images: str = Field("", description="Hash of the photographs, their size and preparation.")
    size: list[int] = Field([], description="Height and width of the model's images; boxes are in these pixels.")
    normalization: str = ""
    photographs: int = 0
    copies: list[str] = Field([], description="Photographs that are left out as copies of others.")
    left_out: list[str] = Field([], description="Files that are not pictures.")
    index: IndexState | None = None
    read_only: bool = False
    remarks: list[str] = Field([], description="What a person must know, such as damaged files; sentences.")
    bytes: int = Field(0, description="Size of the project's folder.")
    version: str = ""
    classes: int | None = Field(
        None, description="Number of classes that it gives logits or probabilities of; None if it answers otherwise."
    )


class Layer(_Answer):
    """A layer of the model, in execution order."""

    name: str = Field(description="The module's name. Percent-encode it in paths.", examples=["features.14"])
    alias: str = Field(description="The name that papers use, or empty.", examples=["conv3_3"])
    kind: str
    units: int
    map: list[int] = Field(description="Height and width of its maps; empty for vectors.")
    calls: int
    indexed: bool = Field(description="Whether it is one of the convolutions that the index has.")
    images: int = Field(description="Photographs that its figures are of; 0 if it cannot be looked at yet.")
    field: list[int] | None = Field(description="Height and width of a receptive field, in pixels.")


class Figures(_Answer):
    """Statistics of a unit on the indexed photographs, as ``cc.units`` computes them. None: not defined."""

    unit: int
    active: float | None = Field(description="Share of all positions where it is above 0.")
    active_images: float | None = Field(description="Share of the photographs with such a position.")
    highest: float | None
    sparsity: float | None
    at_border: float | None = Field(description="Share of photographs on which it is highest where it sees padding.")
    inside: float | None = Field(description="Share of its variance that is on the interior.")
    interior: float | None = Field(description="Share of the positions that are interior.")
    average_map_r2: float | None = Field(description="R2 of the average map of the other photographs.")
    rectified_variance: float | None
    central: bool = Field(description="Whether the interior are the central positions, as too few see no padding.")
    dead: bool = Field(description="Never above 0 on these photographs.")
    allowed: bool = Field(description="Whether the rule of `cc.choose_unit` may choose it.")


class Example(_Answer):
    """A photograph, and the position where a unit is highest on it."""

    photo: Id
    name: str
    value: float
    position: list[int] = Field(description="Row and column in the map.")
    box: Box = Field(description="Its receptive field: top, left, height, width in pixels of the model's image.")


class UnitRow(_Answer):
    """A unit in a table of units."""

    figures: Figures
    top: list[Example] = Field(description="The four photographs on which it is highest, on the interior.")
    histogram: list[int] = Field(description="Counts of its histogram, for a sparkline; see the unit for its bins.")
    zero: int = Field(description="Number of the histogram's bins that lie below 0.")
    label: str
    star: bool


class UnitPage(_Answer):
    """Some units of a layer."""

    layer: str
    images: int = Field(description="Photographs that the figures are of.")
    complete: bool
    total: int = Field(description="Number of all units.")
    offset: int
    units: list[UnitRow]


class Histogram(_Answer):
    """How often a unit has which value, over positions."""

    edges: list[float] = Field(description="One more than counts; 0 is one of them if it lies between others.")
    counts: list[int]
    every: int = Field(description="Every how many rows and columns of each map are counted: 1 if all are.")


class Unit(_Answer):
    """A unit."""

    layer: str
    alias: str
    unit: int
    feature: str = Field(description="The form that `find` and the command take.", examples=["features.14:54"])
    images: int
    complete: bool
    map: list[int]
    field: list[int]
    interior: Literal["inside", "central"]
    figures: Figures
    histogram: Histogram
    circuits: list[Id] = Field(description="Ids of circuits of this unit, at any position.")
    other_circuits: list[Id] = Field(
        description="Ids of circuits of a unit of this name in a model with other weights: figures of it say nothing "
        "about this one."
    )
    splits: list["SplitCard"] = Field(description="Divisions of its photographs into groups, the newest first.")
    picture: "FeaturePicture | None" = Field(description="Its feature picture; None: the job `visualise` makes it.")
    trajectory: bool = Field(description="Whether its photographs were placed; the job `trajectory` does that.")
    neighbours: bool = Field(description="Whether `neighbours` of its layer are known; the job `neighbours` does that.")


class Examples(_Answer):
    """Photographs of a unit."""

    section: str
    padding: bool
    sampled: bool = Field(description="Whether they are from a random sample of the photographs.")
    pool: int = Field(description="Number of photographs that they are chosen from.")
    images: int
    examples: list[Example]


class Photo(_Answer):
    """A photograph."""

    id: Id
    name: str
    subject: str


class PhotoPage(_Answer):
    """Some photographs."""

    total: int
    offset: int
    photographs: list[Photo]


class Map(_Answer):
    """A unit's map on a photograph, in the full model."""

    layer: str
    unit: int
    photo: Id
    shape: list[int]
    values: str = Field(description="Float32, little-endian, row by row, in base64.")


class PointUnit(_Answer):
    """A unit at one position of a photograph."""

    unit: int
    value: float
    quantile: float = Field(
        description="Share of the counted positions of all indexed photographs where the unit is at most this high: "
        "from its histogram, in proportion within a bin. It makes units comparable."
    )
    label: str
    star: bool


class PointLayer(_Answer):
    """The units of a layer at the position whose receptive field is centered closest to a point."""

    layer: str
    alias: str
    position: list[int] = Field(description="Row and column in the layer's maps.")
    box: Box
    images: int = Field(description="Photographs that the quantiles are of.")
    complete: bool = Field(description="Whether these are all photographs.")
    total: int = Field(description="Number of all units of the layer.")
    units: list[PointUnit] = Field(description="Those above 0, by quantile and then by value, the highest first.")


class Point(_Answer):
    """What is active at a point of a photograph, layer by layer."""

    photo: Id
    name: str
    x: float
    y: float
    layers: list[PointLayer] = Field(description="The indexed layers in execution order.")


class Neighbour(_Answer):
    """A unit of the same layer whose maps are like another's."""

    unit: int
    correlation: float = Field(description="Pearson's, over all positions of all photographs.")
    label: str


class Neighbours(_Answer):
    """The units of a layer whose maps are correlated with one unit's."""

    layer: str
    unit: int
    images: int = Field(description="Photographs over whose positions the maps are correlated.")
    positions: int = Field(description="Positions of each map.")
    highest: list[Neighbour] = Field(description="The most correlated, the highest first.")
    lowest: list[Neighbour] = Field(description="The most anticorrelated, the lowest first.")


class FeaturePicture(_Answer):
    """The picture that drives a unit, found by gradient ascent from noise; ``GET layers/../picture`` has it as PNG."""

    value: float | None = Field(description="The unit's value on it. None: no picture drives the unit more than noise.")
    start: float | None = Field(description="Its value on the noise that the ascent started from.")
    steps: int


class SplitGroup(_Answer):
    """A group of a unit's photographs."""

    name: str
    images: int
    held_out: int = Field(description="Those that took no part in finding the groups and their circuits.")
    circuits: list[Id] = Field(description="Its circuits, the largest first.")


class SplitCard(_Answer):
    """A division of a unit's photographs by how the network computes the unit on them."""

    id: Id
    feature: str
    layer: str
    unit: int
    images: int = Field(description="All photographs; those in no group do not drive the unit.")
    groups: list[SplitGroup]
    verdict: str = Field(description="A sentence: how many mechanisms, and why.")
    asked: int | None = Field(description="The number of groups that was asked for; None: the tests decided.")


class SplitPhoto(_Answer):
    """A photograph of a group."""

    photo: Id
    name: str
    held_out: bool
    confidence: float = Field(description="From 0, between two groups, to 1.")
    value: float = Field(description="The unit's highest value on it.")
    position: list[int] | None
    box: Box | None


class Crossing(_Answer):
    """The circuit of one group on the held-out photographs of one group, at the position of each one's maximum."""

    circuit: str = Field(description="Name of the group that the circuit was found on.")
    group: str = Field(description="Name of the group that it is measured on.")
    size: int = Field(description="Index of its size, from 0, the largest.")
    density: float
    kernels: int
    images: int = Field(description="Held-out photographs.")
    error: float | None = Field(description="sum |f_c - f| / sum |f|: 0 for the full model, 1 for one that answers 0.")
    kept: float | None = Field(description="Mean of the circuit's values over mean of the model's.")
    r2: float | None
    r2_max: float | None


class Selectivity(_Answer):
    """How much better circuits do on their own groups than on the others, at one size."""

    size: int
    density: float
    own: float | None
    others: float | None
    value: float | None = Field(description="others - own")
    low: float | None = Field(description="Lower end of its 95 % interval.")
    high: float | None
    shuffled: list[float | None] = Field(description="The same of groups that were dealt at random.")
    verdict: str


class Split(SplitCard):
    """A division with its photographs and its cross-test."""

    photographs: dict[str, list[SplitPhoto]] = Field(
        description="By group, those that it is surest of first; `` (no name): those that do not drive the unit."
    )
    cross: list[Crossing] = Field(description="Empty if there is one group.")
    selectivity: list[Selectivity]
    chosen: int | None = Field(description="Index of the size that the verdict is about.")
    notes: list[str]
    seconds: float


class CurvePoint(_Answer):
    """A circuit of a density curve, measured."""

    density: float
    circuit: str = Field("", description="Its id; empty if an earlier version measured it, which kept none.")
    kernels: int
    effective_kernels: int
    constants: int
    r2: float | None
    r2_interior: float | None
    r2_rectified: float | None
    r2_random: float | None = Field(description="Of a random circuit with as many kernels in each layer.")
    r2_random_interior: float | None
    verdict: str


class Curve(_Answer):
    """Circuits of several densities by one recipe, measured on the same held-out photographs."""

    criterion: str
    images: int = Field(description="Held-out crops that all figures are of.")
    photographs: int = Field(description="Photographs that these are cut from.")
    r2_average_map: float | None = Field(description="Of the average map of the photographs that they are found on.")
    r2_average_map_interior: float | None
    points: list[CurvePoint] = Field(description="The largest first.")
    note: str = Field(description="What differs from a circuit that is found at one density; or empty.")
    seconds: float


class Module(_Answer):
    """A circuit as a module of its own, beside the full model up to the feature."""

    bytes: int
    difference: float | None = Field(
        description="From the circuit's masked run, relative to the largest value. None: that is 0, and "
        "the difference is not."
    )
    parameters: int
    macs: int = Field(description="Multiply-accumulate operations for one image.")
    full_parameters: int
    full_macs: int


class Estimate(_Answer):
    """About how long a search takes."""

    seconds: float | None = Field(description="None: not known for this criterion.")
    sentence: str
    opening: float = Field(description="Seconds of recording the model up to the layer, which is counted twice.")
    batch: float = Field(description="Seconds of one forward and backward pass of one image, up to the layer.")
    images: int = Field(description="Images of the batch that was timed.")
    passes: float | None = Field(description="Such passes over the crops that the criterion is counted with.")
    busy: bool = Field(description="Whether a job ran meanwhile, so that it is too high.")


class Report(_Answer):
    """The figures of a circuit, each with its controls. None: not measured, or not defined."""

    images: int = Field(description="Held-out images that they are measured on.")
    whole: bool = Field(description="Whether these are whole photographs as the model sees them. If not, crops.")
    found_on: list[Id] = Field(description="Photographs that it was found on: no figure may be read off them.")
    found_on_verified: bool = Field(
        description="Whether these are those photographs by content. If not, the circuit's file names them, and a file "
        "of another content may have the name by now."
    )
    validated_on: list[Id] = Field(description="Photographs that its size or constants were chosen on.")
    held_out: list[Id] = Field(description="Photographs that it was measured on.")
    verdict: str
    verdict_sentence: str
    of_interior: bool = Field(description="Whether the verdict is about R2 on the interior, not over all positions.")
    figures: dict[str, Any] = Field(
        description="All of `cc.Evaluation`: r2, r2_interior, r2_rectified, r2_average_map, r2_random, ..."
    )
    seconds: float = Field(description="How long finding and measuring took.")
    sent: bool = Field(
        description="Whether it came in a bundle: whoever sent it measured it, perhaps on other photographs. Of these, "
        "only those that are here are named."
    )


class CircuitCard(_Answer):
    """A circuit in the project's folder, whoever put it there."""

    id: Id
    file: str = Field(description="Name of its file in the folder `circuits`.")
    problem: str = Field(description="Why it cannot be used; empty if it can.")
    written: float = Field(0.0, description="When its file was written, in seconds since 1970.")
    feature: str = ""
    layer: str = ""
    unit: int | list[int] | None = Field(None, description="None for a direction.")
    position: str = ""
    criterion: str = ""
    granularity: str = ""
    kept: int = 0
    relevant: int = 0
    density: float = 0.0
    report: Report | None = Field(
        None, description="None: not measured with this model and these photographs, nor sent."
    )
    diagram: bool = Field(False, description="Whether its diagram is there.")
    controls: Literal["found", "not found", "not decided"] | None = Field(
        None,
        description="Whether a circuit with fitted constants is better than controls that were fitted alike, as its "
        "diagram has it. None: none were fitted; the job `diagram` with `controls` does that.",
    )
    same_weights: bool | None = Field(
        None, description="Whether it is of the weights of this model, as far as its layer. None: not known (yet)."
    )
    group: str = Field("", description="The group of photographs that it was found on, if a division made it.")


class Circuit(CircuitCard):
    """A circuit with everything that is known of it."""

    provenance: dict[str, Any] = {}
    command: str | None = Field(None, description="The command that finds it again; None if no recipe is recorded.")
    python: str | None = Field(None, description="Python that finds it again, where its size was not chosen.")
    curve: Curve | None = Field(None, description="Its recipe at other densities, measured; the job `sweep` does that.")
    module: Module | None = Field(None, description="It as a module of its own; the job `extract` makes it.")


class TrajectoryLayer(_Answer):
    """The map of one layer, as ``cc.Trajectory.by_layer`` has it."""

    layer: str
    alias: str = Field(description="Its name in papers; empty if it has none.")
    explained: float | None = Field(description="Share of the variance that the map holds.")
    kept: float | None = Field(description="Nearest neighbors that the map keeps, above chance.")
    disparity: float | None = Field(description="What differs from the map before, as a shape; None for the first.")
    shared: float | None = Field(description="Nearest neighbors in common with the map before, above chance.")


class Trajectory(_Answer):
    """A unit's photographs, placed layer by layer: near each other where it is computed on them alike."""

    layer: str
    unit: int
    method: str = Field(description="How they were placed: `pca` or `umap`.")
    layers: list[TrajectoryLayer]
    points: list[list[tuple[float, float]]] = Field(description="Of each layer, of each photograph.")
    neighbors: int = Field(description="How many nearest neighbors the figures are of.")
    response: list[float] = Field(description="The unit's highest value on each photograph.")
    groups: list[str]
    labels: list[int] = Field(description="Of each photograph, the number of its group; -1: none.")
    notes: list[str]
    photos: list[Id]
    names: list[str]
    boxes: list[Box] = Field(description="What the unit sees of each where it is highest.")


class AtlasCard(_Answer):
    """An atlas: circuits of all units of a layer. ``GET atlases/ID`` has it."""

    id: Id
    name: str = Field(description="Name of its folder.")
    layer: str
    units: int = Field(description="Number of units that have a circuit.")
    criterion: str
    problem: str = Field(description="Why it cannot be shown, as one of other weights cannot; empty if it can.")


class AtlasUnit(_Answer):
    """A unit of an atlas: where it is on the map, and the figures of its circuit."""

    unit: int
    place: tuple[float, float]
    family: int = Field(description="Number of its family; -1: none.")
    alike: list[tuple[int, float | None]] = Field(description="The units alike, each with the overlap.")
    circuit: Id | None = Field(description="None if its file is missing.")
    kernels: int
    effective_kernels: int
    density: float
    positive: float | None = Field(description="Share of the positions where the unit is above 0.")
    r2: float | None
    r2_interior: float | None
    r2_rectified: float | None
    r2_average_map: float | None
    r2_average_map_interior: float | None
    r2_random: float | None
    r2_random_interior: float | None
    pearson: float | None
    verdict: str


class AtlasFamily(_Answer):
    """Units whose circuits share many kernels."""

    units: list[int]
    overlap: float | None = Field(description="Mean overlap of two of them.")


class AtlasKernel(_Answer):
    """A kernel that more circuits keep than would by chance, or fewer."""

    layer: str
    filter: int
    channel: int
    units: int
    expected: float = Field(description="How many circuits would keep it by chance.")
    users: list[int]


class AtlasLayer(_Answer):
    """A layer in the circuits of an atlas."""

    layer: str
    kept: float = Field(description="Mean kernels of a circuit.")
    density: float | None
    used: float | None = Field(description="Share of its kernels that any circuit keeps.")
    overlap: float | None = Field(description="Mean overlap of two circuits.")


class Atlas(_Answer):
    """What ``cc.Atlas.as_dict`` returns, with the ids of circuits."""

    layer: str
    method: str
    asked: dict[str, Any] = Field(description="What it was asked for: the criterion, the size, the images.")
    units: list[AtlasUnit]
    families: list[AtlasFamily]
    hubs: list[AtlasKernel] = Field(description="The kernels that most circuits keep, above chance.")
    rare: list[AtlasKernel] = Field(description="Those that fewest circuits keep, below chance, but at least one.")
    layers: list[AtlasLayer]
    problems: dict[str, str] = Field(description="Why a unit has no circuit.")
    notes: list[str]


class AblatedFigures(_Answer):
    """Figures of a circuit with or without a part of it."""

    kernels: int
    effective_kernels: int
    r2: float | None
    r2_interior: float | None
    r2_rectified: float | None
    kept: float | None = Field(description="Mean over images of the circuit's highest value / of the model's.")


class Ablation(_Answer):
    """What a part of a circuit is worth, measured and not estimated."""

    circuit: Id
    layer: str
    filter: int
    input: int | None
    images: int = Field(description="Held-out crops that both are measured on.")
    before: AblatedFigures
    after: AblatedFigures


class LogitsChange(_Answer):
    """How logits change when a unit's map is replaced."""

    kl: float | None = Field(
        description="Mean over images of KL(model || changed model), in nats. None: not finite, as a class that the "
        "model gives a share has none in the changed model."
    )
    top1: float = Field(description="Share of images on which both have the same highest logit.")


class PutBack(_Answer):
    """The model with a unit's map replaced: by the circuit's and, as controls, by the average map and by 0."""

    circuit: Id
    images: int = Field(description="Held-out crops.")
    classes: int
    by_circuit: LogitsChange
    by_average_map: LogitsChange = Field(description="The average map over the photographs that it was found on.")
    by_zero: LogitsChange


class ContrastLayer(_Answer):
    """The filters and kernels of a layer of a circuit on two photographs, A and B.

    Values are means over the positions that the feature's position sees, in the unit of the layer's raw output. Layers
    have no common unit. A - B of a filter is the sum of A - B of its kernels.
    """

    layer: str
    alias: str
    positions: list[int] = Field(description="Number of these positions on A and on B.")
    filters: list[int]
    outputs: list[list[float]] = Field(description="Of each filter its output on A and on B, before what follows it.")
    kernels: list[list[int]] = Field(description="Filter, and input channel within its group.")
    added: list[list[float]] = Field(description="Of each kernel what it adds to its filter on A and on B.")


class Contrast(_Answer):
    """What a circuit does on one photograph and on another, measured now, each where its feature is highest."""

    circuit: Id
    a: Id
    b: Id
    feature: str
    position: list[list[int]] | None = Field(description="Row and column in the map on A and on B.")
    boxes: list[Box] = Field(description="The receptive fields of these.")
    full: list[float] = Field(description="The feature there in the full model, on A and on B.")
    in_circuit: list[float] = Field(description="The same in the circuit.")
    layers: list[ContrastLayer] = Field(description="In execution order.")
    notes: list[str]


class Note(_Answer):
    """What a person says of a unit, a circuit, a filter of a circuit's diagram or a photograph."""

    label: Annotated[str, Field(max_length=LONGEST_LABEL)] = ""
    star: bool = False
    text: Text = ""


class JobState(_Answer):
    """A job."""

    id: Id
    kind: str
    parameters: dict[str, Any]
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    phase: str = Field(description="What is being done, in words.")
    since: float | None = Field(description="When the phase began, in seconds since 1970; None if it does not run.")
    done: int
    total: int | None
    rate: float | None = Field(description="Steps per second.")
    left: float | None = Field(description="Seconds until the end of this phase.")
    error: str = Field(description="A sentence, if it failed or was cancelled.")
    result: Ablation | PutBack | dict[str, Any] | None = Field(description="What came of it; mostly ids.")
    created: float
    ended: float | None


# ---------------------------------------- files of the project


class NeighboursOfLayer(BaseModel):
    """What the job ``neighbours`` writes: for each unit of a layer, other units and the correlations with them."""

    images: int
    positions: int
    highest: list[list[tuple[int, float]]]
    lowest: list[list[tuple[int, float]]]


class TrajectoryOfUnit(BaseModel):
    """What the job ``trajectory`` writes: ``cc.Trajectory.as_dict`` with the photographs."""

    feature: str
    title: str
    method: str
    layers: list[dict[str, Any]]
    points: list[list[tuple[float, float]]]
    neighbors: int
    response: list[float]
    groups: list[str]
    labels: list[int]
    notes: list[str]
    photos: list[Id]
    names: list[str]
    boxes: list[Box]
    asked: dict[str, Any]


# ---------------------------------------- what is asked for


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewNote(Note):
    """A note that replaces another. A mistyped name is refused: the note would count as empty, and be removed."""

    model_config = ConfigDict(extra="forbid")


class NewFilterNote(NewNote):
    """A note on a filter that replaces another. It is no longer than a diagram shows."""

    label: Annotated[str, Field(max_length=drawing.LONGEST_LABEL)] = ""
    text: Annotated[str, Field(max_length=drawing.LONGEST_NOTE)] = ""


class IndexJob(_Asked):
    """Look at all photographs. It goes on where it stopped, and lets all other jobs go first."""

    kind: Literal["index"]


class FindJob(_Asked):
    """Find a circuit and measure it on held-out photographs. At most one size; none is a density of .05.

    Its result is ``{"circuit": id}``. The file is what ``convcircuits find`` with the same options writes.
    """

    kind: Literal["find"]
    feature: Annotated[str, Field(max_length=500, examples=["features.14:54@interior", "conv3_3:54"])]
    criterion: Annotated[str, Field(max_length=50)] | None = None
    density: float | None = Field(None, gt=0, le=1)
    kernels: int | None = Field(None, ge=1, le=1 << 40)
    reach_r2: float | None = Field(
        None, gt=0, le=1, description="The smallest that reaches it on validation photographs."
    )
    drawable: bool = False
    filters: int | None = Field(None, ge=1, le=1 << 20)
    fan_in: int | None = Field(None, ge=1, le=1 << 20)
    granularity: Literal["kernel", "filter", "weight"] = "kernel"
    refit: Literal["none", "kernels", "filters", "mean", "best"] = "none"
    options: Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=20)] = Field(
        [], description="Options of the criterion, each as NAME=VALUE."
    )
    photographs: Annotated[list[Id], Field(min_length=2, max_length=2000)] | None = Field(
        None,
        description="Find it on some of these alone and measure it on the others of them, each as a whole, without "
        "crops. No command finds such a circuit again.",
    )
    count: int = Field(
        24,
        ge=1,
        le=100_000,
        description="Crops to find it on, and as many to measure it on; at most 100 for each photograph.",
    )
    held_out: float = Field(0.4, gt=0, lt=1, description="Share of the photographs that is held out.")
    seed: int = Field(0, ge=0, le=2**32 - 1)

    @model_validator(mode="after")
    def _takes_chosen_photographs_once(self) -> "FindJob":
        if self.photographs is not None and self.count != type(self).model_fields["count"].default:
            raise ValueError("Chosen photographs are taken once each, without crops; omit count.")
        return self


class EvaluateJob(_Asked):
    """Measure a circuit that has no report, such as one that the command found."""

    kind: Literal["evaluate"]
    circuit: Id


class DiagramJob(_Asked):
    """Draw a circuit."""

    kind: Literal["diagram"]
    circuit: Id
    controls: bool = Field(False, description="Also fit controls, which takes about four times as long as fitting.")


class SweepJob(_Asked):
    """Find circuits of other densities by the recipe of a circuit, on its photographs, and measure all of them.

    Its result is ``{"circuit": id, "circuits": [id]}``, those of the curve; ``GET circuits/ID`` has the curve. If the
    job ``find`` would find the same ones, it is done for their densities.
    """

    kind: Literal["sweep"]
    circuit: Id
    densities: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=2, max_length=30)] = Field(
        [0.9, 0.7, 0.5, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01, 0.005],
        description="Shares of the relevant kernels.",
    )


class SplitJob(_Asked):
    """Divide the photographs of a unit by how the network computes it on them, and cross-test the groups' circuits.

    Its result is ``{"split": id, "circuits": [ids]}``.
    """

    kind: Literal["split"]
    feature: Annotated[str, Field(max_length=500, examples=["features.14:54"])]
    groups: int | None = Field(None, ge=1, le=10, description="Whatever the tests say; None: they decide.")
    held_out: float = Field(0.4, gt=0, lt=1)
    alpha: float = Field(0.05, gt=0, lt=1, description="p-value up to which a group counts as bimodal.")
    densities: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1, max_length=10)] = Field(
        [0.2, 0.1, 0.05], description="Sizes of each group's circuits."
    )
    refit: Literal["none", "kernels", "filters", "mean"] = "filters"
    shuffles: int = Field(3, ge=0, le=20, description="Random deals of the cross-test's control.")
    seed: int = Field(0, ge=0, le=2**32 - 1)


class TrajectoryJob(_Asked):
    """Place the photographs of a unit layer by layer, by how its kernels compute it on them.

    Its result is the unit; ``GET layers/LAYER/units/UNIT/trajectory`` has it.
    """

    kind: Literal["trajectory"]
    layer: Annotated[str, Field(max_length=2000)]
    unit: int = Field(ge=0, le=1 << 30)
    method: Literal["pca", "umap"] = "pca"
    split: Id | None = Field(None, description="The division to color by.")
    seed: int = Field(0, ge=0, le=2**32 - 1)


class VisualiseJob(_Asked):
    """Find the picture that drives a unit most, by gradient ascent. Its result is its value and its start."""

    kind: Literal["visualise"]
    layer: Annotated[str, Field(max_length=2000)]
    unit: int = Field(ge=0, le=1 << 30)
    steps: int = Field(128, ge=1, le=2048)


class NeighboursJob(_Asked):
    """Correlate the maps of all units of a layer, over all positions of all photographs. Its result is the layer."""

    kind: Literal["neighbours"]
    layer: Annotated[str, Field(max_length=2000)]


class CompareJob(_Asked):
    """Draw two circuits of one feature beside each other, on photographs that neither was found on.

    ``GET compare?a=&b=`` has the document.
    """

    kind: Literal["compare"]
    a: Id
    b: Id


class ExtractJob(_Asked):
    """Turn a circuit into a module of its own. ``GET circuits/ID/module`` has the file, as the command writes it."""

    kind: Literal["extract"]
    circuit: Id


class AblateJob(_Asked):
    """Measure a circuit again without one filter or one kernel, on its held-out photographs.

    Its result is an ``Ablation``.
    """

    kind: Literal["ablate"]
    circuit: Id
    layer: Annotated[str, Field(max_length=2000)]
    filter: int = Field(ge=0, le=1 << 30)
    input: int | None = Field(None, ge=0, le=1 << 30, description="The kernel that reads this channel; None: all.")


class PutBackJob(_Asked):
    """Run the whole model with the circuit's map in place of the unit's, and compare its logits.

    Its result is a ``PutBack``. A model without logits of classes fails with a sentence.
    """

    kind: Literal["put_back"]
    circuit: Id


JobRequest = Annotated[
    IndexJob
    | FindJob
    | EvaluateJob
    | DiagramJob
    | SweepJob
    | SplitJob
    | TrajectoryJob
    | VisualiseJob
    | NeighboursJob
    | CompareJob
    | ExtractJob
    | AblateJob
    | PutBackJob,
    Field(discriminator="kind"),
]
