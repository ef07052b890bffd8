"""The rehearsal against the real TPU compiler, where libtpu can be had, and its arithmetic anywhere."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import json
import pathlib
import sys
from typing import Any, cast

import jax
import pytest

from hap2s_jax.data import emoji
from hap2s_jax.distributed import tpu
from hap2s_jax.errors import UserError
from hap2s_jax.run.learner import Learner

ROOT = pathlib.Path(__file__).parents[1]
TOPOLOGY = "v5e:2x4"
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason='no libtpu on this platform or in this environment; pip install -e ".[tpu]" brings it to x86-64 Linux',
)


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def _config():
    config = importlib.import_module("configs.emoji").get_config("tiny")
    config.encoder.name = "small_encoder:make"
    config.data.image_size = (32, 32)
    config.evaluate.batch_size = 8
    return config


@pytest.fixture(scope="module")
def rehearsed():
    sys.path.insert(0, str(ROOT))
    from hap2s_jax.run import rehearsing

    lines = []
    config = _config()
    return config, rehearsing.rehearse(config, TOPOLOGY, largest=False, say=lines.append), "\n".join(lines)


def test_turned_classes_are_counted():
    from hap2s_jax.run.rehearsing import _training_classes

    config = _config()
    config.data.quarter_turns = False
    upright = _training_classes(config, None)
    assert upright == len(emoji.load().train.class_names), "its validation classes are taken off already"
    config.data.quarter_turns = True
    assert _training_classes(config, None) == 4 * upright


def test_a_loss_without_blocks_is_no_subject_for_scaling(monkeypatch):
    from hap2s_jax.run import rehearsing

    monkeypatch.setattr(tpu, "topology", lambda name: pytest.fail("went on"))
    config = _config()
    config.loss = {"name": "softmax"}
    with pytest.raises(UserError, match="in which softmax cannot be computed; leave it out"):
        rehearsing.rehearse(config, TOPOLOGY, scaling=True)


@needs_libtpu
@pytest.mark.slow
def test_the_programs_of_a_config_compile_for_a_slice(rehearsed):
    config, figures, said = rehearsed
    assert (figures["chips"], figures["hosts"], figures["batch"]) == (8, 2, 32)
    from hap2s_jax.run.rehearsing import _training_classes

    state = Learner.create(config).abstract_state(_training_classes(config, None))
    # What the compiler needs for the arguments is at least what they are, and padding to tiles is not everything.
    least = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)) + 4 * 32 * 32 * 3
    assert least <= figures["train"]["arguments"] < least + 2**20
    assert figures["train"]["seconds"] > figures["loss"]["seconds"] > 0
    assert figures["train"]["flops"] > figures["loss"]["flops"] > 0
    assert figures["images_per_second"] == 32 / figures["train"]["seconds"]
    # Gradients are averaged over the chips: all of them, in float32, and a little more.
    gradients = sum(x.size * 4 for x in jax.tree.leaves(state.params))
    assert gradients <= figures["train"]["collectives"]["all-reduce"][1] < 3 * gradients + 10_000
    for part in (
        "8 chips (TPU v5 lite), 2 hosts",
        "global batch 32 (8 classes x 4 images)",
        "of 16 GiB, fits",
    ):
        assert part in said
    json.dumps(figures)


def test_what_bfloat16_brings_is_one_line(monkeypatch):
    from hap2s_jax.run import rehearsing

    def compiled(self, batch_size):
        narrow = self.learner.encoder.trunk.dtype == "bfloat16"
        return tpu.Compiled(
            **{f.name: {} if f.name == "collectives" else 0 for f in dataclasses.fields(tpu.Compiled)}
            | {"seconds": 0.05 if narrow else 0.09, "arguments": (1 if narrow else 2) * 2**30}
        )

    monkeypatch.setattr(rehearsing.Rehearsal, "train_step", compiled)
    config = importlib.import_module("configs.emoji").get_config("tiny")
    subject: Any = rehearsing.Rehearsal(Learner.create(config), cast(Any, None), num_classes=3, effort=0.0)
    lines = []
    rehearsing._report_bfloat16(subject, subject.train_step(32), lines.append)
    [line] = lines
    assert "bfloat16: 50 ms a step in place of 90, 1.00 GiB in place of 2.00" in line


@needs_libtpu
@pytest.mark.slow
def test_what_does_not_fit_is_said_with_what_it_needs():
    topology = tpu.topology(TOPOLOGY)

    def step(state, batch):
        return state, jax.lax.pmean(sum(x.mean() for x in batch), "devices")

    too_much = [jax.ShapeDtypeStruct((8, 2**16, 2**16), "float32") for _ in range(2)]  # 16 GiB each
    with pytest.raises(
        tpu.DoesNotFitError, match=r"v5e:2x4's devices: it needs .* of which 15.*G can"
    ) as caught:
        tpu.compile_for(topology, topology.parallel.compile_step(step), {}, too_much)
    assert caught.value.needed > 2**35


def test_a_topology_that_does_not_exist_lists_those_that_do():
    with pytest.raises(
        UserError, match=r"unknown topology 'v5e:3x5' .*there are: v5e:2x2, .*v5p:8x16x16.*v6e:16x16"
    ):
        tpu.topology("v5e:3x5")


def test_slices_reach_from_8_chips_to_2048():
    sizes = [
        functools.reduce(lambda a, b: a * int(b), shape.split("x"), 1) for shape in tpu.CHIPS["v5p"].shapes
    ]
    assert sizes == sorted(sizes)
    assert {8, 16, 32, 64, 128, 256, 512, 1024, 2048} <= set(sizes)


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 17, 100, 4097])
@pytest.mark.parametrize("start", [1, 5, 1000])
@pytest.mark.parametrize("knows", [True, False])
def test_the_largest_that_fits_is_shown_by_the_next_one_failing(limit, start, knows):
    tried = {}

    def fits(number):
        assert number not in tried, "compiled twice"
        tried[number] = number <= limit
        # Memory that bends: the compiler trades time for it when it gets scarce.
        return number <= limit, (50 + min(number, limit + 1) * 10.0 if knows else None)

    assert tpu.largest(fits, start, 50 + 10.0 * limit) == limit
    assert not tried[limit + 1]
    assert limit == 0 or tried[limit]
    assert len(tried) < 30


def test_bytes_of_collectives_in_a_compiled_program():
    text = """
      %all-reduce.1 = (f32[64,128]{1,0:T(8,128)}, bf16[10]{0}) all-reduce(%a, %b), replica_groups={{0,1}}
      %ag = f32[32,16]{1,0} all-gather(%x), dimensions={0}
      %s = (s32[4]{0}, s32[32]{0:S(1)}) all-gather-start(%y), dimensions={0}
      %d = s32[32]{0} all-gather-done(%s)
      %rs = f32[4,16]{1,0} reduce-scatter(%z), dimensions={0}
      %no = f32[1000]{0} fusion(%all-reduce.1), kind=kLoop
    """
    assert tpu.collectives(text, 8) == {
        "all-reduce": (1, 64 * 128 * 4 + 20),
        "all-gather": (2, 32 * 16 * 4 + 32 * 4),
        "reduce-scatter": (1, 32 * 16 * 4),
    }


def test_what_the_compiler_says_about_memory():
    both = [
        "Ran out of memory in memory space hbm. Used 17.25G of 15.75G hbm. Exceeded",
        "HLO temporaries (17.25G) exceeds available HBM (15.75G).",
    ]
    for text in both:
        assert tpu._memory_needed(text) == (17.25 * 2**30, "15.75G")
    assert tpu._memory_needed("RESOURCE_EXHAUSTED") == (None, None)


def test_data_without_a_known_number_of_classes_asks_for_it():
    from hap2s_jax.run import rehearsing

    config = importlib.import_module("configs.folder").get_config()
    with pytest.raises(UserError, match="give --classes"):
        rehearsing._training_classes(config, None)
    assert rehearsing._training_classes(config, 7) == 7
    assert rehearsing._training_classes(importlib.import_module("configs.cub").get_config(), None) == 90
