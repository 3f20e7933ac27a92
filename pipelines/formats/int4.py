"""INT4: 4-bit integers for weights, in groups, with 16-bit or FP8 activations."""

from functools import partial

from pipelines.formats import fp8, integers
from pipelines.formats.description import Changes, Family, Scheme, Weights

ELEMENT = integers.element(4)
FAMILY = Family(
    "INT4",
    "4-bit integers for the weights; activations stay in 16 bits, or get 8 where the recipe says so.",
)
CHANGES = Changes(discordance=0.10, deviation=0.15)
GROUPS = Weights(element=ELEMENT, strategy="group", group_size=128, scale=partial(integers.scale, bits=4))

W4A16 = Scheme(
    family=FAMILY,
    changes=CHANGES,
    storage=integers.PACKED,
    weights=GROUPS,
    experts_are_read=True,
)
W4A16_ASYM = Scheme(
    family=FAMILY,
    changes=CHANGES,
    storage=integers.PACKED,
    weights=Weights(
        element=ELEMENT,
        strategy="group",
        group_size=128,
        symmetric=False,
        scale=partial(integers.scale, bits=4),
    ),
)
W4AFP8 = Scheme(
    family=FAMILY,
    changes=CHANGES,
    storage=integers.PACKED,
    weights=GROUPS,
    activations=fp8.TOKENS,
    experts_are_read=True,
)
