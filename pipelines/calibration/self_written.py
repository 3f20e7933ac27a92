"""Text that the model writes itself, as token ids."""

from typing import Any

from pipelines.checkpoint.finite import check_finite
from pipelines.checkpoint.limits import known_token, language_config
from pipelines.checkpoint.tokenizer import load_tokenizer
from pipelines.core import progress
from pipelines.core.errors import bad_input
from pipelines.planning.plan import Plan
from pipelines.recipe.calibration_set import SelfSource
from pipelines.recipe.recipe import Calibrate
from pipelines.runtimes.generation import check_generation, use_own_settings

GENERATION_BATCH = 32
"""Number of samples that are written together."""


def write_samples(plan: Plan, source: SelfSource, wanted: Calibrate) -> list[list[int]]:
    """Return samples that the model writes, each of `seq_len` tokens with the one that begins a text.

    An end-of-sequence token does not stop a sample: chat models end every turn with it and write on.

    Raises:
        BadInput: the tokenizer has no token to begin a text with, the weights hold NaN or infinities, or the generation
            config cannot be read.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.generation import StoppingCriteria, StoppingCriteriaList

    checkpoint = plan.checkpoint
    tokenizer = load_tokenizer(checkpoint)
    start = known_token(language_config(checkpoint), tokenizer.bos_token_id, tokenizer.eos_token_id)
    if start is None:
        what = "its tokenizer has no BOS or EOS token, known to the model, to begin a text with"
        raise bad_input(checkpoint.folder, what, "use a set that has text: --set calibrate.set=passages")
    check_generation(checkpoint.folder)
    check_finite(checkpoint, checkpoint.tensors)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint.folder, dtype=plan.dtype, trust_remote_code=False, use_safetensors=True
    ).to(device)
    use_own_settings(model)
    torch.manual_seed(wanted.seed)
    samples: list[list[int]] = []
    with progress.bar(wanted.samples * wanted.seq_len, "calibrate", "token") as bar:

        class Advance(StoppingCriteria):  # type: ignore[misc]
            """The bar's clock: it stops no sample, and sees each token."""

            def __call__(self, input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
                bar.update(input_ids.shape[0])
                return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

        while len(samples) < wanted.samples:
            count = min(GENERATION_BATCH, wanted.samples - len(samples))
            output = model.generate(
                torch.full((count, 1), start, device=device),
                attention_mask=torch.ones((count, 1), dtype=torch.long, device=device),
                do_sample=True,
                temperature=source.temperature,
                top_k=0,
                top_p=1.0,
                max_new_tokens=wanted.seq_len - 1,
                eos_token_id=-1,
                pad_token_id=start,
                stopping_criteria=StoppingCriteriaList([Advance()]),
            )
            samples += output.tolist()
    return samples
