"""How near things are: DPT hybrid, MiDaS's network (Ranftl et al. 2021), of transformers."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from sd3_jax.evaluation import weights
from sd3_jax.evaluation.compbench import Depth

SIDE = 480  # of the square that T2I-CompBench shows it; it was trained on 384


def load_dpt(folder: Path) -> Depth:
    """Nearness of each pixel, 0 to 1 within a picture, which the network sees as a square of 480 pixels.

    Raises UserError for a folder of something else.
    """
    # The first fusion has one input: what would add a second is in no checkpoint, and nothing depends on it.
    unused = "neck.fusion_stage.layers.0.residual_layer1."
    loaded = weights.load(folder, "dpt", "DPTForDepthEstimation", ("dpt",), unused)
    torch, net = loaded.torch, loaded.net
    processor = weights.read(loaded.transformers.AutoImageProcessor, folder, backend="pil")
    square = {"size": {"height": SIDE, "width": SIDE}, "keep_aspect_ratio": False, "ensure_multiple_of": 1}
    square |= {"resample": Image.Resampling.BILINEAR}
    net.dpt.embeddings.image_size = (SIDE, SIDE)  # its table of positions is stretched over what it is given

    def depth(image: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W"]:
        given = processor(images=[image], input_data_format="channels_last", return_tensors="pt", **square)
        with torch.inference_mode():
            near = net(pixel_values=given["pixel_values"].to(loaded.device)).predicted_depth
            near = (near - near.min()) / (near.max() - near.min()).clamp(min=1e-12)
            size = image.shape[:2]
            large = torch.nn.functional.interpolate(near[None], size=size, mode="bilinear", align_corners=True)
        return large[0, 0].cpu().numpy()

    return depth
