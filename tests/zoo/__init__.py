"""Models as people write them, each with a tiny batch and a loss: what a library for any PyTorch model must train."""

from . import attention, dense, gpt, interfaces, modern, odd, recurrent, vision, weights
from .case import Case
from .hf import transformers_cases

__all__ = ["CASES", "Case", "transformers_cases"]

_FILES = (vision, modern, attention, gpt, recurrent, dense, weights, interfaces, odd)
CASES: tuple[Case, ...] = tuple(case for file in _FILES for case in file.CASES)
