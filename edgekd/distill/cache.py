"""A teacher's logits on disk, right under augmentation: one row for each (image, view).

With `Training.views = V` every image is only ever seen in V augmentations that depend on its index, the view and
`view_seed` alone, so a row is right for every run, batch size and seed. The folder's name is a hash of everything the
rows depend on: teacher, data, augmentation, precision. A row is written when it is first needed and marked afterwards;
an interrupted run loses nothing. Source of the idea: Wu et al. 2022, "TinyViT" (arXiv 2207.10666), section 3.1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgekd.data.dataset import Dataset
from edgekd.distill.batches import Batch
from edgekd.distill.players import Player, Roster
from edgekd.distill.sources import Live, Signals
from edgekd.distill.training import Training
from edgekd.errors import CheckError, InputError
from edgekd.files import read_json, write_json

FORMAT = 1
DONE = 1


class CachedTeacher(Player):
    """A source: a frozen teacher that is asked once for each (image, view), and read from disk from then on.

    top_k None: all logits as float16. Else the top_k log-probabilities and the mass of the rest, which is spread evenly
    over the other classes. What losses get is what was stored, the first time too, so that a resumed run is the same.
    fingerprint: of the teacher's weights. folder: shared by all runs. bfloat16: run the teacher under autocast.
    Raises: InputError: no views, mixed images, or a top_k that is not below the classes.
    """

    def __init__(
        self,
        teacher: nn.Module,
        dataset: Dataset,
        training: Training,
        *,
        folder: Path,
        fingerprint: str,
        top_k: int | None = None,
        bfloat16: bool = False,
    ) -> None:
        if training.views is None:
            raise InputError("a cache needs a known number of augmentations", fix="set Training(views=...)")
        if training.mixes:
            raise InputError("mixed images never come back, so nothing can be cached", fix="drop mixup and cutmix")
        if top_k is not None and not 0 < top_k < dataset.num_classes:
            raise InputError(f"cache: top_k {top_k} of {dataset.num_classes} classes", fix="give less, or none for all")
        self.classes, self.top_k, self.views = dataset.num_classes, top_k, training.views
        self._live = Live(teacher, bfloat16=bfloat16)
        self._describes: dict[str, Any] = {
            "format": FORMAT,
            "teacher": fingerprint,
            "data": dataset.fingerprint,
            "rows": len(dataset.train),
            "classes": dataset.num_classes,
            "views": training.views,
            "view_seed": training.view_seed,
            "shift_px": training.shift_px,
            "flip": dataset.horizontal_flip,
            "preprocessing": dataset.preprocessing.to_dict(),
            "top_k": top_k,
            "bfloat16": bfloat16,
        }
        self.folder = folder / hashlib.sha256(json.dumps(self._describes, sort_keys=True).encode()).hexdigest()[:24]
        self.asked = 0
        self._rows: _Rows | None = None

    def join(self, roster: Roster) -> None:
        """Raises: InputError: the stage augments in another way than the cache was made for."""
        same = ("views", "view_seed", "shift_px", "mixup", "cutmix")
        stage = {name: getattr(roster.training, name) for name in same}
        mine = {**{name: self._describes.get(name) for name in same}, "mixup": 0.0, "cutmix": 0.0}
        if wrong := [name for name in same if stage[name] != mine[name]]:
            raise InputError(f"cache: made for {wrong[0]} {mine[wrong[0]]}, the stage has {stage[wrong[0]]}")

    def bind(self, images: Tensor, taps: Sequence[str]) -> Signals:
        """Open the folder, or make it. Raises: InputError: a tap is asked for: only logits are kept."""
        if taps:
            raise InputError(f"a cached teacher has no tap '{taps[0]}'", fix="use a method that reads logits only")
        said = self._live.bind(images, ())
        if said.logits.shape[1] != self.classes:
            raise InputError(f"the teacher has {said.logits.shape[1]} classes, the data {self.classes}")
        if not (self.folder / "about.json").is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / "about.json", self._describes)
        elif read_json(self.folder / "about.json") != self._describes:
            raise InputError("this cache is not what its name says", where=self.folder, fix="delete it")
        self._rows = _Rows(self.folder, self._describes["rows"] * self.views, self.classes, self.top_k)
        return said

    def signals(self, batch: Batch) -> Signals:
        """Logits (batch, classes): stored ones, or the teacher's where any of the batch is not stored yet."""
        if self._rows is None or batch.view is None:
            raise InputError("a cache is used with batches of known views", fix="set Training(views=...)")
        rows = (batch.index * self.views + batch.view).cpu().numpy()
        # The whole batch or nothing: a teacher's last bits may depend on who else is in the batch.
        if not self._rows.have(rows):
            self.asked += len(rows)
            self._rows.put(rows, self._live.signals(batch).logits.float().cpu())
        return Signals(self._rows.get(rows).to(batch.images.device))

    def close(self) -> None:
        """Write out, and give the teacher back."""
        if self._rows is not None:
            self._rows.flush()
        self._live.close()


class _Rows:
    """Memory-mapped rows of logits and a mark for each that is there."""

    def __init__(self, folder: Path, rows: int, classes: int, top_k: int | None) -> None:
        self.classes, self.top_k = classes, top_k
        width = classes if top_k is None else top_k + 1
        self.done = _mapped(folder / "done.u8", np.uint8, (rows,))
        self.values = _mapped(folder / "values.f16", np.float16, (rows, width))
        self.places = None if top_k is None else _mapped(folder / "classes.i32", np.int32, (rows, top_k))

    def have(self, rows: np.ndarray[Any, Any]) -> bool:
        return bool((self.done[rows] == DONE).all())

    def put(self, rows: np.ndarray[Any, Any], logits: Tensor) -> None:
        if self.top_k is None or self.places is None:
            kept = logits
        else:
            top = logits.log_softmax(1).topk(self.top_k)
            rest = (1 - top.values.exp().sum(1, keepdim=True)).clamp_min(1e-7).log()
            kept = torch.cat([top.values, rest], 1)
            self.places[rows] = top.indices.numpy()
        half = kept.half()
        if not bool(torch.isfinite(half).all()):
            raise CheckError("the teacher gives logits that float16 cannot hold (nan, inf or above 65504)")
        self.values[rows] = half.numpy()
        self.done[rows] = DONE

    def get(self, rows: np.ndarray[Any, Any]) -> Tensor:
        kept = torch.from_numpy(self.values[rows]).float()
        if self.top_k is None or self.places is None:
            return kept
        others = kept[:, -1:] - float(np.log(self.classes - self.top_k))
        places = torch.from_numpy(self.places[rows]).long()
        return others.expand(-1, self.classes).scatter(1, places, kept[:, :-1])

    def flush(self) -> None:
        for array in (self.values, self.places, self.done):
            if array is not None:
                array.flush()


def _mapped(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """The file of this shape, sparse and zero where nobody wrote. Opened without cutting what another process wrote."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    with path.open("ab") as stream:
        if stream.tell() < size:
            stream.truncate(size)
    return np.memmap(path, dtype=dtype, mode="r+", shape=shape)


def fingerprint_of(model: nn.Module) -> str:
    """sha256 over a model's structure and weights. Raises: InputError: it has none (a black box): name its file's."""
    digest = hashlib.sha256(repr(model).encode())
    state = model.state_dict()
    if not state:
        raise InputError(f"{type(model).__name__} has no weights to tell it from others", fix="give a fingerprint")
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
