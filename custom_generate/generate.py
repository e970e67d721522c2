"""For `model.generate(custom_generate="path/to/this/repository", trust_remote_code=True, …)`: see `ets.generate`."""

from ets.hf_generate import generate_from_folder as generate

__all__ = ["generate"]
