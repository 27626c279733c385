"""What test_tfds_stream.py runs as processes: it streams rows, and notes where it is.

    python tfds_program.py PLACE FILE '{"seed": 3, "host": 0, ...}' PAUSE

FILE holds the ids of the rows so far and the state of the iterator, replaced as one;
a second start with the same FILE goes on from there. PAUSE is seconds between rows.
The last line that is printed holds the modules that must not be loaded.
"""

import json
import pathlib
import sys
import time

from stepjax.initial_data.formats import tfds
from stepjax.lm import files
from stepjax.records import Solution


def main(place: str, path: pathlib.Path, options: dict, pause: float) -> None:
    iterator = iter(tfds.stream(place, Solution, **options))
    seen = []
    if path.exists():
        saved = files.read_json(path)
        seen = saved["seen"]
        iterator.set_state(saved["state"])
    for item in iterator:
        batch = item if isinstance(item, list) else [item]
        seen.append([row.id for row in batch])
        files.write_json(path, {"seen": seen, "state": iterator.get_state()})
        time.sleep(pause)
    heavy = {"tensorflow", "torch"} & {name.split(".")[0] for name in sys.modules}
    print(json.dumps(sorted(heavy)))


if __name__ == "__main__":
    place, path, options, pause = sys.argv[1:]
    main(place, pathlib.Path(path), json.loads(options), float(pause))
