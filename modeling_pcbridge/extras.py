"""Packages that only some of the work needs: asked for by name before the work begins."""

from importlib.util import find_spec

from .errors import InputError


def require_extra(extra: str, package: str, what: str) -> None:
    """Raises InputError that names the extra, where `package` is not installed, which `what` needs."""
    if find_spec(package) is None:
        raise InputError(f"{what} needs {package}, which is not installed: pip install 'pcbridge[{extra}]'")
