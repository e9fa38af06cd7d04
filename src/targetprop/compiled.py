"""Compiles the stages of a step with ``torch.compile``: what layers and decoders compute while targets are sought.

A stage that cannot be compiled ends the attempt: all go on as they are, and one sentence says so.
"""

import warnings
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch


class Stages:
    """Makes compiled versions of functions.

    Args:
        backend: a backend of ``torch.compile``, by name or as a function.
        say: hears the sentence if compilation fails; a `RuntimeWarning` by default.

    Attributes:
        calls: how many calls went to compiled functions.
        failure: why nothing is compiled any more; None if all is well.

    >>> stages = Stages(backend="eager")
    >>> stages.compile(lambda x: 2 * x)(torch.ones(2)), stages.failure
    (tensor([2., 2.]), None)
    """

    def __init__(
        self, backend: str | Callable[..., Any] = "inductor", say: Callable[[str], object] | None = None
    ) -> None:
        """Begin without failure."""
        self.backend, self.calls = backend, 0
        self.failure: str | None = None
        self._say = say or (lambda sentence: warnings.warn(sentence, RuntimeWarning, stacklevel=2))

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Compile a function when it is first called.

        Args:
            function: any function of tensors; it is called as it is once compilation has failed.

        Returns:
            The compiled function.
        """
        plain = getattr(function, "__func__", function)
        own = (function.__self__,) if plain is not function else ()  # pyright: ignore[reportFunctionMemberAccess]
        code = plain.__code__.replace()  # the compiler counts versions by code, and every layer is one of its own
        copy = FunctionType(code, plain.__globals__, plain.__name__, plain.__defaults__, plain.__closure__)
        compiled = torch.compile(copy, backend=self.backend)

        def call(*arguments: Any) -> Any:
            if self.failure is None:
                try:
                    result = compiled(*own, *arguments)
                    self.calls += 1
                    return result
                except Exception as error:  # compilers fail in many ways; the function's own errors come again below
                    result, cause = function(*arguments), getattr(error, "inner_exception", error)
                    self.failure = f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}"
                    self._say(f"this model cannot be compiled here ({self.failure}); going on without")
                    return result
            return function(*arguments)

        return call
