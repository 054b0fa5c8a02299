"""Execute docs/digits.ipynb; `python tests/helpers/digits_notebook.py` also stores the outputs in it.

Needs the extra `docs`: `pip install -e ".[docs]"`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

PATH = Path(__file__).parents[2] / "docs" / "digits.ipynb"


def execute(folder: Path) -> Any:
    """Return the notebook, executed with `folder` as its working directory.

    Cells with the tag `skip-execution` are skipped. Stored are printed lines, values and PNG images; progress bars and
    warnings are dropped.

    Raises:
        CellExecutionError: a cell raised an error.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(PATH, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [reduced for output in cell.outputs if (reduced := _reduced(output)) is not None]
    return notebook


def _reduced(output: Any) -> Any:
    if output.output_type == "stream":
        return output if output.name == "stdout" else None
    if output.output_type != "execute_result":
        return None
    kind = "image/png" if "image/png" in output.data else "text/plain"
    output.data = {kind: output.data[kind]}
    return output


if __name__ == "__main__":
    import tempfile

    import nbformat

    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(execute(Path(folder)), PATH)
