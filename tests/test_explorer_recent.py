"""Maps that the worker keeps of the last photographs: what it answers from them is what the model would answer."""

import multiprocessing
import pickle
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import convcircuits as cc
from convcircuits.explorer import questions as module
from convcircuits.explorer import worker
from convcircuits.explorer.materials import Materials
from convcircuits.explorer.opening import Opening
from convcircuits.explorer.questions import Questions
from convcircuits.explorer.recent import RecentMaps
from convcircuits.zoo.preprocessing import Preprocess

LAYERS = {"0": 4, "2": 6, "4": 3}  # the convolutions of the net, and their units


@pytest.fixture(params=[None, 16], ids=["own size", "16 pixels"])
def materials(tmp_path, request):
    """Four pictures, and a net that overwrites its maps."""
    (tmp_path / "pictures").mkdir()
    generator = np.random.default_rng(0)
    for name in "abcd":
        picture = Image.fromarray(generator.integers(0, 256, (30, 36, 3), dtype=np.uint8))
        picture.save(tmp_path / f"pictures/{name}.png")
    torch.manual_seed(0)
    relu = nn.ReLU(inplace=True)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), relu, nn.Conv2d(4, 6, 3), relu, nn.Conv2d(6, 3, 3, stride=2), relu)
    given = tmp_path / "given"
    given.write_bytes(pickle.dumps((model, Preprocess(size=(20, 20), resize=(22, 22)))))
    pictures = str(tmp_path / "pictures")
    return Materials(Opening(given=given, images=pictures, project=tmp_path / "project", size=request.param))


@pytest.fixture
def runs(monkeypatch):
    """The layers of each run of the model."""
    runs, look = [], module.look

    def counted(network, layers, images):
        runs.append([*layers])
        look(network, layers, images)

    monkeypatch.setattr(module, "look", counted)
    return runs


def maps_of(materials, photo):
    """The outputs of all convolutions as the model computes them, before it overwrites them."""
    maps, model = {}, materials.loaded.model
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda *said, name=name: maps.update({name: said[2].clone()}))
        for name in LAYERS
    ]
    (number,) = [n for n, id in enumerate(materials.photographs) if id == photo]
    with torch.no_grad():
        model(torch.cat([*materials.prepared])[number, None])
    for hook in hooks:
        hook.remove()
    return {name: values[0].numpy() for name, values in maps.items()}


def size_of(maps):
    return sum(values.nbytes for values in maps.values())


def some_questions(materials, count):
    """Questions, and what the model says to each."""
    draw, photos = random.Random(0), [*materials.photographs]
    maps = {photo: maps_of(materials, photo) for photo in photos}
    for _ in range(count):
        photo, kind = draw.choice(photos), draw.choice(["map", "values", "look"])
        if kind == "map":
            layer = draw.choice([*LAYERS])
            unit = draw.randrange(LAYERS[layer])
            values = maps[photo][layer][unit]
            yield (kind, layer, unit, photo), ([*values.shape], values.astype("<f4").tobytes())
        elif kind == "values":
            some = draw.sample([*LAYERS], draw.randint(1, 3))
            at = {layer: tuple(map(draw.randrange, maps[photo][layer].shape[1:])) for layer in some}
            yield (kind, photo, at), {layer: maps[photo][layer][:, *at[layer]].tolist() for layer in some}
        else:
            yield (kind, photo), None


@pytest.mark.parametrize("photographs", [0, 0.5, 1, 2, 9])
def test_every_answer_is_the_model_s_whatever_is_kept(materials, runs, photographs):
    """To the last bit; and what is known is answered without a run."""
    maps = maps_of(materials, next(iter(materials.photographs)))
    asked = Questions(materials, RecentMaps(int(photographs * size_of(maps))))
    without = 0
    for question, expected in some_questions(materials, 80):
        known, before = asked.known(*question), len(runs)
        assert asked.answer(*question) == expected
        if question[0] != "look":
            assert known == (len(runs) == before)
            without += known
    assert (without > 0) == (photographs > 0)
    if photographs == 9:
        assert len(runs) <= 3 * len(materials.photographs)  # at most once for each layer as the last one


def test_threads_that_ask_at_once_are_answered_alike(materials, runs):
    maps = maps_of(materials, next(iter(materials.photographs)))
    asked, every = Questions(materials, RecentMaps(2 * size_of(maps))), [*some_questions(materials, 200)]
    with ThreadPoolExecutor(4) as threads:
        answers = [*threads.map(lambda one: asked.answer(*one[0]), every)]
    assert answers == [expected for _, expected in every]


def test_a_look_keeps_the_maps_of_all_convolutions_if_there_is_room_for_them(materials, runs):
    photo, other = list(materials.photographs)[:2]
    maps = maps_of(materials, photo)
    for room, kept in ((size_of(maps), True), (size_of(maps) - 1, False)):
        runs.clear()
        asked = Questions(materials, RecentMaps(room))
        assert asked.answer("look", photo) is None
        assert runs == ([[*LAYERS]] if kept else [])
        for layer in LAYERS:
            assert asked.known("map", layer, 0, photo) == kept
            assert not asked.known("map", layer, 0, other)
        asked.answer("look", photo)
        assert len(runs) == kept
        asked.answer("values", photo, {"4": (0, 0)})
        assert runs == ([[*LAYERS]] if kept else [["4"]])  # no more is taken than is asked for


