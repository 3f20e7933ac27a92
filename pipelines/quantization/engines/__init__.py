"""Engines, which turn a plan into weight files. An engine is a module with one function that others call:

    quantize(plan, tokens, folder) -> Written

`plan` says what becomes of each module, `tokens` is the calibration set (None for a data-free method), `folder` is
empty. The engine writes safetensors files (and an index when there is more than one) and nothing else; config,
tokenizer and the rest are the same for every engine and the quantize stage writes them.
"""
