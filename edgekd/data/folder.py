"""A folder of images: FOLDER/train/CLASS/*.jpg and FOLDER/val/CLASS/*.jpg or FOLDER/test/CLASS/*.jpg."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekd.data.assemble import assemble, mirror_keeps_label
from edgekd.data.dataset import Dataset
from edgekd.data.encoded import check
from edgekd.errors import InputError

_LAYOUT = "expected FOLDER/train/CLASS/*.jpg and FOLDER/val/CLASS/*.jpg (or test/)"
_NOT_DATA = frozenset({"Thumbs.db", "desktop.ini"})  # left by file managers


@dataclass(frozen=True)
class _Files:
    """Image files as `Encoded`."""

    paths: list[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, i: int) -> bytes:
        return self.paths[i].read_bytes()

    def name(self, i: int) -> str:
        return str(self.paths[i])


def load_folder(folder: Path, *, image_size: int | None, skip_bad: bool, seed: int) -> Dataset:
    """A dataset of image files. Where the folder has train, val and test, each is used as named.

    With only one of val and test, that one is the test split and the validation part is held out of train.
    Raises: InputError: no train or test part, one class only, classes differ between parts, a file is not an image or
    is truncated (unless skip_bad), or a class has too few images.
    """
    parts = {name: folder / name for name in ("train", "val", "test") if (folder / name).is_dir()}
    if "train" not in parts or len(parts) < 2:
        missing = "train/" if "train" not in parts else "val/ or test/"
        raise InputError(f"no {missing} in this folder{_found(folder)}", where=folder, fix=_LAYOUT)
    classes = _classes(parts)
    files = {part: _images_of(path, classes) for part, path in parts.items()}
    everything = [item for items in files.values() for item in items]
    encoded = _Files([path for path, _ in everything])
    checked = check(encoded, image_size=image_size, where=folder, skip_bad=skip_bad)
    splits, start = {}, 0
    for part, items in files.items():
        splits[part] = checked.split(range(start, start + len(items)), [label for _, label in items])
        start += len(items)
    return assemble(
        splits["train"],
        splits.get("test", splits.get("val", splits["train"])),
        image_size=checked.image_size,
        name=folder.resolve().name,
        classes=classes,
        val=splits["val"] if len(splits) == 3 else None,
        fingerprint=checked.fingerprint([label for _, label in everything]),
        note=f"{len(checked.bad)} unreadable images skipped" if checked.bad else "",
        horizontal_flip=mirror_keeps_label(checked.channels, classes),
        seed=seed,
        where=folder,
    )


def _classes(parts: dict[str, Path]) -> tuple[str, ...]:
    names = {part: {p.name for p in path.iterdir() if p.is_dir() and p.name[0] != "."} for part, path in parts.items()}
    wanted = names["train"]
    if len(wanted) < 2:
        what = f"{len(wanted)} class folders" if not wanted else f"only one class folder ('{next(iter(wanted))}')"
        raise InputError(f"{what}; a classifier needs at least 2", where=parts["train"], fix=_LAYOUT)
    for part, found in names.items():
        if found != wanted:
            lacking = [f"lacks '{n}'" for n in sorted(wanted - found)] + [f"adds '{n}'" for n in sorted(found - wanted)]
            what = f"class folders differ from train/: {', '.join(lacking[:3])}{' ...' if len(lacking) > 3 else ''}"
            raise InputError(what, where=parts[part], fix="every part needs the same class folders")
    return tuple(sorted(wanted))


def _images_of(part: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    found = []
    for label, name in enumerate(classes):
        paths = sorted(p for p in (part / name).rglob("*") if p.is_file() and _is_data(p))
        if not paths:
            raise InputError("class folder has no images", where=part / name, fix="add images or remove the folder")
        found += [(path, label) for path in paths]
    return found


def _is_data(path: Path) -> bool:
    return not path.name.startswith(".") and path.name not in _NOT_DATA


def _found(folder: Path) -> str:
    names = sorted(p.name + ("/" if p.is_dir() else "") for p in folder.iterdir())
    if not names:
        return " (it is empty)"
    return f" (it holds {', '.join(names[:4])}{' ...' if len(names) > 4 else ''})"
