"""The fixed text that every runtime is asked about: the same tokens, so that answers can be compared."""

PROMPT = (
    "The water cycle describes how water moves between the oceans, the air and the land. The sun warms the surface of "
    "the sea, and some of the water becomes vapour and rises. High in the sky it cools and forms clouds. When the "
    "drops in a cloud grow heavy enough they fall as rain or snow, and rivers carry the water back to the sea."
)
CONTINUATION = 24
"""Number of tokens to write after `PROMPT`."""
