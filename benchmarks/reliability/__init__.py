"""What the library survives, measured: every module here that has a function ``measure(fast)`` is a part of it."""
