"""The loop without a model: saving, damage, SIGTERM, and losses that are no numbers."""

import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from afmrl_jax.config import GuardConfig, KeptCheckpoints
from afmrl_jax.data.batching.collate import VLBatch
from afmrl_jax.data.sources.batches import ContrastiveBatch, PromptBatch
from afmrl_jax.errors import RunError
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.parallel.sharding import place
from afmrl_jax.runtime import preemption
from afmrl_jax.runtime.preemption import Preempted, watch
from afmrl_jax.testing import change_a_bit, largest_file
from afmrl_jax.training.checkpoint import Checkpointer
from afmrl_jax.training.loop import LoopConfig, run_loop
from afmrl_jax.training.state import gradient_step, initial_state

SGD = optax.sgd(0.1)
ROWS = VLBatch(
    np.zeros((2, 4), np.int32),
    np.ones((2, 4), bool),
    np.zeros((2, 3, 4), np.int32),
    np.zeros((1, 4, 3), np.float32),
    np.ones((1, 4), np.int32),
    np.zeros((1, 4, 2), np.int32),
    np.zeros(2, np.int32),
)


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Batch `i` holds a number; the step walks towards it."""

    values: tuple[float, ...]

    def __len__(self):
        return len(self.values)

    def __getitem__(self, step):
        return PromptBatch(ROWS, np.float32(self.values[step]))


@jax.jit
def step(state, batch, key):
    del key

    def loss(params):
        value = jnp.sum((params["norm/scale"] - batch.queries) ** 2)
        return value, {"loss": value}

    return gradient_step(state, loss, SGD)


@pytest.fixture
def run(tmp_path):
    def of(values, *, inner=step, folder="stage", **changes):
        config = LoopConfig(
            "agcl", tmp_path / folder, len(values), 0, save_every=2, mesh=make_mesh(1), log_every=1
        )
        config = dataclasses.replace(config, **changes)
        state = initial_state({"norm/scale": jnp.zeros(3)}, SGD)
        return run_loop(config, state, Numbers(tuple(values)), inner)

    return of


def scale(state):
    return np.asarray(state.params["norm/scale"])


def saved(tmp_path, folder="stage"):
    return sorted(int(x.name) for x in (tmp_path / folder / "checkpoints").glob("[0-9]*"))


VALUES = [1.0, 2.0, -1.0, 3.0, 0.5, 2.5, 1.5]


def cut(path):
    """Take the end off the largest file of a checkpoint."""
    largest = largest_file(path)
    with largest.open("r+b") as file:
        file.truncate(largest.stat().st_size // 2)
    return largest


def test_checkpoints_are_kept_by_policy(run, tmp_path):
    run(VALUES)
    assert saved(tmp_path) == [6, 7]
    run(VALUES, folder="more", kept=KeptCheckpoints(newest=1, every=4))
    assert saved(tmp_path, "more") == [4, 7]


def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_it_taken(run, tmp_path, capsys):
    whole = run(VALUES)
    folder = tmp_path / "stage"
    damaged = cut(folder / "checkpoints" / "7")
    again = run(VALUES)
    np.testing.assert_array_equal(scale(again), scale(whole))
    warning = capsys.readouterr().err
    assert "checkpoints/7 is damaged" in warning
    assert damaged.name in warning
    assert (folder / "damaged-7").is_dir()
    assert saved(tmp_path) == [6, 7]


def test_a_checkpoint_whose_bytes_changed_is_not_taken(run, tmp_path):
    whole = run(VALUES)
    for path in (tmp_path / "stage" / "checkpoints" / "7").rglob("*"):
        if path.is_file() and path.stat().st_size:
            path.write_bytes(bytes(255 - x for x in path.read_bytes()))
    again = run(VALUES)
    np.testing.assert_array_equal(scale(again), scale(whole))
    assert (tmp_path / "stage" / "damaged-7").is_dir()


def test_a_checkpoint_of_a_run_killed_before_its_sums_were_written_is_taken(run, tmp_path):
    whole = run(VALUES)
    sums = tmp_path / "stage" / "checkpoint_sums.json"
    sums.unlink()
    np.testing.assert_array_equal(scale(run(VALUES)), scale(whole))
    assert saved(tmp_path) == [6, 7]


def test_sums_do_not_outlive_a_checkpoint_that_is_put_aside(run, tmp_path):
    run(VALUES)
    folder = tmp_path / "stage"
    cut(folder / "checkpoints" / "7")
    checkpointer = Checkpointer(folder / "checkpoints")
    fresh = initial_state({"norm/scale": jnp.zeros(3)}, SGD)
    found = checkpointer.restore(place(fresh, make_mesh(1)))
    checkpointer.close()
    assert int(found.step) == 6
    assert json.loads((folder / "checkpoint_sums.json").read_text()).keys() == {"6"}


def test_checkpoints_are_dictionaries_by_the_names_of_the_fields(run, tmp_path):
    """As they were before the state was a tuple."""
    state = initial_state({"norm/scale": jnp.zeros(3)}, SGD)
    fields = {"halted", "opt_state", "params", "step"}
    old = {x: getattr(state, x) for x in fields} | {"step": jnp.int32(3)}
    with ocp.CheckpointManager(tmp_path / "stage" / "checkpoints") as manager:
        manager.save(3, args=ocp.args.Composite(state=ocp.args.StandardSave(old)))
    assert int(run(VALUES[:3]).step) == 3
    run(VALUES, folder="new")
    with ocp.CheckpointManager(tmp_path / "new" / "checkpoints") as manager:
        found = manager.restore(7, args=ocp.args.Composite(state=ocp.args.StandardRestore()))
    assert set(found["state"]) == fields


def test_a_bit_that_changed_is_noticed(run, tmp_path, capsys):
    whole = run(VALUES)
    folder = tmp_path / "stage" / "checkpoints" / "7"
    largest = largest_file(folder)
    change_a_bit(largest)
    np.testing.assert_array_equal(scale(run(VALUES)), scale(whole))
    assert f"{largest.name} has other bytes" in capsys.readouterr().err


def test_a_resumed_stage_does_not_hold_the_state_it_would_have_begun_with(run, tmp_path):
    whole = run(VALUES)
    fresh = initial_state({"norm/scale": jnp.zeros(3)}, SGD)
    folder = tmp_path / "stage"
    config = LoopConfig("agcl", folder, len(VALUES), 0, save_every=2, mesh=make_mesh(1))
    state = run_loop(config, fresh, Numbers(tuple(VALUES)), step)
    assert all(x.is_deleted() for x in jax.tree.leaves(fresh))
    np.testing.assert_array_equal(scale(state), scale(whole))


def test_a_checkpoint_that_was_not_read_for_another_reason_stays(run, tmp_path, monkeypatch):
    run(VALUES)

    def restore(*_, **__):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "restore", restore)
        with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED") as raised:
            run(VALUES)
    assert "checkpoints/7; with that folder moved away" in raised.value.__notes__[0]
    assert saved(tmp_path) == [6, 7]


def test_without_any_whole_checkpoint_the_stage_begins_anew(run, tmp_path):
    whole = run(VALUES)
    for number in (6, 7):
        cut(tmp_path / "stage" / "checkpoints" / str(number))
    np.testing.assert_array_equal(scale(run(VALUES)), scale(whole))
    steps = [
        json.loads(x)["step"]
        for x in (tmp_path / "stage" / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == [*range(1, 8)]


def test_a_loss_that_is_no_number_keeps_the_state_before_it_and_its_batch(run, tmp_path):
    bad = [1.0, 2.0, -1.0, float("nan"), 0.5, 2.5, 1.5]
    with pytest.raises(RunError, match=r"loss is nan.*step 4.*after step 3.*bad_batch_000003"):
        run(bad)
    assert saved(tmp_path)[-1] == 3
    with np.load(tmp_path / "stage" / "bad_batch_000003.npz") as kept:
        assert np.isnan(kept["queries"])
        np.testing.assert_array_equal(kept["rows/tokens"], ROWS.tokens)
    # What was kept is the state of the good steps alone.
    good = run(bad[:3], folder="good")
    more = run(bad[:3])
    np.testing.assert_array_equal(scale(more), scale(good))
    assert int(more.step) == 3


def test_the_steps_behind_a_bad_one_change_nothing():
    state = initial_state({"norm/scale": jnp.zeros(3)}, SGD)
    key = jax.random.key(0)
    good, _ = step(state, Numbers((1.0,))[0], key)
    bad, metrics = step(good, Numbers((float("inf"),))[0], key)
    after, later = step(bad, Numbers((1.0,))[0], key)
    assert bool(metrics["halted"])
    assert bool(later["halted"])
    np.testing.assert_array_equal(scale(after), scale(good))
    assert int(after.step) == 1


def test_an_exploding_loss_stops_the_stage(run, tmp_path):
    steady = [0.3 * (-1) ** n for n in range(30)]
    with pytest.raises(RunError, match=r"exploded.*bad_batch"):
        run([*steady, 50.0, -50.0, 50.0, -50.0, 50.0], guard=GuardConfig(explosion=20.0))
    assert saved(tmp_path)[-1] <= 32
    # One step alone is none: the next batch lies where it has led.
    run([*steady, 50.0, 10.0, 10.0, 10.0], folder="two", guard=GuardConfig(explosion=20.0))


def test_views_with_a_large_loss_are_no_explosion(tmp_path):
    """A tenth of the steps are of a view whose loss is a hundred times that of the others."""

    class Views(Numbers):
        def __getitem__(self, step):
            view = "text-image" if step % 40 > 35 else "both-both"
            return ContrastiveBatch(ROWS, np.float32(self.values[step]), view=view)

    @jax.jit
    def still(state, batch, key):
        assert batch.view is None
        return step(state, PromptBatch(batch.rows, batch.products), key)[0], {
            "loss": batch.products,
            "gradient_norm": batch.products,
            "halted": jnp.zeros((), bool),
        }

    values = tuple(100.0 if n % 40 > 35 else 1.0 for n in range(120))
    config = LoopConfig("agcl", tmp_path, 120, 0, save_every=99, mesh=make_mesh(1), log_every=1)
    state = initial_state({"norm/scale": jnp.zeros(3)}, SGD)
    run_loop(config, state, Views(values), still)
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [x["loss/text-image"] for x in lines[36:40]] == [100.0] * 4
    assert lines[0]["loss/both-both"] == 1.0
    assert "loss/both-both" not in lines[36]


@pytest.fixture
def watched():
    """SIGTERM is caught as in a command."""
    before = signal.getsignal(signal.SIGTERM)
    watch()
    yield
    signal.signal(signal.SIGTERM, before)
    preemption._notice.came = False


def ended_at(number):
    """A step that SIGTERM meets when it is called for the `number`-th time."""
    seen = []

    def ending(state, batch, key):
        seen.append(int(state.step))
        if len(seen) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(state, batch, key)

    return ending


@pytest.mark.parametrize("number", [4, len(VALUES)])
def test_sigterm_saves_the_step_and_the_next_start_goes_on(run, tmp_path, watched, number):
    with pytest.raises(Preempted):
        run(VALUES, inner=ended_at(number), save_every=100)
    preemption._notice.came = False
    assert saved(tmp_path) == [number]
    again = run(VALUES)
    np.testing.assert_array_equal(scale(again), scale(run(VALUES, folder="whole")))


def test_sigterm_outside_of_steps_ends_at_once(watched):
    with pytest.raises(Preempted):
        signal.raise_signal(signal.SIGTERM)
