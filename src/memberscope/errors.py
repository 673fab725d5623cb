"""What can go wrong, told so that the reader knows what was wrong, where, and what to do."""

from __future__ import annotations


class MemberscopeError(Exception):
    """An error that the user can act on; the command line prints it without a traceback and exits with 3.

    Parameters
    ----------
    problem
        What is wrong and where: names the file, option or array, what was expected and what was found.
    hint
        What to do about it, as a sentence. Empty only where nothing can be done.
    """

    def __init__(self, problem: str, hint: str = "") -> None:
        self.problem = problem
        self.hint = hint
        super().__init__(f"{problem}\n  {hint}" if hint else problem)


class DataError(MemberscopeError):
    """Records, labels or membership that cannot be used as they are."""


class ConfigError(MemberscopeError):
    """A setting that is unknown, out of range, or contradicts another."""


class ModelError(MemberscopeError):
    """A model or a file of weights that cannot be used as it is."""


class EvidenceError(MemberscopeError):
    """Model answers (logits, probabilities) that cannot be used as they are."""


class MissingKnowledgeError(MemberscopeError):
    """An attack was asked for without the knowledge that it needs; says which, and how to get it."""


class RunFolderError(MemberscopeError):
    """A run folder that is missing, incomplete, or was written by something else."""
