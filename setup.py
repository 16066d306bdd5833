"""Packaging of mtp_jax. Settings of ruff, mypy and pytest are in pyproject.toml, tested versions in constraints.txt."""

import pathlib
import re

from setuptools import find_namespace_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "mtp_jax/__init__.py").read_text(), re.MULTILINE).group(1)
README = HERE / "README.md"

setup(
    name="mtp_jax",
    version=VERSION,
    description="Multi-token prediction in JAX: train a shared trunk with several heads, decode faster with them.",
    long_description=README.read_text() if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_namespace_packages(include=["mtp_jax*", "experiments*", "launch*"]),
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.1",
        "etils[epath,epy]>=1.9",
        "flatbuffers>=24.3",  # jax.export writes and reads its files with it and does not declare it
        "flax>=0.12.8",
        "grain>=0.2.18",
        "importlib_resources>=6.0",  # tensorflow-datasets needs it to write ArrayRecord and does not declare it
        "jax>=0.10",
        "matplotlib>=3.9",
        "ml-collections>=1.0",
        "numpy>=2.0",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.12.8",
        "pyarrow>=17.0",
        "pyyaml>=6.0",
        "safetensors>=0.4",
        "sentencepiece>=0.2.0",
        "tensorboardX>=2.6",
        "tensorflow-datasets>=4.9.8",
        "tokenizers>=0.20",
        "tqdm>=4.66",
    ],
    extras_require={
        "test": ["gguf>=0.19", "hypothesis>=6.100", "kubeflow-trainer-api>=2.3.0", "mypy>=1.11", "pytest>=8.0",
                 "pytest-xdist>=3.6", "rouge-score>=0.1.2", "ruff>=0.6"],
        "tpu": ["jax[tpu]"],
        "gpu": ["jax[cuda12]"],
        "gguf": ["gguf>=0.19"],
        "evaluation": ["rouge-score>=0.1.2"],  # for --task=summaries
        "lm_eval": ["lm_eval>=0.4.13"],
        "interop": ["lm_eval>=0.4.13", "torch==2.13.0", "transformers>=5.0"],
        "prepare": ["apache-beam>=2.77"],  # itself for Python 3.10 to 3.14; pins: constraints-prepare.txt
    },
    entry_points={"lm_eval.models": ["mtp_jax = mtp_jax.evaluation.lm_eval_adapter:WorkdirLM"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
