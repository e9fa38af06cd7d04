"""The exception of a run's files."""


class RunError(Exception):
    """A run's files cannot be read or written; the message is one sentence that says what to do."""

    def __init__(self, message: str, status: int = 1) -> None:
        """Keep the exit status of a command that ends by it: 2 where the command itself was wrong."""
        super().__init__(" ".join(message.split()))
        self.status = status
