"""The process that holds the model: it does jobs one at a time, and cuts pictures beside them in a thread.

It talks with the server over two pipes. On the first come jobs, ``(id, kind, parameters)``, and go ``(what, id, ...)``:
``progress``, ``saved``, ``remark``, ``done``, ``failed``, ``stopped``; before all of them ``ready`` or ``failed``. On
the second come questions, ``(number, name, arguments)``, and go ``(number, answered, answer)``.
"""

import hashlib
import inspect
import io
import logging
import os
import pickle
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

import convcircuits as cc
from convcircuits import texts
from convcircuits.contact_sheets import part_of
from convcircuits.errors import ConvCircuitsError
from convcircuits.explorer.index import COUNT, LayerTally, Stopped, Subjects, build, convolutions
from convcircuits.explorer.opening import Opening
from convcircuits.explorer.store import CircuitFile, Store, hash_of
from convcircuits.files import named_after, write_whole
from convcircuits.network.capture import Network
from convcircuits.network.provenance import tensors_hash
from convcircuits.recipes import Setup, follow, loaded_model, names_besides, noted, recipe_of, set_up, side, with_recipe
from convcircuits.values.feature import Feature
from convcircuits.values.recipe import Recipe, option_value
from convcircuits.version import __version__
from convcircuits.zoo.images import Photograph, distinct, photographs, resized
from convcircuits.zoo.layers import list_layers
from convcircuits.zoo.models import LoadedModel
from convcircuits.zoo.prepared import Prepared
from convcircuits.zoo.preprocessing import Region, output_shape

_OFTEN = 0.2  # seconds between two reports of progress
_TALLEST = 4096  # pixels of a small picture's height: photographs may be 64 times as high as wide
_log = logging.getLogger(__name__)


def run(opening: Opening, jobs: Connection, questions: Connection, stop: Any) -> None:
    """Open a model and photographs, then do what is asked until the server hangs up.

    Args:
        opening: What to open.
        jobs: Where jobs come from.
        questions: Where questions come from.
        stop: A shared number whose ``value`` the server sets to 1 when the job that runs is to stop.
    """
    try:
        workshop = Workshop(opening)
        jobs.send(("ready", workshop.about()))
    except Exception as error:
        jobs.send(("failed", None, _sentence(error)))
        return
    threading.Thread(target=_answer, args=(workshop, questions), daemon=True).start()
    try:
        while True:
            id, kind, parameters = jobs.recv()
            jobs.send(_done(workshop, id, kind, parameters, Told(id, jobs, stop)))
    except (EOFError, OSError):  # the server has ended
        os._exit(0)


def _done(workshop: "Workshop", id: str, kind: str, parameters: dict[str, Any], told: "Told") -> tuple[Any, ...]:
    """Do a job, and return what to say of it."""
    try:
        told.check()
        return "done", id, workshop.do(kind, parameters, told)
    except Stopped:
        return "stopped", id
    except Exception as error:
        return "failed", id, _sentence(error)


class Told:
    """A ``progress`` callback that reports to the server, and stops the job between two batches when it is to stop."""

    def __init__(self, id: str, jobs: Connection, stop: Any) -> None:
        self._id, self._jobs, self._stop = id, jobs, stop
        self._phase, self._last = "starting", 0.0

    def check(self) -> None:
        """Raise ``Stopped`` if the job is to stop."""
        if self._stop.value:
            raise Stopped

    def phase(self, description: str) -> None:
        """Begin a phase, whose steps are counted from zero."""
        self._phase, self._last = description, 0.0
        self(0, None)

    def __call__(self, done: int, total: int | None) -> None:
        """Report the steps done."""
        self.check()
        now = time.monotonic()
        if now - self._last >= _OFTEN or done == total:
            self._jobs.send(("progress", self._id, self._phase, done, total))
            self._last = now

    def remark(self, text: str) -> None:
        """Say what a person must know."""
        self._jobs.send(("remark", self._id, text))

    def saved(self, index: Mapping[str, Any]) -> None:
        """Report that layers can be looked at."""
        self._jobs.send(("saved", self._id, index["images"]))


