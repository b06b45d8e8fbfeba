"""Is a state taken exactly where it fits, and does it say where a run stands?

`loading/test_fingerprints.py` asks which data and settings a state is of, `loading/test_resume.py` what comes next.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from annbatch.errors import InputError
from annbatch.order.consumers import VERSION, Partition
from annbatch.order.permutation import MAX_WORD
from annbatch.order.state import FORMAT, Position, load, save

WHOLE = Partition(0, 1)
FINGERPRINT = {"n_obs": 5, "seed": 0, "rows": None, "classes": {"kind": "0f"}}
BEGUN = save(Position(3, ((2, 4), (1, 7))), FINGERPRINT)
OF_A_WORKER = save(Position(3, ((2, 4),), worker=(1, 3), n_had=5), FINGERPRINT)


def test_a_position_is_saved_and_loaded():
    for position, partition in [
        (Position(), WHOLE),
        (Position(MAX_WORD - 1), WHOLE),
        (Position(3, ((2, 4), (1, 7))), Partition(1, 2)),
        (Position(3, ((2, 0),), worker=(0, 1), n_had=0), Partition(1, 2, 0, 1)),
        (Position(3, ((2, 4),), worker=(1, 3), n_had=5), Partition(0, 2, 1, 3)),
    ]:
        state = json.loads(json.dumps(save(position, FINGERPRINT)))
        assert load(state, FINGERPRINT, partition) == position
        assert state["format"] == FORMAT
        assert state["order_version"] == VERSION


def test_a_consumer_that_has_had_nothing_leaves_no_trace():
    assert save(Position(2, ((4, 1), (2, 0))), {})["parts"] == [[4, 1]]
    assert "worker" not in save(Position(2), {})
    # A worker stands behind its rank's batches, even if there were none.
    assert save(Position(2, ((2, 0),), worker=(0, 2)), {})["parts"] == [[2, 0]]


@pytest.mark.parametrize("key", FINGERPRINT)
def test_every_key_of_the_fingerprint_counts(key: str):
    """One that is missing, on either side, is as bad as one that differs."""
    here = dict(FINGERPRINT)
    changed: list[Any] = [5, 1, {"kind": "0e"}, "x"]
    for value in changed:
        if value != FINGERPRINT[key]:
            with pytest.raises(InputError, match=rf"the same data and settings: {key} is ") as error:
                load(save(Position(), FINGERPRINT | {key: value}), here, WHOLE)
            assert str(error.value).count(" here") == 1
            with pytest.raises(InputError, match=f"settings: {key} is "):
                load(BEGUN, here | {key: value}, WHOLE)
    if FINGERPRINT[key] is not None:
        less = {name: value for name, value in FINGERPRINT.items() if name != key}
        with pytest.raises(InputError, match=f"settings: {key} is missing in the state and .* here"):
            load(save(Position(), less), here, WHOLE)
        with pytest.raises(InputError, match=f"settings: {key} is .* in the state and missing here"):
            load(BEGUN, less, WHOLE)


@pytest.mark.parametrize("key", ["format", "order_version", "fingerprint", "epoch", "parts"])
@pytest.mark.parametrize("state", [BEGUN, OF_A_WORKER], ids=["rank", "worker"])
def test_every_key_of_a_state_must_be_there(state: dict[str, Any], key: str):
    with pytest.raises(InputError, match="state"):
        load({name: value for name, value in state.items() if name != key}, FINGERPRINT, Partition(0, 2, 1, 3))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"format": None}, "must be what state_dict"),
        ({"format": "another"}, "must be what state_dict"),
        ({"order_version": VERSION + 1}, "order_version of the state must be"),
        ({"order_version": VERSION - 1}, "order_version of the state must be"),
        ({"fingerprint": [1]}, "must hold a fingerprint"),
        ({"epoch": -1}, r"epoch of the state must be in \[0, 2\*\*64\), got -1"),
        ({"epoch": MAX_WORD}, "epoch of the state must be in"),
        ({"epoch": True}, "epoch of the state must be in"),
        ({"epoch": 1.0}, "epoch of the state must be in"),
        ({"parts": None}, "parts of the state must be pairs"),
        ({"parts": {}}, "parts of the state must be pairs"),
        ({"parts": [3]}, "parts of the state must be pairs"),
        ({"parts": [[1]]}, "parts of the state must be pairs"),
        ({"parts": [[1, 2, 3]]}, "parts of the state must be pairs"),
        ({"parts": [[0, 2]]}, "parts of the state must be pairs"),
        ({"parts": [[1, -1]]}, "parts of the state must be pairs"),
        ({"parts": [[1, True]]}, "parts of the state must be pairs"),
        ({"parts": [[1, 2], [1, 0.5]]}, "parts of the state must be pairs"),
        ({"worker": 3}, "worker of the state must be"),
        ({"worker": [0, 1]}, "worker of the state must be"),
        ({"worker": [0, 1, 2, 3]}, "worker of the state must be"),
        ({"worker": [1, 1, 0]}, "worker of the state must be"),
        ({"worker": [-1, 1, 0]}, "worker of the state must be"),
        ({"worker": [0, 1, -1]}, "worker of the state must be"),
        ({"worker": [0, 1, 0], "parts": []}, "worker of the state must be"),
    ],
)
def test_what_is_no_state_is_refused(changed: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        load(BEGUN | changed, FINGERPRINT, WHOLE)


def test_what_holds_no_state_is_refused():
    for state in (None, [], "state", 3, {}):
        with pytest.raises(InputError, match="must be what state_dict"):
            load(state, FINGERPRINT, WHOLE)


@pytest.mark.parametrize("worker", ["missing", None])
def test_a_rank_goes_on_with_the_state_of_any_ranks(worker: Any):
    state = BEGUN if worker == "missing" else BEGUN | {"worker": worker}
    for partition in (WHOLE, Partition(2, 5)):
        assert load(state, FINGERPRINT, partition).parts == ((2, 4), (1, 7))
    # Workers share out what a rank has left: the last batches must be those of as many ranks.
    assert load(state, FINGERPRINT, Partition(0, 1, 1, 2)).parts == ((2, 4), (1, 7))
    with pytest.raises(InputError, match="belong to a worker of one of 2 ranks, got the state of one of 1"):
        load(state, FINGERPRINT, Partition(0, 2, 1, 2))
    # Before the first batch it is all the same.
    assert load(save(Position(4), FINGERPRINT), FINGERPRINT, Partition(0, 2, 1, 2)).epoch == 4


@pytest.mark.parametrize(
    "partition", [Partition(0, 2, 0, 3), Partition(0, 2, 1, 4), Partition(0, 1, 1, 3), Partition(0, 2), WHOLE]
)
def test_a_worker_goes_on_only_as_the_same_worker(partition: Partition):
    with pytest.raises(InputError, match="got the state of worker 1 of 3 of one of 2 ranks"):
        load(OF_A_WORKER, FINGERPRINT, partition)
    # Which of the ranks it was does not matter: all have had equally many.
    for rank in range(2):
        assert load(OF_A_WORKER, FINGERPRINT, Partition(rank, 2, 1, 3)).n_had == 5


def test_how_a_position_moves():
    assert Position() == Position(0, (), begun=False, worker=None, n_had=0)
    position = Position(2)
    position.begin(WHOLE)
    assert (position.parts, position.begun, position.worker) == (((1, 0),), True, None)
    for _ in range(3):
        position.advance()
    position.begin(Partition(1, 2))
    position.advance()
    assert position.parts == ((1, 3), (2, 1))
    # As many consumers go on counting, others that had nothing are forgotten.
    position.begin(Partition(0, 2))
    position.advance()
    assert position.parts == ((1, 3), (2, 2))
    position.begin(Partition(0, 3))
    position.begin(Partition(0, 2))
    assert position.parts == ((1, 3), (2, 2))
    position.begin(Partition(3, 4))
    position.advance()
    assert position.parts == ((1, 3), (2, 2), (4, 1))
    position.end()
    assert position == Position(3, (), begun=False)


def test_how_the_position_of_a_worker_moves():
    position = Position(2, ((2, 3),))
    position.begin(Partition(0, 2, 1, 4))
    for n_had in (1, 2):
        position.advance()
        assert (position.worker, position.n_had, position.parts) == ((1, 4), n_had, ((2, 3),))
    position.end()
    assert (position.epoch, position.n_had, position.begun) == (2, 2, True)
