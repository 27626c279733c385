"""A stage of a run: what it made is in its manifest, which is written last.

What a stage is, is what it was made from and what it made: the digests of its inputs
and of its results. How long it took, and with which versions, stands beside them and
does not count. So a stage whose result is lost or damaged is done again, and what was
made from its result stays if the new one is equal, bit for bit.
"""

import hashlib
import json
import pathlib
import shutil
import time
from collections.abc import Iterable
from typing import Any

from stepjax.lm import files, hosts
from stepjax.run import compiles, redo, standing
from stepjax.run import manifest as manifests


class Damaged(ValueError):
    """A finished model that was found damaged when it was read.

    Attributes:
      manifest: the file that says that the model is finished.
    """

    def __init__(self, text: str, manifest: pathlib.Path):
        """Keeps the text for people, and the file."""
        super().__init__(text)
        self.manifest = manifest


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
      done: what the manifest holds, or None while the stage is not finished, or is to
        be done again because its manifest or one of its files is damaged.
    """

    def __init__(
        self,
        directory: Any,
        name: str,
        manifest: pathlib.Path,
        inputs: dict[str, str],
        scratch: str | None = None,
        settings: dict[str, Any] | None = None,
    ):
        """Looks whether the stage is done, and starts its clock if it is not.

        The first host looks, so that all hosts agree; see `RunDirectory.stage`, whose
        directory the first argument is.
        """
        self.name, self.manifest = name, manifest
        self._directory, self._inputs, self._scratch = directory, inputs, scratch
        self._settings = {"settings": settings} if settings else {}
        self.done = hosts.agreed(f"done {manifest}", self._finished)
        self._began, self._compiled = time.monotonic(), compiles.count()
        if self.done:
            self.tidy()

    @property
    def identity(self) -> dict[str, str]:
        """Digests of the inputs, and of the settings where they are kept."""
        text = json.dumps(self._settings, sort_keys=True)
        own = {"settings": hashlib.sha256(text.encode()).hexdigest()}
        return self._inputs | (own if self._settings else {})

    def _finished(self) -> dict[str, Any] | None:
        """Returns the manifest, if the stage is done with these inputs."""
        path, folder = self.manifest, self._directory.path
        if not path.exists():
            later = standing.after(folder, path)
            if later and self._directory.mends and self.name != "prepare":
                self._again(f"{path} is gone", later)
            return None
        try:
            manifest = manifests.read(path)
            wrong = manifests.changed_file(path, manifest)
        except ValueError as error:
            manifest, wrong = {}, str(error).partition("; ")[0]
        if wrong and not self._directory.mends:
            raise ValueError(
                f"{wrong}; expected what the stage {self.name!r} has written. Put it "
                f"back, or run `stepjax run --workdir={folder}`, which makes it again."
            )
        if wrong:
            self._again(wrong, standing.after(folder, path))
            return None
        kept = standing.inputs_of(folder, manifest)
        for name, digest in self._inputs.items():
            if kept.get(name) != digest:
                standing.refuse(folder, path, name)
        return manifest

    def _again(self, wrong: str, later: list[redo.Made]) -> None:
        """Says that the stage is done again, and what becomes of later ones."""
        text = f"{wrong}, so the stage {self.name!r} is done again"
        if later:
            text += (
                f"; what was made after it ({standing.named(later)}) stays, if the "
                "result is the same"
            )
        self._directory.say(text)

    def commit(self, written: Iterable[str] = (), **extra: Any) -> None:
        """Writes the manifest, which makes the stage done, and tidies up.

        On several hosts, the first host writes and all hosts wait for it.

        Args:
          written: names of the files that the stage wrote, relative to the manifest.
          **extra: further JSON values to keep in the manifest.
        """
        if hosts.first():
            folder = self.manifest.parent
            digests = {name: manifests.file_digest(folder / name) for name in written}
            manifest = self._directory.provenance() | {
                "stage": self.name,
                "inputs": self._inputs,
                "files": digests,
                "seconds": time.monotonic() - self._began,
                "compiled": compiles.count().since(self._compiled)._asdict(),
                **self._settings,
                **extra,
            }
            files.write_json(self.manifest, manifest, sealed=True)
        hosts.barrier(f"committed {self.manifest}")
        self.done = files.read_json(self.manifest)
        self.tidy()

    def tidy(self) -> None:
        """Deletes what only the unfinished stage needed."""
        if not hosts.first():
            return
        _forget_lost(self.manifest, self.done)
        for path in self.manifest.parent.glob(self._scratch) if self._scratch else ():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


# A damaged model stays, under other names, until an equal one has taken its place.


def _aside(manifest: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Returns the names that manifest and parameters of a damaged model get."""
    folder = manifest.parent
    return folder / "manifest.damaged.json", folder / "params.damaged"


def lose(manifest: pathlib.Path) -> None:
    """Makes a damaged model unfinished, so that it is made again."""
    record, params = _aside(manifest)
    manifest.replace(record)
    shutil.rmtree(params, ignore_errors=True)
    if (manifest.parent / "params").exists():
        (manifest.parent / "params").rename(params)


def _forget_lost(manifest: pathlib.Path, made: dict[str, Any]) -> None:
    """Deletes what `lose` has kept, if the model that was made again is equal."""
    record, params = _aside(manifest)
    if manifest.name != "manifest.json" or not record.exists():
        return
    try:
        lost = files.read_json(record)["arrays"]
    except (ValueError, LookupError, TypeError):
        lost = None  # then it is of no use
    if lost is None or lost == made.get("arrays"):
        shutil.rmtree(params, ignore_errors=True)
        record.unlink()
