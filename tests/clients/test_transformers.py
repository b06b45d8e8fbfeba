"""Does a Trainer of transformers get every row once, on one and two ranks, and go on with the very next batch?"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

pytest.importorskip("transformers", reason="transformers is not installed: make test-clients")
torch = pytest.importorskip("torch", reason="torch is not installed")

from transformers import TrainingArguments  # noqa: E402

from annbatch import InputError, Loader  # noqa: E402
from annbatch_torch import TorchLoader  # noqa: E402
from annbatch_torch.transformers import LoaderTrainer  # noqa: E402

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]

N_ROWS = 107


def batches(form: str = "dict", **options: Any) -> TorchLoader:
    rng = np.random.default_rng(0)
    x = sp.csr_matrix(rng.poisson(1.0, (N_ROWS, 7)).astype(np.float32))
    obs = pd.DataFrame(
        {"kind": pd.Categorical([("a", "b", "c")[row % 3] for row in range(N_ROWS)])},
        index=[f"cell {row}" for row in range(N_ROWS)],
    )
    asked = {"batch_size": 8, "chunk_size": 2, "preload_nchunks": 8} | options
    core = Loader(**asked).add_anndatas([ad.AnnData(x, obs)])
    return TorchLoader(core, layout="dense", form=form)


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(7, 3)
        self.seen: list[list[int]] = []

    def forward(self, data: Any, index: Any, kind: Any) -> dict[str, Any]:
        if self.training:
            self.seen.append(index.tolist())
        logits = self.layer(data)
        return {"loss": torch.nn.functional.cross_entropy(logits, kind), "logits": logits}


def trainer(folder: Path, data: Any = None, **options: Any) -> LoaderTrainer:
    arguments = {"num_train_epochs": 2, "use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_steps": 3}
    arguments |= {"label_names": ["kind"], "logging_strategy": "no"} | options
    return LoaderTrainer(
        model=Model(),
        args=TrainingArguments(str(folder), **arguments),
        train_dataset=batches() if data is None else data,
        eval_dataset=batches(rows=np.arange(40)),
    )


@pytest.mark.parametrize("n_accumulated", [1, 4])
def test_every_row_once_and_exact_resume(n_accumulated: int, tmp_path: Path) -> None:
    whole = trainer(tmp_path, gradient_accumulation_steps=n_accumulated)
    whole.train()
    seen = whole.model.seen
    assert len(seen) == 2 * 14
    assert sorted(row for batch in seen[:14] for row in batch) == list(range(N_ROWS))
    truth = batches()
    assert seen == [batch["index"].tolist() for _ in range(2) for batch in truth]
    checkpoints = [folder for folder in tmp_path.glob("checkpoint-*") if int(folder.name[11:]) < whole.state.max_steps]
    assert len(checkpoints) >= 2
    for checkpoint in checkpoints:
        resumed = trainer(tmp_path / "again", gradient_accumulation_steps=n_accumulated, save_strategy="no")
        resumed.train(str(checkpoint))
        assert resumed.model.seen == seen[len(seen) - len(resumed.model.seen) :]
        assert 0 < len(resumed.model.seen) < len(seen)
        assert resumed.state.global_step == whole.state.global_step
        assert torch.equal(resumed.model.layer.weight, whole.model.layer.weight)


def test_evaluation(tmp_path: Path) -> None:
    model = trainer(tmp_path)
    found = model.predict(model.eval_dataset)
    np.testing.assert_array_equal(
        found.label_ids, torch.cat([batch["kind"] for batch in batches(rows=np.arange(40))]).numpy()
    )
    assert model.evaluate()["eval_loss"] == model.evaluate()["eval_loss"]


def test_what_cannot_be_had_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="form must be 'dict' for a LoaderTrainer"):
        trainer(tmp_path, batches(form="batch"))
    with pytest.raises(InputError, match="ignore_data_skip must be False"):
        trainer(tmp_path, ignore_data_skip=True)
    (tmp_path / "checkpoint-1").mkdir()
    with pytest.raises(InputError, match=r"must hold annbatch_loader\.json"):
        trainer(tmp_path).train(True)


def main(folder: str) -> None:
    """What each of two ranks does."""
    import torch.distributed as dist

    first = trainer(Path(folder), save_steps=4)
    first.train()
    resumed = trainer(Path(folder) / "again", save_strategy="no")
    resumed.train(str(Path(folder) / "checkpoint-4"))
    assert resumed.model.seen == first.model.seen[4:]
    gathered: list[Any] = [None, None]
    dist.all_gather_object(gathered, first.model.seen[: len(first.model.seen) // 2])
    assert len(gathered[0]) == len(gathered[1])
    assert sorted(row for seen in gathered for batch in seen for row in batch) == list(range(N_ROWS))
    with pytest.raises(InputError, match="must have a multiple of 2 rows, got 39"):
        resumed.evaluate(batches(rows=np.arange(39)))
    assert resumed.evaluate()["eval_loss"] > 0
    dist.barrier()


def test_ranks(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([*command, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]


if __name__ == "__main__":
    main(sys.argv[1])
