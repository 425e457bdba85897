"""UMAP in a process of its own, which can be stopped: umap-learn can not. `umap_map.py` starts it.

Reads three arrays from stdin: (rows, k) neighbours of each row, itself first, (rows, k) distances to them, and
(rows, 2) places to start from. Writes (rows, 2) places to stdout. The vectors stay in the other process.
"""

import io
import os
import sys
import warnings

import numpy as np


def main() -> None:
    """Reads, computes and writes."""
    out = os.dup(1)
    os.dup2(2, 1)  # packages that are imported may print
    given = io.BytesIO(sys.stdin.buffer.read())
    near, far, start = (np.load(given, allow_pickle=False) for _ in range(3))
    warnings.simplefilter("ignore")  # of features that are not used here
    import umap  # type: ignore[import-not-found,unused-ignore]

    # The first argument is not looked at where neighbours and places to start from are given.
    reducer = umap.UMAP(
        n_neighbors=near.shape[1], precomputed_knn=(near, far), init=start, random_state=int(sys.argv[1]), n_jobs=1
    )
    answer = io.BytesIO()
    np.save(answer, np.asarray(reducer.fit_transform(start), dtype=np.float64))
    with os.fdopen(out, "wb") as pipe:
        pipe.write(answer.getvalue())


if __name__ == "__main__":
    main()
