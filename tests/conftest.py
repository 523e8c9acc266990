"""Eight CPU devices before JAX loads, so that meshes in the tests are real; one compilation cache for all tests."""

import os
import tempfile

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # in a worker it is there: workers inherit it and share the cache
    _cache = tempfile.TemporaryDirectory(prefix="sd3_jax_tests_", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "1"
    # Programs here are tiny and run a few times: they cost their compilation, which unoptimised takes half as long.
    _flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flags}".strip()

collect_ignore = ["make_fixtures.py"]  # a script that needs torch and diffusers, not a module of doctests


@pytest.fixture
def sd3(capsys, tmp_path, monkeypatch):
    """Run the command line in this process: (status, standard output, standard error)."""
    from sd3_jax.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        out, err = capsys.readouterr()
        return stopped.value.code, out, err

    return call
