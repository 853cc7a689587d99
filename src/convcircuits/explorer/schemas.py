"""What the API takes and answers. The OpenAPI schema, ``static/openapi.json``, is generated from these."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Id = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$", examples=["3f8a0c1d2e4b5a69"])]
Text = Annotated[str, Field(max_length=20_000)]
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
    circuits: list[str] = Field(description="Ids of circuits of this unit, at any position.")


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


class Report(_Answer):
    """The figures of a circuit, each with its controls. None: not measured, or not defined."""

    images: int = Field(description="Held-out images (crops) that they are measured on.")
    found_on: list[Id] = Field(description="Photographs that it was found on: no figure may be read off them.")
    validated_on: list[Id] = Field(description="Photographs that its size or constants were chosen on.")
    held_out: list[Id] = Field(description="Photographs that it was measured on.")
    verdict: str
    verdict_sentence: str
    figures: dict[str, Any] = Field(
        description="All of `cc.Evaluation`: r2, r2_interior, r2_rectified, r2_average_map, r2_random, ..."
    )
    seconds: float = Field(description="How long finding and measuring took.")


class CircuitCard(_Answer):
    """A circuit in the project's folder, whoever put it there."""

    id: Id
    file: str = Field(description="Name of its file in the folder `circuits`.")
    problem: str = Field(description="Why it cannot be used; empty if it can.")
    feature: str = ""
    layer: str = ""
    unit: int | list[int] | None = Field(None, description="None for a direction.")
    position: str = ""
    criterion: str = ""
    granularity: str = ""
    kept: int = 0
    relevant: int = 0
    density: float = 0.0
    report: Report | None = Field(None, description="None: not measured with this model and these photographs.")
    diagram: bool = Field(False, description="Whether its diagram is there.")


class Circuit(CircuitCard):
    """A circuit with everything that is known of it."""

    provenance: dict[str, Any] = {}
    command: str | None = Field(None, description="The command that finds it again; None if no recipe is recorded.")
    python: str | None = Field(None, description="Python that finds it again, where its size was not chosen.")


class Note(_Answer):
    """What a person says of a unit, a circuit or a photograph."""

    label: Annotated[str, Field(max_length=200)] = ""
    star: bool = False
    text: Text = ""


class JobState(_Answer):
    """A job."""

    id: Id
    kind: str
    parameters: dict[str, Any]
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    phase: str = Field(description="What is being done, in words.")
    done: int
    total: int | None
    rate: float | None = Field(description="Steps per second.")
    left: float | None = Field(description="Seconds until the end of this phase.")
    error: str = Field(description="A sentence, if it failed or was cancelled.")
    result: dict[str, Any] | None
    created: float
    ended: float | None


# ---------------------------------------- what is asked for


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewNote(Note):
    """A note that replaces another. A mistyped name is refused: the note would count as empty, and be removed."""

    model_config = ConfigDict(extra="forbid")


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
    count: int = Field(24, ge=1, le=100_000, description="Crops to find it on, and as many to measure it on.")
    held_out: float = Field(0.4, gt=0, lt=1, description="Share of the photographs that is held out.")
    seed: int = Field(0, ge=0, le=2**32 - 1)


class EvaluateJob(_Asked):
    """Measure a circuit that has no report, such as one that the command found."""

    kind: Literal["evaluate"]
    circuit: Id


class DiagramJob(_Asked):
    """Draw a circuit."""

    kind: Literal["diagram"]
    circuit: Id
    controls: bool = Field(False, description="Also fit controls, which takes about four times as long as fitting.")


JobRequest = Annotated[IndexJob | FindJob | EvaluateJob | DiagramJob, Field(discriminator="kind")]
