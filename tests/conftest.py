"""What the engine's own tests run with, for the tests that cross distributions: the command over roots of its own."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest


def _load(path):
    spec = importlib.util.spec_from_file_location("transom_test_runner", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


_runner = _load(Path(__file__).resolve().parent.parent / "engine" / "tests" / "conftest.py")
busybox_tree, _images = _runner.busybox_tree, _runner._images
empty_transom, transom = _runner.empty_transom, _runner.transom


@pytest.fixture(autouse=True)
def _needs_root(request):
    if os.geteuid() != 0 and "transom" in request.fixturenames:
        pytest.skip("not root: containers need namespaces, mounts and interfaces")
