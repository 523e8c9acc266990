"""How much of pictures an autoencoder gives back: PSNR, SSIM and a Frechet distance (paper section 3.1, Table 3)."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from scipy import ndimage

from sd3_jax.data.frozen import ImageCodec
from sd3_jax.evaluation import fidelity

SIGMA, REACH = 1.5, 5  # of SSIM's window (Wang et al. 2004)
WINDOW = 2 * REACH + 1  # pixels on a side; no picture may be smaller


class Quality(NamedTuple):
    """Of an autoencoder on some pictures: means over pictures with their standard errors, and the distance of all."""

    psnr: float  # dB
    psnr_se: float
    ssim: float
    ssim_se: float
    frechet: float
    n: int


def psnr(true: UInt8[np.ndarray, "b H W 3"], kept: UInt8[np.ndarray, "b H W 3"]) -> Float[np.ndarray, " b"]:
    """Peak signal-to-noise ratio of each picture, dB; at most that of one level wrong in one number of a picture."""
    error = np.mean((true.astype(np.float64) - kept) ** 2, axis=(1, 2, 3))
    return 10 * np.log10(255**2 / np.maximum(error, 1 / true[0].size))


def ssim(true: UInt8[np.ndarray, "b H W 3"], kept: UInt8[np.ndarray, "b H W 3"]) -> Float[np.ndarray, " b"]:
    """Structural similarity of each picture, the mean over windows wholly inside and over channels (Wang et al. 2004).

    A Gaussian window of 11 pixels, deviation 1.5, biased moments, K1 = 0.01 and K2 = 0.03, as published.
    """
    one, other = true.astype(np.float64), kept.astype(np.float64)

    def blur(x: Float[np.ndarray, "b H W 3"]) -> Float[np.ndarray, "b h w 3"]:
        for axis in (1, 2):
            x = ndimage.gaussian_filter1d(x, SIGMA, axis=axis, radius=REACH)
        return x[:, REACH:-REACH, REACH:-REACH]

    means = blur(one), blur(other)
    variances = blur(one**2) - means[0] ** 2, blur(other**2) - means[1] ** 2
    shared = blur(one * other) - means[0] * means[1]
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    bright = (2 * means[0] * means[1] + c1) / (means[0] ** 2 + means[1] ** 2 + c1)
    return np.mean(bright * (2 * shared + c2) / (variances[0] + variances[1] + c2), axis=(1, 2, 3))


def measure(codec: ImageCodec, images: UInt8[np.ndarray, "n H W 3"], batch: int = 64) -> Quality:
    """The quality of an autoencoder on pictures of one size."""
    kept = np.concatenate(list(_through(codec, images, batch)))
    signal, alike = psnr(images, kept), ssim(images, kept)
    reference = fidelity.moments(fidelity.scene_features(images))
    n = len(images)
    distance = fidelity.distance(fidelity.scene_features(kept), reference, np.arange(n), ["any"] * n).value
    errors = [float(each.std(ddof=1) / np.sqrt(n)) for each in (signal, alike)]
    return Quality(float(signal.mean()), errors[0], float(alike.mean()), errors[1], distance, n)


def _through(
    codec: ImageCodec, images: UInt8[np.ndarray, "n H W 3"], batch: int
) -> Iterator[UInt8[np.ndarray, "b H W 3"]]:
    """Pictures as they come back, batch by batch."""
    for first in range(0, len(images), batch):
        stored = codec.encode(images[first : first + batch])
        yield codec.decode(stored[..., : codec.described.channels])


def rows(codecs: Sequence[ImageCodec], images: UInt8[np.ndarray, "n H W 3"]) -> list[dict]:
    """One row an autoencoder, the fewest channels first."""
    found = []
    for codec in sorted(codecs, key=lambda codec: (codec.described.channels, codec.described.source)):
        one = codec.described
        found.append({"autoencoder": one.source, "channels": one.channels, "downsample": one.downsample}
                     | measure(codec, images)._asdict())  # fmt: skip
    return found
