"""Whether a circuit keeps its feature: one word and one sentence, from rules that are stated here alone."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

Word = Literal["keeps", "keeps in part", "does not keep", "not decided"]

ENOUGH: dict[str, tuple[Word, ...]] = {"keeps": ("keeps",), "part": ("keeps", "keeps in part")}
"""What can be required of a circuit, and the verdicts that will do."""

_ROUNDING = 1e-6  # of R2: a circuit of all kernels beside a random one of all kernels


@dataclass(frozen=True)
class Rule:
    """What a verdict asks for, of all counted positions and of those on the interior.

    Attributes:
        r2: The least R2.
        r2_interior: The least R2 on the interior.
        left: The squared error that the circuit may leave at most, as a share of what the average training map leaves
            there, and of what a random circuit of equal size leaves. (A margin of R2 would be out of reach beside a
            baseline of .95.)
    """

    r2: float
    r2_interior: float
    left: float


KEEPS = Rule(r2=0.8, r2_interior=0.7, left=0.5)
KEEPS_IN_PART = Rule(r2=0.4, r2_interior=0.3, left=0.9)


class R2(NamedTuple):
    """R2 over all counted positions, and on the interior; NaN where it is not defined or was not measured."""

    all: float
    interior: float


def decide(circuit: R2, average_map: R2, random: R2, *, feature: str, where: str = "the interior") -> tuple[Word, str]:
    """Return the verdict on a circuit of a feature, and a sentence that says it and why.

    ``where`` is what the figures on the interior are of.

    A circuit *keeps* the feature if all that ``KEEPS`` asks for holds, *keeps* it *in part* if all that
    ``KEEPS_IN_PART`` asks for does, and *does not keep* it if any of that fails, whatever else is known. Where what was
    not measured would tell, it is *not decided*.
    """
    wanting = list(_wanting(KEEPS, circuit, average_map, random, where))
    if not wanting:
        return "keeps", (
            f"The circuit keeps {feature}: R2 is {circuit.all:z.2f}, on {where} {circuit.interior:z.2f}, where the "
            f"average training map reaches {average_map.all:z.2f} and {average_map.interior:z.2f}, a random circuit of "
            f"equal size {random.all:z.2f} and {random.interior:z.2f}."
        )
    lost = list(_wanting(KEEPS_IN_PART, circuit, average_map, random, where))
    failed = [reason for known, reason in lost if known]
    if failed:
        return "does not keep", f"The circuit does not keep {feature}: {'; '.join(failed)}."
    if not lost:
        return "keeps in part", f"The circuit keeps {feature} in part: {'; '.join(reason for _, reason in wanting)}."
    unknown = "; ".join(dict.fromkeys(reason for _, reason in lost))
    return "not decided", f"Whether the circuit keeps {feature} is not decided: {unknown}."


def _wanting(rule: Rule, circuit: R2, average_map: R2, random: R2, where: str) -> Iterator[tuple[bool, str]]:
    """Return what of a rule does not hold (True), or is not known to hold (False), each with its reason."""
    for at, asked, r2 in ((0, rule.r2, "R2"), (1, rule.r2_interior, f"R2 on {where}")):
        value = circuit[at]
        if math.isnan(value):
            yield False, f"{r2} is not defined"
            continue
        if value < asked:
            yield True, f"{r2} is {value:z.2f}, below {asked:g}"
            continue
        for baseline, name in ((average_map[at], "the average training map"), (random[at], "a random circuit")):
            if math.isnan(baseline):
                yield False, f"{name} was not measured"
            elif 1 - value > rule.left * (1 - baseline) + _ROUNDING:
                left = f"more than {rule.left:.0%} of its squared error is left"
                yield True, f"{r2} is {value:z.2f} where {name} reaches {baseline:z.2f}, so {left}"
