"""Work on several threads: what they share, what they leave as it was, and results that do not depend on them."""

import threading

import pytest
import torch

import convcircuits as cc
from convcircuits.circuits.learning import Learn
from convcircuits.threads import SideBySide, on_all_threads
from nets import NETS


@pytest.fixture
def use_threads():
    """Let torch use some threads in a test."""
    yield torch.set_num_threads
    torch.set_num_threads(1)


@pytest.mark.parametrize("threads", [1, 2, 3, 9])
def test_a_loop_runs_over_each_row_once(threads, use_threads):
    use_threads(threads)
    seen = torch.zeros(7)

    def loop(added, start, stop):
        seen[start:stop] += added

    on_all_threads(loop, [2.0], rows=7)
    assert seen.tolist() == [2.0] * 7


@pytest.mark.parametrize(
    ("threads", "most", "count", "share"), [(1, 4, 1, 1), (2, 4, 2, 1), (5, 2, 2, 2), (3, 1, 1, 3), (4, 4, 4, 1)]
)
def test_parts_share_the_threads_of_torch_and_leave_them(threads, most, count, share, use_threads):
    use_threads(threads)
    beside = SideBySide(most)
    together = threading.Barrier(count, timeout=60)  # breaks unless so many parts run at once

    def of(part):
        together.wait()
        return part, torch.get_num_threads(), threading.get_ident() == here

    here = threading.get_ident()
    for _ in range(2):
        with beside:
            assert beside.count == count
            assert torch.get_num_threads() == share
            found = beside.map(of, range(2 * count))
        assert found == [(n, share, count == 1) for n in range(2 * count)]
        assert torch.get_num_threads() == threads
        assert beside.count == 1
        assert beside.map(lambda part: threading.get_ident(), "ab") == [here, here]


@pytest.mark.parametrize("recorded", [True, False])
def test_parts_record_gradients_as_the_thread_that_asks(recorded, use_threads):
    use_threads(2)
    with torch.set_grad_enabled(recorded), SideBySide(2) as beside:
        assert beside.map(lambda part: torch.is_grad_enabled(), range(4)) == [recorded] * 4


def test_an_error_in_a_part_is_raised_and_threads_end(use_threads):
    use_threads(2)
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError), SideBySide(2) as beside:
        beside.map(lambda part: 1 // part, [1, 0, 1])
    assert torch.get_num_threads() == 2
    assert threading.active_count() == before


@pytest.mark.parametrize("name", ["plain", "residual", "mobile", "flat_head", "twice"])
def test_constants_are_trained_alike_on_any_number_of_threads(name, use_threads, monkeypatch):
    case = NETS[name]
    model, feature, images = case.build(), cc.Feature(*case.features[-1]), case.images(21)
    options = {"criterion": "learned", "density": 0.4, "start": 0.4, "tolerance": 0.0, "final": 6, "polish": 3}
    ran, loss = set(), Learn._loss

    def noted(self, maps, targets):
        ran.add((threading.get_ident(), len(maps)))
        return loss(self, maps, targets)

    monkeypatch.setattr(Learn, "_loss", noted)
    one = cc.find(model, feature, images, **options)
    here = threading.get_ident()
    assert {thread for thread, _ in ran} == {here}
    ran.clear()
    use_threads(2)
    other = cc.find(model, feature, images, **options)
    beside = [(thread, size) for thread, size in ran if thread != here]
    assert len({thread for thread, _ in beside}) > 1
    assert {size for _, size in beside} >= {4}  # the halves of a batch of 8
    assert other.elements == one.elements
    assert other.provenance["cost"] == one.provenance["cost"]
    for layer, gain in one.gain.items():
        torch.testing.assert_close(other.gain[layer], gain, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(other.offset[layer], one.offset[layer], rtol=1e-6, atol=1e-8)
