"""The verdict on whether a circuit keeps its feature: a word and a sentence, by the rules in this module."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

Word = Literal["keeps", "keeps in part", "does not keep", "not decided"]

ENOUGH: dict[str, tuple[Word, ...]] = {"keeps": ("keeps",), "part": ("keeps", "keeps in part")}
"""The levels that can be required of a circuit, and the verdicts that satisfy each."""

_ROUNDING = 1e-6  # of R2, for a circuit of all kernels against a random one of all kernels


@dataclass(frozen=True)
class Rule:
    """What a verdict requires, over all counted positions and on the interior.

    Attributes:
        r2: The minimum R2.
        r2_interior: The minimum R2 on the interior.
        left: The maximum squared error, as a share of that of the average training map and of that of a random circuit
            of equal size. (A fixed margin of R2 could not be reached against a baseline of .95.)
    """

    r2: float
    r2_interior: float
    left: float


KEEPS = Rule(r2=0.8, r2_interior=0.7, left=0.5)
KEEPS_IN_PART = Rule(r2=0.4, r2_interior=0.3, left=0.9)


class R2(NamedTuple):
    """R2 over all counted positions and on the interior; NaN if undefined or not measured."""

    all: float
    interior: float


def decide(circuit: R2, average_map: R2, random: R2, *, feature: str, where: str = "the interior") -> tuple[Word, str]:
    """Return the verdict on a circuit, and a sentence that states and explains it.

    ``where`` names the positions that the figures on the interior cover.

    A circuit *keeps* the feature if it meets all requirements of ``KEEPS``, *keeps* it *in part* if it meets all of
    ``KEEPS_IN_PART``, and *does not keep* it if it fails any of these, whatever else is unknown. If a figure that was
    not measured would decide, the verdict is *not decided*.
    """
    wanting = list(_wanting(KEEPS, circuit, average_map, random, where))
    if not wanting:
        return "keeps", (
            f"The circuit keeps {feature}: R2 is {circuit.all:z.2f}, on {where} {circuit.interior:z.2f}, where the "
            f"average training map reaches {average_map.all:z.2f} and {average_map.interior:z.2f}, a random circuit of "
            f"equal size {random.all:z.2f} and {random.interior:z.2f}."
        )
    lost = list(_wanting(KEEPS_IN_PART, circuit, average_map, random, where))
    failed = [reason for known, _, reason in lost if known]
    if failed:
        return "does not keep", f"The circuit does not keep {feature}: {'; '.join(failed)}."
    if not lost:
        return "keeps in part", f"The circuit keeps {feature} in part: {'; '.join(reason for *_, reason in wanting)}."
    unknown = "; ".join(dict.fromkeys(reason for *_, reason in lost))
    return "not decided", f"Whether the circuit keeps {feature} is not decided: {unknown}."


def is_of_interior(word: Word, circuit: R2, average_map: R2, random: R2) -> bool:
    """Return whether a verdict is about R2 on the interior, rather than over all counted positions.

    It is, if R2 is known there, unless all that is wanting is wanting over all positions.
    """
    if math.isnan(circuit.interior):
        return False
    rule = KEEPS if word in ENOUGH["part"] else KEEPS_IN_PART
    wanting = _wanting(rule, circuit, average_map, random, "the interior")
    places = {place for known, place, _ in wanting if known or word != "does not keep"}
    return places != {"all"}


def _wanting(
    rule: Rule, circuit: R2, average_map: R2, random: R2, where: str
) -> Iterator[tuple[bool, Literal["all", "interior"], str]]:
    """Yield the requirements of a rule that fail (True) or could not be checked (False), each with place and reason."""
    places: tuple[tuple[Literal["all", "interior"], float, str], ...] = (
        ("all", rule.r2, "R2"),
        ("interior", rule.r2_interior, f"R2 on {where}"),
    )
    for place, asked, r2 in places:
        value, *baselines = (getattr(one, place) for one in (circuit, average_map, random))
        if math.isnan(value):
            yield False, place, f"{r2} is not defined"
            continue
        if value < asked:
            yield True, place, f"{r2} is {value:z.2f}, below {asked:g}"
            continue
        for baseline, name in zip(baselines, ("the average training map", "a random circuit"), strict=True):
            if math.isnan(baseline):
                yield False, place, f"{name} was not measured"
            elif 1 - value > rule.left * (1 - baseline) + _ROUNDING:
                left = f"more than {rule.left:.0%} of its squared error is left"
                yield True, place, f"{r2} is {value:z.2f} where {name} reaches {baseline:z.2f}, so {left}"