def test_a_layer_needs_only_those_before_it(materials, runs):
    photo = next(iter(materials.photographs))
    asked = Questions(materials)
    asked.answer("map", "2", 1, photo)
    assert asked.known("values", photo, {"0": (0, 0), "2": (1, 1)})
    assert not asked.known("values", photo, {"0": (0, 0), "4": (1, 1)})
    asked.answer("map", "4", 1, photo)
    assert asked.known("values", photo, {"0": (0, 0), "4": (1, 1)})
    assert runs == [["0", "2"], ["0", "2", "4"]]


def test_a_photograph_that_has_changed_is_not_answered_for_from_what_is_kept(materials, tmp_path):
    photo = next(iter(materials.photographs))
    asked = Questions(materials)
    asked.answer("look", photo)
    Image.new("RGB", (36, 30)).save(tmp_path / "pictures/a.png")
    for question in (("map", "2", 0, photo), ("values", photo, {"2": (0, 0)}), ("look", photo)):
        with pytest.raises(cc.ConvCircuitsError, match=r"a\.png has changed since"):
            asked.answer(*question)


def test_what_was_used_last_is_kept_as_far_as_there_is_room():
    """Beside a list of what was used, from which the first are dropped until the rest fits."""
    draw, room = random.Random(1), 100
    recent, used = RecentMaps(room), []
    for _ in range(2000):
        photo, wanted = draw.choice("abcdefgh"), draw.sample("xyz", draw.randint(1, 3))
        if draw.random() < 0.5:
            maps = {layer: np.zeros(draw.randint(1, 60), np.uint8) for layer in draw.sample("xyz", draw.randint(1, 3))}
            recent.keep(photo, maps)
            used = [one for one in used if one[0] != photo]
            if size_of(maps) <= room:
                used.append((photo, maps))
                while sum(size_of(one) for _, one in used) > room:
                    used.pop(0)
        found = recent.of(photo, wanted)
        known = [one for one in used if one[0] == photo and {*wanted} <= {*one[1]}]
        assert [found] == [maps for _, maps in known] if known else found is None
        used = [one for one in used if one not in known] + known


# ---------------------------------------- the worker's thread


class Slow:
    """Answers what it is asked; some of it is known, some waits until it may go on."""

    def __init__(self):
        self.begun, self.go, self.done = threading.Event(), threading.Event(), []

    def known(self, name, *arguments):
        if name == "broken":
            raise KeyError(name)
        return name == "known"

    def answer(self, name, *arguments):
        if name == "slow":
            self.begun.set()
            assert self.go.wait(600)
        if name in ("broken", "wrong"):
            raise cc.ConvCircuitsError(f"It is {name}.")
        self.done.append((name, *arguments))
        return arguments


@pytest.fixture
def desk():
    """The answers of a thread of the worker, and a pipe to ask it."""
    here, there = multiprocessing.Pipe()
    slow = Slow()
    thread = threading.Thread(target=worker._answer, args=(slow, there))
    thread.start()
    yield slow, here
    slow.go.set()
    here.close()
    thread.join(600)
    assert not thread.is_alive()


def heard(pipe):
    assert pipe.poll(600)
    return pipe.recv()


def test_what_is_known_is_answered_while_another_question_takes_its_time(desk):
    slow, pipe = desk
    for number, name in enumerate(("slow", "other", "known")):
        pipe.send((number, name, (7,)))
    assert heard(pipe) == (2, True, (7,))
    assert not slow.go.is_set()
    slow.go.set()
    assert [heard(pipe) for _ in range(2)] == [(0, True, (7,)), (1, True, (7,))]


@pytest.mark.parametrize("name", ["broken", "wrong"])
def test_a_question_that_fails_is_answered_so_and_the_next_one_is_answered(desk, name):
    _, pipe = desk
    pipe.send((1, name, ()))
    pipe.send((2, "known", ()))
    pipe.send((3, "other", ()))
    answers = {number: (answered, answer) for number, answered, answer in (heard(pipe) for _ in range(3))}
    assert answers == {1: (False, f"It is {name}."), 2: (True, ()), 3: (True, ())}


def test_of_photographs_that_wait_to_be_looked_at_only_the_last_is(desk):
    slow, pipe = desk
    pipe.send((0, "slow", ()))
    assert slow.begun.wait(600)
    for photo in "abc":
        pipe.send((1, "look", (photo,)))
    pipe.send((2, "other", ()))
    pipe.send((3, "known", ()))
    assert heard(pipe)[0] == 3  # all have come
    slow.go.set()
    assert [heard(pipe)[0] for _ in range(3)] == [0, 1, 2]
    assert slow.done == [("known",), ("slow",), ("look", "c"), ("other",)]
