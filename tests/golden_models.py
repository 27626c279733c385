"""The small Hugging Face directories of golden/, and copies of them to change."""

import json
import pathlib
import shutil

GOLDEN = pathlib.Path(__file__).parent / "golden"


def copy_golden(name, target, **edits):
    """Copies a golden directory; edits change config.json, None removes a key."""
    shutil.copytree(GOLDEN / name, target)
    path = target / "config.json"
    data = json.loads(path.read_text()) | edits
    data = {key: value for key, value in data.items() if value is not None}
    path.write_text(json.dumps(data))
    return target