class Workshop:
    """A model and photographs, and what is done with them.

    Args:
        opening: What to open.

    Raises:
        ConvCircuitsError: If that is not possible.
    """

    def __init__(self, opening: Opening) -> None:
        self.opening, self.loaded = opening, _opened(opening)
        found, self.left_out = photographs(opening.images)
        self.pictures: list[Photograph] = [Unchanged.of(one) for one in found]
        self._ids = {one.name: _photo_id(one) for one in self.pictures}  # of copies too, which have those of others
        kept = distinct(self.pictures)
        self.copies = names_besides(self.pictures, kept)
        self.photographs = {self._ids[one.name]: one for one in kept}
        self.store = Store(opening.project, read_only=True) if opening.project.is_dir() else None
        self._prepared = Prepared(kept, self.loaded.preprocess, size=side(opening.size))
        loaded = self.loaded
        self._infos = list_layers(
            loaded.model,
            side(opening.size) or loaded.size,
            channels=loaded.channels,
            categories=loaded.categories,
            aliases=loaded.aliases,
        )
        self._convolutions, self._calls = convolutions(self.loaded.model, self._infos)
        self._known = {info.name: info for info in self._infos}
        self._opened: dict[str, LayerTally | ConvCircuitsError] = {}

    @cached_property
    def weights(self) -> str:
        """Hash of all weights."""
        network = Network(self.loaded.model)
        return tensors_hash(network.state([*network.names, *dict(network.module.named_parameters())]))

    @cached_property
    def images(self) -> str:
        """Hash of the photographs, of how they are prepared and to which size."""
        height, width = 97, 131  # what a test picture becomes says how pictures are prepared
        rows, columns = np.mgrid[:height, :width]
        picture = Image.fromarray(np.stack([rows * 2, columns, rows + columns], 2).astype(np.uint8))
        prepared = self.loaded.preprocess(picture).float().contiguous()
        how = hashlib.sha256(prepared.numpy().tobytes()).hexdigest()
        return hash_of([[*self.photographs], how, self.opening.size])

    @cached_property
    def basis(self) -> str:
        """Hash of everything that figures depend on: the model, not its weights alone, photographs, the version."""
        maps = [[info.name, info.kind, list(info.map), info.calls] for info in self._infos]
        return hash_of([self.weights, built(self.loaded.model), maps, self.images, __version__])

    @cached_property
    def key(self) -> str:
        """Hash of what an index is of."""
        return hash_of([self.basis, COUNT])

    def about(self) -> dict[str, Any]:
        """Return what the server shows of the model and the photographs, as JSON values."""
        loaded = self.loaded
        indexed = {info.name for info in self._convolutions}
        return {
            "name": loaded.name,
            "weights": self.weights,
            "images": self.images,
            "basis": self.basis,
            "key": self.key,
            "size": [self.opening.size] * 2 if self.opening.size else list(loaded.size),
            "normalization": loaded.normalization,
            "assumed": loaded.assumed,
            "layers": [
                {
                    "name": info.name,
                    "alias": info.alias,
                    "kind": info.kind,
                    "units": info.channels,
                    "map": list(info.map),
                    "calls": info.calls,
                    "indexed": info.name in indexed,
                }
                for info in self._infos
                if info.computes
            ],
            "not_indexed": self._calls,
            "photographs": [
                {"id": id, "name": one.name, "subject": one.subject} for id, one in self.photographs.items()
            ],
            "left_out": self.left_out,
            "copies": self.copies,
        }

    # ---------------------------------------- jobs

    def do(self, kind: str, parameters: Mapping[str, Any], told: Told) -> dict[str, Any]:
        """Do a job and return its result as JSON values."""
        work: dict[str, Callable[..., dict[str, Any]]] = {
            "index": self._index,
            "find": self._find,
            "evaluate": self._evaluate,
            "diagram": self._diagram,
        }
        return work[kind](told=told, **parameters)

    def _index(self, *, told: Told) -> dict[str, Any]:
        folder = self._folder.folder / "index" / self.key
        folder.mkdir(parents=True, exist_ok=True)
        phases: list[str] = []

        def said(phase: str, done: int, total: int | None) -> None:
            if phases[-1:] != [phase]:
                phases.append(phase)
                told.phase(phase)
            told(done, total)

        of = Subjects(
            self.loaded.model,
            self._convolutions,
            [*self.photographs.values()],
            self.loaded.preprocess,
            side(self.opening.size),
        )
        index = build(
            folder, self.key, of, batch_size=self.opening.batch_size, told=said, saved=told.saved, remark=told.remark
        )
        return {"images": index["images"], "layers": len(index["layers"])}

    def _find(self, *, told: Told, feature: str, options: list[str], **fields: Any) -> dict[str, Any]:
        begun = time.monotonic()
        recipe = self._recipe(feature=feature, options=tuple(options), **fields)
        parsed = self.loaded.feature(recipe.feature)
        recipe = replace(recipe, feature=str(parsed))
        told.phase("cutting photographs")
        setup = set_up(recipe, self.loaded, list(self.pictures), list(self.left_out))
        told.phase(f"finding a circuit with {recipe.criterion}")
        batch_size = self.opening.batch_size
        circuits, reached = follow(
            recipe, parsed, setup, _criterion_options(options), batch_size=batch_size, progress=told
        )
        circuit = self._recorded(circuits[-1], recipe, setup)
        told.phase("measuring on held-out photographs")
        report = cc.evaluate(
            self.loaded.model,
            circuit,
            setup.held_out.images,
            fit=setup.fit,
            batch_size=batch_size,
            progress=told,
        )
        name = f"{named_after(self.loaded.name, parsed.slug)}-{recipe.criterion}-{len(circuit)}"
        file = cc.save(noted(circuit, setup.notes), self._folder.place_for(name))
        id = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        if any(one.id == id and one.file != file for one in self._folder.circuits()):
            file.unlink()  # it is there already, found by the command or in another way
        self._write_report(id, report, setup.by_name, setup, reached, time.monotonic() - begun)
        return {"circuit": id}

    def _evaluate(self, *, told: Told, circuit: str) -> dict[str, Any]:
        begun = time.monotonic()
        file, value, setup = self._again(circuit, told)
        told.phase("measuring on held-out photographs")
        report = cc.evaluate(
            self.loaded.model,
            value,
            setup.held_out.images,
            fit=setup.fit,
            batch_size=self.opening.batch_size,
            progress=told,
        )
        # As the circuit says: the set-up does not cut again those that its size or constants were chosen on.
        by_name = {**value.provenance["photographs"], "held_out": setup.held_out.names}
        self._write_report(file.id, report, by_name, setup, {}, time.monotonic() - begun)
        return {"circuit": circuit}

    def _diagram(self, *, told: Told, circuit: str, controls: bool) -> dict[str, Any]:
        file, value, setup = self._again(circuit, told)
        told.phase("drawing")
        drawn = cc.diagram(
            self.loaded.model,
            value,
            images=setup.pictured(),
            held_out=setup.held_out.images,
            fit=setup.fit,
            controls=controls,
            primaries=self.loaded.primaries(),
            batch_size=self.opening.batch_size,
            progress=told,
        )
        write_whole(
            self._folder.diagram_file(file.id, self.basis, controls=controls), drawn.document.to_json().encode()
        )
        return {"circuit": circuit}

    @property
    def _folder(self) -> Store:
        if self.store is None:
            raise ConvCircuitsError(f"There is no project folder {self.opening.project}.")
        return self.store

    def _recipe(self, **fields: Any) -> Recipe:
        opening = self.opening
        about = {"weights": opening.weights, "mean": opening.mean, "std": opening.std, "size": opening.size}
        given = {name: value for name, value in {**about, **fields}.items() if value is not None}
        recipe = Recipe.of({"model": self.loaded.name, "images": opening.images, **given})
        return Recipe.from_json(recipe.to_json(), where="what was asked for")

    def _recorded(self, circuit: cc.Circuit, recipe: Recipe, setup: Setup) -> cc.Circuit:
        """Record how a circuit was found. No command finds one again of a model that was given as an object."""
        if self.opening.given is None:
            return with_recipe(circuit, recipe, setup)
        return replace(circuit, provenance={**circuit.provenance, "photographs": setup.by_name})

    def _again(self, id: str, told: Told) -> tuple[CircuitFile, cc.Circuit, Setup]:
        """Load a circuit, and cut the photographs that it was found on and those that were held out."""
        file = self._folder.circuit(id)
        if file is None or file.problem:
            raise ConvCircuitsError(file.problem if file else f"There is no circuit {id} in the project any more.")
        told.phase("cutting photographs")
        value = cc.load(file.file)
        assert isinstance(value, cc.Circuit)
        by_name, said = value.provenance.get("photographs"), recipe_of(value)
        if by_name is None:
            raise ConvCircuitsError(
                f"{file.file.name} does not say on which photographs it was found, so none are known to be held out; "
                "measure it with convcircuits evaluate and --images."
            )
        used = {self._ids.get(name) for role, names in by_name.items() if role != "held_out" for name in names}
        seen = [name for name in by_name["held_out"] if name in self._ids and self._ids[name] in used]
        if seen:  # files may have been replaced since
            raise ConvCircuitsError(
                f"{texts.names(seen)} were held out from {file.name}, but are now copies of photographs that it was "
                "found on; measure it with convcircuits evaluate and other --images."
            )
        recipe = said if said is not None else self._recipe(feature=str(value.feature))
        return file, value, set_up(recipe, self.loaded, list(self.pictures), list(self.left_out), by_name=by_name)

    def _write_report(
        self,
        id: str,
        report: cc.Evaluation,
        by_name: Mapping[str, list[str]],
        setup: Setup,
        reached: Mapping[str, Any],
        seconds: float,
    ) -> None:
        photographs = {
            role: [self._ids[name] for name in names if name in self._ids] for role, names in by_name.items()
        }
        said = {
            "circuit": id,
            "weights": self.weights,
            "images": self.images,
            "basis": self.basis,
            "report": report.as_dict(),
            "photographs": photographs,
            "notes": list(setup.notes),
            "seconds": round(seconds, 1),
            **reached,
        }
        self._folder.write_json(self._folder.report_file(id), said)

    # ---------------------------------------- questions

    def answer(self, name: str, *arguments: Any) -> Any:
        """Answer a question."""
        questions: dict[str, Callable[..., Any]] = {"thumb": self._thumb, "map": self._map}
        return questions[name](*arguments)

    def _thumb(self, photo: str, width: int, box: tuple[int, int, int, int] | None) -> bytes:
        """Return a photograph, or the part that a box of its input shows, as JPEG; what lies outside is hatched."""
        picture = self.photographs[photo].image
        if box is None:
            scale = min(width / picture.width, _TALLEST / picture.height)
            size = (max(1, round(scale * picture.width)), max(1, round(scale * picture.height)))
            small = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=2)
        else:
            shown = self._prepared.region(picture.size)
            window = shown.part(box, side(self.opening.size) or self.loaded.size)
            seen = window.within(shown).within(Region(0, 0, picture.height, picture.width))
            small = part_of(picture, window, seen, width)
        content = io.BytesIO()
        small.save(content, "jpeg", quality=88)
        return content.getvalue()

    def _map(self, layer: str, unit: int, photo: str) -> tuple[list[int], bytes]:
        """Return the shape of a unit's map on a photograph, and its values as float32, little-endian."""
        image = resized(self.loaded.preprocess(self.photographs[photo].image)[None], side(self.opening.size))
        network = self._looking
        with torch.no_grad():
            output = network.run(
                Feature(layer, unit, call=None if self._known[layer].calls == 1 else 0),
                image.to(network.device, network.dtype),
                lambda call: call.compute(),
            )
        values = output[0, unit].float().cpu()
        return list(values.shape), values.numpy().astype("<f4").tobytes()

    @cached_property
    def _looking(self) -> Network:
        """A private copy of the model for the thread that answers questions."""
        return Network(self.loaded.model)


