"""Which files a path of the settings means: a file, a pattern, or a folder as `datasets` writes."""

from __future__ import annotations

import glob
import json
import re
from pathlib import Path

from entropy_lab.errors import ConfigError
from entropy_lab.train.tasks.data.files import READERS

_SPLIT = re.compile(r"(?:^|[-_.])(train|validation|valid|val|dev|test)(?=[-_.]|$)")
_ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")


def data_files(path: str) -> list[Path]:
    """The files of `path`, in the order in which their rows are numbered.

    A folder is what `datasets.save_to_disk` writes (state.json names its Arrow files) or one of
    Parquet or JSON files as the hub has them. Raises ConfigError where nothing is found and where
    a folder holds more than one split, folder or kind of file: these must be named.
    """
    if any(c in path for c in "*?["):
        return _known([Path(p) for p in sorted(glob.glob(path))], path)
    place = Path(path)
    if not place.exists():
        raise ConfigError(f"no such data file: {path} (seen from {Path.cwd()}); give its path")
    return _folder(place) if place.is_dir() else _known([place], path)


def data_name(path: str) -> str:
    """The name of the data at `path`: that of the file or folder, without its ending."""
    place = Path(path)
    name = place.stem if place.suffix in READERS else place.name
    return re.sub(r"[^\w.]*[*?\[].*", "", name) or place.parent.name


def _known(files: list[Path], path: str) -> list[Path]:
    if not files:
        raise ConfigError(f"no data file matches {path}")
    for file in files:
        if file.suffix not in READERS:
            raise ConfigError(
                f"{file} is no data file: its name must end in {', '.join(READERS)}, or it must "
                "be a folder of such files"
            )
    return files


def _folder(folder: Path) -> list[Path]:
    if (folder / "dataset_dict.json").is_file():
        names = _splits_of(folder)
        raise ConfigError(
            f"{folder} holds the splits {', '.join(names)}: name one, for example "
            f"{folder / names[0]}"
        )
    if (folder / "state.json").is_file():
        return _saved(folder)
    found = [
        p
        for p in sorted(folder.rglob("*"))
        if p.suffix in READERS and p.name not in _ABOUT and p.is_file() and not _hidden(p, folder)
    ]
    # A lone .json beside other data is about it.
    files = [p for p in found if p.suffix != ".json"] or found
    if not files:
        raise ConfigError(f"{folder} holds no data file (ending in {', '.join(READERS)})")
    _refuse_several(folder, "folders", {str(p.parent.relative_to(folder)): p for p in files})
    _refuse_several(folder, "kinds", {p.suffix: p for p in files})
    _refuse_several(folder, "splits", {_split(p): p for p in files})
    return files


def _splits_of(folder: Path) -> list[str]:
    try:
        return list(json.loads((folder / "dataset_dict.json").read_bytes())["splits"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"{folder / 'dataset_dict.json'} is damaged: save it again") from None


def _saved(folder: Path) -> list[Path]:
    try:
        state = json.loads((folder / "state.json").read_bytes())
        files = [folder / entry["filename"] for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"{folder / 'state.json'} is damaged: save the data again") from None
    for file in files:
        if not file.is_file():
            raise ConfigError(f"{file} is missing, though {folder / 'state.json'} names it")
    return files


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _split(path: Path) -> str:
    found = _SPLIT.search(path.stem)
    return found[1] if found else ""


def _refuse_several(folder: Path, what: str, found: dict[str, Path]) -> None:
    if len(found) > 1:
        names = ", ".join(repr(name) for name in sorted(found))
        one = found[min(found)]
        pattern = one.with_name(f"*{one.suffix}") if what != "splits" else one
        if what == "splits" and (split := _SPLIT.search(one.stem)):
            pattern = one.with_name(f"{one.stem[: split.end(1)]}*{one.suffix}")
        raise ConfigError(f"{folder} holds several {what} ({names}): name one, such as {pattern}")
