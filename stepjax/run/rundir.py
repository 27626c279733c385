"""A run is a directory of finished stages, each with a manifest written last."""

import contextlib
import fnmatch
import glob
import hashlib
import importlib.metadata
import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import ml_collections
from absl import logging

import stepjax
from stepjax import records
from stepjax.config import default, to_dict
from stepjax.lm import files, hosts
from stepjax.run import config_json, lock, redo, standing
from stepjax.run import manifest as manifests
from stepjax.run.manifest import file_digest
from stepjax.run.stage import Stage


class RunDirectory:
    """The folder of a run: its settings, its files, and which stages are finished.

    Attributes:
      path: the folder.
      is_new: whether this claim has made it.
      news: what this claim has changed in it, in words.
      mends: whether a finished stage that is damaged is done again, by commands that
        work; other ones say which command does that.
      say: called with a sentence about each stage that is done again.
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
          redo: a stage of `redo.DEPENDS`, or a model such as "M1": it and what comes
            after it may be deleted, as far as the settings have changed since it was
            made, or it was made from something else than what is there; "" for none.
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
        self.mends = not (keep or dry_run)
        self.say: Callable[[str], None] = logging.warning
        self._redo, self._keep = redo, keep
        self._own = self._config  # settings of config.json
        when = "will be deleted when all checks have passed"
        self._deleted = "would be deleted" if dry_run else when
        self._before = ""  # config.json, before other settings have replaced it
        self._before_data: dict[pathlib.Path, bytes | None] = {}
        # Only the first host looks before the file is written: NFS may cache "no such
        # file" on the other hosts.
        self.is_new = hosts.first() and not self._is_run()
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
            # Folders first: while they are there, config.json says what they are. The
            # lock last: what comes after it may be another command's.
            for path in self.path.iterdir():
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
            for path in self.path.iterdir():
                if not path.name.startswith(lock.NAME):
                    path.unlink(missing_ok=True)
            lock.release(self.path)
            with contextlib.suppress(OSError):
                self.path.rmdir()
        elif self._before:
            redo.restore(self.path)
            for path in set(self._data_files()) - self._before_data.keys():
                path.unlink()
            for path, content in self._before_data.items():
                if content is not None:
                    path.write_bytes(content)
            with files.replacing(self.path / "config.json") as file:
                file.write(self._before)

    def accept(self) -> None:
        """Deletes for good what --redo takes away: the new settings can work."""
        if hosts.first():
            redo.drop(self.path)

    def _data_files(self) -> list[pathlib.Path]:
        return [path for path in self.path.glob("data/*") if path.is_file()]

    def _claim(self, mine: dict) -> None:
        """Writes config.json, or checks that what was made fits these settings."""
        if self._is_run():
            self._change(mine)
        elif self.path.exists() and not (self.path.is_dir() and self._is_empty()):
            raise ValueError(
                f"{self.path} is not empty and has no config.json; expected a new "
                "folder or one of an earlier run. Use another --workdir."
            )
        else:
            config_json.write(self.path, mine)

    def _is_run(self) -> bool:
        """Whether the folder has settings of a run, or has lost them."""
        return (self.path / "config.json").exists() or bool(self._finished())

    def _finished(self) -> list[tuple[redo.Made, dict[str, Any]]]:
        """Returns the finished stages and their manifests, in their order."""
        return list(standing.finished(self.path))

    def _settings(self, mine: dict) -> dict:
        """Returns what config.json holds, or `mine` if they are what it has lost."""
        path = self.path / "config.json"
        try:
            return config_json.read(self.path)
        except (FileNotFoundError, ValueError) as error:
            reason = str(error).partition("; ")[0]
            if isinstance(error, FileNotFoundError):
                reason = f"{path} is gone"
            found = self._finished()
            if not found:
                raise ValueError(
                    f"{reason}; expected the settings of the run. No stage of it is "
                    "finished, so delete the folder, or use another --workdir."
                ) from error
            stage, manifest = found[-1]
            if not config_json.is_of(mine, manifest.get("config", "")):
                raise ValueError(
                    f"{reason}, and the settings of this command are not those that "
                    f"{stage} was made with; expected these. Give them with --config "
                    f"and --config.NAME=VALUE, or put {path} back."
                ) from error
            if not self.mends:
                raise ValueError(
                    f"{reason}; expected the settings of the run. `stepjax run` with "
                    "the same settings writes it again."
                ) from error
            # Perhaps begun with settings that were given since the last stage.
            redo.drop_unfinished(self.path)
            config_json.write(self.path, mine)
            self.news.append(
                f"{reason}; it is written again, as the settings are those that "
                f"{stage} was made with. Stages that are not finished begin anew"
            )
            return mine

    def _change(self, mine: dict) -> None:
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
        kept = self._settings(mine)
        before = (self.path / "config.json").read_text("utf-8")
        theirs = redo.filled(kept, to_dict(default()))
        stages = redo.made(self.path)
        old, names = redo.stale(stages, theirs, mine)
        changed = redo.changes(theirs, mine)
        unlike, why = standing.unlike(self.path) if self._redo else ([], "")
        if self._redo and not old and not unlike:
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
                    f"for this command only: {others}. {self.path / 'config.json'} "
                    "stays as it is"
                )
            return
        what = ", ".join(f"{name} {changed[name]}" for name in names)
        if old and not redo.allows(self._redo, old[0]):
            redo.refuse(self.path, old, what)
        if len(unlike) > len(old):  # it begins earlier
            if not redo.allows(self._redo, unlike[0]):
                raise ValueError(standing.refusal(self.path, unlike, why))
            old, what = unlike, why
        if old:
            redo.set_aside(self.path, old)
            self.news.append(f"{self._deleted}: {', '.join(map(str, old))} ({what})")
        others = [f"{name} {how}" for name, how in changed.items() if name not in names]
        if others:
            self.news.append(f"settings: {', '.join(others)}")
        if changed or old:
            self._before = before
        if changed:
            config_json.write(self.path, mine)

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
          ValueError: when the stage was finished with other inputs, or it is damaged
            and this command does not mend.
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
            kept = manifests.read(target)
        except ValueError:
            return False  # it is damaged
        # Settings that were added after it was measured had their defaults.
        added = redo.measured_with(to_dict(default()), mode)
        same = added | kept.get("settings", settings) == settings
        same = same and standing.inputs_of(self.path, kept) == inputs
        return same and not manifests.changed_file(target, kept)

    def data(self, name: str) -> dict[str, str]:
        """Returns the name and digest of a data file, as a stage's input."""
        path = self.path / "data" / f"{name}.jsonl"
        return {name: file_digest(path)}

    def provenance(self) -> dict[str, Any]:
        """Returns what every manifest says: config, seed and versions."""
        names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
        versions = {name: importlib.metadata.version(name) for name in names}
        return {
            "config": file_digest(self.path / config_json.NAME),
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
        path = self.model(number) / "manifest.json"
        return {f"M{number}": manifests.model_digest(path)}

    def check(self) -> None:
        """Checks that each finished stage was made from what is there.

        Raises:
          ValueError: with what must go, and how.
        """

        def refusal() -> str:
            old, what = standing.unlike(self.path)
            return standing.refusal(self.path, old, what) if old else ""

        text = hosts.agreed(f"what {self.path} is made from", refusal)
        if text:
            raise ValueError(text)

    def newest(self) -> int:
        """Returns the number of the newest finished model; 0 when M1 is not there."""
        made = self.path.glob("M*/manifest.json")
        names = (path.parent.name[1:] for path in made)
        return max((int(name) for name in names if name.isdecimal()), default=0)

    def read(self, name: str, record_type: type) -> list:
        """Returns the rows of one of the run's data files."""
        return records.read_jsonl(self.path / "data" / f"{name}.jsonl", record_type)

    def rows(self, name: str, record_type: type) -> records.Rows:
        """Returns the rows of a data file; a row is read when it is used."""
        return records.Rows(self.path / "data" / f"{name}.jsonl", record_type)
