"""A memory of past batches in training: exact on several devices and after resuming, and reached by a config."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import many_steps
import numpy as np
import optax
import pytest

from hap2s_jax import losses
from hap2s_jax.distributed import devices
from hap2s_jax.errors import UserError
from hap2s_jax.recipes import common
from hap2s_jax.run.learner import Learner
from hap2s_jax.training.checkpoint import Checkpointer
from hap2s_jax.training.objective import objective
from hap2s_jax.training.state import assemble_state
from hap2s_jax.training.step import train_step

SIZE = many_steps.BATCH + 8


def trained(num_devices, folder=None, steps=4):
    """Losses and last state; with a folder, stopped and resumed halfway."""
    with jax.enable_x64(True):
        data, optimizer = devices.DataParallel.create(num_devices), optax.sgd(0.1)
        encoder = many_steps.TinyEncoder()
        variables = encoder.init(jax.random.key(0), many_steps.batch(0)["image"])
        variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), variables)
        step = functools.partial(
            train_step,
            encoder=encoder,
            objective=functools.partial(objective, loss=losses.create("nt_xent")),
            optimizer=optimizer,
            axis_name=devices.AXIS,
        )
        update = data.compile_step(step)
        first = assemble_state(variables, optimizer, memory=losses.memory.create(SIZE, 8, jnp.float64))
        state, values = data.replicate(first), []
        for number in range(steps):
            if folder and number == steps // 2:
                writer = Checkpointer(folder)
                writer.save(state)
                writer.close()
                reader = Checkpointer(folder, read_only=True)
                state = data.replicate(reader.restore(first, number))
                reader.close()
            state, metrics = update(state, data.split(many_steps.batch(number)))
            values.append(float(metrics["loss"]))
        return values, jax.device_get(state)


def test_several_devices_and_a_stop_change_nothing(tmp_path):
    values, state = trained(1)
    assert sorted(state.memory.labels) == sorted(
        [*many_steps.batch(3)["label"], *many_steps.batch(2)["label"][8:]]
    )
    resumed = trained(1, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, resumed, (values, state))
    many = trained(4)
    np.testing.assert_allclose(many[0], values, rtol=1e-10)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10), many[1], state)


def test_the_loss_sees_the_batches_before():
    random = np.random.default_rng(0)
    x, past = random.normal(size=(2, 6, 4)).astype(np.float32)
    labels = np.array([0, 0, 1, 1, 2, 2])
    memory = losses.memory.push(losses.memory.create(8, 4), past, labels)
    output = dataclasses.make_dataclass("Output", ["embedding"])(jnp.asarray(x)[None])

    def on_device(embedding):
        output.embedding = embedding
        return objective(output, labels, {}, "d", 0, memory, loss=losses.create("nt_xent"))[0]

    value = jax.vmap(on_device, axis_name="d")(output.embedding)
    expected = losses.nt_xent_loss(x, labels, keys=past, key_labels=labels)
    np.testing.assert_allclose(value[0], expected, rtol=1e-6)


def config_with(size, loss="hap2s_e"):
    config = common.get_config()
    common.set_loss(config, loss)
    config.batch.classes, config.batch.images_per_class, config.loss.memory_size = 4, 2, size
    config.encoder.name, config.encoder.width, config.encoder.embedding_dim = "resnet10", 4, 6
    config.data.image_size = (32, 32)
    return config


def test_a_config_makes_the_memory():
    state = Learner.create(config_with(20)).abstract_state(5)
    assert state.memory.embeddings.shape == (20, 6)
    assert Learner.create(config_with(0)).abstract_state(5).memory is None
    for size, loss, words in (
        (7, "hap2s_e", "loss.memory_size is 7; it should be at least a batch of 8, or 0 for no memory"),
        (20, "adasp", "loss.memory_size is 20; it should be 0: adasp compares a batch with itself"),
        (-1, "hap2s_e", "loss.memory_size is -1; it should be a whole number of at least 0"),
        (2.5, "hap2s_e", "loss.memory_size is 2.5; it should be a whole number of at least 0"),
    ):
        config = config_with(0, loss)
        with config.unlocked():
            del config.loss.memory_size
            config.loss.memory_size = size
        with pytest.raises(UserError, match=words):
            Learner.create(config)