def _answer(workshop: Workshop, questions: Connection) -> None:
    while True:
        try:
            number, name, arguments = questions.recv()
        except (EOFError, OSError):
            return
        try:
            answered, answer = True, workshop.answer(name, *arguments)
        except Exception as error:
            answered, answer = False, _sentence(error)
        questions.send((number, answered, answer))


def _opened(opening: Opening) -> LoadedModel:
    if opening.given is None:
        assert opening.model is not None
        recipe = Recipe.of(
            {
                "model": opening.model,
                "feature": "",
                "weights": opening.weights,
                "mean": opening.mean,
                "std": opening.std,
            }
        )
        return loaded_model(recipe, opening.device)
    sys.path[:0] = [path for path in opening.path if path not in sys.path]
    try:
        model, preprocess = pickle.loads(opening.given.read_bytes())
    except Exception as error:
        raise ConvCircuitsError(
            f"The model cannot be sent to the explorer's own process: {error}. Define its class and preprocess in a "
            "module that can be imported, not in a notebook's cell."
        ) from error
    name = type(model).__name__
    channels, height, width = output_shape(preprocess, name)
    return LoadedModel(
        name,
        model.eval(),
        preprocess,
        (height, width),
        None,
        channels,
        normalization="Images are prepared by the function preprocess that was given.",
    )


