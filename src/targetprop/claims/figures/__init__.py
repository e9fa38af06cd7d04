"""One figure per claim; each function takes the claim's record and returns a ``matplotlib`` figure."""
