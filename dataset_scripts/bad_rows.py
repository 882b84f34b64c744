"""What happens to the records of a source that give no row."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from modeling_pcbridge.errors import InputError

OnError = Literal["raise", "skip"]

# What Python, NumPy, RDKit and h5py raise at wrong content.
_PARSING_ERRORS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


class RowError(InputError):
    """A record that gives no row. `reason` is the category it is counted under, `item` names it."""

    def __init__(self, item: str, reason: str, detail: object = ""):
        self.item = item
        self.reason = reason
        self.detail = detail
        super().__init__(f"{item}: {self.without_item}")

    @property
    def without_item(self) -> str:
        """The message for where the item is named already."""
        return self.reason + (f" ({self.detail})" if str(self.detail) else "")


class BadRowError(RowError):
    """The record is damaged. Ends the reading, or is skipped and counted with on_error="skip"."""


class ExcludedRowError(RowError):
    """The record is whole but not for this project (a radical, another electronic state). Always skipped, counted."""


@contextmanager
def naming(item: str, reason: str = "unparsable") -> Iterator[None]:
    """Errors of parsing inside become a `BadRowError` that names the record."""
    try:
        yield
    except RowError:
        raise
    except _PARSING_ERRORS as error:
        raise BadRowError(item, reason, f"{type(error).__name__}: {error}") from error


def rows_of_records(
    records: Iterator[Any], parse: Callable[[Any], dict], on_error: OnError, skipped: Counter[str]
) -> Iterator[dict]:
    """The rows of all records that give one; the others are counted in `skipped` by reason.

    A `BadRowError` of the iterator itself (a truncated archive) ends it: nothing after it can be read.

    Raises:
        BadRowError: a damaged record, with on_error="raise".
    """
    while True:
        try:
            record = next(records, None)
            if record is None:
                return
            yield parse(record)
        except ExcludedRowError as error:
            skipped[error.reason] += 1
        except BadRowError as error:
            if on_error == "raise":
                raise
            skipped[error.reason] += 1
