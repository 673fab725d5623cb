"""memberscope: who could tell that a record was in a model's training set, and how surely?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

# These two are bound at once: a function that shares its module's name would else give way to the module as soon as
# anything imports that. They need NumPy and nothing heavier.
from memberscope.audit import audit
from memberscope.score import score

if TYPE_CHECKING:
    from memberscope.config import AuditConfig
    from memberscope.data_loader import Dataset
    from memberscope.data_loader import load as load_dataset
    from memberscope.errors import MemberscopeError
    from memberscope.evidence import Evidence
    from memberscope.result import Audit
    from memberscope.statistics.evaluation import Evaluation, evaluate
    from memberscope.training.recipe import Recipe

__all__ = [
    "Audit",
    "AuditConfig",
    "Dataset",
    "Evaluation",
    "Evidence",
    "MemberscopeError",
    "Recipe",
    "audit",
    "evaluate",
    "load_dataset",
    "score",
]

# Imported at first use (PEP 562): `memberscope --help` must not wait for SciPy or matplotlib.
_HOME = {
    "Audit": ("memberscope.result", "Audit"),
    "AuditConfig": ("memberscope.config", "AuditConfig"),
    "Dataset": ("memberscope.data_loader", "Dataset"),
    "Evaluation": ("memberscope.statistics.evaluation", "Evaluation"),
    "Evidence": ("memberscope.evidence", "Evidence"),
    "MemberscopeError": ("memberscope.errors", "MemberscopeError"),
    "Recipe": ("memberscope.training.recipe", "Recipe"),
    "evaluate": ("memberscope.statistics.evaluation", "evaluate"),
    "load_dataset": ("memberscope.data_loader", "load"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'memberscope' has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _HOME[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
