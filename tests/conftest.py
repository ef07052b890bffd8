"""Settings of every test, made before anything imports jax: eight fake CPU devices, and a cache of compiled
programs for this session, which the tests' subprocesses share.

HAP2S_TEST_PLATFORM=cuda runs the tests on that platform's own devices instead, compiled as users have it, with the
tolerances of `device_tolerances`; tests marked `eight_devices` are skipped where there are fewer.
"""

import atexit
import os
import shutil
import tempfile

import pytest
from device_tolerances import FACTORS

PLATFORM = os.environ.get("HAP2S_TEST_PLATFORM")
if PLATFORM:
    os.environ["JAX_PLATFORMS"] = PLATFORM if PLATFORM == "cpu" else f"{PLATFORM},cpu"
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
else:
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
    )
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("MPLBACKEND", "Agg")
# Or each of the many processes would compile all sources of JAX and TensorFlow anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Compiling is most of what the tests cost. Losses and metrics are tested as users run them, see below; with 0 all is.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="hap2s_jax_compiled_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

UNOPTIMISED = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1"
OPTIMISED = ("losses", "evaluation")


def pytest_collection_modifyitems(items):
    """Two halves, each with one setting of the compiler, so that a process changes it once.

    Files with end-to-end tests come first: the last file to be taken up should not be one of minutes.
    """
    if PLATFORM:
        import jax

        fewer = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
        for item in items:
            if item.get_closest_marker("eight_devices"):
                item.add_marker(fewer)
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path.parent.name in OPTIMISED, item.path not in long))


@pytest.fixture(autouse=True, scope="module")
def optimised_where_numbers_matter(request):
    """Losses and metrics are compiled with all of XLA's optimisations, in subprocesses too."""
    import jax

    wanted = UNOPTIMISED and request.path.parent.name not in OPTIMISED
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(wanted))
    if jax.config.values["jax_disable_most_optimizations"] != wanted:
        jax.config.update("jax_disable_most_optimizations", wanted)
        jax.clear_caches()  # They do not ask with which setting a program was compiled.


@pytest.fixture(autouse=PLATFORM is not None)
def device_tolerance(request, monkeypatch):
    """On a device, `np.testing.assert_allclose` within the bounds that `device_tolerances` states for the test."""
    import numpy as np

    factor = FACTORS.get(request.node.nodeid.partition("[")[0].rpartition("tests/")[2])
    if factor is None:
        return
    stated = np.testing.assert_allclose

    def within(actual, desired, rtol=1e-7, atol=0, **kwargs):
        stated(actual, desired, rtol=factor * rtol, atol=factor * atol, **kwargs)

    monkeypatch.setattr(np.testing, "assert_allclose", within)
