"""The rolling summary of a session: what left the window, in fewer tokens.

plan decides which turns are compacted, writer makes the new text of their statements (by a
`Summarizer`, or as an extract), rolling commits it.
"""

from memory.summary.summarizer import ModelSummarizer, Summarizer

__all__ = ["ModelSummarizer", "Summarizer"]
