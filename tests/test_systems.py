"""What needs Linux or macOS says so elsewhere."""

import importlib
import sys

import pytest


@pytest.mark.parametrize(
    "lacking, module",
    [("resource", "pcbridge.training.log"), ("fcntl", "dataset_scripts.file_lock")],
)
def test_windows_gets_a_sentence(monkeypatch, lacking, module):
    monkeypatch.setitem(sys.modules, lacking, None)  # as if it were not there
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(ImportError, match="needs Linux or macOS"):
        importlib.import_module(module)
