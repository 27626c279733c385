"""A run is a directory of finished stages, each with a manifest written last."""

import fnmatch
import glob
import hashlib
import importlib.metadata
import json
import os
import pathlib
import shutil
import time
from collections.abc import Iterable
from typing import Any

import ml_collections

import stepjax
from stepjax import records
from stepjax.config import default, to_dict
from stepjax.lm import files, hosts
from stepjax.run import lock, redo

_PARTS = ("inputs", "files")  # that every manifest has


def file_digest(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file.

    Raises:
      ValueError: when it is missing.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing; expected the result of an earlier stage.")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_manifest(path: pathlib.Path) -> dict[str, Any]:
    """Returns what the manifest of a stage or the file of an evaluation holds.

    Raises:
      ValueError: when it is damaged, see `files.read_json`, or is something else.
    """
    manifest = files.read_json(path)
    parts = [manifest.get(n) if isinstance(manifest, dict) else 0 for n in _PARTS]
    if not all(isinstance(part, dict) for part in parts):
        raise ValueError(
            f"{path}: there are no {' and '.join(_PARTS)} in it; expected what a "
            f"finished stage has written. Put it back, or delete {_result(path)} and "
            "run the same command again."
        )
    return manifest


class RunDirectory:
    """The folder of a run: its settings, its files, and which stages are finished.

    Attributes:
      path: the folder.
      is_new: whether this claim has made it.
      news: what this claim has changed in it, in words.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        path: str | os.PathLike,
        redo: str = "",
        *,
        dry_run: bool = False,
        keep: bool = False,
    ):
        """Claims the folder for these settings.

        Args:
          config: the settings.
          path: the folder.
          redo: a stage of `redo.DEPENDS` that may be deleted, with all that come after
            it, if the settings have changed since it was made; "" for none.
          dry_run: whether all of it comes back at the end (`give_back`).
          keep: whether a directory with data keeps its config.json when nothing that
            was made depends on what differs, or searches only, which can be measured
            with other settings; for commands that only look.

        Raises:
          ValueError: when it was made with other settings, or is a folder of other
            files.
        """
        self.path, self._config = pathlib.Path(path), to_dict(config)
        self.news: list[str] = []
        self._redo, self._keep = redo, keep
        self._own = self._config  # settings of config.json
        when = "will be deleted when all checks have passed"
        self._deleted = "would be deleted" if dry_run else when
        self._before: dict = {}  # settings that other ones have replaced
        self._before_data: dict[pathlib.Path, bytes | None] = {}
        # Only the first host looks before the file is written: NFS may cache "no such
        # file" on the other hosts.
        self.is_new = hosts.first() and not (self.path / "config.json").exists()
        if hosts.first():
            self._claim(self._config)
        hosts.barrier("run directory claimed")
        if not hosts.first():
            if not (self.path / "config.json").exists():
                raise ValueError(
                    f"host {hosts.index()} does not see {self.path / 'config.json'}, "
                    "which the first host has written; expected a directory that all "
                    "hosts share, e.g. NFS or a mounted bucket."
                )
            self._claim(self._config)

    def give_back(self) -> None:
        """Undoes what this claim has written; the run could not begin."""
        if self.is_new:
            # Folders first: while they are there, config.json says what they are.
            for path in self.path.iterdir():
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
            shutil.rmtree(self.path, ignore_errors=True)
        elif self._before:
            redo.restore(self.path)
            for path in set(self._data_files()) - self._before_data.keys():
                path.unlink()
            for path, content in self._before_data.items():
                if content is not None:
                    path.write_bytes(content)
            files.write_json(self.path / "config.json", self._before)

    def accept(self) -> None:
        """Deletes for good what --redo takes away: the new settings can work."""
        if hosts.first():
            redo.drop(self.path)

    def _data_files(self) -> list[pathlib.Path]:
        return [path for path in self.path.glob("data/*") if path.is_file()]

    def _claim(self, mine: dict) -> None:
        """Writes config.json, or checks that what was made fits these settings."""
        path = self.path / "config.json"
        if path.exists():
            self._change(path, mine)
        elif self.path.exists() and not (self.path.is_dir() and self._is_empty()):
            raise ValueError(
                f"{self.path} is not empty and has no config.json; expected a new "
                "folder or one of an earlier run. Use another --workdir."
            )
        else:
            files.write_json(path, mine)

    def _change(self, path: pathlib.Path, mine: dict) -> None:
        """Takes over other settings if no stage, or only --redo, stands against it."""
        # The other hosts come here after the first one has set stages aside.
        alone = hosts.first() and not lock.is_others(self.path)
        if alone and redo.restore(self.path):
            self.news.append("brought back what a command that was killed had replaced")
        manifest = self.path / "data" / "manifest.json"  # grows with more questions
        self._before_data = {
            path: path.read_bytes() if path == manifest else None
            for path in self._data_files()
        }
        kept = files.read_json(path)
        theirs = redo.filled(kept, to_dict(default()))
        stages = redo.made(self.path)
        old, names = redo.stale(stages, theirs, mine)
        changed = redo.changes(theirs, mine)
        if self._redo and not old:
            self.news.append(
                f"--redo={self._redo}: nothing is deleted, because all that was made "
                "is what these settings give."
            )
        # A search can be measured with other settings than those that made the pairs.
        fixed = [s for s in stages if self._redo or s.stage != "search"]
        if self._keep and manifest.exists() and not redo.stale(fixed, theirs, mine)[0]:
            self._own = theirs
            if changed:
                others = ", ".join(f"{name} {how}" for name, how in changed.items())
                self.news.append(
                    f"for this command only: {others}. {path} stays as it is"
                )
            return
        if old:
            what = ", ".join(f"{name} {changed[name]}" for name in names)
            order = list(redo.DEPENDS)
            allowed = self._redo and order.index(self._redo) <= order.index(
                old[0].stage
            )
            if not allowed:
                redo.refuse(self.path, old, what)
            redo.set_aside(self.path, old)
            self.news.append(f"{self._deleted}: {', '.join(map(str, old))} ({what})")
        others = [f"{name} {how}" for name, how in changed.items() if name not in names]
        if others:
            self.news.append(f"settings: {', '.join(others)}")
        if changed:
            self._before = kept
            files.write_json(path, mine)

    def _is_empty(self) -> bool:
        """Whether nothing is there but what a command left that was killed early."""
        early = f"{lock.NAME}*", ".config.json.*.tmp"
        left = (path.name for path in self.path.iterdir())
        return all(any(fnmatch.fnmatch(name, e) for e in early) for name in left)

    def model(self, number: int) -> pathlib.Path:
        """Returns the folder of model number `number`."""
        return self.path / f"M{number}"

    def stage(
        self,
        name: str,
        manifest: pathlib.Path,
        inputs: dict[str, str],
        scratch: str | None = None,
    ) -> "Stage":
        """Returns a stage of the run, which is done already or begins now.

        Args:
          name: of the stage, for its manifest.
          manifest: the file that the stage writes last.
          inputs: name → digest of what the stage works on.
          scratch: pattern of the files and folders beside the manifest that only an
            unfinished stage needs; they are deleted as soon as the stage is done.

        Raises:
          ValueError: when the stage was finished with other inputs, or one of its files
            has changed since.
        """
        return Stage(self, name, manifest, inputs, scratch)

    def measurement(
        self, mode: str, target: pathlib.Path, inputs: dict[str, str]
    ) -> "Stage":
        """Returns the stage that measures a model; a result of other things is dropped.

        Args:
          mode: of evaluation, see `redo.MEASURED`.
          target: the file of the result.
          inputs: name → digest of what is measured, and with what.
        """
        settings = redo.measured_with(self._config, mode)
        if hosts.first() and not self.is_result(mode, target, inputs):
            target.unlink(missing_ok=True)
            target.with_suffix(".jsonl").unlink(missing_ok=True)
        scratch = f"{glob.escape(target.stem)}.partial*"
        return Stage(self, f"eval/{mode}", target, inputs, scratch, settings)

    @property
    def borrowed(self) -> bool:
        """Whether config.json has other settings than those of this claim."""
        return self._own != self._config

    def variant(self, mode: str, number: int) -> str:
        """Returns what tells a result from that with the settings of config.json.

        Args:
          mode: of evaluation, see `redo.MEASURED`.
          number: of the model; that of a random M0 depends on further settings.

        Returns:
          "" if the settings are those of config.json, else "-" and a digest of them.
        """
        own, mine = (
            redo.measured_with(config, mode, number)
            for config in (self._own, self._config)
        )
        if own == mine:
            return ""
        text = json.dumps(mine, sort_keys=True)
        return f"-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def is_result(
        self, mode: str, target: pathlib.Path, inputs: dict[str, str]
    ) -> bool:
        """Whether a file holds what `measurement` would measure."""
        if not target.exists():
            return False
        settings = redo.measured_with(self._config, mode)
        try:
            kept = read_manifest(target)
        except ValueError:
            return False  # it is damaged
        return kept["inputs"] == inputs and kept.get("settings", settings) == settings

    def data(self, name: str) -> dict[str, str]:
        """Returns the name and digest of a data file, as a stage's input."""
        path = self.path / "data" / f"{name}.jsonl"
        return {name: file_digest(path)}

    def provenance(self) -> dict[str, Any]:
        """Returns what every manifest says: config, seed and versions."""
        names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
        versions = {name: importlib.metadata.version(name) for name in names}
        return {
            "config": file_digest(self.path / "config.json"),
            "seed": self._config["seed"],
            "versions": versions | {"stepjax": stepjax.__version__},
        }

    def benchmarks(self) -> tuple[str, ...]:
        """Returns the names of the run's own files of test problems."""
        folder = self.path / "data"
        names = ("test", "unseen")
        return tuple(name for name in names if (folder / f"{name}.jsonl").exists())

    def model_digest(self, number: int) -> dict[str, str]:
        """Returns the name and digest of a finished model, as a stage's input."""
        return {f"M{number}": file_digest(self.model(number) / "manifest.json")}

    def newest(self) -> int:
        """Returns the number of the newest finished model; 0 when M1 is not there."""
        made = self.path.glob("M*/manifest.json")
        names = (path.parent.name[1:] for path in made)
        return max((int(name) for name in names if name.isdecimal()), default=0)

    def read(self, name: str, record_type: type) -> list:
        """Returns the rows of one of the run's data files."""
        return records.read_jsonl(self.path / "data" / f"{name}.jsonl", record_type)


class Stage:
    """One stage of a run: done already, or begun now and committed at its end.

        stage = run.dir.stage("dpo", folder / "manifest.json", inputs, "train")
        if stage.done:
            return
        ...
        stage.commit(counts={"pairs": 7})

    Attributes:
      name: of the stage.
      manifest: the file that `commit` writes.
      done: what the manifest holds, or None while the stage is not finished.
    """

    def __init__(
        self,
        directory: RunDirectory,
        name: str,
        manifest: pathlib.Path,
        inputs: dict[str, str],
        scratch: str | None = None,
        settings: dict[str, Any] | None = None,
    ):
        """Looks whether the stage is done, and starts its clock if it is not.

        The first host looks, so that all hosts agree; see `RunDirectory.stage`.
        """
        self.name, self.manifest = name, manifest
        self._directory, self._inputs, self._scratch = directory, inputs, scratch
        self._settings = {"settings": settings} if settings else {}
        self.done = hosts.agreed(f"done {manifest}", self._finished)
        self._began = time.monotonic()
        if self.done:
            self.tidy()

    @property
    def identity(self) -> dict[str, str]:
        """Digests of the inputs, and of the settings where they are kept."""
        text = json.dumps(self._settings, sort_keys=True)
        own = {"settings": hashlib.sha256(text.encode()).hexdigest()}
        return self._inputs | (own if self._settings else {})

    def _finished(self) -> dict[str, Any] | None:
        """Returns the manifest, if there is one, after checking inputs and files."""
        path = self.manifest
        if not path.exists():
            return None
        manifest = read_manifest(path)
        for name, digest in self._inputs.items():
            if manifest["inputs"].get(name) != digest:
                raise ValueError(
                    f"{path}: {name} is not what this stage was made from; expected "
                    f"digest {manifest['inputs'].get(name)}. Delete {_result(path)} "
                    "and what was made from it, and run the same command again."
                )
        for name, digest in manifest["files"].items():
            file = path.parent / name
            if not file.exists() or file_digest(file) != digest:
                changed = "has changed since it was written"
                raise ValueError(
                    f"{file} {changed if file.exists() else 'is gone'}; expected "
                    f"SHA-256 {digest}. Put the file back, or delete {path} and what "
                    "was made from it, and run the same command again."
                )
        return manifest

    def commit(self, written: Iterable[str] = (), **extra: Any) -> None:
        """Writes the manifest, which makes the stage done, and tidies up.

        On several hosts, the first host writes and all hosts wait for it.

        Args:
          written: names of the files that the stage wrote, relative to the manifest.
          **extra: further JSON values to keep in the manifest.
        """
        if hosts.first():
            folder = self.manifest.parent
            digests = {name: file_digest(folder / name) for name in written}
            manifest = self._directory.provenance() | {
                "stage": self.name,
                "inputs": self._inputs,
                "files": digests,
                "seconds": time.monotonic() - self._began,
                **self._settings,
                **extra,
            }
            files.write_json(self.manifest, manifest, sealed=True)
        hosts.barrier(f"committed {self.manifest}")
        self.done = files.read_json(self.manifest)
        self.tidy()

    def tidy(self) -> None:
        """Deletes what only the unfinished stage needed."""
        if not (self._scratch and hosts.first()):
            return
        for path in self.manifest.parent.glob(self._scratch):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def _result(path: pathlib.Path) -> pathlib.Path:
    """Returns what to delete so that the stage of a manifest runs again."""
    return path.parent if path.name == "manifest.json" else path
