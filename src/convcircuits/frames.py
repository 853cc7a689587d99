"""Values as tables and graphs of other packages, which are imported only when needed."""

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convcircuits.errors import ConvCircuitsError

if TYPE_CHECKING:
    import pandas


def frame(rows: Sequence[Mapping[str, Any]], *, index: str | None = None) -> "pandas.DataFrame":
    """Return rows as a DataFrame, optionally with one of the columns as its index.

    Raises:
        ConvCircuitsError: If pandas is not installed.
    """
    table = optional("pandas", "to_pandas").DataFrame(list(rows))
    return table if index is None else table.set_index(index)


def optional(package: str, method: str) -> Any:
    """Import a package that one method needs.

    Raises:
        ConvCircuitsError: If it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConvCircuitsError(f"{method} needs {package}: pip install 'convcircuits[notebook]'.") from error
