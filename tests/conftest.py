"""Settings of every test, made before anything imports jax: eight fake CPU devices, and a cache of compiled
programs for this session, which the tests' subprocesses share.
"""

import atexit
import os
import shutil
import tempfile

import pytest

os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("MPLBACKEND", "Agg")
# Compiling is most of what the tests cost. Losses and metrics are tested as users run them, see below; with 0 all is.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="hap2s_jax_compiled_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

UNOPTIMISED = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1"
OPTIMISED = ("losses", "evaluation")


def pytest_collection_modifyitems(items):
    """Files with end-to-end tests first: the last file to be taken up should not be one of minutes."""
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(autouse=True, scope="module")
def optimised_where_numbers_matter(request):
    """Losses and metrics are compiled with all of XLA's optimisations, in subprocesses too."""
    import jax

    wanted = UNOPTIMISED and request.path.parent.name not in OPTIMISED
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(wanted))
    if jax.config.values["jax_disable_most_optimizations"] != wanted:
        jax.config.update("jax_disable_most_optimizations", wanted)
        jax.clear_caches()  # They do not ask with which setting a program was compiled.
