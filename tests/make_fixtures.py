"""Make tests/fixtures/parity_*.npz: what diffusers' SD3Transformer2DModel and scheduler say (torch, CPU, float32).

python tests/make_fixtures.py, after make test-parity has installed torch and diffusers; make test-parity makes them
anew and compares them with what is stored.
"""

import json
import os

import numpy as np
import parity
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from diffusers.models.embeddings import get_2d_sincos_pos_embed

from sd3_jax.config import ModelConfig


def reference(model: ModelConfig) -> SD3Transformer2DModel:
    """Diffusers' model of the same size."""
    return SD3Transformer2DModel(
        sample_size=model.latent_size,
        patch_size=model.patch,
        in_channels=model.latent_channels,
        out_channels=model.latent_channels,
        num_layers=model.depth,
        num_attention_heads=model.heads,
        attention_head_dim=model.head_dim,
        joint_attention_dim=model.text_dim,
        caption_projection_dim=model.width,
        pooled_projection_dim=model.pooled_dim,
        pos_embed_max_size=model.largest_side,
        dual_attention_layers=model.dual_attention,
        qk_norm="rms_norm" if model.qk_norm else None,
    )


def velocity(net: SD3Transformer2DModel, z, timestep, tokens, pooled) -> torch.Tensor:
    """Diffusers' velocity with channels last; its timestep is 1000 t."""
    z, timestep, tokens, pooled = (torch.as_tensor(x) for x in (z, timestep, tokens, pooled))
    out = net(z.permute(0, 3, 1, 2), tokens, pooled, timestep, return_dict=False)[0]
    return out.permute(0, 2, 3, 1)


def model_fixture(case: str) -> dict[str, np.ndarray]:
    """Velocities of every input, and the gradients of sum(v * cotangent) for the middle one."""
    net = reference(parity.MODELS[case]).eval()
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    weights = {name: parity.weight(case, name, shape) for name, shape in shapes.items()}
    net.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()}, strict=True)
    made = {"shapes": np.array(json.dumps(shapes)), "checksum": np.array(parity.checksum(weights))}
    for shape in parity.SHAPES:
        z, t, *text = parity.inputs(case, shape)
        v = velocity(net, z, 1000 * t, *text)
        made[f"velocity {shape}"] = v.detach().numpy()
        if shape == "154":
            (v * torch.from_numpy(parity.uniform("cotangent", tuple(v.shape)))).sum().backward()
    for name, parameter in net.named_parameters():
        made[f"gradient {name}"] = parameter.grad.numpy()
    if case == "dual":
        made |= sampling(net, case)
    return made


@torch.no_grad()
def sampling(net: SD3Transformer2DModel, case: str) -> dict[str, np.ndarray]:
    """The pipeline's loop: guidance between the three captions and none, the scheduler's steps, every latent kept."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=parity.SCHEDULE_SHIFT)
    scheduler.set_timesteps(parity.SAMPLER_STEPS)
    z, _, tokens, pooled = (torch.from_numpy(x) for x in parity.inputs(case, "154"))
    latents = []
    for timestep in scheduler.timesteps:
        at = timestep.expand(len(z))
        conditional = velocity(net, z, at, tokens, pooled)
        unconditional = velocity(net, z, at, torch.zeros_like(tokens), torch.zeros_like(pooled))
        v = unconditional + parity.GUIDANCE * (conditional - unconditional)
        z = scheduler.step(v, timestep, z, return_dict=False)[0]
        latents.append(z.numpy())
    return {"latents": np.stack(latents)}


def flow_fixture() -> dict[str, np.ndarray]:
    """The scheduler's sigmas, and the library's own table of positions."""
    made = {}
    for steps, shift in ((5, 3.0), (10, 3.0), (28, 3.0), (5, 1.0), (1, 3.0)):
        scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(steps)
        made[f"sigmas {steps} {shift:g}"] = scheduler.sigmas.numpy()
    made["positions"] = np.asarray(get_2d_sincos_pos_embed(16, (6, 6), base_size=6)).reshape(6, 6, 16)
    return made


def make() -> dict[str, dict[str, np.ndarray]]:
    """All fixtures, by file name."""
    torch.manual_seed(0)
    return {**{f"parity_{case}": model_fixture(case) for case in parity.MODELS}, "parity_flow": flow_fixture()}


if __name__ == "__main__":
    for file, arrays in make().items():
        temporary = parity.FIXTURES / f".{file}.npz"
        np.savez_compressed(temporary, **arrays)
        os.replace(temporary, parity.FIXTURES / f"{file}.npz")
        print(file, f"{(parity.FIXTURES / f'{file}.npz').stat().st_size / 1e6:.2f} MB")