def _criterion_options(texts: list[str]) -> dict[str, Any]:
    """Parse options of a criterion. None names a file: nothing that the page asks for opens one.

    None is one of ``find`` itself, such as the seed: the recipe would say another than the one that was used.
    """
    options = {}
    for text in texts:
        name, equals, value = text.partition("=")
        known = name.isidentifier() and name not in inspect.signature(cc.find).parameters
        if not equals or not known or value.endswith(".safetensors"):
            raise ConvCircuitsError(f"{text!r:.80} is not an option of a criterion; write it as NAME=VALUE.")
        options[name] = option_value(value)
    return options


def built(model: nn.Module) -> str:
    """Return a hash of how a model is built: its modules, and the code of their classes, but not its weights.

    Two models may share all weights and compute different maps: one with another stride, or whose code was edited.
    """
    own = {kind.__module__ for kind in map(type, model.modules()) if not kind.__module__.startswith("torch.")}
    content = [repr(model).encode()]
    for name in sorted(own):
        try:
            content.append(Path(str(inspect.getsourcefile(sys.modules[name]))).read_bytes())
        except (OSError, TypeError, KeyError):
            content.append(name.encode())
    return hash_of([hashlib.sha256(one).hexdigest() for one in content])


@dataclass(frozen=True)
class Unchanged(Photograph):
    """A photograph whose file must not change while the explorer runs: ids and keys are hashes of its content.

    Attributes:
        stamp: When its file was last written, and its size; None if it is no file or not there.
    """

    stamp: tuple[int, int] | None = None

    @classmethod
    def of(cls, photograph: Photograph) -> "Unchanged":
        """Return a photograph as it is now."""
        return cls(photograph.name, photograph.source, photograph.subject, _stamp(photograph))

    @property
    def image(self) -> Image.Image:
        """The picture.

        Raises:
            ConvCircuitsError: If the file cannot be read or has changed.
        """
        if _stamp(self) != self.stamp:
            raise ConvCircuitsError(f"{self.name} has changed since the explorer read it. Start the explorer again.")
        return super().image


def _stamp(photograph: Photograph) -> tuple[int, int] | None:
    if not isinstance(photograph.source, Path):
        return None
    try:
        status = photograph.source.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _photo_id(photograph: Photograph) -> str:
    source = photograph.source
    try:
        content = (
            source
            if isinstance(source, bytes)
            else source.read_bytes()
            if isinstance(source, Path)
            else source.tobytes() + repr((source.mode, source.size)).encode()
        )
    except OSError:
        content = str(source).encode(errors="replace")
    return hashlib.sha256(content).hexdigest()[:16]


def _sentence(error: Exception) -> str:
    """Return what a person can read of an error."""
    if isinstance(error, ConvCircuitsError):
        return " ".join(str(error).split())
    if isinstance(error, MemoryError) or re.search("out of memory|allocate memory", str(error)):
        return "Out of memory. Start the explorer with a smaller --batch-size or --size."
    _log.error("%s", "".join(traceback.format_exception(error)))
    return f"An unexpected {type(error).__name__}: {' '.join(str(error).split()):.500}. The terminal has the details."
