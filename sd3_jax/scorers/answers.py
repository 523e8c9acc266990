"""A question answerer: BLIP for visual questions (Li et al. 2022), as T2I-CompBench asks it.

A question's probability is that of "yes" against "no" as the first word of the answer. T2I-CompBench asks at 480
pixels, where the released checkpoint was tuned; the folders of transformers hold its grid of positions at 384, which is
interpolated. The question begins with BLIP's own token for questions, which transformers does not put there.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from sd3_jax.errors import UserError
from sd3_jax.evaluation import weights
from sd3_jax.evaluation.compbench import Answer

SIDE = 480  # pixels that a picture is looked at with
WORDS, TOKENS = 50, 35  # of a question, at most


def load_blip(folder: Path) -> Answer:
    """P(yes) of questions about a picture, by the ``BlipForQuestionAnswering`` of a folder of transformers.

    Raises UserError for a folder of something else.
    """
    loaded = weights.load(folder, "blip", "BlipForQuestionAnswering", ("blip",))
    torch, net = loaded.torch, loaded.net
    tokenizer = weights.read(loaded.transformers.AutoTokenizer, folder)
    processor = weights.read(loaded.transformers.AutoImageProcessor, folder, backend="pil")
    text = net.config.text_config
    start, question = text.bos_token_id, text.bos_token_id + 1  # BLIP's two tokens beside BERT's
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
    if question >= text.vocab_size or tokenizer.unk_token_id in (yes, no):
        raise UserError(f"{folder}: its words are not those of BLIP, which knows yes, no and a start of questions")
    elsewhere = net.config.vision_config.image_size != SIDE

    def answer(image: UInt8[np.ndarray, "H W 3"], questions: Sequence[str]) -> list[float]:
        size = {"height": SIDE, "width": SIDE}
        given = processor(images=[image], input_data_format="channels_last", size=size, return_tensors="pt")
        found = []
        with torch.inference_mode():
            pixels = given["pixel_values"].to(loaded.device)
            seen = net.vision_model(pixel_values=pixels, interpolate_pos_encoding=elsewhere).last_hidden_state
            for one in questions:  # one by one: transformers' decoder would read the padding of a shorter question
                said = tokenizer(plain(one), truncation=True, max_length=TOKENS, return_tensors="pt")
                words = said["input_ids"].to(loaded.device)
                words[:, 0] = question
                states = net.text_encoder(input_ids=words, encoder_hidden_states=seen).last_hidden_state
                first = net.text_decoder(torch.full_like(words[:, :1], start), encoder_hidden_states=states).logits
                found.append(float((first[0, 0, yes] - first[0, 0, no]).sigmoid()))
        return found

    return answer


def plain(question: str) -> str:
    """A question as BLIP was taught to read them: in small letters, with little punctuation, not too long.

    >>> plain("The red Hat: big?")
    'the red hat big?'
    """
    words = re.sub(r"[.!\"()*#:;~]", "", question.lower()).rstrip(" ").split(" ")
    return " ".join(words[:WORDS])
